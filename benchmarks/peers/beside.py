"""A peer's method and ours on the same edits of the same model, in turn, scored by the same scorer."""

import io
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any, Protocol

import torch
from typing_extensions import override

import errata
from errata.answers import complete
from errata.model.lm import LM
from errata.types import Case, Edit, Row

KINDS = ("edit", "paraphrase", "question", "neighborhood", "same_subject", "multi_hop", "unrelated")


class Peer(Protocol):
    """Another toolkit's method."""

    label: str
    settings: str

    def fresh(self) -> Any:
        """The unedited model, which ``edit`` may change."""
        ...

    def edit(self, model: Any, edits: Sequence[Edit]) -> Any:
        """The edited model, or what the peer gives in its place."""
        ...

    def speaks(self, edited: Any) -> LM:
        """The edited model as evaluation sees it."""
        ...


@dataclass
class Side:
    """One toolkit's seconds of each round, rows of the last one, and what went wrong."""

    label: str
    seconds: list[float] = field(default_factory=list[float])
    rows: list[Row] = field(default_factory=list[Row])
    error: str = ""

    def after(self, edit: Callable[[], tuple[float, Any]], warm: bool = False) -> Any:
        """What an edit gave; its seconds are kept, unless it is there to ``warm``. Nothing once one has failed."""
        if self.error:
            return None
        try:
            seconds, made = edit()
        except Exception as error:
            self.error = where(error)
            return None
        self.seconds += [] if warm else [round(seconds, 2)]
        return made

    def ask(self, edited: Callable[[], LM], before: Any, cases: Sequence[Case], **labels: Any) -> None:
        """Scores the edited model, and keeps rows of it and of its cost."""
        if self.error:
            return
        try:
            self.rows = errata.evaluate(before, edited(), cases, method=self.label, **labels)
        except Exception as error:
            self.error = where(error)
            return
        about: dict[str, Any] = {"kind": "cost", "after_edits": len(cases), "method": self.label, **labels}
        self.rows.append(Row(metric="seconds_per_edit", after=median(self.seconds) / len(cases), **about))

    def values(self, kind: str) -> list[float]:
        """Of each answer to a kind of probe, whether it is right."""
        return [float(row.after) for row in self.rows if _counts(row, kind) and row.after is not None]

    def score(self, kind: str) -> str:
        """Share of right answers to a kind of probe ± standard error; a dash where it has none."""
        values = self.values(kind)
        if not values:
            return "–"
        error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
        return f"{mean(values):.3f} ± {error:.3f}"


def _counts(row: Row, kind: str) -> bool:
    return (row.kind, row.metric, row.mode) == (kind, "accuracy", "generated")


class Generating(LM):
    """A model that is reached by ``generate`` of transformers alone; ``at_once`` prompts are asked together."""

    def __init__(self, generate: Callable[..., Any], tokenizer: Any, at_once: int = 1) -> None:
        self.tokenizer, self._generate, self._at_once = tokenizer, generate, at_once

    @override
    def generate(
        self, prompts: Sequence[str], max_new_tokens: int = 32, *, until_answer: bool = False, **ignored: Any
    ) -> list[str]:
        """Greedy; where an answer is enough, it ends once every prompt of a batch has one."""
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        batches = [order[i : i + self._at_once] for i in range(0, len(order), self._at_once)]
        answers = [self._answers([prompts[i] for i in batch], max_new_tokens, until_answer) for batch in batches]
        found = dict(zip(order, chain.from_iterable(answers), strict=True))
        return [found[i] for i in range(len(prompts))]

    def _answers(self, prompts: Sequence[str], most: int, until_answer: bool) -> list[str]:
        read = self.tokenizer(list(prompts), return_tensors="pt", padding=True, padding_side="left")
        width = read["input_ids"].shape[1]

        def texts(ids: Any) -> list[str]:
            return self.tokenizer.batch_decode(ids[:, width:], skip_special_tokens=True)

        def ended(ids: Any, scores: Any, **more: Any) -> bool:
            return until_answer and all(map(complete, texts(ids)))

        with torch.no_grad():
            ids = self._generate(
                input_ids=read["input_ids"],
                attention_mask=read["attention_mask"],
                max_new_tokens=most,
                do_sample=False,
                pad_token_id=self.tokenizer.pad_token_id,
                stopping_criteria=[ended],
            )
        return texts(ids)


def beside(
    lm: Any, before: Any, peer: Peer, name: str, cases: Sequence[Case], repeats: int, **labels: Any
) -> tuple[Side, Side]:
    """The peer's side and ours: each warmed with one edit, then ``repeats`` times, in turn, and scored once.

    A side that fails has an error, and the other is measured all the same.
    """
    method = errata.method(name)
    state = method.prepare(lm)
    theirs, ours = Side(peer.label), Side(name)
    edits = [edit for case in cases for edit in case.edits]
    made: Any = None
    patch = errata.EMPTY
    for some in (edits[:1], *[edits] * repeats):
        made = theirs.after(lambda some=some: _edited(peer, some), warm=some is not edits)
        patch = ours.after(lambda some=some: _timed(lambda: method.edit(lm, some, state)), warm=some is not edits)
    theirs.ask(lambda: peer.speaks(made), before, cases, settings=peer.settings, **labels)
    if not ours.error:
        with patch.applied(lm) as edited:
            ours.ask(lambda: edited, before, cases, **labels)
    return theirs, ours


def measured(peer: Peer, before: Any, cases: Sequence[Case], **labels: Any) -> Side:
    """The peer's side alone, edited once."""
    side = Side(peer.label)
    made = side.after(lambda: _edited(peer, [edit for case in cases for edit in case.edits]))
    side.ask(lambda: peer.speaks(made), before, cases, settings=peer.settings, **labels)
    return side


def _edited(peer: Peer, edits: Sequence[Edit]) -> tuple[float, Any]:
    """Seconds of the peer's edit of a model that was loaded before, and what it gave. What it prints is dropped."""
    seed_all()
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        model = peer.fresh()
        return _timed(lambda: peer.edit(model, edits))


def seed_all(seed: int = 0) -> None:
    """Sets every seed that a peer may draw from."""
    import random

    import numpy as np

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _timed(what: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of the process, all its threads together, whatever else runs on the machine."""
    began = time.process_time()
    made = what()
    return time.process_time() - began, made


def where(error: BaseException) -> str:
    """The file and line of an exception's last frame, and what it says."""
    frames = traceback.extract_tb(error.__traceback__)
    at = f"{'/'.join(Path(frames[-1].filename).parts[-3:])}:{frames[-1].lineno}: " if frames else ""
    return f"{at}{type(error).__name__}: {error}"


def table(pairs: Sequence[tuple[Side, Side]]) -> str:
    """Markdown: each peer's row and ours under it, with the ratio of seconds round by round."""
    present = [kind for kind in KINDS if any(side.score(kind) != "–" for pair in pairs for side in pair)]
    heads = ("method", "seconds", "theirs / ours", *present)
    lines = [" | ".join(heads), " | ".join("---" for _ in heads)]
    for theirs, ours in pairs:
        ratios = [a / b for a, b in zip(theirs.seconds, ours.seconds, strict=False) if b]
        for side in (theirs, ours):
            times = ", ".join(map(str, side.seconds)) or "–"
            ratio = f"{median(ratios):.1f}" if ratios and side is theirs else ""
            cells = [f"failed: {side.error}"] if side.error else [side.score(kind) for kind in present]
            lines.append(" | ".join((side.label, times, ratio, *cells)))
    return "\n".join(f"| {line} |" for line in lines)
