"""Merging: two branches, or the journals of two people; what is added, what clashes, what is made again."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import EDITS, TEXTS, quick, tiny_lm
from journals import BORN, MODEL, SITE, change_of, new_database, patch_of
from torch import Tensor

from errata.errors import BadInput, Refused, UnknownName, WrongModel
from errata.journal.clashes import OUT_OURS, OUT_THEIRS, SAME_ID, Clashing
from errata.journal.combining import ADDED, JOINED, ONE_SIDE
from errata.journal.commit import fact
from errata.journal.journal import Journal
from errata.journal.merging import FORWARD, NOTHING
from errata.journal.merging import OURS as OURS_STAYS
from errata.journal.merging import THEIRS as THEIRS_STAYS
from errata.patch.delta import Delta
from errata.patch.low_rank import LowRank
from errata.patch.patch import EMPTY, Patch
from errata.types import Edit

BASE = patch_of(BORN[:2])
OURS = patch_of(BORN[2:3], BASE, "2026-02-01T00:00:00Z")
THEIRS = patch_of(BORN[3:5], BASE, "2026-03-01T00:00:00Z")


def to_rome(who: int, time: str = "2026-04-01T00:00:00Z", prior: Patch = BASE, **more: Any) -> Patch:
    """A patch with another birthplace."""
    return patch_of([Edit("{} was born in", BORN[who].subject, "Rome", **more)], prior, time)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """A journal whose branches main and side are at the same commit."""
    journal = Journal.create(tmp_path / "journal")
    journal.commit(BASE, why="base")
    journal.branch("side")
    return journal


def parted(journal: Journal, ours: Patch, theirs: Patch) -> Journal:
    """The journal, with a patch on either branch."""
    journal.commit(ours, why="ours")
    journal.commit(theirs, why="theirs", branch="side")
    return journal


def change(patch: Patch) -> Tensor:
    total = sum(patch.of_kind(Delta), Delta({})).weights[SITE]
    return total.dense() if isinstance(total, LowRank) else total


def expected(edits: list[Edit]) -> Tensor:
    return sum((change_of(edit).dense() for edit in edits), torch.zeros(32, 64))


# What is added -----------------------------------------------------------------------------------


def test_changes_of_both_sides_are_added(journal: Journal) -> None:
    parted(journal, OURS, THEIRS)
    ours, theirs = journal.find(), journal.find("side")
    merged = journal.merge("side", author="Ann")
    assert merged.way == ADDED and merged.clashes == () and merged.answered is None
    assert merged.base == journal.find("HEAD~2") and merged.commit == journal.find() == journal.log()[0]
    assert merged.commit.parents == (ours.id, theirs.id) and merged.commit.depth == 3
    assert merged.commit.why == "merge of side" and merged.commit.author == "Ann"
    patch = journal.checkout()
    assert patch.edits == journal.edits() == BORN[:5]
    weights = patch.of_kind(Delta)[0].weights[SITE]
    assert isinstance(weights, LowRank) and weights.rank == 5  # what both share stands there once
    torch.testing.assert_close(change(patch), expected(BORN[:5]))
    keys = patch.memory["keys/" + SITE]
    assert torch.equal(keys, torch.cat([change_of(edit).b for edit in BORN[:5]]))
    assert [len(made["edits"]) for made in patch.meta["made"]] == [2, 1, 2]
    assert merged.commit.added == tuple(BORN[3:5]) and merged.commit.how is not None
    assert merged.commit.how["way"] == ADDED and journal.check() == []
    assert journal.merge("side").way == NOTHING and journal.find() == merged.commit
    json.dumps(merged.to_json())


def test_a_merge_is_the_same_from_either_side(journal: Journal) -> None:
    parted(journal, OURS, THEIRS)
    journal.merge("main", branch="side")
    other = journal.checkout("side")
    journal.branch("third", "HEAD~0")
    journal.merge(journal.find("side").parents[0], branch="third")
    torch.testing.assert_close(change(other), change(journal.checkout("third")))
    assert {fact(edit) for edit in other.edits} == {fact(edit) for edit in BORN[:5]}


def test_nothing_was_done_here(journal: Journal) -> None:
    side = journal.commit(THEIRS, why="theirs", branch="side")
    merged = journal.merge("side")
    assert merged.way == FORWARD and merged.commit == side == journal.find("main")
    assert len(journal.log()) == 2


def test_what_either_side_has_taken_out_is_gone(journal: Journal) -> None:
    without_first, without_second = patch_of([BORN[1], BORN[2]]), patch_of([BORN[0], BORN[3]])
    parted(journal, without_first, without_second)
    journal.merge("side")
    assert [edit.subject for edit in journal.edits()] == ["Cy Moor", "Dora Finn"]
    torch.testing.assert_close(change(journal.checkout()), expected(BORN[2:4]), atol=1e-5, rtol=1e-5)
    keys = journal.checkout().memory["keys/" + SITE]
    assert torch.equal(keys, torch.cat([change_of(edit).b for edit in BORN[2:4]]))


def test_both_have_taken_out_the_same(journal: Journal) -> None:
    parted(journal, patch_of([BORN[1], BORN[2]]), patch_of([BORN[1], BORN[3]]))
    with pytest.raises(Refused, match="which the sum of their changes would take out twice"):
        journal.merge("side")


def test_dense_changes_and_gram_matrices(journal: Journal) -> None:
    def dense(patch: Patch) -> Patch:
        keys = patch.memory["keys/" + SITE]
        weights = Delta({SITE: change(patch), "b": torch.full((3,), float(len(keys)))})
        return Patch((weights,), {"gram/" + SITE: keys.T @ keys}, patch.meta)

    journal.commit(dense(BASE), why="base")
    journal.branch("other")
    journal.commit(dense(OURS), why="ours")
    journal.commit(dense(THEIRS), why="theirs", branch="other")
    journal.merge("other")
    patch, keys = journal.checkout(), torch.cat([change_of(edit).b for edit in BORN[:5]])
    torch.testing.assert_close(change(patch), expected(BORN[:5]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(patch.memory["gram/" + SITE], keys.T @ keys, atol=1e-4, rtol=1e-5)
    assert patch.of_kind(Delta)[0].weights["b"].tolist() == [5.0] * 3  # type: ignore[union-attr]


def test_keys_become_a_gram_matrix_where_they_are_as_many_as_wide(journal: Journal) -> None:
    many = [Edit("{} was born in", f"Person {i}", "Oslo") for i in range(64)]
    parted(journal, patch_of(many[:31], BASE), patch_of(many[31:62], BASE))
    journal.merge("side")
    keys = torch.cat([change_of(edit).b for edit in (*BORN[:2], *many[:62])])
    memory = journal.checkout().memory
    assert memory.keys() == {"gram/" + SITE}
    torch.testing.assert_close(memory["gram/" + SITE], keys.T @ keys, atol=1e-3, rtol=1e-4)


def rows(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None].repeat(1, 3)


def test_what_else_is_remembered(journal: Journal) -> None:
    def with_more(patch: Patch, **more: Tensor) -> Patch:
        return Patch(patch.parts, {**patch.memory, **more}, patch.meta)

    journal.commit(with_more(BASE, targets=rows(1, 2), once=rows(7), given_up=rows(1)), why="base")
    journal.branch("other")
    journal.commit(with_more(OURS, targets=rows(1, 2, 3), once=rows(7)), why="ours")
    theirs = with_more(THEIRS, targets=rows(1, 2, 4, 5), once=rows(8), given_up=rows(1, 2), new=rows(9))
    journal.commit(theirs, why="theirs", branch="other")
    journal.merge("other")
    memory = journal.checkout().memory
    assert torch.equal(memory["targets"], rows(1, 2, 3, 4, 5)) and torch.equal(memory["once"], rows(8))
    assert torch.equal(memory["new"], rows(9)) and "given_up" not in memory
    ours, theirs_now = (with_more(journal.checkout(), **{"targets/x": rows(n)}) for n in (1, 2))
    journal.branch("third")
    journal.commit(with_more(ours, **{"targets/x": rows(1, 2)}), why="ours")
    journal.commit(theirs_now, why="theirs", branch="third")
    journal.merge("third")
    assert torch.equal(journal.checkout().memory["targets/x"], rows(1, 2, 2))
    journal.branch("fourth")
    journal.commit(with_more(ours, **{"targets/x": rows(3)}), why="ours")
    journal.commit(with_more(ours, **{"targets/x": rows(4)}), why="theirs", branch="fourth")
    journal.merge("fourth")
    assert "targets/x" not in journal.checkout().memory
    journal.commit(with_more(journal.checkout(), numbers=torch.tensor([[1]])), why="ours")
    more = patch_of(BORN[5:6], with_more(theirs, numbers=torch.tensor([[2]])))
    journal.commit(more, why="theirs", branch="other")
    with pytest.raises(Refused, match="both sides have changed what they remember of numbers"):
        journal.merge("other")


# Two people --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_journals_of_two_people(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    url = new_database(request.getfixturevalue("postgres")) if kind == "postgres" else None
    mine, theirs = Journal.create(tmp_path / "mine", url), Journal.create(tmp_path / "theirs")
    base = mine.commit(BASE, why="base")
    assert theirs.merge(tmp_path / "mine").way == FORWARD  # an empty journal takes all of the other's
    assert theirs.log() == [base] and theirs.checkout() == BASE and theirs.check() == []
    mine.commit(OURS, why="ours")
    other = theirs.commit(THEIRS, why="theirs")
    merged = mine.merge(str(tmp_path / "theirs"))
    assert merged.base == base and merged.way == ADDED and merged.commit.why == f"merge of {theirs.path} HEAD"
    assert mine.edits() == BORN[:5] and other in mine.log() and mine.check() == []
    assert mine.checkout(other.id) == THEIRS
    assert theirs.merge(mine).way == FORWARD and theirs.log() == mine.log() and theirs.check() == []
    assert mine.merge(theirs, revision="HEAD~1").way == NOTHING


def test_without_a_common_commit_the_base_model_is_the_ancestor(tmp_path: Path) -> None:
    mine, theirs = Journal.create(tmp_path / "mine"), Journal.create(tmp_path / "theirs")
    mine.commit(patch_of(BORN[:2]), why="mine")
    theirs.commit(patch_of(BORN[1:3]), why="theirs")
    with pytest.raises(Refused, match="without the model"):  # one edit is in both, and would be added twice
        mine.merge(theirs)
    theirs.commit(patch_of(BORN[2:4]), why="theirs")
    merged = mine.merge(theirs)
    assert merged.base is None and "no common commit: the base model itself" in merged.way
    torch.testing.assert_close(change(mine.checkout()), expected(BORN[:4]))


def test_only_journals_of_one_model_are_merged(tmp_path: Path) -> None:
    mine, theirs = Journal.create(tmp_path / "mine"), Journal.create(tmp_path / "theirs")
    mine.commit(BASE, why="mine")
    stranger = Patch(OURS.parts, OURS.memory, {**OURS.meta, "model": {**MODEL, "fingerprint": "f" * 16}})
    theirs.commit(stranger, why="theirs")
    with pytest.raises(WrongModel, match="only journals of one model are merged"):
        mine.merge(theirs)
    assert len(mine.log()) == 1


def test_a_damaged_journal_is_not_taken_in(tmp_path: Path) -> None:
    mine, theirs = Journal.create(tmp_path / "mine"), Journal.create(tmp_path / "theirs")
    mine.commit(BASE, why="mine")
    theirs.merge(mine)
    early, late = theirs.commit(patch_of(BORN[3:4], BASE), why="1"), theirs.commit(THEIRS, why="2")
    blob = theirs.blobs.place(early.patch)
    blob.write_bytes(blob.read_bytes() + b"x")
    mine.commit(OURS, why="ours")
    with pytest.raises(BadInput, match=rf"{blob.name} is damaged"):
        mine.merge(theirs)
    assert len(mine.log()) == 2
    with pytest.raises(UnknownName):
        mine.find(late.id)


def test_what_is_no_other_side(journal: Journal, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"there is no journal in .*nowhere; give the folder of one, or a branch"):
        journal.merge(tmp_path / "nowhere")
    with pytest.raises(UnknownName, match="unknown revision 'sida'; did you mean side"):
        journal.merge("sida")
    with pytest.raises(BadInput, match="has no commit"):
        journal.merge(Journal.create(tmp_path / "empty"))


def test_the_branch_moved_meanwhile(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    parted(journal, OURS, THEIRS)
    from errata.journal import merging

    whole = merging._merged

    def slow(*given: Any) -> Any:
        Journal.open(journal.path).commit(patch_of(BORN[6:7], OURS), why="meanwhile")
        return whole(*given)

    monkeypatch.setattr(merging, "_merged", slow)
    with pytest.raises(Refused, match="make the patch again on what is there now"):
        journal.merge("side")
    assert journal.find().why == "meanwhile"


# What clashes ------------------------------------------------------------------------------------


def test_edits_that_clash_are_listed_side_by_side(journal: Journal) -> None:
    other = to_rome(2)
    parted(journal, OURS, other)
    before = journal.log()
    with pytest.raises(Clashing) as refusal:
        journal.merge("side")
    assert refusal.value.exit_code == 3 and journal.log() == before
    message = str(refusal.value)
    assert "1 pair of edits clash" in message and "other target" in message
    assert f"'Cy Moor was born in' -> 'Oslo' (ours, {BORN[2].id}) against 'Cy Moor was born in' -> 'Rome'" in message
    (clash,) = refusal.value.clashes
    assert clash.ours == BORN[2] and clash.theirs == other.edits[2] and clash.keep is None


@pytest.mark.parametrize(
    ("rule", "time", "stays"),
    [
        ("newest", "2026-04-01T00:00:00Z", "Rome"),
        ("newest", "2026-01-15T00:00:00Z", "Oslo"),
        ("newest", "2026-02-01T00:00:00Z", "Oslo"),  # at the same time: ours
        ("ours", "2026-04-01T00:00:00Z", "Oslo"),
        ("theirs", "2026-01-15T00:00:00Z", "Rome"),
    ],
)
def test_a_rule_decides(rule: Any, time: str, stays: str, journal: Journal) -> None:
    """Of memories, whose entries can be dropped: two that are in a row."""
    lm, edit = grown("grace")
    prior = edit(EDITS[:1])
    journal = Journal.create(journal.path.parent / "memory")
    journal.commit(prior, why="base")
    journal.branch("side")
    one, two = (Edit("{} was born in", "Eve Stone", where) for where in ("Oslo", "Rome"))
    parted(journal, at(edit([one], prior), "2026-02-01T00:00:00Z"), at(edit([two], prior), time))
    merged = journal.merge("side", rule=rule, lm=lm)
    assert [e.target_new for e in journal.edits()] == ["Oslo", stays]
    assert [(clash.kind, clash.keep) for clash in merged.clashes] == [
        ("other target", "ours" if stays == "Oslo" else "theirs")
    ]
    assert merged.commit.how is not None and merged.commit.how["clashes"][0]["keep"] == merged.clashes[0].keep


def at(patch: Patch, time: str) -> Patch:
    """The patch, whose last call was made at another time."""
    made = [*patch.meta["made"][:-1], {**patch.meta["made"][-1], "time": time}]
    return Patch(patch.parts, patch.memory, {**patch.meta, "made": made})


def test_changes_of_weights_need_the_model_to_drop_an_edit(journal: Journal) -> None:
    parted(journal, patch_of(BORN[2:4], BASE), patch_of(BORN[4:5], to_rome(2)))
    for rule in ("ours", "theirs"):
        with pytest.raises(Refused, match=r"cannot be combined without the model .*; give the model \(--model\)"):
            journal.merge("side", rule=rule)  # type: ignore[arg-type]


def test_a_side_is_taken_as_it_is_where_the_other_leaves_nothing(journal: Journal) -> None:
    other = to_rome(2)
    parted(journal, OURS, other)
    journal.branch("third", "main")
    assert journal.merge("side", rule="ours").way == OURS_STAYS and journal.checkout() == OURS
    assert journal.merge("side", branch="third", rule="theirs").way == THEIRS_STAYS
    assert journal.checkout("third") == other and journal.edits("third") == other.edits
    assert journal.find("main").parents[1] == journal.find("third").parents[1] == journal.find("side").id


def test_one_by_one(journal: Journal) -> None:
    parted(journal, OURS, to_rome(2))
    with pytest.raises(Clashing) as refusal:
        journal.merge("side")
    (said,) = json.loads(json.dumps([clash.to_json() for clash in refusal.value.clashes]))
    assert said["keep"] is None
    with pytest.raises(Clashing):
        journal.merge("side", resolutions=[said])
    merged = journal.merge("side", resolutions=[{**said, "keep": "both"}])
    assert [edit.target_new for edit in journal.edits()] == ["Oslo", "Oslo", "Oslo", "Rome"]
    assert merged.clashes[0].keep == "both"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"keep": "mine"}, "keep is one of ours, theirs, both, neither, found 'mine'"),
        ({"ours": 3}, "a resolution has the keys keep, ours and theirs"),
        ({"ours": {"id": "nobody"}}, "a resolution is about nobody and .*, which do not clash"),
    ],
)
def test_resolutions_that_are_none(wrong: dict[str, Any], words: str, journal: Journal) -> None:
    parted(journal, OURS, to_rome(2))
    with pytest.raises(Clashing) as refusal:
        journal.merge("side")
    said = {**refusal.value.clashes[0].to_json(), "keep": "ours", **wrong}
    with pytest.raises(BadInput, match=words):
        journal.merge("side", resolutions=[said])
    with pytest.raises(UnknownName, match="unknown rule 'mine'"):
        journal.merge("side", rule="mine")  # type: ignore[arg-type]


def test_one_has_taken_out_what_the_other_has_changed(journal: Journal) -> None:
    out, changed = patch_of([BORN[1]]), to_rome(0, prior=patch_of([BORN[1]]))
    parted(journal, out, changed)
    with pytest.raises(Clashing) as refusal:
        journal.merge("side")
    (clash,) = refusal.value.clashes
    assert clash.kind == OUT_OURS and clash.ours == BORN[0] and clash.theirs.target_new == "Rome"
    with pytest.raises(Clashing) as refusal:
        journal.merge("main", branch="side")
    (clash,) = refusal.value.clashes
    assert clash.kind == OUT_THEIRS and clash.ours.target_new == "Rome" and clash.theirs == BORN[0]


@pytest.mark.parametrize("changed_by", ["ours", "theirs"])
def test_a_change_of_what_the_other_has_taken_out_is_made_again(changed_by: Any, tmp_path: Path) -> None:
    """It was made with the older edit in force, so added to weights without that it would lead elsewhere."""
    lm, edit = grown("rome")
    anew = replace(EDITS[0], target_new="Lima", id="")
    base = edit(EDITS[:2])
    changed = edit([anew], base)
    journal = Journal.create(tmp_path / "j")
    journal.commit(base, why="base")
    journal.branch("out")
    journal.branch("changed")
    journal.revert(EDITS[0].id, branch="out", lm=lm)
    journal.commit(changed, why="changed", branch="changed")
    ours, theirs = ("changed", "out") if changed_by == "ours" else ("out", "changed")
    with pytest.raises(Refused, match=r"without the model \(.* made with .* in force.*; give the model \(--model\)"):
        journal.merge(theirs, rule=changed_by, branch=ours)
    merged = journal.merge(theirs, rule=changed_by, branch=ours, lm=lm)
    assert merged.way == "made again: 1 by rome, on a patch of 1"
    rome = quick("rome")
    again = rome.edit(lm, [anew], rome.prepare(lm), journal.checkout("out" if changed_by == "ours" else "out~1"))
    assert [fact(one) for one in journal.edits(ours)] == [fact(EDITS[1]), fact(anew)]
    assert journal.checkout(ours) == again


def test_with_a_model_what_was_taken_out_is_known_in_other_words(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    reworded = Edit("The birthplace of {} is", BORN[0].subject, "Rome")
    parted(journal, patch_of(BORN[1:2]), patch_of([reworded], BASE))
    monkeypatch.setattr("errata.conflicts.rewording.same_fact", lambda lm, pairs, patch: [True for _ in pairs])
    with pytest.raises(Clashing) as refusal:
        journal.merge("side", lm=tiny_lm("gpt2"))
    (clash,) = refusal.value.clashes
    assert clash.kind == OUT_OURS and (clash.ours, clash.theirs) == (BORN[0], reworded)
    journal.merge("side")  # texts do not tell


def test_equal_ids_of_different_facts_clash(journal: Journal) -> None:
    mine, other = (Edit("{} was born in", who, "Oslo", id="1") for who in ("Eve Stone", "Flo Ash"))
    parted(journal, patch_of([mine], BASE), patch_of([other], BASE))
    with pytest.raises(Clashing) as refusal:
        journal.merge("side")
    assert [clash.kind for clash in refusal.value.clashes] == [SAME_ID]


# Memories ------------------------------------------------------------------------------------------


def grown(name: str) -> tuple[Any, Callable[..., Patch]]:
    """The tiny GPT-2, and an edit of it by that method."""
    lm, method = tiny_lm("gpt2"), quick(name)
    state = method.prepare(lm, TEXTS) if method.needs_prepare else None
    return lm, lambda edits, prior=EMPTY: method.edit(lm, edits, state, prior)


def test_a_memory_that_one_side_has_changed_is_taken(tmp_path: Path) -> None:
    lm, edit = grown("grace")
    journal, base = Journal.create(tmp_path / "j"), edit(EDITS[:1])
    journal.commit(base, why="base")
    journal.branch("side")
    ours = Patch((Delta({SITE: change_of(BORN[0])}), *base.parts), base.memory, base.meta)
    theirs = edit(EDITS[1:2], base)
    parted(journal, ours, theirs)
    merged = journal.merge("side", lm=lm)
    patch = journal.checkout()
    assert merged.way == ONE_SIDE and patch.parts == (ours.parts[0], theirs.parts[0])
    assert [e.id for e in patch.edits] == [EDITS[0].id, EDITS[1].id]


def test_memories_of_two_kinds_are_put_in_a_row(tmp_path: Path) -> None:
    lm, grace = grown("grace")
    _, rag = grown("ft-m")
    _, memory = grown("t-patcher")
    journal = Journal.create(tmp_path / "j")
    base = rag(EDITS[:1])
    journal.commit(base, why="base")
    journal.branch("side")
    ours, theirs = grace(EDITS[1:2], base), memory(EDITS[2:], base)
    parted(journal, ours, theirs)
    merged = journal.merge("side", lm=lm)
    assert JOINED in merged.way
    assert journal.checkout().parts == (*ours.parts, *theirs.parts[1:])
    assert merged.answered is not None and journal.check() == []


def test_an_edit_that_both_have_made_stands_once(tmp_path: Path) -> None:
    _, edit = grown("grace")
    journal, base = Journal.create(tmp_path / "j"), edit(EDITS[:1])
    journal.commit(base, why="base")
    journal.branch("side")
    both = edit(EDITS[1:2], base)
    parted(journal, edit([*EDITS[2:], BORN[7]], both), both)
    merged = journal.merge("side")
    assert merged.clashes == () and journal.edits() == [*EDITS, BORN[7]]
    assert len(journal.checkout().parts[0].entries()) == 4


def test_one_memory_that_both_have_changed_is_made_again(tmp_path: Path) -> None:
    lm, edit = grown("grace")
    journal, base = Journal.create(tmp_path / "j"), edit(EDITS[:1])
    journal.commit(base, why="base")
    journal.branch("side")
    parted(journal, edit(EDITS[1:2], base), edit(EDITS[2:], base))
    with pytest.raises(Refused, match=r"both sides have changed the same memory.*give the model \(--model\)"):
        journal.merge("side")
    merged = journal.merge("side", lm=lm)
    assert merged.way == "made again: 1 by grace, on a patch of 2"
    assert journal.checkout().edits == EDITS and len(journal.checkout().parts) == 1
    assert len(journal.checkout().parts[0].entries()) == 3
    assert merged.commit.how is not None and merged.commit.how["edits"] == 3
    assert merged.answered == merged.commit.how["answered"]


def test_edits_are_made_again_where_that_is_asked_for(tmp_path: Path) -> None:
    lm, edit = grown("ft-m")
    journal, base = Journal.create(tmp_path / "j"), edit(EDITS[:1])
    journal.commit(base, why="base")
    journal.branch("side")
    ours = edit(EDITS[1:2], base)
    parted(journal, ours, edit(EDITS[2:], base))
    merged = journal.merge("side", lm=lm, again=True)
    assert merged.way == "made again: 1 by ft-m, on a patch of 2"
    assert journal.checkout() == edit(EDITS[2:], ours)


def test_an_edit_that_is_lost_in_the_sum_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lm, edit = grown("ft-m")
    journal, base = Journal.create(tmp_path / "j"), edit(EDITS[:1])
    journal.commit(base, why="base")
    journal.branch("side")
    ours, theirs = edit(EDITS[1:2], base), edit(EDITS[2:], base)
    huge = theirs + Patch((Delta({SITE: torch.full((32, 64), 50.0)}),))
    parted(journal, ours, Patch(huge.parts, huge.memory, theirs.meta))
    merged = journal.merge("side", lm=lm)
    assert merged.way == ADDED and merged.answered is not None
    assert merged.commit.how is not None and merged.commit.how["lost"] == [e.id for e in merged.lost]
    assert merged.answered + len(merged.lost) <= 3
    assert bool(merged.lost) == ("no longer answered with their target" in caplog.text)


def test_sides_that_have_parted_twice(journal: Journal) -> None:
    """Criss-cross: each has merged the other's earlier commit, so there are two last common ones."""
    parted(journal, OURS, THEIRS)
    early, their_early = journal.find().id, journal.find("side").id
    journal.merge(their_early)
    journal.merge(early, branch="side")
    journal.commit(patch_of(BORN[5:6], journal.checkout()), why="ours")
    journal.commit(patch_of(BORN[6:7], journal.checkout("side")), why="theirs", branch="side")
    with pytest.raises(Refused, match="have parted more than once"):
        journal.merge("side")


def test_edits_of_no_method_that_is_known_are_not_made_again(journal: Journal) -> None:
    parted(journal, OURS, THEIRS)
    lm = tiny_lm("gpt2")
    strange = Patch(THEIRS.parts, meta={**THEIRS.meta, "scaled": 2.0})
    journal.commit(strange, why="scaled", branch="side")
    with pytest.raises(Refused, match="their edits not be made again"):
        journal.merge("side", lm=lm, again=True)
