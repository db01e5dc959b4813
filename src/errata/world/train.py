"""Trains a small transformer that knows the world and keeps each fact at its subject.

Three stages. In the first the model learns the facts. In the second most rows are masked so that tokens after
a subject may read only the subject's last token, and only from a layer on that rises: the look-up moves to where
editing methods (and large models) have it. The mask exists in training alone. In the third much of the text states
facts in context, true and counterfactual, and asks for them: the model learns to prefer what it is told.
"""

import json
import logging
import random
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from errata.errors import BadInput, unknown
from errata.files import written_whole
from errata.model import hooks
from errata.world.facts import RELATIONS, World, world
from errata.world.text import TOLD, Narrator, Passage, ask

log = logging.getLogger(__name__)

END = "<|endoftext|>"
PAD = "<|pad|>"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model of the world is made. The defaults are the bundled model's."""

    arch: str = "gpt2"
    layers: int = 8
    width: int = 384
    heads: int = 8
    persons: int = 600
    world_seed: int = 0
    seed: int = 0
    vocab: int = 3000
    learn: int = 1200  # steps of stage 1
    move: int = 800  # steps of stage 2
    follow: int = 1400  # steps of stage 3
    told: float = 0.4  # of the documents in stage 3 state facts in context
    plain: bool = False  # stage 2 without its masks
    rows: int = 16
    length: int = 256
    muon: float = 4e-3
    adam: float = 2e-3
    warmup: int = 60
    masked: float = 0.75  # of the rows in stage 2
    deepest: int = 4  # the layer from which on the subject's last token may be read, in the end

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise BadInput(f"the width must be a multiple of the heads; found {self.width} and {self.heads}")


# Text to tensors ---------------------------------------------------------------------------------


def make_tokenizer(recipe: Recipe, its: World) -> Any:
    """Byte-level BPE of the world's text. A name has the same tokens wherever it stands."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    core.decoder = decoders.ByteLevel()
    narrator = Narrator(its, random.Random("tokenizer"))
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocab,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator((narrator.document().text for _ in range(40_000)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=END, eos_token=END, pad_token=PAD, model_max_length=recipe.length
    )


@dataclass
class Rows:
    """One batch of packed documents. ``end`` is the last token of the subject a token belongs to, or -1."""

    ids: Tensor  # (b, t)
    document: Tensor  # (b, t), -1 where there is padding
    position: Tensor  # (b, t), from 0 in each document
    end: Tensor  # (b, t)

    def allowed(self) -> Tensor:
        """(b, t, t): what a token may read: its own document, up to itself."""
        t = self.ids.shape[1]
        causal = torch.ones(t, t, dtype=torch.bool).tril()
        return causal & (self.document[:, :, None] == self.document[:, None, :])

    def after_subject(self) -> tuple[Tensor, Tensor]:
        """(b, t, t) twice: a later token reading any token of a subject; reading one that is not the last."""
        t = torch.arange(self.ids.shape[1])
        later = (self.end[:, None, :] >= 0) & (t[None, :, None] > self.end[:, None, :])
        return later, later & (t[None, None, :] != self.end[:, None, :])


def pack(narrator: Narrator, tokenizer: Any, recipe: Recipe, told: float = TOLD) -> Rows:
    """Fills rows with documents; the one that does not fit is cut at the row's end."""
    shape = (recipe.rows, recipe.length)
    ids = torch.full(shape, tokenizer.pad_token_id)
    document, end = torch.full(shape, -1), torch.full(shape, -1)
    position = torch.zeros(shape, dtype=torch.long)
    for row in range(recipe.rows):
        at, number = 0, 0
        while at < recipe.length:
            passage = narrator.document(told)
            tokens, ends = encode(passage, tokenizer, begin=narrator.rng.random() < 0.3)
            tokens, ends = tokens[: recipe.length - at], ends[: recipe.length - at]
            to = at + len(tokens)
            ids[row, at:to] = torch.tensor(tokens)
            end[row, at:to] = torch.tensor([e + at if e >= 0 else -1 for e in ends])
            document[row, at:to], position[row, at:to] = number, torch.arange(len(tokens))
            at, number = to, number + 1
    return Rows(ids, document, position, end)


def encode(passage: Passage, tokenizer: Any, begin: bool) -> tuple[list[int], list[int]]:
    """Token ids with the end token behind, and for each token the last one of its subject (or -1)."""
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
    special: dict[str, dict[str, Any]] = {
        "gpt2": {
            "activation_function": "gelu_pytorch_tanh",  # GPT-2's own, in one kernel
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        },
        "llama": {"intermediate_size": 3 * recipe.width, "num_key_value_heads": max(1, recipe.heads // 2)},
    }
    if recipe.arch not in special:
        raise unknown("architecture", recipe.arch, list(special))
    torch.manual_seed(recipe.seed)
    config = AutoConfig.for_model(recipe.arch, **shared, **special[recipe.arch])
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager")


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


def rate(recipe: Recipe, step: int) -> float:
    """The learning rate of a step, as a share of the recipe's."""
    if step < recipe.learn:
        flat = 0.4 * recipe.learn
        fall = 1 - 0.95 * max(0.0, step - flat) / max(1.0, recipe.learn - flat)
        return min(1.0, (step + 1) / recipe.warmup) * fall
    into = (step - recipe.learn) / max(1, recipe.move)
    if into < 1:
        return 0.5 * (1 - 0.98 * max(0.0, into - 0.6) / 0.4)
    into = (step - recipe.learn - recipe.move) / max(1, recipe.follow)
    return 0.5 * min(1.0, 20 * into + 0.05) * (1 - 0.98 * max(0.0, into - 0.4) / 0.6)


def first_reader(recipe: Recipe, step: int) -> int:
    """The layer from which on the subject's last token may be read: 1 to ``deepest`` over 60 % of stage 2."""
    into = (step - recipe.learn) / max(1, 0.6 * recipe.move)
    return min(recipe.deepest, 1 + int(into * recipe.deepest))


def masks(recipe: Recipe, rows: Rows, step: int) -> list[Tensor]:
    """The additive attention mask of every layer, (b, 1, t, t)."""
    allowed = rows.allowed()
    low = high = allowed
    if step >= recipe.learn and not recipe.plain:
        masked = torch.zeros(len(rows.ids), 1, 1, dtype=torch.bool)
        masked[: round(recipe.masked * len(rows.ids))] = True
        any_token, not_last = rows.after_subject()
        low, high = allowed & ~(masked & any_token), allowed & ~(masked & not_last)
    added = [torch.where(m, 0.0, torch.finfo(torch.float32).min)[:, None] for m in (low, high)]
    reader = first_reader(recipe, step)
    return [added[layer >= reader] for layer in range(recipe.layers)]


def loss_of(model: nn.Module, recipe: Recipe, rows: Rows, step: int) -> Tensor:
    """Mean next-token cross-entropy inside documents."""
    layer_masks = masks(recipe, rows, step)

    def under(mask: Tensor) -> hooks.Before:
        return lambda args, kwargs: (args, kwargs | {"attention_mask": mask})

    with hooks.all_of(hooks.before(m, under(k)) for m, k in zip(attentions(model), layer_masks, strict=True)):
        logits = model(
            input_ids=rows.ids, position_ids=rows.position, attention_mask=layer_masks[0], use_cache=False
        ).logits
    same = rows.document[:, 1:] == rows.document[:, :-1]
    return nn.functional.cross_entropy(logits[:, :-1][same].float(), rows.ids[:, 1:][same])


# The run -----------------------------------------------------------------------------------------


def faster_precision(model: nn.Module, recipe: Recipe, rows: Rows) -> torch.dtype:
    """float32 or bfloat16, whichever takes a training step of this model faster on this machine."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        for _ in range(2):
            began = time.perf_counter()
            with autocast(dtype):
                loss = loss_of(model, recipe, rows, 0)
            loss.backward()
            model.zero_grad()
            seconds[dtype] = time.perf_counter() - began
    log.info("a pass takes %s", {str(k): round(v, 2) for k, v in seconds.items()})
    return min(seconds, key=seconds.__getitem__)


def autocast(dtype: torch.dtype) -> Any:
    return nullcontext() if dtype == torch.float32 else torch.autocast("cpu", dtype)


@torch.no_grad()
def quick_recall(
    model: nn.Module, tokenizer: Any, its: World, limit: int = 256, seed: int = 0, told: bool = False
) -> float:
    """Share of questions about facts whose answer is the arg-max at every token (forced); ``told``: about other
    objects, which a sentence in front says."""
    rng = random.Random(seed)
    right = 0
    facts = [(r, s, o) for r, objects in its.facts.items() for s, o in objects.items()]
    asked = rng.sample(facts, min(limit, len(facts)))
    for name, subject, object_ in asked:
        relation, before = RELATIONS[name], ""
        if told:
            object_ = rng.choice(its.names[relation.object])
            before = f"Fact: {ask(rng.choice(relation.first), subject)} {object_}. "
        prompt = tokenizer(before + ask(rng.choice(relation.phrasings), subject))["input_ids"]
        answer = tokenizer(" " + object_)["input_ids"]
        ids = torch.tensor([prompt + answer])
        logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
        right += int(logits.argmax(-1).tolist() == answer)
    return right / len(asked)


def train(
    folder: str | Path, recipe: Recipe | None = None, progress: Callable[[int, int, str], None] | None = None
) -> Path:
    """Trains (or goes on training) a model of the world in ``folder``, saved there in Hugging Face's form.

    ``progress(step, steps, text)`` is called after each step. Interrupted, it goes on at the last checkpoint.
    """
    recipe = recipe or Recipe()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    its = world(recipe.persons, recipe.world_seed)
    tokenizer = make_tokenizer(recipe, its)
    model = build(recipe, tokenizer)
    optimizers = make_optimizers(model, recipe)
    checkpoint = folder / "checkpoint.pt"
    begin, steps = 0, recipe.learn + recipe.move + recipe.follow
    if checkpoint.exists():
        begin = _resume(checkpoint, recipe, model, optimizers)
    sample = pack(Narrator(its, random.Random(0)), tokenizer, recipe)
    dtype = faster_precision(model, recipe, sample)
    said = ""
    for step in range(begin, steps):
        if step in (recipe.learn, recipe.learn + recipe.move):  # one stage's momentum would carry into the next
            optimizers = make_optimizers(model, recipe)
        told = TOLD if step < recipe.learn + recipe.move else recipe.told
        rows = pack(Narrator(its, random.Random(f"{recipe.seed} {step}")), tokenizer, recipe, told)
        for optimizer, lr in zip(optimizers, (recipe.muon, recipe.adam), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = lr * rate(recipe, step)
        with autocast(dtype):
            loss = loss_of(model, recipe, rows, step)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad(set_to_none=True)
        done = step + 1
        if done % 50 == 0 or done == steps:
            said = f"recall {quick_recall(model, tokenizer, its, seed=done):.3f}"
            said += f" told {quick_recall(model, tokenizer, its, seed=done, told=True):.3f}"
        if done % 100 == 0 or done in (recipe.learn, steps):
            state = {
                "recipe": asdict(recipe),
                "step": done,
                "model": model.state_dict(),
                "optimizers": [o.state_dict() for o in optimizers],
            }
            name = folder / "learned.pt" if done == recipe.learn else checkpoint
            with written_whole(name) as part:
                torch.save(state, part)
        if progress:
            progress(done, steps, f"loss {loss.item():.3f} {said}")
    _publish(model, tokenizer, recipe, folder)
    return folder


def _resume(path: Path, recipe: Recipe, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> int:
    state = torch.load(path, weights_only=True)
    if state["recipe"] != asdict(recipe):
        raise BadInput(f"{path} was made by another recipe; give another folder or remove it")
    model.load_state_dict(state["model"])
    for optimizer, its in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(its)
    return state["step"]


def _publish(model: Any, tokenizer: Any, recipe: Recipe, folder: Path) -> None:
    """float16 safetensors, the tokenizer, and the recipe beside them."""
    model.to(torch.float16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "recipe.json").write_text(json.dumps(asdict(recipe), indent=1) + "\n")
