"""Statistics of a model that closed forms need: the second moments of keys, and the lengths of hidden states."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor
from typing_extensions import TypedDict

from errata.methods.closed_form.shelf import Put, in_groups, shelf, too_many
from errata.methods.state import State, cached_state
from errata.model.hf import HFLM
from errata.model.projection import KEY, Projection
from errata.model.second_moment import key_sums
from errata.model.texts import pieces_of, sampled_texts
from errata.model.weights import shape_of, stem, weight_shape
from errata.patch.schema import Floats

log = logging.getLogger(__name__)

PER_DIMENSION = 40  # tokens read for each dimension of a key, where the texts are ours to choose
NORM_PIECES = 64  # pieces of text in which the size of hidden states is measured


def key_statistics(lm: HFLM, layers: Sequence[int], data: Iterable[str] | None, seed: int) -> State:
    """A state with ``C`` (f, f) of each weight of the layers' down projections, float32, and how many tokens went in.

    ``data`` are texts; else those that go with the model; else text sampled from the model itself, which is logged.
    Cached on disk: the same model, layers and texts are read once.
    """
    projections = [Projection.of(lm.sites, layer) for layer in layers]
    paths = [projection.path for projection in projections]
    tokens_needed = max(_tokens_needed(lm, projection) for projection in projections)
    texts, pieces = data, None
    if data is not None:
        source = "given"
    elif lm.resources.texts is not None:
        source, texts = "corpus", lm.resources.texts()
    else:
        log.warning("no texts given: key statistics come from %d tokens sampled from the model itself", tokens_needed)
        source = f"sampled, seed {seed}"
    if texts is not None:
        pieces = list(pieces_of(lm, texts, None if data is not None else tokens_needed))

    in_files = too_many(lm.model, projections)

    def make() -> State:
        read = list(pieces_of(lm, sampled_texts(lm, seed), tokens_needed)) if pieces is None else pieces
        info = {
            "model": {"name": lm.name, "fingerprint": lm.fingerprint},
            "what": "key second moments",
            "source": source,
            "tokens": sum(map(len, read)),
            "layers": list(layers),
            "norms": typical_norms(lm, read[:: max(1, len(read) // NORM_PIECES)], layers),
        }
        with shelf(in_files) as put:
            return State(_moments(lm, read, projections, put), info)

    content = [lm.fingerprint, paths, source, tokens_needed, pieces]
    return cached_state("keys", content, make, lambda state: check_statistics(lm, layers, state), mapped=in_files)


def _moments(
    lm: HFLM, pieces: Sequence[Sequence[int]], projections: Sequence[Projection], put: Put
) -> dict[str, Tensor]:
    """C by name, of as many layers in one reading of the pieces as there is room for."""
    tokens, made = sum(map(len, pieces)), dict[str, Tensor]()
    for group in in_groups(lm.model, projections):
        sums = key_sums(lm, pieces, [projection.path for projection in group])
        seen = {name: gram.count for name, gram in sums.items()}
        moments = {name: put(sums.pop(name).matrix().div_(tokens)) for name in list(sums)}
        for projection in group:
            for name, c in _completed(lm, projection, moments, seen):
                moments[name] = put(c)
        made |= {f"C/{stem(name)}": c for name, c in moments.items()}
    return made


def _tokens_needed(lm: HFLM, projection: Projection) -> int:
    """So many that each weight of a down projection sees PER_DIMENSION of them for each dimension of its keys.

    Of a mixture's experts a token reaches a few; how many, one that is read tells.
    """
    names = projection.weights(lm.model)
    width = max(shape_of(lm.model, name)[1] for name in names)
    if len(names) == 1:
        return PER_DIMENSION * width
    reached = lm.read([[lm.tokens.fill]], [[0]], [(projection.path, KEY)])
    return PER_DIMENSION * width * len(names) // len(reached)


def _completed(
    lm: HFLM, projection: Projection, moments: Mapping[str, Tensor], seen: Mapping[str, int]
) -> Iterator[tuple[str, Tensor]]:
    """Name and C of the weights of a down projection that saw few tokens or none, one after another; which is logged.

    In the directions that an expert did not see C is what it is for the others in the mean: as a share of f tokens
    lacks, that share of their mean eigenvalue is added to each of its own.
    """
    model = lm.model
    names = projection.weights(model)
    widths = {name: shape_of(model, name)[1] for name in names}
    few = [name for name in names if seen.get(name, 0) < widths[name]]
    if not few:
        return
    numbers = ", ".join(f"{name} {seen.get(name, 0)}" for name in few[:4]) + (" and more" if len(few) > 4 else "")
    log.warning(
        "fewer tokens than dimensions of their keys (%d) were seen by %d of %d weights (%s): give more text for better "
        "edits",
        *(max(widths[name] for name in few), len(few), len(names), numbers),
    )
    if len(names) == 1:
        return
    mean = sum(float(moments[name].trace()) / widths[name] for name in names if name in moments) / len(names)
    for name in few:
        f = widths[name]
        c = moments[name].clone() if name in moments else torch.zeros(f, f)
        c.diagonal().add_((1 - seen.get(name, 0) / f) * mean)
        yield name, c


class KeyStatistics(TypedDict):
    """What the state says of C, a tensor for each layer."""

    layers: list[int]
    norms: dict[str, float]


def check_statistics(lm: HFLM, layers: Sequence[int], state: State) -> None:
    """Raises :class:`BadInput` unless the state holds C of each of the layers."""
    for name in (name for layer in layers for name in Projection.of(lm.sites, layer).weights(lm.model)):
        state.tensor(f"C/{stem(name)}", Floats("f f"), f=weight_shape(lm.model, name)[1])


def typical_norms(lm: HFLM, pieces: Sequence[Sequence[int]], layers: Sequence[int]) -> dict[str, float]:
    """Path -> the median length of its output for a token, for each layer and each layer's down projection."""
    paths = [path for layer in layers for path in (lm.sites.layer[layer], lm.sites.mlp_out[layer])]
    columns = [range(len(piece)) for piece in pieces]
    out = lm.read(pieces, columns, [(path, "out") for path in paths])
    return {path: float(out[path, "out"].norm(dim=-1).median()) for path in paths}
