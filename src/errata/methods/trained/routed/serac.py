"""SERAC: edits stay text; a classifier says which one a prompt asks for, and a small model answers from it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from random import Random
from typing import ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from errata.encoders import TFIDF, sentences
from errata.errors import BadInput
from errata.methods.base import Tags
from errata.methods.outcomes import report
from errata.methods.settings import setting
from errata.methods.state import State
from errata.methods.trained.examples import Example, compatible
from errata.methods.trained.method import NETWORK, QUICK, TrainedMethod
from errata.methods.trained.routed.helpers import Helpers, Sizes
from errata.methods.trained.routed.posing import Posed, twins
from errata.methods.trained.routed.scope import scope_loss
from errata.methods.trained.routed.scoped import ScopedAnswers, ScopedLM, recorded, vocabulary
from errata.methods.trained.routed.transformer import HEADS, token_vectors
from errata.methods.trained.routed.varying import varied
from errata.methods.trained.training import Losses
from errata.model.hf import HFLM
from errata.patch.patch import Patch
from errata.types import Edit


@dataclass(frozen=True, kw_only=True)
class SERAC(TrainedMethod):
    """A prompt whose nearest edit has a score above ``threshold`` is answered from that edit, by a small model.

    Every other prompt is the base model's: scores and probabilities bit for bit as it gives them for the same prompts,
    texts as it writes them for these by themselves. score(edit, x) = exp(−‖emb(edit) − emb(x)‖²); the loss is
    c_edit · NLL of the counterfactual model given the gold edit + c_loc · balanced cross-entropy of the classifier
    (section 3.3). Both begin from nothing, over fixed vectors of the base model's tokens; half of the examples have
    other names in them, so that names are read and not learned by heart. Prompts that name a subject by an alias are
    out of reach: no text says whose it is.
    """

    name: ClassVar[str] = "serac"
    family: ClassVar[str] = "routed"
    paper: ClassVar[str] = "Mitchell et al. 2022, Memory-Based Model Editing at Scale, arXiv:2206.06520"
    stores: ClassVar[str] = "the edits as text, a scope classifier and a small model that answers; no weight changes"
    tags: ClassVar[Tags] = Tags(
        quick=QUICK
        | {"steps": 20, "check_every": 10, "warmup": 0.25, "lr": 0.003, "width": 16, "depth": 1, "vectors": 16},
        prepares_with="cases",
        memory=True,
        runs_model=False,
    )
    when_editing: ClassVar[tuple[str, ...]] = ("threshold",)

    VALIDATED_AT: ClassVar[float] = 0.5
    """Threshold of the scores of training, which does not depend on the setting: the paper's."""

    threshold: float = setting(
        VALIDATED_AT, "paper: of the classifier's score, from where on an edit is in scope", above=0, most=1
    )
    width: int = setting(64, "of the small models; paper: DistilBERT and a model of the base's family", above=0)
    depth: int = setting(2, "blocks of each small model", above=0)
    vectors: int = setting(64, "width of the tokens' fixed vectors", above=0)
    encoder: str | None = setting(None, "a sentence encoder for the classifier (extra `retrieval`); by default its own")
    c_edit: float = setting(0.1, "paper: weight of the counterfactual model's loss", key="cedit")
    c_loc: float = setting(1.0, "paper: weight of the classifier's loss", key="cloc")
    follow: int = setting(3, "prompts in other words for each example of a step", above=0)
    keep: int = setting(5, "prompts out of scope for each example of a step", above=0)
    steps: int = setting(800, "of training at most; paper: 100,000 and more", above=0)
    batch: int = setting(24, "examples of a step; paper: 10, accumulated to 100", above=0)
    lr: float = setting(2e-3, "Adam's; paper: 1e-5, from pretrained models", above=0)
    clip: float = setting(100.0, "paper: largest norm of a step's gradient", above=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % (2 * HEADS):
            raise BadInput(f"{self.name}'s width must be a multiple of {2 * HEADS}; found {self.width}")
        if self.encoder == TFIDF:
            raise BadInput(
                f"{self.name}'s encoder is one of sentences: {TFIDF} is fitted on the texts that it compares"
            )

    @override
    def network(self, lm: HFLM) -> nn.Module:
        return Helpers(self.sizes(lm), token_vectors(lm, self.vectors)).to(lm.device)

    def sizes(self, lm: HFLM) -> Sizes:
        """Sizes of the small models beside this model."""
        encoded = None if self.encoder is None else sentences(self.encoder)([""]).shape[1]
        return Sizes(vocabulary(lm), self.vectors, self.width, self.depth, self.encoder, encoded)

    # Training

    @override
    def backward(self, lm: HFLM, network: Helpers, batch: list[Example], rng: Random) -> Losses:
        plain = [told(e).sampled(rng, self.follow, self.keep) for e in batch]
        some = [varied(e, batch, rng, lm.tokens.limit) for e in plain]
        posed = Posed.of(lm.tokens, some, [twins(e, some, rng) for e in some])
        with torch.enable_grad():  # an encoder knows names: the texts of examples, which it has read, are enough
            scope = scope_loss_of(network, posed if self.encoder is None else Posed.of(lm.tokens, plain))
            answer = answer_loss_of(lm, network, posed)
            loss = self.c_loc * scope + self.c_edit * answer
            loss.backward()
        return {"loss": loss.item(), "scope": scope.item(), "answer": answer.item()}

    @override
    @torch.no_grad()
    def score(self, lm: HFLM, network: Helpers, held: list[Example]) -> Losses:
        some = compatible([told(e) for e in held])
        posed = Posed.of(lm.tokens, some)
        d = posed.distances(network)
        near, nearest = torch.exp(-d.masked_fill(posed.unclear().to(d.device), torch.inf)).max(-1)
        routed = torch.where(near > self.VALIDATED_AT, nearest, -1).cpu()
        right = posed.right(lm.tokens, network)
        inside = posed.inside
        scoped = routed[inside] == torch.tensor(posed.of_edit)[inside]
        first = torch.tensor([q.asked.kind == "edit" for q in posed.queries if q.inside])
        found = {
            "edit": _share((scoped & right)[first]),
            "follow": _share((scoped & right)[~first]),
            "keep": _share(routed[~inside] == -1),
            "in scope": _share(scoped),
            "answered": _share(right),
        }
        return {"score": (found["edit"] + found["follow"] + found["keep"]) / 3, **found}

    # Editing

    @override
    def _edit(self, lm: HFLM, edits: Sequence[Edit], state: State, prior: Patch) -> Patch:
        self.loaded(lm, state)
        networks = {n.removeprefix(NETWORK): t for n, t in state.tensors.items() if n.startswith(NETWORK)}
        log = tuple(recorded(edit, lm.tokens) for edit in edits)
        part = ScopedAnswers(log, {"threshold": self.threshold}, self.sizes(lm), networks)
        old = next(reversed(prior.of_kind(ScopedAnswers)), None)
        if old is not None and old != replace(part, log=old.log):
            raise BadInput("serac in prior has another threshold or other small models; go on with the same state")
        whole = part if old is None else replace(old, log=(*old.log, *log))
        _note(ScopedLM(whole, lm), edits)
        return prior + Patch((whole,)) if old is None else prior.swap(old, whole)


def told(example: Example) -> Example:
    """The example without prompts that go by an alias: no text says whose name that is."""
    return replace(example, follow=tuple(a for a in example.follow if a.kind != "alias"))


def scope_loss_of(network: Helpers, posed: Posed) -> Tensor:
    """The classifier's loss, over queries with their own edits and with the nearest other edit of each."""
    d, own, inside = posed.distances(network), posed.own(), posed.inside[:, None]
    others = d.masked_fill((own | posed.unclear()).to(d.device), torch.inf).min(-1).values
    return scope_loss(d[own & inside], torch.cat([d[own & ~inside], others[others.isfinite()]]))


def answer_loss_of(lm: HFLM, network: Helpers, posed: Posed) -> Tensor:
    """The counterfactual model's: the mean of −log p over the tokens of answers, given the gold edit."""
    logprobs, ids, _ = posed.answers(lm.tokens, network)
    return -logprobs.gather(1, ids[:, None]).mean()


def _share(yes: Tensor) -> float:
    return float(yes.float().mean()) if len(yes) else 1.0


def _note(small: ScopedLM, edits: Sequence[Edit]) -> None:
    """Reports for each edit the loss of its target, and whether it is what is said: none where nothing is in scope."""
    prompts, targets = [e.prompt for e in edits], [e.target_new for e in edits]
    scores = small.own_scores(small.parted(prompts)[0], prompts, targets)
    losses = [-scores[i].total / len(scores[i].tokens) if i in scores else inf for i in range(len(edits))]
    report((e.id for e in edits), losses, (i in scores and scores[i].correct for i in range(len(edits))))
