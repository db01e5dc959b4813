"""``errata chat``: turns, patches on and off, commands, interruptions; on a terminal and piped in."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import EDIT, EDITS, quick, same_weights, tiny_lm, weights
from test_chat import chat as chat_lm
from test_cli import ONE, run, saved
from typer.testing import CliRunner

import errata
from errata.cli import app
from errata.cli.chat import COMMANDS, chat
from errata.cli.patches import joined_patch
from errata.errors import BadInput, UnknownName
from errata.model.hf import HFLM
from errata.model.turns import Turns
from errata.patch.delta import Delta
from errata.patch.patch import Patch


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a tiny model."""
    return saved("gpt2", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def patch() -> Patch:
    """A patch of the tiny model that changes what it says."""
    return errata.method("ft-m", steps=10, lr=3e-2).edit(tiny_lm("gpt2"), [EDIT])


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


def piped(text: str | bytes, *words: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, ["chat", *map(str, words)], input=text)
    shown = f"{result.stdout}\n{result.stderr}"
    assert result.exception is None or isinstance(result.exception, SystemExit), shown
    assert result.exit_code == code, shown
    return result


def line_of(text: str) -> str:
    """An answer in plain text, as a talk has it."""
    return text.lstrip().partition("\n")[0]


# The talk ----------------------------------------------------------------------------------------


def test_in_a_chat_turns_stand_in_the_template() -> None:
    lm, shown = chat_lm(), list[str]()
    records = chat(lm, ["Who is it?", "", "Where?"], max_new_tokens=6, show=shown.append)
    first, second = [record["assistant"] for record in records]
    assert first == lm.generate(["Who is it?"], 6)[0].lstrip()
    assert second == lm.behind([("Who is it?", first.strip())]).generate(["Where?"], 6)[0].lstrip()
    assert "".join(shown) == f"{first}\n{second}\n" and len(shown) > 4
    assert [record["user"] for record in records] == ["Who is it?", "Where?"]


def test_in_plain_text_the_prompt_goes_on_from_all_that_was_said() -> None:
    lm = tiny_lm("gpt2")
    one, two = chat(lm, ["Ann Lee was born in", "Bob Ray"], max_new_tokens=5)
    assert one["assistant"] == line_of(lm.generate(["Ann Lee was born in"], 5)[0])
    before = f"Ann Lee was born in {one['assistant'].strip()}\nBob Ray"
    assert two["assistant"] == line_of(lm.generate([before], 5)[0])


def test_in_plain_text_an_answer_ends_with_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("gpt2")
    monkeypatch.setattr(lm, "stream", lambda *args, **how: iter(["\n", " Ro", "me\nIt is", " old"]))
    assert chat(lm, ["Where?"])[0]["assistant"] == "Rome"


def test_the_oldest_turns_are_left_out_where_they_no_longer_fit() -> None:
    lm, notices = chat_lm(), list[str]()
    long = "Ann Lee was born in Rome. " * 6
    turns = Turns().then(long, "a").then(long, "b").then("Bob", "c")
    for room in (8, 10**6):
        view, prompt, left_out = turns.asked(lm, "Where?", room)
        limit = lm.tokens.limit or 0
        assert prompt == "Where?" and 0 < left_out < 3
        assert view.tokens.count(prompt) + min(room, limit // 4) <= limit
        behind = lm.behind(turns.said[left_out - 1 :])
        assert behind.tokens.count(prompt) + min(room, limit // 4) > limit  # one more would be too many
    chat(lm, [long, long, long, "Where?"], max_new_tokens=4, notice=notices.append)
    assert any("no longer fit the model" in notice for notice in notices)


def test_draws_are_those_of_ask_turn_by_turn() -> None:
    lm = tiny_lm("gpt2")
    how: Any = {"temperature": 1.5, "seed": 4}
    lines = ["Rome", "/reset", "Rome", "/reset", "Oslo"]
    said = [record["assistant"] for record in chat(lm, lines, max_new_tokens=8, **how)]
    assert said == [line_of(text) for text in lm.generate(["Rome", "Rome", "Oslo"], 8, **how)]
    assert said[0] != said[1]


# Commands ----------------------------------------------------------------------------------------


def test_the_patch_is_switched_on_and_off(patch: Patch) -> None:
    lm = tiny_lm("gpt2")
    before = weights(lm.model)
    lines = [EDIT.prompt, "/patch off", "/again", "/patch on", "/again"]
    one, two, three = chat(lm, lines, patch, 6)
    with patch.applied(lm) as edited:
        assert one["assistant"] == line_of(edited.generate([EDIT.prompt], 6)[0])
    assert two["assistant"] == line_of(lm.generate([EDIT.prompt], 6)[0]) != one["assistant"]
    assert [record["patch"] for record in (one, two, three)] == [True, False, True]
    assert three["assistant"] == one["assistant"] and same_weights(lm.model, before)


def test_turns_are_forgotten() -> None:
    lm, notices = tiny_lm("gpt2"), list[str]()
    fresh = line_of(lm.generate(["Rome"], 5)[0])
    records = chat(lm, ["Oslo", "/undo", "Rome", "/reset", "Rome"], max_new_tokens=5, notice=notices.append)
    assert [record["assistant"] for record in records[1:]] == [fresh, fresh]
    assert notices == ["the last turn is forgotten; 0 left", "all turns are forgotten"]
    assert len(chat(lm, ["Rome", "/quit", "Oslo"], max_new_tokens=2)) == 1


def test_a_line_may_begin_with_a_slash() -> None:
    assert chat(tiny_lm("gpt2"), ["//etc is"], max_new_tokens=2)[0]["user"] == "/etc is"


@pytest.mark.parametrize(
    ("line", "error", "message"),
    [
        ("/patch on", BadInput, "there is no patch to switch; give one with --patch"),
        ("/again", BadInput, "nothing was asked yet"),
        ("/undo", BadInput, "nothing was asked yet"),
        ("/rest", UnknownName, "unknown command '/rest'; did you mean /reset"),
        ("a\udcff", BadInput, "half a character"),
    ],
)
def test_what_cannot_be_done_is_said_and_a_talk_on_a_terminal_goes_on(line: str, error: Any, message: str) -> None:
    lm, notices = tiny_lm("gpt2"), list[str]()
    with pytest.raises(error, match=message):
        chat(lm, [line])
    assert len(chat(lm, [line, "Rome"], max_new_tokens=2, notice=notices.append, interactive=True)) == 1
    assert message in notices[0]


def test_help_names_every_command() -> None:
    notices: list[str] = []
    chat(tiny_lm("gpt2"), ["/help"], notice=notices.append)
    assert [notice.split("  ")[0].strip() for notice in notices] == list(COMMANDS)


# Ctrl-C ------------------------------------------------------------------------------------------


def test_ctrl_c_ends_an_answer_and_takes_the_patch_off(patch: Patch) -> None:
    lm, shown = tiny_lm("gpt2"), list[str]()
    before = weights(lm.model)

    def show(piece: str) -> None:
        shown.append(piece)
        if len(shown) == 3:
            raise KeyboardInterrupt

    records = chat(lm, ["Rome", "Oslo"], patch, 8, show=show, interactive=True)
    assert records[0]["interrupted"] and records[0]["assistant"] == "".join(shown[:3])
    assert "interrupted" not in records[1]
    assert same_weights(lm.model, before) and lm.generate(["a"], 1)
    with pytest.raises(KeyboardInterrupt):
        shown.clear()
        chat(lm, ["Rome", "Oslo"], patch, 8, show=show)
    assert same_weights(lm.model, before)


def test_what_was_interrupted_before_its_first_word_is_no_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("gpt2")
    plain = line_of(lm.generate(["Rome"], 4)[0])
    stream, asked = lm.stream, list[str]()

    def interrupted_once(prompt: str, *args: Any, **how: Any) -> Iterator[str]:
        asked.append(prompt)
        if len(asked) == 1:
            raise KeyboardInterrupt
        yield from stream(prompt, *args, **how)

    monkeypatch.setattr(lm, "stream", interrupted_once)
    assert chat(lm, ["Oslo", "Rome"], max_new_tokens=4, interactive=True)[1]["assistant"] == plain


# Patches -----------------------------------------------------------------------------------------


def test_several_patches_are_joined_in_order(patch: Patch) -> None:
    lm = tiny_lm("gpt2")
    other = errata.method("ft-m", steps=2).edit(lm, EDITS[1:2])
    joined = joined_patch({Path("a"): patch, Path("b"): other}, lm)
    assert joined == patch + other and joined_patch({}, lm) is None
    memories = [replace(one, memory={"x": torch.tensor([float(i)])}) for i, one in enumerate((patch, other))]
    assert joined_patch(dict(zip("ab", memories, strict=True)), lm) == joined  # type: ignore[arg-type]


def test_a_patch_that_does_not_fit_is_named_by_its_file(patch: Patch) -> None:
    lm = tiny_lm("gpt2")
    wrong = Patch((Delta({"nowhere.weight": torch.ones(2, 2)}),))
    other = errata.method("ft-m", steps=1).edit(tiny_lm("llama"), [EDIT])
    for bad in (wrong, other):
        with pytest.raises(BadInput, match=r"^second\.st: "):
            joined_patch({Path("first.st"): patch, Path("second.st"): bad}, lm)


def test_wrappers_speak_whole_and_that_is_said() -> None:
    lm, notices = tiny_lm("gpt2"), list[str]()
    for name, said in (("mello", 1), ("rag", 0), ("grace", 0)):
        made = quick(name)
        patch = made.edit(lm, EDITS, made.prepare(lm, None) if made.needs_prepare else None)
        records = chat(lm, [EDIT.prompt, "Rome"], patch, 4, notice=notices.append)
        with patch.applied(lm) as edited:
            assert records[0]["assistant"] == line_of(edited.generate([EDIT.prompt], 4)[0])
        assert sum("answers come whole" in notice for notice in notices) == said
        notices.clear()


# The command -------------------------------------------------------------------------------------


def test_what_is_piped_in_is_asked_line_by_line(model: str) -> None:
    lm: HFLM = errata.load(model)
    result = piped("Ann Lee was born in\n\nBob Ray\n", model, "--max-new-tokens", 4)
    said = [record["assistant"] for record in chat(lm, ["Ann Lee was born in", "Bob Ray"], max_new_tokens=4)]
    assert result.stdout == "".join(f"{errata_printed(text)}\n" for text in said)
    assert "asked in plain text" in result.stderr
    assert piped("", model, "--quiet").stdout == ""


def errata_printed(text: str) -> str:
    from errata.printable import printable

    return printable(text, keep="\n\t")


def test_patches_and_json(model: str, here: Path) -> None:
    for name, words in (("a", ONE), ("b", ("--prompt", "{} lives in", "--subject", "Bob Ray", "--target", "Lima"))):
        run("edit", model, *words, "--method", "ft-m", "-o", f"{name}.st")
    both = ("--patch", "a.st", "--patch", "b.st")
    said = json.loads(
        piped(f"{EDIT.prompt}\n/patch off\n/again\n", model, *both, "--json", "--max-new-tokens", 4).stdout
    )
    assert [record["patch"] for record in said] == [True, False]
    (asked,) = json.loads(run("ask", model, EDIT.prompt, *both, "--json", "--max-new-tokens", 4).stdout)
    assert said[0]["assistant"] == line_of(asked["text"])
    joined = Patch.load("a.st") + Patch.load("b.st")
    with joined.applied(errata.load(model)) as edited:
        assert asked["text"] == edited.generate([EDIT.prompt], 4)[0]
    assert "given twice" in run("ask", model, "x", "--patch", "a.st", "--patch", "./a.st", code=2).stderr
    assert "a.st: " not in piped("x\n", model, "--patch", "a.st", "--max-new-tokens", 1).stderr


def test_a_terminal_is_not_steered(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HFLM, "stream", lambda *args, **how: iter(["a\x1b[2J", "\x07b"]))
    assert piped("Rome\n", model).stdout == "a\\x1b[2J\\x07b\n"


def test_what_is_no_text_is_refused(model: str) -> None:
    result = piped(b"Rome \xff\n", model, code=2)
    assert "not UTF-8" in result.stderr or "half a character" in result.stderr
    assert "top_p" in piped("Rome\n", model, "--top-p", 0.5, code=2).stderr
