"""Patches that commands speak through: read from files, checked against the model one by one, and joined in order."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from errata.errors import BadInput, ErrataError

if TYPE_CHECKING:
    from errata.model.hf import HFLM
    from errata.patch.patch import Patch

PatchFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--patch", help="A patch to speak through; several are joined in the order given.", show_default=False
    ),
]


def load_patches(paths: Sequence[Path] | None) -> "dict[Path, Patch]":
    """The patch in each file. Raises :class:`BadInput`, for a file that is given twice too."""
    from errata.patch.patch import Patch

    loaded: dict[Path, Patch] = {}
    for path in paths or ():
        if path.resolve() in [other.resolve() for other in loaded]:
            raise BadInput(f"--patch {path} is given twice, which would change the model twice; leave one out")
        loaded[path] = Patch.load(path)
    return loaded


def joined_patch(patches: "dict[Path, Patch]", lm: "HFLM", force: bool = False) -> "Patch | None":
    """The patches joined with ``+``, in order; None where there are none. What only further edits need is left out.

    Raises what :meth:`Patch.check` and ``+`` raise, with the file's name where there are several.
    """
    total: Patch | None = None
    for path, patch in patches.items():
        try:
            patch.check(lm, force=force)
            spoken = replace(patch, memory={}) if len(patches) > 1 else patch
            total = spoken if total is None else total + spoken
        except ErrataError as error:
            raise (type(error)(f"{path}: {error}") if len(patches) > 1 else error) from error
    return total


def load_patch(path: Path | None) -> "Patch | None":
    """The patch in a file; None without one."""
    from errata.patch.patch import Patch

    return None if path is None else Patch.load(path)
