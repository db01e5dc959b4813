"""The most memory that was in use."""

import ctypes
import logging
from pathlib import Path
from typing import cast

import torch

from errata.model.hf import HFLM

log = logging.getLogger(__name__)


class PeakMemory:
    """Measures the most memory that was in use since it was made, above what was in use then.

        memory = PeakMemory(lm)
        patch = method.edit(lm, edits)
        mib = memory.mib()

    Of the accelerator where the model is on one: what torch allocated there. Otherwise of the whole process: its
    resident memory, which Linux alone tells and which other threads share. Making a second one ends the first: both
    systems keep one peak, which is set back here.
    """

    def __init__(self, lm: HFLM) -> None:
        self.accelerator = lm.device.type != "cpu" and torch.accelerator.is_available()
        if self.accelerator:
            torch.accelerator.reset_peak_memory_stats()
            self.start = torch.accelerator.memory_allocated() / 2**20
        else:
            self.start = _resident("VmRSS") if _reset_peak() else None

    def mib(self) -> float | None:
        """The peak so far, in MiB; None where the system does not tell."""
        if self.accelerator:
            return round(torch.accelerator.max_memory_allocated() / 2**20 - cast(float, self.start), 1)
        peak = None if self.start is None else _resident("VmHWM")
        return None if peak is None or self.start is None else round(max(0.0, peak - self.start), 1)


def _reset_peak() -> bool:
    """Sets the process's peak back to what is in use; False where the system (no Linux) cannot.

    What the C library holds free is given back first, so that it does not count as in use.
    """
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
    """A line of Linux's ``/proc/self/status`` (``VmRSS``: in use, ``VmHWM``: the peak) in MiB; None without it."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 2**10 for line in lines if line.startswith(f"{name}:"))
    except (OSError, StopIteration):
        return None
