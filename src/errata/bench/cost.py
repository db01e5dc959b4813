"""What an edit costs: the most memory that was in use."""

import ctypes
import logging
from pathlib import Path
from typing import cast

import torch

from errata.model.hf import HFLM

log = logging.getLogger(__name__)


class Peak:
    """The most memory that was in use since this was made, above what was then, in MiB: of the accelerator, or of
    the process. None where the system does not tell."""

    def __init__(self, lm: HFLM) -> None:
        self.accelerator = lm.device.type != "cpu" and torch.accelerator.is_available()
        if self.accelerator:
            torch.accelerator.reset_peak_memory_stats()
            self.start = torch.accelerator.memory_allocated() / 2**20
        else:
            self.start = _resident("VmRSS") if _reset_peak() else None

    def mib(self) -> float | None:
        if self.accelerator:
            return round(torch.accelerator.max_memory_allocated() / 2**20 - cast(float, self.start), 1)
        top = None if self.start is None else _resident("VmHWM")
        return None if top is None or self.start is None else round(max(0.0, top - self.start), 1)


def _reset_peak() -> bool:
    """Linux forgets the process's peak when asked to; what the C library holds free is given back first."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        log.debug("no malloc_trim here: the peak is above what the allocator held")
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return True
    except OSError:
        return False


def _resident(name: str) -> float | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 2**10 for line in lines if line.startswith(f"{name}:"))
    except (OSError, StopIteration):
        return None
