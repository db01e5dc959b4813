"""By which gold edits of a model are measured; files of golds are read as far as is needed, and once.

golds = Golds()
gold = golds.of(lm, lambda about: about.is_of(edits))   # the one that came with Errata, or None
"""

import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from errata.errors import BadInput
from errata.evaluation.gold import Gold, path_of
from errata.evaluation.gold_header import About

if TYPE_CHECKING:
    from errata.model.hf import HFLM

log = logging.getLogger(__name__)

Named = bool | str | None  # a file's path, or True for the gold that came; None for that where it fits, False for none


class Golds:
    """The golds of one call. What a file's header says it is of is looked at before the rest of it is read."""

    def __init__(self) -> None:
        self.about = cache(About.load)
        self.load = cache(Gold.load)
        self.passed_over = False  # the one that came with Errata

    def reached(self, named: Named, reaches: Callable[[About], bool]) -> Path | None:
        """The file of the gold that is meant, if what it is of is reached; None where it is not, or none is meant.

        Raises :class:`BadInput` where one that is named cannot be read.
        """
        path = path_of(named)
        if named is False or (named is None and (self.passed_over or not path.is_file())):
            return None
        try:
            return path if reaches(self.about(path)) else None
        except BadInput as error:
            return self._unusable(named, error)

    def of(self, lm: "HFLM", reaches: Callable[[About], bool], named: Named = None) -> Gold | None:
        """The gold by which a model is measured where what it is of is reached.

        One that is ``named`` must be of this model: raises :class:`BadInput`, and :class:`WrongModel`. That which came
        with Errata is passed over where it is of another model, and where it is damaged, which is logged.
        """
        if (path := self.reached(named, reaches)) is None:
            return None
        if named is not None:
            self.about(path).check_model(lm)
        elif not self.about(path).is_of_model(lm):
            return None
        return self.whole(path, named)

    def whole(self, path: Path, named: Named) -> Gold | None:
        """All of a file that :meth:`reached` gave. Raises :class:`BadInput` where it is damaged and was named."""
        try:
            return self.load(path)
        except BadInput as error:
            return self._unusable(named, error)

    def _unusable(self, named: Named, error: BadInput) -> None:
        """Passes over the gold that came with Errata, if none is named."""
        if named is not None:
            raise error
        self.passed_over = True
        log.warning("edits are not measured against a gold: %s", error)


def gold_for(lm: "HFLM", named: Named = None) -> Gold | None:
    """The gold by which edits of a model are measured: that which came with Errata, None where it is of another model.

    One that is ``named`` (a file's path, or True for the one that came) must be of this model; False means none. Raises
    :class:`BadInput`, and :class:`WrongModel`.
    """
    return Golds().of(lm, lambda about: True, named)
