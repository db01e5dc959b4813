"""Statistics of a model that closed forms need: the second moments of keys, and the lengths of hidden states."""

import logging
from collections.abc import Iterable, Sequence

from typing_extensions import TypedDict

from errata.methods.base import State, cached_state
from errata.methods.texts import pieces_of, sampled_texts
from errata.model.hf import HFLM
from errata.model.second_moment import second_moments
from errata.patch.delta import weight_shape
from errata.patch.schema import Floats

log = logging.getLogger(__name__)

PER_DIMENSION = 40  # tokens read for each dimension of a key, where the texts are ours to choose
NORM_PIECES = 64  # pieces of text in which the size of hidden states is measured


def key_statistics(lm: HFLM, layers: Sequence[int], data: Iterable[str] | None, seed: int) -> State:
    """A state with ``C`` (f, f) of the down projection of each layer, float32, and how many tokens went in.

    ``data`` are texts; else those that go with the model; else text sampled from the model itself, which is logged.
    Cached on disk: the same model, layers and texts are read once.
    """
    paths = [lm.sites.mlp_out[layer] for layer in layers]
    width = max(weight_shape(lm, f"{path}.weight")[1] for path in paths)
    tokens_needed = PER_DIMENSION * width
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

    def make() -> State:
        read = list(pieces_of(lm, sampled_texts(lm, seed), tokens_needed)) if pieces is None else pieces
        moments, tokens = second_moments(lm, read, paths)
        norms = typical_norms(lm, read[:: max(1, len(read) // NORM_PIECES)], layers)
        if tokens < width:
            log.warning("only %d tokens for keys of %d dimensions: give more text for better edits", tokens, width)
        info = {
            "model": {"name": lm.name, "fingerprint": lm.fingerprint},
            "what": "key second moments",
            "source": source,
            "tokens": tokens,
            "layers": list(layers),
            "norms": norms,
        }
        return State({f"C/{path}": moment for path, moment in moments.items()}, info)

    content = [lm.fingerprint, paths, source, tokens_needed, pieces]
    return cached_state("keys", content, make, lambda state: check_statistics(lm, layers, state))


class KeyStatistics(TypedDict):
    """What the state says of C, a tensor for each layer."""

    layers: list[int]
    norms: dict[str, float]


def check_statistics(lm: HFLM, layers: Sequence[int], state: State) -> None:
    """Raises :class:`BadInput` unless the state holds C of each of the layers."""
    for layer in layers:
        path = lm.sites.mlp_out[layer]
        state.tensor(f"C/{path}", Floats("f f"), f=weight_shape(lm, f"{path}.weight")[1])


def typical_norms(lm: HFLM, pieces: Sequence[Sequence[int]], layers: Sequence[int]) -> dict[str, float]:
    """Path -> the median length of its output for a token, for each layer and each layer's down projection."""
    paths = [path for layer in layers for path in (lm.sites.layer[layer], lm.sites.mlp_out[layer])]
    columns = [range(len(piece)) for piece in pieces]
    out = lm.read(pieces, columns, [(path, "out") for path in paths])
    return {path: float(out[path, "out"].norm(dim=-1).median()) for path in paths}
