"""What a model can do besides its facts, asked at any point of a run: loss on text, facts in context, untouched facts.

    check = Checkup(lm, ability_of(lm))
    with patch.applied(lm) as edited:
        rows = check.rows(edited, after_edits=100)
    rows += check.drift(patch, after_edits=100)

Nothing is downloaded: the questions are made of cases, the texts are the model's own or a file's.
"""

import logging
import random
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from errata.errors import BadInput, Unsupported
from errata.evaluation.drift import Spectrum, drift, drift_sites, spectra_of
from errata.evaluation.evaluate import baseline, evaluate
from errata.model.hf import HFLM
from errata.model.lm import LM
from errata.patch.patch import Patch
from errata.types import Case, Mode, Probe, Row

log = logging.getLogger(__name__)

RECALL = "untouched facts"  # the label of probes of what the model knows and nobody edits
FACTS = 3  # stand in a context: two beside the one that is asked for
ASKED = 100  # cases, and texts
PASSED_OVER = 6000  # texts of a corpus that key statistics may have seen
SPECTRUM = 16  # tokens for each input of a layer whose directions are wanted
LONGEST = 512  # tokens of a text whose loss is measured
SAMPLED = 64  # tokens of a text that the model writes itself


# What is asked -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ability:
    """Cases whose edits are never made, and texts to read. ``usual`` are texts that tell which inputs are ordinary."""

    cases: tuple[Case, ...]
    texts: tuple[str, ...]
    usual: tuple[str, ...]


def ability_of(lm: HFLM, texts: str | Path | None = None, seed: int = 0) -> Ability:
    """The built-in set for a model.

    Facts are those of the training cases that go with the model, which no test case edits: recalled as they are, and
    followed where the context says otherwise. For any other model they are of the invented world, and only followed.
    ``texts`` is a file with a text on each line; without it, what goes with the model, or is sampled from it (which is
    said).
    """
    known = lm.resources.cases is not None
    if lm.resources.cases is None:
        from errata.data.reader import cases

        found = cases("world", 2 * ASKED, seed)
    else:
        found = lm.resources.cases()
    rng = random.Random(f"ability {seed}")
    chosen = rng.sample(found, min(ASKED, len(found)))
    lines = _lines(Path(texts)) if texts is not None else list(_own_texts(lm, seed))
    room = min(LONGEST, lm.tokens.limit or LONGEST)
    read, usual = tuple(lm.tokens.tail(text, room) for text in lines[-ASKED:]), tuple(lines[:-ASKED] or lines)
    return Ability(tuple(_asking(case, found, rng, known) for case in chosen), read, usual)


def _asking(case: Case, others: Sequence[Case], rng: random.Random, known: bool) -> Case:
    """The case with its fact as it is (where the model knows it), and with its new object told in a context."""
    edit = case.edits[0]
    probes: list[Probe] = []
    if known and edit.target_true:
        probes.append(Probe("unrelated", edit.prompt, (edit.target_true,), label=RECALL))
    told = [edit, *(its.edits[0] for its in rng.sample(others, min(FACTS, len(others))) if its.id != case.id)][:FACTS]
    rng.shuffle(told)
    context = " ".join(f"Fact: {its.prompt} {its.target_new}." for its in told)
    reworded = [probe.prompt for probe in case.probes if probe.kind == "paraphrase"]
    asked = reworded[0] if reworded else edit.prompt
    probes.append(Probe("in_context", f"{context} {asked}", (edit.target_new,)))
    return Case(f"ability {case.id}", case.edits, tuple(probes))


def _lines(path: Path) -> list[str]:
    try:
        lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read the texts of {path} ({error}); a UTF-8 file has a text on each line") from error
    if not lines:
        raise BadInput(f"{path} holds no text; give a file with a text on each line")
    return lines


def _own_texts(lm: HFLM, seed: int) -> Iterable[str]:
    """Texts that go with the model, those last that nothing was prepared with; or what it writes itself."""
    if lm.resources.texts is not None:
        return deque(islice(lm.resources.texts(), PASSED_OVER), maxlen=PASSED_OVER // 2)
    log.warning("no texts go with %s: its loss is measured on what it writes itself", lm.name or "this model")
    return map(lm.tokens.decode, lm.sample([""] * (2 * ASKED), SAMPLED, seed=seed))


# Asking ------------------------------------------------------------------------------------------


class Checkup:
    """An ability as the unedited model shows it, to be held against at any number of edits."""

    def __init__(self, lm: HFLM, ability: Ability, modes: Sequence[Mode] = ("generated",)) -> None:
        self.lm, self.ability, self.modes = lm, ability, tuple(modes)
        self.before = baseline(lm, ability.cases, modes)
        self.losses = _losses(lm, ability.texts)
        self.spectra: dict[str, Spectrum] = {}

    def rows(self, edited: LM, *, after_edits: int, **labels: Any) -> list[Row]:
        """Rows of kinds ``unrelated`` and ``in_context`` for the facts, and of kind ``text`` for the loss.

        The loss is in nats a token, a row for each text.
        """
        rows = evaluate(self.before, edited, self.ability.cases, after_edits=after_edits, **labels)
        error, now = None, [None] * len(self.losses)
        try:
            now = _losses(edited, self.ability.texts)
        except (Unsupported, BadInput) as wrong:  # what a wrapper puts in front may make a text too long
            error = str(wrong) or "unsupported"
        for i, (was, its) in enumerate(zip(self.losses, now, strict=True)):
            about: Any = {"case": f"text {i}", "kind": "text", "metric": "loss", "before": was, "after": its}
            rows += self._each(**labels, **about, after_edits=after_edits, error=error)
        return [row for row in rows if row.kind != "edit"]

    def drift(self, patch: Patch, *, after_edits: int, **labels: Any) -> list[Row]:
        """Rows of kind ``drift``: a metric (see :class:`errata.evaluation.drift.Drift`) of a changed matrix.

        Of base weights: ask while no patch is in force.
        """
        self._read(drift_sites(patch))
        rows: list[Row] = []
        for site, its in drift(self.lm, patch, self.spectra).items():
            for metric, value in vars(its).items():
                about: Any = {"case": site, "probe": site, "kind": "drift", "metric": metric}
                rows += self._each(**labels, **about, before=BEFORE.get(metric), after=value, after_edits=after_edits)
        return rows

    def _read(self, sites: Sequence[str]) -> None:
        """Spectra of sites that were not met before."""
        new = [site for site in sites if site not in self.spectra]
        if new:
            self.spectra |= spectra_of(self.lm, self._usual(new), new)

    def _usual(self, sites: Sequence[str]) -> Iterator[str]:
        """Ordinary texts, until there are enough for the widest of these."""
        wanted = SPECTRUM * max(max(self.lm.model.get_parameter(f"{site}.weight").shape) for site in sites)
        for text in self.ability.usual:
            yield text
            wanted -= len(self.lm.tokens.pair("", text)[1])
            if wanted <= 0:
                return

    def _each(self, **about: Any) -> list[Row]:
        """The row in each mode, so that each mode's table has it."""
        return [Row(mode=mode, **about) for mode in self.modes]


BEFORE = {"norm": 0.0, "felt": 0.0, "rank": 0.0, "effective": 0.0}  # of weights that nobody changed


def _losses(lm: LM, texts: Sequence[str]) -> list[float]:
    """-log P(text) / its tokens, in nats."""
    return [-score.total / len(score.tokens) for score in lm.score([""] * len(texts), list(texts))]
