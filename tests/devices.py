"""Devices that this machine does not have: tensors on the CPU with a tag, which may not meet those of another tag.

    with FakeDevices():
        lm = HFLM(spread(model), tokenizer)   # its blocks on two devices, as accelerate's device_map puts them

Inside, ``tensor.device``, ``.to``, ``.cpu`` and factories know devices of the type KIND, and an operation on tensors of
two devices raises as torch does.
"""

from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from typing_extensions import override

KIND = "ipu"  # a type that torch can name and needs no driver to do so
FACTORIES = {
    torch.tensor, torch.as_tensor, torch.arange, torch.zeros, torch.ones, torch.full, torch.empty, torch.eye,
    torch.rand, torch.randn, torch.randperm, torch.scalar_tensor, torch.linspace,
}  # fmt: skip
INDEXING = {Tensor.__getitem__, Tensor.index_put, Tensor.index_put_}


def tag(x: Any) -> int | None:
    """Number of the device that a tensor is on; None: the host."""
    return getattr(x, "fake_device", None)


def put(x: Any, where: int | None) -> Any:
    """The tensor, on that device from now on."""
    x.fake_device = where
    return x


def number(device: Any) -> int | None:
    device = torch.device(device)
    return (device.index or 0) if device.type == KIND else None


class FakeDevices(TorchFunctionMode):
    """Context manager: tensors have the device of their tag."""

    def __init__(self, float64: bool = True) -> None:
        """``float64``: whether the devices have that type (Apple's do not)."""
        super().__init__()
        self.float64 = float64

    @override
    def __enter__(self) -> Any:
        own = nn.Module.to

        def to(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
            moved = own(module, *args, **kwargs)
            for device in (*args, kwargs.get("device")):
                if isinstance(device, str | torch.device):
                    for x in [*moved.parameters(), *moved.buffers()]:  # new parameters have no tag
                        self.on(x, number(device))
            return moved

        self.moving = patch.object(nn.Module, "to", to)
        self.moving.start()
        return super().__enter__()

    @override
    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.moving.stop()

    def on(self, x: Tensor, where: int | None) -> Tensor:
        if where is not None and not self.float64 and x.dtype == torch.float64:
            raise TypeError(f"device {where} has no float64")
        return put(x, where)

    @override
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func == Tensor.device.__get__:  # pyright: ignore
            where = tag(args[0])
            return func(*args) if where is None else torch.device(KIND, where)
        if func in (Tensor.to, Tensor.cpu):
            return self.moved(*args, **({"device": "cpu"} if func is Tensor.cpu else kwargs))
        if func in FACTORIES:
            device = kwargs.pop("device", None)
            made = func(*args, **kwargs)
            return self.on(made, number(device) if device is not None else tag(args[0]) if args else None)
        if func in (Tensor.copy_, Tensor.backward):
            return func(*args, **kwargs)
        if func is torch._has_compatible_shallow_copy_type and tag(args[0]) != tag(args[1]):
            return False  # a module that is moved takes the new parameter
        if func is torch.autograd.grad:
            inputs = [args[1]] if isinstance(args[1], Tensor) else args[1]
            gradients = func(*args, **kwargs)
            return tuple(g if g is None else self.on(g, tag(x)) for g, x in zip(gradients, inputs, strict=True))
        device = kwargs.pop("device", None)  # of zeros_like, new_zeros
        where = self.common(func, args, kwargs)
        out = func(*args, **kwargs)
        for x in tree_leaves(out):
            if isinstance(x, Tensor):
                self.on(x, where if device is None else number(device))
        return out

    def moved(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        where, dtype = tag(x), kwargs.get("dtype")
        for value in (*args, kwargs.get("device")):
            if isinstance(value, Tensor):
                where, dtype = tag(value), value.dtype
            elif isinstance(value, torch.dtype):
                dtype = value
            elif isinstance(value, str | torch.device):
                where = number(value)
        out = x if dtype is None else x.to(dtype)
        return out if out is x and where == tag(x) else self.on(out.clone() if out is x else out, where)

    def common(self, func: Any, args: Any, kwargs: Any) -> int | None:
        """The device of all arguments. Numbers of the host go everywhere, and so do its indices."""
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if func in INDEXING and tag(tensors[0]) is not None:
            tensors = [tensors[0], *(x for x in tensors[1:] if tag(x) is not None)]
        if func is Tensor.__setitem__:
            indices = [x for x in tree_leaves(args[1]) if isinstance(x, Tensor) and tag(x) is None]
            tensors = [x for x in tensors if not any(x is index for index in indices)]
        wide = [x for x in tensors if tag(x) is not None or x.ndim]
        devices = {tag(x) for x in wide}
        if len(devices) > 1:
            shapes = ", ".join(f"{tuple(x.shape)} on {tag(x)}" for x in wide)
            raise RuntimeError(f"{getattr(func, '__name__', func)}: tensors on several devices: {shapes}")
        return devices.pop() if devices else None


def spread(model: Any, blocks: Any, first: list[nn.Module], last: list[nn.Module]) -> Any:
    """The model with ``first`` and half of its blocks on device 0, the rest on device 1, as accelerate puts it."""
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    half = len(blocks) // 2
    for device, modules in enumerate([[*first, *blocks[:half]], [*blocks[half:], *last]]):
        for module in modules:
            for x in [*module.parameters(), *module.buffers()]:
                put(x, device)
            add_hook_to_module(module, AlignDevicesHook(torch.device(KIND, device), skip_keys="past_key_values"))
    add_hook_to_module(model, AlignDevicesHook(torch.device(KIND, 0), io_same_device=True, skip_keys="past_key_values"))
    return model
