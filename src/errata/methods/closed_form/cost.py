"""What the closed forms take: operations and bytes of each step, from the shapes of a model.

n facts, d and f the sides of a down projection, t tokens of text. In a mixture d and f are each expert's, and to which
experts a token is sent is taken to be drawn for each token anew. The tests count the operations of real runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

from errata.methods.closed_form.choices import Choices
from errata.methods.closed_form.keys import CHUNK
from errata.methods.closed_form.shelf import entries, in_groups, too_many
from errata.methods.closed_form.solve import PORTION
from errata.methods.closed_form.statistics import NORM_PIECES, PER_DIMENSION
from errata.methods.closed_form.symmetric import ROOM
from errata.model.gram import COMPUTED, HELD
from errata.model.packing import WIDTH, can_pack
from errata.model.projection import Projection
from errata.model.size import Size, Step, Work
from errata.model.texts import CONTEXT_TOKENS

LOGITS = 5  # tables of float32 over the vocabulary that the loss of an entry holds


def steps(method: Choices, size: Size, work: Work) -> list[Step]:
    """What ``method`` does, in order. Searches are counted to their last step: many facts end earlier."""
    layers = method.chosen_layers(size.lm)
    edited = tuple(sorted({layers[0], layers[-1]})) if method.blue else layers
    turns = [(layer,) for layer in edited] if method.blue else [edited]
    editing = [
        _inverse(method, size, work, edited),
        *(_search(method, size, work, turn[-1]) for turn in turns),
        _keys(method, size, work, turns),
        _solve(method, size, work, edited),
        *_sums(method, size, work, edited),
    ]
    held = _held(size, layers) + _inverses(method, size, work, edited)  # C, inverses: all the time
    editing = [replace(step, host=step.host + held) for step in editing]
    return [*_prepare(size, work, layers), *editing, _put_on(method, size, work, edited)]


def _projections(size: Size, layers: tuple[int, ...]) -> list[Projection]:
    return [Projection.of(size.lm.sites, layer) for layer in layers]


def _held(size: Size, layers: tuple[int, ...]) -> float:
    """Bytes of C, float32, of all weights of the layers; none where they stay in a file."""
    projections = _projections(size, layers)
    return 0.0 if too_many(size.lm.model, projections) else 4.0 * entries(size.lm.model, projections)


def _inverses(method: Choices, size: Size, work: Work, edited: tuple[int, ...]) -> float:
    """Bytes of the inverses that are held: of all weights that the facts reach, or of as many as there is room for."""
    downs = [down for layer in edited for down in size.downs(layer)]
    entry = 8 if method.history else 4
    all_of_them = sum(entry * down.touched(_readings(method, work.edits)) * down.into**2 for down in downs)
    return min(all_of_them, max(ROOM, entry * len(edited) * _widest(size, edited) ** 2))


def _readings(method: Choices, edits: float) -> float:
    """How often subjects' last tokens are read: each in all its contexts."""
    return edits * (method.contexts + 1)


def _widest(size: Size, layers: tuple[int, ...]) -> int:
    """The largest f."""
    return max(down.into for layer in layers for down in size.downs(layer))


def _tokens(size: Size, work: Work, layers: tuple[int, ...]) -> float:
    """As many as :func:`errata.methods.closed_form.statistics.key_statistics` reads."""
    if work.texts:
        return work.texts
    wanted: list[float] = []
    for downs in map(size.downs, layers):
        count, reached = sum(down.count for down in downs), sum(down.reached for down in downs)
        wanted.append(PER_DIMENSION * max(down.into for down in downs) * count / reached)
    return max(wanted)


def _prepare(size: Size, work: Work, layers: tuple[int, ...]) -> list[Step]:
    t, last, w = _tokens(size, work, layers), layers[-1], size.window
    budget, model, projections = size.lm.budget, size.lm.model, _projections(size, layers)
    c, groups = 4.0 * entries(model, projections), in_groups(model, projections)
    made: list[Step] = []
    if work.sampled:
        rows = max(1, budget // w)
        flop = t * (size.whole(w / 2) + size.head_flop)
        note = "no texts were given, so the model writes them: a token at a time"
        moved = t / rows * size.weights
        made.append(Step("sample texts", "prepare", {"model": flop}, moved, device=size.passing(budget), note=note))
    pieces = ceil(t / w)
    of_norms = ceil(pieces / max(1, pieces // NORM_PIECES)) * min(w, t)
    reading = of_norms * size.blocks(0, last + 1, w) + t * sum(_to_the_keys(size, group, w) for group in groups)
    downs = [down for layer in layers for down in size.downs(layer)]
    moments = sum(COMPUTED * 2.0 * down.reached * down.into**2 * t for down in downs)
    sums = HELD * max(entries(model, group) for group in groups)
    device = size.passing(budget) + 4 * budget * max(down.reached * down.into for down in downs) + sums
    again = f" in each of {len(groups)} readings" if len(groups) > 1 else ""
    made.append(Step("read texts", "prepare", {"model": reading}, device=device, note=f"{t:,.0f} tokens{again}"))
    held, whole = _held(size, layers), 4.0 * _widest(size, layers) ** 2
    kept: Any = {"host": held or whole, "disk": c if held else 2 * c}
    note = "" if held else "C stays in the cache's file, and is written twice"
    made.append(Step("second moments", "prepare", {"float32": moments}, device=sums + whole, **kept, note=note))
    return made


def _to_the_keys(size: Size, projections: Sequence[Projection], seen: float) -> float:
    """Operations for a token up to the keys of the last of some layers, where a reading ends."""
    layers = [size.lm.sites.mlp_out.index(projection.path) for projection in projections]
    spared = 0.0 if projections[-1].experts else 2 * size.downs(layers[-1])[0].active
    return size.blocks(0, layers[-1] + 1, seen) - spared + sum(map(size.keys_again, layers))


def _inverse(method: Choices, size: Size, work: Work, edited: tuple[int, ...]) -> Step:
    widest = _widest(size, edited) ** 2
    downs = [down for layer in edited for down in size.downs(layer)]
    made = sum(down.touched(_readings(method, work.edits)) * float(down.into) ** 3 for down in downs)
    beside = 8.0 * method.METRIC_COPIES * widest
    beside += 0.0 if _held(size, edited) else 4.0 * widest  # C itself, from its file
    there = beside if size.on_host else beside + 20.0 * widest  # C and, in float64, itself twice
    return Step("inverse", "edit", {"inverse": method.METRIC_FLOP * made}, device=there)


def _search(method: Choices, size: Size, work: Work, last: int) -> Step:
    """The target vectors at one layer: the beginnings once, then only what lies behind and above."""
    searched = min(method.contexts, method.search_contexts) + 1
    n, rows, lengths = work.edits, searched + bool(method.kl), work.prompt + work.context
    entries = searched * work.target + bool(method.kl)
    suffix, before = rows * work.suffix, rows * (work.subject_end - 1)
    once = before * size.whole(lengths) + suffix * size.blocks(0, last + 1, lengths)
    written = method.contexts * CONTEXT_TOKENS * (size.whole(CONTEXT_TOKENS) + size.head_flop)
    whole = last == size.depth - 1 or size.lm.sites.mlp_out[-1] in size.lm.sites.experts_of(-1)
    spared = 0.0 if whole else (suffix - min(suffix, entries)) * size.mlp_flop
    forward = suffix * size.blocks(last + 1, size.depth, lengths) - spared + entries * size.head_flop
    asked = (searched if method.optimizer == "adam" else 1) / rows  # of the rows, by the first step
    first = (bool(method.kl) / rows + (2 if method.steps > 1 else 1) * asked) * forward
    flop = written + n * (once + first + max(0, 2 * method.steps - 3) * forward)
    most = method.at_once(n) * rows * lengths
    tokens = min(most, max(size.lm.budget, rows * lengths))
    share = tokens / (rows * lengths)  # facts in a batch
    activations = size.kept * share * suffix * (size.depth - 1 - last)
    held = tokens
    if can_pack(size.lm.model):  # what rows begin with is held for an element of many
        held = share * before + work.context * ceil(share * rows * work.prompt / WIDTH)
    cache = 2 * size.itemsize * held * sum(size.attention_width)
    logits = 4.0 * LOGITS * share * entries * size.head_flop / (2 * size.down(last)[0])
    return Step("targets", "edit", {"model": flop}, device=activations + cache + logits, note="every search to its end")


def _keys(method: Choices, size: Size, work: Work, turns: list[tuple[int, ...]]) -> Step:
    n, at, context = work.edits, work.subject_end, work.context
    beginnings = method.contexts * context * ceil(n / min(CHUNK, method.at_once(n)))
    flop = 0.0
    for turn in turns:
        flop += n * at * (len(turn) * size.blocks(0, turn[-1] + 1, at) + size.blocks(0, turn[0] + 1, at))
        for layer in turn:
            flop += n * method.contexts * at * size.blocks(0, layer + 1, at + context)
            flop += _readings(method, n) * at * size.keys_again(layer)
            flop += beginnings * size.blocks(0, layer + 1, context) if method.contexts else 0.0
    downs = size.downs(turns[-1][-1])
    read = n * (sum(down.touched(_readings(method, 1)) * down.into for down in downs) + 4 * downs[0].out)
    return Step("keys", "edit", {"model": flop}, device=size.passing(size.lm.budget), host=8.0 * read)


def _solve(method: Choices, size: Size, work: Work, edited: tuple[int, ...]) -> Step:
    n, flop, host = float(work.edits), 0.0, 0.0
    for downs in map(size.downs, edited):
        d, together = downs[0].out, float(method.at_once(work.edits))
        keys = 0.0
        for down in downs:
            f, reached = down.into, down.touched(_readings(method, 1))  # of one fact
            seen = together * reached / down.count  # by each, of those that are solved for together
            keys += f * together * reached
            flop += n * reached * (2 * f * f + 2 * f * seen)
            if method.history:
                b = min(seen, max(1, f // PORTION))
                flop += n * reached * (3 * f * f + 4 * f * b + 9 * b * b)
        f, b = downs[0].into, max(1, downs[0].into // PORTION)
        if len(downs) == downs[0].count == 1 and together > f // 2:
            flop += n * (f * (f + 4 * d + 3 * b - 2 * together) + d * b + b * b / 3)
            host = max(host, 8 * (keys + 2 * d * together + f * f / 2 + f * (d + 3 * b) + 2 * b * b))
        else:
            flop += n * (2 * together**2 / 3 + 2 * d * together)
            host = max(host, 8 * (2 * keys + 2 * d * together + 2 * together**2))
    return Step("solve", "edit", {"float64": flop}, host=host)


@dataclass(frozen=True)
class _Sum:
    """What it takes to put a patch on, W + ΔW in each layer, and what the patch holds."""

    flop: float
    storage: float
    patch: float


def _sum(method: Choices, size: Size, edits: int, edited: tuple[int, ...]) -> _Sum:
    flop = storage = patch = 0.0
    for down in (down for layer in edited for down in size.downs(layer)):
        d, f, changed = down.out, down.into, down.touched(_readings(method, edits))
        rank = edits * down.touched(_readings(method, 1)) / changed
        low = rank <= min(d, f) // 2
        flop += 2.0 * d * f * rank * changed * (2 if size.itemsize < 4 else 1) if low else 0.0  # halves: looks twice
        storage += size.itemsize * d * f * down.count
        patch += changed * (4.0 * rank * (d + f) if low else 4.0 * d * f)
    return _Sum(flop, storage, patch)


def _sums(method: Choices, size: Size, work: Work, edited: tuple[int, ...]) -> list[Step]:
    """The model with the changes so far, which the next layer or fact is read with; and asked, when all are made."""
    n, whole, again = work.edits, _sum(method, size, work.edits, edited), (len(edited) - 1) / 2
    downs = [down for layer in edited for down in size.downs(layer)]
    seen = [(down, n * down.touched(_readings(method, 1)) / down.touched(_readings(method, n))) for down in downs]
    dense = sum(2.0 * d.out * d.into * rank * d.count for d, rank in seen if rank > min(d.out, d.into) // 2)
    flop = whole.flop * again + dense
    if (parts := ceil(n / method.at_once(n))) > 1:  # for each part twice, with those before
        most = min(n, min(downs[-1].out, downs[-1].into) // 2)
        flop = _sum(method, size, most, edited).flop * ceil(most / method.at_once(n))
        again = 2.0 * parts
    keys = sum(4.0 * d.into * min(rank, d.into) * d.count for d, rank in seen) if method.history else 0.0
    asked = n * (work.prompt * size.whole(work.prompt) + work.target * size.head_flop)
    kept: Any = {"host": whole.patch + keys, "disk": whole.patch + keys}
    device = whole.storage + size.passing(size.lm.budget)
    return [
        Step("sums", "edit", {"float32": flop}, 2 * again * whole.storage, device=whole.storage, **kept),
        Step("ask", "edit", {"model": asked, "float32": whole.flop}, 2 * whole.storage, device=device),
    ]


def _put_on(method: Choices, size: Size, work: Work, edited: tuple[int, ...]) -> Step:
    whole = _sum(method, size, work.edits, edited)
    held: Any = {"device": whole.storage, "host": whole.patch}
    return Step("put on", "apply", {"float32": whole.flop}, 2 * whole.storage, **held)
