"""One block run by itself on rows of tokens, with weights in the place of its own, through which gradients flow.

block = BlockPass(lm, rows, layer=7)
before = block.outputs()                             # (k, d), at every token of every row
weights = trainable(lm, block.parameters())          # name -> tensor
(block.outputs(weights) - before).square().sum().backward()
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from errata.model import hooks
from errata.model.lm import Call
from errata.model.padding import pad
from errata.model.passes import Rows, hidden_of, inputs_of, unflattened
from errata.model.reading import TensorPasses


class BlockPass:
    """A block of a decoder and what reaches it: the blocks below run once, those above never.

    The model's own ``forward`` makes masks and positions, and stops behind the block.
    """

    def __init__(self, lm: TensorPasses, rows: Rows, layer: int) -> None:
        self.lm, self.layer = lm, layer
        self.padded = pad(rows, "right", lm.tokens.fill, lm.device)
        with torch.no_grad():
            self.stored = self._run(layer - 1, None) if layer else None

    def parameters(self) -> list[str]:
        """The names of the block's parameters."""
        path = self.lm.sites.layer[self.layer]
        return [f"{path}.{name}" for name, _ in self.lm.model.get_submodule(path).named_parameters()]

    def at(self, row: int, column: int) -> int:
        """The index, in what :meth:`outputs` returns, of one token of a row."""
        return sum(self.padded.lengths[:row]) + column

    def outputs(self, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """What the block puts out at every token, row by row; ``weights`` stand in for parameters. (k, d)."""
        output = unflattened(hidden_of(self._run(self.layer, weights)), len(self.padded.ids))  # (b, t, d)
        return output[self.padded.mask.bool().to(output.device)]

    def _run(self, layer: int, weights: Mapping[str, Tensor] | None) -> Any:
        """The output of a block, in the form that it has it; those below that are stored do not run."""
        lm, outputs = self.lm, list[Any]()

        def keep(args: hooks.Args, kwargs: hooks.Kwargs, output: Any) -> None:
            outputs.append(output)
            raise hooks.Stop

        below = lm.sites.layer[:layer] if layer == self.layer else ()
        forwards = {lm.model.get_submodule(path): lambda *a, **k: self.stored for path in below}
        try:
            with (
                lm.calling(Call(self.padded.mask)),
                hooks.forward_replaced(forwards),
                hooks.after(lm.model.get_submodule(lm.sites.layer[layer]), keep),
            ):
                lm.run(inputs_of(lm.model, self.padded.ids, self.padded.mask), weights)
        except hooks.Stop:
            pass
        return outputs[0]
