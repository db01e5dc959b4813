"""Which part of a prompt its answer hangs on: the subject of an edit, where nobody says it.

    found = subject_of(lm, "Lodra Haror was born in")
    found.subject                                    # "Lodra Haror"
    found.words                                      # why

Noise is added to the embeddings of one span after the other, as in causal tracing (:mod:`errata.locate.tracing`). Where
it hides the subject the model still gives an answer of the same kind, and another one; where it hides the relation it
gives something else. So a span counts by P(o) − P*(o), times the probability that goes to the answers that were likely
beside o before.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from errata.errors import BadInput, Unsupported
from errata.locate.runs import probability
from errata.locate.tracing import deviation, embeddings, tokens_of
from errata.model import hooks, passes
from errata.model.hf import HFLM
from errata.model.lm import Call
from errata.printable import shown
from errata.subjects import content_spans, names_in
from errata.types import Edit, as_text

LONGEST = 4  # words of a subject that is no name
KIND = 20  # answers of the same kind: the likeliest ones beside o
ENOUGH = 0.7  # of the largest score: a shorter span that has so much of it is the subject, where there is no name
LEAST = 0.1  # of P(o): noise that takes less away shows nothing

Span = tuple[int, int]  # characters of a prompt


@dataclass(frozen=True)
class SubjectFound:
    """The span that an answer hangs on; effects are P(o) − P*(o), what noise on a span takes from the answer."""

    subject: str
    start: int
    """Where it begins in the prompt."""
    answer: str
    """Text of the token o."""
    clean: float
    """P(o), nothing changed."""
    effect: float
    """P(o) − P*(o) of the subject, the mean over the noise draws."""
    others: tuple[tuple[str, float], ...] = ()
    """The other spans that were tried, by what speaks for them, and their effects."""
    named: bool = True
    """Whether only names were tried; where the prompt has none, all spans of words are."""

    @property
    def words(self) -> str:
        """The finding in one line."""
        tried = "names" if self.named else "spans of words"
        among = f", of {len(self.others) + 1} {tried}" if self.others else f", the only {tried[:4]} in the prompt"
        return (
            f"the subject is {self.subject!r}{among}: noise on it takes {max(self.effect, 0.0):.0%} from the "
            f"{self.clean:.0%} of {self.answer.strip()!r}"
        )


def edit_of(lm: HFLM, prompt: str, target_new: str, target_true: str | None = None, id: str = "") -> Edit:
    """The edit whose subject is found by :func:`subject_of`. Raises what that raises."""
    found = subject_of(lm, prompt, target_true)
    return Edit(prompt.rstrip(" "), found.subject, target_new, target_true, id, found.start)


@torch.no_grad()
def subject_of(
    lm: HFLM,
    prompt: str,
    target_true: str | None = None,
    *,
    samples: int = 10,  # ROME, appendix B.1
    noise: float = 3.0,  # ROME, section 2.1
    seed: int = 0,
) -> SubjectFound:
    """The part of a prompt that its answer hangs on; the model is left as it was.

    Names are tried, where the prompt has any, and otherwise all spans of a few words that no function word begins or
    ends. o is the first token of ``target_true``, by default of the model's own answer. The noise is Gaussian, its
    standard deviation ``noise`` times that of the prompt's embeddings. Raises :class:`BadInput` where there is nothing
    to try, or nothing of it matters to the answer; a prompt's only name is taken all the same.
    :class:`Unsupported` for encoder-decoders.
    """
    prompt = as_text(prompt, "an edit's prompt").rstrip(" ")
    names = names_in(prompt)
    spans = names or content_spans(prompt, LONGEST)
    if not spans:
        raise BadInput(f"{shown(prompt)} has no word that could be the subject; give it (--subject)")
    lm.check()
    if lm.seq2seq:
        raise Unsupported("the subject is found by causal tracing, in decoder-only models; give it (--subject)")
    ids, _ = tokens_of(lm, prompt, prompt[slice(*spans[0])], spans[0][0])
    logits = passes.at_least_float32(lm.target_logits([(ids, [lm.tokens.fill])])[0])  # (V)
    o = int(logits.argmax()) if target_true is None else lm.tokens.target(prompt, target_true)[0]
    clean = float(probability(logits[None], o))
    kind = logits.topk(min(KIND + 1, len(logits))).indices
    noisy = _noisy_runs(lm, ids, [tokens_of(lm, prompt, prompt[a:b], a)[1] for a, b in spans], samples, noise, seed)
    left = [float(probability(run, o).mean()) for run in noisy]
    moved = [float(run.softmax(-1)[:, kind[kind != o]].sum(-1).mean()) for run in noisy]
    effects = [clean - p for p in left]
    scores = [max(effect, 0.0) * mass for effect, mass in zip(effects, moved, strict=True)]
    best = _best(spans, scores, bool(names))
    if effects[best] < LEAST * clean and not (names and len(spans) == 1):
        tried = ", ".join(repr(prompt[a:b]) for a, b in spans[:6])
        raise BadInput(
            f"the model's answer to {shown(prompt)} hangs on none of {tried}, so the subject cannot be told; "
            "give it (--subject)"
        )
    order = sorted((i for i in range(len(spans)) if i != best), key=lambda i: -scores[i])
    others = tuple((prompt[slice(*spans[i])], effects[i]) for i in order)
    (a, b), answer = spans[best], lm.tokens.decode([o])
    return SubjectFound(prompt[a:b], a, answer, clean, effects[best], others, bool(names))


def _best(spans: Sequence[Span], scores: Sequence[float], names: bool) -> int:
    """The span with the largest score; of those that are no names, the shortest with nearly as large a one."""
    if names:
        return max(range(len(spans)), key=lambda i: scores[i])
    enough = [i for i in range(len(spans)) if scores[i] >= ENOUGH * max(scores)]
    return min(enough, key=lambda i: (spans[i][1] - spans[i][0], -scores[i]))


def _noisy_runs(
    lm: HFLM, ids: Sequence[int], spans: Sequence[Span], samples: int, noise: float, seed: int
) -> list[Tensor]:
    """For each span of tokens the logits at the prompt's end, with noise on it, one row for each draw. (samples, V)."""
    embedded = embeddings(lm, ids)  # (t, d)
    sigma = noise * deviation(embedded)
    draws = sigma * torch.randn(samples, *embedded.shape, generator=torch.Generator().manual_seed(seed))
    hidden = torch.zeros(len(spans), len(ids), 1)
    for row, (first, end) in zip(hidden, spans, strict=True):
        row[first:end] = 1
    pairs = torch.cartesian_prod(torch.arange(len(spans)), torch.arange(samples))  # (spans · samples, 2)
    batches = [_logits(lm, ids, hidden[s] * draws[d]) for s, d in (part.T for part in pairs.split(_rows(lm, ids)))]
    return list(torch.cat(batches).split(samples))


def _rows(lm: HFLM, ids: Sequence[int]) -> int:
    return max(1, lm.budget // len(ids))


def _logits(lm: HFLM, ids: Sequence[int], added: Tensor) -> Tensor:
    """Logits at the end of rows of the same ids, with something added to their embeddings (b, t, d). (b, V)."""
    rows = torch.tensor([list(ids)] * len(added), device=lm.device)
    mask, last = torch.ones_like(rows), torch.full((len(added),), len(ids) - 1, device=lm.device)
    embed = lm.model.get_submodule(lm.sites.embed)
    with (
        lm.calling(Call(mask, last)),
        hooks.after(embed, lambda args, kwargs, out: out + added.to(out)),
        passes.gathered(lm.model, lm.sites, torch.arange(len(added)), last),
    ):
        return passes.at_least_float32(lm.run(passes.inputs_of(lm.model, rows, mask)).logits[0]).cpu()
