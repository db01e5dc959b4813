"""The payload of GRACE and HoReN: a vector for each edit, in the place of the layer's output or added to it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from torch import Tensor
from typing_extensions import override

from errata.methods.codebook.keys import KeyTable
from errata.methods.codebook.method import CodebookMethod
from errata.methods.codebook.training import Descent, Group, group_losses, uniform_noise
from errata.methods.memory.adapter import EditMemory, Payload
from errata.methods.memory.log import EditLog, EditRecord
from errata.methods.settings import setting
from errata.methods.state import State
from errata.model.hf import HFLM
from errata.model.lm import Call
from errata.model.projection import flow_shape
from errata.patch.parts import output_replaced
from errata.patch.schema import Floats

Replace = Literal["last", "prompt", "all"]  # which tokens' outputs a value acts on


@dataclass(frozen=True, eq=False, kw_only=True)
class Values(Payload):
    """``values[i]`` is the value of edit i's entry once trained on edit i, of an entry the last one's."""

    replace: Replace
    add: bool  # whether a value is added to the output, and not put in its place
    values: Annotated[Tensor, Floats("n out")]

    @override
    def apply(self, call: Call, x: Tensor, y: Tensor, entry: Tensor) -> Tensor:
        return self.put(call, y, self.values[entry.cpu().clamp(min=0)], entry.to(y.device) >= 0)

    def put(self, call: Call, y: Tensor, values: Tensor, rows: Tensor) -> Tensor:
        """``y`` (b, t, d) with the values (b, d) at the tokens that ``replace`` names, in the chosen rows (b,).

        ``last`` and ``prompt`` act on the prompt alone: what is decoded sees it through the layers above.
        """
        t = y.shape[1]
        offsets, tokens = call.offsets(t, y.device), call.mask[:, -t:].to(y.device) > 0
        where = {"last": offsets == 0, "prompt": (offsets <= 0) & tokens, "all": tokens}[self.replace]
        where = (where & rows[:, None])[..., None]  # (b, t, 1)
        value = values.to(y)[:, None]
        return torch.where(where, y + value if self.add else value, y)

    @override
    def kept(self, log: EditLog, keep: Sequence[int]) -> Self:
        return replace(self, values=self.values[list(keep)])


@dataclass(frozen=True, kw_only=True)
class ValueMethod(CodebookMethod):
    """A codebook of values: settings of how they are trained and where they act."""

    add: ClassVar[bool] = False  # whether a value is added to the output, and not put in its place

    replace: Replace = setting("last", "the released codes' default; prompt and all as in GRACE's", key="replacement")
    init: Literal["cold", "warm"] = setting(
        "cold", "both released codes: uniform noise; warm: the value that changes nothing", key="val_init"
    )
    stop: float = setting(0.02, "loss of a target token below which an edit is done; released codes: none")
    steps: int = setting(100, above=0)
    lr: float | None = setting(
        None,
        "root mean square of the layer's output; papers: 1.0, values uniform in [0, 1) at first",
        key="edit_lr",
        above=0,
    )

    @override
    def resolve(self, lm: HFLM, state: State) -> Self:
        return super().resolve(lm, state).filled(lr=state.info["size"])

    @override
    def empty(self, lm: HFLM, state: State) -> EditMemory[Any, Any]:
        d, f = flow_shape(lm.model, lm.sites, self.site(lm))
        values = Values(replace=self.replace, add=self.add, values=torch.empty(0, d))
        return self.part(self.site(lm), (), self.keys(f), values)

    @override
    def train(
        self, lm: HFLM, old: EditMemory[KeyTable, Values], log: Sequence[EditRecord], state: State
    ) -> EditMemory[KeyTable, Values]:
        """Values begin as uniform noise in [0, the output's size), or as the value that changes nothing.

        Those of different entries are trained together; an entry that another edit joins goes on from its value so
        far, with the targets of all its edits as the loss.
        """
        keys, training, outputs = self.placed(lm, old, log, state)
        start = torch.zeros_like(outputs) if self.add else outputs  # (k, d)
        if self.init == "cold":
            start = state.info["size"] * torch.stack([uniform_noise(self.seed, record, outputs[0]) for record in log])
        whole, values = (*old.log, *log), torch.cat([old.payload.values.to(start), start])
        payload = replace(old.payload, values=values)
        assert self.lr is not None
        descent = Descent(self.steps, self.lr, self.stop)
        left = dict(zip(range(len(old.log), len(whole)), training, strict=True))
        while left:
            now = {i: of for i, of in left.items() if of.start == i or of.start not in left}
            groups = [self.asked(lm, whole, of, i) for i, of in now.items()]
            begin = values[[of.start for of in now.values()]]
            values[list(now)] = _descended(lm, old.site, payload, groups, begin, descent)
            left = {i: of for i, of in left.items() if i not in now}
        return replace(old, log=whole, lookup=keys, payload=payload)


def _descended(
    lm: HFLM, site: str, payload: Values, groups: Sequence[Group], start: Tensor, descent: Descent
) -> Tensor:
    """For each row of ``start`` (k, d) a value with which the model gives the targets of a group of edits. (k, d)"""
    leaves = [row.clone().requires_grad_() for row in start]

    def losses(running: list[int]) -> Tensor:
        values = torch.stack([leaves[i] for i in running for _ in groups[i]])  # (b, d)

        def put(call: Call, x: Tensor, y: Tensor) -> Tensor:
            return payload.put(call, y, values, torch.ones(len(y), dtype=torch.bool, device=y.device))

        with output_replaced(lm, site, put):
            return group_losses(lm, [groups[i] for i in running])

    descent.run(lm, groups, [[leaf] for leaf in leaves], losses)
    return torch.stack(leaves).detach()
