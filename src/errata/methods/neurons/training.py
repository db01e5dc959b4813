"""How added neurons are trained: the MLP inputs before each token of the targets, and the logits with neurons added."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import TypedDict

from errata.methods.memory.reading import Measured, Rows, observe
from errata.methods.neurons.added import Activation
from errata.methods.settings import setting
from errata.model.hf import HFLM
from errata.model.intervention import InterventionSite, Pass
from errata.model.lm import Call
from errata.model.passes import at_least_float32, budgeted
from errata.patch.parts import output_replaced
from errata.patch.schema import Floats, Ints, Length

Added = Callable[[Tensor], Tensor]  # q (…, d) -> what neurons add to the MLP's output (…, d)


class States(TypedDict):
    """What the state of a neuron method holds: :func:`hidden_states`."""

    states: Annotated[Tensor, Floats("m *")]
    of: Annotated[Tensor, Ints("m", 0, "texts")]
    texts: Annotated[list[str], Length("texts")]
    size: float


@dataclass(frozen=True, kw_only=True)
class NeuronSettings:
    """Settings of added neurons, and of the states at which they are to be silent."""

    holds: ClassVar[type[Any] | None] = States

    layer: int | None = setting(None, "the last, as in both papers")
    act: Activation = setting(
        "relu", "CaliNet's; T-Patcher's is the model's own. Where relu is negative nothing is added, bit for bit"
    )
    memory: int = setting(8192, "MLP inputs to be silent at; T-Patcher's paper: 40,000", above=0)
    texts: int = setting(4096, "openings of texts that they come from")


class TargetTokens:
    """Training data for added neurons: for each target token the MLP input that precedes it, `queries`, and its id.

    In the last block of a decoder nothing but the token itself sees what is added, so that only that block's suffix
    is run (:meth:`HFLM.intervention`); elsewhere, or with ``plain``, whole passes with neurons at every token.
    """

    queries: Tensor  # (k, d)
    outputs: Tensor  # (k, d): the MLP's output there
    targets: Tensor  # (k,): ids
    of: Tensor  # (k,): the fact of each token

    def __init__(self, lm: HFLM, layer: int, facts: Rows, *, plain: bool = False) -> None:
        self.lm, self.layer = lm, layer
        self.fast = not (plain or lm.seq2seq or lm.explainers) and layer == lm.sites.depth - 1
        # as rows for the passes: a row for each token, or one for each fact
        self.rows = [(p, t[: j + 1]) for p, t in facts for j in range(len(t))] if self.fast else list(facts)
        self.of = torch.tensor([i for i, (_, t) in enumerate(facts) for _ in t])
        self.targets = torch.tensor([token for _, t in facts for token in t])
        counts = [1 if self.fast else len(t) for _, t in self.rows]
        self.tokens = [range(end - n, end) for n, end in zip(counts, accumulate(counts), strict=True)]  # of each row
        self.batches: list[tuple[list[int], Pass | None]] = []
        for batch in budgeted([len(p) + len(t) for p, t in self.rows], lm.budget):
            self.batches.append((batch, self._suffix(batch) if self.fast else None))
        self.queries, self.outputs = self._read()

    @property
    def site(self) -> str:
        """Path of the down projection."""
        return self.lm.sites.mlp_out[self.layer]

    @property
    def reads(self) -> str:
        """Path of a linear whose input is q."""
        return self.lm.sites.mlp_in[self.layer][0]

    def _suffix(self, batch: Sequence[int]) -> Pass:
        rows = [[*p, *t[:-1]] for p, t in (self.rows[i] for i in batch)]
        ends = [len(row) - 1 for row in rows]
        return self.lm.intervention(rows, ends, InterventionSite(self.layer, mlp_output=True), [[0]] * len(rows))

    def _tokens(self, batch: Sequence[int]) -> list[int]:
        return [token for i in batch for token in self.tokens[i]]

    def _read(self) -> tuple[Tensor, Tensor]:
        found: dict[int, tuple[Tensor, Tensor]] = {}

        def keep(batch: list[int], call: Call, x: Tensor, y: Tensor) -> None:
            where: list[tuple[int, int]] = []
            for row, (p, t) in enumerate(self.rows[i] for i in batch):
                first = 0 if self.lm.seq2seq else len(p) - 1
                where += [(row, first + j) for j in range(len(t))][-1 if self.fast else 0 :]
            at = torch.tensor(where, device=x.device)
            both = (at_least_float32(flow[at[:, 0], at[:, 1]]) for flow in (x, y))
            found.update(zip(self._tokens(batch), zip(*both, strict=True), strict=True))

        observe(self.lm, self.site, self.rows, (batch for batch, _ in self.batches), keep, self.reads)
        queries, outputs = zip(*(found[i] for i in range(len(self.of))), strict=True)
        return torch.stack(queries), torch.stack(outputs)

    def logits(self, added: Added) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of tokens (indices into ``targets``) and the logits that predict them. (c,) and (c, V)"""
        for batch, suffix in self.batches:
            tokens = torch.tensor(self._tokens(batch))
            if suffix is not None:
                q = self.queries[tokens.to(self.queries.device)]
                yield tokens, suffix.logits(added(q), [[0]] * len(batch))
                continue

            def add(call: Any, x: Tensor, y: Tensor) -> Tensor:
                return y + added(at_least_float32(x)).to(y)

            with output_replaced(self.lm, self.site, add, self.reads):
                logits = self.lm.target_logits([self.rows[i] for i in batch])
            yield tokens, logits

    @torch.no_grad()
    def wrong(self, added: Added) -> Tensor:
        """Whether each token is not the likeliest one behind those before it. (k,)"""
        wrong = torch.zeros(len(self.targets), dtype=torch.bool)
        for tokens, logits in self.logits(added):
            wrong[tokens] = logits.argmax(-1).cpu() != self.targets[tokens]
        return wrong

    def backward(self, added: Added, smooth: float = 0.0, stop: float = 0.0) -> tuple[Tensor, Tensor]:
        """Adds the gradients of the summed loss to the leaves of ``added``; each token's -log P, and whether it is the
        likeliest. (k,) and (k,)

        The loss is the cross-entropy against the token with ``smooth`` of the probability spread over all; a token
        whose -log P is below ``stop`` has none.
        """
        nlls, right = torch.zeros(len(self.targets)), torch.zeros(len(self.targets), dtype=torch.bool)
        for tokens, logits in self.logits(added):
            targets = self.targets[tokens].to(logits.device)
            logp = at_least_float32(logits).log_softmax(-1)
            nll = -logp.gather(-1, targets[:, None])[:, 0]
            loss = (1 - smooth) * nll - smooth * logp.mean(-1)
            loss = torch.where(nll.detach() >= stop, loss, 0.0).sum()
            if loss.requires_grad:
                loss.backward()
            nlls[tokens] = nll.detach().float().cpu()
            right[tokens] = (logits.argmax(-1) == targets).cpu()
        return nlls, right


def hidden_states(lm: HFLM, layer: int, texts: Sequence[str], n: int, seed: int) -> Measured:
    """State of a neuron method: at most ``n`` MLP inputs in the second halves of texts, ``states`` (m, d), drawn at
    random, and the text ``of`` each (m,); the texts, and the root mean square of the MLP's outputs there."""
    facts: list[tuple[list[int], list[int]]] = []
    for ids in map(lm.tokens.prompt, texts):
        half = (len(ids) + 1) // 2
        # an encoder-decoder reads a text and writes it
        facts.append((ids, ids) if lm.seq2seq else (ids[:half], [*ids[half:], lm.tokens.fill]))
    tokens = TargetTokens(lm, layer, facts, plain=True)
    chosen = torch.randperm(len(tokens.of), generator=torch.Generator().manual_seed(seed))[:n]
    what, size = f"{len(chosen)} hidden states of {len(texts)} texts", float(tokens.outputs.square().mean().sqrt())
    state = {"states": tokens.queries.cpu()[chosen], "of": tokens.of[chosen]}
    return state, {"what": what, "size": size, "texts": list(texts)}
