"""The folder of a training: its checkpoints, what else may be in it, and the model that it ends as."""

import json
import os
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from errata.errors import BadInput, first_line
from errata.files import check_regular, check_writable, unfinished, write_bytes, written_whole
from errata.world.named import RECIPE
from errata.world.recipe import Recipe

CHECKPOINT, LEARNED = "checkpoint.pt", "learned.pt"  # at the last step of a training, and after its first stage
LOCK = "training.lock"


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


def _unlike(checkpoint: Path, recipe: Recipe) -> str:
    """Why a file is no checkpoint of a training by this recipe; "" where it is one."""
    try:
        made, wanted = load(checkpoint).get("recipe"), recipe.record()
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


def load(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint holds. Raises :class:`BadInput` for another file, or a damaged one."""
    try:
        state = torch.load(checkpoint, weights_only=True, map_location="cpu", mmap=True)
    except Exception as error:  # there are many for a file that is none of torch's
        state = error
    if not isinstance(state, dict) or not isinstance(state.get("step"), int):
        raise BadInput(f"{checkpoint} is no whole checkpoint of a training")
    return state


def keep(checkpoint: Path, **state: Any) -> None:
    """Writes a checkpoint, whole or not at all."""
    content = BytesIO()
    torch.save(state, content)
    write_bytes(checkpoint, content.getvalue())


def resume(checkpoint: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> int:
    """The number of steps done; model and optimizers get their states of the checkpoint."""
    state = load(checkpoint)
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


def publish(model: Any, tokenizer: Any, record: dict[str, Any], folder: Path) -> None:
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
