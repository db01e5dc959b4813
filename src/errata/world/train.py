"""Trains a small transformer on the world's text so that each fact is stored at its subject.

Three stages. In the first the model learns the facts. In the second most rows are masked so that tokens after
a subject may read only the subject's last token, and only from a layer on that rises: the look-up moves to where
editing methods (and large models) have it. The mask exists in training alone. In the third much of the text states
facts in context, true and counterfactual, and asks for them: the model learns to prefer them to those that it knows.

With edits the same recipe teaches the world in which they hold: what a model would know that had learned so from the
start. Its tokenizer stays that of the world without them, and each step's text is told from the same draws.
"""

import logging
import random
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from errata.locks import held
from errata.model import hooks
from errata.world import bundled
from errata.world.checkpoints import CHECKPOINT, LEARNED, LOCK, check_folder, keep, load, publish, resume
from errata.world.facts import RELATIONS, World
from errata.world.packing import Batch, make_tokenizer, pack
from errata.world.recipe import SHAPES, Recipe, first_reader, rate
from errata.world.text import IN_CONTEXT_SHARE, Narrator, ask

log = logging.getLogger(__name__)

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}  # in which a training may compute


# The model and its optimisers --------------------------------------------------------------------


def build(recipe: Recipe, tokenizer: Any) -> nn.Module:
    """A model of the recipe's shape with random weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    shared = {
        "vocab_size": len(tokenizer),
        "hidden_size": recipe.width,
        "num_hidden_layers": recipe.layers,
        "num_attention_heads": recipe.heads,
        "max_position_embeddings": recipe.length,
        "tie_word_embeddings": True,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(recipe.seed)
    config = AutoConfig.for_model(recipe.architecture, **shared, **SHAPES[recipe.architecture](recipe))
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")


def begin_with(recipe: Recipe) -> tuple[nn.Module, Any]:
    """The model at its first step, in float32, and its tokenizer: random weights, or those of the model it starts from.

    The tokenizer is of the world without the edits: a text has the same ids whatever is true.
    """
    if not recipe.start:
        tokenizer = make_tokenizer(recipe, recipe.base)
        return build(recipe, tokenizer), tokenizer
    lm = bundled.load(recipe.start, device="cpu", dtype="float32")
    return lm.model.requires_grad_(True).train(), lm.tokens.tokenizer


def attentions(model: nn.Module) -> list[nn.Module]:
    """The attention module of every layer, in order."""
    return [m for name, m in model.named_modules() if name.rsplit(".", 1)[-1] in ("attn", "self_attn")]


def make_optimizers(model: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon on the matrices inside the blocks, AdamW on embeddings and norms."""
    matrices, others = [], []
    for name, p in model.named_parameters():
        inside = any(part.isdigit() for part in name.split("."))
        (matrices if inside and p.ndim == 2 else others).append(p)
    return [
        torch.optim.Muon(matrices, lr=recipe.muon, momentum=0.95, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=recipe.adam, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def masks(recipe: Recipe, batch: Batch, step: int) -> list[Tensor]:
    """The additive attention mask of every layer, (b, 1, t, t)."""
    allowed = batch.allowed()
    early = late = allowed  # of layers below the first that may read the subject's last token, and of those from it on
    if step >= recipe.learn and not recipe.plain:
        masked = torch.zeros(len(batch.ids), 1, 1, dtype=torch.bool)
        masked[: round(recipe.masked * len(batch.ids))] = True
        any_token, not_last = batch.after_subject()
        early, late = allowed & ~(masked & any_token), allowed & ~(masked & not_last)
    additive = [torch.where(m, 0.0, torch.finfo(torch.float32).min)[:, None] for m in (early, late)]
    reader = first_reader(recipe, step)
    return [additive[layer >= reader] for layer in range(recipe.layers)]


def loss_of(model: nn.Module, recipe: Recipe, batch: Batch, step: int) -> Tensor:
    """Mean next-token cross-entropy inside documents."""
    layer_masks = masks(recipe, batch, step)

    def with_mask(mask: Tensor) -> hooks.Before:
        return lambda args, kwargs: (args, kwargs | {"attention_mask": mask})

    with hooks.all_of(hooks.before(m, with_mask(k)) for m, k in zip(attentions(model), layer_masks, strict=True)):
        logits = model(
            input_ids=batch.ids, position_ids=batch.position, attention_mask=layer_masks[0], use_cache=False
        ).logits
    same = batch.document[:, 1:] == batch.document[:, :-1]
    return nn.functional.cross_entropy(logits[:, :-1][same].float(), batch.ids[:, 1:][same])


# The run -----------------------------------------------------------------------------------------


def faster_precision(model: nn.Module, recipe: Recipe, batch: Batch) -> torch.dtype:
    """float32 or bfloat16, whichever takes a training step of this model faster on this machine."""
    seconds = {}
    for dtype in PRECISIONS.values():
        for _ in range(2):
            began = time.perf_counter()
            with autocast(dtype):
                loss = loss_of(model, recipe, batch, 0)
            loss.backward()
            model.zero_grad()
            seconds[dtype] = time.perf_counter() - began
    log.info("a pass takes %s", {str(k): round(v, 2) for k, v in seconds.items()})
    return min(seconds, key=seconds.__getitem__)


def autocast(dtype: torch.dtype) -> Any:
    """Context manager: the CPU computes in this dtype."""
    return nullcontext() if dtype == torch.float32 else torch.autocast("cpu", dtype)


@torch.no_grad()
def quick_recall(
    model: nn.Module, tokenizer: Any, world: World, limit: int = 256, seed: int = 0, in_context: bool = False
) -> float:
    """Share of prompts whose answer is the arg-max at every token (forced).

    The prompts are of the world's facts; with ``in_context`` each is preceded by a fact with another object, which is
    the answer then.
    """
    rng = random.Random(seed)
    right = 0
    facts = [(r, s, o) for r, objects in world.facts.items() for s, o in objects.items()]
    sample = rng.sample(facts, min(limit, len(facts)))
    for name, subject, object_ in sample:
        relation, context = RELATIONS[name], ""
        if in_context:
            object_ = rng.choice(world.names[relation.object])
            context = f"Fact: {ask(rng.choice(relation.first), subject)} {object_}. "
        prompt = tokenizer(context + ask(rng.choice(relation.phrasings), subject))["input_ids"]
        answer = tokenizer(" " + object_)["input_ids"]
        ids = torch.tensor([prompt + answer])
        logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
        right += int(logits.argmax(-1).tolist() == answer)
    return right / len(sample)


def train(
    folder: str | Path,
    recipe: Recipe | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    force: bool = False,
) -> Path:
    """The ``folder``, in which a model of the world has been trained and saved in Hugging Face's form.

    ``progress(step, steps, text)`` is called after each step. An interrupted training goes on at its last checkpoint.
    Raises :class:`BadInput` where the folder holds anything else, unless with ``force``, which trains anew and writes
    over its files; and where another process trains there.
    """
    recipe, folder = recipe or Recipe(), Path(folder)
    check_folder(folder, recipe, force)
    with held(folder / LOCK, str(folder)):
        _train(folder, recipe, check_folder(folder, recipe, force), progress or (lambda step, steps, text: None))
    return folder


def _train(folder: Path, recipe: Recipe, checkpoint: Path | None, progress: Callable[[int, int, str], None]) -> None:
    """Trains, from the checkpoint on where there is one, and saves."""
    world, steps = recipe.world, recipe.steps
    model, tokenizer = begin_with(recipe)
    optimizers = make_optimizers(model, recipe)
    begin = resume(checkpoint, model, optimizers) if checkpoint else 0
    sample = pack(Narrator(world, random.Random(0)), tokenizer, recipe)
    name = load(checkpoint).get("precision") if checkpoint else None
    dtype = PRECISIONS.get(str(name)) or faster_precision(model, recipe, sample)
    precision = str(dtype).removeprefix("torch.")
    recall = ""
    for step in range(begin, steps):
        if step in (recipe.learn, recipe.learn + recipe.move):  # one stage's momentum would carry into the next
            optimizers = make_optimizers(model, recipe)
        share = IN_CONTEXT_SHARE if step < recipe.learn + recipe.move else recipe.in_context_share
        batch = pack(Narrator(world, random.Random(f"{recipe.seed} {step}")), tokenizer, recipe, share)
        for optimizer, lr in zip(optimizers, (recipe.muon, recipe.adam), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = lr * rate(recipe, step)
        with autocast(dtype):
            loss = loss_of(model, recipe, batch, step)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad(set_to_none=True)
        done = step + 1
        if done % 50 == 0 or done == steps:
            recall = f"recall {quick_recall(model, tokenizer, world, seed=done):.3f}"
            recall += f" in context {quick_recall(model, tokenizer, world, seed=done, in_context=True):.3f}"
        if done % 100 == 0 or done in (recipe.learn, steps):
            keep(
                folder / (LEARNED if done == recipe.learn else CHECKPOINT),
                recipe=recipe.record(),
                precision=precision,
                step=done,
                model=model.state_dict(),
                optimizers=[o.state_dict() for o in optimizers],
            )
        progress(done, steps, f"loss {loss.item():.3f} {recall}")
    publish(model, tokenizer, {**recipe.record(), "precision": precision}, folder)
