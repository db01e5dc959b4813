"""The payload of GRACE and HoReN: a vector for each edit, in the place of the layer's output or added to it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self, TypeVar

import torch
from torch import Tensor
from typing_extensions import override

from errata.methods.codebook.keys import KeyTable
from errata.methods.codebook.training import Descent, Group, group_losses, read_queries, uniform_noise
from errata.methods.memory.adapter import EditMemory, Payload
from errata.methods.memory.log import EditLog, EditRecord
from errata.methods.settings import setting
from errata.model.hf import HFLM
from errata.model.lm import Call
from errata.patch.parts import output_replaced

Replace = Literal["last", "prompt", "all"]  # which tokens' outputs a value acts on


@dataclass(frozen=True, eq=False, kw_only=True)
class Values(Payload):
    """``values[i]`` is the value of edit i's entry once trained on edit i."""

    replace: str
    add: bool  # whether a value is added to the output, and not put in its place
    values: Tensor  # (n, d)

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
class ValueSettings:
    """Settings of how values are trained and where they act."""

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

    @property
    def descent(self) -> Descent:
        """The descent that these settings name, once resolved."""
        assert self.lr is not None
        return Descent(self.steps, self.lr, self.stop)


Codebook = TypeVar("Codebook", bound=EditMemory[KeyTable, Values])


def train_values(
    lm: HFLM, old: Codebook, log: Sequence[EditRecord], descent: Descent, seed: int, scale: float | None
) -> Codebook:
    """The codebook with more edits, placed by its rule, and with their values trained.

    Values begin as uniform noise in [0, ``scale``), or where ``scale`` is None as the value that changes nothing. Those
    of different entries are trained together; an entry that another edit joins goes on from its value so far, with the
    targets of all its edits as the loss.
    """
    queries, outputs = read_queries(lm, old.site, old.lookup, [record.prompt_ids for record in log])
    start = torch.zeros_like(outputs) if old.payload.add else outputs  # (k, d)
    if scale is not None:
        start = scale * torch.stack([uniform_noise(seed, record, outputs[0]) for record in log])
    whole = (*old.log, *log)
    keys = old.lookup.extended(whole, queries)
    values = torch.cat([old.payload.values.to(start), start])
    payload = replace(old.payload, values=values)
    left = list(range(len(old.log), len(whole)))
    groups = {i: keys.group(i) for i in left}
    while left:
        now = [i for i in left if not set(groups[i][:-1]) & set(left)]
        begin = values[[groups[i][-2:][0] for i in now]]  # an entry's value so far, or its own start
        values[now] = _descended(lm, old.site, payload, [[whole[j] for j in groups[i]] for i in now], begin, descent)
        left = [i for i in left if i not in now]
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
