"""A network that reads an edit's text and says where in a weight its gradient goes, as KE and SLAG train it."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm
from torch.nn.utils.parametrizations import weight_norm
from typing_extensions import override

from errata.methods.settings import setting
from errata.methods.state import State
from errata.methods.trained.examples import Example
from errata.methods.trained.gradient.changes import delta_of, dense
from errata.methods.trained.gradient.gradients import Gradients, TokenGradients, token_gradients
from errata.methods.trained.mlp import MLPEditor
from errata.methods.trained.objective import Weights, mean_of, outcome
from errata.methods.trained.training import Losses
from errata.model import hooks
from errata.model.hf import HFLM
from errata.model.passes import at_least_float32
from errata.model.weights import plain, weight_shape
from errata.patch.low_rank import LowRank, Weight
from errata.patch.patch import Patch
from errata.types import Edit

WIDTHS = 1 / 6, 4 / 3, 1 / 6  # LSTM (each direction), condition and hidden layer, by the width of BERT: 128, 1024, 128


class Conditioned(nn.Module):
    """A condition and the gradient of one weight -> its change.

    ΔW = σ(η) (∇W ⊙ softmax(γ) αᵀ + softmax(δ) βᵀ). In units in which the network of any model begins alike: ∇W by its
    mean length, softmax by 1 / out, and ΔW by ``share`` of W's length; α is about −1 and β about 0 before anything is
    learned, so that it descends.
    """

    def __init__(self, shape: tuple[int, int], norm: Tensor, condition: int, hidden: int, share: float) -> None:
        super().__init__()
        self.shape = shape
        out, into = shape
        self.inner = weight_norm(nn.Linear(condition, hidden))
        self.outer = weight_norm(nn.Linear(hidden, 2 * (out + into) + 1))
        self.register_buffer("unit", share * norm)
        self.register_buffer("lengths", torch.zeros(2))  # count and sum of ‖∇W‖ in training
        self.unit: Tensor
        self.lengths: Tensor

    @torch.no_grad()
    def observe(self, length: float) -> None:
        """Counts the length of a gradient."""
        self.lengths += torch.tensor([1.0, length]).to(self.lengths)

    def forward(self, condition: Tensor, g: TokenGradients) -> LowRank:
        """The change, of a rank more than the gradient has tokens. (out, in)"""
        out, into = self.shape
        alpha, gamma, beta, delta, eta = self.outer(self.inner(condition).tanh()).split([into, out, into, out, 1])
        count, total = self.lengths.unbind()
        length = total / count if count > 0 else total.new_ones(())
        scale = 2 * eta.sigmoid() * self.unit
        masked = (g.delta * out * gamma.softmax(-1) / length).T, g.u * (alpha - 1)  # (out, k), (k, in)
        free = (out**0.5 * delta.softmax(-1))[:, None], beta[None] / into**0.5  # (out, 1), (1, in)
        return LowRank(scale * torch.cat([masked[0], free[0]], 1), torch.cat([masked[1], free[1]]))


class TextNetwork(nn.Module):
    """The text of an edit -> a condition, by an LSTM that reads both ways; a condition -> changes of weights."""

    def __init__(self, lm: HFLM, names: Sequence[str], widths: tuple[int, int, int], share: float) -> None:
        super().__init__()
        lstm, condition, hidden = widths
        self.lstm = nn.LSTM(_embedded(lm, "a").shape[-1], lstm, batch_first=True, bidirectional=True)
        self.linear = nn.Linear(2 * lstm, condition)
        norms = [at_least_float32(plain(lm.model, name, "cannot be trained").detach()).norm() for name in names]
        self.heads = nn.ModuleList(
            Conditioned(weight_shape(lm.model, name), norm, condition, hidden, share)
            for name, norm in zip(names, norms, strict=True)
        )
        self.names = list(names)

    def condition(self, lm: HFLM, edit: Edit) -> Tensor:
        """What is read of an edit. (condition,)"""
        read = _embedded(lm, text_of(edit)).to(self.linear.weight)
        ends = self.lstm(read[None])[1][0]  # (2, 1, lstm)
        return self.linear(ends.flatten()).tanh()

    def head(self, name: str) -> Conditioned:
        """The part of a weight."""
        return cast(Conditioned, self.heads[self.names.index(name)])


@dataclass(frozen=True, kw_only=True)
class TextEditor(MLPEditor):
    """ΔW = σ(η) (∇W ⊙ softmax(γ) αᵀ + softmax(δ) βᵀ), all five from the edit's text ``old >> new || prompt``."""

    family: ClassVar[str] = "gradients"
    validates_on: ClassVar[int] = 32

    steps: int = setting(80, "of training at most; KE's released code: 200,000", above=0)
    batch: int = setting(4, "examples of a step", above=0)
    lr: float = setting(1e-3, "Adam's; KE's released code: RMSprop's 3e-4", above=0)
    check_every: int = setting(40, "steps between validations, each of which writes a checkpoint", above=0)
    share: float = setting(0.007, "of a weight's length that a change has before anything is learned", above=0)
    lstm: int | None = setting(None, "width in each direction: the model's / 6; KE: 128 at 768", above=0)
    condition: int | None = setting(None, "width of the condition: 4/3 of the model's; KE: 1,024 at 768", above=0)
    hidden: int | None = setting(None, "of a weight's hidden layer: the model's / 6; KE: 128 at 768", above=0)

    @override
    def resolve(self, lm: HFLM, state: State) -> Self:
        width = _embedded(lm, "a").shape[-1]
        given = zip((self.lstm, self.condition, self.hidden), WIDTHS, strict=True)
        lstm, condition, hidden = (max(1, round(part * width)) if size is None else size for size, part in given)
        return replace(super().resolve(lm, state), lstm=lstm, condition=condition, hidden=hidden)

    @override
    def network(self, lm: HFLM) -> nn.Module:
        assert self.lstm is not None and self.condition is not None and self.hidden is not None
        widths = self.lstm, self.condition, self.hidden
        return TextNetwork(lm, self.names(lm), widths, self.share).to(lm.device)

    def changes(self, lm: HFLM, network: TextNetwork, edit: Edit, gradients: Gradients) -> dict[str, LowRank]:
        """The change of each weight for an edit, inside the graph of the network's parameters."""
        condition = network.condition(lm, edit)
        return {name: network.head(name)(condition, g) for name, g in gradients.items()}

    def gradients(self, lm: HFLM, edits: Sequence[Edit], weights: Weights | None = None) -> Gradients:
        """Token gradients of the edits' own prompts."""
        return token_gradients(lm, self.pairs(lm, edits), self.names(lm), weights)

    @abstractmethod
    def edited(self, lm: HFLM, network: TextNetwork, edits: Sequence[Edit]) -> dict[str, Weight]:
        """The change of each weight for all edits."""

    def observe(self, network: TextNetwork, gradients: Gradients) -> None:
        """Counts the lengths of an edit's gradients, in training alone."""
        for name, g in gradients.items():
            network.head(name).observe(LowRank(g.delta.T, g.u).norm())

    @override
    @torch.no_grad()
    def score(self, lm: HFLM, network: Any, held: list[Example]) -> Losses:
        return mean_of([outcome(lm, dense(self.edited(lm, network, [e.edit])), [e]) for e in held])

    @override
    def _edit(self, lm: HFLM, edits: Sequence[Edit], state: State, prior: Patch) -> Patch:
        network: TextNetwork = self.loaded(lm, state)
        with prior.without_wrappers().applied(lm) as edited, hooks.frozen(lm.model), torch.no_grad():
            changes = self.edited(edited, network, edits)
        return prior + Patch((delta_of(changes),))


def text_of(edit: Edit) -> str:
    """``old >> new || prompt``; what was right, where the edit does not say it, is left out."""
    old = "" if edit.target_true is None else edit.target_true.strip()
    return f"{old} >> {edit.target_new.strip()} || {edit.prompt}"


@torch.no_grad()
def _embedded(lm: HFLM, text: str) -> Tensor:
    """The model's own embeddings of a text, normalised. (t, width), float32 or better"""
    embed: Any = lm.model.get_submodule(lm.sites.embed)
    vectors = embed(torch.tensor([lm.tokens.ids(text)], device=lm.device))[0]
    vectors = at_least_float32(vectors)
    return layer_norm(vectors, vectors.shape[-1:])
