"""Which layers to edit in a model for which nobody has published any: traced, then tried.

ranking = rank_layers(lm, cases, prepare)   # prepare(layers) returns edit(layer, Edit) -> Patch
ranking.best(3)                             # three neighbouring layers
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from errata.answers import answer_of, begins_with_answer
from errata.errors import BadInput, Unsupported
from errata.locate.averages import ROLES, average
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
) -> Ranking:
    """The layers of a decoder, ranked by causal tracing and by trial edits of the cases' facts, each alone.

    Facts are traced that the model knows (``target_true``; its own answer where none is given). In the ``tried`` layers
    of largest effect, among them the ``together`` neighbours that have most of it, every fact that the model does not
    answer with ``target_new`` yet is edited by ``prepare(layers)(layer, edit)``; its prompt, its paraphrases and
    questions about others are asked, generated. Questions about others are the case's neighbours, or else the other
    edits' prompts. Raises :class:`BadInput` where no fact is known, or every one is answered with its new target
    already, and for more ``together`` than there are layers.
    """
    if tried < 1:
        raise BadInput(f"at least 1 layer must be tried, found {tried}")
    if not 1 <= together <= lm.sites.depth:
        raise BadInput(f"{together} layers side by side cannot be found in a model of {lm.sites.depth}")
    pairs = _to_change(lm, [(case, edit) for case in cases for edit in case.edits])
    effects, traced = _effects(lm, [edit for _, edit in pairs], samples, seed, track)
    starts = range(lm.sites.depth - together + 1)
    first = max(starts, key=lambda n: sum(one.effect for one in effects[n : n + together]))
    order = sorted(range(lm.sites.depth), key=lambda n: (not first <= n < first + together, -effects[n].effect))
    order = order[: max(tried, together)]
    editor = prepare(sorted(order))
    questions = [_questions(case, edit, pairs) for case, edit in pairs]
    before = [lm.generate([*q.others], WORDS, until_answer=True) for q in questions]
    for layer in track(sorted(order), "trying layers"):
        effects[layer] = _tried(lm, effects[layer], editor, pairs, questions, before)
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


def _effects(lm: HFLM, edits: Sequence[Edit], samples: int, seed: int, track: Track) -> tuple[list[Layer], int]:
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
    traces = [trace(lm, e.template, e.subject, e.target_true, **settings) for e in track(known, "tracing")]
    mean = average(traces)
    rows, errors = mean.effects["mlp"], mean.errors["mlp"]
    row = LAST if mean.counts[ROLES[LAST]] else len(ROLES) - 1  # a prompt that ends with its subject has the last alone
    made: list[Layer] = []
    for n in range(lm.sites.depth):
        error = float(errors[row, n])
        made.append(Layer(n, float(rows[row, n]), None if error != error else error))
    return made, len(known)


@dataclass(frozen=True)
class _Asked:
    """What is asked with one trial edit in force."""

    paraphrases: tuple[tuple[str, tuple[str, ...]], ...]
    others: tuple[str, ...]


def _questions(case: Case, edit: Edit, pairs: Sequence[tuple[Case, Edit]]) -> _Asked:
    alone = len(case.edits) == 1
    like = [(p.prompt, p.answers) for p in case.probes if p.kind == "paraphrase" and alone]
    others = [p.prompt for p in case.probes if p.kind == "neighborhood"]
    others = others or [e.prompt for _, e in pairs if e.subject != edit.subject]
    return _Asked(tuple(like), tuple(others))


def _tried(
    lm: HFLM,
    layer: Layer,
    editor: Editor,
    pairs: Sequence[tuple[Case, Edit]],
    questions: Sequence[_Asked],
    before: Sequence[Sequence[str]],
) -> Layer:
    """The layer with what its trial edits did: the mean over facts."""
    took: list[bool] = []
    like: list[bool] = []
    kept: list[bool] = []
    for (_, edit), asked, was in zip(pairs, questions, before, strict=True):
        prompts = [edit.prompt, *(prompt for prompt, _ in asked.paraphrases), *asked.others]
        with editor(layer.layer, edit).applied(lm) as edited:
            said = edited.generate(prompts, WORDS, until_answer=True)
        n = 1 + len(asked.paraphrases)
        took.append(begins_with_answer(said[0], [edit.target_new]))
        like += [begins_with_answer(text, answers) for text, (_, answers) in zip(said[1:n], asked.paraphrases)]
        kept += [answer_of(text) == answer_of(old) for text, old in zip(said[n:], was, strict=True)]
    rates = (sum(some) / len(some) if some else None for some in (took, like, kept))
    return Layer(layer.layer, layer.effect, layer.error, *rates)
