"""A folder of a run: the model as transformers saves it, key statistics as the peers cache them, names of modules."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

import errata
from errata.errors import BadInput

CRITICAL, MIDDLE = "critical", "middle"  # the layers that MEMIT changes, and the one that ROME does
NAMES = {"gpt2": "gpt2-xl"}  # peers tell architectures by words in a model's name
STATISTICS = "data/stats"  # within the folder


@dataclass(frozen=True)
class Place:
    """Where a peer finds what it reads, and stands while it edits."""

    folder: Path
    lm: Any

    @cached_property
    def model(self) -> Path:
        """The folder of the saved model."""
        kind = self.lm.model.config.model_type
        path = self.folder / f"{NAMES.get(kind, kind)}-of-errata"
        self.lm.model.save_pretrained(path)
        self.lm.tokenizer.save_pretrained(path)
        return path

    def fresh(self) -> Any:
        """The unedited model, under the name of its folder alone."""
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(self.model, dtype=torch.float32).eval()
        model.config._name_or_path = self.model.name
        return model

    def tokenizer(self, pads: str) -> Any:
        """The tokenizer as the peers set it up."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.model, padding_side=pads)
        tokenizer.pad_token_id = tokenizer.eos_token_id
        return tokenizer

    def layers(self, which: str) -> list[int]:
        """The layers that our methods of this sort edit."""
        found = list(errata.method("memit").chosen_layers(self.lm))  # pyright: ignore
        return found if which == CRITICAL else [found[(len(found) - 1) // 2]]

    def modules(self, name: str) -> dict[str, Any]:
        """Module names and depth in the words of ROME's settings, which all of them took over."""
        sites = self.lm.sites
        down, attention, layer = (_template(some[0]) for some in (sites.mlp_out, sites.attn_out, sites.layer))
        inner = {"mlp_module_tmp": down, "attn_module_tmp": attention}  # PMET searches at the projections
        outer = {key: path.rpartition(".")[0] for key, path in inner.items()}
        return {
            "rewrite_module_tmp": down,
            "rewrite_module_tmps": [down],
            "layer_module_tmp": layer,
            "ln_f_module": sites.final_norm,
            "lm_head_module": sites.embed if self._tied else sites.lm_head,
            "v_loss_layer": sites.depth - 1,
            **(inner if name == "pmet" else outer),
        }

    @property
    def _tied(self) -> bool:
        """Whether the head shares its weight with the embedding, under whose name alone it is a parameter then."""
        get = self.lm.model.get_submodule
        return get(self.lm.sites.lm_head).weight is get(self.lm.sites.embed).weight

    def statistics(self, settings: Mapping[str, Any]) -> Path:
        """The folder of our C under the names of the peers' cache: a mean of one "sample", so that it is C itself."""
        import numpy as np

        dataset, samples, dtype = (settings[f"mom2_{name}"] for name in ("dataset", "n_samples", "dtype"))
        folder = self.folder / STATISTICS / self.model.name / f"{dataset}_stats"
        folder.mkdir(parents=True, exist_ok=True)
        for name, c in errata.method("memit").prepare(self.lm).tensors.items():
            path = folder / f"{name.removeprefix('C/')}_{dtype}_mom2_{samples}.npz"
            content: dict[str, Any] = {"mom2.count": 1, "mom2.mom2": c.float().numpy(), "sample_size": samples}
            np.savez(path, **content)
        return self.folder / STATISTICS


@dataclass
class Asked:
    """A method of a peer, from the ``checkout`` of its code: its ``given`` settings, or its ``own`` alone."""

    checkout: Path
    name: str
    place: Place
    given: Mapping[str, Any] = field(default_factory=dict[str, Any])
    own: bool = False


def _template(path: str) -> str:
    """A path of the first block as a template: ``h.0.mlp`` as ``h.{}.mlp``."""
    return f"{path}.".replace(".0.", ".{}.", 1).removesuffix(".")


def read_settings(path: Path) -> dict[str, Any]:
    """A peer's own settings, YAML or JSON. Raises :class:`BadInput` where its checkout has none."""
    if not path.is_file():
        raise BadInput(f"there is no {path}, from which settings are read: name a whole checkout")
    if path.suffix == ".json":
        return json.loads(path.read_text())
    import yaml

    return yaml.safe_load(path.read_text())


def words_of(settings: Mapping[str, Any]) -> str:
    """Settings as the label of a row."""
    return " ".join(f"{name}={value}" for name, value in settings.items())
