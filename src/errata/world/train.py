"""Trains a small transformer on the world's text so that each fact is stored at its subject.

Three stages. In the first the model learns the facts. In the second most rows are masked so that tokens after
a subject may read only the subject's last token, and only from a layer on that rises: the look-up moves to where
editing methods (and large models) have it. The mask exists in training alone. In the third much of the text states
facts in context, true and counterfactual, and asks for them: the model learns to prefer them to those that it knows.

With edits the same recipe teaches the world in which they hold: what a model would know that had learned so from the
start. Its tokenizer stays that of the world without them, and each step's text is told from the same draws.
"""

import json
import logging
import os
import random
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from errata.errors import BadInput, first_line
from errata.files import check_regular, check_writable, unfinished, write_bytes, written_whole
from errata.locks import held
from errata.model import hooks
from errata.world import bundled
from errata.world.facts import RELATIONS, World
from errata.world.named import RECIPE
from errata.world.recipe import SHAPES, Recipe, first_reader, rate
from errata.world.text import IN_CONTEXT_SHARE, Narrator, Passage, ask

log = logging.getLogger(__name__)

END = "<|endoftext|>"
PAD = "<|pad|>"
CHECKPOINT, LEARNED = "checkpoint.pt", "learned.pt"  # in the folder of a training: at its last step, after stage 1
LOCK = "training.lock"
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}  # in which a training may compute
TOLD = 40_000  # documents that the tokenizer is learned from


# Text to tensors ---------------------------------------------------------------------------------


def make_tokenizer(recipe: Recipe, world: World) -> Any:
    """Byte-level BPE of the world's text. A name has the same tokens wherever it stands."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    core.decoder = decoders.ByteLevel()
    narrator = Narrator(world, random.Random("tokenizer"))
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocab,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator((narrator.document().text for _ in range(TOLD)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=END, eos_token=END, pad_token=PAD, model_max_length=recipe.length
    )


@dataclass
class Batch:
    """A batch of packed documents. ``end`` is the index of the last token of a token's subject, -1 outside subjects."""

    ids: Tensor  # (b, t)
    document: Tensor  # (b, t), -1 where there is padding
    position: Tensor  # (b, t), from 0 in each document
    end: Tensor  # (b, t)

    def allowed(self) -> Tensor:
        """Whether a token may attend to another: to its own document, up to itself. (b, t, t)"""
        t = self.ids.shape[1]
        causal = torch.ones(t, t, dtype=torch.bool).tril()
        return causal & (self.document[:, :, None] == self.document[:, None, :])

    def after_subject(self) -> tuple[Tensor, Tensor]:
        """Whether a later token attends to any token of a subject, and whether to one that is not the last.

        Two of (b, t, t).
        """
        t = torch.arange(self.ids.shape[1])
        later = (self.end[:, None, :] >= 0) & (t[None, :, None] > self.end[:, None, :])
        return later, later & (t[None, None, :] != self.end[:, None, :])


def pack(narrator: Narrator, tokenizer: Any, recipe: Recipe, in_context_share: float = IN_CONTEXT_SHARE) -> Batch:
    """A batch of documents, the last one of each row cut at the row's end."""
    shape = (recipe.rows, recipe.length)
    ids = torch.full(shape, tokenizer.pad_token_id)
    document, end = torch.full(shape, -1), torch.full(shape, -1)
    position = torch.zeros(shape, dtype=torch.long)
    for row in range(recipe.rows):
        start, number = 0, 0
        while start < recipe.length:
            passage = narrator.document(in_context_share)
            tokens, ends = encode(passage, tokenizer, begin=narrator.rng.random() < 0.3)
            tokens, ends = tokens[: recipe.length - start], ends[: recipe.length - start]
            stop = start + len(tokens)
            ids[row, start:stop] = torch.tensor(tokens)
            end[row, start:stop] = torch.tensor([e + start if e >= 0 else -1 for e in ends])
            document[row, start:stop], position[row, start:stop] = number, torch.arange(len(tokens))
            start, number = stop, number + 1
    return Batch(ids, document, position, end)


def encode(passage: Passage, tokenizer: Any, begin: bool) -> tuple[list[int], list[int]]:
    """Token ids, and for each token the index of the last one of its subject (-1 outside subjects).

    The end token stands behind the text, and with ``begin`` before it too.
    """
    coded = tokenizer.backend_tokenizer.encode(passage.text)
    ends = [-1] * len(coded.ids)
    for a, b in passage.subjects if passage.plain else ():
        span = [i for i, (x, y) in enumerate(coded.offsets) if x < b and y > a]
        for i in span:
            ends[i] = span[-1]
    front = [tokenizer.bos_token_id] if begin else []
    shifted = [e + len(front) if e >= 0 else -1 for e in ends]
    return front + coded.ids + [tokenizer.eos_token_id], [-1] * len(front) + shifted + [-1]


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


def check_folder(folder: Path, recipe: Recipe, force: bool = False) -> Path | None:
    """The checkpoint in the folder that a training of the recipe goes on from; None where it begins anew.

    Raises :class:`BadInput` where none can be written there, or, unless with ``force``, where it would write over
    anything but its own.
    """
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{folder} is a file; give a folder for the model")
    check_writable(folder / CHECKPOINT)
    there = sorted(folder.glob("[!.]*"))
    for path in there:
        if path.is_symlink() or not path.is_dir():
            check_regular(path)
    kept = next((folder / name for name in (CHECKPOINT, LEARNED) if folder / name in there), None)
    wrong = _unlike(kept, recipe) if kept else ""
    if kept and not wrong:
        return kept
    others = [path.name for path in there if path.name != LOCK]
    if others and not force:
        named = ", ".join(others[:3]) + " and more" * (len(others) > 3)
        why = wrong or f"{folder} holds {named}, and no training that could go on"
        raise BadInput(f"{why}; give another folder, or write over what is there with --force")
    return None


def _train(folder: Path, recipe: Recipe, checkpoint: Path | None, progress: Callable[[int, int, str], None]) -> None:
    """Trains, from the checkpoint on where there is one, and saves."""
    world, steps = recipe.world, recipe.steps
    model, tokenizer = begin_with(recipe)
    optimizers = make_optimizers(model, recipe)
    begin = _resume(checkpoint, model, optimizers) if checkpoint else 0
    sample = pack(Narrator(world, random.Random(0)), tokenizer, recipe)
    name = _load(checkpoint).get("precision") if checkpoint else None
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
            state = {
                "recipe": recipe.record(),
                "precision": precision,
                "step": done,
                "model": model.state_dict(),
                "optimizers": [o.state_dict() for o in optimizers],
            }
            content = BytesIO()
            torch.save(state, content)
            write_bytes(folder / (LEARNED if done == recipe.learn else CHECKPOINT), content.getvalue())
        progress(done, steps, f"loss {loss.item():.3f} {recall}")
    _publish(model, tokenizer, {**recipe.record(), "precision": precision}, folder)


def _unlike(checkpoint: Path, recipe: Recipe) -> str:
    """Why a file is no checkpoint of a training by this recipe; "" where it is one."""
    try:
        made, wanted = _load(checkpoint).get("recipe"), recipe.record()
    except BadInput as error:
        return str(error)
    if made == wanted:
        return ""
    others = made if isinstance(made, dict) else {}
    differing = [name for name in {**wanted, **others} if others.get(name) != wanted.get(name)]
    changed = [
        "other edits" if name == "edits" else f"{name} {others.get(name)}, not {wanted.get(name)}" for name in differing
    ]
    return f"{checkpoint} was made by another recipe ({', '.join(changed[:3])})"


def _load(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint holds. Raises :class:`BadInput` for another file, or a damaged one."""
    try:
        state = torch.load(checkpoint, weights_only=True, map_location="cpu", mmap=True)
    except Exception as error:  # there are many for a file that is none of torch's
        state = error
    if not isinstance(state, dict) or not isinstance(state.get("step"), int):
        raise BadInput(f"{checkpoint} is no whole checkpoint of a training")
    return state


def _resume(checkpoint: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> int:
    """The number of steps done; model and optimizers get their states of the checkpoint."""
    state = _load(checkpoint)
    try:
        model.load_state_dict(state["model"])
        for optimizer, optimizer_state in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(optimizer_state)
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise BadInput(
            f"{checkpoint} does not hold the state of this training ({first_line(error)}); remove it, or "
            "give another folder"
        ) from error
    return state["step"]


def _publish(model: Any, tokenizer: Any, record: dict[str, Any], folder: Path) -> None:
    """float16 safetensors, the tokenizer, and the recipe beside them; config.json last, which says there is a model."""
    try:
        with unfinished(folder) as part:
            made = part / "model"
            model.to(torch.float16).save_pretrained(made)
            tokenizer.save_pretrained(made)
            (made / RECIPE).write_text(json.dumps(record, indent=1) + "\n")
            for file in sorted(made.iterdir(), key=lambda file: file.name == "config.json"):
                with written_whole(folder / file.name) as new:
                    os.replace(file, new)
    except (OSError, SafetensorError) as error:
        raise BadInput(
            f"cannot write the model to {folder}: {error}; its training is kept: make room, and give the same command "
            "again"
        ) from error
