"""Tasks of lm-evaluation-harness: its three verbs by ours, and a task of one's own, offline, with a patch in force."""

import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click import unstyle
from conftest import EDITS, TEXTS, same_weights, tiny_lm, weights
from typer.testing import CliRunner
from typing_extensions import override

import errata
from errata.cli import app, tasks
from errata.errors import BadInput, Unsupported
from errata.evaluation.harness import UNDONE, Verbs, find_tasks, run_tasks
from errata.model.lm import LM
from errata.model.tokens import fed_unchanged
from errata.patch.parts import Wrapper
from errata.patch.patch import EMPTY, Patch
from errata.types import Score

CHOICES = ("Rome", "Oslo", "New York")
KINDS: dict[str, dict[str, Any]] = {
    "mayors": {
        "output_type": "multiple_choice",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}],
    },
    "writes": {
        "output_type": "generate_until",
        "doc_to_target": "{{choices[answer]}}",
        "generation_kwargs": {"until": ["."], "max_gen_toks": 4, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
    "text": {"output_type": "loglikelihood_rolling", "doc_to_target": "{{question}}"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tasks of a user: YAML files, and documents as JSON lines."""
    path = tmp_path_factory.mktemp("tasks")
    docs = [{"question": text.rsplit(" ", 1)[0], "choices": CHOICES, "answer": i % 3} for i, text in enumerate(TEXTS)]
    (path / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs[:20]))
    for name in KINDS:
        (path / f"{name}.yaml").write_text(json.dumps(usual(name, path / "docs.jsonl")))  # YAML holds JSON
    return path


def usual(name: str, docs: Path) -> dict[str, Any]:
    """The configuration of a task over these documents."""
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(docs)}},
        "test_split": "test",
        "doc_to_text": "" if name == "text" else "{{question}}",
    } | KINDS[name]


def request(*args: Any) -> Any:
    return SimpleNamespace(args=args)


# The verbs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_likelihoods_are_the_scores(name: str) -> None:
    lm = tiny_lm(name)
    pairs = [("Ann Lee was born in", " Oslo"), ("The old king lives in", " New York")]
    expected = lm.score([a for a, _ in pairs], [b for _, b in pairs])
    found = Verbs(lm, lm).loglikelihood([request(*pair) for pair in pairs])
    assert found == [(score.total, score.correct) for score in expected]
    spaced = Verbs(lm, lm).loglikelihood([request(a + " ", b[1:]) for a, b in pairs])
    assert spaced == found  # the space goes over to the answer, as in the harness


def test_an_answer_without_a_space_is_scored_as_it_stands() -> None:
    lm = tiny_lm("gpt2")
    prompt, target = lm.tokens.pair("Ann Lee was born", ":in")
    assert lm.tokens.decode(prompt + target).strip() == "Ann Lee was born:in"
    assert (
        Verbs(lm, lm).loglikelihood([request("Ann Lee was born", ":in")])[0][0]
        == lm.score_ids([(prompt, target)])[0].total
    )
    pairs = [("a", " b"), ("a ", "b"), ("", "b"), ("a", "b"), ("a", "\nb")]
    assert [fed_unchanged(*pair) for pair in pairs] == [True, True, True, False, False]


def test_too_long_a_context_loses_its_beginning() -> None:
    lm = tiny_lm("gpt2")
    long = " ".join(TEXTS)
    ((total, _),) = Verbs(lm, lm).loglikelihood([request(long, " Oslo")])
    prompt, target = lm.tokens.pair(long, " Oslo")
    room = 128 - len(target) + 1
    assert len(prompt) > 128 and total == lm.score_ids([(prompt[-room:], target)])[0].total
    with pytest.raises(BadInput, match=r"answer has .* tokens; the model reads at most 128"):
        Verbs(lm, lm).loglikelihood([request("Ann", long)])


def test_a_rolling_likelihood_counts_every_token_once() -> None:
    lm = tiny_lm("gpt2", torch.float64)
    short, long = TEXTS[0], " ".join(TEXTS[:28])
    first, ids = lm.tokens.pair("", long)
    row = [*first, *ids]
    assert len(first) == 1 and 2 * 128 < len(ids) < 3 * 128
    cuts = [(row[:1], ids[:128]), (row[128:129], ids[128:256]), (row[len(ids) - 128 : 257], ids[256:])]
    expected = sum(score.total for score in lm.score_ids(cuts))
    found = Verbs(lm, lm).loglikelihood_rolling([request(short), request(long)])
    assert found == pytest.approx([lm.score([""], [short])[0].total, expected])


def test_what_is_written_ends_before_a_stop_text() -> None:
    lm = tiny_lm("gpt2")
    prompts = ["Ann Lee was born in", "A baker lives in", " ".join(TEXTS)]
    whole = lm.generate(prompts[:2], 12)
    stops = [text[3:5] for text in whole]
    requests = [request(p, {"until": [stop], "max_gen_toks": 12}) for p, stop in zip(prompts, stops)]
    found = Verbs(lm, lm).generate_until([*requests, request(prompts[2], {"until": "!", "max_gen_toks": 1000})])
    assert found[:2] == [text[: text.find(stop)] for text, stop in zip(whole, stops)]
    assert len(found[2]) > 0  # its prompt was cut so that something can be written behind it
    with pytest.raises(Unsupported, match="greedy"):
        Verbs(lm, lm).generate_until([request("a", {"do_sample": True})])


# Behind a wrapper --------------------------------------------------------------------------------


class Talker(LM):
    """An LM that is no transformers model: it writes, and scores nothing."""

    @override
    def generate(
        self,
        prompts: Sequence[str],
        max_new_tokens: int = 32,
        *,
        until_answer: bool = False,
        until: Sequence[str] = (),
    ) -> list[str]:
        return [" Rome. And more" for _ in prompts]

    @override
    def score(self, prompts: Sequence[str], targets: Sequence[str]) -> list[Score]:
        if not any(prompts):
            raise BadInput("too long a text")
        raise Unsupported("this wrapper does not score")


class Talking(Wrapper):
    kind = "talking"

    def config(self) -> dict[str, Any]:
        return {}

    def tensors(self) -> dict[str, torch.Tensor]:
        return {}

    @classmethod
    def build(cls, config: Any, tensors: Any) -> "Talking":
        return cls()

    def wrap(self, inner: Any) -> Any:
        return Talker()


def test_a_wrapper_answers_by_the_verbs_of_text() -> None:
    verbs = Verbs(Talker(), tiny_lm("gpt2"))
    assert verbs.generate_until([request("x", {"until": ["."]})]) == [" Rome"]
    with pytest.raises(Unsupported, match="does not score"):
        verbs.loglikelihood([request("a", " b")])
    with pytest.raises(Unsupported, match="one space"):
        verbs.loglikelihood([request("a", "b")])


# Tasks -------------------------------------------------------------------------------------------


def test_scores_before_edited_and_undone(folder: Path) -> None:
    lm = tiny_lm("gpt2")
    patch = errata.method("ft-m", steps=5).edit(lm, EDITS)
    was, state = weights(lm.model), random.getstate()
    rows = run_tasks(lm, patch, find_tasks(list(KINDS), folder), limit=18, seed=3)
    assert same_weights(lm.model, was) and random.getstate() == state
    undone = [row for row in rows if row.kind == "undone"]
    assert undone and all(row.before == row.after for row in undone)
    of_tasks = [row for row in rows if row.kind == "task"]
    changed = {row.label for row in of_tasks if row.before != row.after}
    assert "text" in changed and {row.error for row in of_tasks} == {None}
    count = {(row.label, row.metric, row.mode): 0 for row in of_tasks}
    for row in of_tasks:
        count[row.label, row.metric, row.mode] += 1
    assert count == {
        ("mayors", "acc", "forced"): 18,
        ("writes", "exact_match", "generated"): 18,
        ("text", "word_perplexity", "forced"): 1,
        ("text", "byte_perplexity", "forced"): 1,
        ("text", "bits_per_byte", "forced"): 1,
    }
    assert sum(row.kind == "undone" and row.label == "mayors" for row in rows) == UNDONE
    assert {(row.after_edits, row.seed, row.model) for row in rows} == {(3, 3, "tiny gpt2")}
    scores = [lm.score([f"{TEXTS[0].rsplit(' ', 1)[0]}"] * 3, CHOICES)]
    first = max(range(3), key=lambda i: scores[0][i].total) == 0
    assert next(row.before for row in of_tasks if row.label == "mayors") == float(first)


def test_what_a_wrapper_does_not_support_stands_in_the_rows(folder: Path) -> None:
    rows = run_tasks(tiny_lm("gpt2"), Patch((Talking(),)), find_tasks(list(KINDS), folder), limit=3)
    errors = {(row.label, row.kind): (row.after, row.error) for row in rows}
    assert errors["mayors", "task"] == (None, "this wrapper does not score")
    assert errors["text", "task"] == (None, "too long a text")
    assert errors["writes", "task"][1] is None and errors["mayors", "undone"][1] is None


def test_tasks_that_cannot_be_had(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match="no folder"):
        find_tasks(["mayors"], tmp_path / "none")
    with pytest.raises(BadInput, match="no task was named"):
        find_tasks([], folder)
    with pytest.raises(BadInput, match="from 1; found 0"):
        run_tasks(tiny_lm("gpt2"), EMPTY, find_tasks(["mayors"], folder), limit=0)
    config = json.loads((folder / "mayors.yaml").read_text()) | {"task": "lost", "dataset_kwargs": {"data_files": "no"}}
    (tmp_path / "lost.yaml").write_text(json.dumps(config))
    with pytest.raises(BadInput, match="the task 'lost' cannot be read"):
        find_tasks(["lost"], tmp_path)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(BadInput, match=r"pip install 'errata\[tasks\]'"):
        find_tasks(["mayors"], folder)


@pytest.mark.slow  # the bundled model
def test_a_task_over_the_bundled_model(tmp_path: Path) -> None:
    lm, edits = errata.load("world"), [case.edits[0] for case in errata.cases("world", 12)]
    docs = [{"question": edit.prompt, "choices": [edit.target_true, edit.target_new], "answer": 0} for edit in edits]
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    for name in ("mayors", "writes"):
        sieve = {"name": "strip", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]}
        config = usual(name, tmp_path / "docs.jsonl") | ({"filter_list": [sieve]} if name == "writes" else {})
        config |= {"generation_kwargs": {"until": ["."], "max_gen_toks": 12}}
        (tmp_path / f"{name}.yaml").write_text(json.dumps(config))
    was, patch = weights(lm.model), errata.method("ft-m").edit(lm, edits)
    rows = run_tasks(lm, patch, find_tasks(["mayors", "writes"], tmp_path))
    for task in ("mayors", "writes"):
        of_tasks = [row for row in rows if (row.label, row.kind) == (task, "task")]
        before, after = (sum(getattr(row, end) for row in of_tasks) / len(of_tasks) for end in ("before", "after"))
        assert before >= 0.9 and after <= 0.1, task  # the task holds the old answers to be right
    undone = [(row.before, row.after) for row in rows if row.kind == "undone"]
    assert len(undone) == 24 and all(first == last for first, last in undone)
    assert same_weights(lm.model, was)


@pytest.mark.slow  # the harness lists thousands of its own
def test_an_unknown_task_answers_with_near_matches(folder: Path) -> None:
    with pytest.raises(BadInput, match="unknown task 'mayor'; did you mean mayors"):
        find_tasks(["mayor"], folder)


def test_from_the_command_line(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("gpt2")
    monkeypatch.setattr(errata, "load", lambda *_, **__: lm)
    file, out = tmp_path / "patch.safetensors", tmp_path / "rows.jsonl"
    errata.method("ft-m", steps=2).edit(lm, EDITS).save(file)
    words = ["tasks", "tiny", "--tasks", "mayors, text", "--task-folder", str(folder), "--limit", "4", "-q"]
    done = CliRunner().invoke(app, [*words, "--patch", str(file), "-o", str(out)])
    assert done.exit_code == 0, done.output
    assert "task: acc" in done.stdout and "undone: acc" in done.stdout and "mayors" in done.stdout
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert {(row["method"], row["after_edits"]) for row in rows} == {("ft-m", 3)}
    alone = CliRunner().invoke(app, [*words, "--json"])
    assert alone.exit_code == 0, alone.output
    assert {(line["kind"], line["after"]) for line in json.loads(alone.stdout)} == {("task", None)}
    for wrong, message in (([], "--tasks"), (["--tasks", " , "], "names no task")):
        refused = CliRunner().invoke(app, ["tasks", "tiny", *wrong])
        assert refused.exit_code == 2 and message in unstyle(refused.stderr)


def test_the_function_of_the_command(folder: Path) -> None:
    lm, patch = tiny_lm("gpt2"), errata.method("ft-m", steps=2).edit(tiny_lm("gpt2"), EDITS)
    rows = tasks.tasks(lm, ["mayors"], patch, folder=folder, limit=2)
    assert {(row.kind, row.method, row.after_edits) for row in rows} == {("task", "ft-m", 3), ("undone", "ft-m", 3)}
    before = tasks.tasks(lm, ["mayors"], folder=folder, limit=2)
    assert [(row.kind, row.before, row.after) for row in before] == [
        ("task", row.before, None) for row in rows if row.kind == "task"
    ]
