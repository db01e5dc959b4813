"""Where things are in a model: module paths, the blocks in order."""

from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Sites:
    """Dotted module paths under the model, the blocks in order.

    ``mlp_out`` is the down projection, ``mlp_in`` the linear(s) that read the normed residual,
    ``attn_out`` the output linear of self-attention. ``gain`` says what becomes of a vector v that
    is added to the down projection's output: the block's output moves by gain · v; None where a
    norm stands between the two. ``final_norm`` is None where the last block is followed by none.
    Encoder-decoder models: these are the decoder's sites, ``encoder`` holds the encoder's (whose
    ``lm_head`` is the model's only one).
    """

    embed: str
    layer: tuple[str, ...]
    mlp_in: tuple[tuple[str, ...], ...]
    mlp_out: tuple[str, ...]
    attn_out: tuple[str, ...]
    final_norm: str | None
    lm_head: str
    gain: tuple[float | None, ...]
    encoder: "Sites | None" = None

    @property
    def depth(self) -> int:
        return len(self.layer)

    @property
    def prompt_stack(self) -> "Sites":
        """The sites of the blocks that read the prompt: the encoder's where there is one."""
        return self.encoder or self

    @property
    def decoder(self) -> "Sites":
        return replace(self, encoder=None)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Sites":
        encoder = record.get("encoder")
        return cls(
            embed=record["embed"],
            layer=tuple(record["layer"]),
            mlp_in=tuple(tuple(names) for names in record["mlp_in"]),
            mlp_out=tuple(record["mlp_out"]),
            attn_out=tuple(record["attn_out"]),
            final_norm=record["final_norm"],
            lm_head=record["lm_head"],
            gain=tuple(record["gain"]),
            encoder=None if encoder is None else cls.from_json(encoder),
        )
