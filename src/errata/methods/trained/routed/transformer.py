"""A small transformer, trained from scratch, and the fixed vectors of the base model's tokens that it reads."""

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, normalize, scaled_dot_product_attention

from errata.model import weights
from errata.model.hf import HFLM

HEADS = 4
BASE = 10_000.0  # of rotary positions, as in RoFormer (Su et al. 2021, arXiv:2104.09864)


def token_vectors(lm: HFLM, width: int) -> Tensor:
    """(V, width): a unit vector for each token, drawn at random; where the base's embedding can be read, half of it is
    what that knows of the token, projected at random.

    They stay as they are in training: what is learned of some tokens then holds for all, names that no example has
    among them.
    """
    embed = f"{lm.sites.embed}.weight"
    rows, d = weights.shape_of(lm.model, embed)
    drawn = normalize(torch.randn(rows, width), dim=-1)
    projection = torch.randn(d, width)
    if not weights.is_plain(lm.model, embed):
        return drawn
    known = lm.model.get_parameter(embed).detach().cpu().float()
    known = normalize((known - known.mean(0)) @ projection, dim=-1)
    return normalize(drawn + known, dim=-1)


class SmallTransformer(nn.Module):
    """Hidden states (b, t, width) of vectors (b, t, width): pre-norm blocks with rotary positions."""

    def __init__(self, width: int, depth: int, *, causal: bool) -> None:
        """``width`` is a multiple of twice the number of heads; ``causal``: a token sees those before it alone."""
        super().__init__()
        self.causal = causal
        self.blocks = nn.ModuleList([Block(width) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """``mask`` (b, t): which are tokens, not padding."""
        t = x.shape[1]
        seen = mask[:, None, None, :].expand(-1, 1, t, t)
        if self.causal:
            seen = seen & torch.ones(t, t, dtype=torch.bool, device=x.device).tril()
        turn = _turn(t, x.shape[-1] // HEADS, x)
        for block in self.blocks:
            x = block(x, seen, turn)
        return self.norm(x)


class Block(nn.Module):
    """Attention and an MLP, each behind a norm and added."""

    def __init__(self, width: int) -> None:
        """Both are as wide as in GPT-2: heads of width / HEADS, an MLP of four times the width."""
        super().__init__()
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, seen: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        """``seen`` (b, 1, t, t): which tokens each attends to; ``turn``: cosines and sines of positions."""
        b, t, d = x.shape
        q, k, v = self.qkv(self.before_attention(x)).view(b, t, 3, HEADS, -1).permute(2, 0, 3, 1, 4)  # (b, heads, t, ·)
        y = scaled_dot_product_attention(_turned(q, turn), _turned(k, turn), v, attn_mask=seen)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, d))
        return x + self.down(gelu(self.up(self.before_mlp(x))))


def _turn(t: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines by which queries and keys are turned at each position. (t, width / 2) each."""
    rates = BASE ** -(torch.arange(0, width, 2, device=like.device).to(like) / width)
    angles = torch.arange(t, device=like.device).to(like)[:, None] * rates
    return angles.cos(), angles.sin()


def _turned(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    one, two = x.chunk(2, -1)
    cos, sin = turn
    return torch.cat([one * cos - two * sin, one * sin + two * cos], -1)
