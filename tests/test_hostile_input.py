"""Odd and hostile input: each is used, or is bad input that names the place; nothing is waited for, nothing hangs."""

import dataclasses
import gzip
import io
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click import unstyle
from conftest import EDIT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_cli import ONE, refused, run, saved
from test_data import SINGLE

import errata
from errata import data, inputs
from errata.cli import common, requested
from errata.data import fields, reader, records, tables
from errata.errors import BadInput, ErrataError
from errata.methods.settings import from_text
from errata.printable import listed
from errata.types import LONGEST, Case, Edit, Probe

GOOD = {"prompt": "Ann Lee was born in", "subject": "Ann Lee", "target_new": "Oslo"}


# Records, each of whose parts may be anything ----------------------------------------------------

TEXTS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["", " ", "{}", "\ud800", "\x00", "\x1b[2J", "Ann Lee", "x" * 5000, "\u202e", "1e999"]),
)
NUMBERS = st.one_of(st.integers(-3, 3), st.just(10**30), st.floats(allow_nan=False), st.booleans(), st.none())
VALUES = st.recursive(
    st.one_of(NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=6,
)


def places(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every part of a record, itself included."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [above, *(place for key, part in parts for place in places(part, (*above, key)))]


def with_change(value: Any, place: tuple[Any, ...], change: Callable[[Any, Any], None]) -> Any:
    """A copy in which ``change(container, key)`` was called for the container of a place."""
    copy = json.loads(json.dumps(value))
    inside = copy
    for key in place[:-1]:
        inside = inside[key]
    change(inside, place[-1])
    return copy


@st.composite
def changed(draw: st.DrawFn, record: Any) -> Any:
    """A record in which one to three parts are removed, nested, or anything."""
    for _ in range(draw(st.integers(1, 3))):
        inner = places(record)[1:]
        if not inner:
            return record
        how = draw(st.sampled_from(["other", "removed", "nested", "deep"]))
        new = draw(VALUES)

        def change(inside: Any, key: Any, how: str = how, new: Any = new) -> None:
            if how == "removed":
                del inside[key]
            elif how == "nested":
                inside[key] = [inside[key]]
            elif how == "deep":
                for _ in range(300):
                    inside[key] = [inside[key]]
            else:
                inside[key] = new

        record = with_change(record, draw(st.sampled_from(inner)), change)
    return record


@pytest.mark.parametrize("format", SINGLE)
@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=st.data())
def test_a_record_gives_cases_or_is_named(format: str, drawn: st.DataObject, tmp_path: Path) -> None:
    record = drawn.draw(changed(SINGLE[format]))
    path = tmp_path / "odd.jsonl"
    path.write_text(json.dumps(record) + "\n")
    for name in (format, None):
        try:
            loaded = data.read(path, name, conflicts=True)
        except BadInput as error:
            assert "odd.jsonl" in str(error) and len(str(error)) < 5000
        else:
            assert all(isinstance(case, Case) for case in loaded.cases)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.dictionaries(st.sampled_from([*GOOD, "target_true", "id", "at", "more"]), VALUES))
def test_an_edit_is_made_or_refused(record: Any) -> None:
    try:
        made = Edit.from_json({**GOOD, **record})
    except BadInput:
        return
    assert Edit.from_json(json.loads(json.dumps(made.to_json()))) == made


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.dictionaries(st.sampled_from([field.name for field in dataclasses.fields(Probe)]), VALUES))
def test_a_probe_is_made_or_refused(record: Any) -> None:
    try:
        made = Probe(**{"kind": "question", "prompt": "Where?", **record})
    except BadInput:
        return
    texts = (made.prompt, made.label, made.group or "", made.rival or "", *made.answers, *made.references)
    assert "".join(texts).encode()


def test_a_case_holds_edits_and_probes_alone() -> None:
    for wrong in (("a", None), ("a", 3), ("a", "xy"), ("a", ("x",)), (3, (EDIT,)), ("\ud800", (EDIT,)), ("a", EDIT)):
        with pytest.raises(BadInput):
            Case(*wrong)  # type: ignore[arg-type]
    for probes in (None, (3,), {"a": 1}):
        with pytest.raises(BadInput, match="a case's probes"):
            Case("a", (EDIT,), probes)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "packed"), [("f.jsonl", False), ("f.jsonl.gz", True), ("f.csv", False)])
def test_damaged_files_are_named(name: str, packed: bool, tmp_path: Path) -> None:
    lines = [json.dumps(GOOD) for _ in range(40)]
    if name.endswith("csv"):
        lines = [",".join(GOOD), *[",".join(GOOD.values())] * 40]
    whole = "\n".join(lines).encode()
    _damaged(gzip.compress(whole) if packed else whole, tmp_path / name)


def test_damaged_tables_are_named(tmp_path: Path) -> None:
    table = pytest.importorskip("pyarrow").table({key: [value] * 40 for key, value in GOOD.items()})
    raw = io.BytesIO()
    pytest.importorskip("pyarrow.parquet").write_table(table, raw)
    _damaged(raw.getvalue(), tmp_path / "f.parquet")


def _damaged(whole: bytes, path: Path) -> None:
    rng = random.Random(0)
    for _ in range(60):
        broken = bytearray(whole)
        for _ in range(rng.choice([1, 5, 50])):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        path.write_bytes(broken[: rng.choice([len(broken), rng.randrange(len(broken))])])
        try:
            data.read(path, "edits", conflicts=True)
        except BadInput as error:
            assert path.name in str(error)


# JSON --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ('{"prompt": "a", "subject": "b", "prompt": "c"}', "the key 'prompt' stands twice"),
        ('{"prompt": ' + "9" * 5000 + "}", "not JSON"),
        ('{"prompt": NaN}', "NaN is no number"),
        ('{"prompt": -Infinity}', "-Infinity is no number"),
        ("\0\0", "not JSON"),
        (json.dumps(GOOD | {"subject": "\udfff"}), "half a character"),
        (json.dumps(GOOD | {"target_new": "\u3000\t"}), "is empty"),
        (json.dumps(GOOD | {"target_new": 3}), "target_new is a text, found int: 3"),
        (json.dumps(GOOD | {"prompt": "Ann Lee " * 20_000}), "100,000 characters at most"),
        (json.dumps({f"key {i}": i for i in range(10**5)}), "key 1000, .*, …; its keys are|no format is known by"),
    ],
    ids=lambda value: value[:20],
)
def test_a_line_that_cannot_be_used_is_named(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "edits.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + line + "\n")
    with pytest.raises(BadInput, match=f"(?s)edits.jsonl, line 2: .*({message})") as caught:
        requested.read_edits(path)
    assert len(str(caught.value)) < 3000
    path.write_text(line)
    with pytest.raises(BadInput) as caught:
        errata.cases(path)
    assert "edits.jsonl" in str(caught.value) and len(str(caught.value)) < 3000


def test_keys_that_stand_twice_are_found_in_lists_too(tmp_path: Path) -> None:
    (tmp_path / "f.json").write_text('[{"a": 1},\n {"b": 1, "b": 2}]')
    with pytest.raises(BadInput, match=r"f.json, record 2 \(line 2\): the key 'b' stands twice"):
        list(records.read_records(tmp_path / "f.json"))
    many = ", ".join(f'"{i}": 1' for i in range(200_000))  # in one pass, however many there are
    with pytest.raises(BadInput, match="the key '199999' stands twice"):
        inputs.parsed("{" + many + ', "199999": 2}')


def test_a_list_of_names_is_short() -> None:
    assert listed([]) == "nothing" and listed(["a", "b"]) == "a, b"
    assert listed(map(str, range(10**9))).endswith("18, 19, …")
    assert len(listed(["x" * 10**6])) < 2000 and "\x1b" not in listed(["\x1b"])


def test_what_is_no_name_or_number_is_refused() -> None:
    for wrong in (None, 3, b"world", ["world"]):
        with pytest.raises(BadInput):
            errata.cases(wrong)  # type: ignore[arg-type]
    for limit in (0, -1, 2.5, True, "3"):
        with pytest.raises(BadInput, match="limit of 1 at least"):
            errata.cases("world", limit=limit)  # type: ignore[arg-type]
    for seed in (None, "x", 1.5, True):
        with pytest.raises(BadInput, match="a seed is a whole number"):
            errata.cases("world", seed=seed)  # type: ignore[arg-type]
    for flag in (3, None, [], "yes"):
        with pytest.raises(BadInput, match="strict is true or false"):
            data.read("world", strict=flag)  # type: ignore[arg-type]


# Texts that are long -----------------------------------------------------------------------------


def test_texts_of_an_edit_have_a_bound_that_is_held_before_they_are_searched() -> None:
    long = "a" * 10**6
    for wrong in ((long, "a", "x"), ("a", long, "x"), ("a", "a", long), ("{}" * 30_000, "a" * 90_000, "x")):
        with pytest.raises(BadInput, match="100,000 characters at most") as caught:
            Edit(*wrong)
        assert len(str(caught.value)) < 300
    for wrong in (("x" * LONGEST, "Ann", "y"), ("Anna " * (LONGEST // 5), "Ann", "y"), ("x" * LONGEST, "Ann", " ")):
        with pytest.raises(BadInput) as caught:
            Edit(*wrong)
        assert len(str(caught.value)) < 600
    with pytest.raises(BadInput, match=r"about a subject of 50,000: shorten one"):  # to find it took half a minute
        Edit("a" * LONGEST, "a" * (LONGEST // 2), "Oslo")
    assert Edit("x " * (LONGEST // 2 - 2) + "Ann", "Ann", "Oslo").start > 0


def test_a_line_of_texts_has_a_bound(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("a text\n" + "x" * (common.LONGEST_TEXT + 1))
    with pytest.raises(BadInput, match="line 2 has 1,000,001 characters; --data wants a text on each line"):
        common.data_for(errata.method("memit"), path)


# Files -------------------------------------------------------------------------------------------


def commands(name: str) -> list[tuple[str, ...]]:
    return [
        ("edit", "world", "--edits", name),
        ("edit", "world", *ONE, "--data", name),
        ("eval", "world", "--cases", name),
        ("eval", "world", "--shots", name),
        ("trace", "world", "--facts", name),
        ("report", name),
    ]


def test_what_is_no_file_is_named_and_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")  # nobody writes to it: to open it would be to wait for ever
    (tmp_path / "folder").mkdir()
    for name, message in (
        ("pipe", "pipe is a pipe, which may never end"),
        ("folder", "folder is a folder"),
        ("/dev/zero", "/dev/zero is a device, which may never end"),
        ("a\n\x1b[2J", r"no file .*a.+\\x1b\[2J|no file a\\n\\x1b\[2J"),
    ):
        for words in commands(name):
            told = refused(*words)
            assert pytest.importorskip("re").search(message, told), told
    for name in ("x" * 300, "nothing\0here"):
        for read in (errata.cases, lambda name: inputs.read_text(Path(name), "--edits")):
            with pytest.raises(BadInput):
                read(name)


def test_a_file_that_is_too_long_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x" * 101)
    with pytest.raises(BadInput, match=r"f is longer than 100 bytes; --edits wants a smaller one"):
        inputs.read_text(tmp_path / "f", "--edits", most=100)
    with (tmp_path / "f").open("wb") as file:
        file.truncate(2**40)  # a hole: a terabyte that takes no place
    with pytest.raises(BadInput, match="longer than 1,073,741,824 bytes"):
        inputs.read_text(tmp_path / "f", "--edits")


def test_text_in_another_encoding_is_named(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_bytes((json.dumps(GOOD) + "\n").encode() + b'{"prompt": "Zo\xeb"}')
    for read in (requested.read_edits, lambda path: common.data_for(errata.method("memit"), path)):
        with pytest.raises(BadInput, match=r"f.jsonl, line 2: not UTF-8 text"):
            read(path)
    path.write_text(json.dumps(GOOD), encoding="utf-16")
    with pytest.raises(BadInput, match="UTF-16 text; make it UTF-8"):
        requested.read_edits(path)
    path.write_text(json.dumps(GOOD), encoding="utf-8-sig")
    assert len(requested.read_edits(path)) == len(errata.cases(path)) == 1


def test_a_small_file_that_unpacks_to_much_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "UNPACKED", 2**20)
    path = tmp_path / "f.jsonl.gz"
    for sign in (b"\n", b" ", b"\0", b"[", b"a,"):
        path.write_bytes(gzip.compress(sign * 2**23))
        with pytest.raises(BadInput, match=r"unpacks to more than [\d,]+ bytes|longer than|nested|not JSON"):
            data.read(path, "edits")
    path.write_bytes(gzip.compress((json.dumps(GOOD) + "\n").encode() + b"\n" * 2**23))
    with pytest.raises(BadInput, match=r"f.jsonl.gz unpacks to more than [\d,]+ bytes; if that is what"):
        data.read(path, "edits")
    path.write_bytes(gzip.compress((json.dumps(GOOD) + "\n").encode() * 2 + b"\n" * 2**23))
    assert len(errata.cases(path, limit=1)) == 1  # no further than is needed


def test_a_table_of_one_huge_group_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    texts = pyarrow.table({key: [value + "0" * 10**5] * 9 for key, value in GOOD.items()})
    parquet.write_table(texts, tmp_path / "f.parquet", compression="zstd", use_dictionary=False)
    assert (tmp_path / "f.parquet").stat().st_size < 10**5
    monkeypatch.setattr(tables, "GROUP", 10**6)
    with pytest.raises(BadInput, match=r"f.parquet holds 2,7\d\d,\d\d\d bytes in one group of rows, and 1,000,000 may"):
        data.read(tmp_path / "f.parquet", "edits")


# Words on the command line -----------------------------------------------------------------------


def test_numbers_out_of_bounds_are_answered_with_the_bound() -> None:
    for seed in (10**30, -1, 2**32):
        with pytest.raises(BadInput, match=r"ft's seed must be (0 or more|4294967295 or less)"):
            errata.method("ft", seed=seed)
        assert "--seed" in unstyle(run("edit", "world", *ONE, "--seed", seed, code=2).stderr)  # coloured in some CI
    for typed in ("1e999", "nan", "-inf"):
        with pytest.raises(BadInput, match="lr must be a finite number"):
            from_text(type(errata.method("ft")), {"lr": typed})
    with pytest.raises(BadInput, match="steps must be 2147483647 or less"):
        errata.method("ft", steps=10**30)
    with pytest.raises(BadInput, match="steps is of type int"):
        from_text(type(errata.method("ft")), {"steps": "9" * 10_000})


def test_empty_and_odd_words_are_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = saved("gpt2", tmp_path / "model")
    assert "is empty" in refused("edit", model, "--prompt", "", "--subject", "", "--target", "")
    assert "is empty" in refused("edit", model, "--prompt", "{}", "--subject", "Ann", "--target", "\n")
    assert "half a character" in refused("edit", model, "--prompt", "{}\udcff", "--subject", "Ann", "--target", "x")
    for count in (-1, 0):
        assert "max_new_tokens must be at least 1" in refused("ask", model, "Ann", "--max-new-tokens", count, "-q")
    assert "--prompt" not in refused("edit", model, "--prompt", "x" * 10**6, *ONE[2:])


@pytest.mark.parametrize("recipe", ['{"persons": 1000000000, "world_seed": 0}', "[" * 10**5, "[]", '{"persons": "x"}'])
def test_a_strangers_model_cannot_name_a_world_without_end(tmp_path: Path, recipe: str) -> None:
    (tmp_path / "recipe.json").write_text(recipe)
    with pytest.raises(BadInput, match="is no recipe of a world"):
        errata.cases(tmp_path)


def test_fields_are_shown_short() -> None:
    with pytest.raises(BadInput) as caught:
        fields.text({"a": ["x" * 10**6]}, "a")
    assert len(str(caught.value)) < 200
    with pytest.raises(ErrataError) as caught:
        fields.text({"x" * 10**6: 1}, "a")
    assert len(str(caught.value)) < 2000
    nested: Any = []
    for _ in range(5000):
        nested = [nested]
    with pytest.raises(BadInput):
        fields.as_text(nested, "a")
    assert reader.TOLERATED == 0.1
