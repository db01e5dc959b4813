"""One fact edited in every family of transformers that makes text, and docs/models.md, which says what became of each.

python tests/sweep.py                # writes the page: `make models`
python tests/sweep.py llama gemma3   # says what becomes of these
"""

import gc
import logging
import os
import platform
import re
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from conftest import EDIT, TEXTS, same_weights, tokenizer, weights
from families import text_families, tiny_family
from transformers.models.auto import modeling_auto

import errata
from errata.errors import ErrataError, first_line
from errata.model.hf import HFLM

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
SECONDS = 40  # that a family has; one needs 1 or 2

Kind = Literal["edited", "refused", "not built", "failed"]


@dataclass(frozen=True)
class Outcome:
    """What became of a family."""

    family: str
    kind: Kind
    model: str = ""  # class of transformers
    how: str = ""  # the method, or the reason


class TooLong(Exception):
    """A family took more than its time."""


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TooLong(f"more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def tried(family: str, seconds: float = SECONDS) -> Outcome:
    """Builds a family's tiny model, edits one fact in it, and undoes that."""
    model = None
    try:
        with _at_most(seconds):
            model = tiny_family(family)
            return _edited(family, model)
    except ErrataError as error:
        return Outcome(family, "refused", type(model).__name__, reason(str(error)))
    except Exception as error:  # whatever it is belongs in the table
        kind: Kind = "not built" if model is None else "failed"
        return Outcome(family, kind, type(model).__name__ if model else "", reason(error))
    finally:
        del model
        gc.collect()


def _edited(family: str, model: Any) -> Outcome:
    lm = HFLM(model, tokenizer(), name=f"tiny {family}")
    before, was = weights(model), lm.score([EDIT.prompt], [EDIT.target_new])[0]
    if not lm.seq2seq and abs(was.total - _plainly(lm, EDIT)) > 1e-3:
        raise ArithmeticError("its own forward gives other scores")
    made: Any = errata.method("ft-m", steps=3) if lm.seq2seq else errata.method("r-rome", contexts=0, steps=10)
    state = made.prepare(lm, TEXTS[:40]) if made.needs_prepare else None
    patch = made.edit(lm, [EDIT], state)
    with patch.applied(lm) as edited:
        now = edited.score([EDIT.prompt], [EDIT.target_new])[0]
    if not now.total > was.total:
        raise ArithmeticError(f"log P of the answer went from {was.total:.4f} to {now.total:.4f}")
    if not same_weights(model, before) or lm.score([EDIT.prompt], [EDIT.target_new])[0] != was:
        raise ArithmeticError("not undone to the bit")
    return Outcome(family, "edited", type(model).__name__, made.name)


@torch.no_grad()
def _plainly(lm: HFLM, edit: errata.Edit) -> float:
    """log P of the new answer from the model's ids alone: no mask, no positions, no cache."""
    prompt, target = lm.tokens.prompt(edit.prompt), lm.tokens.target(edit.prompt, edit.target_new)
    logits = lm.model(torch.tensor([[*prompt, *target]])).logits[0, len(prompt) - 1 : -1]
    return float(logits.log_softmax(-1)[range(len(target)), target].sum())


def reason(error: Any) -> str:
    """The reason in an error, in one short line."""
    text = first_line(error) if isinstance(error, BaseException) else error
    text = re.sub(r"\s+", " ", str(text)).split("; Errata finds")[0].split("; name them yourself")[0]
    return text if len(text) <= 150 else text[:149].rstrip() + "…"


def swept(families: Iterable[str]) -> Iterator[Outcome]:
    """What becomes of each, one after another, with a cache of its own that is thrown away."""
    held = os.environ.get("ERRATA_CACHE")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("errata").setLevel(logging.ERROR)
        transformers.logging.set_verbosity_error()
        os.environ["ERRATA_CACHE"] = folder
        try:
            yield from map(tried, families)
        finally:
            os.environ.pop("ERRATA_CACHE")
            os.environ |= {} if held is None else {"ERRATA_CACHE": held}


# The page ------------------------------------------------------------------------------------------

TITLES: dict[Kind, tuple[str, str]] = {
    "refused": (
        "Refused",
        "Errata says so when the model is loaded, with the reason; places can be named by hand (`sites=`).",
    ),
    "failed": ("Not edited", "Sites were found or looked for, and something broke on the way."),
    "not built": (
        "Not tried",
        "No small model could be made from the configuration alone: this says nothing about a real one.",
    ),
}


def page(outcomes: Iterable[Outcome]) -> str:
    """docs/models.md: the families that are edited, and why the others are not."""
    outcomes = sorted(outcomes, key=lambda outcome: outcome.family)
    count = Counter(outcome.kind for outcome in outcomes)
    built = [outcome for outcome in outcomes if outcome.kind != "not built"]
    parts = [
        HEAD_OF_PAGE.format(
            families=len(outcomes),
            built=len(built),
            edited=count["edited"],
            transformers=transformers.__version__,
            torch=torch.__version__.split("+")[0],
            python=platform.python_version(),
        ),
        _edited_table([outcome for outcome in outcomes if outcome.kind == "edited"]),
    ]
    for kind, (title, text) in TITLES.items():
        rows = [outcome for outcome in outcomes if outcome.kind == kind]
        if rows:
            parts += [f"## {title}: {len(rows)}\n\n{text}\n", _table(rows)]
    return "\n".join(parts)


HEAD_OF_PAGE = """# Models

Every family of transformers that makes text, of text alone or of text and images: {families} model types. Of each a
tiny random model is built from its configuration, the places to edit are found in it, one fact is edited (by r-ROME;
encoder-decoders by fine-tuning), and that is undone. **Edited** means that the answer's log-probability rose and that
afterwards every weight and score was as before, bit for bit. Of {built} that could be built, {edited} were edited.

A tiny model shows that the places are the right ones, not how well a real model takes edits. Made by `make models` with
transformers {transformers}, torch {torch} and Python {python}.

A model that reads images keeps its eyes: its language half is edited, and with the patch in force `edited.model`
answers about images with it.
"""


def _edited_table(outcomes: list[Outcome]) -> str:
    lines = [f"## Edited: {len(outcomes)}", "", "| model type | class | reads images | method |", "|---|---|---|---|"]
    seeing = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    for one in outcomes:
        lines.append(f"| `{one.family}` | `{one.model}` | {'yes' if one.family in seeing else ''} | {one.how} |")
    return "\n".join(lines) + "\n"


def _table(outcomes: list[Outcome]) -> str:
    """Families with the same reason share a line."""
    by_reason: dict[str, list[str]] = {}
    for one in outcomes:
        by_reason.setdefault(_general(one.how, one.model), []).append(f"`{one.family}`")
    rows = sorted(by_reason.items(), key=lambda item: (-len(item[1]), item[1]))
    lines = ["| model types | why |", "|---|---|"]
    lines += [f"| {' '.join(families)} | {why} |" for why, families in rows]
    return "\n".join(lines) + "\n"


GENERAL = {
    "a mixture of experts": "a mixture of experts",
    "requires the timm library": "its vision tower needs the package timm",
    "as in an encoder": "a token sees later ones, as in an encoder",
    "Unrecognized configuration class": "no class of transformers that makes text of text",
    "parameters are left": "still large when its usual sizes are made small",
    "validate_architecture": "small sizes that its configuration allows are not known",
}


def _general(why: str, model: str) -> str:
    """A reason as it holds for all families that have it, fit for a cell of a table."""
    general = next((text for sign, text in GENERAL.items() if sign in why), why)
    named = general.replace(model, "it") if model else general
    return named.replace("|", "\\|").replace("<", "&lt;")


def main(families: list[str]) -> None:
    """Writes the page; with names, only says what becomes of these."""
    outcomes: list[Outcome] = []
    started = time.monotonic()
    for outcome in swept(families or text_families()):
        outcomes.append(outcome)
        print(f"{outcome.family}: {outcome.kind}: {outcome.how}", flush=True)
    if not families:
        PAGE.write_text(page(outcomes), encoding="utf-8")
        print(f"wrote {PAGE} after {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
