"""RE-Control: the value of hidden states is learned from rewarded responses, and climbed while the model responds."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor
from torch.nn.functional import mse_loss
from typing_extensions import override

from errata.errors import BadInput
from errata.methods.base import Tags
from errata.methods.memory.log import EditRecord
from errata.methods.settings import setting
from errata.methods.state import State
from errata.methods.trained.examples import FEWEST, training_cases
from errata.methods.trained.method import QUICK, TrainedMethod
from errata.methods.trained.representation.rewards import GIVEN, Prompted, Reward, check_name, rewarded
from errata.methods.trained.representation.value import Value, ValueAscent, state_width, value_site
from errata.methods.trained.training import Losses
from errata.model.hf import HFLM
from errata.model.passes import budgeted
from errata.model.reading import Pair
from errata.patch.parts import output_replaced
from errata.patch.patch import Patch
from errata.types import Case, Edit


@dataclass(frozen=True)
class Trajectory:
    """A response as the states that it goes through, and its reward."""

    subject: str
    states: Tensor
    """From the prompt's last token to the response's. (t, d)"""
    reward: float
    """In standard deviations from the mean of those trained on."""


@dataclass(frozen=True, kw_only=True)
class REControl(TrainedMethod):
    """A value head V over final hidden states, climbed by gradient while a response is decoded.

    For changes of manner that a reward of the whole response can tell ("shorter", "names Oslo"), as
    :class:`~errata.methods.steering.Steering` is for those that a contrast can: it acts on every prompt, and an edit
    switches it on. ``prepare`` takes prompts, or cases, of whose edits the prompts are taken; it samples responses,
    rewards them, and trains V by Σ_t (V(h_t) − sg V(h_{t+1}))² + (V(h_T) − r)² (Kong et al., section 4.2), r in
    standard deviations. The released code does not detach the target, takes the first valid token for the last, and
    climbs another network than it trained; here all three are as in the paper.
    """

    name: ClassVar[str] = "re-control"
    family: ClassVar[str] = "representation"
    paper: ClassVar[str] = "Kong et al. 2024, RE-Control, arXiv:2406.05954"
    stores: ClassVar[str] = "a value head, climbed at every token of a response; no weight changes"
    tags: ClassVar[Tags] = Tags(
        quick={**QUICK, "reward": "shorter", "responses": 24, "length": 6, "climbs": 3},
        reads_context=True,  # what a reward asks for need not be an edit's target
        runs_model=False,
        prepares_with="cases",
    )
    when_editing: ClassVar[tuple[str, ...]] = ("climbs", "eta")
    validates_on: ClassVar[int] = 256

    reward: str = setting("target", 'what is rewarded: "target", "shorter", "contains:WORD" or "given", a function')
    responses: int = setting(2000, "sampled in all; paper: one for each of some 100,000 prompts", least=FEWEST)
    length: int = setting(32, "tokens of a response at most; paper: 128", above=0)
    width: int | None = setting(None, "of V's two hidden layers: the model's; so is the paper's 4,096", above=0)
    climbs: int = setting(30, "steps at each token: released code")
    eta: float = setting(1.0, "η, in units of the mean square of a state's entries; released code: 1.0", above=0)
    steps: int = setting(600, "of training at most; paper: 100 epochs", above=0)
    lr: float = setting(1e-3, "paper: 1e-4 to 1e-3", above=0)
    batch: int = setting(64, "responses of a step; paper: 512", above=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name(self.reward)

    @override
    def resolve(self, lm: HFLM, state: State) -> Self:
        return self if self.width is not None else replace(self, width=state_width(lm))

    @override
    def network(self, lm: HFLM) -> Value:
        assert self.width is not None
        return Value(state_width(lm), self.width).to(lm.device)

    # Responses

    @override
    def prepare(self, lm: HFLM, data: Iterable[Any] | None = None, *, reward: Reward | None = None) -> State:
        """The trained value head, from prompts (texts) or cases, else from the cases that go with the model.

        ``reward`` (prompt, response) -> number is for the setting ``reward="given"``; nothing is cached then. Raises
        :class:`BadInput` for fewer than FEWEST prompts, and where all responses are rewarded alike.
        """
        if (reward is None) == (self.reward == GIVEN):
            raise BadInput(
                'a function as reward goes with the setting: method("re-control", reward="given") and '
                f"prepare(lm, data, reward=f); the setting is {self.reward!r}"
            )
        prompts = [replace(asked, given=reward) for asked in self._prompts(lm, data)]
        return self.prepared(lm, prompts, cached=reward is None)

    def _prompts(self, lm: HFLM, data: Iterable[Any] | None) -> list[Prompted]:
        some = training_cases(lm, self.name, None) if data is None else list(data)
        found: dict[Prompted, None] = {}
        for one in some:
            if isinstance(one, str):
                found[Prompted(one, one)] = None
            elif isinstance(one, Case):
                found |= {Prompted(e.subject, e.prompt, e.target_new): None for e in one.edits}
            else:
                raise BadInput(f"re-control is prepared with prompts or cases; found {type(one).__name__}: {one!r}")
        if self.reward == "target" and any(asked.target is None for asked in found):
            raise BadInput('the reward "target" is for cases; for prompts set reward="shorter" or "contains:WORD"')
        if len(found) < FEWEST:
            raise BadInput(f"re-control is prepared with at least {FEWEST} different prompts; found {len(found)}")
        return list(found)

    @override
    def _train(self, lm: HFLM, rest: Sequence[Any], held: Sequence[Any], content: Any) -> State:
        each = -(-self.responses // (len(rest) + len(held)))
        learned, checked = (self._responded(lm, some, each) for some in (rest, held))
        rewards = torch.tensor([one.reward for one in learned], dtype=torch.float64)
        mean, std = float(rewards.mean()), float(rewards.std())
        if std == 0:
            raise BadInput(
                f"each of the {len(learned)} responses has the reward {mean:g} ({self.reward}), so there is nothing to "
                "learn; choose another reward, or prompts that the model answers in several ways"
            )
        learned, checked = (
            [replace(one, reward=(one.reward - mean) / std) for one in some] for some in (learned, checked)
        )
        state = super()._train(lm, learned, checked, content)
        what = f"a value head trained on {len(learned)} responses"
        return replace(state, info={**state.info, "what": what, "rewards": {"mean": mean, "std": std}})

    def _responded(self, lm: HFLM, prompts: Sequence[Prompted], each: int) -> list[Trajectory]:
        """Sampled responses to each prompt, ``each`` of them."""
        asked = [one for one in prompts for _ in range(each)]
        sampled = lm.sample([one.prompt for one in asked], self.length, seed=self.seed)
        pairs: list[Pair] = []
        for one, ids in zip(asked, sampled, strict=True):
            prompt = lm.tokens.prompt(one.prompt)
            whole = [*ids, lm.tokens.fill]  # the last is not fed: its place is that of the response's last token
            pairs.append((prompt, whole if lm.tokens.fits(prompt, whole) else ids))
        return [
            Trajectory(one.subject, states, rewarded(self.reward, one, lm.tokens.continuation(pair[0], ids)))
            for one, pair, ids, states in zip(asked, pairs, sampled, final_states(lm, pairs), strict=True)
        ]

    # Training

    @override
    def before_training(self, lm: HFLM, network: Value, examples: Sequence[Trajectory]) -> None:
        network.s.fill_(float(torch.cat([one.states for one in examples]).square().mean().sqrt()))

    @override
    def backward(self, lm: HFLM, network: Value, batch: list[Trajectory], rng: Random) -> Losses:
        states = torch.cat([one.states for one in batch]).to(lm.device)
        with torch.enable_grad():
            values = network(states)
            loss = mse_loss(values, td_targets(values, batch))
        loss.backward()
        return {"loss": float(loss.detach())}

    @override
    @torch.no_grad()
    def score(self, lm: HFLM, network: Value, held: list[Trajectory]) -> Losses:
        """``score``: of the variance of the rewards, the share that V explains at a response's tokens, on average."""
        lengths = [len(one.states) for one in held]
        values = network(torch.cat([one.states for one in held]).to(lm.device))
        rewards = torch.tensor([one.reward for one in held], device=lm.device)
        errors = torch.stack([(v - r).square().mean() for v, r in zip(values.split(lengths), rewards, strict=True)])
        return {"score": 1 - float(errors.mean() / rewards.var(correction=0).clamp(min=1e-12))}

    # Editing

    @override
    def _edit(self, lm: HFLM, edits: Sequence[Edit], state: State, prior: Patch) -> Patch:
        value = {name: t.cpu() for name, t in cast(Value, self.loaded(lm, state)).state_dict().items()}
        log = tuple(EditRecord.of(edit) for edit in edits)
        new = ValueAscent(value_site(lm), lm.seq2seq, self.reward, self.climbs, self.eta, log, **value)
        old = next((part for part in prior.of_kind(ValueAscent) if part.joined_by(new)), None)
        return prior.swap(new, new) if old is None else prior.swap(old, old.extended(log))


def td_targets(values: Tensor, batch: Sequence[Trajectory]) -> Tensor:
    """What each state's value (k,) shall be: the value of the response's next state, of its last one the reward.

    Detached: values follow those behind them, and not the other way round. (k,)
    """
    next_one = values.detach().roll(-1)
    last = torch.tensor([len(one.states) for one in batch]).cumsum(0) - 1
    rewards = torch.tensor([one.reward for one in batch])
    return next_one.index_put((last.to(values.device),), rewards.to(values))


@torch.no_grad()
def final_states(lm: HFLM, pairs: Sequence[Pair]) -> list[Tensor]:
    """The final hidden states that predict the target's tokens of each pair. (t, d) each, float32 on the CPU."""
    found: list[Any] = [None] * len(pairs)
    for batch in budgeted([len(p) + len(t) for p, t in pairs], lm.budget):
        some = [pairs[i] for i in batch]

        def keep(call: Any, x: Tensor, y: Tensor, some: Sequence[Pair] = some, batch: Sequence[int] = batch) -> Tensor:
            for row, (i, (prompt, target)) in enumerate(zip(batch, some, strict=True)):
                first = 0 if lm.seq2seq else len(prompt) - 1
                found[i] = y[row, first : first + len(target)].float().cpu()
            return y

        with output_replaced(lm, value_site(lm), keep):
            lm.target_logits(some)
    return found
