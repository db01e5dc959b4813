"""One small run of a model, module by module; and one of its blocks run again with something changed.

For :mod:`errata.model.detect`, which reads from it where things are.
"""

import inspect
from collections.abc import Generator, Iterable
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from errata.model.configuration import text_config
from errata.model.experts import stand_ins
from errata.model.hooks import After, Args, Kwargs, Stop, after, all_of, before
from errata.model.passes import accepts, device_of, hidden_of, with_hidden
from errata.model.sites import Sites
from errata.model.weights import is_linear, packed


@contextmanager
def evaluating(model: nn.Module) -> Generator[None]:
    """Context manager: the model is in evaluation mode; afterwards every module has its own mode again."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@dataclass(frozen=True, eq=False)
class ModuleCall:
    """One call of a module in a run of the model."""

    name: str
    module: nn.Module
    args: Args
    kwargs: Kwargs
    output: Any

    @property
    def input_state(self) -> Tensor | None:
        """The hidden state that went in."""
        return _input_state(self.args, self.kwargs)

    @property
    def output_state(self) -> Tensor | None:
        """The hidden state that came out."""
        return _output_state(self.output)

    @property
    def is_linear(self) -> bool:
        """Whether the module is a linear layer of any kind."""
        return is_linear(self.module)


def _first(values: Iterable[Any]) -> Tensor | None:
    floats = (x for x in values if isinstance(x, Tensor) and x.is_floating_point())
    return next(floats, None)


def _input_state(args: Args, kwargs: Kwargs) -> Tensor | None:
    return _first((*args, kwargs.get("hidden_states"), *kwargs.values()))


def _output_state(output: Any) -> Tensor | None:
    """The hidden state in an output: a tensor, a tuple or (the first GPT) a list."""
    return _first(output if type(output) in (tuple, list) else (output,))


def recorded(model: Any) -> list[ModuleCall]:
    """Every call of every module on two tokens, in the order in which they returned.

    An encoder gets three tokens, which tells cross-attention from self-attention.
    """
    device = device_of(model.get_input_embeddings())
    special = _special_ids(model.config)
    a, b, c = [i for i in range(31, 2, -1) if i not in special][:3]
    inputs = {"input_ids": torch.tensor([[a, b]], device=device)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"]
        inputs["input_ids"] = torch.tensor([[a, b, c]], device=device)
    if device.type == "meta":  # a mask that is not given would be looked for in the numbers
        side = "decoder_" if model.config.is_encoder_decoder else ""
        inputs[f"{side}attention_mask"] = torch.ones_like(inputs[f"{side}input_ids"])
        if "position_ids" in inspect.signature(type(model).forward).parameters:
            inputs["position_ids"] = torch.zeros_like(inputs["input_ids"])
    calls: list[ModuleCall] = []

    def recording(name: str, module: nn.Module) -> Any:
        def keep(args: Args, kwargs: Kwargs, output: Any) -> None:
            calls.append(ModuleCall(name, module, args, kwargs, output))

        return after(module, keep)

    believed = stand_ins(model, lambda module, rows: None) if device.type == "meta" else nullcontext()
    with believed, all_of(recording(name, module) for name, module in model.named_modules() if name):
        model(**inputs, use_cache=False)
    return calls


def same(x: Tensor | None, y: Tensor | None) -> bool:
    """Whether two hidden states are equal, bit for bit."""
    if x is None or y is None or x.shape != y.shape or x.device != y.device:
        return False
    if x.is_meta:  # no numbers: the same memory
        return x.untyped_storage()._cdata == y.untyped_storage()._cdata
    return torch.equal(x, y)


def _special_ids(config: Any) -> list[Any]:
    """Ids of tokens that are no text: they begin, end or pad one, or stand for an image."""
    settings = {**config.to_dict(), **text_config(config).to_dict()}
    ids = [value for key, value in settings.items() if key.endswith(("_token_id", "_token_index"))]
    return [one for value in ids for one in (value if isinstance(value, list) else [value])]


def counts_from_zero(model: Any, calls: list[ModuleCall], sites: Sites) -> bool:
    """Whether a model that takes positions has 0 and 1 for its first two tokens: what goes into its first block then
    stays the same. RoBERTa's begin behind its padding token's."""
    if not accepts(model, "position_ids") or device_of(model.get_input_embeddings()).type == "meta":
        return True
    by_name = {call.name: call for call in calls}
    ids = by_name[sites.embed].args[0]
    seen: list[Tensor | None] = []

    def keep(args: Args, kwargs: Kwargs) -> None:
        seen.append(_input_state(args, kwargs))
        raise Stop

    with before(model.get_submodule(sites.layer[0]), keep), suppress(Stop):
        model(input_ids=ids, position_ids=torch.arange(ids.shape[1], device=ids.device)[None])
    own, given = by_name[sites.layer[0]].input_state, seen[0]
    return own is None or given is None or torch.equal(own, given)


# A block run again ---------------------------------------------------------------------------------


def is_causal(block: ModuleCall) -> bool:
    """Whether the first token's output stays the same when the last token's input changes; on meta it is believed."""
    if block.output_state is not None and block.output_state.is_meta:
        return True
    args, kwargs = _disturbed(block.args, block.kwargs, -1)
    return _unchanged(block.module(*args, **kwargs), block.output, 0, _rounding(block.module))


def acts_on_tokens(call: ModuleCall) -> bool:
    """Whether the last token's output stays the same when the first token's input changes."""
    args, kwargs = _disturbed(call.args, call.kwargs, 0)
    return _unchanged(call.module(*args, **kwargs), call.output, -1, _rounding(call.module))


def mixes(block: ModuleCall, linears: list[ModuleCall]) -> bool:
    """Whether what the last of these linears gets for the last token changes with what the others get for the first.

    From one more run of the block: true of the linears of attention, of a convolution over tokens or of a recurrence;
    on meta it is believed.
    """
    if block.output_state is not None and block.output_state.is_meta:
        return True

    def disturb(args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        return _disturbed(args, kwargs, 0)

    seen: list[Any] = []
    disturbed = [before(call.module, disturb) for call in linears[:-1]]
    keep = before(linears[-1].module, lambda args, kwargs: seen.append(_input_state(args, kwargs)))
    with all_of([*disturbed, keep]):
        block.module(*block.args, **block.kwargs)
    x, was = (_vector(state, -1) for state in (seen[0], linears[-1].input_state))
    return bool(_rms(x - was) > max(1e-3, _rounding(block.module)) * _rms(was))


def measured(
    block: ModuleCall, mlp_in: list[ModuleCall], mlp_out: ModuleCall, behind: list[ModuleCall]
) -> tuple[bool, float | None, str | None]:
    """From one more run of the block: whether the MLP acts on each token alone, its gain, and the norm behind it.

    The first token's MLP input is disturbed, which must change its key and leave the last token's as it was. A vector v
    is added to the last token's MLP output m; it has a part along m, so that behind a norm the block's output cannot
    move in parallel to v (:attr:`Sites.gain` is None then). The norm is the module of those ``behind`` the down
    projection whose input moves by v and whose output moves as the block's does; None where there is none. On the meta
    device there are no numbers: a gain of 1 is taken for granted there.
    """
    if mlp_out.output_state is not None and mlp_out.output_state.is_meta:
        return True, 1.0, None
    h = _vector(block.output, -1)  # (d)
    seen: list[Any] = []
    rerun: dict[str, tuple[Tensor | None, Any]] = {}

    def add(args: Args, kwargs: Kwargs, output: Any) -> Any:
        m = _vector(output, -1)  # (d); taken here, as Falcon adds to this tensor in place
        v = torch.maximum(_rms(m), _rms(h)) * (m / _rms(m) + _wave(m))  # (d)
        seen.extend([_input_state(args, kwargs), v])
        return with_hidden(output, _with_added(hidden_of(output), -1, v))

    def disturb(args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        return _disturbed(args, kwargs, 0)

    def keep(name: str) -> After:
        return lambda args, kwargs, output: rerun.update({name: (_input_state(args, kwargs), output)})

    watching = [after(call.module, keep(call.name)) for call in behind]
    with all_of([*(before(call.module, disturb) for call in mlp_in), after(mlp_out.module, add), *watching]):
        output = block.module(*block.args, **block.kwargs)
    key, v = seen
    rounding = _rounding(block.module)
    one_token = _unchanged(key, mlp_out.input_state, -1, rounding) and not _unchanged(key, mlp_out.input_state, 0, 0.0)
    delta = _vector(output, -1) - h  # (d)
    gain = float(delta @ v / (v @ v))
    if not _near(gain * v, delta):
        norms = [
            call.name
            for call in behind
            if _near(_moved(call.input_state, rerun[call.name][0]), v)
            and _near(_moved(call.output, rerun[call.name][1]), delta)
        ]
        return one_token, None, norms[0] if norms else None
    precision = max(1e-4, torch.finfo(key.dtype).eps, rounding)
    return one_token, 1.0 if abs(gain - 1) < precision else float(f"{gain:.6g}"), None


def _near(x: Tensor, expected: Tensor) -> bool:
    return x.shape == expected.shape and bool(_rms(x - expected) <= 0.02 * _rms(expected))


def _moved(was: Any, now: Any) -> Tensor:
    """How the last token's vector moved. (d)."""
    return _vector(now, -1) - _vector(was, -1)


def _disturbed(args: Args, kwargs: Kwargs, i: int) -> tuple[Args, Kwargs]:
    """The same inputs with the i-th token's vector changed."""
    state = _input_state(args, kwargs)
    if state is None:
        return args, kwargs
    other = _with_added(state, i, _rms(state.float()) * _wave(state))
    args = tuple(other if value is state else value for value in args)
    return args, {key: other if value is state else value for key, value in kwargs.items()}


def _with_added(x: Tensor, i: int, v: Tensor) -> Tensor:
    """A copy of ``x`` with ``v`` added to its i-th token."""
    changed = x.clone().reshape(-1, x.shape[-1])
    changed[i] += v.to(changed)
    return changed.reshape(x.shape)


def _unchanged(output: Any, was: Any, i: int, rounding: float) -> bool:
    x, y = _vector(output, i), _vector(was, i)
    return torch.allclose(x, y, rtol=1e-3, atol=1e-5) or bool(_rms(x - y) <= rounding * _rms(y))


def _rounding(block: nn.Module) -> float:
    """How far, relatively, a vector may move when other tokens change that it does not see.

    LLM.int8 (arXiv:2208.07339) computes those inputs more precisely that are large in any token of a batch.
    """
    return 0.03 if any(packed(block)) else 0.0


def _vector(output: Any, i: int) -> Tensor:
    """The i-th token's vector in a module's output, whatever its leading dimensions. (d)."""
    x = _output_state(output)
    assert x is not None, "a block must output a hidden state"
    return x.reshape(-1, x.shape[-1])[i].float().clone()


def _wave(x: Tensor) -> Tensor:
    """A vector as wide as ``x``, of mean near 0 and mean square near 1, always the same. (d)."""
    return torch.cos(2.0 * torch.arange(x.shape[-1], device=x.device) + 1.0) * 2**0.5


def _rms(x: Tensor) -> Tensor:
    return x.square().mean().sqrt().clamp_min(1e-12)
