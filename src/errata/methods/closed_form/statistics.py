"""."""

import logging
from collections.abc import Iterable, Sequence

from errata.methods.base import State, cached_state
from errata.methods.texts import pieces_of, sampled_texts
from errata.model.hf import HFLM
from errata.model.second_moment import second_moments

log = logging.getLogger(__name__)


PER_DIMENSION = 40  # tokens read for each dimension of a key, where the texts are ours to choose


NORM_PIECES = 64  # pieces of text in which the size of hidden states is measured


def key_statistics(lm: HFLM, layers: Sequence[int], data: Iterable[str] | None, seed: int) -> State:
    """A state with ``C`` (f, f) of the down projection of each layer, float32, and how many tokens went in.

    ``data`` are texts; else the corpus that goes with the model; else text sampled from the model itself (which is
    said). A folder of states (see :func:`cache_folder`) answers when the same was asked before.
    """
    sites = [lm.sites.mlp_out[layer] for layer in layers]
    width = max(_key_width(lm, site) for site in sites)
    wanted = PER_DIMENSION * width
    texts, pieces = data, None
    if data is not None:
        source = "given"
    elif lm.resources.texts is not None:
        source, texts = "corpus", lm.resources.texts()
    else:
        log.warning("no texts given: key statistics come from %d tokens sampled from the model itself", wanted)
        source = f"sampled, seed {seed}"
    if texts is not None:
        pieces = list(pieces_of(lm, texts, None if data is not None else wanted))

    def make() -> State:
        texts = list(pieces_of(lm, sampled_texts(lm, seed), wanted)) if pieces is None else pieces
        moments, tokens = second_moments(lm, texts, sites)
        norms = typical_norms(lm, texts[:: max(1, len(texts) // NORM_PIECES)], layers)
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
        return State({f"C/{site}": moment for site, moment in moments.items()}, info)

    return cached_state("keys", [lm.fingerprint, sites, source, wanted, pieces], make)


def typical_norms(lm: HFLM, pieces: Sequence[Sequence[int]], layers: Sequence[int]) -> dict[str, float]:
    """Median length of what each layer, and each layer's down projection, puts out for a token."""
    paths = [path for layer in layers for path in (lm.sites.layer[layer], lm.sites.mlp_out[layer])]
    columns = [range(len(piece)) for piece in pieces]
    out = lm.read(pieces, columns, [(path, "out") for path in paths])
    return {path: float(out[path, "out"].norm(dim=-1).median()) for path in paths}


def _key_width(lm: HFLM, site: str) -> int:
    from errata.patch.delta import weight_shape

    return weight_shape(lm, f"{site}.weight")[1]
