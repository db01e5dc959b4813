"""The adapter of REMEDI: directions that are added where a prompt names their subjects."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated, Any, ClassVar, Self

import torch
from torch import Tensor
from typing_extensions import override

from errata.methods.memory.log import EditLog, EditRecord
from errata.methods.memory.reworded import Reworded, RewordedAdapter, joined
from errata.model.hf import HFLM
from errata.model.lm import Call
from errata.model.tokens import Tokens
from errata.patch.parts import output_replaced
from errata.patch.schema import Floats

Found = tuple[int, int]  # index of a token in a prompt, and of a subject


@dataclass(frozen=True, eq=False)
class EntityDirections(RewordedAdapter):
    """h ← β h + Σ directions, at a block's output, at the last token of each prompt's last mention of a subject.

    The directions are those of all edits of the subject, except where a later one has the same prompt or contradicts it
    in other words (``reworded``, by an edit's id those that do). While the
    answer is decoded nothing is added, and a prompt that names no subject is left as it is, bit for bit. Of two
    subjects of which one is part of the other ("Ann" in "Ann Lee"), the longer is meant.
    """

    kind: ClassVar[str] = "remedi"

    site: str  # a block
    beta: float
    log: EditLog
    directions: Annotated[Tensor, Floats("n out")]
    reworded: Mapping[str, list[str]] = field(default_factory=dict[str, list[str]])

    @cached_property
    def subjects(self) -> dict[str, list[int]]:
        """Subject -> indices of its edits that are in force."""
        of: dict[str, list[int]] = {}
        for i in self.in_use:
            of.setdefault(self.log[i].subject, []).append(i)
        return of

    @cached_property
    def sums(self) -> Tensor:
        """What is added for each subject, in order. (k, d)"""
        return torch.stack([self.directions[some].sum(0) for some in self.subjects.values()])

    @override
    @contextmanager
    def in_force(self, lm: HFLM) -> Generator[None, None, None]:
        lm.explainers.append(self.explain)

        def find_and_add(call: Call | None, x: Tensor, y: Tensor) -> Tensor:
            if call is not None and id(self) not in call.memo and (prompts := call.prompts()):
                call.memo[id(self)] = self.found(lm.tokens, prompts)
            return self.out(call, x, y)

        with output_replaced(lm, self.site, find_and_add):
            yield

    def found(self, tokens: Tokens, prompts: Sequence[Sequence[int]]) -> Tensor:
        """For each prompt its mentions: offset from the prompt's end, and number of the subject; -1 fills. (b, m, 2)"""
        rows = [[(last - len(ids) + 1, k) for last, k in self._mentions(tokens, ids)] for ids in prompts]
        most = max(map(len, rows))
        return torch.tensor([row + [(0, -1)] * (most - len(row)) for row in rows]).view(len(rows), most, 2)

    def _mentions(self, tokens: Tokens, ids: Sequence[int]) -> Iterator[Found]:
        spans = tokens.mentions(ids, list(self.subjects))
        for k, (first, last) in spans.items():
            if not any(a <= first and last <= b and (a, b) != (first, last) for a, b in spans.values()):
                yield last, k

    @override
    def out(self, call: Call | None, x: Tensor, y: Tensor) -> Tensor:
        """As it is, except at the mentions that ``call.memo`` has of this part."""
        found = None if call is None else call.memo.get(id(self))
        if call is None or found is None or not found.numel():
            return y
        offset, subject = found.to(y.device).unbind(-1)  # (b, m)
        here = (call.offsets(y.shape[1], y.device)[..., None] == offset[:, None]) & (subject[:, None] >= 0)  # (b, t, m)
        if not here.any():
            return y
        sums = self.sums[subject.clamp(min=0).to(self.sums.device)].to(y.device)  # (b, m, d)
        added = here.to(sums) @ sums  # (b, t, d)
        return torch.where(here.any(-1, keepdim=True), (self.beta * y + added).to(y), y)

    @override
    def explain(self, call: Call) -> list[str | None]:
        rows = call.memo[id(self)][..., 1].tolist() if id(self) in call.memo else [[]] * len(call.mask)
        edits = list(self.subjects.values())
        named = [[str(self.log[i]) for k in row if k >= 0 for i in edits[k]] for row in rows]
        return [f"{self.kind}: {'; '.join(some)}" if some else None for some in named]

    def extended(self, log: Sequence[EditRecord], directions: Tensor, reworded: Reworded) -> Self:
        """With more edits, their directions (k, d), and which earlier ones they contradict in other words."""
        rows = torch.cat([self.directions, directions])
        return replace(self, log=(*self.log, *log), directions=rows, reworded=joined(self.reworded, reworded))

    @override
    def without(self, edit_id: str) -> "Self | None":
        keep = [i for i, record in enumerate(self.log) if record.id != edit_id]
        if not keep:
            return None
        log, reworded = tuple(self.log[i] for i in keep), joined(self.reworded, {}, {edit_id})
        return replace(self, log=log, directions=self.directions[keep], reworded=reworded)

    @override
    def check_model(self, lm: HFLM) -> None:
        super().check_model(lm)
        self.check_block(lm)

    @override
    def entries(self) -> list[dict[str, Any]]:
        used = {i for some in self.subjects.values() for i in some}
        return [
            {
                "edit": record.id,
                "prompt": record.prompt,
                "subject": record.subject,
                "norm": round(norm, 4),
                "in use": "yes" if i in used else "a newer one",
            }
            for i, (record, norm) in enumerate(zip(self.log, self.directions.norm(dim=-1).tolist(), strict=True))
        ]

    @override
    def summary(self) -> list[dict[str, Any]]:
        line = {"kind": self.kind, "site": self.site, "edits": len(self.log), "subjects": len(self.subjects)}
        return [line]


@contextmanager
def added(lm: HFLM, site: str, directions: Tensor, beta: float) -> Generator[None, None, None]:
    """Context manager for training: in every row of a pass, h ← β h + direction (b, d) at the last token of its prompt.

    Differentiable by the directions.
    """

    def put(call: Any, x: Tensor, y: Tensor) -> Tensor:
        here = call.offsets(y.shape[1], y.device)[..., None] == 0
        return torch.where(here, (beta * y + directions[:, None].to(y.device)).to(y), y)

    change: Callable[[Any, Tensor, Tensor], Tensor] = put
    with output_replaced(lm, site, change):
        yield
