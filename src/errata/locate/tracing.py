"""Which hidden states decide what a model says of a subject: causal tracing.

    its = trace(lm, "The Space Needle is in the city of", "The Space Needle")
    its.effects["hidden"]                  # (positions, layers): what each state, put back, brings back

ROME, section 2 (https://arxiv.org/abs/2202.05262). Noise is added to the embeddings of the subject's tokens, so that
the model no longer knows whom it is asked about. Then one state of the clean run is put back into this corrupted run,
and the indirect effect is P_restored(o) − P_corrupted(o) for the first token o of the answer.
"""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from errata.errors import BadInput, Unsupported, unknown
from errata.model import hooks, passes
from errata.model.hf import HFLM
from errata.model.lm import Call

log = logging.getLogger(__name__)

KINDS: Mapping[str, str] = {
    "hidden": "the output of a block",
    "mlp": "MLP outputs in a window of layers",
    "attention": "attention outputs in a window of layers",
}
ROLES = (
    "first subject token",
    "middle subject tokens",
    "last subject token",
    "first token after",
    "further tokens",
    "last token",
)


# What comes back ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Trace:
    """The indirect effects of one fact. Probabilities are those of ``answer``, the token o."""

    tokens: tuple[str, ...]
    subject: tuple[int, int]  # its tokens: the first, and the one behind the last
    answer: str
    clean: float  # P(o), nothing changed
    corrupted: float  # P*(o), the mean over the draws of noise
    effects: Mapping[str, Tensor]  # kind -> (positions, layers)
    window: int  # layers restored together where the kind is "mlp" or "attention"
    sigma: float  # standard deviation of the noise
    samples: int

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "effects": _lists(self.effects)}


@dataclass(frozen=True, eq=False)
class Average:
    """The average indirect effect over facts by the role of a token (ROME, figure 2), with its standard error.

    A role that no fact has is NaN here and null in JSON, and so is the error of a role that only one has.
    """

    facts: int
    clean: float
    corrupted: float
    counts: Mapping[str, int]  # role -> facts that have such a token
    effects: Mapping[str, Tensor]  # kind -> (roles, layers)
    errors: Mapping[str, Tensor]  # kind -> (roles, layers)

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "roles": ROLES, "effects": _lists(self.effects), "errors": _lists(self.errors)}


def _lists(values: Mapping[str, Tensor]) -> dict[str, list[list[float | None]]]:
    return {
        kind: [[None if math.isnan(x) else x for x in row] for row in table.tolist()] for kind, table in values.items()
    }


# Tracing -----------------------------------------------------------------------------------------


@torch.no_grad()
def trace(
    lm: HFLM,
    prompt: str,
    subject: str,
    target: str | None = None,
    *,
    kinds: Sequence[str] = tuple(KINDS),
    samples: int = 10,  # ROME, appendix B.1
    noise: float = 3.0,  # ROME, section 2.1
    std: float | None = None,
    window: int | None = None,
    seed: int = 0,
) -> Trace:
    """The indirect effect of each state (position, layer) of a decoder, the model left as it was.

    The noise is Gaussian with standard deviation ``noise`` · ``std``, by default that of all entries of this subject's
    embeddings (:func:`embedding_std` pools those of many); the same ``samples`` draws serve every restored run.
    o is the first token of ``target``, or the one that the model itself finds most likely. ``window`` layers around a
    layer are restored together for MLP and attention outputs: by default a fifth of the depth (10 of 48, as in
    ROME), at least 1. Tokens before the subject have no effect, as no noise reaches them. Raises :class:`BadInput`, and
    :class:`Unsupported` for encoder-decoders.
    """
    prompt, subject = asked(prompt, subject)
    kinds = checked(kinds, samples, noise, window)
    lm.check()
    depth = lm.sites.depth
    paths = {kind: _paths(lm, kind) for kind in kinds}
    ids, (first, end) = _tokens(lm, prompt, subject)
    window = min(window or max(1, round(depth / 5)), depth)
    sigma = noise * (_std(_embeddings(lm, ids[first:end])) if std is None else std)

    clean_logits = passes.exact(lm.target_logits([(ids, [lm.tokens.fill])])[0])  # (V)
    o = int(clean_logits.argmax()) if target is None else lm.tokens.target(prompt, target)[0]
    wanted = [(path, "out") for its in paths.values() for path in its]
    clean = lm.read([ids], [range(first, len(ids))], wanted)  # site -> (positions, width)
    runs = _Corrupted(lm, ids, first, o, _noise(lm, (samples, end - first), sigma, seed))

    effects = {kind: torch.zeros(len(ids), depth, dtype=torch.float64) for kind in kinds}
    for kind, its in paths.items():
        for layer in range(depth):
            low, high = (layer, layer + 1) if kind == "hidden" else _window(layer, window, depth)
            states = {path: clean[path, "out"] for path in its[low:high]}
            restored = runs.restored(states, skipped=low + (kind == "hidden"))
            effects[kind][first:, layer] = restored - runs.probability
    pieces = tuple(lm.tokens.decode([i]) or str(lm.tokenizer.convert_ids_to_tokens(i)) for i in ids)
    p = float(_chance(clean_logits[None], o))
    answer = lm.tokens.decode([o])
    return Trace(pieces, (first, end), answer, p, runs.probability, effects, window, sigma, samples)


def asked(prompt: str, subject: str) -> tuple[str, str]:
    """Prompt and subject, a ``{}`` in the prompt filled. Raises :class:`BadInput` where the subject is not in it."""
    subject = subject.strip()
    if not subject:
        raise BadInput(f"the subject of {prompt!r} is empty; name what the fact is about")
    prompt = prompt.replace("{}", subject)
    if subject not in prompt:
        raise BadInput(
            f"the subject {subject!r} does not occur in the prompt {prompt!r}; write it there as it is, or put {{}} "
            "in its place"
        )
    return prompt, subject


def checked(kinds: Sequence[str], samples: int, noise: float, window: int | None) -> tuple[str, ...]:
    """The kinds, each once. Raises :class:`BadInput` for settings that make no sense."""
    kinds = (kinds,) if isinstance(kinds, str) else tuple(dict.fromkeys(kinds))
    for kind in kinds:
        if kind not in KINDS:
            raise unknown("kind of state", kind, list(KINDS))
    if not kinds:
        raise BadInput(f"no kind of state was named; give one or more of {', '.join(KINDS)}")
    if samples < 1:
        raise BadInput(f"samples, the draws of noise, must be at least 1, found {samples}")
    if not (math.isfinite(noise) and noise >= 0):
        raise BadInput(f"noise, in standard deviations of the embeddings, is a number from 0 on, found {noise}")
    if window is not None and window < 1:
        raise BadInput(f"window, the layers restored together, must be at least 1, found {window}")
    return kinds


def embedding_std(lm: HFLM, facts: Iterable[tuple[str, str]]) -> float:
    """The standard deviation of all entries of the embeddings of the subjects of (prompt, subject) pairs."""
    rows: list[int] = []
    for prompt, subject in facts:
        ids, (first, end) = _tokens(lm, *asked(prompt, subject))
        rows += ids[first:end]
    return _std(_embeddings(lm, rows))


@torch.no_grad()
def _embeddings(lm: HFLM, ids: Sequence[int]) -> Tensor:
    """(t, d): as the embedding puts them out, with its own scale where it has one."""
    embed: Any = lm.model.get_submodule(lm.sites.embed)
    return passes.exact(embed(torch.tensor([list(ids)], device=lm.device)))[0]


def _std(values: Tensor) -> float:
    return float(values.std())


def _noise(lm: HFLM, shape: tuple[int, int], sigma: float, seed: int) -> Tensor:
    """(samples, subject tokens, d), drawn on the CPU so that every device sees the same."""
    width = _embeddings(lm, [lm.tokens.fill]).shape[-1]
    return sigma * torch.randn(*shape, width, generator=torch.Generator().manual_seed(seed))


def _tokens(lm: HFLM, prompt: str, subject: str) -> tuple[list[int], tuple[int, int]]:
    """The prompt's ids, and the subject's first token and the one behind its last (the last occurrence counts)."""
    ids = lm.tokens.prompt(prompt)
    last = lm.tokens.last_of_subject(prompt, subject)
    begin = lm.tokens.decode(ids[: last + 1]).rfind(subject)
    if begin < 0:  # the tokenizer changed the text; its first letter is found as if it were the subject
        cut = prompt[: prompt.rfind(subject) + 1]
        return ids, (min(last, lm.tokens.last_of_subject(cut, cut[-1])), last + 1)
    first = next((i for i in range(last) if len(lm.tokens.decode(ids[: i + 1])) > begin), last)
    return ids, (first, last + 1)


def _paths(lm: HFLM, kind: str) -> Sequence[str]:
    """The module path of each layer whose output is restored."""
    if lm.seq2seq:
        raise Unsupported("causal tracing runs in decoder-only models; this is an encoder-decoder")
    sites = lm.sites
    paths = {"hidden": sites.layer, "mlp": sites.mlp_out, "attention": sites.attn_out}[kind]
    if len(paths) < sites.depth or not all(paths):
        raise Unsupported(
            f"the sites of {lm.name or 'this model'} name no {kind} output in some layer; leave {kind} out"
        )
    return paths


def _window(layer: int, width: int, depth: int) -> tuple[int, int]:
    """The first layer of a window and the one behind its last, cut off at the ends of the model."""
    low = layer - width // 2  # 10 layers: from 5 below to 4 above, as ROME's code has it
    return max(0, low), min(depth, low + width)


def _chance(logits: Tensor, o: int) -> Tensor:
    """(b,): P(o) of logits (b, V), in float64 on the CPU."""
    return (logits[:, o] - logits.logsumexp(-1)).double().exp().cpu()


class _Corrupted:
    """The corrupted run of every draw, and what becomes of it when states are put back.

    Blocks below the first restored state do not run again: they say what they said in the corrupted run. That this
    leads to the same logits is checked for each depth; where it does not, every block runs.
    """

    def __init__(self, lm: HFLM, ids: Sequence[int], first: int, o: int, noise: Tensor) -> None:
        self.lm, self.o, self.first = lm, o, first
        self.ids = torch.tensor([list(ids)], device=lm.device)  # (1, t)
        self.noise = noise  # (samples, subject tokens, d)
        self.rows = max(1, lm.budget // len(ids))  # that run together
        self.forms: list[Any] = [None] * lm.sites.depth  # how each block hands on its hidden state
        self.hidden: list[list[Tensor]] = [[] for _ in self.forms]
        logits = [self._logits(draws, see=self._keep()) for draws in torch.arange(len(noise)).split(self.rows)]
        self.stored = [torch.cat(its) for its in self.hidden]  # (samples, t, d) for each layer
        self.probability = float(torch.cat([_chance(its, o) for its in logits]).mean())
        self.skips = self._may_skip(logits[0][:1])

    def restored(self, states: Mapping[str, Tensor], skipped: int) -> Tensor:
        """(positions,): P(o) with the clean output of these modules put back at one position from the subject on.

        ``states`` maps module paths to (positions, width); ``skipped`` blocks come before all of them.
        """
        width = self.ids.shape[1] - self.first
        pairs = torch.cartesian_prod(torch.arange(len(self.noise)), torch.arange(width))  # (samples · positions, 2)
        chances = [
            _chance(self._logits(draws, skipped if self.skips else 0, self._put_back(states, at)), self.o)
            for draws, at in (part.unbind(1) for part in pairs.split(self.rows))
        ]
        return torch.cat(chances).view(len(self.noise), width).mean(0)

    def _logits(self, draws: Tensor, skipped: int = 0, see: Iterable[AbstractContextManager[None]] = ()) -> Tensor:
        """(b, V): at the last token of a row for each of ``draws``, without the first ``skipped`` blocks."""
        lm, b, t = self.lm, len(draws), self.ids.shape[1]
        ids = self.ids.repeat(b, 1)
        mask, last = torch.ones_like(ids), torch.full((b,), t - 1, device=ids.device)
        with (
            lm.calling(Call(mask, last)),
            hooks.stand_in(self._said(draws, skipped)),
            hooks.after(lm.model.get_submodule(lm.sites.embed), lambda args, kwargs, out: self._corrupt(out, draws)),
            hooks.all_of(see),
            passes.gathered(lm.model, lm.sites, torch.arange(b), last),
        ):
            return passes.exact(lm.run(passes.inputs_of(lm.model, ids, mask)).logits[0])

    def _corrupt(self, embedded: Tensor, draws: Tensor) -> Tensor:
        noisy = embedded.clone()
        noisy[:, self.first : self.first + self.noise.shape[1]] += self.noise[draws].to(embedded)
        return noisy

    def _said(self, draws: Tensor, skipped: int) -> dict[Any, Any]:
        """Each of the first blocks -> a forward that hands on what the last of them said in the corrupted run."""
        if not skipped:
            return {}
        hidden = self.stored[skipped - 1]
        output = passes.with_part(self.forms[skipped - 1], hidden[draws.to(hidden.device)])
        return {self.lm.model.get_submodule(path): lambda *_, **__: output for path in self.lm.sites.layer[:skipped]}

    def _keep(self) -> list[AbstractContextManager[None]]:
        """Hooks that store what each block says."""

        def keep(layer: int, output: Any) -> None:
            self.forms[layer] = output
            self.hidden[layer].append(passes.part_of(output).clone())  # the next block may write into it

        def at(layer: int, path: str) -> AbstractContextManager[None]:
            return hooks.after(self.lm.model.get_submodule(path), lambda args, kwargs, out: keep(layer, out))

        return [at(layer, path) for layer, path in enumerate(self.lm.sites.layer)]

    def _put_back(self, states: Mapping[str, Tensor], at: Tensor) -> list[AbstractContextManager[None]]:
        """Hooks that set one position of each row, ``at`` (b,) counted from the subject's first token."""

        def change(output: Any, clean: Tensor) -> Any:
            hidden = passes.part_of(output)
            changed = passes.rowwise(hidden, len(at)).clone()
            changed[torch.arange(len(at)), self.first + at] = clean[at].to(changed)
            return passes.with_part(output, changed.view_as(hidden))

        def put(path: str, clean: Tensor) -> AbstractContextManager[None]:
            return hooks.after(self.lm.model.get_submodule(path), lambda args, kwargs, out: change(out, clean))

        return [put(path, clean) for path, clean in states.items()]

    def _may_skip(self, full: Tensor) -> bool:
        """Whether one draw, run from any layer on, gives the logits of the whole run (1, V)."""
        one = torch.zeros(1, dtype=torch.long)
        same = all(passes.agree(self._logits(one, n), full) for n in range(1, self.lm.sites.depth + 1))
        if not same:
            log.warning("%s does not give the same logits when run from a layer on; all layers run", self.lm.name)
        return same


# Averages ----------------------------------------------------------------------------------------


def average(traces: Sequence[Trace]) -> Average:
    """The mean effect by role of the token; several tokens of a role in one fact count as their mean.

    Each token has one role. The prompt's last token is always ``last token``; a subject of one token is its last.
    """
    if not traces:
        raise BadInput("no trace was given to average")
    shapes = {tuple((kind, table.shape[1]) for kind, table in its.effects.items()) for its in traces}
    if len(shapes) > 1:
        raise BadInput(f"traces of different kinds or depths cannot be averaged; found {len(shapes)} sorts")
    effects: dict[str, Tensor] = {}
    errors: dict[str, Tensor] = {}
    for kind in traces[0].effects:
        by_fact = torch.stack([_by_role(its, its.effects[kind]) for its in traces])  # (n, roles, layers)
        count = (~by_fact.isnan()).sum(0)
        effects[kind] = by_fact.nanmean(0)
        squares = (by_fact - effects[kind]).square().nansum(0)
        errors[kind] = torch.where(count > 1, (squares / (count - 1) / count).sqrt(), math.nan)
    roles = [set(_roles(its)) for its in traces]
    return Average(
        facts=len(traces),
        clean=sum(its.clean for its in traces) / len(traces),
        corrupted=sum(its.corrupted for its in traces) / len(traces),
        counts={name: sum(i in its for its in roles) for i, name in enumerate(ROLES)},
        effects=effects,
        errors=errors,
    )


def _roles(its: Trace) -> list[int | None]:
    """The role of each token, an index of ROLES; None before the subject."""
    (first, end), n = its.subject, len(its.tokens)

    def role(i: int) -> int | None:
        if i < first:
            return None
        if i == n - 1:
            return 5
        if i < end:
            return 2 if i == end - 1 else 0 if i == first else 1
        return 3 if i == end else 4

    return [role(i) for i in range(n)]


def _by_role(its: Trace, effect: Tensor) -> Tensor:
    """(roles, layers): the mean over the tokens of each role, NaN where there is none."""
    roles = _roles(its)
    where = [[i for i, role in enumerate(roles) if role == wanted] for wanted in range(len(ROLES))]
    return torch.stack([effect[rows].mean(0) for rows in where])  # the mean of nothing is NaN
