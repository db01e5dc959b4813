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
    import torch
    from torch import Tensor

FORMAT = "2"  # of patches and states
MOST_TENSORS = 100_000
BLOCK = 2**22  # bytes of a file that are in memory together while it is checked
MAPPED = 2**24  # bytes from which on a tensor may be left in its file
MOST_TEXT = 80 * 2**20  # characters of a header: of 100,000 edits with prompts of a line
MOST_HEADER = (
    96_000_000  # bytes of it and of the places of tensors, as they stand in the file: safetensors reads 100 MB
)
MOST_VALUES = 12_000_000  # values in a header: a few characters of text each, and a hundred bytes of memory
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
    if (words := _too_much(text)) is not None:
        raise BadInput(f"{path} was not written: {words}, which no {what} is read with; make it of fewer edits")
    for name, tensor in stored.items():
        _check_tensor(path, name, tensor, finite=_is_finite(tensor))
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


def read_tensors(path: Path, what: str, *, mapped: bool = False) -> tuple[dict[str, "Tensor"], dict[str, Any]]:
    """Tensors and JSON header of a file that :func:`write_tensors` wrote; ``what`` is its name in errors.

    The file is read once, a little at a time, to see that it is whole. Tensors are copied into memory; with ``mapped``
    those of MAPPED bytes or more are left in the file, which must not be changed in place while they are in use
    (writing it anew, as :func:`write_tensors` does, puts another in its place).

    Raises :class:`BadInput` for a file of another kind or format, one that was damaged, and one that was written with
    other numbers than finite ones.
    """
    with _opened(path, what) as (file, described):
        tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        _check_content(path, described, tensors)
        # copied, since a product with unaligned numbers may differ in the last bit
        kept = {n: t if mapped and t.nbytes >= MAPPED else t.clone() for n, t in tensors.items()}
        return kept, _header(described["errata"])


def copied(tensor: "Tensor") -> "Tensor":
    """The tensor in memory: a copy of one that :func:`read_tensors` may have left in its file, else itself."""
    return tensor.clone() if tensor.nbytes >= MAPPED else tensor


def _check_content(path: Path, described: dict[str, str], tensors: Mapping[str, "Tensor"]) -> None:
    """Raises :class:`BadInput` or :class:`ValueError` unless the file holds what its checksum says, and what it may.

    It is read in blocks, so that no more of it is in memory than one.
    """
    import torch

    expected, not_finite = described.pop("checksum", None), set[str]()
    digest = _begun(described)
    for name, tensor, blocks in _stored(path, tensors):
        digest.update(_named(name, tensor))
        for block in blocks:
            digest.update(block)
            if tensor.is_floating_point() and not _is_finite(torch.frombuffer(block, dtype=tensor.dtype)):
                not_finite.add(name)
    if digest.hexdigest() != expected:
        raise ValueError("its content and its checksum differ: it was damaged")
    for name, tensor in tensors.items():
        _check_tensor(path, name, tensor, finite=name not in not_finite)


def _stored(path: Path, tensors: Mapping[str, "Tensor"]) -> Iterator[tuple[str, "Tensor", Iterator[memoryview]]]:
    """Each tensor of a file in the order of their names, and its bytes in blocks."""
    room = memoryview(bytearray(BLOCK))

    def blocks(at: int, end: int) -> Iterator[memoryview]:
        file.seek(at)
        while at < end:
            block = room[: min(BLOCK, end - at)]
            if file.readinto(block) != len(block):  # pyright: ignore[reportAttributeAccessIssue]
                raise ValueError("it ends too early")
            yield block
            at += len(block)

    with path.open("rb") as file:
        start = 8 + (n := int.from_bytes(file.read(8), "little"))
        places: dict[str, Any] = json.loads(file.read(n))
        for name, tensor in sorted(tensors.items()):
            yield name, tensor, blocks(*(start + at for at in places[name]["data_offsets"]))


def _is_finite(tensor: "Tensor") -> bool:
    """Whether all numbers are finite; true of types that have no others, or that are not in use."""
    if not tensor.is_floating_point() or not tensor.numel() or _name(tensor.dtype) not in DTYPES:
        return True
    return all(bool(x.isfinite()) for x in tensor.aminmax())


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
            if count > MOST_TENSORS:
                raise ValueError(f"{count} tensors are too many")
            if (words := _too_much(described["errata"])) is not None:
                raise ValueError(words)
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

    digest = _begun(described)
    for name, tensor in sorted(tensors.items()):
        digest.update(_named(name, tensor))
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _begun(described: Mapping[str, str]) -> Any:
    """The checksum's beginning: the texts."""
    digest = sha256()
    for name, text in sorted(described.items()):
        digest.update(f"{name} {len(text)} {text}".encode())
    return digest


def _named(name: str, tensor: "Tensor") -> bytes:
    """What a checksum holds of a tensor before its bytes."""
    return json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode()


def _name(dtype: "torch.dtype") -> str:
    return str(dtype).removeprefix("torch.")


def _check_tensor(path: Path, name: str, tensor: "Tensor", *, finite: bool) -> None:
    """Raises :class:`BadInput` unless the tensor is of a type that is in use, and its numbers are ``finite``."""
    if (dtype := _name(tensor.dtype)) not in DTYPES:
        raise BadInput(f"{path}: the tensor {name!r} is of type {dtype}; expected one of {', '.join(DTYPES)}")
    if not tensor.numel() and max(tensor.shape) > WIDEST:
        raise BadInput(f"{path}: the tensor {name!r} has no numbers, and a side of {max(tensor.shape)}; make it again")
    if not finite:
        raise BadInput(f"{path}: an entry of the tensor {name!r} is no finite number; make it anew")


def _too_much(text: str) -> str | None:
    """What is too long of a header's text, in words; None where nothing is."""
    if len(text) > MOST_TEXT or len(text) + text.count('"') + text.count("\\") > MOST_HEADER:
        return f"a header of {len(text)} letters, which are too many"
    return "a header of more values than any has" if sum(map(text.count, ",[{")) > MOST_VALUES else None


def _header(text: str) -> dict[str, Any]:
    """The JSON object of a header, as :func:`json.dumps` writes it. Raises :class:`ValueError` for any other text."""
    from pydantic_core import from_json  # refuses deep nesting, NaN and texts that are not Unicode

    header = from_json(text, allow_inf_nan=False)
    if json.dumps(header) != text:
        raise ValueError("its header is not as Errata writes it: a key stands there twice, or a number is none")
    if not isinstance(header, dict):
        raise ValueError(f"its header is of type {type(header).__name__}, expected an object")
    return header
