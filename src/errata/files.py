"""Files that are written whole or not at all, and the folder in which computed states are cached."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errata.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Context manager that yields a temporary path beside ``path``; its file replaces ``path`` when the block ends.

    The folder is made if there is none. After an exception the temporary file is gone and ``path`` is as before.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_bytes(path: str | Path, content: bytes) -> None:
    """Writes a file whole or not at all."""
    with written_whole(path) as part:
        part.write_bytes(content)


def write_text(path: str | Path, text: str) -> None:
    """Writes a file of UTF-8 whole or not at all."""
    with written_whole(path) as part:
        part.write_text(text, encoding="utf-8")


def write_tensors(path: Path, tensors: Mapping[str, "Tensor"], header: Mapping[str, Any]) -> None:
    """Writes tensors and a JSON header to one safetensors file, whole or not at all. Raises :class:`BadInput`."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    stored = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    try:
        with written_whole(path) as part:
            save_file(stored, part, {"errata": json.dumps(dict(header))})
    except (OSError, SafetensorError) as error:
        raise BadInput(f"cannot write {path}: {error}; nothing was left there, choose another place") from error


def read_tensors(path: Path, what: str) -> tuple[dict[str, "Tensor"], dict[str, Any]]:
    """Tensors and JSON header of a file that :func:`write_tensors` wrote; ``what`` is its name in errors.

    Raises :class:`BadInput`.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise BadInput(f"there is no {what} at {path}; give the path of a file that Errata wrote")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["errata"])
            # copied, since a product with unaligned numbers may differ in the last bit
            return {name: file.get_tensor(name).clone() for name in file.keys()}, header  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise BadInput(f"{path} is no whole {what} of Errata ({error}); make it again or fetch it anew") from error


def cache_folder() -> Path:
    """The folder of cached states: ``$ERRATA_CACHE``, otherwise ``errata`` in the user's cache folder."""
    home = os.environ.get("ERRATA_CACHE")
    return Path(home) if home else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "errata"


def cache_file(kind: str, content: Any) -> Path:
    """Path in the cache of what was computed from ``content`` (JSON), by its kind and the content's digest."""
    return cache_folder() / f"{kind}-{sha256(json.dumps(content).encode()).hexdigest()[:20]}.safetensors"
