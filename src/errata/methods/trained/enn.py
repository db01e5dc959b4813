"""ENN: the model itself is trained so that few gradient steps make an edit and leave the rest as it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from random import Random
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from typing_extensions import override

from errata.errors import BadInput
from errata.methods.settings import setting
from errata.methods.state import State
from errata.methods.trained.examples import Asked, Example, compatible
from errata.methods.trained.mlp import MLPEditor
from errata.methods.trained.objective import SCALE, batches, changed, drift, mean_of, outcome, outer_gradient
from errata.methods.trained.training import Losses
from errata.model import hooks
from errata.model.hf import HFLM
from errata.model.passes import at_least_float32
from errata.model.reading import Pair
from errata.model.weights import plain, weight_shape
from errata.patch.delta import Delta
from errata.patch.patch import Patch
from errata.types import Edit

MARK = "enn/base"  # in a patch's memory: which base its change holds (16 bytes), and its edits (16 bytes)
Changes = dict[str, Tensor]


class Editable(nn.Module):
    """The base's change θ' − θ, in units of each weight's root mean square, and RMSProp's decay β."""

    def __init__(self, lm: HFLM, names: Sequence[str]) -> None:
        super().__init__()
        self.names = list(names)
        weights = [at_least_float32(plain(lm.model, name, "cannot be trained").detach()) for name in names]
        self.register_buffer("units", torch.stack([w.square().mean().sqrt().cpu() for w in weights]))
        self.units: Tensor
        self.base = nn.ParameterList(self.units.new_zeros(weight_shape(lm.model, name)) for name in names)
        self.decay = nn.Parameter(self.units.new_zeros(()))  # β = σ(0) = 0.5

    def change(self) -> Changes:
        """The base's change of each weight, inside the graph. (out, in) each."""
        return {name: unit * base for name, unit, base in zip(self.names, self.units, self.base, strict=True)}


@dataclass(frozen=True, kw_only=True)
class ENN(MLPEditor):
    """Up to k steps of RMSProp on the edit, on a base that was trained for such steps, through them.

    The patch holds the base's change, once, and those of the edits. The loss of an edit's token is
    max(0, margin + max_{y≠y*} log p(y) − log p(y*)), so that facts that are answered move nothing. In training it is
    c_base · KL(p_model ‖ p_base) + c_edit · −log p(new answer | edited) + c_keep · KL(p_base ‖ p_edited), with the
    exact gradient through the steps.
    """

    name: ClassVar[str] = "enn"
    family: ClassVar[str] = "meta-learned base"
    paper: ClassVar[str] = "Sinitsin et al. 2020, Editable Neural Networks, arXiv:2004.00345"
    stores: ClassVar[str] = "a dense change of some MLPs: the editable base's and the edits'"
    validates_on: ClassVar[int] = 32

    c_edit: float = setting(1.0, "weight of the new answers; paper: 0.01 and 100")
    c_keep: float = setting(1.0, "weight of what must stay; paper: 0.01 and 100")
    steps: int = setting(40, "of training at most", above=0)
    batch: int = setting(8, "facts of an edit in training at most: 1, 2, 4 ...; paper: one", above=0)
    lr: float = setting(3e-3, "Adam's, in units of each weight's root mean square", above=0)
    check_every: int = setting(20, "steps between validations, each of which writes a checkpoint", above=0)
    patience: int = setting(3, "validations without a better score after which training ends", above=0)
    k: int = setting(10, "steps of an edit at most: the paper's", above=0)
    rate: float = setting(0.02, "of RMSProp, in units of each weight's root mean square", above=0)
    damping: float = setting(0.1, "least divisor of RMSProp, in units of its root mean square", above=0)
    margin: float = setting(0.0, "of log p over the best other token: the paper's")
    c_base: float = setting(1.0, "weight of the base's own answers: the paper's")

    @override
    def network(self, lm: HFLM) -> nn.Module:
        return Editable(lm, self.names(lm)).to(lm.device)

    # The editor

    def stepped(
        self, lm: HFLM, network: Editable, start: Mapping[str, Tensor], pairs: Sequence[Pair], *, graph: bool = False
    ) -> Changes:
        """The change after up to k steps from ``start``, as many as it takes until every target token is the likeliest
        by the margin; with ``graph`` inside the graph of ``start`` and of the network. (out, in) each."""
        now, beta = dict(start), network.decay.sigmoid()
        square = {name: torch.zeros_like(change) for name, change in now.items()}
        for _ in range(self.k):
            gradient = self._gradient(lm, now, pairs, graph)
            if gradient is None:
                break
            for (name, g), unit in zip(gradient.items(), network.units, strict=True):
                square[name] = beta * square[name] + (1 - beta) * g.square()
                least = self.damping**2 * square[name].mean() + torch.finfo(g.dtype).tiny
                now[name] = now[name] - self.rate * unit * g / (square[name] + least).sqrt()
        return now

    def _gradient(self, lm: HFLM, changes: Changes, pairs: Sequence[Pair], graph: bool) -> Changes | None:
        """The gradient of the edit's loss by the changes; None where that is 0."""
        leaves = changes if graph else {name: c.detach().requires_grad_() for name, c in changes.items()}
        total: list[Tensor] | None = None
        for some in batches(lm, pairs):
            with torch.enable_grad():
                loss = SCALE * hinge(lm.target_logits(some, changed(lm, leaves)), some, self.margin).sum()
            if float(loss.detach()) > 0:
                found = torch.autograd.grad(loss, list(leaves.values()), create_graph=graph)
                total = list(found) if total is None else [a + b for a, b in zip(total, found, strict=True)]
        return None if total is None else {n: g / SCALE for n, g in zip(leaves, total, strict=True)}

    # Training

    @override
    def backward(self, lm: HFLM, network: Editable, batch: list[Example], rng: Random) -> Losses:
        size = min(len(batch), 2 ** rng.randrange(len(batch).bit_length()))
        some = compatible([example.sampled(rng, self.follow, self.keep) for example in batch[:size]])
        losses = self._through_steps(lm, network, some)
        kept = self._base(lm, network, some)
        return {**losses, "base": kept, "loss": losses["loss"] + self.c_base * kept}

    def _through_steps(self, lm: HFLM, network: Editable, group: Sequence[Example]) -> Losses:
        """Adds the gradient of what edits are for, through the steps of one."""
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
            base = network.change()
            changes = self.stepped(lm, network, base, [e.asked.ids(lm) for e in group], graph=True)
        asked = [asked for example in group for asked in (example.asked, *example.follow)]
        kept = [asked for example in group for asked in example.keep]
        before = changed(lm, {name: change.detach() for name, change in base.items()})
        losses, g = outer_gradient(lm, changes, asked, kept, c_edit=self.c_edit, c_keep=self.c_keep, before=before)
        with sdpa_kernel(SDPBackend.MATH):
            torch.autograd.backward(list(changes.values()), [g[name] for name in changes])
        return losses

    def _base(self, lm: HFLM, network: Editable, examples: Sequence[Example]) -> float:
        """Adds the gradient of KL(p_model ‖ p_base) at every token of what is not edited; the mean of it."""
        rows = [whole(lm, asked) for example in examples for asked in (*example.keep, *example.old)]
        base, total = network.change(), 0.0
        leaves = {name: change.detach().requires_grad_() for name, change in base.items()}
        gradient = [torch.zeros_like(leaf) for leaf in leaves.values()]
        for some in batches(lm, rows):
            with torch.enable_grad():
                loss = drift(lm, some, changed(lm, leaves)).sum() / len(rows)
                found = torch.autograd.grad(SCALE * loss, list(leaves.values()))
            gradient = [g + self.c_base / SCALE * new for g, new in zip(gradient, found, strict=True)]
            total += float(loss.detach())
        torch.autograd.backward(list(base.values()), gradient)
        return total

    @override
    @torch.no_grad()
    def score(self, lm: HFLM, network: Editable, held: list[Example]) -> Losses:
        """As its base says, of edits of ``batch`` facts at once; ``base`` is what stays right before any edit."""
        base, found = network.change(), list[Losses]()
        for start in range(0, len(held), self.batch):
            group = compatible(held[start : start + self.batch])
            changes = self.stepped(lm, network, base, [example.asked.ids(lm) for example in group])
            found.append(outcome(lm, changes, group))
        some = {**mean_of(found), "base": outcome(lm, base, held)["keep"]}
        return {**some, "score": sum(some[name] for name in ("edit", "follow", "keep", "base")) / 4}

    # Editing

    @override
    def _edit(self, lm: HFLM, edits: Sequence[Edit], state: State, prior: Patch) -> Patch:
        network: Editable = self.loaded(lm, state)
        base = {name: change.cpu() for name, change in network.change().items()}
        mark = _digest(*(change.numpy().tobytes() for change in base.values()))
        based = prior if _holds(prior, mark) else prior + Patch((Delta(base),))
        pairs = self.pairs(lm, edits)
        with based.without_wrappers().applied(lm) as edited, hooks.frozen(lm.model), torch.no_grad():
            zeros = {name: torch.zeros_like(change, device=lm.device) for name, change in base.items()}
            changes = self.stepped(edited, network, zeros, pairs)
        new = based + Patch((Delta({name: change.cpu() for name, change in changes.items()}),))
        ids = _digest(*(edit.id.encode() for edit in [*prior.edits, *edits]))
        return replace(new, memory={**new.memory, MARK: torch.cat([mark, ids])})


def hinge(logits: Tensor, pairs: Sequence[Pair], margin: float) -> Tensor:
    """(n,): for each pair the sum over its tokens of max(0, margin + max_{y≠y*} log p(y) − log p(y*))."""
    logits = at_least_float32(logits)
    targets = torch.tensor([token for _, target in pairs for token in target], device=logits.device)[:, None]
    right = logits.gather(-1, targets)[:, 0]
    other = logits.scatter(-1, targets, -torch.inf).amax(-1)
    by_token = (margin + other - right).relu()
    return torch.stack([some.sum() for some in by_token.split([len(target) for _, target in pairs])])


def whole(lm: HFLM, asked: Asked) -> Pair:
    """A prompt and its answer as a pair whose target is all but the first token; in an encoder-decoder, the answer."""
    prompt, target = asked.ids(lm)
    row = [*prompt, *target]
    return (prompt, target) if lm.seq2seq else (row[:1], row[1:])


def _digest(*parts: bytes) -> Tensor:
    return torch.tensor(list(sha256(b"".join(parts)).digest()[:16]), dtype=torch.uint8)


def _holds(prior: Patch, mark: Tensor) -> bool:
    """Whether a patch holds this base's change already. Raises :class:`BadInput` for another base's."""
    if MARK in prior.memory:
        if torch.equal(prior.memory[MARK][:16], mark):
            return True
        found = "the prior patch holds the base of another state of enn; edit with that state"
    elif any(record["method"] == "enn" for record in prior.meta.get("made", ())):
        found = (
            "the prior patch was saved without its memory, which says what base it holds; save it with memory=True "
            "(no --no-memory)"
        )
    else:
        return False
    raise BadInput(f"{found}, or begin with an empty prior")
