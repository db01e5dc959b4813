"""Who may use a model: one thread at a time runs it, and of the patches in force only the innermost one speaks."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from torch import nn

from errata.errors import InForce
from errata.model.interrupts import for_a_while

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(eq=False)
class ModelUse:
    """The use of one module, by all who have it.

    Whoever runs it holds ``lock``. ``changes`` are in force, the innermost last: each is the stack that undoes it.
    ``fingerprint`` is that of the unedited model, None before it is asked for.
    """

    lock: Any = field(default_factory=threading.RLock)
    changes: list[ExitStack] = field(default_factory=list[ExitStack])
    fingerprint: str | None = None

    @contextmanager
    def changed(self, inside: ExitStack | None, make: Callable[[ExitStack], T]) -> Iterator[T]:
        """Context manager: yields what ``make`` returned, and what it changed is in force; undone afterwards.

        ``inside`` is the change on top of which it is made, None for the model as it is. Raises :class:`InForce` where
        that is not the innermost.
        """
        change = ExitStack()

        def put_on() -> T:
            with self.lock:
                self.check(inside)
                self.changes.append(change)
                try:
                    return make(change)
                except BaseException:
                    self._leave(change)
                    raise

        with for_a_while(put_on, lambda _: self._leave(change)) as made:
            yield made

    def _leave(self, change: ExitStack) -> None:
        """Undoes a change and those on top of it, each exactly, the innermost first."""
        with self.lock:
            while change in self.changes:
                if self.changes[-1] is not change:
                    log.warning("a patch was taken off before one that had been put on top of it; both are off now")
                try:
                    self.changes[-1].close()
                finally:
                    self.changes.pop().close()  # of what an exception left

    def check(self, inside: ExitStack | None) -> None:
        """Raises :class:`InForce` unless ``inside`` is the innermost change; None: unless there is none.

        Waits while another thread runs the model.
        """
        with self.lock:
            if inside is (self.changes[-1] if self.changes else None):
                return
            left = inside is not None and inside not in self.changes
        raise InForce(
            "the block in which this patch was in force has been left; ask inside of it"
            if left
            else "a patch is in force on this model; ask what `with patch.applied(lm) as edited` gave, "
            "or leave that block first"
        )


_USES: "WeakKeyDictionary[nn.Module, ModelUse]" = WeakKeyDictionary()
_MAKING = threading.Lock()


def use_of(model: nn.Module) -> ModelUse:
    """The use of a module: one for all :class:`HFLM` around it."""
    with _MAKING:
        return _USES.setdefault(model, ModelUse())
