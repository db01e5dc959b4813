"""The weights of a folder, one tensor at a time: safetensors files alone, and none outside of the folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from errata.errors import BadInput
from errata.inputs import parsed, read_text
from errata.printable import shown

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
MOST = 2**28  # characters of an index
PICKLES = ("*.bin", "*.pt", "*.pth")


@dataclass(frozen=True)
class Shards:
    """Where each tensor of a saved model stands."""

    files: Mapping[str, Path]
    """Name of a tensor -> its file."""

    @classmethod
    def of(cls, folder: Path) -> "Shards":
        """The tensors of a folder, by its index or in its one file.

        Raises :class:`BadInput` where there are none, where they are a pickle, and for an index that leads elsewhere.
        """
        if (folder / INDEX).is_file():
            return cls(_indexed(folder))
        if not (folder / SINGLE).is_file():
            pickles = [file.name for pattern in PICKLES for file in sorted(folder.glob(pattern))]
            if pickles:
                raise BadInput(
                    f"{folder} holds its weights in {pickles[0]}, a pickle, which can run code and is never read here; "
                    "save the model anew as safetensors"
                )
            raise BadInput(f"{folder} holds no {SINGLE}; give a model saved by save_pretrained")
        return cls(dict.fromkeys(_names(folder / SINGLE), folder / SINGLE))

    @property
    def names(self) -> list[str]:
        """The tensors' names, in order."""
        return sorted(self.files)

    def read(self, name: str) -> Tensor:
        """One tensor. Raises :class:`BadInput` where the file is broken or does not have it."""
        file = self.files[name]
        with _opened(file) as held:
            return held.get_tensor(name)


class _opened:
    """Context manager: a safetensors file; what is wrong with it is a :class:`BadInput` that names it."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __enter__(self) -> Any:
        from safetensors import SafetensorError, safe_open

        try:
            self.held = safe_open(self.file, framework="pt")
            return self.held.__enter__()
        except (SafetensorError, OSError, ValueError) as error:
            raise self._broken(error) from error

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        from safetensors import SafetensorError

        self.held.__exit__(kind, error, trace)
        if isinstance(error, SafetensorError | OSError | ValueError | RuntimeError):
            raise self._broken(error) from error

    def _broken(self, error: Any) -> BadInput:
        return BadInput(f"{self.file} is broken or not whole ({error}); fetch the model anew")


def _names(file: Path) -> list[str]:
    with _opened(file) as held:
        return list(held.keys())


def _indexed(folder: Path) -> dict[str, Path]:
    """The tensors of an index. Raises :class:`BadInput` for one that is none."""
    index = folder / INDEX
    try:
        content = parsed(read_text(index, "a model", MOST))
        files = content["weight_map"] if isinstance(content, dict) else None
    except (BadInput, KeyError) as error:
        raise BadInput(f"{index} is no index of weights ({error}); fetch the model anew") from error
    if not isinstance(files, dict) or not files:
        raise BadInput(f"{index} is no index of weights: it maps none to a file; fetch the model anew")
    for name, file in files.items():
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise BadInput(f"{index} says that {shown(name)} stands in {shown(file)}, which is no file of the folder")
        if not (folder / file).is_file():
            raise BadInput(f"{folder} lacks {file}, which its index names; fetch the model anew")
    return {name: folder / file for name, file in files.items()}
