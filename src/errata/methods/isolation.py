"""A method by itself: nobody else runs the model meanwhile, and random numbers depend on its seed alone."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import wraps
from typing import Any

import torch

from errata.errors import Unsupported
from errata.methods.state import State
from errata.model.hf import HFLM

_DRAWING = threading.RLock()


@contextmanager
def undisturbed(lm: HFLM) -> Iterator[None]:
    """Context manager: ``lm`` is the model itself, nobody else runs it, and gradients are formed in its own type.

    Raises :class:`Unsupported` for a view with a patch in force.
    """
    device = lm.device.type
    automatic = torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
    with lm.alone(), torch.inference_mode(False), torch.enable_grad(), automatic:
        lm.check()
        if not lm.unedited:
            raise Unsupported("a patch is in force here; edit the model itself, with that patch as `prior`")
        yield


def alone(prepare: Callable[..., State]) -> Callable[..., State]:
    """A method's ``prepare``, on an undisturbed model."""

    @wraps(prepare)
    def undisturbed_prepare(self: Any, lm: HFLM, data: Iterable[Any] | None = None, **more: Any) -> State:
        with undisturbed(lm):
            return prepare(self, lm, data, **more)

    return undisturbed_prepare


@contextmanager
def frozen_rng(seed: int) -> Iterator[None]:
    """Context manager: random numbers inside depend on ``seed`` alone, and those outside are as without it.

    That holds for the CPU's generator and those of every accelerator in use. There is one of each in a process, so
    threads take turns, whatever models they edit.
    """
    with _DRAWING, _seeded(seed):
        yield


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    devices: Any = None if accelerator is None else torch.get_device_module(accelerator)
    if devices is not None and not getattr(devices, "is_initialized", lambda: True)():
        devices = None  # nothing is on them, and to ask them would claim their memory
    every = "_all" if hasattr(devices, "get_rng_state_all") else ""
    of_cpu, of_devices = torch.get_rng_state(), devices and getattr(devices, f"get_rng_state{every}")()
    try:
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach those that are not in use, too
        if devices is not None:
            getattr(devices, f"manual_seed{every}")(seed)
        yield
    finally:
        torch.set_rng_state(of_cpu)
        if devices is not None:
            getattr(devices, f"set_rng_state{every}")(of_devices)
