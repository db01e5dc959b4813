"""Where things are in a model: found by watching a small run, never looked up by its name.

    sites = find_sites(model)
    model.get_submodule(sites.mlp_out[3])      # the down projection of the fourth block

All the ugly branching about architectures is in this file.
"""

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from errata.errors import UnknownSites
from errata.model.hooks import Args, Kwargs, after, all_of, before
from errata.model.sites import Sites


@contextmanager
def evaluating(model: nn.Module) -> Generator[None]:
    """Eval mode for the length of the block; every module gets its own mode back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def find_sites(model: Any) -> Sites:
    """The sites of a decoder or encoder-decoder of transformers, from one run on two tokens.

    Each block is then run once more by itself, with a vector added to its down projection's output:
    that gives the gain, and shows that what was found acts on one token at a time. Raises
    :class:`UnknownSites` for mixtures of experts, state-space and recurrent blocks, encoders, and
    whatever else would have to be guessed.
    """
    if getattr(model, "_is_stateful", False):
        raise _refusal(f"{type(model).__name__} carries a recurrent state")
    with evaluating(model), torch.no_grad():
        calls = _record(model)
        if not model.config.is_encoder_decoder:
            return _stack_sites(model, model, calls, causal=True)
        encoder = _stack_sites(model, model.get_encoder(), calls, causal=False)
        decoder = _stack_sites(model, model.get_decoder(), calls, causal=True)
        return replace(decoder, encoder=encoder)


@dataclass(frozen=True, eq=False)
class _Call:
    """One call of a module, in the order of leaving it."""

    name: str
    module: nn.Module
    args: Args
    kwargs: Kwargs
    output: Any

    @property
    def read(self) -> Tensor | None:
        return _read(self.args, self.kwargs)

    @property
    def wrote(self) -> Tensor | None:
        return _wrote(self.output)

    @property
    def is_linear(self) -> bool:
        return isinstance(self.module, Conv1D) or hasattr(self.module, "in_features")


def _first(values: Iterable[Any]) -> Tensor | None:
    floats = (x for x in values if isinstance(x, Tensor) and x.is_floating_point())
    return next(floats, None)


def _read(args: Args, kwargs: Kwargs) -> Tensor | None:
    return _first((*args, kwargs.get("hidden_states"), *kwargs.values()))


def _wrote(output: Any) -> Tensor | None:
    """The hidden state that is handed on: in a tensor, a tuple or (the first GPT) a list."""
    return _first(output if type(output) in (tuple, list) else (output,))


def _same(x: Tensor | None, y: Tensor | None) -> bool:
    if x is None or y is None or x.shape != y.shape or x.device != y.device:
        return False
    return torch.equal(x, y)


def _record(model: Any) -> list[_Call]:
    """Every call of every module on two tokens; an encoder gets three: cross-attention shows."""
    embed = model.get_input_embeddings().weight
    device = torch.device("cpu") if embed.device.type == "meta" else embed.device
    special = [getattr(model.config, f"{name}_token_id", None) for name in ("pad", "bos", "eos")]
    a, b, c = [i for i in range(31, 2, -1) if i not in special][:3]
    feed = {"input_ids": torch.tensor([[a, b]], device=device)}
    if model.config.is_encoder_decoder:
        feed["decoder_input_ids"] = feed["input_ids"]
        feed["input_ids"] = torch.tensor([[a, b, c]], device=device)
    calls: list[_Call] = []

    def note(name: str, module: nn.Module) -> Any:
        def keep(args: Args, kwargs: Kwargs, output: Any) -> None:
            calls.append(_Call(name, module, args, kwargs, output))

        return after(module, keep)

    with all_of(note(name, module) for name, module in model.named_modules() if name):
        model(**feed, use_cache=False)
    return calls


def _refusal(found: str) -> UnknownSites:
    return UnknownSites(
        f"{found}; Errata finds its way in dense decoders and encoder-decoders and does not guess. "
        "Name the places yourself: errata.load(model, sites=Sites(embed=..., layer=(...), "
        "mlp_in=((...), ...), mlp_out=(...), attn_out=(...), final_norm=..., lm_head=..., "
        "gain=(1.0, ...)))"
    )


def _stack_sites(model: Any, stack: nn.Module, calls: list[_Call], causal: bool) -> Sites:
    """The sites of one stack of blocks: the whole model, its encoder or its decoder."""
    names = {module: name for name, module in model.named_modules()}
    inside = set(stack.modules())
    stack_calls = [call for call in calls if call.module in inside]
    list_name, blocks = _blocks(names, stack, stack_calls)
    if causal and not _is_causal(blocks[0]):
        raise _refusal(f"in block 0 of `{list_name}` a token sees later ones, as in an encoder")
    for i, block in enumerate(blocks):
        if odd := _oddity(block.module):
            raise _refusal(f"block {i} of `{list_name}` {odd}")
    parts = [_parts(list_name, i, block, stack_calls) for i, block in enumerate(blocks)]
    head = model.get_output_embeddings()
    if head is None or head not in names:
        raise _refusal(f"{type(model).__name__} has no language-model head")
    return Sites(
        embed=_embed(stack_calls, list_name),
        layer=tuple(block.name for block in blocks),
        mlp_in=tuple(tuple(call.name for call in part.mlp_in) for part in parts),
        mlp_out=tuple(part.mlp_out.name for part in parts),
        attn_out=tuple(part.attn_out.name for part in parts),
        final_norm=_final_norm(calls, blocks[-1]),
        lm_head=names[head],
        gain=tuple(part.gain for part in parts),
    )


def _blocks(names: dict[nn.Module, str], stack: nn.Module, calls: list[_Call]) -> tuple[str, list[_Call]]:
    """The one outermost list whose members all ran, once each and one after another."""
    by_module: dict[nn.Module, list[_Call]] = {}
    for call in calls:
        by_module.setdefault(call.module, []).append(call)
    found: dict[str, list[_Call]] = {}
    for module in stack.modules():
        name = names[module]
        if not isinstance(module, nn.ModuleList) or any(name.startswith(f"{n}.") for n in found):
            continue
        runs = [by_module.get(child, []) for child in module]
        if runs and all(len(run) == 1 for run in runs):
            found[name] = [run[0] for run in runs]
    if len(found) != 1:
        seen = f"the lists {', '.join(f'`{name}`' for name in found)}" if found else "no list"
        raise _refusal(f"found {seen} of blocks that run once each, expected one list")
    return next(iter(found.items()))


def _oddity(block: nn.Module) -> str | None:
    """What in a block is more than attention and one MLP, in words."""
    modules: dict[str, nn.Module] = dict(block.named_modules())  # pyright: ignore
    for name, module in modules.items():
        if isinstance(module, nn.Conv1d):
            return f"holds a convolution over tokens (`{name}`), as state-space models do"
        members = list(module) if isinstance(module, nn.ModuleList) else []
        if len(members) > 1 and len({type(member) for member in members}) == 1:
            return f"holds {len(members)} expert MLPs (`{name}`), a mixture of experts"
    for name, weight in block.named_parameters():
        if weight.ndim == 3:
            return f"holds {len(weight)} expert MLPs (stacked in `{name}`), a mixture of experts"
    return None


def _embed(calls: list[_Call], list_name: str) -> str:
    """The first embedding that is given token ids (positions come later or rise from 0)."""
    for call in calls:
        ids = call.args[0] if call.args else call.kwargs.get("input")
        if isinstance(call.module, nn.Embedding) and isinstance(ids, Tensor):
            order = ids.flatten()
            if len(order) > 1 and order[0] > order[1]:
                return call.name
    raise _refusal(f"found no embedding of token ids before `{list_name}`")


def _final_norm(calls: list[_Call], last: _Call) -> str | None:
    """What reads the last block's output and changes its values, not its width."""
    for call in calls[calls.index(last) + 1 :]:
        alone = not any(call.module.children()) and not call.is_linear
        if alone and _same(call.read, last.wrote) and not _same(call.wrote, last.wrote):
            return call.name if _width(call.wrote) == _width(last.wrote) else None
    return None


@dataclass(frozen=True)
class _Parts:
    mlp_in: list[_Call]
    mlp_out: _Call
    attn_out: _Call
    gain: float | None


def _parts(list_name: str, i: int, block: _Call, calls: list[_Call]) -> _Parts:
    """Attention's output linear and the MLP of a block, from the order in which its linears ran.

    The last linear is the down projection, those before it that read one and the same tensor are
    ``mlp_in``; all that ran earlier must belong to attention.
    """
    where = f"block {i} of `{list_name}`"
    inside = set(block.module.modules())
    linears = [call for call in calls if call.module in inside and call.is_linear]
    if len(linears) < 4 or block.wrote is None:
        raise _refusal(f"{where} runs {len(linears)} linears, too few for attention and an MLP")
    mlp_out = linears.pop()
    mlp_in = [linears.pop()]
    while linears and _same(linears[-1].read, mlp_in[0].read):
        mlp_in.insert(0, linears.pop())
    attn_out = _attn_out(block, where, linears, [*mlp_in, mlp_out])
    width, hidden = _width(block.wrote), _width(mlp_out.read)
    fits = [_width(call.wrote) for call in mlp_in] in ([hidden], [hidden, hidden], [2 * hidden])
    if not fits or _width(mlp_out.wrote) != width or _width(attn_out.wrote) != width:
        order = ", ".join(f"`{call.name}`" for call in (attn_out, *mlp_in, mlp_out))
        raise _refusal(f"in {where} {order} do not have the shapes of attention and an MLP")
    one_token, gain = _measure(block, mlp_in, mlp_out)
    if not one_token:
        raise _refusal(f"in {where} `{mlp_out.name}` comes last but reads a mixture of tokens")
    return _Parts(mlp_in, mlp_out, attn_out, gain)


def _attn_out(block: _Call, where: str, linears: list[_Call], mlp: list[_Call]) -> _Call:
    """The last linear of self-attention, given all that ran before the MLP.

    Cross-attention is what shares a parent with a linear that reads another number of tokens than
    the first one did. What is left must have a home of its own in the block, apart from the MLP.
    """
    tokens = _tokens(linears[0]) if linears else 0
    cross = {_parent(call.name) for call in linears if _tokens(call) != tokens}
    own = [call for call in linears if _parent(call.name) not in cross]
    home = _parent(own[0].name) if own else ""
    while not all(call.name.startswith(f"{home}.") for call in own):
        home = _parent(home)
    alone = not any(call.name.startswith(f"{home}.") for call in mlp)
    if len(own) < 2 or not home.startswith(f"{block.name}.") or not alone:
        order = ", ".join(f"`{call.name}`" for call in linears)
        raise _refusal(f"{where} runs {order} before what looks like its MLP, more than attention")
    return own[-1]


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _tokens(call: _Call) -> int:
    return 0 if call.read is None else call.read.numel() // _width(call.read)


def _width(x: Tensor | None) -> int:
    return 0 if x is None else x.shape[-1]


def _vector(output: Any, i: int) -> Tensor:
    """The i-th token's vector in what a module handed on, whatever the leading dimensions."""
    x = _wrote(output)
    if x is None:
        raise _refusal("a block hands on no hidden state")
    return x.reshape(-1, x.shape[-1])[i].float().clone()  # (d)


def _moved(x: Tensor, i: int, v: Tensor) -> Tensor:
    """A copy of ``x`` with ``v`` added to its i-th token."""
    moved = x.clone().reshape(-1, x.shape[-1])
    moved[i] += v.to(moved)
    return moved.reshape(x.shape)


def _disturbed(args: Args, kwargs: Kwargs, i: int) -> tuple[Args, Kwargs]:
    """The same inputs with the i-th token's vector changed."""
    read = _read(args, kwargs)
    if read is None:
        return args, kwargs
    other = _moved(read, i, _rms(read.float()) * _wave(read))
    args = tuple(other if value is read else value for value in args)
    return args, {key: other if value is read else value for key, value in kwargs.items()}


def _wave(x: Tensor) -> Tensor:
    """A vector as wide as ``x``, of mean near 0 and mean square near 1, always the same."""
    return torch.cos(2.0 * torch.arange(x.shape[-1], device=x.device) + 1.0) * 2**0.5  # (d)


def _rms(x: Tensor) -> Tensor:
    return x.square().mean().sqrt().clamp_min(1e-12)


def _is_causal(block: _Call) -> bool:
    """Whether the first token's output stays the same when the last token's input changes."""
    args, kwargs = _disturbed(block.args, block.kwargs, -1)
    return _unchanged(block.module(*args, **kwargs), block.output, 0)


def _unchanged(output: Any, was: Any, i: int) -> bool:
    return torch.allclose(_vector(output, i), _vector(was, i), rtol=1e-3, atol=1e-5)


def _measure(block: _Call, mlp_in: list[_Call], mlp_out: _Call) -> tuple[bool, float | None]:
    """Whether the MLP acts on each token alone, and its gain.

    One more run of the block. The first token's MLP input is disturbed, which must leave the last
    token's key as it was; a vector v is added to the last token's MLP output m. It has a part along
    m: behind a norm the block's output then cannot move in parallel to v.
    """
    h = _vector(block.output, -1)  # (d)
    seen: list[Any] = []

    def add(args: Args, kwargs: Kwargs, output: Tensor) -> Tensor:
        m = _vector(output, -1)  # (d); read here: Falcon adds to this tensor in place
        v = torch.maximum(_rms(m), _rms(h)) * (m / _rms(m) + _wave(m))  # (d)
        seen.extend([_read(args, kwargs), v])
        return _moved(output, -1, v)

    def disturb(args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        return _disturbed(args, kwargs, 0)

    with all_of([*(before(call.module, disturb) for call in mlp_in), after(mlp_out.module, add)]):
        output = block.module(*block.args, **block.kwargs)
    key, v = seen
    one_token = _unchanged(key, mlp_out.read, -1)
    delta = _vector(output, -1) - h  # (d)
    gain = float(delta @ v / (v @ v))
    exact = max(1e-4, torch.finfo(key.dtype).eps)
    if _rms(delta - gain * v) > 0.02 * _rms(delta):
        return one_token, None
    return one_token, 1.0 if abs(gain - 1) < exact else float(f"{gain:.6g}")
