"""What the closed forms take: operations and bytes of each step, from the shapes of a model.

n facts, d and f the sides of a down projection, t tokens of text. The tests count the operations of real runs.
"""

from dataclasses import dataclass, replace
from math import ceil
from typing import TYPE_CHECKING, Any

from errata.methods.closed_form.keys import CHUNK
from errata.methods.closed_form.statistics import NORM_PIECES, PER_DIMENSION
from errata.methods.texts import CONTEXT_TOKENS
from errata.model.size import Size, Step, Work

if TYPE_CHECKING:
    from errata.methods.closed_form.base import ClosedForm

LOGITS = 5  # tables of float32 over the vocabulary that the loss of an entry holds


def steps(method: "ClosedForm", size: Size, work: Work) -> list[Step]:
    """What ``method`` does, in order. Searches are counted to their last step: many facts end earlier."""
    layers = method.chosen_layers(size.lm)
    edited = tuple(sorted({layers[0], layers[-1]})) if method.blue else layers
    turns = [(layer,) for layer in edited] if method.blue else [edited]
    editing = [
        _inverse(method, size, edited),
        *(_search(method, size, work, turn[-1]) for turn in turns),
        _keys(method, size, work, turns),
        _solve(method, size, work, edited),
        *_sums(method, size, work, edited),
    ]
    held = _held(size, layers, 4) + _held(size, edited, 8 if method.history else 4)  # C, inverses: all the time
    editing = [replace(step, host=step.host + held) for step in editing]
    return [*_prepare(size, work, layers), *editing, _put_on(size, work, edited)]


def _held(size: Size, layers: tuple[int, ...], bytes_of_entry: float) -> float:
    """Bytes of a matrix (f, f) for each layer."""
    return sum(bytes_of_entry * size.down(layer)[1] ** 2 for layer in layers)


def _tokens(size: Size, work: Work, layers: tuple[int, ...]) -> float:
    return work.texts or PER_DIMENSION * max(size.down(layer)[1] for layer in layers)


def _prepare(size: Size, work: Work, layers: tuple[int, ...]) -> list[Step]:
    t, last, w = _tokens(size, work, layers), layers[-1], size.window
    d, f = size.down(last)
    budget = size.lm.budget
    c = _held(size, layers, 4)
    made: list[Step] = []
    if work.sampled:
        rows = max(1, budget // w)
        flop = t * (size.whole(w / 2) + size.head_flop)
        note = "no texts were given, so the model writes them: a token at a time"
        moved = t / rows * size.weights
        made.append(Step("sample texts", "prepare", {"model": flop}, moved, device=size.passing(budget), note=note))
    pieces = ceil(t / w)
    of_norms = ceil(pieces / max(1, pieces // NORM_PIECES)) * min(w, t)
    reading = t * (size.blocks(0, last + 1, w) - 2 * d * f) + of_norms * size.blocks(0, last + 1, w)
    moments = sum(2.0 * size.down(layer)[1] ** 2 * t for layer in layers)
    device = size.passing(budget) + 4 * budget * f + c
    made.append(Step("read texts", "prepare", {"model": reading}, device=device, note=f"{t:,.0f} tokens"))
    made.append(Step("second moments", "prepare", {"float32": moments}, device=device, host=c, disk=c))
    return made


def _inverse(method: "ClosedForm", size: Size, edited: tuple[int, ...]) -> Step:
    widest = max(size.down(layer)[1] for layer in edited) ** 2
    flop = sum(method.METRIC_FLOP * float(size.down(layer)[1]) ** 3 for layer in edited)
    beside = 8.0 * method.METRIC_COPIES * widest
    there = beside if size.on_host else beside + 20.0 * widest  # C and, in float64, itself twice
    return Step("inverse", "edit", {"inverse": flop}, device=there)


def _search(method: "ClosedForm", size: Size, work: Work, last: int) -> Step:
    """The target vectors at one layer: the beginnings once, then only what lies behind and above."""
    n, rows, lengths = work.edits, method.contexts + 1 + bool(method.kl), work.prompt + work.context
    entries = (method.contexts + 1) * work.target + bool(method.kl)
    suffix, before = rows * work.suffix, rows * (work.subject_end - 1)
    once = before * size.whole(lengths) + suffix * size.blocks(0, last + 1, lengths)
    written = method.contexts * CONTEXT_TOKENS * (size.whole(CONTEXT_TOKENS) + size.head_flop)
    spared = (suffix - min(suffix, entries)) * size.mlp_flop * (last < size.depth - 1)
    forward = suffix * size.blocks(last + 1, size.depth, lengths) - spared + entries * size.head_flop
    flop = written + n * (once + (2 * method.steps - 1) * forward)
    most = n * rows * lengths
    tokens = rows * lengths if method.one_by_one else min(most, max(size.lm.budget, rows * lengths))
    share = tokens / (rows * lengths)  # facts in a batch
    activations = size.kept * share * suffix * (size.depth - 1 - last)
    cache = 2 * size.itemsize * tokens * sum(size.attention_width)
    logits = 4.0 * LOGITS * share * entries * size.head_flop / (2 * size.down(last)[0])
    return Step("targets", "edit", {"model": flop}, device=activations + cache + logits, note="every search to its end")


def _keys(method: "ClosedForm", size: Size, work: Work, turns: list[tuple[int, ...]]) -> Step:
    n, at, context = work.edits, work.subject_end, work.context
    beginnings = method.contexts * context * ceil(n / (1 if method.one_by_one else CHUNK))
    flop = 0.0
    for turn in turns:
        bare = n * at * size.blocks(0, turn[-1] + 1, at)
        flop += bare * (1 + len(turn))
        for layer in turn:
            flop += n * method.contexts * at * size.blocks(0, layer + 1, at + context)
            flop += beginnings * size.whole(context) if method.contexts else 0.0
    d, f = size.down(turns[-1][-1])
    return Step("keys", "edit", {"model": flop}, device=size.passing(size.lm.budget), host=8.0 * n * (f + 4 * d))


def _solve(method: "ClosedForm", size: Size, work: Work, edited: tuple[int, ...]) -> Step:
    n, flop, host = float(work.edits), 0.0, 0.0
    for layer in edited:
        d, f = size.down(layer)
        flop += 2 * f * f * n + (2 * f * n if method.one_by_one else 2 * f * n * n + 2 * n**3 / 3 + 2 * d * n * n)
        if method.history:
            flop += 4 * f * f * n + 2 * f * n * n + 9 * n**3
        together = 1.0 if method.one_by_one else n
        host = max(host, 8 * (together * (2 * f + 2 * d) + 2 * together**2))
    return Step("solve", "edit", {"float64": flop}, host=host)


@dataclass(frozen=True)
class _Sum:
    """What it takes to put a patch on, W + ΔW in each layer, and what the patch holds."""

    flop: float
    storage: float
    patch: float


def _sum(size: Size, edits: int, edited: tuple[int, ...]) -> _Sum:
    flop = storage = patch = 0.0
    for d, f in map(size.down, edited):
        low = edits <= min(d, f) // 2
        flop += 2.0 * d * f * edits * (2 if size.itemsize < 4 else 1) if low else 0.0  # half precision looks twice
        storage += size.itemsize * d * f
        patch += 4.0 * edits * (d + f) if low else 4.0 * d * f
    return _Sum(flop, storage, patch)


def _sums(method: "ClosedForm", size: Size, work: Work, edited: tuple[int, ...]) -> list[Step]:
    """The model with the changes so far, which the next layer or fact is read with; and asked, when all are made."""
    n, whole, again = work.edits, _sum(size, work.edits, edited), (len(edited) - 1) / 2
    flop = whole.flop * again + sum(2.0 * d * f * n for d, f in map(size.down, edited) if n > min(d, f) // 2)
    if method.one_by_one:  # for each fact twice, with those before
        most = min(n, min(size.down(edited[-1])) // 2)
        flop, again = _sum(size, most, edited).flop * most, 2.0 * n
    keys = sum(4.0 * f * min(n, f) for _, f in map(size.down, edited)) if method.history else 0.0
    asked = n * (work.prompt * size.whole(work.prompt) + work.target * size.head_flop)
    kept: Any = {"host": whole.patch + keys, "disk": whole.patch + keys}
    device = whole.storage + size.passing(size.lm.budget)
    return [
        Step("sums", "edit", {"float32": flop}, 2 * again * whole.storage, device=whole.storage, **kept),
        Step("ask", "edit", {"model": asked, "float32": whole.flop}, 2 * whole.storage, device=device),
    ]


def _put_on(size: Size, work: Work, edited: tuple[int, ...]) -> Step:
    whole = _sum(size, work.edits, edited)
    held: Any = {"device": whole.storage, "host": whole.patch}
    return Step("put on", "apply", {"float32": whole.flop}, 2 * whole.storage, **held)
