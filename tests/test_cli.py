"""The command line: what it prints and writes, and what a mistake ends with."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CASES, EDIT, EDITS, TEXTS, tiny_lm, tiny_model, tokenizer
from rich.status import Status
from typer.testing import CliRunner

import errata
from errata import types
from errata.answers import begins_with_answer
from errata.cli import app, ask, common, demo, edit, measure, methods, show, tasks, world
from errata.errors import Refused
from errata.evaluation.edits import own_cases
from errata.locks import held
from errata.methods.registry import METHODS, method_class
from errata.model.resources import Resources
from errata.types import Case
from errata.world import train as world_train
from errata.world.cases import cases as world_cases
from errata.world.facts import world as make_world

ONE = ("--prompt", "{} was born in", "--subject", "Ann Lee", "--target", "Oslo")
FTM = (*ONE, "--method", "ft-m")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a tiny model."""
    return saved("gpt2", tmp_path_factory.mktemp("model"))


def saved(name: str, folder: Path) -> str:
    tiny_model(name, torch.float32).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder; the hub is out of reach."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


def run(*words: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [str(word) for word in words])
    shown = f"{result.stdout}\n{result.stderr}"
    assert result.exception is None or isinstance(result.exception, SystemExit), shown
    assert result.exit_code == code, shown
    return result


def refused(*words: object, code: int = 2) -> str:
    """The one message that bad input is answered with; no file comes or goes, and nothing is on stdout."""
    before = {path: path.read_bytes() for path in Path.cwd().rglob("*") if path.is_file()}
    result = run(*words, code=code)
    assert {path: path.read_bytes() for path in Path.cwd().rglob("*") if path.is_file()} == before
    assert result.stdout == "" and "Traceback" not in result.stderr
    assert len(result.stderr.splitlines()) == 1 and result.stderr.startswith("errata: ")
    return result.stderr


def lines(file: Path, records: Sequence[Any]) -> Path:
    file.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return file


def case_record(case: Case) -> dict[str, Any]:
    probes = [{"kind": p.kind, "prompt": p.prompt, "answers": list(p.answers)} for p in case.probes]
    return {"id": case.id, "edits": [edit.to_json() for edit in case.edits], "probes": probes}


# Help --------------------------------------------------------------------------------------------


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom errata.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    code = end.code\n"
        "heavy = {'torch', 'transformers', 'numpy', 'safetensors'} & set(sys.modules)\n"
        "sys.exit(f'heavy: {heavy}' if heavy else code)"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(errata.__file__).parents[1])}
    for words in (["--help"], ["edit", "--help"], ["world", "train", "--help"]):
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr
        assert "Usage" in done.stdout


def test_each_command_has_a_function_of_its_name() -> None:
    for module, name in [(demo, "demo"), (edit, "edit"), (ask, "ask"), (show, "show"), (world, "world")]:
        assert callable(getattr(module, name))
    assert callable(measure.eval_) and callable(tasks.tasks) and callable(methods.methods) and callable(world.train)


# What works --------------------------------------------------------------------------------------


def test_an_edit_writes_a_file_named_after_its_subject(model: str, here: Path) -> None:
    result = run("edit", model, *FTM, "--set", "steps=100")
    assert "wrote ann-lee.safetensors" in result.stderr
    assert "1 of 1 fact" in result.stdout and "Oslo" in result.stdout
    patch = errata.Patch.load(here / "ann-lee.safetensors")
    assert [e.id for e in patch.edits] == [EDIT.id] and patch.meta["made"][0]["method"] == "ft-m"


def test_edit_ask_show_with_memit(model: str, here: Path) -> None:
    texts = lines(here / "texts.txt", TEXTS)
    edits = lines(here / "edits.jsonl", [*(e.to_json() for e in EDITS), ""])
    words = (
        "--edits",
        edits,
        "--data",
        texts,
        "--set",
        "layers=1,2",
        "--set",
        "contexts=2",
        "-o",
        "out/p.safetensors",
    )
    record = json.loads(run("edit", model, *words, "--seed", 3, "--json", "-q").stdout)
    assert record["file"] == "out/p.safetensors" and [e["prompt"] for e in record["edits"]] == [e.prompt for e in EDITS]
    shown = json.loads(run("show", "out/p.safetensors", "--json").stdout)
    assert shown["edits"] == [e.to_json() for e in EDITS]
    assert [part["rank"] for part in shown["parts"]] == [len(EDITS)] * 2
    assert shown["made"][0]["settings"]["layers"] == [1, 2] and shown["made"][0]["settings"]["seed"] == 3
    assert "Bob Ray lives in" in run("show", "out/p.safetensors").stdout
    answers = json.loads(
        run("ask", model, EDIT.prompt, "--patch", "out/p.safetensors", "--json", "--max-new-tokens", 5).stdout
    )
    lm = errata.load(model)
    with errata.Patch.load("out/p.safetensors").applied(lm) as edited:
        assert answers == [{"prompt": EDIT.prompt, "text": edited.generate([EDIT.prompt], 5)[0]}]


def test_a_prior_patch_is_gone_on_from(model: str, here: Path) -> None:
    run("edit", model, *FTM, "-o", "a.safetensors")
    run("edit", model, *FTM, "--prior", "a.safetensors", "-o", "b.safetensors", "--target", "Lima")
    assert [e.target_new for e in errata.Patch.load("b.safetensors").edits] == ["Oslo", "Lima"]


def test_ask_prints_texts_as_they_are(model: str) -> None:
    text = errata.load(model).generate(["[b]Ann Lee"], 4)[0]
    assert run("ask", model, "[b]Ann Lee", "--max-new-tokens", 4, "-q").stdout == f"[b]Ann Lee{text}\n"


def test_results_on_stdout_and_progress_on_stderr(model: str) -> None:
    result = run("ask", model, "Ann Lee")
    assert "loading" in result.stderr and "loading" not in result.stdout
    assert run("ask", model, "Ann Lee", "--quiet").stderr == ""


def test_a_step_shows_what_is_logged_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the line that says what is under way, which a terminal draws; warnings stay, on lines of their own."""
    shown: list[str] = []
    monkeypatch.setattr(Status, "update", lambda status, line: shown.append(str(line)))
    log = logging.getLogger("errata.model.texts")
    common.show_logs(quiet=False)
    log.info("before")
    with common.step("preparing wise", quiet=False):
        log.info("%d texts", 124)
        log.warning("texts are few")
    log.info("after")
    assert shown == ["preparing wise … 124 texts"]


def test_force_overwrites(model: str, here: Path) -> None:
    (here / "p.safetensors").write_text("old")
    run("edit", model, *FTM, "-o", "p.safetensors", "--force")
    assert errata.Patch.load("p.safetensors")
    assert [path.name for path in here.iterdir()] == ["p.safetensors"]


@pytest.mark.parametrize("setting", ["single", "batch"])
@pytest.mark.parametrize("mode", types.MODES)
def test_eval_writes_rows(model: str, here: Path, setting: str, mode: str) -> None:
    probe = {"kind": "neighborhood", "prompt": "Bob Ray was born in", "answers": ["Rome"]}
    cases = [{"id": str(i), "edits": [e.to_json()], "probes": [probe]} for i, e in enumerate(EDITS)]
    file = lines(here / "cases.jsonl", cases)
    words = ("--cases", file, "--method", "ft-m", "--set", "steps=3", "--setting", setting, "--mode", mode)
    result = run("eval", model, *words, "--limit", 2, "-o", "rows.jsonl")
    assert mode in result.stdout and "reliability" in result.stdout
    from errata.report.rows import from_jsonl

    rows = from_jsonl((here / "rows.jsonl").read_text())
    assert {(r.mode, r.setting, r.method, r.settings, r.after_edits) for r in rows} == {
        (mode, setting, "ft-m", "steps=3", 1 if setting == "single" else 2)
    }
    assert len([r for r in rows if r.kind == "edit"]) == 2
    summaries = json.loads(run("eval", model, *words, "--json", "-q").stdout)
    assert summaries[0]["kind"] == "edit" and summaries[0]["before"]["count"] == 3


def test_eval_by_the_rules_of_a_paper(model: str, here: Path) -> None:
    probe = {"kind": "neighborhood", "prompt": "Bob Ray was born in", "answers": ["Rome"], "rival": "Oslo"}
    reworded = {"kind": "paraphrase", "prompt": "Ann Lee comes from", "answers": ["Oslo"]}
    file = lines(here / "cases.jsonl", [{"id": "1", "edits": [EDITS[0].to_json()], "probes": [reworded, probe]}])
    words = ("--cases", file, "--method", "ft-m", "--set", "steps=3", "--protocol", "rome")
    told = run("eval", model, *words)
    assert all(name in told.stdout for name in ("ES", "PS", "NS", "S", "by the papers' names", "rome"))
    found = {its["name"]: its for its in json.loads(run("eval", model, *words, "--json", "-q").stdout)}
    assert found["ES"]["after"]["mean"] in (0.0, 100.0)
    assert "did you mean rome" in refused("eval", model, "--protocol", "roma")
    assert "asks nothing forced" in refused("eval", model, "--protocol", "wild", "--mode", "forced")


def test_a_patch_is_measured_on_its_own_edits_or_on_cases(model: str, here: Path) -> None:
    from errata.report.rows import from_jsonl

    edits = lines(here / "edits.jsonl", [e.to_json() for e in EDITS])
    run("edit", model, "--edits", edits, "--method", "ft-m", "--set", "steps=100", "-o", "p.safetensors", "-q")
    result = run("eval", model, "--patch", "p.safetensors", "-o", "own.jsonl")
    assert "reliability" in result.stdout and "generated" in result.stdout
    own = from_jsonl((here / "own.jsonl").read_text())
    assert [(row.kind, row.probe, row.case) for row in own] == [("edit", e.prompt, e.id) for e in EDITS]
    assert {(row.method, row.setting, row.data, row.after_edits) for row in own} == {
        ("ft-m", "patch", "its own edits", len(EDITS))
    }
    lm = errata.load(model)
    with errata.Patch.load("p.safetensors").applied(lm) as edited:
        texts = edited.generate([e.prompt for e in EDITS])
    assert [row.after for row in own] == [
        float(begins_with_answer(t, [e.target_new])) for t, e in zip(texts, EDITS, strict=True)
    ]
    probe = {"kind": "neighborhood", "prompt": "Bob Ray was born in", "answers": ["Rome"]}
    cases = lines(here / "cases.jsonl", [{"id": "1", "edits": [EDITS[0].to_json()], "probes": [probe]}])
    words = ("eval", model, "--patch", "p.safetensors", "--cases", cases, "--mode", "forced", "-q")
    summaries = json.loads(run(*words, "--json").stdout)
    assert [(line["kind"], line["metric"], line["mode"]) for line in summaries] == [
        ("edit", "accuracy", "forced"), ("neighborhood", "accuracy", "forced"), ("neighborhood", "agreement", "forced"),
    ]  # fmt: skip
    foreign = lines(here / "foreign.jsonl", [{"id": "1", "edits": [{**EDITS[0].to_json(), "target_new": "Lima"}]}])
    told = run("eval", model, "--patch", "p.safetensors", "--cases", foreign).stderr
    assert "holds the edit of 0 of the 1 cases" in " ".join(told.split()) and "about 1 case:" in told
    assert "holds the edit" not in result.stderr
    assert (
        json.loads(run("eval", model, "--patch", "p.safetensors", "--limit", 2, "--json", "-q").stdout)[0]["before"][
            "count"
        ]
        == 2
    )


def test_what_a_wrapper_does_not_support_is_a_dash(model: str, here: Path) -> None:
    run("edit", model, *ONE, "--method", "mello", "--set", "encoder=tfidf", "-o", "p.safetensors", "-q")
    table = run("eval", model, "--patch", "p.safetensors", "--mode", "forced", "-q").stdout
    (line,) = [line for line in table.splitlines() if "reliability" in line]
    assert line.replace("│", " ").split()[-1] == "-"


def test_a_patch_is_measured_as_it_is(model: str, here: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    errata.EMPTY.save(here / "empty.safetensors")
    measured = ("eval", model, "--patch", "empty.safetensors")
    for words in (("--method", "ft"), ("--set", "steps=1"), ("--setting", "single"), ("--data", "texts.txt")):
        assert f"--patch and {words[0]} were given" in refused(*measured, *words)
    assert "names no edits of its own" in refused(*measured, "-q")
    assert "--read goes with --cases" in refused(*measured, "--read", "strict=true")
    assert "there is no patch at none; give the path of a file" in refused("eval", model, "--patch", "none")
    run("edit", model, *FTM, "-o", "p.safetensors")
    other = saved("llama", tmp_path_factory.mktemp("other"))
    assert "this patch is of the model" in refused("eval", other, "--patch", "p.safetensors", "-q")


def test_of_a_model_of_the_world_the_worlds_probes_are_asked(model: str, here: Path) -> None:
    case = errata.cases("world", limit=3)[2]
    patch = errata.Patch(meta={"made": [{"method": "any", "edits": [case.edits[0].to_json()]}]})
    assert own_cases(errata.load(model), patch)[0].probes == ()
    folder = saved("gpt2", here / "of the world")
    (here / "of the world" / "recipe.json").write_text('{"persons": 600, "world_seed": 0}')
    (own,) = own_cases(errata.load(folder), patch)
    kinds = {probe.kind for probe in own.probes}
    assert {"paraphrase", "neighborhood"} <= kinds and own.edits == case.edits
    assert [p for p in own.probes if p.kind == "paraphrase"] == [p for p in case.probes if p.kind == "paraphrase"]


def test_a_judge_is_never_replaced(model: str) -> None:
    gone = ("--judge", "http://127.0.0.1:9/v1")
    assert "needs both" in refused("eval", model, *gone)
    assert "cannot be asked" in refused("eval", model, *gone, "--judge-model", "wise")
    assert "leave out --judge" in refused("eval", model, *gone, "--judge-model", "wise", "--protocol", "belief")


def test_methods_lists_each_and_its_settings() -> None:
    table = run("methods").stdout
    assert all(name in table for name in METHODS)
    settings = {s["name"]: s for s in json.loads(run("methods", "ft", "--json").stdout)}
    note = "ROME, appendix E.2; `num_steps` in released code"
    assert settings["steps"] == {"name": "steps", "type": "int", "default": 25, "note": note}
    assert "ROME, appendix E.2" in run("methods", "ft").stdout
    assert [m["name"] for m in json.loads(run("methods", "--json").stdout)] == list(METHODS)


def test_world_describes_the_bundled_world() -> None:
    summary = json.loads(run("world", "--json").stdout)
    assert summary["names"]["person"] == 600 and sum(r["facts"] for r in summary["relations"]) == summary["facts"]
    assert summary["relations"][0]["subject"] == "person" and summary["relations"][0]["object"] == "city"
    table = run("world").stdout
    assert summary["example"]["name"] in table and summary["relations"][0]["question"] in table


@pytest.fixture()
def one_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer of the world is learned once for all trainings of a test, which takes longer than they do."""
    real, made = world_train.make_tokenizer, list[Any]()

    def make(recipe: Any, world: Any) -> Any:
        if not made:
            made.append(real(recipe, world))
        return made[0]

    monkeypatch.setattr(world_train, "make_tokenizer", make)


SMALL = "--layers 2 --width 32 --heads 2 --persons 30 --vocab 400 --learn 2 --move 2 --follow 2 --rows 2".split()


def test_world_train_makes_a_model_of_another_world_and_architecture(here: Path) -> None:
    run("world", "train", "made", *SMALL, "--architecture", "llama", "--world-seed", "3", "-q")
    lm = errata.load("made")
    assert lm.model.config.model_type == "llama" and lm.sites.depth == 2
    names = make_world(30, 3).names["person"]
    assert lm.resources.texts is not None and any(name in next(iter(lm.resources.texts())) for name in names)
    drawn = errata.cases("made", limit=5)
    assert drawn == world_cases(make_world(30, 3), 5) and drawn != errata.cases("world", limit=5)
    rows = json.loads(run("eval", "made", "--method", "grace", "--limit", "1", "--json", "-q").stdout)
    assert rows  # its own world is the default


def test_world_train_refuses_a_checkpoint_of_another_recipe(here: Path, one_tokenizer: None) -> None:
    sizes = list(SMALL)
    run("world", "train", "made", *sizes, "-q")
    sizes[1] = "3"
    assert "another recipe (layers 2, not 3)" in refused("world", "train", "made", *sizes, "-q")
    before = Path("made/config.json").read_bytes()
    run("world", "train", "made", *sizes, "-q", "--force")
    assert Path("made/config.json").read_bytes() != before
    run("world", "train", "made", *sizes, "-q")  # by now it is its own
    assert {path.stat().st_mode & 0o777 for path in Path("made").iterdir()} == {0o644}
    assert sorted(path.name for path in Path("made").iterdir() if path.name.startswith((".", "training"))) == []


def test_world_train_writes_over_nothing_unasked(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def at_once(recipe: Any, world: Any) -> Any:
        raise AssertionError("nothing is computed yet")

    monkeypatch.setattr("errata.world.train.make_tokenizer", at_once)
    Path("other").mkdir()
    Path("other/config.json").write_text("mine")
    said = "other holds config.json, and no training that could go on; give another folder, or write over"
    assert said in refused("world", "train", "other", *SMALL)
    for content in (b"", b"not a checkpoint", b"PK\x03\x04"):
        Path("other/checkpoint.pt").write_bytes(content)
        assert "checkpoint.pt is no whole checkpoint of a training" in refused("world", "train", "other", *SMALL)
    torch.save({"step": 1, "recipe": [], "model": {}}, "other/checkpoint.pt")
    assert "another recipe" in refused("world", "train", "other", *SMALL)
    assert Path("other/config.json").read_text() == "mine"
    Path("linked").mkdir()
    Path("linked/model.safetensors").symlink_to("../other/config.json")
    assert "it is a symbolic link" in refused("world", "train", "linked", *SMALL, "--force")
    assert "other/config.json is a file" in refused("world", "train", "other/config.json", *SMALL)
    with held(Path("busy/training.lock"), "busy"):
        assert "busy is being written by process" in refused("world", "train", "busy", *SMALL, "-q")


def test_world_train_goes_on_where_it_was_interrupted(
    here: Path, one_tokenizer: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After stage 1, and while the model is being saved."""
    sizes, done = ["world", "train", "made", *SMALL, "-q"], list[int]()
    real = world_train.loss_of

    def loss_of(model: Any, recipe: Any, batch: Any, step: int) -> Any:
        done.append(step)
        if step == 3:
            raise KeyboardInterrupt
        return real(model, recipe, batch, step)

    def stop(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(world_train, "loss_of", loss_of)
        patched.setattr(world_train, "faster_precision", lambda model, recipe, batch: torch.float32)
        assert run(*sizes, code=130).stderr.endswith("interrupted\n") and done == [0, 1, 2, 3]
        assert [path.name for path in Path("made").iterdir()] == ["learned.pt"]
        with monkeypatch.context() as at_the_end:
            at_the_end.setattr(world_train, "loss_of", lambda *of: real(*of))
            at_the_end.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", stop)
            run(*sizes, code=130)
        assert sorted(path.name for path in Path("made").iterdir()) == ["checkpoint.pt", "learned.pt"]
        patched.setattr(world_train, "loss_of", stop)
        run(*sizes)
    assert errata.load("made").sites.depth == 2


# What does not -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--prompt", "x", "--subject", "Ann", "--target", "y"), "does not occur in the prompt"),
        (("--prompt", "Ann", "--subject", "Ann", "--target", " "), "target of the edit 'Ann' is empty"),
        (("--prompt", "Ann", "--subject", ""), "--target missing"),
        (("--edits", "e.jsonl", "--prompt", "x"), "--prompt and --edits were given"),
        (("--edits", "none.jsonl"), "there is no file none.jsonl"),
        ((*ONE, "--method", "memot"), "did you mean memit"),
        ((*FTM, "--set", "stepz=3"), "did you mean steps"),
        ((*FTM, "--set", "steps=many"), "steps is of type int; found str 'many'"),
        ((*FTM, "--set", "steps"), "--set wants name=value"),
        ((*FTM, "--set", "steps=1", "--set", "steps=2"), "given twice"),
        ((*FTM, "--set", "seed=1", "--seed", "2"), "the seed is given twice"),
        ((*FTM, "--data", "texts.txt"), "ft-m prepares nothing"),
        ((*ONE, "--data", "texts.txt"), "there is no file texts.txt"),
        ((*FTM, "--prior", "none.safetensors"), "there is no patch at none.safetensors"),
        ((*FTM, "--dtype", "int8", "-q"), "unknown dtype 'int8'"),
        ((*FTM, "--device", "nowhere", "-q"), "there is no device 'nowhere' here"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_words_are_answered_with_one_message(model: str, words: tuple[str, ...], message: str) -> None:
    assert message in refused("edit", model, *words)


def test_a_broken_line_is_named(model: str, here: Path) -> None:
    good = EDIT.to_json()
    file = lines(here / "edits.jsonl", [*[good] * 6, '{"prompt": "Ann', *[good] * 3])
    assert "edits.jsonl, line 7: not JSON" in refused("edit", model, "--edits", file)
    lines(file, [*[good] * 6, {**good, "subject": "Zed"}, *[good] * 3])
    assert "edits.jsonl, line 7: the subject 'Zed' does not occur" in refused("edit", model, "--edits", file)
    assert "holds no edit" in refused("edit", model, "--edits", lines(file, [""]))


def test_an_unknown_model_is_named() -> None:
    assert "there is no model './none'" in refused("ask", "./none", "Ann", "-q")


def test_a_patch_of_another_model_is_refused(model: str, here: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    run("edit", model, *FTM, "-o", "p.safetensors")
    other = saved("llama", tmp_path_factory.mktemp("other"))
    message = refused("ask", other, "Ann", "--patch", "p.safetensors", "-q")
    assert "this patch is of the model" in message and model in message and other in message
    assert "this patch is of the model" in refused("edit", other, *FTM, "--prior", "p.safetensors", "-q")


def test_a_truncated_patch_is_refused(model: str, here: Path) -> None:
    run("edit", model, *FTM, "-o", "p.safetensors")
    whole = (here / "p.safetensors").read_bytes()
    for cut in (0, 5, 200, len(whole) - 1):
        (here / "p.safetensors").write_bytes(whole[:cut])
        assert "is no whole patch" in refused("show", "p.safetensors")
        assert "is no whole patch" in refused("ask", model, "Ann", "--patch", "p.safetensors")


def test_an_existing_file_is_kept(model: str, here: Path) -> None:
    (here / "ann-lee.safetensors").write_text("mine")
    assert "add --force" in refused("edit", model, *FTM)
    assert "add --force" in refused("eval", model, "-o", "ann-lee.safetensors")
    assert "did you mean steps" in refused("edit", model, *FTM, "--set", "stepz=3")  # what was typed comes first
    assert "there is no patch" in refused("edit", model, *FTM, "--prior", "none.safetensors")


def test_a_place_that_cannot_be_written_is_named_before_the_work(model: str, here: Path) -> None:
    (here / "file").write_text("")
    assert "Not a directory" in refused("edit", model, *FTM, "-o", "file/p.safetensors")
    assert "is a folder" in refused("edit", model, *FTM, "-o", here)


def test_too_many_cases_are_counted(model: str) -> None:
    assert "the world has" in refused("eval", model, "--limit", 100_000)


def test_the_demo_wants_a_model_of_the_world(model: str) -> None:
    assert "knows no world" in refused("demo", "--model", model, "-q")


def test_a_wrong_usage_ends_with_2() -> None:
    assert "Traceback" not in run("edit", code=2).stderr
    assert "sideways" in run("eval", "world", "--mode", "sideways", code=2).stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [(Refused("not this one"), 3), (KeyboardInterrupt(), 130), (PermissionError(13, "no", "there"), 2)],
)
def test_exit_codes(error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(common, "load_model", fail)
    refused("ask", "world", "Ann", code=code)


# Edits that missed, and changes that rounding would lose -------------------------------------------


def test_strict_writes_nothing_unless_every_edit_took(model: str, here: Path) -> None:
    few = ("--set", "steps=1", "--set", "lr=1e-6")
    message = refused("edit", model, *FTM, *few, "--strict", "-q", code=3)
    assert "1 of 1 fact did not take" in message and "'Ann Lee was born in' -> 'Oslo'" in message
    assert list(here.iterdir()) == []
    told = run("edit", model, *FTM, *few, "-o", "weak.safetensors")
    assert "ft-m missed 1 of 1 edits: 'Ann Lee was born in' -> 'Oslo' (loss" in " ".join(told.stderr.split())
    assert "missed" in told.stdout and "0 of 1 fact" in told.stdout
    assert f"{EDIT.id} missed: loss" in run("show", "weak.safetensors").stdout
    run("edit", model, *FTM, "--set", "steps=100", "--strict")
    assert "missed" not in run("show", "ann-lee.safetensors").stdout


def test_the_table_has_plain_headings_and_both_losses(model: str, here: Path) -> None:
    texts = lines(here / "texts.txt", TEXTS)
    words = ("--prompt", "{} was born in", "--subject", "Ann Lee", "--target", "Oslo", "--data", texts, "-q")
    told = run("edit", model, *words, "--set", "contexts=0", "--method", "memit")
    heading = next(line for line in told.stdout.splitlines() if "prompt" in line)
    assert [cell.strip() for cell in heading.split("┃")[1:-1]] == [
        "prompt", "before", "after", "target", "search loss", "loss",
    ]  # fmt: skip
    (record,) = json.loads(run("edit", model, *words, "--set", "contexts=0", "--json", "--force").stdout)["edits"]
    assert {"loss", "met", "search_loss", "search_met", "took"} <= record.keys()
    assert "  - " in run("edit", model, *words[:6], "--method", "ice", "-o", "ice.safetensors").stdout


def test_where_each_edit_ended_and_why_is_shown(model: str, here: Path) -> None:
    weak = ("--set", "weights=ft-m steps=1 lr=1e-9", "--set", "rounds=0", "--set", "asked=1")
    words = ("--prompt", "{} was born in", "--subject", "Ann Lee", "--target", "Oslo", "--method", "assured", "-q")
    told = run("edit", model, *words, *weak, "--set", "memory=ft-m steps=100")
    line = f"{EDIT.id} in memory: answered in 1 of 1 phrasings"
    assert line in told.stdout and line in run("show", "ann-lee.safetensors").stdout
    cases = here / "cases.json"
    cases.write_text(json.dumps([case_record(case) for case in CASES]))
    again = run("edit", model, *words, *weak, "--set", "memory=ft-m steps=100", "--data", cases, "--json", "--force")
    (record,) = json.loads(again.stdout)["edits"]
    assert record["ended"] == "memory" and record["others"] > 0
    refused("edit", model, *words, *weak, "--set", "memory=ft-m steps=1 lr=1e-9", "--strict", "--force", code=3)


def test_a_method_that_is_trained_reads_cases_from_data(model: str, here: Path) -> None:
    cases = here / "cases.json"
    cases.write_text(json.dumps([case_record(case) for case in CASES]))
    quick = [word for name, value in method_class("mend").tags.quick.items() for word in ("--set", f"{name}={value}")]
    run("edit", model, *ONE, "--method", "mend", *quick, "--data", cases, "-o", "p.safetensors")
    assert [edit.id for edit in errata.Patch.load("p.safetensors").edits] == [EDIT.id]
    rows = run("eval", model, "--method", "mend", *quick, "--cases", cases, "--limit", 1, "--data", cases, "--json")
    assert any(row["kind"] == "edit" for row in json.loads(rows.stdout))
    texts = lines(here / "texts.txt", TEXTS)
    assert "texts.txt" in refused("edit", model, *ONE, "--method", "mend", "--data", texts)


def test_show_tells_what_rounding_would_leave(here: Path) -> None:
    lm = tiny_lm("llama", torch.bfloat16)
    errata.method("ft-m", steps=1, lr=1e-4).edit(lm, [EDIT]).save("p.safetensors")
    told = run("show", "p.safetensors").stdout
    assert "mlp.down_proj.weight runs as a side product: rounding to bfloat16 would leave" in told


# The demo ----------------------------------------------------------------------------------------


def test_the_demo_undoes_what_it_did(model: str, here: Path) -> None:
    lm = errata.load(model)
    lm.resources = Resources(texts=lambda: iter(TEXTS))
    shown: list[Any] = []
    done = demo.demo(lm, errata.cases("world", limit=2), here, shown.append)
    assert done.undone and done.digest_before != done.digest_edited
    assert errata.Patch.load(done.file).edits and len(shown) == 5


def test_the_digest_sees_one_changed_bit(model: str) -> None:
    lm = errata.load(model)
    before = demo.weights_digest(lm.model)
    weight = next(lm.model.parameters())
    with torch.no_grad():
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    assert demo.weights_digest(lm.model) != before
