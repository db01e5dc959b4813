"""What a method has prepared for a model."""

from collections.abc import Sequence
from typing import Any

from errata.bench.units import Editor
from errata.errors import ErrataError
from errata.model.hf import HFLM
from errata.types import Case


class Prepared:
    """A method's state for a model, computed once; an error of that is raised each time.

    ``train`` are the cases that it is prepared with; without, what goes with the model.
    """

    def __init__(self, lm: HFLM, method: Editor | None = None, train: Sequence[Case] | None = None) -> None:
        self.lm, self.method, self.train = lm, method, train
        self.state: Any = None
        self.error: ErrataError | None = None
        self.tried = False

    def state_of(self, method: Editor) -> Any:
        """What ``method.prepare`` returned."""
        if not self.tried:
            self.tried = True
            try:
                self.state = method.prepare(self.lm) if self.train is None else method.prepare(self.lm, self.train)
            except ErrataError as error:
                self.error = error
        if self.error is not None:
            raise self.error
        return self.state
