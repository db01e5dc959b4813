"""Where things are in a model: module paths, the blocks in order."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from errata.errors import Unsupported


@dataclass(frozen=True)
class Sites:
    """Dotted module paths in the model, one entry per block, in order.

    In an encoder-decoder these are the decoder's; :attr:`encoder` has the encoder's, with the model's only ``lm_head``.
    """

    embed: str
    """The embedding of token ids."""
    layer: tuple[str, ...]
    """The blocks."""
    mlp_in: tuple[tuple[str, ...], ...]
    """The linears of each MLP that read the normed residual: one, or two where the MLP is gated.

    Where a block is a token mixer alone, those of the mixer (Mamba's ``in_proj``)."""
    mlp_out: tuple[str, ...]
    """The down projections: their input is the key k, their output the value v.

    Where a block is a token mixer alone, the mixer's output projection (Mamba's ``out_proj``)."""
    attn_out: tuple[str | None, ...]
    """The output linears of self-attention, or of what mixes tokens in its place (a gated delta net, a state-space or
    recurrent layer, a convolution); None where a block is one layer alone."""
    final_norm: str | None
    """The norm behind the last block; None where there is none."""
    lm_head: str
    """The linear from hidden states to the vocabulary."""
    gain: tuple[float | None, ...]
    """A vector v added to a down projection's output moves the block's output by gain · v; None behind a norm."""
    encoder: "Sites | None" = None
    """The encoder's sites, in an encoder-decoder."""
    mlp_norm: tuple[str | None, ...] = ()
    """The norms behind the down projections, where ``gain`` is None; empty where none is known."""
    experts: tuple[tuple[str, ...], ...] = ()
    """Of a mixture of experts, in whose place ``mlp_in`` and ``mlp_out`` are both the module around it, those inside
    whose weights together are the down projection: the stack of experts, and a shared expert's linear. Empty for a
    block without; all empty where no block has any."""
    mixes: tuple[bool, ...] = ()
    """Whether a token's key depends on earlier tokens, in a block that is a token mixer alone; empty where none is."""

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.layer)

    def experts_of(self, layer: int) -> tuple[str, ...]:
        """The modules of a block's mixture of experts; empty where it has none."""
        return self.experts[layer] if self.experts else ()

    def attention(self, layer: int) -> str:
        """``attn_out`` of a block. Raises :class:`Unsupported` where the block has no token mixer beside an MLP."""
        path = self.attn_out[layer]
        if path is None:
            raise Unsupported(
                f"{self.layer[layer]} has no attention beside an MLP: it is one layer, with `{self.mlp_out[layer]}` at "
                "its end; choose a layer or a method that does without attention's output"
            )
        return path

    def mixing(self, layer: int) -> bool:
        """Whether a token's key depends on earlier tokens in this block."""
        return bool(self.mixes) and self.mixes[layer]

    @property
    def prompt_stack(self) -> "Sites":
        """Sites of the blocks that read the prompt: the encoder's where there is one."""
        return self.encoder or self

    @property
    def decoder(self) -> "Sites":
        """These sites without the encoder's."""
        return replace(self, encoder=None)

    def to_json(self) -> dict[str, Any]:
        """A record for JSON, as :meth:`from_json` reads it."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Sites":
        """The sites of a record that :meth:`to_json` made."""
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
            mlp_norm=tuple(record.get("mlp_norm", ())),
            experts=tuple(tuple(names) for names in record.get("experts", ())),
            mixes=tuple(record.get("mixes", ())),
        )
