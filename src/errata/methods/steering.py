"""Steering: a direction, found by contrast, that is added to the hidden state from the prompt's end on.

For changes of manner or of a whole class of answers ("everybody speaks French"), not of single facts: it acts on every
prompt. Panickssery et al. 2023, arXiv:2312.06681; pairs that differ in their context as in Turner et al. 2023,
arXiv:2308.10248.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from string import Formatter
from typing import Annotated, Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import normalize
from typing_extensions import override

from errata.answers import answer_of
from errata.errors import BadInput, Unsupported
from errata.methods.base import Method, Tags
from errata.methods.memory.log import EditLog, EditRecord
from errata.methods.memory.reworded import Reworded, RewordedAdapter, joined, reworded_by
from errata.methods.settings import setting
from errata.methods.state import State
from errata.model.hf import HFLM
from errata.model.lm import Call
from errata.patch.patch import Patch
from errata.patch.schema import Floats
from errata.types import Edit

SHARE = 0.6  # of a hidden state's length is what strength 1 adds: see Steering


@dataclass(frozen=True, eq=False)
class SteeringVector(RewordedAdapter):
    """Adds to a block's output, from the prompt's last token on: the direction of the mean of ``differences``,
    ``strength`` x SHARE as long as the hidden states were.

    Each difference is that of the hidden states with an edit's new and old target in the context. Lengths of raw
    differences say how far two answers are apart, not how hard to push (the paper makes them alike too). An edit does
    not count where a later one has the same prompt or contradicts it in other words (``reworded``, by an edit's id
    those that do).
    """

    kind: ClassVar[str] = "steering"

    site: str  # a block
    strength: float
    log: EditLog  # towards each edit's target_new, away from its target_true
    differences: Annotated[Tensor, Floats("n out")]
    lengths: Annotated[Tensor, Floats("n")]  # of the hidden states that they are of
    reworded: Mapping[str, list[str]] = field(default_factory=dict[str, list[str]])

    @override
    def out(self, call: Call | None, x: Tensor, y: Tensor) -> Tensor:
        if call is None or self.strength == 0 or (call.prompt_end is None and call.step == 0):
            return y
        return torch.where(call.offsets(y.shape[1], y.device)[..., None] >= 0, y + self.vector.to(y), y)

    @property
    def vector(self) -> Tensor:
        """The vector that is added. (d,)"""
        length, mean = self.lengths[self.in_use].mean(), self.differences[self.in_use].mean(0)
        return SHARE * self.strength * length * normalize(mean, dim=0)

    def extended(self, log: Sequence[EditRecord], differences: Tensor, lengths: Tensor, reworded: Reworded) -> Self:
        """With more edits, their differences (k, d) and lengths (k,), and which they contradict in other words."""
        return replace(
            self,
            log=(*self.log, *log),
            differences=torch.cat([self.differences, differences]),
            lengths=torch.cat([self.lengths, lengths]),
            reworded=joined(self.reworded, reworded),
        )

    @override
    def without(self, edit_id: str) -> "Self | None":
        keep = [i for i, record in enumerate(self.log) if record.id != edit_id]
        if not keep:
            return None
        log, reworded = tuple(self.log[i] for i in keep), joined(self.reworded, {}, {edit_id})
        return replace(self, log=log, differences=self.differences[keep], lengths=self.lengths[keep], reworded=reworded)

    @override
    def check_model(self, lm: HFLM) -> None:
        super().check_model(lm)
        self.check_block(lm)

    @override
    def entries(self) -> list[dict[str, Any]]:
        used = {*self.in_use}
        return [
            {
                "edit": record.id,
                "prompt": record.prompt,
                "towards": record.target_new,
                "away": record.target_true,
                "norm": round(norm, 4),
                "in use": "yes" if i in used else "a newer one",
            }
            for i, (record, norm) in enumerate(zip(self.log, self.differences.norm(dim=-1).tolist(), strict=True))
        ]

    @override
    def summary(self) -> list[dict[str, Any]]:
        norm = round(float(self.vector.norm()), 4)
        return [{"kind": self.kind, "site": self.site, "edits": len(self.log), "norm": norm}]


@dataclass(frozen=True, kw_only=True)
class Steering(Method):
    """A direction from the hidden state with the old answer in the context to that with the new one.

    The paper adds the raw difference, ``strength`` times. Here the direction is SHARE of a hidden state long, since a
    difference says how far two answers are apart, not how hard to push. With 15 edits "speaks French" of the bundled
    model's validation split, this share of 29 other people's languages became French, and this one of 36 answers about
    other relations stayed: SHARE 0.45: 0.14, 0.97; 0.6: 0.72, 0.94; 0.8: 0.93, 0.67; 1: 1.00, 0.31.
    """

    name: ClassVar[str] = "steering"
    family: ClassVar[str] = "representation"
    paper: ClassVar[str] = "Panickssery et al. 2023, Contrastive Activation Addition, arXiv:2312.06681"
    stores: ClassVar[str] = "a vector for each edit; their mean is added on every prompt; no weight changes"
    tags: ClassVar[Tags] = Tags(reads_context=True)

    layers: tuple[int, ...] | None = setting(None, "7/8 up, just before an answer; the paper steers manner: 13 of 32")
    strength: float = setting(1.0, "paper: -2 to 2, in units of the difference; below 0 it steers away", least=-inf)
    context: str = setting("Fact: {fact}. {prompt}", "how a fact stands before a prompt; the pair differs in it alone")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not _names(self.context) == ["fact", "prompt"] or not self.context.endswith("{prompt}"):
            raise BadInput(
                "steering's context holds {fact} and then, at its end, {prompt}, where the model answers; "
                f"found {self.context!r}"
            )

    @override
    def resolve(self, lm: HFLM, state: State) -> Self:
        if lm.seq2seq:
            raise Unsupported("steering acts where a decoder reads its prompt; this model has an encoder for that")
        depth = lm.sites.depth
        layers = (7 * depth // 8,) if self.layers is None else self.layers
        if not layers or max(layers) >= depth:
            raise BadInput(f"steering's layers lie within 0 to {depth - 1}; found {list(layers)}")
        return replace(self, layers=tuple(sorted(set(layers))))

    @override
    def _edit(self, lm: HFLM, edits: Sequence[Edit], state: State, prior: Patch) -> Patch:
        assert self.layers is not None
        old = [self._held(lm, prior, lm.sites.layer[layer]) for layer in self.layers]
        others = prior
        for part in old:
            others = others.swap(part, None)
        with others.without_wrappers().applied(lm) as edited:
            log = self._records(edited, edits)
            measured = self._differences(edited, log, [part.site for part in old])
        held = Patch(tuple(part for part in old if part.log))
        for part in old:
            reworded = reworded_by(lm, (*part.log, *log), len(log), held)
            prior = prior.swap(part, part.extended(log, *measured[part.site], reworded))
        return prior

    def _held(self, lm: HFLM, prior: Patch, site: str) -> SteeringVector:
        """The vector in ``prior`` that these edits join, or an empty one."""
        for part in prior.of_kind(SteeringVector):
            if part.site == site:
                if part.strength != self.strength:
                    raise BadInput(
                        f"the direction in prior has strength {part.strength}, and this one {self.strength}; "
                        "go on with the same strength"
                    )
                return part
        return SteeringVector(site, self.strength, (), torch.empty(0, lm.text_config.hidden_size), torch.empty(0))

    def _records(self, lm: HFLM, edits: Sequence[Edit]) -> EditLog:
        """The edits; where one names no old target, with the model's own answer as that."""
        texts = lm.generate([edit.prompt for edit in edits if edit.target_true is None], until_answer=True)
        own = iter([answer_of(text).strip() for text in texts])
        records = map(EditRecord.of, edits)
        return tuple(replace(r, target_true=next(own)) if r.target_true is None else r for r in records)

    def _differences(self, lm: HFLM, log: EditLog, sites: Sequence[str]) -> dict[str, tuple[Tensor, Tensor]]:
        """Site -> h(new target in the context) - h(old target in it) at the prompt's last token (n, d), and the lengths
        of the latter (n,)."""
        texts = [
            self.context.format(fact=f"{record.prompt} {target}", prompt=record.prompt)
            for record in log
            for target in (record.target_new, record.target_true)
        ]
        rows = [lm.tokens.prompt(text) for text in texts]
        read = lm.read(rows, [[len(row) - 1] for row in rows], [(site, "out") for site in sites])
        return {site: (h[0::2] - h[1::2], h[1::2].norm(dim=-1)) for (site, _), h in read.items()}


def _names(form: str) -> list[str | None]:
    """The fields of a format, in order."""
    try:
        return [name for _, name, _, _ in Formatter().parse(form) if name is not None]
    except ValueError:
        return []
