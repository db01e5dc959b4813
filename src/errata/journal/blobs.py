# pyright: strict
"""Patch files by the digest of their bytes: each is written once, whole, and compared with its name when it is read.

patches/3fa2….safetensors       # sha256sum says the same
"""

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from shutil import copyfile

from errata.errors import BadInput
from errata.files import unfinished, unwritable, written_whole
from errata.inputs import opened

ENDING = ".safetensors"
BLOCK = 2**20  # bytes that are read at a time


class Blobs:
    """The patch files of a journal."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def place(self, digest: str) -> Path:
        """Where the file of that digest is, or would be."""
        return self.folder / f"{digest}{ENDING}"

    def put(self, write: Callable[[Path], object]) -> tuple[str, int]:
        """Digest and bytes of what ``write`` writes to the path that it is given; on the disk when this returns.

        An equal file that is there stays, unless it was damaged. Raises :class:`BadInput`.
        """
        try:
            with unfinished(self.folder) as folder:
                part = folder / "patch"
                write(part)
                digest, size = digest_of(part), part.stat().st_size
                place = self.place(digest)
                if not _is(place, digest):
                    _flush(part)
                    os.replace(part, place)
                    _flush_names(self.folder)
                return digest, size
        except OSError as error:
            raise unwritable(self.folder, error) from error

    def path(self, digest: str) -> Path:
        """The file of that digest. Raises :class:`BadInput` where there is none, and where it was damaged."""
        place = self.place(digest)
        if (found := digest_of(place)) != digest:
            raise BadInput(
                f"{place} is damaged: its digest is {found[:10]}…, and its name says another; fetch it anew from a "
                "copy of the journal"
            )
        return place

    def take(self, other: "Blobs", digest: str) -> None:
        """Copies a file of another journal. Raises :class:`BadInput` where that is missing or damaged."""
        source = other.path(digest)
        taken, _ = self.put(lambda part: copyfile(source, part))
        if taken != digest:
            raise BadInput(f"{source} was changed while it was read; try again")

    def copy(self, digest: str, path: Path) -> None:
        """Writes a copy of a file, whole or not at all. Raises :class:`BadInput`."""
        source = self.path(digest)
        with written_whole(path) as part:
            copyfile(source, part)
            if digest_of(part) != digest:
                raise BadInput(f"{source} was changed while it was read; try again")


def digest_of(path: Path) -> str:
    """SHA-256 of a file's bytes. Raises :class:`BadInput` where there is no regular file, or it cannot be read."""
    digest = hashlib.sha256()
    with opened(path, f"there is no patch at {path}; fetch it from a copy of the journal") as file:
        try:
            while block := file.read(BLOCK):
                digest.update(block)
        except OSError as error:
            raise BadInput(f"{path} cannot be read ({error.strerror or error}); give another file") from error
    return digest.hexdigest()


def _is(place: Path, digest: str) -> bool:
    with suppress(BadInput):
        return digest_of(place) == digest
    return False


def _flush(path: Path) -> None:
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def _flush_names(folder: Path) -> None:
    """The names of files in a folder, on the disk; Windows does that by itself."""
    if os.name != "nt":
        at = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(at)
        finally:
            os.close(at)
