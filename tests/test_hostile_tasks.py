"""Tasks of lm-evaluation-harness in somebody's folder: what they want to run is refused, and does not run."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_lm
from typer.testing import CliRunner

from errata.cli import app, tasks
from errata.errors import BadInput
from errata.evaluation.harness import find_tasks, run_tasks
from errata.evaluation.task_files import refuse_code

pytest.importorskip("lm_eval")
TOUCH = "from pathlib import Path\nPath({trace!r}).touch()\ndef text(doc):\n    return doc['question']\n"
ESCAPE = "{{ cycler.__init__.__globals__.os.mkdir(trace) if number == %d }}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the documents of a task, and a module that says so when it is run."""
    path = tmp_path / "tasks"
    path.mkdir()
    docs: list[Any] = [{"question": "Ann Lee was born", "number": i, "trace": str(tmp_path / "ran")} for i in range(3)]
    (path / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    (path / "mine.py").write_text(TOUCH.format(trace=str(tmp_path / "ran")))
    return path


def task(folder: Path, lines: str = "", file: str = "mine.yaml", text: str = "{{question}}") -> Path:
    """A task of one's own, with more lines of YAML."""
    (folder / file).write_text(
        f"""
task: mine
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder / "docs.jsonl"}}}}}
test_split: test
output_type: generate_until
generation_kwargs: {{until: ["."], max_gen_toks: 2, do_sample: false}}
doc_to_text: {json.dumps(text)}
doc_to_target: " in"
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
{lines}
"""
    )
    return folder


CODE = {
    "function": ("doc_to_text: !function mine.text", "mine.yaml, doc_to_text: !function mine.text"),
    "within": ("filter_list: [{name: a, filter: [{function: custom, filter_fn: !function mine.text}]}]", "mine.text"),
    "class": ("class: !function mine.text", "class mine.text"),
    "class in words": ("class: mine.text", "class mine.text"),
    "script": ("metric_list: [{metric: ./mine.py}]", "metric ./mine.py, a script that `evaluate` loads"),
    "script of the hub": ("metric_list: [{metric: exact_match, hf_evaluate: true}]", "metric exact_match, a script"),
    "data": ("dataset_kwargs: {trust_remote_code: true}", "trust_remote_code, a data set's own script"),
}


@pytest.mark.parametrize("kind", CODE)
def test_what_a_task_wants_to_run_is_named_and_does_not_run(kind: str, folder: Path, tmp_path: Path) -> None:
    lines, said = CODE[kind]
    with pytest.raises(
        BadInput, match=r"wants to run code: .*trust_remote_code=True \(--trust-remote-code\)"
    ) as refusal:
        find_tasks(["mine"], task(folder, lines))
    assert said in str(refusal.value) and not (tmp_path / "ran").exists()


def test_code_runs_at_the_users_word(folder: Path, tmp_path: Path) -> None:
    task(folder, CODE["function"][0])
    words = ["tasks", "world", "--tasks", "mine", "--task-folder", str(folder), "-q"]
    refused = CliRunner().invoke(app, words, input="y\n")
    assert refused.exit_code == 2 and "--trust-remote-code" in refused.stderr
    with pytest.raises(BadInput, match="wants to run code"):
        tasks.tasks(tiny_lm("llama"), ["mine"], folder=folder)
    assert not (tmp_path / "ran").exists()
    assert tasks.tasks(tiny_lm("llama"), ["mine"], folder=folder, trust_remote_code=True)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("include", ["base", "deep/base", "absolute", ["plain.yaml", "base"]])
def test_what_a_task_includes_is_read_too(include: Any, folder: Path, tmp_path: Path) -> None:
    (folder / "plain.yaml").write_text("fewshot_delimiter: a\n")
    other = (
        tmp_path / "elsewhere.yml" if include == "absolute" else folder / ("deep/base" if "deep" in include else "base")
    )
    other.parent.mkdir(exist_ok=True)
    other.write_text("process_docs: !function mine.text\ninclude: " + str(folder / "mine.yaml"))  # a circle
    words = str(other) if include == "absolute" else json.dumps(include)
    with pytest.raises(BadInput, match=rf"{other.name}, process_docs: !function mine\.text"):
        find_tasks(["mine"], task(folder, f"include: {words}"))
    assert not (tmp_path / "ran").exists()


def test_files_that_include_each_other_are_read_once(folder: Path) -> None:
    (folder / "other.yaml").write_text("include: mine.yaml\n")
    refuse_code(task(folder, "include: other.yaml"))


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.mkdir [ran]", "!!python/name:os.mkdir", "!other mine.text"])
def test_tags_that_no_plain_loader_knows_are_refused(tag: str, folder: Path) -> None:
    with pytest.raises(BadInput, match=r"mine\.yaml cannot be read as the YAML of a task: ConstructorError"):
        find_tasks(["mine"], task(folder, f"process_docs: {tag}"))


@pytest.mark.parametrize("content", ["task: [", "\x00", "include: gone.yaml", "? [" * 5000])
def test_a_file_that_is_no_task_is_named(content: str, folder: Path) -> None:
    (folder / "other.yaml").write_text(content)
    with pytest.raises(BadInput, match=r"(other|gone)\.yaml cannot be read as the YAML of a task"):
        find_tasks(["mine"], task(folder))


def test_the_harness_own_tasks_may_run_code(folder: Path) -> None:
    import lm_eval.tasks

    own = Path(lm_eval.tasks.__file__).parent
    theirs = next(file for file in sorted(own.rglob("*.yaml")) if "!function" in file.read_text())
    task(folder, f"include: {json.dumps(str(theirs))}")
    refuse_code(folder)


@pytest.mark.parametrize("number", [0, 2])
def test_a_template_cannot_reach_python(number: int, folder: Path, tmp_path: Path) -> None:
    """The first document is filled in when a task is read, the others when it is asked."""
    task(folder, text=ESCAPE % number)
    with pytest.raises(BadInput, match=r"SecurityError: access to attribute '__init__'"):
        run_tasks(tiny_lm("llama"), None, find_tasks(["mine"], folder, trust_remote_code=True))
    assert not (tmp_path / "ran").exists()


def test_plain_tasks_are_filled_in_as_ever(folder: Path) -> None:
    found = find_tasks(["mine"], task(folder, text="{{question | regex_replace('Ann', 'Eve')}} {{'%s' % number}}"))
    loaded: Any = found["mine"]
    (made,) = loaded["tasks"].values()
    assert made.doc_to_text(made.dataset["test"][1]) == "Eve Lee was born 1"
    assert [row.case for row in run_tasks(tiny_lm("llama"), None, found)] == ["mine 0", "mine 1", "mine 2"]


def test_a_pipe_among_the_tasks_is_named_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "task.yaml")
    with pytest.raises(BadInput, match=r"task\.yaml cannot be read .* is a pipe"):
        refuse_code(tmp_path)
