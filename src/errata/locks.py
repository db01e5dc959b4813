"""Locks on files. The system releases those of a process that dies, so none is ever left locked.

with held(Path("rows.jsonl.parts/lock"), "rows.jsonl"):
    ...  # whoever else asks for it meanwhile is told who has it
"""

import errno
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from platform import node
from typing import TYPE_CHECKING

from errata.errors import BadInput

if TYPE_CHECKING:
    from filelock import BaseFileLock

log = logging.getLogger(__name__)

LOOK = 0.2  # seconds between two looks at whether it is our turn
UNKNOWN = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # file systems that have no locks


def try_lock(path: Path) -> "BaseFileLock | None":
    """The lock file at ``path``, made where there is none and held until it is released; None where another has it.

    Other threads of this process are others, too. Raises :class:`OSError` where it cannot be written, or not be locked.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path, blocking=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        return None
    return lock


@contextmanager
def held(path: Path, what: str) -> Iterator[None]:
    """Context manager: the lock file ``path`` is held, which stands for ``what``; the file is removed in the end.

    The file of a process that died stays until it is held again. Where the file system has no locks, this is logged,
    and nothing is locked. Raises :class:`BadInput` where another has it, which is named, or where it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = try_lock(path)
    except OSError as error:
        if error.errno not in UNKNOWN:
            raise BadInput(f"cannot write {path}: {error.strerror or error}; choose another place") from error
        log.warning("%s cannot be locked here (%s): let nothing else write it meanwhile", what, error.strerror)
        yield
        return
    if lock is None:
        raise BadInput(f"{what} is being written by {_holder(path)}; wait until that ends, or name another place")
    with _named(lock, path):
        yield


@contextmanager
def in_turn(path: Path, what: str) -> Iterator[bool]:
    """Context manager: no other process does the same meanwhile. Yields whether one did, for which this one has waited.

    The lock file ``path`` stands for what is done (``what``, in words, for the log), and is removed in the end. Another
    thread of this process is not waited for: it may wait for what this one holds. Where nothing can be locked, nobody
    waits.
    """
    waited, lock = False, None
    with suppress(OSError):
        while (lock := try_lock(path)) is None and not _holder(path).startswith(f"process {os.getpid()} on {node()} "):
            if not waited:
                log.info("%s by %s already: waiting for that", what, _holder(path))
            waited = True
            time.sleep(LOOK)
    if lock is None:
        yield waited
        return
    with _named(lock, path):
        yield waited


@contextmanager
def _named(lock: "BaseFileLock", path: Path) -> Iterator[None]:
    """Context manager: a lock file says who holds it, and is removed in the end."""
    try:
        with suppress(OSError):
            path.write_text(f"process {os.getpid()} on {node()} since {time.strftime('%Y-%m-%d %H:%M:%S')}", "utf-8")
        yield
    finally:
        with suppress(OSError):
            path.unlink()  # before it is released, so that nobody locks a file that is about to go
        lock.release()


def _holder(path: Path) -> str:
    """Who holds a lock file, in words."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")[:200] or "another process"
    except OSError:
        return "another process"
