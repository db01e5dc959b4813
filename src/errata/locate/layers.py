"""Which layers to edit in a model for which nobody has published any: traced, then tried.

ranking = rank_layers(lm, cases, prepare)   # prepare(layers) returns edit(layer, Edit) -> Patch
ranking.best(3)                             # three neighbouring layers
"""

import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from errata.answers import answer_of, begins_with_answer
from errata.errors import BadInput, ErrataError, Refused, Unsupported, first_line
from errata.locate.averages import ROLES, average
from errata.locate.kept import Kept, Trial
from errata.locate.tracing import embedding_std, trace
from errata.model.hf import HFLM
from errata.patch.patch import Patch
from errata.types import Case, Edit

log = logging.getLogger(__name__)
LAST = ROLES.index("last subject token")
WORDS = 16  # tokens of an answer at most

Editor = Callable[[int, Edit], Patch]  # a trial edit in one layer
Track = Callable[[Sequence[Any], str], Iterable[Any]]  # the items, with progress


@dataclass(frozen=True)
class Layer:
    """What is known of one layer. Rates are of generated answers; None where nothing of the kind was asked."""

    layer: int
    effect: float
    """Mean indirect effect of MLP outputs around it at the subject's last token (:func:`errata.locate.trace`)."""
    error: float | None
    """Its standard error; None for a single fact."""
    reliability: float | None = None
    """Trial edits whose prompt is answered with the target. None in a layer that was not tried."""
    paraphrase: float | None = None
    """Of other phrasings of them."""
    kept: float | None = None
    """Answers about other subjects that are what they were."""
    failed: tuple[str, ...] = ()
    """Trial edits that could not be made, and why. They count as edits that did not take."""

    @property
    def score(self) -> float | None:
        """The harmonic mean of the rates; None in a layer that was not tried."""
        rates = [x for x in (self.reliability, self.paraphrase, self.kept) if x is not None]
        if not rates:
            return None
        return len(rates) / sum(1 / x for x in rates) if all(rates) else 0.0


@dataclass(frozen=True)
class Ranking:
    """The layers of a model, best first: those that were tried by their score, then by their effect."""

    layers: tuple[Layer, ...]
    edits: int
    """Trial edits in each layer."""
    traced: int
    """Facts that were traced: those that the model knows."""

    def best(self, count: int = 1) -> tuple[int, ...]:
        """``count`` neighbouring layers whose mean score is highest, rising; of equal ones those of larger effect.

        Only layers that were tried count. Raises :class:`BadInput` where there are not so many side by side.
        """
        tried = {one.layer: one for one in self.layers if one.score is not None}
        windows = [tuple(range(n, n + count)) for n in sorted(tried)]
        whole = [window for window in windows if count > 0 and all(n in tried for n in window)]
        if not whole:
            raise BadInput(f"no {count} of the layers that were tried ({sorted(tried)}) lie side by side; try more")
        return max(whole, key=lambda w: (sum(tried[n].score or 0 for n in w), sum(tried[n].effect for n in w)))

    def to_json(self) -> dict[str, Any]:
        """A record for JSON: the fields, and each layer's score."""
        return {**asdict(self), "layers": [{**asdict(one), "score": one.score} for one in self.layers]}


def rank_layers(
    lm: HFLM,
    cases: Sequence[Case],
    prepare: Callable[[Sequence[int]], Editor],
    *,
    tried: int = 8,
    together: int = 1,
    samples: int = 10,
    seed: int = 0,
    track: Track = lambda items, what: items,
    kept: Kept | None = None,
) -> Ranking:
    """The layers of a decoder, ranked by causal tracing and by trial edits of the cases' facts, each alone.

    Facts are traced that the model knows (``target_true``; its own answer where none is given). In the ``tried`` layers
    of largest effect, among them the ``together`` neighbours that have most of it, every fact that the model does not
    answer with ``target_new`` yet is edited by ``prepare(layers)(layer, edit)``; its prompt, its paraphrases and
    questions about others are asked, generated. Questions about others are the case's neighbours, or else the other
    edits' prompts. What is ``kept`` is not done again, and what is done is put there. Raises :class:`BadInput` where no
    fact is known, or every one is answered with its new target already, and for more ``together`` than there are
    layers; :class:`Refused` where no trial edit could be made.
    """
    if tried < 1:
        raise BadInput(f"at least 1 layer must be tried, found {tried}")
    if not 1 <= together <= lm.sites.depth:
        raise BadInput(f"{together} layers side by side cannot be found in a model of {lm.sites.depth}")
    pairs = _to_change(lm, [(case, edit) for case in cases for edit in case.edits])
    kept = kept or Kept()
    effects, traced = _effects(lm, [edit for _, edit in pairs], samples, seed, track, kept)
    starts = range(lm.sites.depth - together + 1)
    first = max(starts, key=lambda n: sum(one.effect for one in effects[n : n + together]))
    order = sorted(range(lm.sites.depth), key=lambda n: (not first <= n < first + together, -effects[n].effect))
    order = order[: max(tried, together)]
    trials = _Trials(lm, pairs, prepare, kept)
    for layer in track(sorted(order), "trying layers"):
        effects[layer] = trials.of(effects[layer], sorted(order))
    reasons = [reason for one in effects for reason in one.failed]
    if len(reasons) == len(order) * len(pairs):
        raise Refused(f"none of the {len(reasons)} trial edits could be made; the first: {reasons[0]}")
    ranked = sorted(effects, key=lambda one: (-1.0 if one.score is None else one.score, one.effect), reverse=True)
    return Ranking(tuple(ranked), len(pairs), traced)


def _to_change(lm: HFLM, pairs: list[tuple[Case, Edit]]) -> list[tuple[Case, Edit]]:
    """The edits that the model does not answer with their target by itself."""
    if lm.seq2seq:
        raise Unsupported("layers are ranked in decoder-only models; this one is an encoder-decoder")
    if not pairs:
        raise BadInput("layers are ranked by edits; found none")
    said = lm.generate([edit.prompt for _, edit in pairs], WORDS, until_answer=True)
    left = [one for one, text in zip(pairs, said, strict=True) if not begins_with_answer(text, [one[1].target_new])]
    if not left:
        raise BadInput(
            f"{lm.name} answers all {len(pairs)} edits with their new target already, so that nothing can be tried; "
            "give facts that it has otherwise"
        )
    if len(left) < len(pairs):
        log.warning("%d of %d edits are answered so already, and left out", len(pairs) - len(left), len(pairs))
    return left


def _effects(
    lm: HFLM, edits: Sequence[Edit], samples: int, seed: int, track: Track, kept: Kept
) -> tuple[list[Layer], int]:
    """Each layer with its mean effect, and the number of facts traced."""
    with_answer = [edit for edit in edits if edit.target_true]
    scores = lm.score([e.prompt for e in with_answer], [e.target_true or "" for e in with_answer])
    unknown = {id(edit) for edit, score in zip(with_answer, scores, strict=True) if not score.correct}
    known = [edit for edit in edits if id(edit) not in unknown]
    if not known:
        raise BadInput(
            f"{lm.name} knows none of the {len(edits)} facts (their target_true), so there is nothing to trace; "
            "give facts that it knows"
        )
    std = embedding_std(lm, [(edit.template, edit.subject) for edit in known])
    settings: Any = {"kinds": ("mlp",), "samples": samples, "std": std, "seed": seed}
    traces = [
        kept.trace(_key(e), lambda e=e: trace(lm, e.template, e.subject, e.target_true, **settings))
        for e in track(known, "tracing")
    ]
    mean = average(traces)
    rows, errors = mean.effects["mlp"], mean.errors["mlp"]
    row = LAST if mean.counts[ROLES[LAST]] else len(ROLES) - 1  # a prompt that ends with its subject has the last alone
    made: list[Layer] = []
    for n in range(lm.sites.depth):
        error = float(errors[row, n])
        made.append(Layer(n, float(rows[row, n]), None if error != error else error))
    return made, len(known)


def _key(edit: Edit) -> str:
    """What an edit's traces and trials are kept under: what it says, as two may have one id."""
    said = (edit.prompt, edit.subject, edit.target_new, edit.target_true)
    return f"{edit.id} {hashlib.sha256(repr(said).encode()).hexdigest()[:16]}"


# Trials --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Asked:
    """What is asked with one trial edit in force."""

    paraphrases: tuple[tuple[str, tuple[str, ...]], ...]
    others: tuple[str, ...]

    @classmethod
    def of(cls, case: Case, edit: Edit, pairs: Sequence[tuple[Case, Edit]]) -> "_Asked":
        alone = len(case.edits) == 1
        like = [(p.prompt, p.answers) for p in case.probes if p.kind == "paraphrase" and alone]
        others = [p.prompt for p in case.probes if p.kind == "neighborhood"]
        others = others or [e.prompt for _, e in pairs if e.subject != edit.subject]
        return cls(tuple(like), tuple(others))


class _Trials:
    """Edits of each fact alone, layer by layer."""

    def __init__(
        self,
        lm: HFLM,
        pairs: Sequence[tuple[Case, Edit]],
        prepare: Callable[[Sequence[int]], Editor],
        kept: Kept,
    ) -> None:
        self.lm, self.kept, self.prepare = lm, kept, prepare
        self.edits = [edit for _, edit in pairs]
        self.asked = [_Asked.of(case, edit, pairs) for case, edit in pairs]
        self.editor: Editor | None = None
        self.before: dict[str, list[str]] = {}  # what is said of others without an edit

    def of(self, layer: Layer, order: Sequence[int]) -> Layer:
        """The layer with what its trial edits did: the mean over facts. ``order`` are all layers that are tried."""

        def tried(edit: Edit, asked: _Asked) -> Trial:
            self.editor = self.editor or self.prepare(order)
            return self._tried(layer.layer, edit, asked)

        trials = [
            self.kept.trial(f"{layer.layer} {_key(edit)}", lambda edit=edit, asked=asked: tried(edit, asked))
            for edit, asked in zip(self.edits, self.asked, strict=True)
        ]
        took = [trial.took for trial in trials]
        like = [x for trial in trials for x in trial.like]
        kept = [x for trial in trials for x in trial.kept]
        rates = (sum(some) / len(some) if some else None for some in (took, like, kept))
        failed = [f"{e.prompt!r}: {t.failed}" for e, t in zip(self.edits, trials, strict=True) if t.failed is not None]
        return Layer(layer.layer, layer.effect, layer.error, *rates, failed=tuple(failed))

    def _tried(self, layer: int, edit: Edit, asked: _Asked) -> Trial:
        assert self.editor is not None
        if (key := _key(edit)) not in self.before:
            self.before[key] = self.lm.generate([*asked.others], WORDS, until_answer=True)
        prompts = [edit.prompt, *(prompt for prompt, _ in asked.paraphrases), *asked.others]
        try:
            with self.editor(layer, edit).applied(self.lm) as edited:
                said = edited.generate(prompts, WORDS, until_answer=True)
        except (ErrataError, torch.linalg.LinAlgError) as error:  # pyright: ignore[reportPrivateImportUsage]
            return Trial(like=(False,) * len(asked.paraphrases), failed=first_line(error))
        n = 1 + len(asked.paraphrases)
        like = [begins_with_answer(text, answers) for text, (_, answers) in zip(said[1:n], asked.paraphrases)]
        kept = [answer_of(text) == answer_of(old) for text, old in zip(said[n:], self.before[key], strict=True)]
        return Trial(begins_with_answer(said[0], [edit.target_new]), tuple(like), tuple(kept))
