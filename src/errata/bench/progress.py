"""How far a run has come."""

from collections.abc import Callable
from dataclasses import dataclass

OnProgress = Callable[[int, int, str], None]  # cases done, cases in all, what is being done


@dataclass
class Reporter:
    """Tells how many of the run's cases are done."""

    on_progress: OnProgress
    total: int
    done: int = 0

    def report(self, text: str) -> None:
        """Says what is being done."""
        self.on_progress(self.done, self.total, text)
