"""The value of a hidden state, and the adapter of RE-Control that climbs it while a response is decoded."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Self

import torch
from torch import Tensor, nn
from typing_extensions import override

from errata.errors import WrongModel
from errata.methods.memory.log import EditLog, EditRecord, log_without
from errata.model.hf import HFLM
from errata.model.lm import Call
from errata.model.passes import at_least_float32
from errata.patch.parts import Adapter, same_tensors
from errata.patch.schema import Floats


class Value(nn.Module):
    """V(h) = w₃ · relu(W₂ relu(W₁ h / s + b₁) + b₂) + b₃, with s the root mean square of an entry of h.

    Its parameters have the names of the fields of :class:`ValueAscent`.
    """

    def __init__(self, d: int, width: int) -> None:
        super().__init__()
        first, second, last = nn.Linear(d, width), nn.Linear(width, width), nn.Linear(width, 1)
        self.w1, self.b1 = first.weight, first.bias
        self.w2, self.b2 = second.weight, second.bias
        self.w3, self.b3 = last.weight, last.bias
        self.register_buffer("s", torch.ones(1))
        self.s: Tensor

    def forward(self, h: Tensor) -> Tensor:
        """(k,), of states (k, d)."""
        z = (h / self.s @ self.w1.T + self.b1).relu()
        return ((z @ self.w2.T + self.b2).relu() @ self.w3.T + self.b3)[:, 0]


@dataclass(frozen=True, eq=False)
class ValueAscent(Adapter):
    """h ← h + η s² ∇V(h), n times, behind the final norm, at the prompt's last token and at every one of the response.

    The step has the hidden state's units, so that η means the same for every model. The gradient is written out: no
    graph is needed, and callers may be in any mode of torch.
    """

    kind: ClassVar[str] = "re-control"

    site: str  # the final norm, or the last block where there is none
    decoder: bool  # whether the model is an encoder-decoder, whose decoder reads no prompt
    reward: str
    climbs: int
    eta: float
    log: EditLog
    s: Annotated[Tensor, Floats("1")]
    w1: Annotated[Tensor, Floats("width out")]
    b1: Annotated[Tensor, Floats("width")]
    w2: Annotated[Tensor, Floats("width width")]
    b2: Annotated[Tensor, Floats("width")]
    w3: Annotated[Tensor, Floats("1 width")]
    b3: Annotated[Tensor, Floats("1")]

    @override
    def out(self, call: Call | None, x: Tensor, y: Tensor) -> Tensor:
        if call is None or (call.prompt_end is None and call.step == 0 and not self.decoder):
            return y
        here = self._response(call, y)
        h = at_least_float32(y[here].detach())
        moved = y.clone()
        moved[here] = (y[here] + (self.climbed(h) - h)).to(y)
        return moved

    def _response(self, call: Call, y: Tensor) -> Tensor:
        """Which tokens (b, t) predict the response."""
        t = y.shape[1]
        if self.decoder:
            return torch.ones(y.shape[:2], dtype=torch.bool, device=y.device)
        return (call.offsets(t, y.device) >= 0) & (call.mask[:, -t:].to(y.device) > 0)

    def climbed(self, h: Tensor) -> Tensor:
        """The states (k, d) after all steps."""
        s, w1, b1, w2, b2, w3 = (getattr(self, name).to(h) for name in ("s", "w1", "b1", "w2", "b2", "w3"))
        for _ in range(self.climbs):
            a = h / s @ w1.T + b1  # (k, width)
            back = (a.relu() @ w2.T + b2 > 0).to(h) * w3  # (k, width)
            h = h + self.eta * s * ((a > 0).to(h) * (back @ w2) @ w1)  # s² ∇V: of h / s it is s times that
        return h

    def joined_by(self, other: "ValueAscent") -> bool:
        """Whether another does the same."""
        mine, its = (part.config() | {"log": None} for part in (self, other))
        return mine == its and same_tensors(self.tensors(), other.tensors())

    def extended(self, log: Sequence[EditRecord]) -> Self:
        """With more edits in its log."""
        return replace(self, log=(*self.log, *log))

    @override
    def without(self, edit_id: str) -> "Self | None":
        log = log_without(self.log, edit_id)
        return replace(self, log=log) if log else None

    @override
    def check_model(self, lm: HFLM) -> None:
        super().check_model(lm)
        if self.site != value_site(lm) or self.decoder != lm.seq2seq:
            raise WrongModel(
                f"the {self.kind} part of this patch sits at {self.site!r}; here hidden states are final behind "
                f"{value_site(lm)!r}"
            )
        if (width := self.w1.shape[1]) != state_width(lm):
            raise WrongModel(f"the {self.kind} part of this patch values states {width} wide; here: {state_width(lm)}")

    @override
    def entries(self) -> list[dict[str, Any]]:
        return [{"edit": record.id, "prompt": record.prompt, "reward": self.reward} for record in self.log]

    @override
    def summary(self) -> list[dict[str, Any]]:
        width = self.w1.shape[0]
        return [{"kind": self.kind, "site": self.site, "edits": len(self.log), "reward": self.reward, "width": width}]


def value_site(lm: HFLM) -> str:
    """Where hidden states are final: the last norm, or the last block where there is none."""
    return lm.sites.final_norm or lm.sites.layer[-1]


def state_width(lm: HFLM) -> int:
    """The width of a hidden state."""
    return int(lm.text_config.hidden_size)
