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
from errata.model import hooks
from errata.model.added import InterventionSite
from errata.model.hf import HFLM
from errata.model.intervention import Pass
from errata.model.lm import Call
from errata.model.passes import at_least_float32, budgeted, hidden_of, unflattened
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

    In the last block of a decoder nothing but the token itself sees what is added. There the block's outputs before
    the targets are read once, and a look takes the final norm and the head of those alone. Where these do not make the
    model's logits (a norm behind the MLP, a soft cap), that block's suffix is run (:meth:`HFLM.intervention`); in
    other blocks, or with ``plain``, whole passes with neurons at every token.
    """

    queries: Tensor  # (k, d)
    outputs: Tensor  # (k, d): the MLP's output there
    targets: Tensor  # (k,): ids
    of: Tensor  # (k,): the fact of each token
    hidden: Tensor | None = None  # (k, d): the block's output there, where the head alone is enough

    def __init__(
        self, lm: HFLM, layer: int, facts: Rows, under: Added | None = None, *, plain: bool = False, head: bool = True
    ) -> None:
        """``under`` are neurons that are in force already. Without ``head`` suffixes are run."""
        self.lm, self.layer, self.under = lm, layer, under
        self.of = torch.tensor([i for i, (_, t) in enumerate(facts) for _ in t])
        self.targets = torch.tensor([token for _, t in facts for token in t])
        self.fast = not (plain or lm.seq2seq or lm.explainers) and layer == lm.sites.depth - 1
        self._cut(facts, [len(t) for _, t in facts])
        self.queries, self.outputs = self._read()
        if self.fast and head:
            self.hidden = self._hidden()
        if self.fast and self.hidden is None:
            self._cut([(p, t[: j + 1]) for p, t in facts for j in range(len(t))], [1] * len(self.targets))
            self.suffixes = [self._suffix(batch) for batch in self.batches]

    def _cut(self, rows: Rows, counts: Sequence[int]) -> None:
        """Takes these rows for the passes, of each so many of the last tokens."""
        self.rows, self.suffixes = list(rows), list[Pass]()
        self.tokens = [range(end - n, end) for n, end in zip(counts, accumulate(counts), strict=True)]  # of each row
        self.batches = list(budgeted([len(p) + len(t) for p, t in rows], self.lm.budget))

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

    def _of(self, batch: Sequence[int]) -> Tensor:
        """The tokens of some rows: indices into ``targets``. (c,)"""
        return torch.tensor([token for i in batch for token in self.tokens[i]])

    def _before(self, batch: Sequence[int], flow: Tensor) -> Tensor:
        """What flows (b, t, width) where the targets of some rows are predicted. (c, width)"""
        firsts = [0 if self.lm.seq2seq else len(self.rows[i][0]) - 1 for i in batch]
        where = [(row, firsts[row] + j) for row, i in enumerate(batch) for j in range(len(self.rows[i][1]))]
        at = torch.tensor(where, device=flow.device)
        return flow[at[:, 0], at[:, 1]]

    def _in_order(self, flows: Sequence[Tensor]) -> Tensor:
        """What was found for one batch after another, in the order of ``targets``. (k, width)"""
        order = torch.cat([self._of(batch) for batch in self.batches]).argsort()
        return torch.cat(list(flows))[order.to(flows[0].device)]

    def _read(self) -> tuple[Tensor, Tensor]:
        """Inputs and outputs of the MLP. (k, d) each"""
        found: tuple[list[Tensor], list[Tensor]] = ([], [])

        def keep(batch: list[int], call: Call, x: Tensor, y: Tensor) -> None:
            for flows, flow in zip(found, (x, y), strict=True):
                flows.append(at_least_float32(self._before(batch, flow)))

        observe(self.lm, self.site, self.rows, self.batches, keep, self.reads)
        return self._in_order(found[0]), self._in_order(found[1])

    @torch.no_grad()
    def _hidden(self) -> Tensor | None:
        """The block's outputs with what is ``under`` (k, d), if the head alone makes the model's logits of them."""
        gain, found = self.lm.sites.gain[self.layer], list[Tensor]()
        block = self.lm.model.get_submodule(self.lm.sites.layer[self.layer])
        for batch in self.batches if gain is not None else ():

            def keep(args: Any, kwargs: Any, output: Any, batch: list[int] = batch) -> None:
                found.append(self._before(batch, unflattened(hidden_of(output), len(batch))))

            with hooks.after(block, keep):
                logits = self.lm.target_logits([self.rows[i] for i in batch])
            if not _same(self.lm.head_logits(found[-1]), logits):
                return None
        if gain is None:
            return None
        hidden, self.typed = at_least_float32(self._in_order(found)), found[0].dtype
        return hidden if self.under is None else self._moved(hidden, self.under(self.queries))

    def _moved(self, hidden: Tensor, added: Tensor) -> Tensor:
        """The block's outputs (c, d), with more added to its MLP's."""
        gain = self.lm.sites.gain[self.layer]
        assert gain is not None
        return hidden + gain * added.to(hidden)

    def logits(self, added: Added | None, some: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of tokens (indices into ``targets``) and the logits that predict them. (c,) and (c, V)

        ``some`` (k,) are those that are asked for, where the head alone is run; otherwise all are.
        """
        for i, batch in enumerate(self.batches):
            tokens = self._of(batch)
            if self.hidden is not None:
                tokens = tokens if some is None else tokens[some[tokens]]
                q, hidden = (x[tokens.to(x.device)] for x in (self.queries, self.hidden))
                if len(tokens):
                    moved = hidden if added is None else self._moved(hidden, added(q))
                    yield tokens, self.lm.head_logits(moved.to(self.typed))
                continue
            if self.suffixes:
                q = self.queries[tokens.to(self.queries.device)]
                yield tokens, self.suffixes[i].logits(self._all(added, q), [[0]] * len(batch))
                continue

            def add(call: Any, x: Tensor, y: Tensor) -> Tensor:
                more = self._all(added, at_least_float32(x))
                return y if more is None else y + more.to(y)

            with output_replaced(self.lm, self.site, add, self.reads):
                logits = self.lm.target_logits([self.rows[i] for i in batch])
            yield tokens, logits

    def _all(self, added: Added | None, q: Tensor) -> Tensor | None:
        """What is added where nothing is contained in the hidden state: the neurons in force, and these."""
        parts = [neurons(q) for neurons in (self.under, added) if neurons is not None]
        return sum(parts[1:], parts[0]) if parts else None

    @torch.no_grad()
    def wrong(self) -> Tensor:
        """Whether each token is not the likeliest one behind those before it. (k,)"""
        wrong = torch.zeros(len(self.targets), dtype=torch.bool)
        for tokens, logits in self.logits(None):
            wrong[tokens] = logits.argmax(-1).cpu() != self.targets[tokens]
        return wrong

    def backward(
        self,
        added: Added,
        smooth: float = 0.0,
        stop: float = 0.0,
        *,
        some: Tensor | None = None,
        quiet: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Adds the gradients of the summed loss to the leaves of ``added``; each token's -log P, and whether it is the
        likeliest. (k,) and (k,)

        The loss is the cross-entropy against the token with ``smooth`` of the probability spread over all; a token
        whose -log P is below ``stop`` has none. Where the head alone is run, ``some`` (k,) are the tokens that count,
        by default all; or else ``quiet`` (k,) those that are thought to be below ``stop``: they are looked at first,
        without a graph, and again if they are not.
        """
        nlls, right = torch.zeros(len(self.targets)), torch.zeros(len(self.targets), dtype=torch.bool)
        if quiet is not None and self.hidden is not None and quiet.any():
            with torch.no_grad():
                for tokens, logits in self.logits(added, quiet):
                    nlls[tokens], right[tokens], _ = self._losses(tokens, logits, smooth, stop)
            some = ~quiet | (nlls >= stop)
        for tokens, logits in self.logits(added, some):
            nlls[tokens], right[tokens], loss = self._losses(tokens, logits, smooth, stop)
            if loss.requires_grad:
                loss.backward()
        return nlls, right

    def _losses(self, tokens: Tensor, logits: Tensor, smooth: float, stop: float) -> tuple[Tensor, Tensor, Tensor]:
        """Of some tokens -log P, whether each is the likeliest (c,), and the loss of those that have one, summed."""
        targets = self.targets[tokens].to(logits.device)
        logp = at_least_float32(logits).log_softmax(-1)
        nll = -logp.gather(-1, targets[:, None])[:, 0]
        loss = (1 - smooth) * nll - smooth * logp.mean(-1) if smooth else nll
        loss = torch.where(nll.detach() >= stop, loss, 0.0).sum()
        return nll.detach().float().cpu(), (logits.argmax(-1) == targets).cpu(), loss


def _same(logits: Tensor, whole: Tensor) -> bool:
    """Whether logits are those of the whole pass but for rounding, in units of the largest: a scale shows, or a cap."""
    half = whole.dtype.itemsize < 4
    tolerance = 2 * torch.finfo(whole.dtype).eps if half else 1e3 * torch.finfo(whole.dtype).eps
    return bool((logits.to(whole) - whole).abs().amax() <= tolerance * whole.abs().amax())


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
