"""The sum of k kᵀ over many keys: symmetric, so that half of it is computed and held."""

from collections.abc import Iterator

import torch
from torch import Tensor

STRIPS = 8  # of rows that the sum is cut into: 9/16 of a whole product; thinner ones are multiplied more slowly
WAITING = 4  # keys wait until they are a quarter of their width: a product of few costs as much as the sum's reading
COMPUTED = (1 + 1 / STRIPS) / 2  # of a whole product
HELD = 4 * COMPUTED + 4 / WAITING  # bytes for an entry of the sum


class Gram:
    """Sum of k kᵀ (f, f) over the keys k that were added, and their ``count``; float32, on ``device``.

    gram = Gram(f, device)
    gram.add(keys)                              # (n, f)
    gram.matrix()                               # (f, f)

    Held are strips of rows up to the diagonal, some 2.3 f² bytes, and while keys are few, f² bytes of them.
    """

    def __init__(self, width: int, device: torch.device):
        rows = -(-width // STRIPS)
        self.width, self.device, self.count = width, device, 0
        ends = (min(start + rows, width) for start in range(0, width, rows))
        self.strips = [torch.zeros(end - i * rows, end, device=device) for i, end in enumerate(ends)]
        self._keys: Tensor | None = None
        self._waiting = 0

    def add(self, keys: Tensor) -> None:
        """Adds keys (n, f), which may change afterwards."""
        self.count += len(keys)
        most = self.width // WAITING
        if len(keys) >= most:
            self._multiply(keys.to(self.device, torch.float32))
            return
        if self._keys is None:
            self._keys = torch.empty(most, self.width, device=self.device)
        if self._waiting + len(keys) > most:
            self._settle()
        self._keys[self._waiting : self._waiting + len(keys)] = keys
        self._waiting += len(keys)

    def join(self, other: "Gram") -> None:
        """Adds the keys of another sum, which may be on another device."""
        self.count += other.count
        for strip, more in zip(self.settled().strips, other.settled().strips, strict=True):
            strip.add_(more.to(self.device))

    def settled(self) -> "Gram":
        """Itself, once no key waits any more."""
        self._settle()
        self._keys = None
        return self

    def matrix(self) -> Tensor:
        """The whole sum, (f, f)."""
        whole = torch.empty(self.width, self.width, device=self.device)
        for start, end, strip in self.settled()._placed():
            whole[start:end, :end] = strip
            whole[:start, start:end] = strip[:, :start].T
        return whole

    def _settle(self) -> None:
        if self._keys is not None and self._waiting:
            self._multiply(self._keys[: self._waiting])
        self._waiting = 0

    def _multiply(self, keys: Tensor) -> None:
        for start, end, strip in self._placed():
            torch.addmm(strip, keys[:, start:end].T, keys[:, :end], out=strip)

    def _placed(self) -> Iterator[tuple[int, int, Tensor]]:
        """Each strip with the rows that it begins and ends at."""
        for strip in self.strips:
            yield strip.shape[1] - len(strip), strip.shape[1], strip
