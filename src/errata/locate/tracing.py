"""Which hidden states decide a model's answer about a subject: causal tracing.

    result = trace(lm, "The Space Needle is in the city of", "The Space Needle")
    result.effects["hidden"]               # (positions, layers): the indirect effect of each state

ROME, section 2 (https://arxiv.org/abs/2202.05262). Noise is added to the embeddings of the subject's tokens, so that
the model cannot tell which subject the prompt is about. Then one state of the clean run is restored in this corrupted
run. The indirect effect is P_restored(o) − P_corrupted(o) for the first token o of the answer.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from errata.errors import BadInput, Unsupported, unknown
from errata.locate.runs import CorruptedRuns, probability
from errata.model import passes
from errata.model.hf import HFLM
from errata.subjects import placed

KINDS: Mapping[str, str] = {
    "hidden": "the output of a block",
    "mlp": "MLP outputs in a window of layers",
    "attention": "attention outputs in a window of layers",
}


@dataclass(frozen=True, eq=False)
class Trace:
    """The indirect effects of one fact. Probabilities are those of :attr:`answer`, the token o."""

    tokens: tuple[str, ...]
    """Text of each token of the prompt."""
    subject: tuple[int, int]
    """Index of the subject's first token, and of the token after its last."""
    answer: str
    """Text of the token o."""
    clean: float
    """P(o), nothing changed."""
    corrupted: float
    """P*(o), the mean over the noise draws."""
    effects: Mapping[str, Tensor]
    """Kind of state -> indirect effect (positions, layers)."""
    window: int
    """Number of layers restored together where the kind is "mlp" or "attention"."""
    sigma: float
    """Standard deviation of the noise."""
    samples: int
    """Number of noise draws."""

    def to_json(self) -> dict[str, Any]:
        """A record for JSON: the fields."""
        return {**vars(self), "effects": lists_of(self.effects)}


def lists_of(tables: Mapping[str, Tensor]) -> dict[str, list[list[float | None]]]:
    """Tables as nested lists, NaN as None."""
    return {
        kind: [[None if math.isnan(x) else x for x in row] for row in table.tolist()] for kind, table in tables.items()
    }


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
    """The indirect effect of each state (position, layer) of a decoder-only model, which is left as it was.

    The noise is Gaussian with standard deviation ``noise`` · ``std``; ``std`` is by default that of all entries of this
    subject's embeddings (:func:`embedding_std` pools those of many). The same ``samples`` draws are used in every
    restored run. o is the first token of ``target``, by default the model's most likely one. For MLP and attention
    outputs ``window`` layers around each are restored together: by default a fifth of the depth (10 of 48, as in ROME),
    at least 1. Tokens before the subject have no effect, as no noise reaches them. Raises :class:`BadInput`, and
    :class:`Unsupported` for encoder-decoders.
    """
    prompt, subject, at = filled_prompt(prompt, subject)
    kinds = checked_kinds(kinds, samples, noise, window)
    lm.check()
    depth = lm.sites.depth
    paths = {kind: _paths(lm, kind) for kind in kinds}
    ids, (first, end) = tokens_of(lm, prompt, subject, at)
    window = min(window or max(1, round(depth / 5)), depth)
    sigma = noise * (deviation(embeddings(lm, ids[first:end])) if std is None else std)

    clean_logits = passes.at_least_float32(lm.target_logits([(ids, [lm.tokens.fill])])[0])  # (V)
    o = int(clean_logits.argmax()) if target is None else lm.tokens.target(prompt, target)[0]
    sites = [(path, "out") for of_kind in paths.values() for path in of_kind]
    clean = lm.read([ids], [range(first, len(ids))], sites)  # site -> (positions, width)
    runs = CorruptedRuns(lm, ids, first, o, _noise(lm, (samples, end - first), sigma, seed))

    effects = {kind: torch.zeros(len(ids), depth, dtype=torch.float64) for kind in kinds}
    for kind, of_kind in paths.items():
        for layer in range(depth):
            low, high = (layer, layer + 1) if kind == "hidden" else _window(layer, window, depth)
            states = {path: clean[path, "out"] for path in of_kind[low:high]}
            restored = runs.restored(states, skipped=low + (kind == "hidden"))
            effects[kind][first:, layer] = restored - runs.probability
    pieces = tuple(lm.tokens.decode([i]) or str(lm.tokenizer.convert_ids_to_tokens(i)) for i in ids)
    p = float(probability(clean_logits[None], o))
    answer = lm.tokens.decode([o])
    return Trace(pieces, (first, end), answer, p, runs.probability, effects, window, sigma, samples)


def embedding_std(lm: HFLM, facts: Iterable[tuple[str, str]]) -> float:
    """The standard deviation of all entries of the embeddings of the subjects of (prompt, subject) pairs."""
    rows: list[int] = []
    for prompt, subject in facts:
        ids, (first, end) = tokens_of(lm, *filled_prompt(prompt, subject))
        rows += ids[first:end]
    return deviation(embeddings(lm, rows))


def filled_prompt(prompt: str, subject: str) -> tuple[str, str, int]:
    """The prompt, a ``{}`` in it filled with the subject, the subject, and where it begins (as for an edit).

    Raises :class:`BadInput` where the subject is empty or does not occur in the prompt.
    """
    subject = subject.strip()
    if not subject:
        raise BadInput(f"the subject of {prompt!r} is empty; name what the fact is about")
    prompt, at = placed(prompt, subject)
    return prompt, subject, at


def checked_kinds(kinds: Sequence[str], samples: int, noise: float, window: int | None) -> tuple[str, ...]:
    """The kinds of state, each once. Raises :class:`BadInput` for these and for settings that make no sense."""
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


@torch.no_grad()
def embeddings(lm: HFLM, ids: Sequence[int]) -> Tensor:
    """The embedding's output for token ids, with its own scale where it has one. (t, d)."""
    embed: Any = lm.model.get_submodule(lm.sites.embed)
    return passes.at_least_float32(embed(torch.tensor([list(ids)], device=lm.device)))[0]


def deviation(values: Tensor) -> float:
    """The standard deviation of all entries."""
    return float(values.std())


def _noise(lm: HFLM, shape: tuple[int, int], sigma: float, seed: int) -> Tensor:
    """Noise, drawn on the CPU so that it is the same on every device. (samples, subject tokens, d)."""
    width = embeddings(lm, [lm.tokens.fill]).shape[-1]
    return sigma * torch.randn(*shape, width, generator=torch.Generator().manual_seed(seed))


def tokens_of(lm: HFLM, prompt: str, subject: str, at: int) -> tuple[list[int], tuple[int, int]]:
    """The prompt's ids, and the indices of the first token of the subject at ``at`` and of the one after its last."""
    ids = lm.tokens.prompt(prompt)
    last = lm.tokens.last_of_subject(prompt, subject, at)
    begin = lm.tokens.decode(ids[: last + 1]).rfind(subject)
    if begin < 0:  # the tokenizer changed the text: look for the subject's first letter instead
        return ids, (min(last, lm.tokens.last_of_subject(prompt, subject[0], at)), last + 1)
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
    """The first layer of a window and the one after its last, within the model."""
    low = layer - width // 2  # 10 layers: from 5 below to 4 above, as ROME's code has it
    return max(0, low), min(depth, low + width)
