"""Writes a patch as others read it: a LoRA adapter, a whole model, a folder for a hub. Each folder whole or not at all.

exported = to_merged(lm, patch, "edited")
AutoModelForCausalLM.from_pretrained("edited")
"""

import copy
import json
import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from errata.errors import BadInput, Unsupported, first_line
from errata.exchange.card import PATCH, Form, card
from errata.files import check_folder, folder_written_whole
from errata.model.folder import read_json
from errata.model.hf import HFLM
from errata.model.weights import is_plain, refusal
from errata.patch.patch import Patch
from errata.patch.peft import CONFIG

log = logging.getLogger(__name__)

README = "README.md"
MODEL = "config.json"  # which a folder of a model has
SIZE = re.compile(r"(?i)\d{1,9}(\.\d{1,3})?\s?[KMGT]B")
PROCESSORS = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")


@dataclass(frozen=True)
class Exported:
    """What was written, and what of the patch is not in it."""

    folder: Path
    """Where."""
    files: tuple[str, ...]
    """The names of its files."""
    lost: Mapping[str, float] = field(default_factory=dict[str, float])
    """Parameter name -> the share of its change, ‖Δ − BA‖ / ‖Δ‖, that cutting to a rank lost."""
    rounded: Mapping[str, float] = field(default_factory=dict[str, float])
    """Parameter name -> the share of its change that rounding to the model's type left, where that is below 99 %."""

    @property
    def notes(self) -> list[str]:
        """The same, a line each."""
        cut = [f"{100 * share:.2g} % of the change of {name} was cut off" for name, share in self.lost.items()]
        return cut + [f"rounding left {100 * share:.0f} % of the change of {n}" for n, share in self.rounded.items()]

    def to_json(self) -> dict[str, Any]:
        """The same as JSON."""
        about = {"lost": dict(self.lost), "rounded": dict(self.rounded)}
        return {"folder": str(self.folder), "files": list(self.files), **about}


def to_peft(
    lm: HFLM, patch: Patch, folder: str | Path, *, rank: int | None = None, force: bool = False, **about: Any
) -> Exported:
    """Writes a LoRA adapter and its card; ``about`` goes to :func:`card`. Raises as :meth:`Patch.to_peft` does."""
    check_folder(Path(folder), replace=CONFIG if force else None)
    made = patch.as_lora(lm, rank=rank)
    if about.get("base"):
        made.config["base_model_name_or_path"] = about["base"]
    exported = Exported(Path(folder), (), lost=made.lost)
    text = _card(patch, "peft", lm, exported, about)
    with folder_written_whole(folder, replace=CONFIG if force else None) as part:
        made.write(part)
        (part / README).write_text(text, encoding="utf-8")
        return _with_files(exported, part)


def to_merged(
    lm: HFLM, patch: Patch, folder: str | Path, *, shard_size: str = "5GB", force: bool = False, **about: Any
) -> Exported:
    """Writes the whole edited model, its tokenizer, its generation settings and a card, as transformers loads them.

    In the type that ``lm`` is in; what that rounds away is told in ``rounded``. The model itself stays as it is, and
    only what the patch changes is held twice. ``about`` goes to :func:`card`. Raises :class:`BadInput` for a folder
    that exists (unless ``force``), that does not fit on the disk, or a size such as "5GB" that is none;
    :class:`Unsupported` for a patch with other parts than changes of weights and for weights that are offloaded or
    quantised; :class:`Refused` where a sum is no finite number.
    """
    if not SIZE.fullmatch(shard_size):
        raise BadInput(f"a size of shards is written as 5GB or 500MB, found {shard_size!r}")
    check_folder(Path(folder), replace=MODEL if force else None)
    sums = patch.merged(lm)
    if packed := [name for name, _ in lm.model.named_parameters() if not is_plain(lm.model, name)]:
        raise refusal(lm.model, packed[0], "a model is merged in full precision")
    exported = Exported(Path(folder), (), rounded=patch.rounded_away(lm))
    text = _card(patch, "merged", lm, exported, about)
    _check_room(Path(folder), sum(p.nbytes for p in lm.model.parameters()))
    with folder_written_whole(folder, replace=MODEL if force else None) as part:
        _save(lm, sums, part, shard_size)
        (part / README).write_text(text, encoding="utf-8")
        return _with_files(exported, part)


def to_folder(patch: Patch, folder: str | Path, *, memory: bool = True, force: bool = False, **about: Any) -> Exported:
    """Writes the patch itself and its card, for a hub. ``about`` goes to :func:`card`."""
    replace = PATCH if force else None
    check_folder(Path(folder), replace=replace)
    exported = Exported(Path(folder), ())
    text = card(patch, "patch", **about)
    with folder_written_whole(folder, replace=replace) as part:
        patch.save(part / PATCH, memory=memory)
        (part / README).write_text(text, encoding="utf-8")
        return _with_files(exported, part)


def _with_files(exported: Exported, part: Path) -> Exported:
    names = sorted(file.relative_to(part).as_posix() for file in part.rglob("*") if file.is_file())
    return Exported(exported.folder, tuple(names), exported.lost, exported.rounded)


def _card(patch: Patch, form: Form, lm: HFLM, exported: Exported, about: dict[str, Any]) -> str:
    return card(patch, form, **{"base": lm.name, "folder": exported.folder.name, "notes": exported.notes, **about})


# The whole model ---------------------------------------------------------------------------------


def _save(lm: HFLM, sums: Mapping[str, Tensor], folder: Path, shard_size: str) -> None:
    """Writes model, tokenizer and what else belongs to them. Nothing is assigned to a parameter."""
    model: Any = lm.model
    with lm.alone(), _own_config(model):
        try:
            model.save_pretrained(folder, state_dict=_state(model, sums), max_shard_size=shard_size)
            lm.tokenizer.save_pretrained(folder)
        except (ValueError, RuntimeError, NotImplementedError) as error:
            raise Unsupported(f"transformers cannot save this model: {first_line(error)}; keep the patch") from error
    for name in PROCESSORS if lm.text_config is not lm.config else ():
        if (content := read_json(lm.name, name, {"local_files_only": True})) is not None:
            (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _state(model: nn.Module, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's state with the sums in it, under every name that a tied weight has."""
    state, changed = dict(model.state_dict()), {id(model.get_parameter(name)): value for name, value in sums.items()}
    for name, param in model.named_parameters(remove_duplicate=False):
        if id(param) in changed and name in state:
            state[name] = changed[id(param)]
    return state


@contextmanager
def _own_config(model: Any) -> Iterator[None]:
    """Context manager: the model has a copy of its configuration, in which transformers notes that it was saved."""
    kept, generation = model.config, getattr(model, "generation_config", None)
    model.config = copy.deepcopy(kept)
    try:
        yield
    finally:
        model.config = kept
        if generation is not None:
            model.generation_config = generation


def _check_room(folder: Path, needed: int) -> None:
    """Raises :class:`BadInput` where the disk has no room for so many bytes."""
    above = folder.absolute().parent
    while not above.exists():
        above = above.parent
    if (free := shutil.disk_usage(above).free) < needed:
        raise BadInput(f"{folder} would take {needed:,} bytes, and {free:,} are free there; choose another place")
