"""Neurons beside a block's MLP: y + V act(K q + b), where q is the MLP's input and y its output.

The site is the down projection, in the decoder of an encoder-decoder. Neurons act at every token by themselves; the
look-up only says which of them is most active where the answer begins.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Self

import torch
from torch import Tensor
from torch.nn.functional import gelu, relu
from typing_extensions import override

from errata.errors import BadInput
from errata.methods.memory.adapter import Lookup, Payload, joint_training
from errata.methods.memory.log import EditLog
from errata.model.hf import HFLM
from errata.model.lm import Call
from errata.model.passes import at_least_float32
from errata.model.projection import flow_shape
from errata.patch.schema import Floats, Ints

Activation = Literal["relu", "gelu"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": relu, "gelu": gelu}


@dataclass(frozen=True, eq=False, kw_only=True)
class Neurons(Payload):
    """n neurons, each of a group of edits that were trained into the same ones."""

    reads: str | None  # a linear whose input is q
    act: Activation
    keys: Annotated[Tensor, Floats("neurons in")]
    biases: Annotated[Tensor, Floats("neurons")]
    values: Annotated[Tensor, Floats("neurons out")]
    owner: Annotated[Tensor, Ints("neurons")]  # the group of each neuron
    queries: Annotated[Tensor, Floats("* in")]  # the q that each neuron was made for; none where that is not known
    groups: Annotated[Tensor, Ints("n")]  # the group of each edit

    @override
    def check_content(self) -> None:
        if len(self.queries) not in (0, len(self.keys)):
            raise BadInput(
                f"queries are {len(self.queries)}, expected one for each of {len(self.keys)} neurons, or none"
            )
        if strange := set(self.owner.tolist()) - set(self.groups.tolist()):
            raise BadInput(f"owner names the group {min(strange)}, which no edit is in")

    @classmethod
    def empty(cls, lm: HFLM, layer: int, act: Activation) -> Self:
        """No neurons, beside the MLP of a layer."""
        reads, none = lm.sites.mlp_in[layer][0], torch.empty(0)
        d, out = flow_shape(lm.model, lm.sites, reads)[1], flow_shape(lm.model, lm.sites, lm.sites.mlp_out[layer])[0]
        keys, values = torch.empty(0, d), torch.empty(0, out)
        ids = {"owner": none.long(), "groups": none.long()}
        return cls(reads=reads, act=act, keys=keys, biases=none, values=values, queries=keys, **ids)

    def activations(self, q: Tensor) -> Tensor:
        """act(K q + b) (…, n)"""
        return ACTIVATIONS[self.act](q @ self.keys.to(q).T + self.biases.to(q))

    def added(self, q: Tensor) -> Tensor:
        """What the neurons add to the MLP's output. (…, d)"""
        return self.activations(q) @ self.values.to(q)

    @override
    def apply(self, call: Call, x: Tensor, y: Tensor, entry: Tensor) -> Tensor:
        return self.unrouted(x, y)

    @override
    def unrouted(self, x: Tensor, y: Tensor) -> Tensor:
        return y + self.added(at_least_float32(x)).to(y)

    @property
    def next_group(self) -> int:
        """The number of a new group."""
        return 1 + int(self.groups.max()) if len(self.groups) else 0

    def extended(self, groups: Sequence[int], **rows: Tensor) -> Self:
        """With more edits, of these groups, and rows for some of the neurons' tensors."""
        more = {name: torch.cat([getattr(self, name), row.detach().cpu()]) for name, row in rows.items()}
        return replace(self, groups=torch.cat([self.groups, torch.tensor(groups, dtype=torch.long)]), **more)

    @override
    def kept(self, log: EditLog, keep: Sequence[int]) -> Self:
        """Without the neurons of the other edits; those of the kept ones stay as they were trained."""
        groups, gone = self.groups.tolist(), sorted({*range(len(log))} - {*keep})
        for i in keep:
            later = any(log[i].prompt_ids == log[j].prompt_ids and groups[i] > groups[j] for j in gone)
            if later or groups[i] in [groups[j] for j in gone]:
                raise joint_training(log[i], log, keep)
        left = ~torch.isin(self.owner, self.groups[gone])
        rows = {name: getattr(self, name) for name in ("keys", "biases", "values", "owner", "queries")}
        rows = {name: row[left] if len(row) else row for name, row in rows.items()}
        return replace(self, groups=self.groups[list(keep)], **rows)

    @override
    def describe(self, log: EditLog, entry: int) -> str:
        others = int((self.groups == self.groups[entry]).sum()) - 1
        return f"{log[entry]}{f' and {others} more' if others else ''}"

    @override
    def details(self, log: EditLog, i: int) -> dict[str, Any]:
        """The radius is the distance that the q of an edit's first neuron may move before that is silent, at most."""
        own = (self.owner == self.groups[i]).nonzero()[:, 0].tolist()
        if not own or not len(self.queries):
            return {"neurons": len(own)}
        q, k, b = self.queries[own[0]], self.keys[own[0]], self.biases[own[0]]
        return {"neurons": len(own), "radius": round(float(((q * k).sum() + b) / k.norm()), 4)}

    @override
    def totals(self) -> dict[str, Any]:
        return {"neurons": len(self.keys)}


@dataclass(frozen=True, eq=False, kw_only=True)
class MostActive(Lookup):
    """The first edit of the neuron that contributes most where the answer begins; none where no neuron is active."""

    decoder: bool  # whether the answer begins with the site's first token, as in the decoder of an encoder-decoder

    @override
    def due(self, call: Call, found: bool) -> bool:
        return not found and (self.decoder or call.prompt_end is not None)

    @override
    def find(self, call: Call, x: Tensor, y: Tensor, payload: Neurons) -> Tensor:
        if not len(payload.keys):
            return torch.full((len(x),), -1, device=x.device)
        act = payload.activations(at_least_float32(x))  # (b, t, n)
        if self.decoder:
            first = act[:, 0]
        else:
            assert call.prompt_end is not None
            first = act[torch.arange(len(act), device=act.device), call.prompt_end.to(act.device)]
        size, neuron = (first * payload.values.to(act).norm(dim=-1)).max(-1)  # (b,)
        edit = (payload.owner[:, None] == payload.groups).int().argmax(-1).to(act.device)  # (n,)
        return torch.where(size > 0, edit[neuron], -1)

    @override
    def kept(self, log: EditLog, keep: Sequence[int]) -> Self:
        return self
