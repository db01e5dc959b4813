"""What comes from models, patches, data sets and servers is shown, and steers nothing: terminal, Markdown, HTML."""

import io
import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from conftest import EDIT, tiny_lm
from markdown_it import MarkdownIt
from test_cli import refused, run, saved
from typer.testing import CliRunner

import errata
from errata.cli import ask, common, edited, terminal
from errata.errors import BadInput
from errata.printable import printable, shown
from errata.report.html import page
from errata.report.markdown import markdown
from errata.report.pictures import curves, svg
from errata.report.tables import published_table, table
from errata.types import Edit, Row

EVIL = "\x1b[2J\x1b]0;title\x07 \x9b31m\x7f \u202eright\u2066 \r\nerrata: all is well\u2028 \ud800"
STEERS = ("\x1b", "\x07", "\x9b", "\x7f", "\u202e", "\u2066", "\r", "\u2028", "\ud800")
MARKED = "| `code` <script>alert(1)</script> [go](javascript:alert(1)) ![p](x:y) $\\frac$ [bold]b[/bold] *b* &lt;"


def is_shown(text: str) -> bool:
    """Whether the text holds nothing that steers."""
    return not any(sign in text for sign in STEERS)


def test_what_steers_is_written_out() -> None:
    assert printable("\x1b[2J\x00\t\n\x9b\u202e\u2028\ud800") == r"\x1b[2J\x00\t\n\x9b\u202e\u2028\ud800"
    assert printable("a\nb\x1b", keep="\n") == "a\nb\\x1b"
    usual = "Zoë, 東京, مرحبا, שלום, 👩‍👩‍👧, n̈, \\n"
    assert printable(usual) is usual or printable(usual) == usual
    assert is_shown(printable(EVIL)) and printable(printable(EVIL)) == printable(EVIL)


def test_a_value_in_a_message_is_short() -> None:
    assert shown("Ann") == "'Ann'" and shown(7) == "7"
    assert shown("\x1b" * 200) == "'" + "\\x1b" * 80 + "'…"
    assert len(shown(["a" * 200] * 9)) == 81


# The terminal ------------------------------------------------------------------------------------


def test_consoles_and_tables_show_what_they_print(capsys: pytest.CaptureFixture[str]) -> None:
    made = common.make_table(EVIL, (EVIL, "b"), [(EVIL, edited.coloured(EVIL, True)), (None, 3)])
    common.stdout().print(made)
    common.stdout().print(EVIL)
    common.say(EVIL)
    with common.step(EVIL, quiet=False):
        pass
    list(common.track([1], EVIL, quiet=False))
    told = capsys.readouterr()
    assert is_shown(told.out.replace("\n", "")) and is_shown(told.err)
    assert "\\x1b[2J" in told.out and "\\x1b[2J" in told.err
    assert not any(line.startswith("errata: ") for line in told.err.splitlines())


def test_a_terminal_is_steered_by_rich_alone() -> None:
    """With colours on, the only escapes are rich's own, of the looks of a text."""
    file = io.StringIO()
    console = terminal._Console(file=file, force_terminal=True, width=60, color_system="standard")
    console.print(common.make_table("t", ("a",), [(edited.coloured("\x1b[2Jx", True),)]))
    assert "\x1b[32m\\x1b[2Jx" in file.getvalue() and "\x1b[2J" not in file.getvalue()


def test_a_log_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    common.show_logs(quiet=False)
    logging.getLogger("errata.methods").warning("missed %s", EVIL[:-1])  # pytest's workers cannot send half a letter
    logging.getLogger("errata.methods").warning("x" * 10**6)
    told = capsys.readouterr().err
    assert is_shown(told) and "\\x1b[2J" in told and len(told) < 6000
    assert not any(line.strip().startswith("errata: all") for line in told.splitlines())
    logging.getLogger("errata").handlers = []


def test_an_error_is_one_line_of_bounded_length(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise BadInput(EVIL + "x" * 10**6)

    monkeypatch.setattr(common, "load_model", fail)
    told = refused("ask", "world", "Ann")
    assert is_shown(told) and "\\x1b[2J" in told and len(told) < 5000


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
def test_json_stays_json(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    value = {"text": EVIL + "é 東 👍", EVIL: ["\n"]}
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding, newline=""))
    common.print_json(value)
    sys.stdout.flush()
    text = raw.getvalue().decode(encoding)
    assert json.loads(text) == value and is_shown(text)
    assert ("東" in text) == (encoding == "utf-8")


@pytest.fixture
def patch_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A patch whose every text is hostile, as a stranger may send one."""
    monkeypatch.chdir(tmp_path)
    evil = EVIL[:30] + EVIL[30:].replace("\ud800", "")
    made = errata.method("ft-m", steps=1).edit(tiny_lm("gpt2"), [Edit(f"{evil} Ann", "Ann", evil, id=evil)])
    meta = json.loads(json.dumps(made.meta))
    meta["model"]["name"] = evil
    meta["made"][0] |= {"method": evil, "time": evil, "resolved": {evil: evil}, "rounded": {evil: 0.5}}
    meta["made"][0]["outcomes"] = {evil: {"loss": 9.0, "met": False}}
    return errata.Patch(made.parts, made.memory, meta).save(tmp_path / "evil.safetensors")


def test_a_strangers_patch_is_shown(patch_file: Path) -> None:
    told = run("show", patch_file).stdout
    assert is_shown(told) and "\\x1b[2J" in told
    assert not any(line.startswith("errata: all") for line in told.splitlines())
    assert is_shown(run("show", patch_file, "--json").stdout)


def test_what_a_model_says_keeps_its_lines_and_steers_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = saved("gpt2", tmp_path / "model")
    monkeypatch.setattr(ask, "ask", lambda *_: [f" one\n\ttwo {EVIL}"])
    told = run("ask", model, "Ann", "-q").stdout
    assert told.startswith("Ann one\n") and is_shown(told) and "\\x1b[2J" in told


# Reports -----------------------------------------------------------------------------------------

TEXT = EVIL + MARKED
ROWS = [
    Row(
        model=TEXT, method=f"m{TEXT}", settings=TEXT, data=TEXT, setting="sequential", case="a", kind="edit",
        metric="accuracy", before=0.0, after=1.0, after_edits=n, error=TEXT if n == 2 else None,
    )
    for n in (1, 2)
]  # fmt: skip
ROWS += [replace(row, kind="cost", metric="seconds", error=None) for row in ROWS]  # a sequence with two checkpoints


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def tags(text: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = Tags()
    parser.feed(text)
    return parser.found


def test_html_has_no_script_but_its_own_and_no_link_to_elsewhere() -> None:
    text = page(ROWS, title=TEXT, note=TEXT)
    assert is_shown(text) and "&lt;script&gt;" in text and "\\x1b[2J" in text
    for tag, attributes in tags(text):
        assert tag not in ("img", "iframe", "object", "embed")
        assert (attributes.get("href") or "#").startswith("#")
        assert not any(name.startswith("on") for name in attributes)
    assert [tag for tag, _ in tags(text)].count("script") == text.count("<script") == 1


def test_markdown_has_no_tag_no_link_and_whole_tables() -> None:
    text = markdown(ROWS, title=TEXT, note=TEXT, picture="a (b) <c>.svg")
    assert is_shown(text) and "\\x1b[2J" in text.replace("\\\\", "\\")
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(text)
    inside = [child for token in tokens for child in token.children or ()]
    every = {token.type for token in (*tokens, *inside)}
    assert "html_block" not in every and "html_inline" not in every and "code_inline" not in every
    assert "link_open" not in every and [t.attrs["src"] for t in inside if t.type == "image"] == [
        "a%20%28b%29%20%3Cc%3E.svg"
    ]
    widths, width = set[int](), 0
    for token in tokens:
        width = 0 if token.type == "tr_open" else width + (token.type in ("th_open", "td_open"))
        if token.type == "tr_close":
            widths.add(width)
    assert widths and min(widths) > 1 and text.count("| --- |") >= 1
    assert printable(MARKED) in "".join(child.content for child in inside)


def test_pictures_take_names_as_they_are(tmp_path: Path) -> None:
    names = ("東 👍", "long " * 200, "x" * 1000, "$\\frac$", "$x$", "_hidden", "\x1b\x00", "a -- b --> <b>")
    rows = [replace(row, method=name, model="$\\frac$") for row in ROWS for name in names]
    assert tags(svg(rows))[0][0] == "svg" and "b" not in {tag for tag, _ in tags(svg(rows))}
    curves(rows, tmp_path / "p.png")


def test_tables_take_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    Console(width=2000).print(table(ROWS, ("model", "method")), published_table(ROWS))  # a user's own, with markup on
    told = capsys.readouterr().out
    assert is_shown(told) and "[bold]b[/bold]" in told


# Encodings, pipes --------------------------------------------------------------------------------


def errata_command(*words: str, **environment: str) -> "subprocess.CompletedProcess[bytes]":
    env = {**os.environ, "PYTHONPATH": str(Path(errata.__file__).parents[1]), **environment}
    return subprocess.run([sys.executable, "-m", "errata", *words], capture_output=True, env=env)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_output_has_the_encoding_of_the_terminal(encoding: str) -> None:
    done = errata_command("methods", "memit", PYTHONIOENCODING=encoding)
    assert done.returncode == 0 and done.stderr == b"" and rb"\u03bb" in done.stdout


def test_words_that_are_no_text_are_shown(tmp_path: Path) -> None:
    done = errata_command("report", os.fsdecode(b"no\xff\x1bfile"))
    assert (done.returncode, done.stderr.split(b";")[0]) == (2, rb"errata: there is no file no\udcff\x1bfile")


def test_a_reader_that_goes_away_is_no_error() -> None:
    env = {**os.environ, "PYTHONPATH": str(Path(errata.__file__).parents[1])}
    reader, writer = os.pipe()
    os.close(reader)
    for words in (["world"], ["world", "--json"], ["--help"]):
        done = subprocess.run([sys.executable, "-m", "errata", *words], stdout=writer, stderr=subprocess.PIPE, env=env)
        assert done.returncode == 1 and done.stderr == b""
    os.close(writer)


def test_the_version_is_told() -> None:
    assert run("--version").stdout.startswith("errata 0.")


def test_an_interruption_while_importing_is_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from errata.__main__ import main

    class Interrupted:
        def __getattr__(self, name: str) -> None:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "errata.cli", Interrupted())
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 130 and capsys.readouterr().err == "errata: interrupted\n"


def test_completion_can_be_shown_and_imports_nothing_heavy() -> None:
    done = errata_command(_ERRATA_COMPLETE="complete_bash", COMP_WORDS="errata meth", COMP_CWORD="1")
    assert done.stdout.split() == [b"methods"] and done.stderr == b""


def test_the_codes_are_in_the_help() -> None:
    told = " ".join(CliRunner().invoke(errata_app(), ["--help"]).stdout.split())
    assert "Exit codes: 0 done" in told and "130 interrupted" in told


def errata_app() -> Any:
    from errata.cli import app

    return app


def test_what_did_not_take_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = saved("gpt2", tmp_path / "model")
    words = (
        "edit",
        model,
        "--prompt",
        EDIT.prompt,
        "--subject",
        EDIT.subject,
        "--target",
        "Oslo",
        "--method",
        "ft-m",
        "-q",
    )
    told = run(*words, "--set", "steps=1", "--set", "lr=1e-6").stderr
    assert "1 of 1 fact did not take, and the patch was written all the same; with --strict it is not (exit 3)" in told
    assert "did not take" not in run(*words, "--set", "steps=100", "--force").stderr
