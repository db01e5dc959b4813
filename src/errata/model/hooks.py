"""Look at and change what flows through a module, for the length of a ``with`` block.

    with after(model.transformer.h[3].mlp, lambda args, kwargs, out: out * 0):
        model(**inputs)                    # the fourth block's MLP outputs zero
    model(**inputs)                        # as before

The only module of Errata that hooks a module or replaces a ``forward``.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from torch import nn

from errata.model.interrupts import for_a_while
from errata.model.weights import check_gradients

Args = tuple[Any, ...]
Kwargs = dict[str, Any]
Before = Callable[[Args, Kwargs], tuple[Args, Kwargs] | None]
After = Callable[[Args, Kwargs, Any], Any]


class Stop(Exception):
    """Raised in a hook to end a forward pass of which nothing more is needed; the caller catches it."""


@contextmanager
def before(module: nn.Module, change: Before) -> Iterator[None]:
    """Context manager: ``module`` gets the (args, kwargs) that ``change`` returns; None leaves them as they are."""
    with for_a_while(
        lambda: module.register_forward_pre_hook(lambda _, args, kwargs: change(args, kwargs), with_kwargs=True),
        lambda handle: handle.remove(),
    ):
        yield


@contextmanager
def after(module: nn.Module, change: After) -> Iterator[None]:
    """Context manager: ``module`` returns what ``change(args, kwargs, output)`` returns; None leaves its output."""
    with for_a_while(
        lambda: module.register_forward_hook(
            lambda _, args, kwargs, output: change(args, kwargs, output), with_kwargs=True
        ),
        lambda handle: handle.remove(),
    ):
        yield


@contextmanager
def forward_replaced(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Context manager: each module runs another callable in the place of its ``forward``."""
    own = {module: module.__dict__["forward"] for module in forwards if "forward" in module.__dict__}

    def replace() -> None:
        for module, forward in forwards.items():
            module.forward = forward

    def put_back(_: None) -> None:
        for module in forwards:
            del module.forward
            if module in own:  # another library had replaced it already
                module.forward = own[module]

    with for_a_while(replace, put_back):
        yield


@contextmanager
def all_of(contexts: Iterable[AbstractContextManager[Any]]) -> Iterator[None]:
    """Context manager: many context managers at once, entered in order."""
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Context manager for searches by gradient: no parameter requires one; afterwards each is as before.

    Raises :class:`Unsupported` where a quantised layer passes no gradient on.
    """
    check_gradients(model)
    trainable = [p for p in model.parameters() if p.requires_grad]

    def require(needed: bool) -> None:
        for p in trainable:
            p.requires_grad_(needed)

    with for_a_while(lambda: require(False), lambda _: require(True)):
        yield
