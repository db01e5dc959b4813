"""Hooks: what they show, what they change, and that they end with their block."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from errata.model import hooks


class Scale(nn.Module):
    """x · factor + shift"""

    def forward(self, x: Tensor, *, factor: float = 2.0, shift: float = 0.0) -> Tensor:
        return x * factor + shift


ONE = torch.ones(2)


def clean(module: nn.Module) -> bool:
    return not (module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__)


def test_before_sees_and_changes_positional_and_named_inputs() -> None:
    module, seen = Scale(), []

    def change(args: Any, kwargs: Any) -> Any:
        seen.append((args, kwargs))
        return (args[0] + 1,), {"factor": 10.0}

    with hooks.before(module, change):
        assert torch.equal(module(ONE, factor=3.0, shift=5.0), torch.full((2,), 20.0))
    assert len(seen) == 1 and seen[0][0][0] is ONE and seen[0][1] == {"factor": 3.0, "shift": 5.0}
    assert torch.equal(module(ONE), 2 * ONE) and clean(module)


def test_after_sees_inputs_and_output_and_changes_the_output() -> None:
    module, seen = Scale(), []

    def change(args: Any, kwargs: Any, output: Any) -> Any:
        seen.append((args, kwargs, output.clone()))
        return output + 1

    with hooks.after(module, change):
        assert torch.equal(module(ONE, factor=3.0), torch.full((2,), 4.0))
    ((args, kwargs, output),) = seen
    assert args[0] is ONE and kwargs == {"factor": 3.0} and torch.equal(output, 3 * ONE)
    assert torch.equal(module(ONE), 2 * ONE) and clean(module)


def test_none_leaves_what_flows() -> None:
    module = Scale()
    with hooks.before(module, lambda args, kwargs: None), hooks.after(module, lambda args, kwargs, output: None):
        assert torch.equal(module(ONE, factor=3.0), 3 * ONE)


def test_hooks_act_in_the_order_in_which_they_came() -> None:
    module = Scale()
    add, double = (lambda args, kwargs, y: y + 1), (lambda args, kwargs, y: y * 2)
    with hooks.after(module, add), hooks.after(module, double):
        assert torch.equal(module(ONE), torch.full((2,), 6.0))
    with hooks.all_of([hooks.after(module, double), hooks.after(module, add)]):
        assert torch.equal(module(ONE), torch.full((2,), 5.0))
    assert clean(module)


def test_an_inner_block_ends_for_itself() -> None:
    module = Scale()
    add = lambda args, kwargs, y: y + 1  # noqa: E731
    with hooks.after(module, add):
        with hooks.after(module, add):
            assert torch.equal(module(ONE), 4 * ONE)
        assert torch.equal(module(ONE), 3 * ONE)


def replaced_of(module: nn.Module) -> Any:
    return hooks.forward_replaced({module: lambda x: x})


def after_of(module: nn.Module) -> Any:
    return hooks.after(module, lambda args, kwargs, y: y)


def before_of(module: nn.Module) -> Any:
    return hooks.before(module, lambda args, kwargs: None)


def many_of(module: nn.Module) -> Any:
    return hooks.all_of(kind(module) for kind in (after_of, before_of, replaced_of))


@pytest.mark.parametrize("block", [before_of, after_of, replaced_of, many_of])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, hooks.Stop])
def test_nothing_is_left_behind_by_an_exception(block: Any, error: type[BaseException]) -> None:
    module = Scale()
    with pytest.raises(error), block(module):
        assert not clean(module)
        raise error
    assert clean(module)


def test_all_of_undoes_those_that_came_before_one_that_fails() -> None:
    module = Scale()

    def broken() -> Any:
        yield after_of(module)
        raise ValueError

    with pytest.raises(ValueError), hooks.all_of(broken()):
        pass
    assert clean(module)


def test_stop_ends_a_pass_where_it_is_raised() -> None:
    first, second = Scale(), Scale()
    ran: list[str] = []

    def stop(args: Any, kwargs: Any, y: Any) -> None:
        ran.append("first")
        raise hooks.Stop

    with (
        hooks.after(first, stop),
        hooks.after(second, lambda args, kwargs, y: ran.append("second")),
        pytest.raises(hooks.Stop),
    ):
        nn.Sequential(first, second)(ONE)
    assert ran == ["first"]
    assert issubclass(hooks.Stop, Exception)


def test_a_replacement_runs_instead_of_forward_with_hooks_still_around_it() -> None:
    one, two, plain = Scale(), Scale(), Scale()
    replaced = {one: lambda x, factor=0.0: x - factor, two: lambda x: x * 100}
    with hooks.forward_replaced(replaced), hooks.after(one, lambda args, kwargs, y: y * 3):
        assert torch.equal(one(ONE, factor=0.5), torch.full((2,), 1.5))
        assert torch.equal(two(ONE), 100 * ONE) and torch.equal(plain(ONE), 2 * ONE)
    assert torch.equal(one(ONE), 2 * ONE) and torch.equal(two(ONE), 2 * ONE) and clean(one) and clean(two)


def test_what_another_library_had_put_there_is_put_back() -> None:
    module, other = Scale(), Scale()
    theirs = lambda x: x + 41  # noqa: E731
    module.forward = theirs
    with pytest.raises(ValueError), hooks.forward_replaced({module: lambda x: x, other: lambda x: x}):
        assert torch.equal(module(ONE), ONE)
        raise ValueError
    assert module.__dict__["forward"] is theirs and torch.equal(module(ONE), 42 * ONE)
    assert "forward" not in other.__dict__


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_frozen_parameters_collect_no_gradient_and_then_as_before(error: type[BaseException] | None) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight.requires_grad_(False)
    flags = [p.requires_grad for p in model.parameters()]
    try:
        with hooks.frozen(model):
            assert not any(p.requires_grad for p in model.parameters())
            x = torch.ones(2, requires_grad=True)
            model(x).sum().backward()
            assert x.grad is not None  # the way through is open
            if error:
                raise error
    except KeyboardInterrupt:
        pass
    assert [p.requires_grad for p in model.parameters()] == flags == [True, True, False, True]
    assert all(p.grad is None for p in model.parameters())
