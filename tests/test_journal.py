"""The journal: what is recorded and found again, in a file and in Postgres."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import EDITS, TEXTS, quick, tiny_lm
from journals import BORN, MODEL, SITE, new_database, patch_of, record

from errata.answers import answer_of
from errata.errors import BadInput, Refused, UnknownName, Unreachable, WrongModel
from errata.journal import folder as place
from errata.journal.commit import Commit, digest_of, fact, read_commit
from errata.journal.database import STEPS
from errata.journal.journal import Journal
from errata.methods.closed_form.again import EXACT as SOLVED
from errata.patch.delta import Delta
from errata.patch.patch import EMPTY, Patch
from errata.types import Case, Edit, Probe

ONE, TWO, THREE = (patch_of(BORN[:n]) for n in (1, 2, 3))


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest) -> str | None:
    return new_database(request.getfixturevalue("postgres")) if request.param == "postgres" else None


@pytest.fixture
def journal(url: str | None, tmp_path: Path) -> Journal:
    return Journal.create(tmp_path / "journal", url)


@pytest.fixture
def filed(tmp_path: Path) -> Journal:
    return Journal.create(tmp_path / "filed")


# Commits -------------------------------------------------------------------------------------------


def test_what_was_committed_is_found_again(journal: Journal, tmp_path: Path) -> None:
    assert journal.log() == [] and journal.head == "main" and journal.branches() == {"main": None}
    review = {"guards": ["locality"], "rows": [1, 2.5, None], "deep": {"a": "ü\u2028"}}
    first = journal.commit(ONE, why=" moved ", author="Zoë", scores={"reliability": 1, "locality": 0.5}, review=review)
    second = journal.commit(THREE.save(tmp_path / "three.safetensors"), why="two more")
    again = Journal.open(journal.path)
    assert again.log() == [second, first]
    assert (first.why, first.author, first.scores) == ("moved", "Zoë", {"reliability": 1.0, "locality": 0.5})
    assert first.review == review and second.review is None and first.how is None
    assert first.parents == () and second.parents == (first.id,) and (first.depth, second.depth) == (1, 2)
    assert (second.model, second.fingerprint) == (MODEL["name"], MODEL["fingerprint"])
    assert first.added == (BORN[0],) and second.added == tuple(BORN[1:3])
    assert [(call.method, call.edits) for call in second.made] == [("memit", 2)]
    assert second.made[0].settings == {"lam": None, "layers": [1]} and second.made[0].resolved["lam"] == 2.5
    assert again.edits() == BORN[:3] and again.edits("HEAD~1") == BORN[:1]
    assert again.checkout() == THREE and again.checkout("HEAD~") == ONE
    assert again.checkout().meta == THREE.meta
    assert again.check() == []
    assert first.time < second.time and first.time.endswith("Z")


def test_a_patch_file_is_kept_byte_for_byte(journal: Journal, tmp_path: Path) -> None:
    file = ONE.save(tmp_path / "one.safetensors")
    commit = journal.commit(file, why="x")
    out = journal.write(commit.short, tmp_path / "out.safetensors")
    assert out.read_bytes() == file.read_bytes()
    assert (journal.path / "patches" / f"{commit.patch}.safetensors").read_bytes() == file.read_bytes()
    assert commit.size == file.stat().st_size
    journal.commit(file, why="the same once more")
    assert len(list((journal.path / "patches").iterdir())) == 1
    assert [len(one.added) for one in journal.log()] == [0, 1]


def test_names_of_commits(journal: Journal) -> None:
    commits = [journal.commit(patch_of(BORN[:n]), why=f"number {n}") for n in range(1, 6)]
    assert journal.tag("accepted/first", "HEAD~4") == commits[0]
    assert journal.branch("side", "HEAD~2") == commits[2]
    for name, at in {
        "HEAD": 4, "main": 4, "side": 2, "HEAD~": 3, "HEAD~3": 1, "side~2": 0, "main~~": 2, "main~1~2": 1,
        "accepted/first": 0, commits[3].id: 3, commits[3].id[:7]: 3, f"{commits[3].id[:7]}~1": 2,
    }.items():  # fmt: skip
        assert journal.find(name) == commits[at], name
    assert journal.tags() == {"accepted/first": commits[0].id}
    assert journal.branches() == {"main": commits[4].id, "side": commits[2].id}
    assert journal.log("side") == commits[2::-1] and journal.log(limit=2) == commits[:2:-1]
    with pytest.raises(UnknownName, match=r"unknown revision 'maim'; did you mean main\?"):
        journal.find("maim")
    with pytest.raises(BadInput, match="has 4 commits before it, and 5 steps back"):
        journal.find("HEAD~5")
    for strange in ("", "~", "HEAD^", "a~b", "HEAD~-1", "HEAD~99999999", "%", "____", 3, None):
        with pytest.raises(BadInput, match=r"revision"):
            journal.find(strange)  # type: ignore[arg-type]


def test_a_beginning_of_several_ids_is_not_guessed(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("errata.journal.names.LEAST", 1)
    monkeypatch.setattr("errata.journal.looking.ID", __import__("re").compile("[0-9a-f]+"))
    ids = [journal.commit(ONE, why=str(n)).id for n in range(17)]
    twice = next(id[0] for id in ids if sum(other[0] == id[0] for other in ids) > 1)
    with pytest.raises(BadInput, match=f"{twice} is the beginning of {twice}.*, {twice}.*; write more of it"):
        journal.find(twice)


def test_tags_and_branches_are_not_moved_by_accident(journal: Journal) -> None:
    first, second = journal.commit(ONE, why="1"), journal.commit(TWO, why="2")
    journal.tag("good")
    journal.branch("side")
    for make in (journal.tag, journal.branch):
        with pytest.raises(BadInput, match=f"there is a tag good at {second.short} already"):
            make("good", "HEAD~1")
    with pytest.raises(BadInput, match="there is a branch main"):
        journal.tag("main", force=True)
    journal.tag("good", "HEAD~1", force=True)
    assert journal.find("good") == first
    for name in ("HEAD", "", "a b", "~", "x" * 101, "-o", "é", "a..b", "\x1b[2J", 3):
        with pytest.raises(BadInput, match="is named by up to 100"):
            journal.tag(name)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="would look like the beginning of an id"):
        journal.branch("beef")


def test_branches_grow_apart(journal: Journal) -> None:
    assert journal.branch("early") is None
    first = journal.commit(ONE, why="1")
    journal.branch("side")
    journal.switch("side")
    assert journal.head == "side" == Journal.open(journal.path).head
    side = journal.commit(TWO, why="on side")
    main = journal.commit(THREE, why="on main", branch="main")
    assert journal.find() == side and journal.find("main") == main
    assert side.parents == main.parents == (first.id,)
    assert journal.log() == [side, first]
    with pytest.raises(UnknownName, match="unknown branch 'sida'; did you mean side"):
        journal.switch("sida")
    with pytest.raises(BadInput, match="there is no branch 'nowhere'; make it with `errata branch nowhere`"):
        journal.commit(ONE, why="x", branch="nowhere")
    with pytest.raises(BadInput, match=r"the branch early of .* has no commit"):
        journal.find("early")


def test_a_branch_that_has_moved_is_told(journal: Journal) -> None:
    first = journal.commit(ONE, why="1")
    second = journal.commit(TWO, why="2", onto="HEAD", author="Ann")
    with pytest.raises(Refused, match=f"the branch is at {second.short}, by Ann, not at {first.short}"):
        journal.commit(THREE, why="3", onto=first.id)
    assert journal.log() == [second, first]


def test_edits_that_a_commit_leaves_behind_are_told(journal: Journal, caplog: pytest.LogCaptureFixture) -> None:
    journal.commit(TWO, why="two")
    assert not caplog.records
    other = Edit("{} was born in", "Ann Lee", "Rome")
    journal.commit(patch_of([BORN[0], other]), why="one of them, and against it")
    said = [r.getMessage() for r in caplog.records]
    assert len(said) == 2
    assert "lacks 1 of the edits of" in said[0] and "'Bob Ray was born in' -> 'Oslo'; to keep them" in said[0]
    assert "other target: 'Ann Lee was born in' -> 'Rome' (" in said[1] and "still holds" in said[1]


def test_edits_of_a_commit_that_contradict_each_other_are_told(
    journal: Journal, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in the first one; with a model in other words too, among new ones and against those from before."""
    monkeypatch.setattr("errata.conflicts.rewording.same_fact", lambda lm, pairs, patch: [True for _ in pairs])
    other, reworded = Edit("{} was born in", "Ann Lee", "Rome"), Edit("The birthplace of {} is", "Ann Lee", "Lima")
    first = journal.commit(patch_of([BORN[0], other, reworded]), why="first")
    (said,) = [r.getMessage() for r in caplog.records]
    assert said == (
        f"other target: 'Ann Lee was born in' -> 'Rome' ({other.id}) is new, and the patch still holds 'Ann Lee was "
        f"born in' -> 'Oslo' ({BORN[0].id}) of the same commit; the newer is to answer; "
        f"`errata revert {BORN[0].id}` takes the older out"
    )
    assert [(c.kind, c.older, c.newer) for c in journal.conflicts(first)] == [("other target", BORN[0], other)]
    lm, caplog.handler.records[:] = tiny_lm("gpt2"), []
    found = [("other target", BORN[0], other), ("other words", BORN[0], reworded), ("other words", other, reworded)]
    ours = replace(patch_of([BORN[0], other, reworded]), meta={"made": [record([BORN[0], other, reworded])]})
    journal = Journal.create(journal.path / "second")
    second = journal.commit(ours, why="first", lm=lm)
    assert [(c.kind, c.older, c.newer) for c in journal.conflicts(second, lm)] == found
    assert [r.getMessage().split(":")[0] for r in caplog.records] == [kind for kind, _, _ in found]
    caplog.clear()
    newest = Edit("{} comes from", "Ann Lee", "Bern")
    kept = replace(ours, meta={"made": [*ours.meta["made"], record([newest])]})
    third = journal.commit(kept, why="more", lm=lm)
    assert [(c.older, c.newer) for c in journal.conflicts(third, lm)] == [
        (e, newest) for e in (BORN[0], other, reworded)
    ]
    assert all(f"of {second.short}" in r.getMessage() for r in caplog.records) and len(caplog.records) == 3
    twice = [BORN[1], Edit("The birthplace of {} is", BORN[1].subject, BORN[1].target_new)]  # one fact, no two
    journal.commit(replace(kept, meta={"made": [*kept.meta["made"], record(twice)]}), why="no more", lm=lm)
    assert len(caplog.records) == 3


def test_a_commit_is_compared_by_its_own_model(journal: Journal) -> None:
    with pytest.raises(WrongModel, match=r"the patch is of the model tiny .*give the patch's own with --model"):
        journal.commit(TWO, why="two", lm=tiny_lm("gpt2"))
    assert journal.log() == []


def test_a_journal_is_of_one_model(journal: Journal) -> None:
    journal.commit(ONE, why="1")
    stranger = Patch(ONE.parts, ONE.memory, {**ONE.meta, "model": {"name": "other", "fingerprint": "f" * 16}})
    with pytest.raises(WrongModel, match=r"of the model other \(f+\), and .* is of tiny \(0123"):
        journal.commit(stranger, why="2")
    nameless = journal.commit(Patch(ONE.parts), why="a task vector")
    assert nameless.fingerprint == MODEL["fingerprint"] and nameless.added == ()
    with pytest.raises(WrongModel):
        journal.commit(stranger, why="2")
    assert len(journal.log()) == 2


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"why": " "}, "the reason of a commit is a text that says something"),
        ({"why": "x\0y"}, "the reason"),
        ({"why": "\ud800"}, "half a character"),
        ({"why": 3}, "the reason of a commit is a text"),
        ({"author": ""}, "the author of a commit"),
        ({"author": "x" * 1001}, "1,000 characters at most"),
        ({"scores": {"a": float("nan")}}, "the score 'a' is a finite number"),
        ({"scores": {"a": True}}, "the score 'a'"),
        ({"scores": {"": 1}}, "the name of a score"),
        ({"review": [1]}, "a review is a JSON object, found list"),
        ({"review": {"a": float("inf")}}, "a review is a JSON object"),
        ({"review": "{"}, "a review is a JSON object"),
        ({"review": {"a": "x" * 2**24}}, "16,777,216 characters at most"),
        ({"onto": "nowhere"}, "unknown revision"),
        ({"patch": 3}, "a commit is of an errata.Patch or of a file of one, found int"),
        ({"patch": "nowhere.safetensors"}, "there is no patch at nowhere.safetensors"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_recorded(filed: Journal, given: dict[str, Any], words: str) -> None:
    filed.commit(ONE, why="1")
    before = sorted(path.name for path in filed.path.rglob("*"))
    patch = given.get("patch", TWO)
    with pytest.raises(BadInput, match=words):
        filed.commit(patch, **{"why": "2", **{k: v for k, v in given.items() if k != "patch"}})
    assert len(filed.log()) == 1 and sorted(path.name for path in filed.path.rglob("*")) == before


def test_a_damaged_patch_is_not_taken_in(filed: Journal, tmp_path: Path) -> None:
    file = ONE.save(tmp_path / "one.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(BadInput, match=r"one.safetensors is no whole patch"):
        filed.commit(file, why="x")
    not_finite = Patch((Delta({SITE: torch.full((32, 64), float("nan"))}),))
    with pytest.raises(BadInput, match="no finite number"):
        filed.commit(not_finite, why="x")
    assert filed.log() == [] and list((filed.path / "patches").iterdir()) == []


def test_who_the_author_is(filed: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERRATA_AUTHOR", "Ann <ann@example.org>")
    assert filed.commit(ONE, why="1").author == "Ann <ann@example.org>"
    monkeypatch.delenv("ERRATA_AUTHOR")
    monkeypatch.setattr("errata.journal.recording.getuser", lambda: "bob")
    assert filed.commit(ONE, why="2").author == "bob"

    def nobody() -> str:
        raise KeyError("uid not found")

    monkeypatch.setattr("errata.journal.recording.getuser", nobody)
    assert filed.commit(ONE, why="3").author == "unknown"


def test_the_empty_patch_can_be_committed(journal: Journal) -> None:
    journal.commit(ONE, why="1")
    journal.commit(EMPTY, why="back to the base model")
    assert journal.checkout() == EMPTY and journal.edits() == []


def test_a_review_that_gives_its_json(filed: Journal) -> None:
    class Review:
        def to_json(self) -> Any:
            return {"rows": [{"guard": "locality", "passed": True}]}

    class Text:
        def to_json(self) -> Any:
            return '{"rows": []}'

    assert filed.commit(ONE, why="1", review=Review()).review == {"rows": [{"guard": "locality", "passed": True}]}
    assert filed.commit(ONE, why="2", review=Text()).review == {"rows": []}


# Its id says all ------------------------------------------------------------------------------------


def test_an_id_is_of_everything_that_a_commit_says(filed: Journal) -> None:
    commit = filed.commit(ONE, why="1", scores={"a": 1.0}, review={"r": 1})
    other: dict[str, Any] = {
        "parents": ("0" * 64,), "depth": 2, "patch": "0" * 64, "size": 1, "author": "x", "time": "x", "why": "x",
        "model": None, "fingerprint": None, "made": (), "edits": ("x",), "added": (), "scores": {"a": 2.0},
        "review": {}, "how": {"way": "x"},
    }  # fmt: skip
    assert {*other, "id"} == set(commit.to_json())
    for name, value in other.items():
        changed = Commit(**{**{n: getattr(commit, n) for n in commit.to_json()}, name: value})
        assert digest_of(changed) != commit.id, name
        with pytest.raises(BadInput, match="is not what its id says"):
            read_commit(changed.to_json())
    assert read_commit(commit.to_json()) == commit


# Folders and databases ------------------------------------------------------------------------------


def test_making_a_journal_twice_changes_nothing(url: str | None, tmp_path: Path) -> None:
    journal = Journal.create(tmp_path / "j", url)
    commit = journal.commit(ONE, why="1")
    again = Journal.create(tmp_path / "j", url)
    assert again.log() == [commit] and Journal.create(tmp_path / "j").log() == [commit]
    if url is not None:
        with pytest.raises(BadInput, match="a journal already, with another database"):
            Journal.create(tmp_path / "j", url.replace("errata@", "other@"))
        with pytest.raises(BadInput, match=r"holds the journal .* already, whose folder is another"):
            Journal.create(tmp_path / "other", url)
        assert not (tmp_path / "other" / "journal.json").exists()


def test_a_journal_that_was_half_made_is_made(url: str | None, tmp_path: Path) -> None:
    Journal.create(tmp_path / "j", url)
    (tmp_path / "j" / "journal.json").unlink()  # written last
    with pytest.raises(BadInput, match=r"there is no journal in .*; `errata init .*` makes one"):
        Journal.open(tmp_path / "j")
    journal = Journal.create(tmp_path / "j", url)
    assert journal.commit(ONE, why="1") == Journal.open(tmp_path / "j").find()


def older(journal: Journal, step: int) -> None:
    """Leads a journal back."""
    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext

    from errata.journal.migrate import script

    steps = script()
    with journal.database.connection(writes=True) as connection:
        fn = lambda revision, context: steps._downgrade_revs(STEPS[step], revision)  # noqa: E731
        with EnvironmentContext(Config(), steps, fn=fn) as environment:
            environment.configure(connection=connection)
            environment.run_migrations()


def test_an_older_journal_is_led_on_by_init(journal: Journal, caplog: pytest.LogCaptureFixture) -> None:
    commits = [journal.commit(patch_of(BORN[:n]), why=f"number {n}") for n in (1, 2)]
    older(journal, 0)
    with pytest.raises(Refused, match=r"was made by an earlier Errata; `errata init .*` leads it on"):
        Journal.open(journal.path)
    led = Journal.create(journal.path)
    assert "was led on" in caplog.text
    assert led.log() == commits[::-1]
    third = led.commit(THREE, why="3", review={"a": 1})
    assert Journal.open(journal.path).log() == [third, *commits[::-1]]


def test_a_newer_journal_is_refused(journal: Journal) -> None:
    journal.commit(ONE, why="1")
    with journal.database.connection(writes=True) as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '73'")
    for make in (Journal.open, Journal.create):
        with pytest.raises(Refused, match=r"was made by a newer Errata \(step '73'; this one knows 2\): update"):
            make(journal.path)
    about = json.loads((journal.path / "journal.json").read_text())
    (journal.path / "journal.json").write_text(json.dumps({**about, "format": 2}))
    for make in (Journal.open, Journal.create):
        with pytest.raises(Refused, match="is a journal of format 2; this Errata knows 1: update it"):
            make(journal.path)


def test_the_steps_are_those_of_the_files() -> None:
    from errata.journal.migrate import script

    assert [step.revision for step in script().walk_revisions()][::-1] == list(STEPS)


def test_the_tables_are_those_that_the_steps_make(journal: Journal) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    from errata.journal.tables import Table

    with journal.database.connection() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": False})
        assert compare_metadata(context, Table.metadata) == []


def test_a_password_is_not_written_down(postgres: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for i in range(3):
        url = new_database(postgres)
        secret = [url.replace("errata@", "errata:hush@"), f"{url}&password=hush", f"{url}&sslpassword=hush"][i]
        caplog.clear()
        journal = Journal.create(tmp_path / str(i), secret)
        assert "PGPASSWORD" in caplog.text
        assert "hush" not in (tmp_path / str(i) / "journal.json").read_text() + caplog.text
        commit = journal.commit(ONE, why="1")
        assert [commit] == Journal.open(tmp_path / str(i), secret).log() == Journal.open(tmp_path / str(i)).log()


@pytest.mark.parametrize("url", ["mysql://x@y/z", "sqlite:///x", "nonsense", "", "postgresql+psycopg2://x/y"])
def test_other_databases_are_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="postgresql://USER@HOST/NAME"):
        Journal.create(tmp_path / "j", url)
    assert not (tmp_path / "j").exists()


def test_a_database_that_does_not_answer_is_named_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="is it running") as error:
        Journal.create(tmp_path / "j", f"postgresql://me:hush@/x?host={tmp_path}")
    assert "hush" not in str(error.value)
    assert not place.is_journal(tmp_path / "j")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules[sys.argv[1]] = None\nimport errata\n"
        "try: errata.Journal.create(sys.argv[2], *sys.argv[3:])\nexcept errata.errors.BadInput as e: print(e)"
    )
    url = ["postgresql:///x"]
    for package, more, extra in (
        ("sqlalchemy", [], "journal"),
        ("alembic", [], "journal"),
        ("psycopg", url, "postgres"),
    ):
        said = subprocess.run(
            [sys.executable, "-c", f"import errata.errors\n{code}", package, str(tmp_path / package), *more],
            capture_output=True,
            text=True,
        )
        assert f'pip install "errata[{extra}]"' in said.stdout, said


def test_no_torch_to_look_at_a_journal(filed: Journal, tmp_path: Path) -> None:
    commit = filed.commit(ONE, why="1")
    code = (
        "import sys, errata\nj = errata.Journal.open(sys.argv[1])\nj.log(), j.tag('x'), j.branch('y'), j.edits()\n"
        "j.write('HEAD', sys.argv[2])\nassert not {'torch', 'numpy', 'alembic'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(filed.path), str(tmp_path / "out")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert Patch.load(tmp_path / "out") == ONE and filed.tags() == {"x": commit.id}


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadInput, match="cannot make a journal in"):
        Journal.create(tmp_path / "file")
    with pytest.raises(BadInput, match="there is no journal in"):
        Journal.open(tmp_path / "file")
    with pytest.raises(BadInput, match="there is no journal in"):
        Journal.open(tmp_path / "nowhere")


# Differences ----------------------------------------------------------------------------------------


def test_what_differs(journal: Journal) -> None:
    other = Edit("{} was born in", "Bob Ray", "Rome")
    journal.commit(patch_of(BORN[:3]), why="1")
    journal.commit(patch_of([BORN[0], other, BORN[3]]), why="2")
    diff = journal.diff()
    assert diff.added == (BORN[3],) and diff.gone == (BORN[2],) and diff.changed == ((BORN[1], other),)
    assert diff.answers is None and diff.parts == ()
    (site,) = diff.weights
    now, was = (journal.checkout(rev).parts[0].weights[SITE].dense().double() for rev in ("HEAD", "HEAD~"))
    assert site["site"] == SITE and site["shape"] == [32, 64]
    assert site["rank"] == torch.linalg.matrix_rank(now - was, rtol=1e-6) == 4
    assert site["norm"] == pytest.approx(float((now - was).norm()), rel=1e-5)
    assert (site["norm_a"], site["norm_b"]) == (pytest.approx(float(was.norm())), pytest.approx(float(now.norm())))
    back = journal.diff("HEAD", "HEAD~")
    assert back.added == diff.gone and back.gone == diff.added and back.changed == ((other, BORN[1]),)
    assert journal.diff("HEAD", "HEAD").weights == ()
    json.dumps(diff.to_json())


def test_what_differs_of_dense_changes_and_vectors(filed: Journal) -> None:
    base, more = torch.randn(32, 64), torch.zeros(32, 64)
    more[3] = 1.0
    filed.commit(Patch((Delta({SITE: base, "b": torch.ones(7), "same": torch.ones(2, 2)}),)), why="1")
    filed.commit(Patch((Delta({SITE: base + more, "b": torch.zeros(7), "same": torch.ones(2, 2)}),)), why="2")
    by_site = {one["site"]: one for one in filed.diff().weights}
    assert by_site.keys() == {SITE, "b"}
    assert by_site[SITE]["rank"] == 1 and by_site[SITE]["norm"] == pytest.approx(8.0, rel=1e-5)
    assert by_site["b"]["rank"] is None and by_site["b"]["norm"] == pytest.approx(7**0.5)


def test_answers_that_differ(filed: Journal) -> None:
    lm, edit = grown("grace")
    first = edit(EDITS[:1])
    filed.commit(first, why="1")
    filed.commit(edit(EDITS[1:], first), why="2")
    probe = Probe("paraphrase", "The old king lives in", ("Rome",))
    diff = filed.diff(lm=lm, cases=[Case("x", tuple(EDITS[:1]), (probe,))])
    assert [(part["side"], part["entries"]) for part in diff.parts] == [("a", 1), ("b", 3)] and diff.weights == ()
    answers = {line["prompt"]: (line["a"], line["b"]) for line in diff.answers or ()}
    assert answers and answers.keys() <= {edit.prompt for edit in EDITS[1:]}  # the others are answered as before
    for side, revision in enumerate(("HEAD~1", "HEAD")):
        with filed.checkout(revision).applied(lm) as edited:
            for prompt, said in answers.items():
                assert said[side] == answer_of(edited.generate([prompt], until_answer=True)[0])
    back = filed.diff("HEAD", "HEAD~1", lm=lm).answers or ()
    assert {line["prompt"]: (line["b"], line["a"]) for line in back} == answers


# Reverts ---------------------------------------------------------------------------------------------


def grown(name: str) -> tuple[Any, Callable[..., Patch]]:
    """The tiny GPT-2, and an edit of it by that method."""
    lm, method = tiny_lm("gpt2"), quick(name)
    state = method.prepare(lm, TEXTS)
    return lm, lambda edits, prior=EMPTY: method.edit(lm, edits, state, prior)


def test_an_entry_of_a_memory_is_dropped(journal: Journal) -> None:
    _, edit = grown("grace")
    whole = edit(EDITS)
    journal.commit(whole, why="three")
    commit = journal.revert(EDITS[1].id[:6], author="Bob")
    assert commit.how is not None and commit.how["way"] == "exact: entry dropped"
    assert commit.how["taken out"]["id"] == EDITS[1].id
    assert commit.why == f"revert of {EDITS[1].prompt!r} -> 'New York'" and commit.author == "Bob"
    assert journal.checkout() == whole.without(EDITS[1].id)
    assert [e.id for e in journal.edits()] == [EDITS[0].id, EDITS[2].id]
    with pytest.raises(UnknownName, match="unknown edit"):
        journal.revert(EDITS[1].id)
    with pytest.raises(BadInput, match="an edit is named by its id"):
        journal.revert("")


def test_the_last_edit_leaves_the_base_model(journal: Journal) -> None:
    journal.commit(ONE, why="1")
    commit = journal.revert(BORN[0].id, why="it was wrong")
    assert commit.how is not None and commit.how["way"] == "exact: there was no other edit"
    assert commit.why == "it was wrong" and commit.fingerprint == MODEL["fingerprint"]
    assert journal.checkout() == EMPTY


def test_without_the_model_a_change_of_weights_stays_whole(journal: Journal) -> None:
    first = journal.commit(ONE, why="1")
    second = journal.commit(THREE, why="3")
    with pytest.raises(Refused, match=rf"give the model \(--model\).*; `errata checkout {first.short}` gives the last"):
        journal.revert(BORN[1].id)
    assert journal.find() == second


def test_edits_are_made_again_where_one_cannot_be_taken_out(filed: Journal) -> None:
    lm, edit = grown("ft-m")
    first = edit(EDITS[:1])
    second = edit(EDITS[1:2], first)
    filed.commit(first, why="1")
    filed.commit(second, why="2")
    filed.commit(edit(EDITS[2:], second), why="3")
    commit = filed.revert(EDITS[1].id, lm=lm)
    assert commit.how is not None and commit.how["way"] == "made again: 1 by ft-m, on a patch of 1"
    assert "ft-m" in commit.how["not exact"]
    assert filed.checkout() == edit(EDITS[2:], first)
    commit = filed.revert(EDITS[0].id, lm=lm)
    assert commit.how is not None and commit.how["way"] == "made again: 1 by ft-m, on a patch of 0"
    assert filed.checkout() == edit(EDITS[2:])


def test_a_closed_form_is_solved_again(filed: Journal) -> None:
    lm, memit = tiny_lm("gpt2"), quick("memit")
    filed.commit(memit.edit(lm, EDITS, memit.prepare(lm)), why="all")  # with what a revert prepares
    with pytest.raises(Refused, match=r"out of weights without the model; give the model \(--model\)"):
        filed.revert(EDITS[1].id)
    commit = filed.revert(EDITS[1].id, lm=lm)
    assert commit.how is not None and commit.how["way"] == SOLVED and "not exact" not in commit.how
    assert filed.checkout().edits == [EDITS[0], *EDITS[2:]]


def test_a_revert_with_another_model_is_refused_as_such(filed: Journal) -> None:
    filed.commit(grown("memit")[1](EDITS), why="all")
    with pytest.raises(WrongModel):
        filed.revert(EDITS[1].id, lm=tiny_lm("llama"))


def test_a_review_of_another_model_is_refused_and_one_that_refuses_is_warned_of(
    filed: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(WrongModel, match="the review is of the model 'other' \\('ffff'\\), and the patch of tiny"):
        filed.commit(ONE, why="1", review={"model": "other", "fingerprint": "ffff"})
    assert filed.log() == []
    filed.commit(ONE, why="1", review={"passed": True, "fingerprint": MODEL["fingerprint"]})
    assert "refuses" not in caplog.text
    filed.commit(ONE, why="2", review={"passed": False})
    assert "with which it was recorded, refuses the patch" in caplog.text


def test_a_review_of_another_patch_is_refused_unless_forced(filed: Journal, caplog: pytest.LogCaptureFixture) -> None:
    other = {"passed": True, "patch": patch_of(BORN[1:3]).digest}
    with pytest.raises(Refused, match=f"is of the patch '{other['patch'][:10]}…', and this one is"):
        filed.commit(ONE, why="1", review=other)
    assert filed.log() == [] and not caplog.text
    forced = filed.commit(ONE, why="1", review=other, force=True)
    assert forced.how == {"review of another patch": other["patch"]} and "is of another patch" in caplog.text
    caplog.clear()
    own = filed.commit(ONE, why="2", review={"passed": True, "patch": ONE.digest}, force=True)
    assert own.how is None and not caplog.text


def test_what_cannot_be_made_again_is_refused(filed: Journal) -> None:
    lm = tiny_lm("gpt2")
    meta = {"made": [record(EDITS[:2], method="nobody")]}
    filed.commit(Patch(ONE.parts, meta=meta), why="1")
    with pytest.raises(Refused, match=r"cannot be made again \(unknown method 'nobody'"):
        filed.revert(EDITS[0].id, lm=lm)
    filed.commit(Patch(ONE.parts, meta={"made": [record(EDITS[:2])], "scaled": 2.0}), why="2")
    with pytest.raises(Refused, match="transformed or scaled, which is not done again"):
        filed.revert(EDITS[0].id, lm=lm)
    assert len(filed.log()) == 2


def test_ids_of_ones_own_are_not_taken_for_facts() -> None:
    one, two = Edit("{} lives in", "Ann", "Rome", id="1"), Edit("{} lives in", "Bob", "Rome", id="1")
    assert fact(one) != fact(two) and fact(one) == fact(Edit("Ann lives in", "Ann", "Rome"))
