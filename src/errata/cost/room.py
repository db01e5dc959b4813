"""Free memory, and how fast this machine multiplies and copies: measured in a moment."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from errata.model.passes import float64_device

MOMENT = 0.08  # seconds of each measurement
LARGEST = 4096  # side of the matrices on a fast device


@dataclass(frozen=True)
class Rates:
    """Operations a second by where they run (as in :class:`errata.model.size.Step`), and bytes copied a second."""

    model: float
    float32: float
    inverse: float
    float64: float
    copied: float

    def to_json(self) -> dict[str, float]:
        """A record for JSON."""
        return {name: float(f"{value:.3g}") for name, value in asdict(self).items()}


def rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """What this machine does now, in less than a second: products of square matrices, and a copy."""
    host = torch.device("cpu")
    return Rates(
        _products(device, dtype),
        _products(device, torch.float32),
        _products(float64_device(device), torch.float64),
        _products(host, torch.float64),
        _copies(device),
    )


def _products(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP a second of a product of two matrices, the larger the faster the device is."""
    n = 256
    while True:
        a = torch.ones(n, n, device=device, dtype=dtype)
        taken = _seconds(lambda a=a: a @ a, device)
        if taken > MOMENT / 20 or n >= LARGEST:
            return 2 * n**3 / taken
        n *= 2


def _copies(device: torch.device) -> float:
    """Bytes a second that are read and written: a copy of 32 MB counts both."""
    x = torch.ones(2**23, device=device)
    y = torch.empty_like(x)
    return 2 * x.nbytes / _seconds(lambda: y.copy_(x), device)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Of the fastest of some runs, after one that warms up."""
    best, end = float("inf"), time.perf_counter() + MOMENT
    for i in range(100):
        began = time.perf_counter()
        work()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        now = time.perf_counter()
        best = min(best, now - began) if i else best
        if now > end and i:
            break
    return max(best, 1e-9)


def free_on(device: torch.device) -> int | None:
    """Bytes that are free on a device; None where it does not tell."""
    if device.type == "cpu":
        return free_host()
    try:
        return int(torch.get_device_module(device).mem_get_info(device)[0])
    except (AttributeError, RuntimeError, AssertionError):
        return None


def free_host() -> int | None:
    """Bytes of main memory that a process can have yet, a container's limit counted; None where nobody tells."""
    found = [n for n in (_available(), _left_in_container()) if n is not None]
    return min(found, default=None)


def _available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        pass
    try:
        import psutil

        return int(psutil.virtual_memory().available)
    except ImportError:
        return None


def _left_in_container() -> int | None:
    """Of cgroup version 2."""
    folder = Path("/sys/fs/cgroup")
    try:
        most, used = ((folder / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return max(0, int(most) - int(used))
    except (OSError, ValueError):
        return None
