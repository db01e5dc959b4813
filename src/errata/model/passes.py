"""Forward passes over many rows: batches by token budget, inputs, the forms of outputs, the logits that are needed."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from errata.model import hooks
from errata.model.padding import positions_of
from errata.model.sites import Sites
from errata.model.weights import is_linear

Rows = Sequence[Sequence[int]]  # token ids, not padded


def budgeted(
    lengths: Sequence[int], budget: int, run_lengths: Sequence[int] | None = None, *, equal: bool = False
) -> Iterator[list[int]]:
    """Batches of indices, rows of similar length together.

    A batch holds at most ``budget`` tokens (rows × longest row), unless it is a single row. ``run_lengths`` gives the
    tokens of each row that one pass runs, where a batch holds more than that (decoding: the prompt, of prompt and
    answer); with it a batch that runs a sixteenth of the budget also ends where more than an eighth would be padding.
    With ``equal`` there is no padding at all: the rows of a batch have one length.
    """
    run = lengths if run_lengths is None else run_lengths
    order = sorted(range(len(lengths)), key=lambda i: (run[i], lengths[i]))
    batch: list[int] = []
    tokens = longest = 0
    for i in order:
        longest = max(longest, lengths[i])
        padded = (len(batch) + 1) * run[i]
        wasteful = run_lengths is not None and tokens > budget // 16 and padded > 9 / 8 * (tokens + run[i])
        unequal = equal and bool(batch) and run[i] != run[batch[0]]
        if batch and ((len(batch) + 1) * longest > budget or wasteful or unequal):
            yield batch
            batch, tokens, longest = [], 0, lengths[i]
        batch.append(i)
        tokens += run[i]
    if batch:
        yield batch


# Inputs --------------------------------------------------------------------------------------------


def accepts(model: nn.Module, name: str) -> bool:
    """Whether the model's ``forward`` takes an argument of this name."""
    return name in _arguments(type(model).forward)


@lru_cache(maxsize=64)
def _arguments(forward: Callable[..., Any]) -> frozenset[str]:
    """The names of a function's arguments. Asked of one function many times in each pass."""
    return frozenset(inspect.signature(forward).parameters)


def cache_argument(model: nn.Module) -> str | None:
    """The name under which the model takes a cache; None where it takes none."""
    return next((name for name in ("past_key_values", "cache_params") if accepts(model, name)), None)


def inputs_of(
    model: nn.Module, ids: Tensor, mask: Tensor, cache: Any = None, positions: Tensor | None = None
) -> dict[str, Any]:
    """Keyword arguments of a causal model's ``forward`` for ``ids`` (b, t); ``mask`` covers the cached tokens too.

    ``position_ids`` are passed wherever the model takes them, ``positions`` (b, t) or what the mask says: without them
    padded batches are wrong in some models. A mask of four dimensions is added to what attention finds, and needs them.
    ``cache_params`` are those of a model without attention, which wants the mask of the new tokens alone.
    """
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    if accepts(model, "use_cache"):
        inputs["use_cache"] = cache is not None
    if cache is not None and (name := cache_argument(model)):
        inputs[name] = cache
        if name == "cache_params":
            inputs["attention_mask"] = mask[:, -ids.shape[1] :]
    if accepts(model, "position_ids"):
        told = positions_of(mask)[:, -ids.shape[1] :].contiguous() if positions is None else positions
        inputs["position_ids"] = told
    return inputs


def with_weights(model: nn.Module, weights: Mapping[str, Tensor] | None, inputs: dict[str, Any]) -> Any:
    """The transformers output for keyword arguments; ``weights`` replace parameters inside the graph."""
    if not weights:
        return model(**inputs)
    typed = {name: w.to(model.get_parameter(name).dtype) for name, w in weights.items()}
    return torch.func.functional_call(model, typed, (), inputs)


def decoder_start(config: Any, fill: int) -> int:
    """Token id with which an encoder-decoder's decoder begins; ``fill`` where the configuration names none."""
    start = getattr(config, "decoder_start_token_id", None)
    return fill if start is None else start


def input_device(model: nn.Module, sites: Sites) -> torch.device:
    """Device of the token ids: where the embedding runs."""
    return device_of(model.get_submodule(sites.embed))


def device_of(embed: Any) -> torch.device:
    """Device on which a module with a weight runs: that of the weight, or another if it is offloaded."""
    if embed.weight.device.type != "meta":
        return embed.weight.device
    hook = getattr(embed, "_hf_hook", None)
    return embed.weight.device if hook is None else torch.device(getattr(hook, "execution_device", None) or "cpu")


def float64_device(device: torch.device) -> torch.device:
    """The device itself where it has float64, else the CPU."""
    try:
        torch.zeros(1, dtype=torch.float64, device=device)
    except (TypeError, RuntimeError):
        return torch.device("cpu")
    return device


# Outputs -------------------------------------------------------------------------------------------


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` in float32, or unchanged where its type is more precise."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def hidden_of(output: Any) -> Tensor:
    """The hidden state in a block's output, which is a tensor, or a tuple or list that begins with one."""
    return output[0] if isinstance(output, tuple | list) else output


def with_hidden(output: Any, hidden: Tensor) -> Any:
    """A block's output with another hidden state, in the same form (tensor, tuple or list)."""
    return type(output)((hidden, *output[1:])) if isinstance(output, tuple | list) else hidden


def unflattened(hidden: Tensor, b: int) -> Tensor:
    """The hidden state as (b, t, width), also in models that flatten rows and tokens to (b·t, width) (OPT)."""
    return hidden.reshape(b, -1, hidden.shape[-1]) if hidden.ndim == 2 else hidden


def gathered(model: nn.Module, sites: Sites, rows: Tensor, columns: Tensor) -> AbstractContextManager[None]:
    """Context manager: the model computes logits only at (rows, columns) and returns them as (1, k, V).

    The positions are gathered at the input of ``lm_head``, so a scale or soft cap behind it stays in force.
    """

    def gather(args: hooks.Args, kwargs: hooks.Kwargs) -> tuple[hooks.Args, hooks.Kwargs]:
        hidden = args[0]
        return (hidden[rows.to(hidden.device), columns.to(hidden.device)][None], *args[1:]), kwargs

    return hooks.before(model.get_submodule(sites.lm_head), gather)


def mlp_only_at(
    model: nn.Module, sites: Sites, layer: int, shape: tuple[int, int], rows: Tensor, columns: Tensor
) -> AbstractContextManager[None]:
    """Context manager: a block's MLP runs only at (rows, columns) and outputs zero elsewhere.

    Valid only if no other position reaches ``lm_head``, by a later block's attention either. ``shape`` is (b, t).
    Changes nothing where the block mixes tokens in the place of an MLP, or has experts.
    """
    if sites.mixing(layer) or sites.mlp_out[layer] in sites.experts_of(layer):  # experts get gates beside the tokens
        return nullcontext()
    inputs = [model.get_submodule(path) for path in sites.mlp_in[layer]]
    return _only_at(inputs, model.get_submodule(sites.mlp_out[layer]), shape, rows, columns)


def attention_only_at(
    model: nn.Module, sites: Sites, layer: int, shape: tuple[int, int], rows: Tensor, columns: Tensor
) -> AbstractContextManager[None]:
    """Context manager: the linears of a block's attention run only at (rows, columns) and output zero elsewhere.

    Valid only if all other positions are masked. Changes nothing in a block whose attention is not known, or that mixes
    tokens otherwise.
    """
    path = (sites.attn_out[layer] or "").rpartition(".")[0]
    if sites.mixing(layer) or not path.startswith(f"{sites.layer[layer]}."):
        return nullcontext()
    modules = (module for module in model.get_submodule(path).children() if is_linear(module))
    return hooks.all_of(_only_at([module], module, shape, rows, columns) for module in modules)


def _only_at(
    inputs: Sequence[nn.Module], output: nn.Module, shape: tuple[int, int], rows: Tensor, columns: Tensor
) -> AbstractContextManager[None]:
    """Context manager: modules from ``inputs`` to ``output`` see (rows, columns) alone; elsewhere zero comes out."""
    flattened = foreign = False  # whether the model's hidden states are (b·t, d), or something else goes through
    at = rows * shape[1] + columns

    def gather(hidden: Tensor) -> Tensor:
        nonlocal flattened, foreign
        flattened, foreign = hidden.ndim == 2, hidden.shape[:-1].numel() != shape[0] * shape[1]
        if foreign:
            return hidden
        return hidden.reshape(-1, hidden.shape[-1]).index_select(0, at.to(hidden.device))[None]  # (1, k, d)

    def scatter(output: Any) -> Any:
        if foreign:
            return output
        hidden = hidden_of(output).reshape(len(rows), -1)  # (k, d)
        zeros = hidden.new_zeros(shape[0] * shape[1], hidden.shape[-1])
        full = zeros.index_copy(0, at.to(hidden.device), hidden)
        return with_hidden(output, full if flattened else full.view(*shape, -1))

    return hooks.all_of(
        [
            *(hooks.before(module, lambda args, kwargs: ((gather(args[0]), *args[1:]), kwargs)) for module in inputs),
            hooks.after(output, lambda args, kwargs, output: scatter(output)),
        ]
    )


def same_logits(fast: Tensor, full: Tensor, quantised: bool = False) -> bool:
    """Whether two ways to compute logits (k, V) agree within the precision of their type, or of 8 and 4 bits.

    Compares log-probabilities, weighted by the probability: differences in what has none do not count.
    """
    tolerance = {torch.float64: 1e-8, torch.float32: 1e-3}.get(full.dtype, 0.15) if not quantised else 0.15
    a, b = (logits.cpu().double().log_softmax(-1) for logits in (fast, full))  # not every device has float64
    weight = b.exp().clamp(min=1e-4)
    return bool(torch.isfinite(a).all()) and float(((a - b).abs() * weight).amax()) < tolerance
