"""How a side matrix is trained: losses of targets with something added at one site, and gradient descent on them.

Training works in the layer's units: with s_x and s_y the median lengths of the site's inputs and outputs,
ΔW = (s_y / s_x) V, and rates, clips and margins are those of V.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from typing_extensions import TypedDict

from errata.methods.memory.log import EditRecord
from errata.methods.memory.reading import Rows, observe, row_losses
from errata.methods.settings import setting
from errata.methods.side_memory.matrix import At, deciding
from errata.methods.state import State
from errata.model.added import InterventionSite
from errata.model.hf import HFLM
from errata.model.intervention import Pass
from errata.model.lm import Call
from errata.model.passes import at_least_float32, budgeted
from errata.model.resumed import Beginnings, SuffixPass
from errata.model.texts import kept_contexts
from errata.patch.parts import output_replaced

Change = Callable[[list[int], Tensor], Tensor]  # (indices of rows, x (b, t, f)) -> what is added (b, t, d)
Margin = Callable[[Tensor], Tensor]  # V -> the penalty for distances that are too small or too large

LEAST = 4  # tokens that rows begin with together, to be run once
CHECK = 5  # steps after which finished edits are measured again


def site_tensors(lm: HFLM, site: str, prompts: Sequence[list[int]]) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs (t, f) and outputs (t, d) of a site at each token of each prompt (ids)."""
    found: dict[int, tuple[Tensor, Tensor]] = {}

    def keep(batch: list[int], call: Call, x: Tensor, y: Tensor) -> None:
        for row, i in enumerate(batch):
            n = len(prompts[i])
            found[i] = at_least_float32(x[row, :n]), at_least_float32(y[row, :n])

    rows = [(prompt, [lm.tokens.fill]) for prompt in prompts]
    observe(lm, site, rows, budgeted([len(prompt) for prompt in prompts], lm.budget), keep)
    return [found[i][0] for i in range(len(prompts))], [found[i][1] for i in range(len(prompts))]


# What the state of a side memory holds: the median lengths of its site's inputs and outputs.
SideSizes = TypedDict("SideSizes", {"in": float, "out": float})


def side_statistics(lm: HFLM, site: str, texts: Sequence[str]) -> tuple[list[Tensor], dict[str, Any]]:
    """The site's inputs (t, f) for each text, on the CPU, and the median lengths of inputs and outputs."""
    xs, ys = site_tensors(lm, site, [lm.tokens.prompt(text) for text in texts])
    sizes = {"in": float(torch.cat(xs).norm(dim=-1).median()), "out": float(torch.cat(ys).norm(dim=-1).median())}
    return [x.cpu() for x in xs], {"what": f"{len(texts)} texts at the layer of a side memory", **sizes}


def unit(state: State) -> float:
    """s_y / s_x: the size of ΔW where that of V is 1."""
    return state.info["out"] / state.info["in"]


def training_rows(
    lm: HFLM,
    log: Sequence[EditRecord],
    contexts: Sequence[str],
    replaced: Sequence[Sequence[EditRecord]],
    bare: int = 0,
) -> tuple[Rows, Tensor]:
    """Each edit's prompt and target (ids), alone, behind ``contexts``, and with the prompts of the edits that it
    ``replaced``; and the edit of each row. The first ``bare`` edits are there without contexts.
    """
    rows: list[tuple[list[int], list[int]]] = []
    of: list[int] = []
    for i, (edit, others) in enumerate(zip(log, replaced, strict=True)):
        asked = [(edit.prompt_ids, edit.target_ids)]
        asked += [(lm.tokens.prompt(context + edit.prompt), edit.target_ids) for context in contexts if i >= bare]
        for other in others:
            if other.prompt_ids != edit.prompt_ids:
                asked.append((other.prompt_ids, lm.tokens.target(other.prompt, edit.target_new)))
        rows += asked
        of += [i] * len(asked)
    return rows, torch.tensor(of)


class SiteLosses:
    """Losses of targets with something added at one site, computed again and again.

    What is below the site runs once (:meth:`HFLM.intervention`), unless other adapters or an encoder stand in the way.
    With ``begins``, ids of texts that rows may begin with, those are run once in each pass and not in every row, where
    the model keeps keys and values of all their tokens; what is added must not depend on the row then.
    """

    def __init__(self, lm: HFLM, site: str, rows: Rows, begins: Sequence[Sequence[int]] = (), *, plain: bool = False):
        self.lm, self.site, self.rows = lm, site, list(rows)
        self.plain = plain or lm.seq2seq or bool(lm.explainers)
        self.begins: Beginnings | None = None
        self.begun = [(0, 0)] * len(rows)  # of each row which text it begins with, and how many tokens of it
        if begins and not self.plain:
            self._begin(begins)
        self.batches = self._batches()
        if not all(self._holds(*one) for one in self.batches):
            self.begins, self.begun = None, [(0, 0)] * len(rows)
            self.batches = self._batches()

    def _begin(self, texts: Sequence[Sequence[int]]) -> None:
        begins = self.lm.beginnings(texts, self._at)
        if begins is not None and begins.run.above:
            self.begins, self.begun = begins, [_beginning(p[:-1], texts) for p, _ in self.rows]

    def _batches(self) -> list[tuple[list[int], Pass | None]]:
        batches = budgeted([len(p) + len(t) for p, t in self.rows], self.lm.budget)
        return [(batch, None if self.plain else self._suffix(batch)) for batch in batches]

    def _holds(self, batch: Sequence[int], run: Pass | None) -> bool:
        """Whether rows can be run behind what they begin with."""
        if not any(self.begun[i][1] for i in batch):
            return True
        assert self.begins is not None
        with torch.no_grad():
            whole = {keys.shape[-2] for keys, _ in self.begins.run.keys_above().values()}
        return isinstance(run, SuffixPass) and run.keeps_above and whole == {self.begins.run.suffix.ids.shape[1]}

    def _suffix(self, batch: Sequence[int]) -> Pass:
        rows = [[*p, *t[:-1]] for p, t in (self.rows[i] for i in batch)]
        of, starts = zip(*(self.begun[i] for i in batch), strict=True)
        return self.lm.intervention(rows, starts, self._at, self._columns(batch), begins=self.begins, of=of)

    @property
    def _at(self) -> InterventionSite:
        return InterventionSite(self.lm.sites.mlp_out.index(self.site), mlp_output=True)

    def _columns(self, batch: Sequence[int]) -> list[list[int]]:
        return [[self._end(i) + j for j in range(len(self.rows[i][1]))] for i in batch]

    def _end(self, i: int) -> int:
        """The column of a row's last prompt token in its pass."""
        return len(self.rows[i][0]) - 1 - self.begun[i][1]

    def inputs(self, at: At) -> list[Tensor]:
        """The site's input (t, f) at the deciding tokens of each row's prompt."""
        found: dict[int, Tensor] = {}
        for batch, run in self.batches if at == "last" else ():
            if isinstance(run, SuffixPass) and run.keys is not None and run.keys.ndim == 3:
                ends = run.keys[torch.arange(len(batch)), [self._end(i) for i in batch]]
                found |= dict(zip(batch, at_least_float32(ends)[:, None], strict=True))
        if len(found) < len(self.rows):
            whole = site_tensors(self.lm, self.site, [list(p) for p, _ in self.rows])[0]
            return [deciding(x, at) for x in whole]
        return [found[i] for i in range(len(self.rows))]

    def of(self, change: Change, chosen: Sequence[bool]) -> Iterator[tuple[list[int], Tensor]]:
        """Batches of indices of the chosen rows, and each row's mean loss of a target token (b,)."""
        for batch, run in self.batches:
            places = [j for j, i in enumerate(batch) if chosen[i]]
            rows = [batch[j] for j in places]
            if not rows:
                continue

            def add(call: Any, x: Tensor, y: Tensor, rows: list[int] = rows) -> Tensor:
                return y + change(rows, at_least_float32(x)).to(y)

            with output_replaced(self.lm, self.site, add):
                asked = [self.rows[i] for i in rows]
                some = run.select(places) if run and len(places) < len(batch) else run
                logits = self._logits(some, rows) if some else self.lm.target_logits(asked)
            yield rows, row_losses(logits, asked)

    def _logits(self, run: Pass, rows: Sequence[int]) -> Tensor:
        if self.begins is not None and isinstance(run, SuffixPass) and any(self.begun[i][1] for i in rows):
            run = run.behind(self.begins.run.keys_above(), [self.begun[i][0] for i in rows])
        return run.logits(None, self._columns(rows))


def _beginning(row: Sequence[int], texts: Sequence[Sequence[int]]) -> tuple[int, int]:
    """Which of the texts (ids) a row shares most of its first tokens with, and how many; fewer than LEAST are none."""
    shared = [sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(row, text))) for text in texts]
    most = max(range(len(texts)), key=shared.__getitem__)
    return (most, shared[most]) if shared[most] >= LEAST else (0, 0)


@dataclass(frozen=True, kw_only=True)
class SideSettings:
    """Settings of how a side matrix is trained, and of which tokens decide that it acts."""

    contexts: int = setting(3, "texts before the prompt that it is trained behind; released codes: about 10")
    steps: int = setting(30, "both released codes, within a factor of two", above=0)
    lr: float = setting(1.0, "both papers; of V", key="edit_lr", above=0)
    decay: float = setting(1e-5, "both released codes")
    clip: float = setting(1.0, "length of a step's gradient, for each edit in it; released code of MEMOIR")
    stop: float = setting(0.02, "loss of a token below which an edit is done; released code of MEMOIR")
    at: At = setting(
        "last", "which tokens of a prompt decide; papers: the mean, which tells paraphrases from others less well"
    )

    def before(self, lm: HFLM, state: State, seed: int) -> list[str]:
        """The contexts; an encoder-decoder has none."""
        return [] if lm.seq2seq else kept_contexts(lm, state.once, self.contexts, seed)[1:]

    @property
    def descent(self) -> "Descent":
        """The descent that these settings name."""
        return Descent(self.steps, self.lr, self.decay, self.clip, self.stop)


@dataclass(frozen=True)
class Descent:
    """Gradient descent on V, with the gradient clipped to ``clip`` times the square root of the number of edits."""

    steps: int
    lr: float
    decay: float
    clip: float
    stop: float

    def run(
        self,
        v: Tensor,
        losses: SiteLosses,
        of: Tensor,
        change: Callable[[Tensor], Change],
        margin: Margin | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """V after at most ``steps`` steps, fewer once the losses of all edits and the penalty are below ``stop``; and
        the loss of each edit with it (n,).

        ``of`` says of which edit each row is. An edit whose loss is below ``stop`` has no gradient; every few steps all
        are measured again. With a ``mask``, as large as V and 0 or 1, the entries at 1 alone are changed.
        """
        rows_of = torch.bincount(of).to(v)  # (n,)
        loss, penalty = torch.full_like(rows_of, torch.inf), torch.zeros((), device=v.device)
        v = v.clone().requires_grad_()
        for step in range(self.steps + 1):
            unfinished, last = (loss >= self.stop).cpu(), step == self.steps  # the last pass measures
            every = last or step % CHECK == 0 or not (unfinished.any() or float(penalty.detach()) > self.stop)
            chosen = torch.ones_like(unfinished) if every else unfinished
            loss = loss.masked_fill(chosen.to(v.device), 0.0)
            with torch.set_grad_enabled(not last and bool(unfinished.any())):
                for rows, row_loss in losses.of(change(v), chosen[of].tolist()):
                    shares = row_loss.to(v) / rows_of[of[rows]]
                    loss.index_add_(0, of[rows].to(v.device), shares.detach())
                    if shares.requires_grad and unfinished[of[rows]].any():
                        (shares * unfinished[of[rows]].to(v)).sum().backward()
            with torch.set_grad_enabled(not last):
                penalty = margin(v) if margin is not None else penalty
            if last or (every and bool((loss < self.stop).all()) and float(penalty.detach()) <= self.stop):
                break
            if penalty.requires_grad:
                (len(rows_of) * penalty).backward()
            self._step(v, len(rows_of), mask)
        return v.detach(), loss

    @torch.no_grad()
    def _step(self, v: Tensor, n: int, mask: Tensor | None) -> None:
        """Goes down the gradient of v, clipped for n edits, which is spent; nowhere where v has none."""
        if (gradient := v.grad) is None:
            return
        if mask is not None:
            gradient.mul_(mask)
        clipped = (self.clip * n**0.5 / (gradient.norm() + 1e-6)).clamp(max=1)  # as torch clips
        v.mul_(1 - self.lr * self.decay).addcmul_(gradient, clipped, value=-self.lr)
        v.grad = None
