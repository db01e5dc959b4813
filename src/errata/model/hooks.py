"""Look at and change what flows through a module, for the length of a ``with`` block.

    with after(model.transformer.h[3].mlp, lambda args, kwargs, out: out * 0):
        model(**inputs)                    # the third MLP says nothing
    model(**inputs)                        # and speaks again

The only place in Errata that hooks a module or replaces a forward.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

Args = tuple[Any, ...]
Kwargs = dict[str, Any]
Before = Callable[[Args, Kwargs], tuple[Args, Kwargs] | None]
After = Callable[[Args, Kwargs, Any], Any]


class Stop(Exception):
    """Raised inside a forward pass when all that was wanted has been seen."""


@contextmanager
def before(module: nn.Module, change: Before) -> Iterator[None]:
    """Hands ``module`` other inputs; None from ``change`` leaves them."""
    handle = module.register_forward_pre_hook(lambda _, args, kwargs: change(args, kwargs), with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def after(module: nn.Module, change: After) -> Iterator[None]:
    """Hands on another output of ``module``; None from ``change`` leaves it."""
    handle = module.register_forward_hook(
        lambda _, args, kwargs, output: change(args, kwargs, output), with_kwargs=True
    )
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def stand_in(replacements: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Runs another callable in the place of each module's ``forward``."""
    own = {module: module.__dict__["forward"] for module in replacements if "forward" in module.__dict__}
    try:
        for module, forward in replacements.items():
            module.forward = forward
        yield
    finally:
        for module in replacements:
            del module.forward
            if module in own:  # another library had put its own there
                module.forward = own[module]


@contextmanager
def all_of(contexts: Any) -> Iterator[None]:
    """Many of the above at once."""
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter collects a gradient; afterwards each does as before."""
    wanted = [p for p in model.parameters() if p.requires_grad]
    try:
        for p in wanted:
            p.requires_grad_(False)
        yield
    finally:
        for p in wanted:
            p.requires_grad_(True)
