"""The plain way to everything: one text at a time, full passes, dense matrices, torch's own hooks.

A reference for tests, written from the papers. Nothing of Errata runs in it.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from errata.types import Edit

Addition = tuple[str, int, Tensor]  # a vector that is added to the output of a module at one column

# Block, and inside it the down projection and the output of attention.
PATHS = {
    "gpt2": ("transformer.h.{}", "mlp.c_proj", "attn.c_proj"),
    "llama": ("model.layers.{}", "mlp.down_proj", "self_attn.o_proj"),
    "gpt_neox": ("gpt_neox.layers.{}", "mlp.dense_4h_to_h", "attention.dense"),
    "granite": ("model.layers.{}", "mlp.down_proj", "self_attn.o_proj"),
}


@dataclass
class Plain:
    """A causal model and its tokenizer, asked in the plainest way."""

    model: Any
    tokenizer: Any
    architecture: str

    def block(self, layer: int) -> str:
        return PATHS[self.architecture][0].format(layer)

    def down(self, layer: int) -> str:
        return f"{self.block(layer)}.{PATHS[self.architecture][1]}"

    def attention(self, layer: int) -> str:
        return f"{self.block(layer)}.{PATHS[self.architecture][2]}"

    # Texts

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text)["input_ids"]

    def target(self, prompt: str, target: str) -> list[int]:
        return self.ids(f"{prompt} {target}")[len(self.ids(prompt)) :]

    def subject_column(self, text: str, subject: str) -> int:
        return len(self.ids(text[: text.rindex(subject) + len(subject)])) - 1

    # Passes

    def logits(self, ids: Sequence[int], additions: Sequence[Addition] = ()) -> Tensor:
        """(t, V)"""
        with ExitStack() as stack:
            for path, column, vector in additions:
                hook = self.model.get_submodule(path).register_forward_hook(_adding(column, vector))
                stack.callback(hook.remove)
            return self.model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]

    @torch.no_grad()
    def flow(self, ids: Sequence[int], path: str, side: str) -> Tensor:
        """(t, width): what goes "in" or comes "out" at a module."""
        kept: list[Tensor] = []

        def keep(module: Any, args: Any, output: Any) -> None:
            kept.append((args[0] if side == "in" else output[0] if isinstance(output, tuple) else output)[0])

        hook = self.model.get_submodule(path).register_forward_hook(keep)
        self.logits(ids)
        hook.remove()
        return kept[0]

    def at_subject(self, text: str, subject: str, path: str, side: str) -> Tensor:
        """(width)"""
        return self.flow(self.ids(text), path, side)[self.subject_column(text, subject)]

    def greedy(self, ids: Sequence[int], steps: int) -> list[int]:
        new: list[int] = []
        for _ in range(steps):
            token = int(self.logits([*ids, *new])[-1].argmax())
            if token == self.tokenizer.eos_token_id:
                break
            new.append(token)
        return new

    # Weights

    def change(self, layer: int, change: Tensor) -> None:
        module = self.model.get_submodule(self.down(layer))
        module.weight.data = module.weight.data + (change.T if isinstance(module, Conv1D) else change)

    @contextmanager
    def restored(self) -> Any:
        """The weights are what they were when the block ends."""
        held = {name: param.data for name, param in self.model.named_parameters()}
        try:
            yield
        finally:
            for name, param in self.model.named_parameters():
                param.data = held[name]


def _adding(column: int, vector: Tensor) -> Callable[[Any, Any, Any], Any]:
    def add(module: Any, args: Any, output: Any) -> Any:
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        hidden[0, column] = hidden[0, column] + vector
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    return add


# Targets (ROME, equation 4; MEMIT, section 4.1; PMET, section 4.2) ---------------------------------


@dataclass
class Search:
    """The hyper-parameters of a search for target vectors."""

    steps: int
    lr: float
    clamp: float
    kl: float
    decay: float
    stop: float
    eased: float = 1.0  # PMET: weight of the likelihood once the answer is the arg-max
    enough: float = -1.0  # PMET: and the KL at which the search then ends


def optimal_addition(
    plain: Plain, edit: Edit, contexts: Sequence[str], paths: Sequence[str], hidden: str, search: Search
) -> Tensor:
    """(paths, d): the δ at each of the paths, at the subject's last token, that make the model say the new answer.

    min over δ of the mean over contexts of −log P[o* | x + p] + w_KL KL(P_δ ‖ P) of "{s} is a" + w ‖δ‖ / ‖v‖², by
    Adam, each δ brought back to at most ``clamp`` ‖h‖ after every step. In the bare prompt v is the output of the path,
    h that of the block ``hidden``.
    """
    asked = [context + edit.prompt for context in contexts]
    essence = f"{edit.subject} is a"
    bound, *own = (plain.at_subject(edit.prompt, edit.subject, path, "out").norm() for path in (hidden, *paths))
    before = plain.logits(plain.ids(essence))[-1].log_softmax(-1).detach()
    delta = torch.zeros(len(paths), plain.model.config.hidden_size, dtype=before.dtype, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=search.lr)

    def logits(text: str, ids: Sequence[int]) -> Tensor:
        column = plain.subject_column(text, edit.subject)
        return plain.logits(ids, [(path, column, d) for path, d in zip(paths, delta, strict=True)])

    for step in range(search.steps):
        likelihoods, right = [], True
        for text in asked:
            prompt, target = plain.ids(text), plain.target(text, edit.target_new)
            logp = logits(text, [*prompt, *target[:-1]])[len(prompt) - 1 :].log_softmax(-1)
            likelihoods.append(logp[range(len(target)), target].mean())
            right = right and logp.argmax(-1).tolist() == target
        now = logits(essence, plain.ids(essence))[-1].log_softmax(-1)
        kl = search.kl * (now.exp() * (now - before)).sum()
        likelihood = torch.stack(likelihoods).mean() * (search.eased if right else 1.0)
        loss = -likelihood + kl + search.decay * (delta.norm(dim=-1) / torch.stack(own) ** 2).sum()
        if loss < search.stop or (right and kl <= search.enough) or step == search.steps - 1:
            break
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            delta *= (search.clamp * bound / delta.norm(dim=-1, keepdim=True)).clamp(max=1.0)
    return delta.detach()


# Algorithm 1 ---------------------------------------------------------------------------------------


def mean_key(plain: Plain, edit: Edit, contexts: Sequence[str], layer: int) -> Tensor:
    """(f): half of it the key in the bare prompt, half the mean of the keys behind contexts (the first is empty)."""
    keys = [plain.at_subject(context + edit.prompt, edit.subject, plain.down(layer), "in") for context in contexts]
    return keys[0] / 2 + torch.stack(keys[1:]).mean(0) / 2


Solve = Callable[[int, Tensor, Tensor], Tensor]  # (layer, keys (f, n), residuals (d, n)) -> Δ (d, f)


def spread(
    plain: Plain,
    edits: Sequence[Edit],
    contexts: Sequence[str],
    layers: Sequence[int],
    search: Search,
    solve: Solve,
    share: Callable[[int], float] = lambda left: 1 / left,
    attention: bool = False,
    gain: float = 1.0,
) -> dict[int, Tensor]:
    """MEMIT's algorithm 1 on the model as it is: layer -> Δ (d, f). The changes stay in the weights.

    ``share`` is the part of the residual that a layer takes when so many layers, itself included, have not had their
    turn. With ``attention`` (PMET) the target is the down projection's own output, found beside a δ of the attention
    that is thrown away. ``gain`` is the factor between the down projection's output and the block's.
    """
    last = layers[-1]
    paths = [plain.down(last), plain.attention(last)] if attention else [plain.block(last)]

    def values() -> Tensor:  # (d, n), in the bare prompts
        return torch.stack([plain.at_subject(e.prompt, e.subject, paths[0], "out") for e in edits], 1)

    found = [optimal_addition(plain, edit, contexts, paths, plain.block(last), search)[0] for edit in edits]
    targets = values() + torch.stack(found, 1)
    changes: dict[int, Tensor] = {}
    for i, layer in enumerate(layers):
        keys = torch.stack([mean_key(plain, edit, contexts, layer) for edit in edits], 1)
        residuals = (targets - values()) / gain * share(len(layers) - i)
        changes[layer] = solve(layer, keys, residuals)
        plain.change(layer, changes[layer])
    return changes


def memit_change(c: Tensor, keys: Tensor, residuals: Tensor, lam: float) -> Tensor:
    """Equation 14: R Kᵀ (λ C + K Kᵀ)⁻¹."""
    return residuals @ keys.T @ torch.linalg.inv(lam * c + keys @ keys.T)


def alphaedit_change(p: Tensor, past: Tensor, keys: Tensor, residuals: Tensor, lam: float) -> Tensor:
    """Equation 12, with the keys of earlier edits ``past`` (f, m): R Kᵀ P (K_p K_pᵀ P + K Kᵀ P + λ I)⁻¹."""
    inner = past @ past.T @ p + keys @ keys.T @ p + lam * torch.eye(len(p), dtype=p.dtype)
    return residuals @ keys.T @ p @ torch.linalg.inv(inner)


def null_space(c: Tensor, share: float) -> Tensor:
    """P: onto the eigenvectors of C's smallest eigenvalues that together hold at most ``share`` of the trace."""
    values, vectors = torch.linalg.eigh(c)
    p = torch.zeros_like(c)
    held = 0.0
    for value, vector in zip(values.clamp(min=0), vectors.T, strict=True):
        held += float(value)
        if held > share * float(values.clamp(min=0).sum()):
            break
        p += torch.outer(vector, vector)
    return p
