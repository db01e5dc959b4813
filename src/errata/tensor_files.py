"""Tensors with a header in one safetensors file, which a checksum guards: the form of patches and of states."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errata.errors import BadInput
from errata.files import unwritable, written_whole
from errata.inputs import opened

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "2"  # of patches and states
MOST_TENSORS = 100_000
MOST_TEXT = 64 * 2**20  # characters of a header
MOST_VALUES = 4_000_000  # values in a header: a few characters of text each, and a hundred bytes of memory
WIDEST = 2**20  # the longest side of a tensor without numbers, which takes no room in the file
DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")


def write_tensors(path: Path, tensors: Mapping[str, "Tensor"], header: Mapping[str, Any], what: str) -> None:
    """Writes tensors and a JSON header to one safetensors file, whole or not at all; ``what`` it is a file of.

    With a checksum of all that, which :func:`read_tensors` compares. Raises :class:`BadInput`, also for what that would
    not read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    stored = _apart(tensors)
    try:
        text = json.dumps(dict(header), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise BadInput(f"{path} was not written: a {what} is JSON and tensors ({error}); make it anew") from error
    for name, tensor in stored.items():
        _check_tensor(path, name, tensor)
    described = {"what": what, "format": FORMAT, "errata": text}
    try:
        with written_whole(path) as part:
            save_file(stored, part, {**described, "checksum": checksum(described, stored)})
    except SafetensorError as error:
        raise unwritable(path, error) from error


def _apart(tensors: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
    """The tensors on the CPU, each alone in its storage, as safetensors wants them: copied only where they are not."""
    apart: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        if own.untyped_storage().nbytes() != own.nbytes or own.untyped_storage().data_ptr() in storages:
            own = own.clone()
        storages.add(own.untyped_storage().data_ptr())
        apart[name] = own
    return apart


def read_tensors(path: Path, what: str, mapped: bool = False) -> tuple[dict[str, "Tensor"], dict[str, Any]]:
    """Tensors and JSON header of a file that :func:`write_tensors` wrote; ``what`` is its name in errors.

    ``mapped`` tensors stay in the file, which the system reads as they are used, and must not be written. Raises
    :class:`BadInput` for a file of another kind or format, one that was damaged, and one that was written with other
    numbers than finite ones.
    """
    with _opened(path, what) as (file, described):
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if not mapped:  # copied, since a product with unaligned numbers may differ in the last bit
            tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        if described.pop("checksum", None) != checksum(described, tensors):
            raise ValueError("its content and its checksum differ: it was damaged")
        for name, tensor in tensors.items():
            _check_tensor(path, name, tensor)
        return tensors, _header(described["errata"])


def read_header(path: Path, what: str) -> dict[str, Any]:
    """The JSON header of such a file alone, which nothing guards then. Raises :class:`BadInput`."""
    with _opened(path, what) as (_, described):
        return _header(described["errata"])


@contextmanager
def _opened(path: Path, what: str) -> Iterator[tuple[Any, dict[str, str]]]:
    """Context manager: the file, and its texts by name. What is wrong with it, also inside, is a :class:`BadInput`."""
    from safetensors import SafetensorError, safe_open

    try:
        opened(path, f"there is no {what} at {path}; give the path of a file that Errata wrote").close()
        with safe_open(path, framework="pt") as file:
            described = file.metadata() or {}
            _check_kind(path, what, described)
            count = len(file.keys())
            if count > MOST_TENSORS or len(described["errata"]) > MOST_TEXT:
                raise ValueError(f"{count} tensors and a header of {len(described['errata'])} letters are too many")
            yield file, described
    except BadInput:
        raise
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise BadInput(f"{path} is no whole {what} of Errata ({error}); make it again or fetch it anew") from error


def _check_kind(path: Path, what: str, described: Mapping[str, str]) -> None:
    """Raises :class:`BadInput` for another format (that of files without one is 1), and for another kind of file."""
    if "errata" not in described:
        raise BadInput(f"{path} is no whole {what} of Errata: it has no header; give the path of a file that it wrote")
    if (found := described.get("format", "1")) != FORMAT:
        way = "make it again with this version" if found == "1" else "update Errata"
        raise BadInput(f"{path} has format {found[:20]!r}; this Errata reads format {FORMAT}: {way}")
    if (found := described.get("what")) != what:
        raise BadInput(f"{path} is a {found[:20] if found else 'file of no kind'}; give a {what}")


def checksum(described: Mapping[str, str], tensors: Mapping[str, "Tensor"]) -> str:
    """SHA-256 of texts by name and of tensors by name: their types, shapes and bytes."""
    import torch

    digest = sha256()
    for name, text in sorted(described.items()):
        digest.update(f"{name} {len(text)} {text}".encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _check_tensor(path: Path, name: str, tensor: "Tensor") -> None:
    """Raises :class:`BadInput` unless the tensor is of a type that is in use, and its numbers are finite."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise BadInput(f"{path}: the tensor {name!r} is of type {dtype}; expected one of {', '.join(DTYPES)}")
    if not tensor.numel() and max(tensor.shape) > WIDEST:
        raise BadInput(f"{path}: the tensor {name!r} has no numbers, and a side of {max(tensor.shape)}; make it again")
    if tensor.is_floating_point() and tensor.numel() and not all(x.isfinite() for x in tensor.aminmax()):
        raise BadInput(f"{path}: an entry of the tensor {name!r} is no finite number; make it anew")


def _header(text: str) -> dict[str, Any]:
    """The JSON object of a header, as :func:`json.dumps` writes it. Raises :class:`ValueError` for any other text."""
    from pydantic_core import from_json  # refuses deep nesting, NaN and texts that are not Unicode

    if sum(map(text.count, ",[{")) > MOST_VALUES:
        raise ValueError("a header of more values than any has")
    header = from_json(text, allow_inf_nan=False)
    if json.dumps(header) != text:
        raise ValueError("its header is not as Errata writes it: a key stands there twice, or a number is none")
    if not isinstance(header, dict):
        raise ValueError(f"its header is of type {type(header).__name__}, expected an object")
    return header
