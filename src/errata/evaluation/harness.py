"""Tasks of lm-evaluation-harness before an edit, with its patch in force, and after it has been undone.

    rows = run_tasks(lm, patch, find_tasks(["arc_easy", "my_task"], folder="tasks"), limit=100)

The harness (extra ``tasks``, https://github.com/EleutherAI/lm-evaluation-harness) asks by three verbs; they are
implemented by those of an :class:`LM`, so that wrappers are measured as well. A request that cannot be answered exactly
raises :class:`Unsupported`, and its rows say so. Tokens are counted by the tokenizer of an :class:`HFLM`.
"""

import logging
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from errata.errors import BadInput, Unsupported, first_line, unknown
from errata.evaluation.task_files import refuse_code, sandbox_templates
from errata.model.hf import HFLM
from errata.model.lm import LM
from errata.model.tokens import fed_unchanged
from errata.patch.patch import Patch
from errata.types import Mode, Row, Score

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks.manager import TaskDict

MAX_TOKENS = 256  # written where a task sets no bound; the harness's own default
SEED = 1234  # the harness's
UNDONE = 16  # documents of each task that are asked again after the patch is gone


# The three verbs ---------------------------------------------------------------------------------


class Verbs:
    """The three verbs of lm-evaluation-harness, by the verbs of an :class:`LM`. ``base`` counts the tokens."""

    def __init__(self, lm: LM, base: HFLM) -> None:
        super().__init__()
        self.lm, self.base = lm, base

    def loglikelihood(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        """(log P(continuation | context), whether greedy decoding gives it) for each pair of texts."""
        scores = self._scores([request.args for request in requests])
        return [(score.total, score.correct) for score in scores]

    def loglikelihood_rolling(self, requests: Sequence[Any], **_: Any) -> list[float]:
        """log P(text): every token once, in windows of the model's length, the last one full."""
        texts = [request.args[0] for request in requests]
        if not isinstance(self.lm, HFLM):
            return [score.total for score in self.lm.score([""] * len(texts), texts)]
        windows = [list(_windows(self.lm, text)) for text in texts]
        scores = iter(self.lm.score_ids([window for of_text in windows for window in of_text]))
        return [sum(next(scores).total for _ in of_text) for of_text in windows]

    def generate_until(self, requests: Sequence[Any], **_: Any) -> list[str]:
        """Greedy continuations, cut before the first stop text."""
        indices: dict[tuple[int, tuple[str, ...]], list[int]] = {}
        for i, request in enumerate(requests):
            indices.setdefault(_limits(request.args[1]), []).append(i)
        texts = [""] * len(requests)
        for (most, until), alike in indices.items():
            generated = self._generate([requests[i].args[0] for i in alike], most, until)
            for i, text in zip(alike, generated, strict=True):
                texts[i] = text[: min((text.find(stop) for stop in until if stop in text), default=len(text))]
        return texts

    def _scores(self, pairs: Sequence[tuple[str, str]]) -> list[Score]:
        if isinstance(self.lm, HFLM):
            return self.lm.score_ids([self.lm.tokens.exchange_within(*pair) for pair in pairs])
        if odd := [pair for pair in pairs if not fed_unchanged(*pair)]:
            raise Unsupported(f"behind a wrapper an answer begins with one space; this task asks {odd[0][1]!r}")
        return self.lm.score([context for context, _ in pairs], [continuation for _, continuation in pairs])

    def _generate(self, prompts: Sequence[str], most: int, until: tuple[str, ...]) -> list[str]:
        tokens = self.base.tokens
        if tokens.limit is not None and not tokens.seq2seq:
            most = min(most, tokens.limit // 2)
            cut = tokens.tail if tokens.template is None else tokens.shortened
            prompts = [cut(prompt, max(1, tokens.limit - most)) for prompt in prompts]
        return self.lm.generate(prompts, most, until=until)


def _limits(how: Mapping[str, Any]) -> tuple[int, tuple[str, ...]]:
    """(new tokens at most, stop texts) of a request to generate. Raises where it asks for a sample."""
    if how.get("do_sample") and how.get("temperature", 1.0) > 0:
        raise Unsupported("a task asks for samples; Errata's generate is greedy (set do_sample: false in its YAML)")
    until = how.get("until") or ()
    most = next((how[name] for name in ("max_gen_toks", "max_new_tokens") if name in how), MAX_TOKENS)
    return int(most), (until,) if isinstance(until, str) else tuple(until)


def _windows(lm: HFLM, text: str) -> Iterator[tuple[list[int], list[int]]]:
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    first, ids = lm.tokens.pair("", text)
    length = lm.tokens.limit or len(ids) or 1
    for window in get_rolling_token_windows(ids, first[-1], length, 1):
        yield make_disjoint_window(window)


# Results of a task -------------------------------------------------------------------------------


@dataclass(frozen=True)
class TaskResult:
    """The values of one metric of one task: of each document, or of all together where it is no mean of those."""

    task: str
    metric: str
    mode: Mode
    values: Mapping[str, float] = field(default_factory=dict)


def ask(lm: LM, base: HFLM, loaded: "TaskDict", limit: int | None = None) -> list[TaskResult]:
    """Every metric of tasks as the harness computes it; ``limit`` takes the first documents of each."""
    from jinja2 import TemplateError
    from lm_eval.api.model import LM as Harness
    from lm_eval.evaluator import evaluate

    model: Any = type("ErrataLM", (Verbs, Harness), {})(lm, base)
    sandbox_templates()
    with _seeded():
        try:
            record: Any = evaluate(model, loaded, limit=limit, bootstrap_iters=0, log_samples=True)
        except TemplateError as error:
            asked = ", ".join(loaded["tasks"])
            raise BadInput(f"a template of {asked} cannot be filled in: {first_line(error)}") from error
    return [result for task in record["samples"] for result in _results(task, record)]


def _results(task: str, record: Mapping[str, Any]) -> Iterator[TaskResult]:
    """Metrics of a task: ``acc,none`` is the metric acc; another filter than ``none`` stays in the name."""
    documents: Sequence[Mapping[str, Any]] = record["samples"][task]
    mode: Mode = "generated" if record["configs"][task]["output_type"] == "generate_until" else "forced"
    for key, value in record["results"][task].items():
        metric, _, sieve = key.partition(",")
        if not sieve or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        each = {str(document["doc_id"]): document.get(metric) for document in documents if document["filter"] == sieve}
        name = metric if sieve == "none" else key
        if _is_mean(value, each.values()):
            values = {f"{task} {number}": float(one) for number, one in each.items() if one is not None}
            yield TaskResult(task, name, mode, values)
        else:
            yield TaskResult(task, name, mode, {task: float(value)})


def _is_mean(value: float, each: Iterable[Any]) -> bool:
    numbers = [float(one) for one in each if isinstance(one, int | float)]
    return bool(numbers) and abs(sum(numbers) / len(numbers) - value) < 1e-9 * max(1.0, abs(value))


@contextmanager
def _seeded() -> Iterator[None]:
    """Context manager: random generators seeded as the harness does, restored afterwards. It logs errors only."""
    import numpy as np

    was, numbers = random.getstate(), np.random.get_state()
    log = logging.getLogger("lm_eval")
    level = log.level
    log.setLevel(logging.ERROR)  # it warns of each field that a task leaves at its default
    with torch.random.fork_rng():
        random.seed(0)
        np.random.seed(SEED)
        torch.manual_seed(SEED)
        try:
            yield
        finally:
            log.setLevel(level)
            random.setstate(was)
            np.random.set_state(numbers)


Tasks = Mapping[str, "TaskDict"]  # name -> the tasks that it stands for: one, or a group's


def find_tasks(names: Sequence[str], folder: str | Path | None = None, *, trust_remote_code: bool = False) -> Tasks:
    """Tasks by name: the harness's own, and those in YAML files of a folder.

    Raises :class:`BadInput` for one that cannot be read, and for a folder whose files run code, unless they are trusted
    (``trust_remote_code``); an unknown name answers with near matches.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise BadInput("tasks need lm-evaluation-harness: pip install 'errata[tasks]'") from error
    if not names:
        raise BadInput("no task was named")
    if folder is not None and not Path(folder).is_dir():
        raise BadInput(f"there is no folder {folder}; give one with the YAML files of tasks")
    if folder is not None and not trust_remote_code:
        refuse_code(Path(folder))
    sandbox_templates()
    with _seeded():
        if folder is not None:  # alone first: the harness's own thousands take seconds to list
            manager = TaskManager(include_path=str(folder), include_defaults=False)
            if set(names) <= set(manager.all_tasks):
                return {name: _loaded(name, manager) for name in names}
        manager = TaskManager(include_path=None if folder is None else str(folder))
        return {name: _loaded(name, manager) for name in names}


def _loaded(name: str, manager: "TaskManager") -> "TaskDict":
    if name not in manager.all_tasks:
        raise unknown("task", name, manager.all_tasks)
    try:
        loaded = manager.load([name])
    except Exception as error:  # a YAML file or a data set may be broken in any way
        raise BadInput(f"the task {name!r} cannot be read: {type(error).__name__}: {error}") from error
    for value in loaded["tasks"].values():
        task: Any = value
        if getattr(task, "UNSAFE_CODE", False):
            raise BadInput(f"the task {name!r} runs code that the model writes; Errata does not")
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=SEED)
    return loaded


# Before, with the patch, after -------------------------------------------------------------------


def run_tasks(
    lm: HFLM,
    patch: Patch | None,
    tasks: Tasks,
    limit: int | None = None,
    **labels: Any,
) -> list[Row]:
    """Rows of kind ``task``: a metric of a document (the task is the ``label``) without the patch and with it.

    Rows of kind ``undone`` hold the first documents again, before the edit and after its patch is gone: equal numbers
    mean that the model is as before. Without a patch rows have a ``before`` alone. ``limit`` takes the first documents
    of each task. Where the patch does not support what a task asks, rows say so in ``error``.
    """
    if limit is not None and limit < 1:
        raise BadInput(f"limit is a number of documents from 1; found {limit}")
    some = min(limit or UNDONE, UNDONE)
    shared: Any = {"model": lm.name, "data": "lm-eval", "setting": "tasks", "protocol": "lm-eval", **labels}
    shared |= {"chat": lm.asked_label, "after_edits": len(patch.edits) if patch else 0}
    rows: list[Row] = []
    for loaded in tasks.values():
        before = ask(lm, lm, loaded, limit)
        if patch is None:
            rows += _paired("task", before, [], shared)
            continue
        first = before if limit == some else ask(lm, lm, loaded, some)
        edited, error = _with_patch(lm, patch, loaded, limit)
        rows += [replace(row, error=error) for row in _paired("task", before, edited, shared)]
        rows += _paired("undone", first, ask(lm, lm, loaded, some), shared)
    return rows


def _with_patch(lm: HFLM, patch: Patch, loaded: "TaskDict", limit: int | None) -> tuple[list[TaskResult], str | None]:
    """The results with the patch in force, or why there are none."""
    try:
        with patch.applied(lm) as edited:
            return ask(edited, lm, loaded, limit), None
    except (Unsupported, BadInput) as error:  # what a wrapper prepends may make a text too long
        return [], str(error) or "unsupported"


def _paired(
    kind: str, before: Sequence[TaskResult], after: Sequence[TaskResult], labels: Mapping[str, Any]
) -> Iterator[Row]:
    then = {(result.task, result.metric): result.values for result in after}
    for result in before:
        now = then.get((result.task, result.metric), {})
        for case, value in result.values.items():
            about: Any = {"case": case, "label": result.task, "kind": kind, "metric": result.metric}
            yield Row(**labels, **about, mode=result.mode, before=value, after=now.get(case))
