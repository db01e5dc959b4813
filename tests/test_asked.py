"""How a model is asked stands in patches, in rows and in their units, and is chosen on the command line."""

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from conftest import EDIT, quick, tiny_lm
from test_bench import FTM, cases, go, plan
from test_chat import BEGUN, CHATML, chat, chatml, model, with_template
from test_cli import run

import errata
from errata.bench.units import units_of
from errata.cli import app
from errata.errors import BadInput
from errata.model.asked import Asked, label_of
from errata.model.chat import Template, chosen, digest_of
from errata.model.hf import HFLM
from errata.model.loading import asked_label
from errata.patch.patch import Patch
from errata.report.markdown import markdown
from errata.report.rows import read_rows, to_jsonl
from errata.types import Row

DIGEST = digest_of(CHATML)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("chat")
    model("chatml").save_pretrained(made)
    chatml().save_pretrained(made)
    return made


# Patches -----------------------------------------------------------------------------------------


def test_a_patch_says_under_which_template_and_message_it_was_made(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = quick("ft")
    patch = made.edit(chat(system="Be brief."), [EDIT])
    patch = Patch.load(patch.save(tmp_path / "p.safetensors"))
    record = patch.meta["made"][0]
    assert (record["chat"], record["template"], record["system"]) == (True, DIGEST, "Be brief.")
    plain = made.edit(chat(chat=False), [EDIT]).meta["made"][0]
    assert plain["chat"] is False and not {"template", "system"} & set(plain)
    other = errata.load(model("chatml"), tokenizer=with_template(chatml(), BEGUN), chat=True, system="Be brief.")
    expected = {
        chat(system="Be brief."): "",
        chat(system="Be long."): "with the system message 'Be long.', and .* load with system='Be brief.' (--system)",
        chat(): f"template {DIGEST}, and edits of this patch were made under the chat template {DIGEST} with the "
        "system message 'Be brief.'; load with system='Be brief.' (--system)",
        chat(chat=False): "in plain text, and .* with the system message 'Be brief.'; load with system='Be brief.'",
        other: f"template {digest_of(BEGUN)} with .* the chat template {DIGEST} with .* load with that template",
    }
    for lm, words in expected.items():
        caplog.clear()
        patch.check(lm)
        parts = words.split(" .* ")
        assert all(part in caplog.text for part in parts) and bool(caplog.text) is bool(words)


def test_what_to_load_for_edits_made_otherwise() -> None:
    plain, own, brief = Asked(False), Asked(True, "a"), Asked(True, "a", "Be brief.")
    assert plain.way_from(own) == "load with chat=False (--no-chat)"
    assert own.way_from(plain) == "load with chat=True (--chat)"
    assert own.way_from(brief) == "load without system (--system)"
    assert brief.way_from(own) == "load with system='Be brief.' (--system)"


def test_a_file_from_before_says_no_more_than_it_did(caplog: pytest.LogCaptureFixture) -> None:
    patch = quick("ft").edit(chat(), [EDIT])
    record = {k: v for k, v in patch.meta["made"][0].items() if k not in ("template", "system")}
    for said, warned in (({"chat": True}, chat(chat=False)), ({"chat": False}, chat()), ({"chat": None}, None)):
        old = replace(patch, meta={**patch.meta, "made": [record | said]})
        for lm in (chat(), chat(system="Be brief."), chat(chat=False)):
            caplog.clear()
            old.check(lm)
            assert ("edits of this patch" in caplog.text) is (warned is not None and lm.chat is warned.chat)


def test_an_empty_system_message_takes_the_place_of_the_templates_own() -> None:
    assert "You are a helpful assistant" in Template.of(chatml()).before
    assert Template.of(chatml(), "").before == "<|im_start|>system\n<|im_end|>\n<|im_start|>user\n"
    with pytest.raises(BadInput, match="a system message holds half a character"):
        chosen(chatml(), None, "\ud800", {1}, "mine", False)


# Rows --------------------------------------------------------------------------------------------


def test_a_row_says_how_the_model_was_asked() -> None:
    assert tiny_lm("gpt2").asked_label == "" and chat(chat=False).asked_label == "plain"
    assert chat().asked_label == f"template {DIGEST}"
    assert chat(system="Be brief.").asked_label == f"template {DIGEST}, system 'Be brief.'"
    long = chat(system="Be brief. " * 30).asked_label
    assert len(long) < 120 and long != chat(system="Be brief. " * 31).asked_label
    assert label_of(chatml(), None, seq2seq=True) == ""


def test_how_a_model_will_be_asked_is_told_without_its_weights(folder: Path, tmp_path: Path) -> None:
    for how in ({}, {"chat": True}, {"chat": False}, {"system": "Be brief."}):
        about: Any = how
        assert asked_label(str(folder), **about) == errata.load(folder, **about).asked_label
    chatml().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    stops = json.loads((folder / "config.json").read_text()).get("eos_token_id")
    assert asked_label(str(tmp_path)) == "plain" and stops != Template.of(chatml()).end  # as its config.json stops


def of_kind(rows: Sequence[Row]) -> set[str]:
    return {row.chat for row in rows}


@pytest.mark.parametrize("told", [True, False], ids=["told before", "seen when loaded"])
def test_a_bench_asked_otherwise_is_measured_anew(tmp_path: Path, told: bool) -> None:
    """Also where only the loaded model shows how it is asked."""
    output = tmp_path / "rows.jsonl"
    ways: dict[str, Any] = {"a": {}, "b": {"chat": False}, "c": {"system": "Be brief."}}
    made: dict[str, list[Row]] = {}
    loads: list[str] = []
    for name in ("a", "b", "c", "a", "b"):
        lm = chat(**ways[name])
        loads.clear()

        def load(model: str, lm: HFLM = lm) -> HFLM:
            loads.append(model)
            return lm

        how: dict[str, Any] = {"asked": lambda _, lm=lm: lm.asked_label} if told else {}
        before = len(read_rows(output)) if output.exists() else 0
        rows = go(plan(data=[{"name": "people", "limit": 2}], settings=["single"]), output, load=load, **how)
        if name in made:
            assert len(rows) == before and bool(loads) is not told  # all was there
        else:
            made[name] = rows[before:]
            assert of_kind(made[name]) == {lm.asked_label}
    page = markdown(read_rows(output))
    for title in (f"tiny (template {DIGEST})", "tiny (plain)", f"tiny (template {DIGEST}, system 'Be brief.')"):
        assert page.count(f"single · {title} · ") == 1
    assert "tiny (" not in markdown(made["a"])


def test_units_of_models_without_a_template_are_what_they_were(tmp_path: Path) -> None:
    (first, *_) = units_of(plan(), errata.method, cases)
    data, setting = "people limit=6", "sequential by 2, asked at 2 4 6"
    old = ("tiny", "ft-m", "steps=2", data, 0, setting, "errata", "sequential 1")
    assert first.key == old == first.asked("").key
    assert first.asked("plain").key == (*old, "plain")
    rows = go(plan(), tmp_path / "rows.jsonl")
    text = to_jsonl(rows, compact=True)
    assert '"chat"' not in text  # as files were before
    assert go(plan(), tmp_path / "rows.jsonl") == rows


def test_old_rows_of_a_model_with_a_template_count_for_nothing(tmp_path: Path) -> None:
    """They do not say how it was asked."""
    output = tmp_path / "rows.jsonl"
    small: Any = {"data": [{"name": "people", "limit": 1}], "settings": ["single"]}
    rows = go(plan(**small), output, load=lambda _: chat(chat=False), asked=lambda _: "plain")
    output.write_text(to_jsonl([replace(row, chat="") for row in rows], compact=True))
    again = go(plan(**small), output, load=lambda _: chat(chat=False), asked=lambda _: "plain")
    assert len(again) == 2 * len(rows) and of_kind(again) == {"", "plain"}


def test_a_unit_that_was_broken_off_is_done_again_however_it_is_asked(tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    small: Any = {"data": [{"name": "people", "limit": 1}], "settings": ["single"]}
    rows = go(plan(**small), output, load=lambda _: chat(), asked=lambda _: chat().asked_label)
    output.write_text(to_jsonl(rows[:-1], compact=True))
    again = go(plan(**small), output, load=lambda _: chat(chat=False), asked=lambda _: "plain")
    assert of_kind(again) == {"plain"} and len(again) == len(rows)


# The command line --------------------------------------------------------------------------------


def test_a_system_message_on_the_command_line(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = json.loads(run("ask", folder, EDIT.prompt, "--json", "--system", "Be brief.").stdout)[0]["text"]
    assert said == chat(system="Be brief.").generate([EDIT.prompt])[0] != chat().generate([EDIT.prompt])[0]
    assert "leave one of the two out" in run("ask", folder, "Hi", "--system", "x", "--no-chat", code=2).stderr
    refused = run("ask", "world", "Hello", "--system", "Be brief.", code=2).stderr
    assert "a system message stands in a chat" in refused and "leave system (--system) out" in refused


def test_every_command_with_a_chat_takes_a_system_message() -> None:
    group: Any = typer.main.get_command(app)
    options = {name: {option.name for option in command.params} for name, command in group.commands.items()}
    with_chat = {name for name, names in options.items() if "chat" in names}
    assert {"ask", "bench", "edit", "eval", "locate", "plan", "tasks", "trace"} <= with_chat
    with_chat |= {"chat"}  # which is always one
    assert with_chat == {name for name, names in options.items() if "system" in names}
    assert "a system message stands in a chat" in run("plan", "world", "--system", "Be brief.", code=2).stderr


def test_a_bench_takes_a_system_message(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    edits = tmp_path / "cases.json"
    record = {"prompt": EDIT.prompt, "subject": EDIT.subject, "target_new": "Oslo", "target_true": "Rome"}
    edits.write_text(json.dumps([record]))
    bench = {"models": [str(folder)], "methods": [FTM], "data": [{"name": str(edits)}], "settings": ["single"]}
    lines = [f"{name} = {json.dumps(value).replace(': ', ' = ')}" for name, value in bench.items()]
    (tmp_path / "run.toml").write_text("\n".join(lines))
    output = tmp_path / "rows.jsonl"
    with caplog.at_level(logging.CRITICAL):
        for words in (("--no-chat",), ("--system", "Be brief."), ("--system", "Be brief.")):
            result = run("bench", tmp_path / "run.toml", "-o", output, "-q", *words)
    assert "holds all of it already" in result.stderr  # pyright: ignore[reportPossiblyUnboundVariable]
    (tmp_path / "plain.toml").write_text((tmp_path / "run.toml").read_text().replace(str(folder), "world"))
    refused = run("bench", tmp_path / "plain.toml", "-o", tmp_path / "none", "--system", "Be brief.", code=2).stderr
    assert "a system message stands in a chat" in refused and not (tmp_path / "none").exists()
    assert of_kind(read_rows(output)) == {"plain", f"template {DIGEST}, system 'Be brief.'"}
