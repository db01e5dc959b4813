"""Where things are in a model: found in a small run of it, never looked up by its name.

    sites = find_sites(model)
    model.get_submodule(sites.mlp_out[3])      # the down projection of the fourth block

All branching about architectures is in this file.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from errata.errors import UnknownSites, first_line
from errata.model.mixers import first_mixer, is_one_layer, mixers_of, reading_first, split
from errata.model.mixtures import Mixture, mixture_of
from errata.model.recording import (
    ModuleCall,
    counts_from_zero,
    evaluating,
    is_causal,
    measured,
    mixes,
    recorded,
    same,
)
from errata.model.sites import Sites
from errata.model.stacks import is_stack
from errata.model.weights import holds_integers, is_linear, owner


def find_sites(model: Any) -> Sites:
    """The sites of a transformers decoder or encoder-decoder, from one run on two tokens.

    Each block then runs once more alone, with a vector added to its down projection's output: that gives the gain, and
    shows that the MLP acts on one token at a time and that what precedes it mixes tokens: attention, or a state-space
    or recurrent layer. In a block of that layer alone (Mamba) its output projection takes the down projection's place,
    in a mixture of experts the module around them. Raises :class:`UnknownSites` for experts that are not stacked,
    encoders, and whatever else would have to be guessed.
    """
    with evaluating(model), torch.no_grad():
        calls = _calls(model)
        if not model.config.is_encoder_decoder:
            sites = _stack_sites(model, model, calls, causal=True)
            if not counts_from_zero(model, calls, sites):
                raise _refusal(f"{type(model).__name__} does not count positions from 0")
            return sites
        encoder = _stack_sites(model, model.get_encoder(), calls, causal=False)
        decoder = _stack_sites(model, model.get_decoder(), calls, causal=True)
        return replace(decoder, encoder=encoder)


def _calls(model: Any) -> list[ModuleCall]:
    """Every call of a module in a run on two tokens. Raises :class:`UnknownSites` where that lacks something."""
    try:
        return recorded(model)
    except (TypeError, ValueError, KeyError, AttributeError, NotImplementedError) as error:
        raise _refusal(f"{type(model).__name__} does not run on text alone ({first_line(error)})") from error


def _refusal(reason: str) -> UnknownSites:
    return UnknownSites(
        f"{reason}; Errata finds the sites of decoders and encoder-decoders and does not guess. "
        "Name them yourself: errata.load(model, sites=Sites(embed=..., layer=(...), "
        "mlp_in=((...), ...), mlp_out=(...), attn_out=(...), final_norm=..., lm_head=..., "
        "gain=(1.0, ...), mlp_norm=(None, ...)))"
    )


def _stack_sites(model: Any, stack: nn.Module, calls: list[ModuleCall], causal: bool) -> Sites:
    """The sites of one stack of blocks: the whole model, its encoder or its decoder."""
    names = {module: name for name, module in model.named_modules()}
    inside = set(stack.modules())
    stack_calls = [call for call in calls if call.module in inside]
    list_name, blocks = _blocks(names, stack, stack_calls)
    if blocks[0].output_state is None:
        raise _refusal(f"block 0 of `{list_name}` outputs no hidden state")
    kinds: set[frozenset[type]] = set()
    for i, block in enumerate(blocks):
        kind = frozenset(map(type, block.module.modules()))
        if causal and kind not in kinds and not is_causal(block):
            raise _refusal(f"in block {i} of `{list_name}` a token sees later ones, as in an encoder")
        kinds.add(kind)
        if reason := _unsupported(block.module, first_mixer(block, stack_calls)):
            raise _refusal(f"block {i} of `{list_name}` {reason}")
    parts = [_parts(list_name, i, block, stack_calls) for i, block in enumerate(blocks)]
    head = model.get_output_embeddings()
    if head is None or head not in names:
        raise _refusal(f"{type(model).__name__} has no language-model head")
    return Sites(
        embed=_embed(stack_calls, list_name),
        layer=tuple(block.name for block in blocks),
        mlp_in=tuple(tuple(call.name for call in part.mlp_in) for part in parts),
        mlp_out=tuple(part.mlp_out.name for part in parts),
        attn_out=tuple(part.attn_out.name if part.attn_out else None for part in parts),
        final_norm=_final_norm(calls, blocks[-1]),
        lm_head=names[head],
        gain=tuple(part.gain for part in parts),
        mlp_norm=tuple(part.mlp_norm for part in parts),
        experts=tuple(part.experts for part in parts) if any(part.experts for part in parts) else (),
        mixes=tuple(part.mixes for part in parts) if any(part.mixes for part in parts) else (),
    )


def _blocks(names: dict[nn.Module, str], stack: nn.Module, calls: list[ModuleCall]) -> tuple[str, list[ModuleCall]]:
    """The one outermost list of modules with modules in them that ran once each, or not at all, one after another."""
    by_module: dict[nn.Module, list[ModuleCall]] = {}
    for call in calls:
        by_module.setdefault(call.module, []).append(call)
    lists: dict[str, list[ModuleCall]] = {}
    for module in stack.modules():
        name = names[module]
        if not isinstance(module, nn.ModuleList) or any(name.startswith(f"{n}.") for n in lists):
            continue
        runs = [by_module[child] for child in module if child in by_module]
        if runs and all(len(run) == 1 and any(run[0].module.children()) for run in runs):
            lists[name] = [run[0] for run in runs]
    if len(lists) != 1:
        described = f"the lists {', '.join(f'`{name}`' for name in lists)}" if lists else "no list"
        raise _refusal(f"found {described} of blocks that run once each, expected one list")
    return next(iter(lists.items()))


def _unsupported(block: nn.Module, mixer: set[nn.Module]) -> str | None:
    """What a block has besides a token mixer and one MLP, in words; None where it has nothing else."""
    modules: dict[str, nn.Module] = dict(block.named_modules())  # pyright: ignore
    for name, module in modules.items():
        if module in mixer:  # may hold what it likes
            continue
        members = list(module) if isinstance(module, nn.ModuleList) else []
        if len(members) > 1 and len({type(member) for member in members}) == 1:
            return f"holds {len(members)} expert MLPs (`{name}`), a mixture of experts"
    for name, weight in block.named_parameters():
        holder = owner(block, name)[0]
        known = is_linear(holder) or isinstance(holder, nn.Conv1d) or is_stack(holder) or holder in mixer
        if weight.ndim == 3 and len(weight) > 1 and not known:
            return f"holds {len(weight)} expert MLPs (stacked in `{name}`), a mixture of experts"
    return None


def _embed(calls: list[ModuleCall], list_name: str) -> str:
    """The first embedding of token ids (an embedding of positions runs later, or gets ids that rise from 0)."""
    for call in calls:
        ids = call.args[0] if call.args else call.kwargs.get("input")
        if isinstance(call.module, nn.Embedding) and isinstance(ids, Tensor) and ids.is_meta:
            return call.name  # the first; the order of ids is not known
        if isinstance(call.module, nn.Embedding) and isinstance(ids, Tensor):
            order = ids.flatten()
            if len(order) > 1 and order[0] > order[1]:
                return call.name
    raise _refusal(f"found no embedding of token ids before `{list_name}`")


def _final_norm(calls: list[ModuleCall], last: ModuleCall) -> str | None:
    """The module that gets the last block's output and changes its values but not its width; None without one."""
    for call in calls[calls.index(last) + 1 :]:
        is_norm = not any(call.module.children()) and not call.is_linear
        if is_norm and same(call.input_state, last.output_state) and not same(call.output_state, last.output_state):
            return call.name if _width(call.output_state) == _width(last.output_state) else None
    return None


@dataclass(frozen=True)
class _Parts:
    """What a block consists of."""

    mlp_in: list[ModuleCall]
    mlp_out: ModuleCall
    attn_out: ModuleCall | None
    gain: float | None
    mlp_norm: str | None
    mixes: bool
    experts: tuple[str, ...] = ()


def _parts(list_name: str, i: int, block: ModuleCall, calls: list[ModuleCall]) -> _Parts:
    """The token mixer's output linear and the MLP of a block, from the order in which its linears ran.

    The down projection is the last linear of which that holds that those before it that share one input are ``mlp_in``,
    and all that ran earlier belong to what mixes tokens: behind it an adapter may run, or a gate. A block of one layer
    has no more than that layer's linears.
    """
    where = f"block {i} of `{list_name}`"
    mixture = mixture_of(block, calls)
    if isinstance(mixture, str):
        raise _refusal(f"{where} {mixture}")
    if mixture is not None:
        return _mixture_parts(where, block, mixture, calls)
    inside = set(block.module.modules())
    linears = [call for call in calls if call.module in inside and call.is_linear]
    if (foreign := _foreign(block.module)) and len(linears) < 4:
        raise UnknownSites(
            f"{where} holds `{foreign[0]}`, a {foreign[1]}, which packs its weight in an unknown form; "
            "load the model unquantised, or quantised by bitsandbytes or torchao"
        )
    if len(linears) < 2 or block.output_state is None:
        raise _refusal(f"{where} runs {len(linears)} linears, too few for an MLP or a token mixer")
    refused: list[UnknownSites] = []
    for end in [len(linears), *range(len(linears) - 1, 3, -1)]:
        try:
            return _parts_of(block, where, linears[:end], calls, end == len(linears))
        except UnknownSites as refusal:
            refused.append(refusal)
    raise refused[0]


def _parts_of(
    block: ModuleCall, where: str, linears: list[ModuleCall], calls: list[ModuleCall], are_all: bool
) -> _Parts:
    """The parts of a block whose down projection is the last of ``linears``. Raises :class:`UnknownSites`."""
    mlp_in, mlp_out, others = split(linears)
    mixers = mixers_of(block, others, [*mlp_in, mlp_out])
    alone = are_all and not mixers and is_one_layer(block, linears, calls)
    if alone:
        mlp_in = reading_first(linears)
    else:
        _check_mixers(block, where, others, mixers, "what looks like its MLP")
    width, hidden = _width(block.output_state), _width(mlp_out.input_state)
    attn_out = mixers[-1][-1] if mixers else None
    behind = calls[calls.index(mlp_out) + 1 : calls.index(block)]
    leaves = [call for call in behind if not any(call.module.children())]
    one_token, gain, norm = measured(block, mlp_in, mlp_out, leaves)
    if not one_token and not alone:
        raise _refusal(f"in {where} `{mlp_out.name}` comes last but reads a mixture of tokens")
    if not one_token:  # what disturbed the earlier token has reached the block's output
        _, gain, norm = measured(block, [], mlp_out, leaves)
    fits = [_width(call.output_state) for call in mlp_in] in ([hidden], [hidden, hidden], [2 * hidden])
    outputs = [call for call in (attn_out, mlp_out) if call]
    if not (fits or not one_token) or any(_width(call.output_state) != width for call in outputs):
        order = ", ".join(f"`{call.name}`" for call in (*outputs[:-1], *mlp_in, mlp_out))
        raise _refusal(f"in {where} {order} do not have the shapes of attention and an MLP")
    return _Parts(mlp_in, mlp_out, attn_out, gain, norm, not one_token)


def _mixture_parts(where: str, block: ModuleCall, mixture: Mixture, calls: list[ModuleCall]) -> _Parts:
    """The token mixer's output linear where there is one, and the mixture of experts in the MLP's place."""
    inside, name = set(block.module.modules()), mixture.call.name
    first = next(i for i, call in enumerate(calls) if call.name == name or call.name.startswith(f"{name}."))
    before = [call for call in calls[:first] if call.module in inside and call.is_linear]
    mixers = mixers_of(block, before, [mixture.call])
    if before:  # else a block of one layer, which is the mixture
        _check_mixers(block, where, before, mixers, "its experts")
    behind = calls[calls.index(mixture.call) + 1 : calls.index(block)]
    _, gain, norm = measured(block, [mixture.call], mixture.call, [c for c in behind if not any(c.module.children())])
    return _Parts([mixture.call], mixture.call, mixers[-1][-1] if mixers else None, gain, norm, False, mixture.parts)


def _check_mixers(
    block: ModuleCall, where: str, linears: list[ModuleCall], mixers: list[list[ModuleCall]], mlp: str
) -> None:
    """Raises :class:`UnknownSites` unless the ``linears`` before the MLP are those of layers that mix tokens."""
    alone = next((mixer for mixer in mixers if len(mixer) < 2 or not mixes(block, mixer)), None)
    if not mixers or alone is not None:
        what = f"`{alone[-1].name}` among them acts on each token alone" if alone else "more than attention"
        order = ", ".join(f"`{call.name}`" for call in linears)
        raise _refusal(f"{where} runs {order} before {mlp}, {what}")


def _foreign(block: nn.Module) -> tuple[str, str] | None:
    """Name and class of the first module that holds matrices of integers and does not say how large its weight is."""
    for name, module in block.named_modules():
        if not is_linear(module) and holds_integers(module):
            return name, type(module).__name__
    return None


def _width(x: Tensor | None) -> int:
    return 0 if x is None else x.shape[-1]
