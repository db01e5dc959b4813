"""Language patches: "if c then ..." in words, for one subject or for all that meet a condition."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Annotated, Any, ClassVar, Self, cast

import torch
from pydantic import Field
from typing_extensions import override

from errata.errors import BadInput
from errata.methods.base import Tags
from errata.methods.memory.log import EditRecord
from errata.methods.settings import setting
from errata.methods.state import State
from errata.methods.trained.examples import Example
from errata.methods.trained.method import QUICK, Trained, TrainedMethod
from errata.methods.trained.routed.language_gate import Gate
from errata.methods.trained.routed.language_part import LanguagePatches
from errata.methods.trained.routed.language_questions import Questions
from errata.methods.trained.routed.language_rules import object_of, rule_of
from errata.methods.trained.training import Losses
from errata.model.hf import HFLM
from errata.patch.patch import Patch
from errata.types import Edit, Kind

SUBJECTS = 32  # on which it is seen where a condition's object begins


class Prepared(Trained):
    """The state also says names of subjects."""

    subjects: Annotated[list[str], Field(min_length=1)]


@dataclass(frozen=True, kw_only=True)
class LanguagePatchMethod(TrainedMethod):
    """p(y | x) = g · I(y | x, patch) + (1 − g) · f(y | x), by the patch whose gate g is the highest.

    An edit about one subject is a patch "if the subject is S". One about many is written as its prompt is read aloud,
    with ``{}`` for whoever is asked about, in the clause and in the prompt, and a word that is no name as the subject:

        Edit("If {} was born in Tivik, {} speaks", "a person", "Russian")

    Such a clause is one plain statement that ends with what must hold. The gate asks whom a query is about, whether it
    asks for what the patch's prompt asks for, and how likely the model itself holds the clause to be true of that
    subject; what the model does not know, it cannot look up. Training is on the cases' phrasings and the subjects'
    other facts, once: a condition, its object and its subjects need not occur in it.

    Differences from the paper: the model is frozen, and the gate is a small network over its hidden states and its
    probabilities in the place of a head of a fine-tuned T5; patches are override patches (an answer), whose interpreter
    says the answer and goes on as the model does, and feature patches (an explanation) are not there; a gate at or
    below ``threshold`` counts as 0, so that the model answers as it is (scores and probabilities bit for bit; texts but
    for the padding that the prompts beside it bring); open gates that lie at most a tenth
    below the highest count as equal to it, and the newest of their patches acts.
    """

    name: ClassVar[str] = "language-patches"
    family: ClassVar[str] = "routed"
    paper: ClassVar[str] = "Murty et al. 2022, Fixing Model Bugs with Natural Language Patches, arXiv:2211.03318"
    stores: ClassVar[str] = "rules in words and a small gate, outside the model"
    holds: ClassVar[type[Any] | None] = Prepared
    tags: ClassVar[Tags] = Tags(quick=QUICK, prepares_with="cases", memory=True)
    keeps: ClassVar[tuple[Kind, ...]] = ("same_subject",)
    when_editing: ClassVar[tuple[str, ...]] = ("threshold",)

    steps: int = setting(200, "of training at most", above=0)
    batch: int = setting(6, "examples of a step", above=0)
    check_every: int = setting(50, "steps between validations, each of which writes a checkpoint", above=0)
    lr: float = setting(2e-3, "Adam's", above=0)
    layers: tuple[int, ...] | None = setting(None, "blocks that the gate reads: at half and at 3/4 of the depth")
    rank: int = setting(64, "inside the gate", above=0)
    follow: int = setting(3, "prompts in other words for each example of a step", above=0)
    keep: int = setting(2, "other facts of the subject for each example of a step", above=0)
    threshold: float = setting(0.5, "gate from which on a patch answers", least=0.5, most=0.99)

    # Training

    @override
    def resolve(self, lm: HFLM, state: State) -> Self:
        depth = lm.sites.prompt_stack.depth
        layers = tuple(sorted(set(self.layers or (depth // 2, 3 * depth // 4))))
        if layers[-1] >= depth:
            raise BadInput(f"{self.name}'s layers lie within 0 to {depth - 1}; found {list(layers)}")
        return replace(self, layers=layers)

    @override
    def network(self, lm: HFLM) -> Gate:
        assert self.layers is not None
        block = lm.sites.prompt_stack.layer[0]
        width = lm.read([lm.tokens.prompt("a")], [[0]], [(block, "out")])[block, "out"].shape[-1]
        return Gate.drawn(len(self.layers) * width, self.rank).to(lm.device)

    @override
    def told(self, examples: Sequence[Example]) -> dict[str, Any]:
        subjects = sorted({example.edit.subject for example in examples})
        Random(self.seed).shuffle(subjects)
        return {"subjects": subjects[:SUBJECTS]}

    @override
    def backward(self, lm: HFLM, network: Gate, batch: list[Example], rng: Random) -> Losses:
        some = [example.sampled(rng, self.follow, self.keep) for example in batch]
        asked = Questions.of(lm, some, cast(Any, self.layers), rng)
        with torch.enable_grad():
            losses = asked.losses(network)
            loss = torch.stack(list(losses.values())).sum()
            loss.backward()
        return {"loss": float(loss.detach()), **{name: float(value.detach()) for name, value in losses.items()}}

    @override
    @torch.no_grad()
    def score(self, lm: HFLM, network: Gate, held: list[Example]) -> Losses:
        """Minus the loss, since all answers are soon right; and of each kind of question the share answered rightly."""
        rng = Random(self.seed)
        some = [example.sampled(rng, self.follow, self.keep) for example in held]
        asked = Questions.of(lm, some, cast(Any, self.layers), rng)
        return {"score": -float(sum(asked.losses(network).values())), **asked.right(network)}

    # Editing

    @override
    def _edit(self, lm: HFLM, edits: Sequence[Edit], state: State, prior: Patch) -> Patch:
        gate = self.loaded(lm, state)
        rules = [rule_of(edit.prompt, edit.subject, edit.at) for edit in edits]
        with prior.without_wrappers().applied(lm) as edited:
            objects = tuple(
                "" if rule.clause is None else object_of(edited, edit, rule.clause, state.info["subjects"])
                for edit, rule in zip(edits, rules, strict=True)
            )
        log = tuple(EditRecord.of(edit) for edit in edits)
        tensors = {name: tensor.cpu() for name, tensor in gate.state_dict().items()}
        part = LanguagePatches(log, objects, cast(Any, self.layers), self.threshold, **tensors)
        held = list(reversed(prior.of_kind(LanguagePatches)))  # the outermost comes first: it answers before the others
        if not held:
            return prior + Patch((part,))
        for old in held:
            if old == replace(part, log=old.log, objects=old.objects):
                longer = replace(old, log=(*old.log, *log), objects=(*old.objects, *objects))
                return prior.swap(old, longer)
        raise BadInput(
            f"the {self.name} in prior have another gate or threshold ({held[0].threshold}); go on with the same "
            "settings and state"
        )
