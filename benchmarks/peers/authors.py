"""The code of ROME's and MEMIT's authors (https://github.com/kmeng01/memit) beside Errata, as ``easyedit.py`` does it.

    python benchmarks/peers/authors.py --checkout ../memit [--method memit rome] [--edits 20] [--repeats 3] [--own] …

It was written for a GPU and transformers 4.23. It runs unchanged, but for three things that stand around it while it
does: "cuda" means the CPU, blocks give tuples to its hooks, and it stands in a folder that has its ``globals.yml``.
"""

import shutil
import sys
from collections.abc import Sequence
from contextlib import chdir
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import runner
import torch
from checkout import Source
from place import CRITICAL, MIDDLE, Asked, read_settings, words_of
from torch.overrides import TorchFunctionMode
from typing_extensions import override

import errata
from errata.errors import unknown
from errata.types import Edit

AUTHORS = Source(
    name="the authors' code",
    address="https://github.com/kmeng01/memit",
    packages=("memit", "rome", "util"),
    shows="memit/memit_main.py",
    unused={"datasets": ["load_dataset"], "matplotlib.style": ["context"]},
)
METHODS = {"memit": CRITICAL, "rome": MIDDLE}
TUNED: dict[str, dict[str, Any]] = {  # what was found for EasyEdit's, which are this code
    "memit": {"v_lr": 9.0, "mom2_update_weight": 1500},
    "rome": {"v_lr": 9.0},
}


class OnTheCPU(TorchFunctionMode):
    """Context manager: what asks for "cuda" gets the CPU."""

    @override
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        here = ["cpu" if isinstance(value, str) and value == "cuda" else value for value in args]
        named = {name: "cpu" if name == "device" else value for name, value in (kwargs or {}).items()}
        return func(*here, **named)


def with_tuples(block: torch.nn.Module) -> None:
    """Makes a block give a tuple to its hooks and the bare hidden state to what called it."""
    kind = type(block)

    class Block(kind):
        @override
        def forward(self, *args: Any, **settings: Any) -> Any:
            return (super().forward(*args, **settings),)

        @override
        def __call__(self, *args: Any, **settings: Any) -> Any:
            return super().__call__(*args, **settings)[0]

    block.__class__ = Block


@dataclass
class Authors(Asked):
    """MEMIT or ROME as released."""

    @property
    def label(self) -> str:
        return f"{self.name} (authors)"

    @property
    def changed(self) -> dict[str, Any]:
        return {**({} if self.own else TUNED[self.name]), **self.given}

    @property
    def settings(self) -> str:
        return words_of(self.changed)

    @cached_property
    def module(self) -> Any:
        shutil.copy(self.checkout / "globals.yml", self.place.folder)
        with chdir(self.place.folder):
            return AUTHORS.module(self.checkout, self.name)

    @cached_property
    def hparams(self) -> Any:
        kind = getattr(self.module, f"{self.name.upper()}HyperParams")
        known = {f.name for f in fields(kind)}
        if wrong := sorted(set(self.given) - known):
            raise unknown(f"setting of {self.label}", wrong[0], sorted(known))
        settings = read_settings(self.checkout / "hparams" / self.name.upper() / "gpt2-xl.json")
        settings |= {name: value for name, value in self.place.modules(self.name).items() if name in known}
        settings |= {"layers": self.place.layers(METHODS[self.name])} | self.changed
        self.place.statistics(settings)
        return kind(**settings)

    def fresh(self) -> Any:
        model = self.place.fresh()
        for path in self.place.lm.sites.layer:
            with_tuples(model.get_submodule(path))
        return model

    @cached_property
    def tokenizer(self) -> Any:
        return self.place.tokenizer("right")

    def edit(self, model: Any, edits: Sequence[Edit]) -> Any:
        apply, hparams, tokenizer = (
            getattr(self.module, f"apply_{self.name}_to_model"),
            self.hparams,
            self.tokenizer,
        )
        requests = [request_of(edit) for edit in edits]
        batches = [[request] for request in requests] if self.name == "rome" else [requests]
        with chdir(self.place.folder), OnTheCPU():
            for batch in batches:
                apply(model, tokenizer, batch, hparams)
        return model

    def speaks(self, edited: Any) -> Any:
        for path in self.place.lm.sites.layer:
            block = edited.get_submodule(path)
            block.__class__ = type(block).__mro__[1]
        return errata.load(edited, tokenizer=self.place.lm.tokenizer)


def request_of(edit: Edit) -> dict[str, Any]:
    """An edit in the authors' words: the subject's last occurrence is a gap."""
    before, _, after = edit.prompt.rpartition(edit.subject)
    prompt = f"{before}{{}}{after}"
    return {"prompt": prompt, "subject": edit.subject, "target_new": {"str": edit.target_new}, "case_id": edit.id}


def main(argv: Sequence[str] | None = None) -> int:
    return runner.main(__doc__ or "", AUTHORS, list(METHODS), Authors, argv)


if __name__ == "__main__":
    sys.exit(main())
