"""The journal's commands: what they print and write, and what a mistake ends with."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import EDITS, TEXTS, quick, tiny_lm, tiny_model, tokenizer
from journals import BORN, new_database, patch_of
from test_cli import refused, run

from errata.journal.journal import Journal
from errata.patch.patch import Patch
from errata.types import Edit


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a tiny model."""
    folder = tmp_path_factory.mktemp("model")
    tiny_model("gpt2", torch.float32).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with patches of one, two and three edits."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ERRATA_AUTHOR", "Ann")
    monkeypatch.delenv("ERRATA_JOURNAL", raising=False)
    for n in (1, 2, 3):
        patch_of(BORN[:n]).save(f"p{n}.safetensors")
    return tmp_path


def loaded(*words: object) -> Any:
    return json.loads(run(*words, "--json").stdout)


def test_from_the_first_commit_to_the_last(here: Path) -> None:
    assert "journal is a journal of 0 commits; `errata commit PATCH" in run("init").stderr
    review = here / "review.json"
    review.write_text(json.dumps({"guards": [{"name": "locality", "passed": True}]}))
    first = run(
        "commit", "p1.safetensors", "-m", "it was wrong", "--score", "a=0.5", "--score", "b=1", "--review", review
    )
    assert "it was wrong" in first.stdout and "edits: 1 (+1)" in first.stdout and "scores: a=0.5 b=1" in first.stdout
    assert f"({BORN[0].id[:12]})" in first.stdout and "review: on record" in first.stdout
    second = loaded("commit", "p3.safetensors", "-m", "more", "--author", "Bob", "--onto", "HEAD")
    assert second["author"] == "Bob" and len(second["added"]) == 2
    log = loaded("log")
    assert [one["why"] for one in log] == ["more", "it was wrong"] and log[0]["names"] == ["main"]
    assert log[1]["review"] == {"guards": [{"name": "locality", "passed": True}]} and log[1]["author"] == "Ann"
    shown = run("log", "-n", 1, "--check").stdout
    assert "3 (+2)" in shown and "memit" in shown and "Bob" in shown and "it was wrong" not in shown
    assert "good is" in run("tag", "good", "HEAD~1").stderr
    assert loaded("tag") == {"good": log[1]["id"]} and "good " + log[1]["id"][:10] in run("tag").stdout
    assert "wrote out.safetensors" in run("checkout", "good", "-o", "out.safetensors").stderr
    assert (here / "out.safetensors").read_bytes() == (here / "p1.safetensors").read_bytes()
    run("checkout", "good")
    assert (here / f"{log[1]['id'][:10]}.safetensors").exists()
    assert "journal is a journal of 2 commits\n" in run("init", "journal").stderr


def test_a_commit_says_what_its_review_said(here: Path) -> None:
    run("init")
    review = here / "review.json"
    for n, (passed, word) in enumerate([(True, "passed"), (False, "refused")], start=1):
        review.write_text(json.dumps({"passed": passed}))
        done = run("commit", f"p{n}.safetensors", "-m", str(n), "--review", review)
        assert f"review: {word}" in done.stdout and ("refuses the patch" in done.stderr) is not passed
        assert f"review {word}" in " ".join(run("log", "-n", 1).stdout.split())


def test_a_review_of_another_patch_is_refused_without_force(here: Path) -> None:
    run("init")
    review = here / "review.json"
    review.write_text(json.dumps({"passed": True, "patch": Patch.load("p2.safetensors").digest}))
    asked = ("commit", "p1.safetensors", "-m", "1", "--review", review)
    assert "the review is of the patch" in run(*asked, code=3).stderr and loaded("log") == []
    assert "review: passed, of another patch" in run(*asked, "--force").stdout
    assert "of another patch" in " ".join(run("log").stdout.split())


def test_the_journal_is_named_by_an_option_or_the_environment(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("init", "elsewhere/deep")
    run("commit", "p1.safetensors", "-m", "1", "--journal", "elsewhere/deep")
    assert "there is no journal in journal; `errata init journal` makes one" in refused("log")
    monkeypatch.setenv("ERRATA_JOURNAL", "elsewhere/deep")
    assert len(loaded("log")) == 1


def test_a_journal_in_postgres(postgres: str) -> None:
    run("init", "shared", "--database", new_database(postgres))
    run("commit", "p1.safetensors", "-m", "1", "--journal", "shared")
    assert len(loaded("log", "--journal", "shared")) == 1 and not Path("shared/journal.sqlite").exists()


def test_branches() -> None:
    run("init")
    run("commit", "p1.safetensors", "-m", "1")
    assert "the branch side is at" in run("branch", "side").stderr
    assert "and HEAD is on it" in run("branch", "side", "--switch").stderr
    run("commit", "p2.safetensors", "-m", "2")
    run("commit", "p3.safetensors", "-m", "3", "--branch", "main")
    lines = run("branch").stdout.splitlines()
    assert [line[:6] for line in lines] == ["  main", "* side"]
    assert loaded("branch")["head"] == "side"
    assert "there is a branch side" in refused("branch", "side")
    run("branch", "side", "main", "--force")
    assert len(loaded("log")) == 2 and loaded("log")[0]["why"] == "3"


def test_what_differs() -> None:
    run("init")
    run("commit", "p2.safetensors", "-m", "1")
    patch_of([BORN[0], Edit("{} was born in", "Bob Ray", "Rome"), BORN[3]]).save("other.safetensors")
    run("commit", "other.safetensors", "-m", "2", "--quiet")
    shown = run("diff").stdout
    assert "+ Dora Finn was born in -> Oslo" in shown and "~ Bob Ray was born in -> Rome" in shown
    assert "was Oslo" in shown and "c_proj.weight" in shown and "3" in shown
    assert "- Dora Finn" in run("diff", "HEAD", "HEAD~1").stdout
    assert "the same edits" in run("diff", "HEAD", "HEAD").stdout
    assert loaded("diff")["weights"][0]["rank"] == 3
    assert "--cases are asked of a model; name it with --model" in refused("diff", "--cases", "world")


def test_an_edit_is_taken_out(model: str) -> None:
    run("init")
    lm, method = tiny_lm("gpt2"), quick("grace")
    state = method.prepare(lm, TEXTS)
    method.edit(lm, EDITS, state).save("three.safetensors")
    run("commit", "three.safetensors", "-m", "three")
    shown = run("revert", EDITS[0].id[:7], "-m", "not so").stdout
    assert "not so" in shown and "exact: entry dropped" in shown and "edits: 2 (+0 -1)" in shown
    shown = run("diff", "--model", model, "--quiet").stdout
    assert "grace at transformer.h.2.mlp.c_proj: 3 entries before" in shown and "answers that differ" in shown
    assert "unknown edit" in refused("revert", EDITS[0].id)


def test_weights_need_the_model() -> None:
    run("init")
    run("commit", "p1.safetensors", "-m", "1")
    run("commit", "p3.safetensors", "-m", "3")
    assert "give the model (--model)" in refused("revert", BORN[1].id, code=3)


def test_a_commit_tells_what_contradicts_what(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("errata.conflicts.rewording.same_fact", lambda lm, pairs, patch: [True for _ in pairs])
    run("init")
    lm, method = tiny_lm("gpt2"), quick("grace")
    state = method.prepare(lm, TEXTS)
    first = method.edit(lm, EDITS[:1], state)
    first.save("first.safetensors")
    run("commit", "first.safetensors", "-m", "first")
    reworded = Edit("The birthplace of {} is", EDITS[0].subject, "Lima")
    method.edit(lm, [reworded], state, first).save("second.safetensors")
    run("branch", "texts", "--switch")
    assert "other words" not in run("commit", "second.safetensors", "-m", "texts alone").stderr
    run("branch", "asked", "HEAD~1", "--switch")
    result = run("commit", "second.safetensors", "-m", "asked", "--model", model, "--json")
    (told,) = json.loads(result.stdout)["conflicts"]
    assert (told["kind"], told["newer"]["target_new"]) == ("other words", "Lima")
    said = " ".join(result.stderr.split())
    assert "other words: 'The birthplace of Ann Lee is' -> 'Lima'" in said and f"errata revert {EDITS[0].id}" in said


def test_two_journals_are_merged(here: Path) -> None:
    run("init", "mine")
    run("commit", "p1.safetensors", "-m", "1", "--journal", "mine")
    run("init", "theirs")
    assert "ours goes on to theirs" in run("merge", "mine", "--journal", "theirs").stdout
    run("commit", "p2.safetensors", "-m", "2", "--journal", "mine")
    patch_of(BORN[4:5], patch_of(BORN[:1])).save("p5.safetensors")
    run("commit", "p5.safetensors", "-m", "5", "--journal", "theirs")
    shown = run("merge", "theirs", "--journal", "mine", "--author", "Cy").stdout
    assert "way: weights added: ours + (theirs - base)" in shown and "merge of theirs HEAD" in shown
    assert len(Patch.load(run_checkout("mine")).edits) == 3
    assert loaded("merge", "theirs", "--journal", "mine")["way"].startswith("nothing to do")


def run_checkout(journal: str) -> Path:
    run("checkout", "-o", "out.safetensors", "--force", "--journal", journal)
    return Path("out.safetensors")


@pytest.fixture
def clashing() -> Journal:
    run("init")
    run("commit", "p1.safetensors", "-m", "1")
    run("branch", "side")
    run("commit", "p2.safetensors", "-m", "ours")
    patch_of([Edit("{} was born in", "Bob Ray", "Rome\x1b[2J")], patch_of(BORN[:1])).save("x.safetensors")
    run("commit", "x.safetensors", "-m", "theirs", "--branch", "side")
    return Journal.open("journal")


def test_clashes_are_shown_side_by_side_and_decided_in_a_file(clashing: Journal) -> None:
    result = run("merge", "side", code=3)
    assert "edits that clash" in result.stdout and "other target" in result.stdout and "\x1b" not in result.stdout
    assert "Bob Ray was born in -> Oslo" in result.stdout and "Rome\\x1b[2J" in result.stdout
    assert "1 pair of edits clash" in result.stderr and "\x1b" not in result.stderr
    result = run("merge", "side", "--conflicts", "c.json", code=3)
    assert "wrote c.json" in result.stderr
    (clash,) = json.loads(Path("c.json").read_text())
    assert clash["keep"] is None
    assert "c.json exists; add --force" in refused("merge", "side", "--conflicts", "c.json")
    Path("c.json").write_text(json.dumps([{**clash, "keep": "both"}]))
    shown = run("merge", "side", "--resolutions", "c.json").stdout
    assert "edits that clashed" in shown and "both" in shown
    assert len(clashing.edits()) == 3
    assert "\x1b" not in run("diff", "HEAD~2", "HEAD").stdout + run("log").stdout


def test_clashes_as_json(clashing: Journal) -> None:
    result = run("merge", "side", "--json", code=3)
    assert json.loads(result.stdout)[0]["kind"] == "other target" and "\x1b" not in result.stdout
    assert len(clashing.log()) == 2
    merged = loaded("merge", "side", "--ours")
    assert merged["way"].startswith("ours as it is") and merged["clashes"][0]["keep"] == "ours"
    assert merged["commit"]["id"] == clashing.find().id


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["commit", "p1.safetensors", "-m", "x", "--score", "a"], "--score wants name=value"),
        (["commit", "p1.safetensors", "-m", "x", "--score", "a=b"], "--score a wants a number, found 'b'"),
        (["commit", "p1.safetensors", "-m", "x", "--score", "a=nan"], "the score 'a' is a finite number"),
        (["commit", "p1.safetensors", "-m", " "], "the reason of a commit is a text that says something"),
        (["commit", "p9.safetensors", "-m", "x"], "there is no patch at p9.safetensors"),
        (["commit", "p1.safetensors", "-m", "x", "--review", "p1.safetensors"], "p1.safetensors"),
        (["commit", "p1.safetensors", "-m", "x", "--review", "list.json"], "list.json holds a list; --review wants an"),
        (["commit", "p1.safetensors", "-m", "x", "--branch", "nowhere"], "there is no branch 'nowhere'"),
        (["log", "nowhere"], "unknown revision 'nowhere'"),
        (["checkout", "HEAD", "-o", "p1.safetensors"], "p1.safetensors exists; add --force"),
        (["tag", "a b"], "a tag is named by up to 100"),
        (["branch", "side", "--switch", "nowhere"], "unknown revision 'nowhere'"),
        (["merge", "side", "--ours", "--newest"], "--ours and --newest were given"),
        (["merge", "side", "--again"], "--again makes edits, which takes the model"),
        (["merge", "side", "--resolutions", "object.json"], "object.json holds a dict; --resolutions wants a list"),
        (["init", "journal", "--database", "mysql://x/y"], "postgresql://USER@HOST/NAME"),
        (["init", "p1.safetensors"], "cannot make a journal in p1.safetensors"),
    ],
)
def test_mistakes(words: list[str], said: str) -> None:
    Path("list.json").write_text("[]")
    Path("object.json").write_text("{}")
    run("init")
    run("commit", "p1.safetensors", "-m", "1")
    assert said in refused(*words)


def test_damage_is_listed() -> None:
    run("init")
    run("commit", "p1.safetensors", "-m", "1")
    (blob,) = Path("journal/patches").iterdir()
    blob.write_bytes(b"x")
    result = run("log", "--check", code=3)
    assert "1 commits are damaged" in result.stderr and "is damaged: its digest is" in result.stderr
    assert "is damaged" in refused("checkout", "HEAD")
