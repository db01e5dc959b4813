"""REMEDI: an affine map from how a statement's attribute is represented to a direction at the subject."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from typing_extensions import override

from errata.errors import BadInput, Unsupported
from errata.methods.base import Tags
from errata.methods.memory.log import EditRecord
from errata.methods.memory.reworded import reworded_by
from errata.methods.settings import setting
from errata.methods.state import State
from errata.methods.trained.examples import Asked, Example
from errata.methods.trained.method import QUICK, TrainedMethod
from errata.methods.trained.objective import SCALE, nll
from errata.methods.trained.representation.directions import EntityDirections, added
from errata.methods.trained.training import Losses
from errata.model.hf import HFLM
from errata.model.passes import at_least_float32, budgeted, float64_device
from errata.model.reading import Pair
from errata.patch.patch import Patch
from errata.types import Edit

RIDGE = 0.01  # of the mean variance of an attribute's entries


@dataclass(frozen=True)
class Mentioned:
    """A prompt's ids in two parts, the first of which ends with its subject, and the ids that shall answer it."""

    example: int
    """The example that it is of."""
    before: Sequence[int]
    behind: Sequence[int]
    target: Sequence[int]
    prior: int | None
    """The first id of the answer that the edit replaces, where one is known and it is another."""

    @property
    def pair(self) -> Pair:
        """What is predicted from the subject on: the rest of the prompt and the answer."""
        return self.before, [*self.behind, *self.target]


class Affine(nn.Module):
    """h -> F h + b, written as s (G W (h − m) + c): W (h − m) has unit covariance over the attributes trained on, and s
    is the root mean square of their entries.

    G and c are what is trained. Attributes are alike but for a few directions, on which all depends; in these
    coordinates each is learned as fast as any other, and a learning rate means the same for models with small and with
    large hidden states. Nothing is added at first.
    """

    def __init__(self, d: int) -> None:
        super().__init__()
        self.g, self.c = nn.Parameter(torch.zeros(d, d)), nn.Parameter(torch.zeros(d))
        self.register_buffer("w", torch.eye(d))
        self.register_buffer("m", torch.zeros(d))
        self.register_buffer("s", torch.ones(1))
        self.w: Tensor
        self.m: Tensor
        self.s: Tensor

    def observe(self, h: Tensor) -> None:
        """Takes m, W and s from the attributes (n, d) that will be trained on."""
        h = h.to(float64_device(h.device)).double()
        self.s.fill_(float(h.square().mean().sqrt()))
        self.m.copy_(h.mean(0))
        values, vectors = torch.linalg.eigh((h - h.mean(0)).T @ (h - h.mean(0)) / len(h))
        ridge = max(RIDGE, h.shape[1] / len(h) - 1)  # more where there are fewer examples than coordinates
        values = values + ridge * values.mean()  # directions that hardly vary stay small
        self.w.copy_((vectors / values.clamp(min=torch.finfo(values.dtype).tiny).sqrt()) @ vectors.T)

    def forward(self, h: Tensor) -> Tensor:
        """(n, d), as ``h`` is."""
        return self.s * ((h - self.m) @ self.w.T @ self.g.T + self.c)


@dataclass(frozen=True, kw_only=True)
class REMEDI(TrainedMethod):
    """h_entity ← β h_entity + α (F h_attribute + b), at a subject's last token, while the prompt is read.

    h_attribute is the mean over the tokens that follow the subject in the edit's statement ("was born in Oslo").
    Trained with −log p(new) − λ_prior log(1 − p(old)) + λ_kl KL(before ‖ after), the last over the prompt's tokens from
    the subject on, of which its last is left out (Hernandez, Li and Andreas, section 3). KL and best parameters are
    those of the text: the released code keeps the KL of a batch's last row, and its best parameters by reference.
    """

    name: ClassVar[str] = "remedi"
    family: ClassVar[str] = "representation"
    paper: ClassVar[str] = "Hernandez, Li and Andreas 2024, REMEDI, arXiv:2304.00740"
    stores: ClassVar[str] = "a direction for each edit, added at its subject in a prompt; no weight changes"
    needs_keep: ClassVar[bool] = False
    tags: ClassVar[Tags] = Tags(
        quick={**QUICK, "steps": 20, "batch": 4, "check_every": 10, "lr": 0.05},
        reads_context=True,  # the direction is read from a statement, which a random model does not understand
        prepares_with="cases",
    )

    layer: int | None = setting(
        None, "the block at whose output: a quarter up; paper: 1 of 28 for CounterFact, 12 of 28 for its other data"
    )
    attribute_layer: int | None = setting(
        None, "the block at whose output an attribute is read: 1 of 28, as the paper's for CounterFact"
    )
    alpha: float = setting(1.0, "paper: strength of the direction")
    beta: float = setting(0.3, "what is kept of the subject; paper: 1")
    lam_prior: float = setting(1.0, "paper, for CounterFact: weight of the old answer's loss")
    lam_kl: float = setting(10.0, "paper: weight of the KL")
    follow: int = setting(1, "prompts of an example in a step, drawn; paper", above=0)
    steps: int = setting(450, "of training at most: four rounds of the bundled model's cases; paper: 20", above=0)
    check_every: int = setting(50, "steps between validations, each of which writes a checkpoint", above=0)
    lr: float = setting(1e-2, "in the coordinates of Affine; paper: 1e-3 in its own", above=0)
    batch: int = setting(16, "paper", above=0)

    @override
    def resolve(self, lm: HFLM, state: State) -> Self:
        if lm.seq2seq:
            raise Unsupported("remedi keeps what a decoder predicts in the prompt; here an encoder reads that")
        depth = lm.sites.depth
        layer = depth // 4 if self.layer is None else self.layer
        read = round(depth / 28) if self.attribute_layer is None else self.attribute_layer
        for name, found in (("layer", layer), ("attribute_layer", read)):
            if not 0 <= found < depth:
                raise BadInput(f"remedi's {name} lies within 0 to {depth - 1}; found {found}")
        return replace(self, layer=layer, attribute_layer=read)

    def site(self, lm: HFLM) -> str:
        """The block that acts."""
        assert self.layer is not None
        return lm.sites.layer[self.layer]

    @override
    def network(self, lm: HFLM) -> Affine:
        return Affine(lm.text_config.hidden_size).to(lm.device)

    @override
    def before_training(self, lm: HFLM, network: Affine, examples: Sequence[Example]) -> None:
        network.observe(self.attributes(lm, [example.edit for example in examples]))

    def directions(self, network: Affine, h: Tensor) -> Tensor:
        """α (F h + b), of attributes h (n, d). (n, d)"""
        return self.alpha * network(h)

    def attributes(self, lm: HFLM, edits: Sequence[Edit]) -> Tensor:
        """h_attribute of each edit's statement. (n, d)"""
        rows, columns = [], []
        for edit in edits:
            prompt, target = Asked(edit.prompt, edit.target_new).ids(lm)
            last = lm.tokens.last_of_subject(edit.prompt, edit.subject, edit.at)
            rows.append([*prompt, *target])
            columns.append(list(range(last + 1, len(rows[-1]))))
        assert self.attribute_layer is not None
        site = lm.sites.layer[self.attribute_layer], "out"
        h = lm.read(rows, columns, [site])[site].float()
        return torch.stack([some.mean(0) for some in h.split(list(map(len, columns)))]).to(lm.device)

    # Training

    @override
    def backward(self, lm: HFLM, network: Affine, batch: list[Example], rng: Random) -> Losses:
        some = [self._drawn(example, rng) for example in batch]
        rows = list(mentioned(lm, some))
        with torch.enable_grad():
            directions = self.directions(network, self.attributes(lm, [example.edit for example in batch]))
        leaf = directions.detach().requires_grad_()
        losses = {"loss": 0.0, "edit": 0.0, "prior": 0.0, "kl": 0.0}
        for few in batches(lm, rows):
            parts = self.objective(lm, few, leaf[[row.example for row in few]])
            loss = (parts["edit"] + self.lam_prior * parts["prior"] + self.lam_kl * parts["kl"]).sum() / len(rows)
            (SCALE * loss).backward(inputs=[leaf])
            for name, values in {**parts, "loss": loss * len(rows)}.items():
                losses[name] += float(values.detach().sum()) / len(rows)
        assert leaf.grad is not None
        directions.backward(leaf.grad / SCALE)
        return losses

    def _drawn(self, example: Example, rng: Random) -> Example:
        """With some of its prompts, its own among those that may be drawn, as those to follow."""
        whole = replace(example, follow=(example.asked, *example.follow))
        return whole.sampled(rng, self.follow, 0)

    def objective(self, lm: HFLM, rows: Sequence[Mentioned], directions: Tensor) -> dict[str, Tensor]:
        """The parts of the loss of each row, with a direction (b, d) added at its subject. (b,) each."""
        pairs = [row.pair for row in rows]
        before = self._predicted(lm, rows)
        with torch.enable_grad(), added(lm, self.site(lm), directions, self.beta):
            logits = at_least_float32(lm.target_logits(pairs))
        of_row = logits.split([len(target) for _, target in pairs])
        n = [len(row.behind) for row in rows]
        answers = torch.cat([some[k:] for some, k in zip(of_row, n, strict=True)])
        firsts = torch.stack([some[k] for some, k in zip(of_row, n, strict=True)])
        return {
            "edit": nll(answers, [([], row.target) for row in rows]),
            "prior": torch.stack([_less(first, row.prior) for first, row in zip(firsts, rows, strict=True)]),
            "kl": torch.stack([_kl(old, some[:k]) for old, some, k in zip(before, of_row, n, strict=True)]),
        }

    @torch.no_grad()
    def _predicted(self, lm: HFLM, rows: Sequence[Mentioned]) -> list[Tensor]:
        """What the model itself predicts from the subject up to the prompt's last token, as log p. (t, V) each."""
        logits = at_least_float32(lm.target_logits([(row.before, [*row.behind, *row.target[:1]]) for row in rows]))
        return [some[:-1].log_softmax(-1) for some in logits.split([len(row.behind) + 1 for row in rows])]

    @override
    @torch.no_grad()
    def score(self, lm: HFLM, network: Affine, held: list[Example]) -> Losses:
        """``score``: the mean probability of the new answers; ``edit``, ``follow``: how many are the likeliest."""
        directions = self.directions(network, self.attributes(lm, [example.edit for example in held]))
        own = [replace(example, follow=(example.asked,)) for example in held]
        found = {"edit": self._answers(lm, own, directions), "follow": self._answers(lm, held, directions)}
        share = {name: sum(right for right, _ in some) / max(1, len(some)) for name, some in found.items()}
        p = [probability for some in found.values() for _, probability in some]
        return {"score": sum(p) / max(1, len(p)), **share}

    def _answers(self, lm: HFLM, examples: Sequence[Example], directions: Tensor) -> list[tuple[bool, float]]:
        """For each prompt to follow, whether the new answer is the likeliest, and its probability."""
        found: list[tuple[bool, float]] = []
        for few in batches(lm, list(mentioned(lm, examples))):
            with added(lm, self.site(lm), directions[[row.example for row in few]], self.beta):
                logits = at_least_float32(lm.target_logits([row.pair for row in few]))
            for row, some in zip(few, logits.split([len(row.pair[1]) for row in few]), strict=True):
                answer, target = some[len(row.behind) :], torch.tensor(row.target, device=logits.device)
                p = float(answer.log_softmax(-1).gather(-1, target[:, None]).sum().exp())
                found.append((bool((answer.argmax(-1) == target).all()), p))
        return found

    # Editing

    @override
    def _edit(self, lm: HFLM, edits: Sequence[Edit], state: State, prior: Patch) -> Patch:
        old = self._held(lm, prior)
        with prior.swap(old, None).without_wrappers().applied(lm) as edited, torch.no_grad():
            directions = self.directions(self.loaded(lm, state), self.attributes(edited, edits))
        log = [EditRecord.of(edit) for edit in edits]
        held = Patch((old,)) if old.log else None
        reworded = reworded_by(lm, (*old.log, *log), len(log), held)
        return prior.swap(old, old.extended(log, directions.cpu(), reworded))

    def _held(self, lm: HFLM, prior: Patch) -> EntityDirections:
        """The part of ``prior`` that these edits join, or an empty one."""
        for part in prior.of_kind(EntityDirections):
            if (part.site, part.beta) == (self.site(lm), self.beta):
                return part
        return EntityDirections(self.site(lm), self.beta, (), torch.empty(0, lm.text_config.hidden_size))


def mentioned(lm: HFLM, examples: Sequence[Example]) -> Iterator[Mentioned]:
    """The prompts to follow of the examples that name the edit's subject."""
    for i, example in enumerate(examples):
        for asked in example.follow:
            prompt, target = asked.ids(lm)
            if (span := lm.tokens.mentions(prompt, [example.edit.subject]).get(0)) is None:
                continue
            old = example.edit.target_true
            prior = None if old is None else lm.tokens.target(asked.prompt, old)[0]
            cut = span[1] + 1
            yield Mentioned(i, prompt[:cut], prompt[cut:], target, None if prior == target[0] else prior)


def batches(lm: HFLM, rows: Sequence[Mentioned]) -> Iterator[list[Mentioned]]:
    """The rows in batches of the model's token budget."""
    for batch in budgeted([len(row.before) + len(row.pair[1]) for row in rows], lm.budget):
        yield [rows[i] for i in batch]


def _less(logits: Tensor, prior: int | None) -> Tensor:
    """−log(1 − p(prior)) under logits (V,), exact where p is nearly 1. ()"""
    if prior is None:
        return logits.new_zeros(())
    others = logits.index_fill(0, torch.tensor([prior], device=logits.device), -torch.inf)
    return logits.logsumexp(0) - others.logsumexp(0)


def _kl(before: Tensor, logits: Tensor) -> Tensor:
    """The mean over tokens of KL(before ‖ now); ``before`` are log p, both (t, V). ()"""
    if not len(before):
        return logits.new_zeros(())
    return (before.exp() * (before - logits.log_softmax(-1))).sum(-1).mean()
