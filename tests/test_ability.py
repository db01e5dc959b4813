"""What a model can do besides its facts, how far its weights move, and both along a run."""

from collections.abc import Iterator
from dataclasses import replace
from math import exp
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import EDITS, TEXTS, same_weights, tiny_lm, weights
from test_bench import FTM, cases, go, plan
from typer.testing import CliRunner
from typing_extensions import override

import errata
from errata.bench.units import units_of
from errata.cli import app
from errata.errors import BadInput, Unsupported
from errata.evaluation import drift as module
from errata.evaluation.ability import Ability, Checkup, ability_of
from errata.evaluation.drift import Drift, Spectrum, drift, drift_sites, spectra_of
from errata.evaluation.metrics import change_of
from errata.model import weights as stored
from errata.model.hf import HFLM
from errata.model.lm import LM
from errata.model.resources import Resources
from errata.patch.delta import Delta
from errata.patch.low_rank import LowRank
from errata.patch.patch import EMPTY, Patch
from errata.report.markdown import markdown
from errata.report.pictures import curves, svg
from errata.report.rows import from_jsonl
from errata.report.sections import sections
from errata.types import Case, Edit, Probe, Row

SITE = "transformer.h.1.mlp.c_proj"


def known_lm(name: str = "gpt2") -> HFLM:
    """A tiny model that comes with texts and training cases, as one of the world does."""
    lm = tiny_lm(name)
    lm.resources = Resources(lambda: iter(TEXTS * 2), lambda: cases())
    return lm


# Drift, by hand ----------------------------------------------------------------------------------


def test_effective_rank_by_hand() -> None:
    changes = {"flat": torch.eye(4)[:, :3], "one": torch.ones(2, 3), "two": torch.diag(torch.tensor([3.0, 1.0]))}
    found = {name: change.effective for name, change in change_of(changes).items()}
    # exp(-(3/4 log 3/4 + 1/4 log 1/4)) = 4 / 3^(3/4)
    assert found == {"flat": pytest.approx(3.0), "one": pytest.approx(1.0), "two": pytest.approx(4 / 3**0.75)}


@pytest.mark.parametrize("low_rank", [False, True])
def test_drift_by_hand(low_rank: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # W = [[3, 0, 0], [0, 4, 0]], Δ = [[0, 1, 2], [0, 0, 0]], C = diag(90, 9, 1): the third direction holds 1 % < 2 %
    lm = tiny_lm("gpt2")
    monkeypatch.setattr(module, "_weight", lambda *_: torch.tensor([[3.0, 0, 0], [0, 4, 0]]).double())
    monkeypatch.setattr(Delta, "check", lambda *_: None)
    dense = torch.tensor([[0.0, 1, 2], [0, 0, 0]])
    change = LowRank(torch.tensor([[1.0], [0]]), dense[:1]) if low_rank else dense
    spectrum = Spectrum.of(torch.diag(torch.tensor([90.0, 9, 1])))
    found = drift(lm, Patch((Delta({f"{SITE}.weight": change}),)), {SITE: spectrum})[SITE]
    output_change = ((9 * 1 + 1 * 4) / (90 * 9 + 9 * 16)) ** 0.5
    expected = Drift(5**0.5 / 5, 1, 1.0, output_change, low=4 / 5, low_isotropic=1 / 3)
    assert vars(found) == pytest.approx(vars(expected))


def test_spectra_are_of_what_goes_in() -> None:
    lm = tiny_lm("gpt2", torch.float64)
    found = spectra_of(lm, TEXTS[:30], [SITE, "transformer.wte"])
    assert list(found) == [SITE]
    rows = [list(lm.tokenizer(text)["input_ids"]) for text in TEXTS[:30]]
    keys = lm.read(rows, [range(len(row)) for row in rows], [(SITE, "in")])[SITE, "in"].double()
    c = keys.T @ keys / len(keys)
    spectrum = found[SITE]
    again = spectrum.vectors @ torch.diag(spectrum.values) @ spectrum.vectors.T
    assert torch.allclose(again, c, atol=1e-4) and bool((spectrum.values.diff() >= 0).all())
    assert float(spectrum.values[spectrum.low].sum()) <= 0.02 * float(spectrum.values.sum())
    # half of W changes outputs by a half
    weight = lm.model.get_parameter(f"{SITE}.weight").detach().T.contiguous()
    same = drift(lm, Patch((Delta({f"{SITE}.weight": 0.5 * weight}),)), found)[SITE]
    assert (same.norm, same.relative_output_change) == (pytest.approx(0.5), pytest.approx(0.5))
    flat = drift(lm, Patch((Delta({f"{SITE}.weight": torch.eye(64)[:32].double() @ spectrum.vectors.T}),)), found)[SITE]
    assert flat.low_isotropic == pytest.approx(float(spectrum.low.double().mean())) and flat.rank == 32
    with pytest.raises(BadInput, match="no texts"):
        spectra_of(lm, [], [SITE])


def test_deltas_count_as_one_and_vectors_are_left_out() -> None:
    lm = tiny_lm("gpt2")
    patch = errata.method("ft-m", steps=2).edit(lm, EDITS)
    assert drift_sites(patch) and drift(lm, EMPTY) == {}
    both = Patch((*patch.parts, Delta({f"{SITE}.bias": torch.ones(32)}), *(-patch).parts))
    assert all(change.norm == 0 and change.rank == 0 for change in drift(lm, both).values())
    once, twice = (drift(lm, each) for each in (patch, patch * 2))
    assert [change.norm * 2 for change in once.values()] == pytest.approx([change.norm for change in twice.values()])
    assert all(change.relative_output_change is None and change.low is None for change in once.values())


def test_weights_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("gpt2")
    patch = errata.method("ft-m", steps=1).edit(lm, EDITS[:1])
    monkeypatch.setattr(Delta, "check", lambda *_: None)
    monkeypatch.setattr(stored, "is_plain", lambda *_: False)
    with pytest.raises(Unsupported, match="its values are needed"):
        drift(lm, patch)


# The built-in set --------------------------------------------------------------------------------


def test_facts_are_recalled_and_followed_in_context() -> None:
    ability = ability_of(known_lm())
    assert len(ability.cases) == 12 and {case.id for case in ability.cases} == {f"ability case {i}" for i in range(12)}
    for case in ability.cases:
        edit, (known, followed) = case.edits[0], case.probes
        assert (known.kind, known.prompt, known.answers) == ("unrelated", edit.prompt, ("Rome",))
        assert (followed.kind, followed.answers) == ("in_context", (edit.target_new,))
        assert followed.prompt.count("Fact: ") == 3 and f"Fact: {edit.prompt} {edit.target_new}." in followed.prompt
        assert followed.prompt.endswith(f". Yes, {edit.prompt}")  # the paraphrase: the answer is not only copied
    assert ability.texts == tuple((TEXTS * 2)[-100:]) and ability.ordinary == tuple((TEXTS * 2)[:-100])
    assert ability_of(known_lm()) == ability


def test_other_models_follow_facts_of_the_world(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lm = tiny_lm("gpt2")
    found = ability_of(lm, seed=1)
    assert "writes itself" in caplog.text and len(found.texts) == 100
    assert {probe.kind for case in found.cases for probe in case.probes} == {"in_context"}
    file = tmp_path / "texts.txt"
    file.write_text("One text.\n\nAnother.\n" + "word " * 500)
    read = ability_of(lm, file).texts
    assert read[:2] == ("One text.", "Another.") and len(lm.tokens.pair("", read[2])[1]) <= 128
    file.write_text("\n")
    for wrong, message in ((file, "holds no text"), (tmp_path / "none", "there is no file")):
        with pytest.raises(BadInput, match=message):
            ability_of(lm, wrong)


def test_a_checkup_before_and_after() -> None:
    lm = known_lm()
    was, ability = weights(lm.model), ability_of(lm)
    check = Checkup(lm, Ability(ability.cases[:4], ability.texts[:5], ability.ordinary), ("generated", "forced"))
    with EMPTY.applied(lm) as same:
        rows = check.rows(same, after_edits=0, model="m")
    assert all(row.before == row.after for row in rows) and {row.model for row in rows} == {"m"}
    patch = errata.method("ft-m", steps=5).edit(lm, EDITS)
    with patch.applied(lm) as edited:
        rows = check.rows(edited, after_edits=3)
        scores = edited.score([""] * 5, ability.texts[:5])
    rows += check.drift(patch, after_edits=3)
    assert same_weights(lm.model, was)
    for mode in ("generated", "forced"):
        kinds = [row.kind for row in rows if row.mode == mode]
        counts = {kind: kinds.count(kind) for kind in sorted(set(kinds))}
        assert counts == {"drift": 6, "in_context": 8, "text": 6, "unrelated": 8}
    first = next(row for row in rows if row.kind == "text")
    assert first.after == pytest.approx(-scores[0].total / len(scores[0].tokens)) and first.after != first.before
    (perplexity,) = {(row.before, row.after) for row in rows if row.metric == "perplexity"}
    total, count = (sum(values) for values in zip(*((score.total, len(score.tokens)) for score in scores)))
    assert perplexity[1] == pytest.approx(exp(-total / count)) and perplexity[0] != perplexity[1]
    by_metric = {row.metric: row for row in rows if row.kind == "drift"}
    norm = drift(lm, patch)[by_metric["norm"].case].norm
    assert (by_metric["norm"].before, by_metric["norm"].after) == (0.0, pytest.approx(norm))
    assert 0 < (by_metric["low"].after or 0) < 1 and by_metric["low"].before is None
    assert (by_metric["relative_output_change"].after or 0) > 0


class Mute(LM):
    """A model that answers, and scores nothing."""

    @override
    def generate(
        self, prompts: Any, max_new_tokens: int = 32, *, until_answer: bool = False, until: Any = ()
    ) -> list[str]:
        return [""] * len(prompts)

    @override
    def score(self, prompts: Any, targets: Any) -> Any:
        raise Unsupported("no scores here")


def test_a_loss_that_is_unsupported_stands_in_the_rows() -> None:
    lm = known_lm()
    ability = ability_of(lm)
    some, mute = Ability(ability.cases[:2], ability.texts[:3], ability.ordinary), Mute()
    for base in (lm, mute):
        rows = Checkup(base, some).rows(mute, after_edits=1)
        assert [(row.after, row.error) for row in rows if row.kind == "text"] == [(None, "no scores here")] * 4
        assert {row.before is None for row in rows if row.kind == "text"} == {base is mute}
    with pytest.raises(Unsupported, match="reads weights"):
        Checkup(mute, some).drift(EMPTY, after_edits=0)


# Along a run -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Row]]:
    """Two sequences of six edits, their ability asked at three checkpoints, and a batch without."""
    settings = [
        {"kind": "sequential", "batch": 2, "checkpoints": [2, 4, 6], "ability": True},
        {"kind": "batch", "size": 6},
    ]
    crossed = plan(methods=[FTM, {**FTM, "name": "ft-l"}], settings=settings)
    yield go(crossed, tmp_path_factory.mktemp("run") / "rows.jsonl", load=lambda _: known_lm())


def test_a_run_asks_at_each_checkpoint(run: list[Row]) -> None:
    rows = [row for row in run if row.kind in ("drift", "text", "in_context")]
    assert {row.after_edits for row in rows} == {2, 4, 6}
    assert {row.setting for row in rows} == {"sequential by 2, asked at 2 4 6, ability"}
    assert not any(row.kind == "edit" and row.case.startswith("ability") for row in run)
    losses = [row for row in rows if row.metric == "loss" and row.method == "ft-m"]
    assert len(losses) == 3 * 100 and len({row.before for row in losses}) > 1


def test_the_report_shows_what_becomes_of_the_model(run: list[Row], tmp_path: Path) -> None:
    text = markdown(run, picture="p.svg")
    assert "![curves](p.svg)" in text and "loss on text after so many edits:" in text
    assert "| method | 0 | 2 | 4 | 6 |" in text and "reliability after so many edits:\n\n| method | 2 | 4 | 6 |" in text
    section = next(section for section in sections(run) if section.course)
    at = {column: section.columns.index(column) for column in ("‖Δ‖ / ‖W‖", "loss on text", "facts in context")}
    unedited = dict(section.lines)["(unedited)"]
    assert unedited[at["‖Δ‖ / ‖W‖"]].mean == 0.0  # pyright: ignore[reportOptionalMemberAccess]
    curves(run, tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    drawn = svg(run)
    assert drawn.startswith("<svg") and svg([row for row in run if "batch" in row.setting]) == ""


def test_what_a_bench_file_says_of_ability() -> None:
    def setting(value: Any, **more: Any) -> Any:
        return plan(settings=[{"kind": "batch", "size": 2, "ability": value, **more}]).settings[0]

    assert setting(True).label == "batch of 2, ability" and setting(False).label == "batch of 2"
    assert setting("texts.txt").label == "batch of 2, ability on texts.txt"
    with pytest.raises(BadInput, match=r"ability is true, false, or a file"):
        setting(3)
    with pytest.raises(BadInput, match="ability"):
        plan(settings=[{"kind": "single", "ability": True}])
    lost = plan(settings=[{"kind": "batch", "size": 2, "ability": "no such file"}])
    with pytest.raises(BadInput, match="there is no file no such file; ability wants"):
        units_of(lost, errata.method, cases)


def test_a_case_without_paraphrases_is_asked_by_its_own_prompt() -> None:
    lm = known_lm()
    case = Case("a", (Edit("Ann Lee lives in", "Ann Lee", "Oslo"),), (Probe("question", "Where?"),))
    lm.resources = replace(lm.resources, cases=lambda: [case])
    ((followed,),) = [case.probes for case in ability_of(lm).cases]
    assert followed.prompt == "Fact: Ann Lee lives in Oslo. Ann Lee lives in"


def test_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = known_lm()
    monkeypatch.setattr(errata, "load", lambda *_, **__: lm)
    file, out = tmp_path / "patch.safetensors", tmp_path / "rows.jsonl"
    errata.method("ft-m", steps=2).edit(lm, EDITS).save(file)
    words = ["tasks", "tiny", "--tasks", "ability", "-q", "-o", str(out)]
    done = CliRunner().invoke(app, [*words, "--patch", str(file)])
    assert done.exit_code == 0, done.output
    for name in ("untouched facts", "facts in context: accuracy", "loss on text", "perplexity on text", "‖Δ‖ / ‖W‖"):
        assert name in done.stdout
    assert {(row.method, row.after_edits) for row in from_jsonl(out.read_text())} == {("ft-m", 3)}
    alone = CliRunner().invoke(app, [*words, "--force"])
    assert alone.exit_code == 0, alone.output
    rows = from_jsonl(out.read_text())
    assert {row.after for row in rows} == {None} and {row.method for row in rows} == {""}
    short = CliRunner().invoke(app, [*words, "--force", "--limit", "2"])
    assert short.exit_code == 0, short.output
    rows = from_jsonl(out.read_text())
    assert len({row.case for row in rows if row.kind == "in_context"}) == 2
    assert {row.case for row in rows if row.kind == "text"} == {"text 0", "text 1", "all texts"}
