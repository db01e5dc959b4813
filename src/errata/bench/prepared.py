"""What a method has prepared for a model."""

from typing import Any

from errata.bench.units import Editor
from errata.errors import ErrataError
from errata.model.hf import HFLM


class Prepared:
    """A method's state for a model, computed once; an error of that is raised each time."""

    def __init__(self, lm: HFLM, method: Editor | None = None) -> None:
        self.lm, self.method = lm, method
        self.state: Any = None
        self.error: ErrataError | None = None
        self.tried = False

    def state_of(self, method: Editor) -> Any:
        """What ``method.prepare`` returned."""
        if not self.tried:
            self.tried = True
            try:
                self.state = method.prepare(self.lm)
            except ErrataError as error:
                self.error = error
        if self.error is not None:
            raise self.error
        return self.state
