"""The small models that travel with a patch: their sizes as JSON, their tensors by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from errata.errors import BadInput
from errata.methods.trained.routed.counterfactual import Counterfactual
from errata.methods.trained.routed.scope import EncodedScope, ScopeClassifier
from errata.methods.trained.routed.transformer import HEADS

Size = Annotated[int, Field(ge=1, le=2**20)]
Depth = Annotated[int, Field(ge=1, le=64)]
Width = Annotated[int, Field(ge=2 * HEADS, le=2**14, multiple_of=2 * HEADS)]


@dataclass(frozen=True)
class Sizes:
    """Sizes of the small models."""

    vocabulary: Size
    vectors: Size  # width of the tokens' fixed vectors
    width: Width
    depth: Depth
    encoder: str | None = None  # whose sentences the scope classifier reads, in the place of tokens
    encoded: Size | None = None  # width of the encoder's vectors


class Helpers(nn.Module):
    """The tokens' fixed vectors, a scope classifier and a counterfactual model."""

    vectors: Tensor
    """(V, vectors)."""

    def __init__(self, sizes: Sizes, vectors: Tensor | None = None) -> None:
        """Untrained; ``vectors`` are zeros where none are given."""
        super().__init__()
        empty = torch.zeros(sizes.vocabulary, sizes.vectors) if vectors is None else vectors
        self.register_buffer("vectors", empty)
        if sizes.encoder is None or sizes.encoded is None:
            self.scope = ScopeClassifier(sizes.width, sizes.depth, sizes.vectors)
        else:
            self.scope = EncodedScope(sizes.encoder, sizes.encoded)
        self.counterfactual = Counterfactual(sizes.width, sizes.depth, sizes.vectors)

    @classmethod
    def built(cls, sizes: Sizes, tensors: Mapping[str, Tensor]) -> "Helpers":
        """The models of these sizes with these tensors. Raises :class:`BadInput` where the two do not go together."""
        with torch.device("meta"):  # takes no room: a file may name any size
            made = cls(sizes)
        expected = made.state_dict()
        if strange := sorted(expected.keys() ^ tensors.keys()):
            which = "is missing" if strange[0] in expected else "belongs to no small model"
            raise BadInput(f"the tensor {strange[0]} {which}")
        for name, value in expected.items():
            found: Any = tensors[name]
            if found.shape != value.shape or found.dtype != value.dtype:
                raise BadInput(
                    f"{name} is {str(found.dtype).removeprefix('torch.')} of the shape {tuple(found.shape)}, expected "
                    f"{str(value.dtype).removeprefix('torch.')} of {tuple(value.shape)}"
                )
        made.load_state_dict(dict(tensors), assign=True)
        return made.requires_grad_(False).eval()
