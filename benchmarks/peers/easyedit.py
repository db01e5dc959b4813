"""EasyEdit (https://github.com/zjunlp/EasyEdit) beside Errata: the same model, the same edits, the same scorer.

    python benchmarks/peers/easyedit.py --checkout ../EasyEdit [--method memit rome …] [--edits 20] [--repeats 3]
        [--own] [--set v_lr=2] [--split test] [--seed 0] [-o rows.jsonl]

The checkout is one that you made; its code runs in this process, as you would run it. Both sides have one thread and
the same key statistics, and edit in turn; seconds are those of the process. ``--own`` keeps EasyEdit's own settings for
GPT-2 XL, whose layers and names alone are exchanged. The table goes to stdout, rows for ``errata report`` to a file.
"""

import json
import sys
from collections.abc import Sequence
from contextlib import chdir
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import runner
from beside import Generating
from checkout import Source
from place import Asked, read_settings, words_of
from recipes import RECIPES, Recipe

import errata
from errata.errors import unknown
from errata.types import Edit

EASYEDIT = Source(
    name="EasyEdit",
    address="https://github.com/zjunlp/EasyEdit",
    packages=("easyeditor",),
    shows="easyeditor/models/memit/__init__.py",
    bare=("easyeditor", "easyeditor.models", "easyeditor.util"),
    unused={"datasets": ["load_dataset"], "matplotlib.style": ["context"]},
)


@dataclass
class EasyEdit(Asked):
    """One of EasyEdit's methods as a peer."""

    @property
    def recipe(self) -> Recipe:
        return RECIPES[self.name]

    @property
    def label(self) -> str:
        return f"{self.name} (EasyEdit)"

    @property
    def changed(self) -> dict[str, Any]:
        """What is not as in EasyEdit's own file, beside names, places and layers."""
        return {**({} if self.own else self.recipe.tuned), **self.given}

    @property
    def settings(self) -> str:
        return words_of(self.changed)

    @cached_property
    def module(self) -> Any:
        return EASYEDIT.module(self.checkout, self.recipe.module)

    @cached_property
    def hparams(self) -> Any:
        """Its settings, written to a file and read by its own class."""
        kind = getattr(self.module, self.recipe.hparams)
        path = self.place.folder / f"{self.name}.yaml"
        path.write_text(json.dumps(self._settings({f.name for f in fields(kind)})))  # JSON is YAML
        made = kind.from_hparams(str(path))
        for name, value in self.recipe.attributes.items():
            setattr(made, name, value)
        return made

    def _settings(self, known: set[str]) -> dict[str, Any]:
        settings = read_settings(self.checkout / "hparams" / self.recipe.file)
        if wrong := sorted(set(self.given) - known - set(settings)):
            raise unknown(f"setting of {self.label}", wrong[0], sorted(known))
        settings |= {name: value for name, value in self._here().items() if name in known}
        settings |= dict(self.recipe.fixed) | self.changed
        if "mom2_dataset" in known:
            settings["stats_dir"] = str(self.place.statistics(settings))
        if isinstance(side := settings.get("inner_params"), str):
            settings["inner_params"] = [self._bracketed(side)]
        return settings

    def _here(self) -> dict[str, Any]:
        """Names, places and layers of the model at hand."""
        return {
            "model_name": str(self.place.model),
            "device": "cpu",
            "P_loc": str(self.place.folder / "null_space_project.pt"),
            "inner_params": "mlp_in",
            "layers": self.place.layers(self.recipe.layers),
            **self.place.modules(self.name),
        }

    def _bracketed(self, side: str) -> str:
        """The weight at GRACE's layer as EasyEdit writes it: h.6.mlp as h[6].mlp"""
        sites = self.place.lm.sites
        layer = errata.method("grace").resolved_layer(self.place.lm)  # pyright: ignore
        path = sites.mlp_in[layer][0] if side == "mlp_in" else sites.mlp_out[layer]
        return f"{path}.weight".replace(f".{layer}.", f"[{layer}].", 1)

    def fresh(self) -> Any:
        return self.place.fresh()

    @cached_property
    def tokenizer(self) -> Any:
        return self.place.tokenizer(self.recipe.pads)

    def edit(self, model: Any, edits: Sequence[Edit]) -> Any:
        apply, hparams, made = getattr(self.module, self.recipe.apply), self.hparams, model
        requests = [request_of(edit, self._elsewhere) for edit in edits]
        batches = [[request] for request in requests] if self.recipe.one_by_one else [requests]
        with chdir(self.place.folder):  # it writes where it stands
            for batch in batches:
                made, _ = apply(model, self.tokenizer, batch, hparams, return_orig_weights=True, **self.recipe.call)
        return made

    @cached_property
    def _elsewhere(self) -> str:
        """A text that no edit is about."""
        texts = self.place.lm.resources.texts
        return next(iter(texts())) if texts else "The weather is fine today."

    def speaks(self, edited: Any) -> Any:
        if self.recipe.adapter:
            return Generating(edited.generate, self.place.lm.tokenizer, self.recipe.asked)
        return errata.load(edited, tokenizer=self.place.lm.tokenizer)


def request_of(edit: Edit, elsewhere: str) -> dict[str, Any]:
    """An edit in EasyEdit's words."""
    return {
        "prompt": edit.prompt,
        "subject": edit.subject,
        "target_new": edit.target_new,
        "ground_truth": edit.target_true,
        "loc_prompt": elsewhere,
        "case_id": edit.id,
    }


def main(argv: Sequence[str] | None = None) -> int:
    return runner.main(__doc__ or "", EASYEDIT, list(RECIPES), EasyEdit, argv)


if __name__ == "__main__":
    sys.exit(main())
