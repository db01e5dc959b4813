"""Ctrl-C while something is put on or taken off takes effect when that is done: nothing is left half changed."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


class Deferred:
    """Context manager: an interruption inside takes effect at its end. Python interrupts the main thread alone."""

    def __enter__(self) -> None:
        """Ctrl-C is noted from now on."""
        self.came: list[Any] = []
        self.old: Any = None
        if threading.current_thread() is threading.main_thread() and callable(signal.getsignal(signal.SIGINT)):
            self.old = signal.signal(signal.SIGINT, lambda *args: self.came.append(args))

    def __exit__(self, *error: object) -> None:
        """What was noted takes effect."""
        if self.old is not None:
            signal.signal(signal.SIGINT, self.old)
            if self.came:
                self.old(*self.came[0])


@contextmanager
def for_a_while(do: Callable[[], T], undo: Callable[[T], Any]) -> Iterator[T]:
    """Context manager: yields what ``do`` returned, and calls ``undo`` with it in the end; neither is interrupted."""
    done: list[T] = []

    def undone() -> None:
        with Deferred():
            while done:
                undo(done.pop())

    try:
        with Deferred():
            done.append(do())
        yield done[0]
    finally:
        try:
            undone()
        finally:
            undone()  # where it was interrupted before it had begun
