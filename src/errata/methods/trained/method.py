"""What all trained methods share: ``prepare`` trains a network on examples of edits, and caches what came out."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from random import Random
from typing import Any, ClassVar, cast

from torch import Tensor, nn
from typing_extensions import TypedDict, override

from errata.errors import BadInput
from errata.files import cache_file, check_writable
from errata.methods.base import Method, Tags
from errata.methods.isolation import frozen_rng
from errata.methods.settings import close, setting
from errata.methods.state import State, cached_state
from errata.methods.trained.examples import KEEP, Stream, divided, examples_of, training_cases
from errata.methods.trained.training import Losses, Schedule, train
from errata.model import hooks
from errata.model.hf import HFLM
from errata.model.peak import PeakMemory
from errata.types import Kind

NETWORK = "network/"  # before the names of a state's tensors
FORM = 1  # of what is trained: raised where the same settings come to train something else
QUICK: dict[str, Any] = {"steps": 4, "batch": 2, "check_every": 2}  # settings for tests: seconds on a tiny model


class Trained(TypedDict):
    """What the state of a trained method says; its tensors are the network's."""

    method: str
    trained_with: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class TrainedMethod(Method):
    """A method whose network is trained on examples of edits, with early stop on the examples of held-out subjects.

    A sub-class says its network, how a batch adds gradients to it, what counts on held-out examples, and how an edit is
    made with it. The training shows its progress in the log, goes on from its checkpoint after an interruption, and is
    cached by its content: model, settings, examples. ``state.info["training"]`` says what it cost.
    """

    family: ClassVar[str] = "trained"
    needs_prepare: ClassVar[bool] = True
    holds: ClassVar[type[Any] | None] = Trained
    tags: ClassVar[Tags] = Tags(quick=QUICK, prepares_with="cases")
    needs_follow: ClassVar[bool] = True  # examples have other words for the edit
    needs_keep: ClassVar[bool] = True  # examples have prompts that must stay
    keeps: ClassVar[tuple[Kind, ...]] = KEEP  # kinds of prompts that must stay which training reads
    when_editing: ClassVar[tuple[str, ...]] = ()  # settings that training does not depend on
    validates_on: ClassVar[int] = 48  # held-out examples at most
    rates: ClassVar[tuple[tuple[str, str], ...]] = ()  # (part of a parameter's name, the setting of its learning rate)

    steps: int = setting(1500, "of training at most; papers: 100,000 and more, with learning rates to match", above=0)
    batch: int = setting(10, "examples of a step", above=0)
    lr: float = setting(1e-4, "Adam's", above=0)
    warmup: float = setting(0.1, "share of the steps in which the learning rate rises; then it falls to 0", most=1)
    clip: float = setting(1.0, "largest norm of a step's gradient", above=0)
    check_every: int = setting(100, "steps between validations, each of which writes a checkpoint", above=0)
    patience: int = setting(3, "validations without a better score after which training ends", above=0)
    held_out: float = setting(0.1, "share of the subjects that validation is on", above=0, most=0.5)

    @abstractmethod
    def network(self, lm: HFLM) -> nn.Module:
        """What is trained, as it is before that; settings of ``self`` are resolved. float32, on the model's device."""

    def before_training(self, lm: HFLM, network: Any, examples: Sequence[Any]) -> None:
        """What the network takes from the examples before it is trained on them (how large its inputs are, say)."""

    @abstractmethod
    def backward(self, lm: HFLM, network: Any, batch: list[Any], rng: Random) -> Losses:
        """Adds a batch's gradients to the network's parameters. The loss, as ``loss``, and its parts."""

    @abstractmethod
    def score(self, lm: HFLM, network: Any, held: list[Any]) -> Losses:
        """``score`` of the network on held-out examples, higher is better, and its parts."""

    def told(self, examples: Sequence[Any]) -> dict[str, Any]:
        """What the state says besides, as JSON: of the training examples, what an edit reads of them."""
        return {}

    @override
    def prepare(self, lm: HFLM, data: Iterable[Any] | None = None) -> State:
        """The trained network, from the cases given, else from those that go with the model.

        Raises :class:`BadInput` for too few cases or such as lack what the method needs, and :class:`Refused` where the
        loss is not finite.
        """
        cases = training_cases(lm, self.name, data)
        needs: Any = {"follow": self.needs_follow, "keep": self.needs_keep, "kinds": self.keeps}
        return self.prepared(lm, examples_of(lm, self.name, cases, **needs))

    def prepared(self, lm: HFLM, examples: Sequence[Any], *, cached: bool = True) -> State:
        """The network that is trained on these examples (dataclasses).

        Without ``cached`` nothing is written: for what content cannot tell (a function of the caller's).
        """
        rest, held = divided(examples, self.held_out, self.seed)
        resolved = self.resolve(lm, State())
        content = [self.name, FORM, lm.fingerprint, str(lm.dtype), resolved.trained_with, [asdict(e) for e in examples]]
        content += lm.tokens.turn  # in a chat the same examples are other prompts

        def make() -> State:
            return resolved._train(lm, rest, held, content if cached else None)

        if not cached:
            return make()
        return cached_state(self.name, content, make, lambda state: self.check_state(lm, state))

    @property
    def per_step(self) -> int:
        """Examples that a step of training gets."""
        return self.batch

    @property
    def trained_with(self) -> dict[str, Any]:
        """The settings that training depends on."""
        return {name: value for name, value in self.settings.items() if name not in self.when_editing}

    def _train(self, lm: HFLM, rest: Sequence[Any], held: Sequence[Any], content: Any) -> State:
        with frozen_rng(self.seed):
            network = self.network(lm)
        schedule = Schedule(
            **{name: getattr(self, name) for name in ("steps", "lr", "warmup", "clip", "check_every", "patience")},
            rates={part: getattr(self, name) for part, name in self.rates},
        )
        file = None if content is None else cache_file(f"{self.name}-training", content)
        try:
            if file is not None:
                check_writable(file)
        except (BadInput, OSError):  # of which cached_state has warned
            file = None
        memory = PeakMemory(lm)
        with hooks.frozen(lm.model):
            self.before_training(lm, network, rest)
            some = Stream(held, self.seed).batch(0, min(self.validates_on, len(held)))
            trainee = _Trainee(self, lm, network, Stream(rest, self.seed), some)
            progress = train(trainee, schedule, file, self.name)
        info = {
            "model": {"name": lm.name, "fingerprint": lm.fingerprint},
            "method": self.name,
            "what": f"a network trained on {len(rest)} examples",
            "trained_with": self.trained_with,
            **self.told(rest),
            "training": {
                "examples": len(rest),
                "held_out": len(held),
                "steps": progress.step,
                "best_step": progress.best_step,
                "score": progress.best,
                "seconds": round(progress.seconds, 3),
                "peak_mib": memory.mib(),
                "history": progress.history,
            },
        }
        tensors = {f"{NETWORK}{name}": value.cpu() for name, value in network.state_dict().items()}
        return State(tensors, info)

    @override
    def check_state(self, lm: HFLM, state: State) -> None:
        super().check_state(lm, state)
        state.check_for(method=self.name)
        for name, value in self.resolve(lm, state).trained_with.items():
            found = state.info["trained_with"].get(name)
            if not close(found, value):
                raise BadInput(
                    f"this state was trained with {name} = {found}, and the method has {value}: "
                    f"errata.method({self.name!r}, {name}={found!r}), or prepare anew"
                )
        self.resolve(lm, state).loaded(lm, state)

    def loaded(self, lm: HFLM, state: State) -> Any:
        """The trained network of a state. Raises :class:`BadInput` where its tensors are of another one."""
        return state.once(f"network on {lm.device}", lambda: self._loaded(lm, state.tensors))

    def _loaded(self, lm: HFLM, tensors: Any) -> nn.Module:
        with frozen_rng(self.seed):
            network = self.network(lm)
        found = {n.removeprefix(NETWORK): cast(Tensor, t) for n, t in tensors.items() if n.startswith(NETWORK)}
        for name, expected in network.state_dict().items():
            if name not in found:
                raise BadInput(f"this state holds no {NETWORK}{name}; make one with {self.name}'s prepare")
            if found[name].shape != expected.shape or found[name].dtype != expected.dtype:
                raise BadInput(
                    f"of this state {NETWORK}{name} is {_form(found[name])}, expected {_form(expected)}; prepare anew"
                )
        network.load_state_dict({name: found[name] for name in network.state_dict()})
        return network.requires_grad_(False).eval()


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of the shape {tuple(tensor.shape)}"


@dataclass
class _Trainee:
    method: TrainedMethod
    lm: HFLM
    network: nn.Module
    stream: Stream[Any]
    held: list[Any]

    def backward(self, number: int) -> Losses:
        batch = self.stream.batch(number, self.method.per_step)
        return self.method.backward(self.lm, self.network, batch, self.stream.rng(number))

    def score(self) -> Losses:
        return self.method.score(self.lm, self.network, self.held)
