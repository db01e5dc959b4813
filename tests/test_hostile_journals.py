"""Journals that are damaged, and journals that lie: each is refused with its name, or says what it said before."""

import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from journals import BORN, patch_of

from errata.errors import BadInput, Refused
from errata.journal.commit import digest_of, read_commit
from errata.journal.journal import Journal

PARTS = ("journal.sqlite", "journal.json", "patches")


@cache
def whole() -> Path:
    """A journal of four commits, a tag, a branch and a merge, which nobody changes."""
    folder = Path(mkdtemp(prefix="errata-journal-")) / "journal"
    journal = Journal.create(folder)
    journal.commit(patch_of(BORN[:1]), why="one", author="Ann", scores={"a": 0.5}, review={"r": [1, {"x": None}]})
    journal.branch("side")
    journal.commit(patch_of(BORN[:2]), why="two")
    journal.commit(patch_of([BORN[0], BORN[2]]), why="three", branch="side")
    journal.merge("side")
    journal.tag("good", "HEAD~1")
    return folder


def said(folder: Path) -> Any:
    """Everything that a journal says."""
    journal = Journal.open(folder)
    log = journal.log()
    patches = [journal.load(commit) for commit in log]
    names = (journal.head, journal.branches(), journal.tags())
    assert journal.check() == []
    return log, [patch.edits for patch in patches], patches, names, journal.edits("good")


@cache
def truth() -> Any:
    return said(whole())


@pytest.fixture(scope="module", autouse=True)
def _gone_in_the_end() -> Any:  # pyright: ignore[reportUnusedFunction]
    yield
    shutil.rmtree(whole().parent)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole(), tmp_path / "copy"))


def refused(folder: Path, words: str = "") -> str:
    with pytest.raises((BadInput, Refused)) as refusal:
        said(folder)
    message = str(refusal.value)
    assert str(folder) in message and words in message and len(message) < 1500, message
    return message


def as_before_or_refused(folder: Path) -> None:
    """It says what it said, or is refused with its name; nothing else is raised."""
    try:
        found = said(folder)
    except (BadInput, Refused) as error:
        assert str(folder) in str(error) and len(str(error)) < 1500
    else:
        assert found == truth()


def change(folder: Path, statement: str, *values: Any) -> None:
    """Changes the database behind the journal's back."""
    with sqlite3.connect(folder / "journal.sqlite") as connection:
        connection.execute("PRAGMA foreign_keys=OFF")
        assert connection.execute(statement, values).rowcount != 0
    connection.close()


def test_a_copy_says_the_same(copy: Path) -> None:
    assert said(copy) == truth()


# Rows that lie -----------------------------------------------------------------------------------------

LIES: dict[str, tuple[str, str]] = {
    "a reason": ("UPDATE commits SET why = 'other' WHERE why = 'one'", "is not what its id says: it was changed"),
    "an author": ("UPDATE commits SET author = 'Bob' WHERE why = 'one'", "is not what its id says"),
    "a score": ("UPDATE commits SET scores = '{\"a\": 1.0}' WHERE why = 'one'", "is not what its id says"),
    "a review": ("UPDATE commits SET review = NULL WHERE why = 'one'", "is not what its id says"),
    "no review": ("UPDATE commits SET review = '{}' WHERE why = 'two'", "is not what its id says"),
    "a key renamed": ("UPDATE commits SET review = '{\"q\": [1, {\"x\": null}]}' WHERE why = 'one'", "is not what its"),
    "a parent": ("UPDATE commits SET parent = NULL WHERE why = 'two'", "is not what its id says"),
    "parents swapped": ("UPDATE commits SET parent = merged, merged = parent WHERE merged > ''", "is not what its id"),
    "another patch": (
        "UPDATE commits SET patch = (SELECT patch FROM commits WHERE why = 'two') WHERE why = 'one'",
        "is not what its id says",
    ),
    "an id": ("UPDATE commits SET id = substr(id, 2) || '0' WHERE why = 'one'", "is not there"),
    "a commit gone": ("DELETE FROM commits WHERE why = 'one'", "is not there"),
    "the last commit gone": ("DELETE FROM commits WHERE merged > ''", "which is not there"),
    "text for a number": ("UPDATE commits SET depth = 'one' WHERE why = 'one'", "cannot be read"),
    "a number for text": ("UPDATE commits SET why = 3 WHERE why = 'one'", ""),
    "bytes for text": ("UPDATE commits SET why = x'ff00fe' WHERE why = 'one'", "cannot be read"),
    "nothing for text": ("UPDATE commits SET why = '' WHERE why = 'one'", "is not what its id says"),
    "a number for JSON": ("UPDATE commits SET added = 3 WHERE why = 'one'", ""),
    "no JSON": ("UPDATE commits SET added = '[{' WHERE why = 'one'", "a field that is JSON holds something else"),
    "bytes for JSON": ("UPDATE commits SET added = x'ff' WHERE why = 'one'", "a field that is JSON holds"),
    "JSON of another kind": ("UPDATE commits SET added = '{}' WHERE why = 'one'", "cannot be read"),
    "JSON with a key twice": ("UPDATE commits SET scores = '{\"a\": 1, \"a\": 0.5}' WHERE why = 'one'", "JSON"),
    "deep JSON": (f"UPDATE commits SET review = '{'[' * 100_000}' WHERE why = 'one'", "JSON"),
    "an edit that is none": ("UPDATE commits SET added = '[{\"prompt\": \"x\"}]' WHERE why = 'one'", "cannot be read"),
    "a huge number": ("UPDATE commits SET size = 9223372036854775807 WHERE why = 'one'", "is not what its id says"),
    "a fraction": ("UPDATE commits SET size = 1e300 WHERE why = 'one'", "cannot be read"),
    "a name moved": (
        "UPDATE names SET target = (SELECT id FROM commits WHERE why = 'one') WHERE name = 'main'",
        "the name 'main' is not what its seal says",
    ),
    "a name renamed": ("UPDATE names SET name = 'better' WHERE name = 'good'", "is not what its seal says"),
    "a tag made a branch": ("UPDATE names SET kind = 'branch' WHERE name = 'good'", "is not what its seal says"),
    "a seal": ("UPDATE names SET seal = '' WHERE name = 'good'", "is not what its seal says"),
    "a kind of name": ("UPDATE names SET kind = x'00' WHERE name = 'good'", "is not what its seal says"),
    "no HEAD": ("DELETE FROM names WHERE name = 'HEAD'", "it has no HEAD"),
    "HEAD elsewhere": ("UPDATE names SET target = 'side' WHERE name = 'HEAD'", "is not what its seal says"),
    "another journal": ("UPDATE journals SET id = 'x'", "its database is that of the journal ['x']"),
    "two journals": ("INSERT INTO journals VALUES ('x', 'y')", "its database is that of the journal"),
    "no journal": ("DELETE FROM journals", "its database is that of the journal []"),
    "no version": ("DELETE FROM alembic_version", "there are no tables of a journal"),
    "two versions": ("INSERT INTO alembic_version VALUES ('9')", "it says that it is of the versions"),
    "a version that is none": ("UPDATE alembic_version SET version_num = 'x; DROP TABLE commits'", "newer Errata"),
    "a trigger": (
        "CREATE TRIGGER t AFTER INSERT ON commits BEGIN DELETE FROM commits; END",
        "its file holds a 'trigger', which no journal has",
    ),
    "a view": ("CREATE VIEW v AS SELECT 1", "its file holds a 'view', which no journal has"),
    "a table gone": ("DROP TABLE names", "is damaged"),
    "a column renamed": ("ALTER TABLE commits RENAME COLUMN why TO because", "is damaged"),
    "a column gone": ("ALTER TABLE commits DROP COLUMN review", "is damaged"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_rows_that_lie(lie: str, copy: Path) -> None:
    statement, words = LIES[lie]
    change(copy, statement)
    refused(copy, words)


def test_a_commit_that_somebody_signed_anew_is_read_and_harmless(copy: Path) -> None:
    """Ids are digests and no signatures: whoever writes the database may write another history, as any other text."""
    commit = truth()[0][0]
    forged = read_commit(json.loads(json.dumps({**commit.to_json(), "id": commit.id})))
    text = "\x1b[2J\u202e" + "; rm -rf / #" * 10
    record = {**forged.to_json(), "why": text}
    record["id"] = digest_of(forged.__class__(**{**{n: getattr(forged, n) for n in record}, "why": text}))
    assert read_commit(record).why == text  # shown by the command line with its controls written out


def test_a_file_that_is_no_database(copy: Path) -> None:
    file = copy / "journal.sqlite"
    for content in (b"", b"SQLite format 3\0", b"x" * 5000, bytes(4096), file.read_bytes()[:5000]):
        file.write_bytes(content)
        refused(copy)
    file.unlink()
    refused(copy)
    assert not file.exists() or not file.stat().st_size
    file.unlink(missing_ok=True)
    file.mkdir()
    refused(copy)


@pytest.mark.parametrize(
    "about",
    [
        "", "{", "[]", "3", "null", "{}", '{"format": 1}', '{"format": "1", "id": "x", "database": null}',
        '{"format": 1, "id": "x", "database": null}', '{"format": true, "id": "x", "database": null}',
        '{"format": 1, "id": 3, "database": null}', '{"format": 1, "id": null, "id": null, "database": null}',
        '{"format": 1, "id": "0123456789abcdef0123456789abcdef", "database": 3}',
        '{"format": 1, "id": "0123456789abcdef0123456789abcdef", "database": null, "more": 1}',
        '{"format": 1, "id": "0123456789abcdef0123456789abcdef", "database": null}',
        '{"format": 1, "id": "0123456789abcdef0123456789abcdef", "database": "mysql://x@y/z"}',
        '{"format": 1, "id": "0123456789abcdef0123456789abcdef", "database": "\\u0000"}',
        '{"format": 1e999, "id": "x", "database": null}', "[" * 10_000, "\x00", "x" * 100_000,
    ],
)  # fmt: skip
def test_what_says_whose_it_is(about: str, copy: Path) -> None:
    (copy / "journal.json").write_text(about)
    with pytest.raises((BadInput, Refused)) as error:
        said(copy)
    assert len(str(error.value)) < 1500


# Patches that lie ----------------------------------------------------------------------------------------


def blobs(folder: Path) -> list[Path]:
    return sorted((folder / "patches").iterdir())


def swap(a: Path, b: Path) -> None:
    one, two = a.read_bytes(), b.read_bytes()
    a.write_bytes(two)
    b.write_bytes(one)


def as_folder(a: Path, b: Path) -> None:
    a.unlink()
    a.mkdir()


def as_pipe(a: Path, b: Path) -> None:
    a.unlink()
    os.mkfifo(a)


PATCHES: dict[str, tuple[Callable[[Path, Path], Any], str]] = {
    "swapped": (swap, "is damaged: its digest is"),
    "renamed": (lambda a, b: a.rename(a.with_name("x" + a.name[1:])), "there is no patch at"),
    "gone": (lambda a, b: a.unlink(), "there is no patch at"),
    "cut": (lambda a, b: a.write_bytes(a.read_bytes()[:-1]), "is damaged: its digest is"),
    "empty": (lambda a, b: a.write_bytes(b""), "is damaged: its digest is"),
    "longer": (lambda a, b: a.write_bytes(a.read_bytes() + b"\0"), "is damaged: its digest is"),
    "a folder": (as_folder, "is a folder"),
    "a pipe": (as_pipe, "is a pipe, which may never end"),
    "all gone": (lambda a, b: shutil.rmtree(a.parent), "there is no patch at"),
}


@pytest.mark.parametrize("lie", PATCHES)
def test_patches_that_lie(lie: str, copy: Path) -> None:
    lies, words = PATCHES[lie]
    first, second, *_ = blobs(copy)
    lies(first, second)
    refused(copy, words)
    assert any(words in line for line in Journal.open(copy).check())


def test_a_damaged_patch_is_mended_by_committing_it_again(copy: Path) -> None:
    journal = Journal.open(copy)
    file = journal.write("HEAD", copy.parent / "last.safetensors")
    blob = journal.blobs.place(journal.find().patch)
    blob.write_bytes(b"x")
    journal.commit(file, why="again")
    assert journal.check() == []


def test_nothing_is_written_from_a_damaged_patch(copy: Path) -> None:
    journal = Journal.open(copy)
    for blob in blobs(copy):
        blob.write_bytes(blob.read_bytes()[::-1])
    with pytest.raises(BadInput, match="is damaged"):
        journal.write("HEAD", copy.parent / "out")
    assert not (copy.parent / "out").exists()


# Any damage ------------------------------------------------------------------------------------------------

HOW: Any = {"deadline": None, "derandomize": True, "database": None, "suppress_health_check": list(HealthCheck)}


@st.composite
def damages(draw: Any) -> tuple[str, str, Any]:
    """A file of the journal, what is done to it, and where."""
    part = draw(st.sampled_from(["journal.sqlite"] * 4 + ["journal.json", "patches"]))
    done = draw(st.sampled_from(["bit", "byte", "cut", "zeros", "swap", "more"]))
    return part, done, draw(st.tuples(st.floats(0, 1), st.floats(0, 1), st.integers(1, 255)))


def check_damage(folder: Path, damage: tuple[str, str, Any]) -> None:
    copy = folder / "damaged"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(whole(), copy)
    part, done, (where, there, value) = damage
    file = copy / part if part != "patches" else blobs(copy)[int(there * (len(blobs(copy)) - 1))]
    content = bytearray(file.read_bytes())
    at, other = (round(place * (len(content) - 1)) for place in (where, there))
    if done == "bit":
        content[at] ^= 1 << value % 8
    elif done == "byte":
        content[at] = value
    elif done == "cut":
        del content[at:]
    elif done == "zeros":
        content[at : at + value] = bytes(len(content[at : at + value]))
    elif done == "swap":
        a, b = bytes(content[at : at + 16]), bytes(content[other : other + 16])
        content[at : at + 16], content[other : other + 16] = b[: len(a)].ljust(len(a), b"\0"), a
    else:
        content[at:at] = bytes([value]) * 7
    file.write_bytes(content)
    as_before_or_refused(copy)


@settings(max_examples=200, **HOW)
@given(damage=damages())
def test_any_damage(tmp_path_factory: pytest.TempPathFactory, damage: tuple[str, str, Any]) -> None:
    check_damage(tmp_path_factory.getbasetemp(), damage)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(max_examples=800, **HOW)
@given(damage=damages())
def test_much_damage(tmp_path_factory: pytest.TempPathFactory, damage: tuple[str, str, Any]) -> None:
    check_damage(tmp_path_factory.getbasetemp(), damage)


COLUMNS = ("id", "parent", "merged", "depth", "patch", "size", "author", "time", "why", "model", "fingerprint")
JSONS = ("made", "edits", "added", "scores", "review", "how")
VALUES = (
    st.none()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=9)
    | st.binary(max_size=9)
)


@st.composite
def rows(draw: Any) -> tuple[str, str, Any]:
    """A table, a column and a value in some of its rows."""
    table = draw(st.sampled_from(["commits"] * 4 + ["names", "journals", "alembic_version"]))
    columns = {
        "commits": (*COLUMNS, *JSONS), "names": ("name", "kind", "target", "seal"), "journals": ("id", "made"),
        "alembic_version": ("version_num",),
    }  # fmt: skip
    return table, draw(st.sampled_from(columns[table])), draw(VALUES | st.from_regex(r"\A[\[{}\]\",:0-9a-z]{0,9}\Z"))


@settings(max_examples=150, **HOW)
@given(row=rows(), which=st.integers(0, 5))
def test_any_lie(tmp_path_factory: pytest.TempPathFactory, row: tuple[str, str, Any], which: int) -> None:
    copy = tmp_path_factory.getbasetemp() / "lying"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(whole(), copy)
    table, column, value = row
    connection = sqlite3.connect(copy / "journal.sqlite")
    try:
        found = connection.execute(f"SELECT rowid FROM {table} ORDER BY rowid").fetchall()
        with connection:
            statement = f"UPDATE {table} SET {column} = ? WHERE rowid = ?"
            connection.execute(statement, (value, found[which % len(found)][0]))
    except sqlite3.IntegrityError:  # of a null where none may be
        return
    finally:
        connection.close()
    if (table, column) == ("journals", "made"):
        return  # when it was made is said to nobody
    as_before_or_refused(copy)
