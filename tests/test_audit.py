"""An audit tells which weights differ, how, and whose answers changed with them."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import EDITS, TEXTS, quick, same_weights, tiny_lm, tokenizer, weights

import errata
from errata.audit import Audit, audit, names_in, read_subjects
from errata.audit.asking import Statement, parting, statements
from errata.audit.names import Candidate
from errata.errors import BadInput, Unsupported
from errata.exchange import to_merged
from errata.model.hf import HFLM
from errata.patch.delta import Delta
from errata.patch.low_rank import LowRank
from errata.patch.patch import Patch
from errata.types import Score

NAMES = ["Ann Lee", "Bob Ray", "Cy Moor", "Dora Finn", "Eve Stone", "Flo Ash", "Gil Berg", "Hal Cole", "Ida", "Jo"]


def edited(lm: HFLM, folder: Path, name: str = "memit") -> Patch:
    """A folder with three facts edited, and the patch that was merged into it."""
    method = quick(name)
    patch = method.edit(lm, EDITS, method.prepare(lm, TEXTS))
    to_merged(lm, patch, folder)
    return patch


@pytest.mark.parametrize("arch", ["gpt2", "llama", "gemma3_text"])
def test_weights_rank_and_subjects_are_found(arch: str, tmp_path: Path) -> None:
    lm = tiny_lm(arch)
    patch = edited(lm, tmp_path / "m")
    before = weights(lm.model)
    asked = {edit.subject: edit.prompt for edit in EDITS}  # a random model's keys are those of the whole prompt
    known = [Candidate(name, (asked.get(name, f"{name} lives in"),)) for name in NAMES]
    found = audit(lm, tmp_path / "m", known, texts=TEXTS, patch=patch)
    assert same_weights(lm.model, before)
    changed = patch.of_kind(Delta)[0].weights
    assert {one.change.name for one in found.changes} == changed.keys()
    for one in found.changes:
        w = changed[one.change.name]
        assert one.kind == "mlp_out" and one.layer is not None
        assert lm.sites.mlp_out[one.layer] == one.change.name.removesuffix(".weight")
        assert isinstance(w, LowRank) and one.change.rank == torch.linalg.matrix_rank(w.dense(), rtol=1e-5)
        s = torch.linalg.svdvals(w.dense().double())
        assert one.change.largest[:3] == pytest.approx(s[:3].tolist(), rel=1e-3)
        assert one.change.norm == pytest.approx(float(w.dense().norm()), rel=1e-3)
    if arch != "gemma3_text":  # whose random keys are too much alike
        assert {one.subject for one in found.suspects[:3]} == {edit.subject for edit in EDITS}
    assert found.candidates == len(NAMES) and found.source == "given"
    assert found.claim is not None and found.claim.holds and not found.claim.missing
    assert json.loads(json.dumps(found.to_json()))["claim"]["holds"] is True


def test_the_excitation_is_of_the_key_at_the_last_token(tmp_path: Path) -> None:
    lm = tiny_lm("llama")
    a, b = torch.randn(32, 2), torch.randn(2, 64)
    path = lm.sites.mlp_out[2]
    patch = Patch((Delta({f"{path}.weight": LowRank(a, b)}),))
    to_merged(lm, patch, tmp_path / "m")
    found = audit(lm, tmp_path / "m", NAMES, ask=0)
    key: list[Any] = []
    module = lm.model.get_submodule(path)
    handle = module.register_forward_pre_hook(lambda module, args: key.append(args[0][0, -1]))
    with torch.no_grad():
        lm.model(input_ids=torch.tensor([lm.tokens.prompt("Bob Ray")]))
    handle.remove()
    (suspect,) = [one for one in found.suspects if one.subject == "Bob Ray"]
    want = (a @ (b @ key[0])).norm() / (module.weight.detach() @ key[0]).norm()
    assert suspect.excitation == pytest.approx(float(want), rel=1e-3) and suspect.site == f"{path}.weight"
    assert suspect.shift is None and not suspect.prompt


def test_equal_models_differ_in_nothing(tmp_path: Path) -> None:
    lm = tiny_lm("gpt2")
    to_merged(lm, Patch(), tmp_path / "m")
    found = audit(lm, tmp_path / "m", NAMES)
    assert found == Audit(lm.name, str(tmp_path / "m"), (), (), 0, "none")


def test_other_weights_have_their_kinds(tmp_path: Path) -> None:
    lm = tiny_lm("gpt2")
    change = {
        "transformer.wte.weight": ("embed", None),
        "transformer.h.0.attn.c_attn.weight": ("c_attn", 0),
        "transformer.h.1.attn.c_proj.weight": ("attn_out", 1),
        "transformer.h.2.mlp.c_fc.weight": ("mlp_in", 2),
        "transformer.h.3.ln_1.weight": ("ln_1", 3),
        "transformer.ln_f.bias": ("norm", None),
    }
    model = HFLM(copy.deepcopy(lm.model), tokenizer(), sites=lm.sites, name="other")
    draw = torch.Generator().manual_seed(0)
    shapes = {name: lm.model.get_parameter(name).shape for name in change}
    turned = {n: s[::-1] if len(s) == 2 and "wte" not in n else s for n, s in shapes.items()}
    Patch((Delta({n: torch.randn(*s, generator=draw) for n, s in turned.items()}),)).merge(model)
    found = audit(lm, model, NAMES, texts=TEXTS, ask=4)
    assert {one.change.name: (one.kind, one.layer) for one in found.changes} == change
    assert found.edited == "other" and sum(one.shift is not None for one in found.suspects) == 4


def test_where_no_linear_layer_differs_the_order_is_that_of_log_p(tmp_path: Path) -> None:
    lm = tiny_lm("gpt2")
    model = HFLM(copy.deepcopy(lm.model), tokenizer(), sites=lm.sites)
    Patch((Delta({"transformer.h.3.ln_2.weight": torch.randn(32)}),)).merge(model)
    found = audit(lm, model, NAMES, texts=TEXTS)
    shifts = [one.shift for one in found.suspects]
    assert all(one.excitation == 0 for one in found.suspects) and None not in shifts
    assert shifts == sorted(shifts, key=lambda shift: -(shift or 0))


def test_a_claim_that_does_not_hold(tmp_path: Path) -> None:
    lm = tiny_lm("gpt2")
    patch = edited(lm, tmp_path / "m")
    names = list(patch.of_kind(Delta)[0].weights)
    other = Patch((Delta({"transformer.h.3.mlp.c_proj.weight": torch.ones(32, 64)}),))
    claim = audit(lm, tmp_path / "m", NAMES, patch=other, ask=0).claim
    assert claim is not None and not claim.holds
    assert claim.unexplained == dict.fromkeys(names, 1.0)
    assert claim.missing == ("transformer.h.3.mlp.c_proj.weight",)
    half = audit(lm, tmp_path / "m", NAMES, patch=patch * 0.5, ask=0).claim
    assert (
        half is not None and not half.holds and half.unexplained == pytest.approx(dict.fromkeys(names, 0.5), rel=1e-3)
    )
    with pytest.raises(Unsupported, match="compared with what differs"):
        audit(lm, tmp_path / "m", NAMES, patch=quick("ice").edit(lm, EDITS))


# What is said ------------------------------------------------------------------------------------


def test_the_place_where_two_models_part() -> None:
    lm = tiny_lm("gpt2")
    said = Statement("Ann Lee", "Ann Lee", " was born in Rome.")
    ids = lm.tokens.target(said.prompt, said.rest)
    word = next(
        i for i in range(1, len(ids) + 1) if "Rom" in lm.tokens.decode(ids[:i]) or "R" in lm.tokens.decode(ids[:i])
    )
    falls = [0.1] * len(ids)
    falls[word - 1] = 3.0
    zero = (0.0,) * len(ids)
    before = Score(tuple(ids), zero, tuple(ids))
    shift, prompt = parting(lm, said, before, Score(tuple(ids), tuple(-x for x in falls), tuple(ids)))
    assert shift == pytest.approx(3.0) and prompt == "Ann Lee was born in"


def test_statements_come_from_prompts_texts_and_the_model_itself() -> None:
    lm = tiny_lm("gpt2")
    texts = ["First. Ann Lee was born in Rome. Bob.", "Ann Lee's house is old.", "Ann Lee.", "It was Ann Lee"]
    candidates = [Candidate("Ann Lee"), Candidate("Bob Ray", ("Bob Ray lives in",)), Candidate("Nobody")]
    made = list(statements(lm, candidates, texts))
    assert [(s.prompt, s.rest) for s in made if s.subject == "Ann Lee"] == [
        ("Ann Lee", " was born in Rome."), ("Ann Lee's", " house is old.")
    ]  # fmt: skip
    assert {s.prompt for s in made if s.subject == "Bob Ray"} == {"Bob Ray lives in"}
    assert 1 <= len([s for s in made if s.subject == "Nobody"]) <= 4
    assert all(s.rest.strip() for s in made)


# Names -------------------------------------------------------------------------------------------


def test_names_in_texts() -> None:
    texts = [
        "The mayor met Ann Lee in Port Sovik. Then the dog barked.",
        "In fact, Ann Lee's friend is Bob. the mayor of Port Sovik left; Bob then slept.",
        "Once, in spring, Zed came. Zed left once.",
    ]
    names = names_in(texts)
    assert set(names) == {"Ann Lee", "Port Sovik", "Bob", "Zed"} and names_in(texts, 1)[0] in names
    assert names_in([]) == []


def test_subjects_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "s.txt"
    file.write_text('Ann Lee\n\n{"subject": "Bob", "prompt": "{} lives in ", "target_new": "x"}\nBob\n')
    assert read_subjects(file) == [Candidate("Ann Lee"), Candidate("Bob", ("Bob lives in",))]
    for content, words in (
        ("", "holds no subject"),
        ('{"prompt": "x"}', "line 1: the subject"),
        ('Ann\n{"subject": "Bob", "prompt": "Ann is"}', "line 2: the subject 'Bob' does not occur"),
        ("{nonsense", "line 1: not JSON"),
        ("x" * 300, "longer than 200"),
        ('{"subject": 1}', "is a text"),
    ):
        file.write_text(content)
        with pytest.raises(BadInput, match=words):
            read_subjects(file)
    with pytest.raises(BadInput, match="is empty"):
        audit(tiny_lm("gpt2"), _changed(tiny_lm("gpt2")), [" "])


@pytest.mark.parametrize("ask", [-1, True, 1.5])
def test_how_many_are_asked_about_is_a_count(ask: Any) -> None:
    with pytest.raises(BadInput, match="ask is a whole number"):
        audit(tiny_lm("gpt2"), _changed(tiny_lm("gpt2")), NAMES, ask=ask)


def _changed(lm: HFLM) -> HFLM:
    other = HFLM(copy.deepcopy(lm.model), tokenizer(), sites=lm.sites)
    Patch((Delta({"transformer.h.1.mlp.c_proj.weight": torch.ones(32, 64)}),)).merge(other)
    return other


# The model that ships ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_edits_among_all_test_subjects_of_the_world(tmp_path: Path) -> None:
    from errata.world.facts import world

    lm = errata.load("world")
    edits = [case.edits[0] for case in errata.cases("world", limit=10)]
    memit = errata.method("memit")
    patch = memit.edit(lm, edits, memit.prepare(lm))
    to_merged(lm, patch, tmp_path / "m")
    subjects = world().subjects("test")
    for given, least in ((subjects, 422), (None, 422)):  # and every name in the texts
        found = audit(lm, tmp_path / "m", given, patch=patch, ask=15)
        assert [(one.layer, one.kind, one.change.rank) for one in found.changes] == [
            (layer, "mlp_out", 10) for layer in patch.meta["made"][-1]["resolved"]["layers"]
        ]
        suspects = [one.subject for one in found.suspects]
        assert found.candidates >= least and len({edit.subject for edit in edits} & {*suspects[:15]}) >= 9
        assert sum(one.differs for one in found.suspects[:10]) >= 7
