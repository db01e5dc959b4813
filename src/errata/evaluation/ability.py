"""What a model can do besides the edited facts, at any point of a run: loss on text, facts in context, untouched facts.

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
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from errata.errors import BadInput, Unsupported
from errata.evaluation.baseline import baseline
from errata.evaluation.drift import Spectrum, drift, drift_sites, spectra_of, weight_at
from errata.evaluation.evaluate import evaluate
from errata.evaluation.metrics import nll, perplexity
from errata.inputs import read_text
from errata.model.hf import HFLM
from errata.model.lm import LM
from errata.model.weights import shape_of
from errata.patch.patch import Patch
from errata.types import Case, Mode, Probe, Row, Score

log = logging.getLogger(__name__)

RECALL = "untouched facts"  # the label of probes of what the model knows and nobody edits
FACTS = 3  # in a context: the one that is asked, and two others
MOST = 100  # cases, and texts
PASSED_OVER = 6000  # texts of a corpus that key statistics may have seen
SPECTRUM = 16  # tokens for each input of a layer whose spectrum is computed
LONGEST = 512  # tokens of a text whose loss is measured
SAMPLED = 64  # tokens of a text that is sampled from the model


# What is asked -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ability:
    """Cases whose edits are never made, texts whose loss is measured, and ordinary texts for the spectra of inputs."""

    cases: tuple[Case, ...]
    texts: tuple[str, ...]
    ordinary: tuple[str, ...]


def ability_of(lm: HFLM, texts: str | Path | None = None, seed: int = 0) -> Ability:
    """The built-in set for a model.

    Facts are those of the training cases that go with the model, which no test case edits: recalled as they are, and
    followed where the context says otherwise. For any other model they are of the invented world, and only followed.
    ``texts`` is a file with a text on each line; by default the texts that go with the model, or ones sampled from it
    (which is logged). Raises :class:`BadInput` for a file without texts.
    """
    known = lm.resources.cases is not None
    if lm.resources.cases is None:
        from errata.data.reader import cases

        pool = cases("world", 2 * MOST, seed)
    else:
        pool = lm.resources.cases()
    rng = random.Random(f"ability {seed}")
    chosen = rng.sample(pool, min(MOST, len(pool)))
    lines = texts_of(texts) if texts is not None else list(_own_texts(lm, seed))
    room = min(LONGEST, lm.tokens.limit or LONGEST)
    measured, ordinary = tuple(lm.tokens.tail(text, room) for text in lines[-MOST:]), tuple(lines[:-MOST] or lines)
    return Ability(tuple(_ability_case(case, pool, rng, known) for case in chosen), measured, ordinary)


def _ability_case(case: Case, others: Sequence[Case], rng: random.Random, known: bool) -> Case:
    """The case with its fact as it is (where the model knows it), and with its new object stated in a context."""
    edit = case.edits[0]
    probes: list[Probe] = []
    if known and edit.target_true:
        probes.append(Probe("unrelated", edit.prompt, (edit.target_true,), label=RECALL))
    sampled = rng.sample(others, min(FACTS, len(others)))
    facts = [edit, *(other.edits[0] for other in sampled if other.id != case.id)][:FACTS]
    rng.shuffle(facts)
    context = " ".join(f"Fact: {fact.prompt} {fact.target_new}." for fact in facts)
    reworded = [probe.prompt for probe in case.probes if probe.kind == "paraphrase"]
    question = reworded[0] if reworded else edit.prompt
    probes.append(Probe("in_context", f"{context} {question}", (edit.target_new,)))
    return Case(f"ability {case.id}", case.edits, tuple(probes))


def texts_of(path: str | Path) -> list[str]:
    """The texts in a file, one on each line. Raises :class:`BadInput` where it cannot be read, or holds none."""
    lines = [line for line in read_text(Path(path), "ability").splitlines() if line.strip()]
    if not lines:
        raise BadInput(f"{path} holds no text; give a file with a text on each line")
    return lines


def _own_texts(lm: HFLM, seed: int) -> Iterable[str]:
    """Texts that go with the model, those last that nothing was prepared with; or texts sampled from it."""
    if lm.resources.texts is not None:
        return deque(islice(lm.resources.texts(), PASSED_OVER), maxlen=PASSED_OVER // 2)
    log.warning("no texts go with %s: its loss is measured on what it writes itself", lm.name or "this model")
    return map(lm.tokens.decode, lm.sample([""] * (2 * MOST), SAMPLED, seed=seed))


# Asking ------------------------------------------------------------------------------------------


class Checkup:
    """The ability of the unedited model, asked once, and rows that compare an edited model with it."""

    def __init__(self, lm: LM, ability: Ability, modes: Sequence[Mode] = ("generated",)) -> None:
        self.lm, self.ability, self.modes = lm, ability, tuple(modes)
        self.before = baseline(lm, ability.cases, modes)
        self.losses = _Losses.of(lm, ability.texts)
        self.spectra: dict[str, Spectrum] = {}

    def rows(self, edited: LM, *, after_edits: int, protocol: str = "errata", **labels: Any) -> list[Row]:
        """Rows of kinds ``unrelated`` and ``in_context`` for the facts, and of kind ``text`` for the loss.

        ``loss`` is in nats a token, a row for each text; ``perplexity`` is over all tokens of all texts, one row.
        ``protocol`` is that of the rows they stand beside.
        """
        facts = evaluate(self.before, edited, self.ability.cases, after_edits=after_edits, **labels)
        rows, labels = [replace(row, protocol=protocol) for row in facts], {**labels, "protocol": protocol}
        before, after = self.losses, _Losses.of(edited, self.ability.texts)
        error = before.error or after.error
        for i, (loss, now) in enumerate(zip(before.each, after.each, strict=True)):
            about: Any = {"case": f"text {i}", "kind": "text", "metric": "loss", "before": loss, "after": now}
            rows += self._in_each_mode(**labels, **about, after_edits=after_edits, error=error)
        about = {"kind": "text", "metric": "perplexity", "before": before.perplexity, "after": after.perplexity}
        rows += self._in_each_mode(**labels, **about, case="all texts", after_edits=after_edits, error=error)
        return [row for row in rows if row.kind != "edit"]

    def drift(self, patch: Patch, *, after_edits: int, **labels: Any) -> list[Row]:
        """Rows of kind ``drift``: a metric (see :class:`errata.evaluation.drift.Drift`) of a changed matrix.

        Reads base weights: call it while no patch is in force. Raises :class:`Unsupported` where the model is no
        :class:`HFLM`, whose weights can be read.
        """
        if not isinstance(self.lm, HFLM):
            raise Unsupported(f"drift reads weights of a model that errata.load gave, found {type(self.lm).__name__}")
        self._read_spectra(self.lm, drift_sites(patch))
        rows: list[Row] = []
        for site, change in drift(self.lm, patch, self.spectra).items():
            for metric, value in vars(change).items():
                about: Any = {"case": site, "probe": site, "kind": "drift", "metric": metric}
                about |= {"before": UNCHANGED.get(metric), "after": value, "after_edits": after_edits}
                rows += self._in_each_mode(**labels, **about)
        return rows

    def _read_spectra(self, lm: HFLM, sites: Sequence[str]) -> None:
        """Adds the spectra of sites that have none yet."""
        new = [site for site in sites if site not in self.spectra]
        if new:
            self.spectra |= spectra_of(lm, self._ordinary(lm, new), new)

    def _ordinary(self, lm: HFLM, sites: Sequence[str]) -> Iterator[str]:
        """Ordinary texts, until there are enough for the widest of these sites."""
        left = SPECTRUM * max(max(shape_of(lm.model, weight_at(site))) for site in sites)
        for text in self.ability.ordinary:
            yield text
            left -= len(lm.tokens.pair("", text)[1])
            if left <= 0:
                return

    def _in_each_mode(self, **about: Any) -> list[Row]:
        """The row in each mode, so that each mode's table has it."""
        return [Row(mode=mode, **about) for mode in self.modes]


UNCHANGED = {"norm": 0.0, "relative_output_change": 0.0, "rank": 0.0, "effective": 0.0}  # drift of an empty patch


@dataclass(frozen=True)
class _Losses:
    """-log P(text) / tokens of each text, in nats, and their perplexity; None with an ``error`` where unsupported."""

    each: Sequence[float | None]
    perplexity: float | None
    error: str | None = None

    @classmethod
    def of(cls, lm: LM, texts: Sequence[str]) -> "_Losses":
        try:
            scores: list[Score] = lm.score([""] * len(texts), list(texts))
        except (Unsupported, BadInput) as error:  # what a wrapper prepends may make a text too long
            return cls([None] * len(texts), None, str(error) or "unsupported")
        return cls([nll(score) for score in scores], perplexity(scores) if scores else None)
