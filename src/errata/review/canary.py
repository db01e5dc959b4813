"""The canary set: ordinary texts far from the edits, in which a change that reaches too far shows first.

canary = canary_of(lm, edits, pool(lm))
before = Pulse.of(lm, canary)
with patch.applied(lm) as edited:
    rows = before.rows(Pulse.of(edited, canary))
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from errata.errors import BadInput, Unsupported
from errata.evaluation.metrics import kl, nll
from errata.model.hf import HFLM
from errata.model.lm import LM
from errata.model.texts import openings
from errata.review.statements import without
from errata.types import Case, Edit, Probe, Row

if TYPE_CHECKING:
    import numpy as np

QUESTIONS = 24  # beginnings of sentences that are continued
TEXTS = 24  # texts whose loss is measured
LONGEST = 128  # tokens of one
CUTS = 2  # places in each text behind which the next token is looked at
NUMBERS = 2**26  # log-probabilities that are kept at most: 256 MB
FELT = 256  # tokens at which hidden states are compared
LABEL = "canary"


@dataclass(frozen=True)
class Canary:
    """Texts, beginnings of texts (for the next token), and beginnings of sentences that are continued."""

    texts: tuple[str, ...]
    beginnings: tuple[str, ...]
    questions: tuple[str, ...]

    def joined(self, cases: Sequence[Case]) -> list[Case]:
        """The cases with the questions shared out among them, as probes of kind ``unrelated``."""
        probes = [Probe("unrelated", question, label=LABEL) for question in self.questions]
        return [replace(case, probes=(*case.probes, *probes[i :: len(cases)])) for i, case in enumerate(cases)]


def canary_of(lm: HFLM, edits: Sequence[Edit], texts: Iterable[str], seed: int = 0) -> Canary:
    """The last of the texts that name no edited subject, and beginnings of others.

    Empty where every text names one.
    """
    far = list(without(texts, [edit.subject for edit in edits]))
    room = min(LONGEST, (lm.tokens.limit or LONGEST + 1) - 1)
    measured = tuple(dict.fromkeys(text for text in (_head(lm, text, room) for text in far[-TEXTS:]) if text.strip()))
    rng = random.Random(f"canary {seed}")
    most = max(1, min(TEXTS * CUTS, NUMBERS // _vocabulary(lm)))
    cuts = list(dict.fromkeys(cut for text in measured for cut in _cuts(lm, text, rng)))
    questions = openings(lm, far[:-TEXTS] or far, QUESTIONS, seed) if far else []
    return Canary(measured, tuple(sorted(rng.sample(cuts, min(most, len(cuts))))), tuple(q.strip() for q in questions))


def _head(lm: HFLM, text: str, room: int) -> str:
    ids = lm.tokens.ids(text, add_special_tokens=False)
    return text if len(ids) <= room else lm.tokens.decode(ids[: room - 1])


def _cuts(lm: HFLM, text: str, rng: random.Random) -> list[str]:
    ids = lm.tokens.ids(text, add_special_tokens=False)
    places = rng.sample(range(1, len(ids)), min(CUTS, len(ids) - 1)) if len(ids) > 1 else []
    return [cut for place in places if (cut := lm.tokens.decode(ids[:place])).strip()]


def _vocabulary(lm: HFLM) -> int:
    return int(getattr(lm.text_config, "vocab_size", None) or len(lm.tokenizer))


@dataclass(frozen=True)
class Pulse:
    """What a model makes of a canary set: loss of each text, the next token behind each beginning, hidden states.

    ``hidden`` maps a block's path to its output at some tokens (k, d); empty where it cannot be read. ``unsupported``
    says why a measure has no values.
    """

    canary: Canary
    losses: Sequence[float]
    next_logprobs: "np.ndarray | None"
    hidden: Mapping[str, Tensor] = field(default_factory=dict)
    unsupported: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, lm: LM, canary: Canary) -> "Pulse":
        """Asks a model, edited or not."""
        why: dict[str, str] = {}
        losses: list[float] = []
        after: Any = None
        try:
            losses = [nll(score) for score in lm.score([""] * len(canary.texts), list(canary.texts))]
        except (Unsupported, BadInput) as error:  # BadInput: what a wrapper prepends may make a text too long
            why["loss"] = str(error) or "unsupported"
        try:
            after = lm.next_logprobs(list(canary.beginnings)) if canary.beginnings else None
        except (Unsupported, BadInput) as error:
            why["kl"] = str(error) or "unsupported"
        return cls(canary, losses, after, _hidden(lm, canary.texts), why)

    def rows(self, after: "Pulse", **labels: Any) -> list[Row]:
        """Rows of kind ``text`` (``loss``, in nats a token, and ``kl``, in nats) and ``block`` (``output_change``).

        ``output_change`` is the mean over tokens of ‖h′ − h‖ / ‖h‖ with h the block's output: what inputs feel there.
        """
        rows: list[Row] = []
        for i, text in enumerate(self.canary.texts):
            error = self.unsupported.get("loss") or after.unsupported.get("loss")
            ends: Any = {"before": _at(self.losses, i), "after": _at(after.losses, i), "error": error}
            rows.append(_row("text", f"text {i}", text, "loss", **ends, **labels))
        for i, beginning in enumerate(self.canary.beginnings):
            error = self.unsupported.get("kl") or after.unsupported.get("kl")
            value = None if error else kl(after.next_logprobs[i], self.next_logprobs[i])  # pyright: ignore[reportOptionalSubscript]
            of: Any = {"before": None if error else 0.0, "after": value, "error": error}
            rows.append(_row("text", f"beginning {i}", beginning, "kl", **of, **labels))
        for path, h in self.hidden.items():
            if path in after.hidden:
                change = float(((after.hidden[path] - h).norm(dim=-1) / h.norm(dim=-1).clamp_min(1e-12)).mean())
                rows.append(_row("block", path, path, "output_change", before=0.0, after=change, **labels))
        return rows


def _row(kind: str, case: str, probe: str, metric: str, **about: Any) -> Row:
    return Row(kind=kind, case=case, probe=probe, metric=metric, **about)


def _at(values: Sequence[float], i: int) -> float | None:
    return values[i] if i < len(values) else None


@torch.no_grad()
def _hidden(lm: LM, texts: Sequence[str]) -> dict[str, Tensor]:
    """Block -> its output at the first tokens of the texts, ``FELT`` in all (k, d), on the CPU."""
    if not isinstance(lm, HFLM) or lm.seq2seq:
        return {}
    rows, left = list[list[int]](), FELT
    for text in texts:
        if ids := lm.tokens.ids(text)[:left]:
            rows.append(ids)
            left -= len(ids)
    if not rows:
        return {}
    read = lm.read(rows, [list(range(len(row))) for row in rows], [(path, "out") for path in lm.sites.layer])
    return {path: h for (path, _), h in read.items()}
