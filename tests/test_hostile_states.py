"""States and cached files that are damaged, of an earlier version or of another method: said, or made again."""

import json
import logging
import os
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CASES, EDIT, TEXTS, data_for, quick, tiny_lm
from forged import forge

from errata.errors import BadInput, WrongModel
from errata.methods.closed_form import solve
from errata.methods.registry import METHODS, method_class
from errata.methods.state import State

NEEDY = [name for name in METHODS if method_class(name).needs_prepare]
NOTED = {"tokens", "texts", "encoder", "training", "rewards"}  # what methods note and do not read
CACHED = {"rome": TEXTS, "alphaedit": TEXTS, "ewc": TEXTS, "kn": CASES}


@cache
def prepared(name: str) -> State:
    made = quick(name)
    return made.prepare(tiny_lm("gpt2"), data_for(made))


def edit(name: str, tensors: Any, info: Any) -> None:
    quick(name).edit(tiny_lm("gpt2"), [EDIT], State(tensors, info))


# States ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NEEDY)
def test_what_a_state_lacks_is_named(name: str) -> None:
    """Whatever is taken out of a state, of that method nothing but BadInput is raised, and no edit is made of less."""
    state, named = prepared(name), set[str]()
    for key in state.tensors:
        with pytest.raises(BadInput, match="prepare"):
            edit(name, {n: t for n, t in state.tensors.items() if n != key}, state.info)
    for key in state.info:
        try:
            edit(name, state.tensors, {n: v for n, v in state.info.items() if n != key})
        except BadInput as error:
            assert key in str(error) and "prepare" in str(error)
            named.add(key)
    assert set(state.info) - named <= {"model", "what", "source", *NOTED}
    quick(name).edit(tiny_lm("gpt2"), [EDIT], state)


@pytest.mark.parametrize("name", NEEDY)
def test_what_a_state_holds_is_of_its_type_and_shape(name: str) -> None:
    state = prepared(name)
    for key, tensor in state.tensors.items():
        for lie in (tensor[None], tensor[..., None], tensor.bool(), torch.full_like(tensor, -(2**40)).reshape(-1)[:1]):
            if lie.shape == tensor.shape and tensor.is_floating_point():
                continue  # of one number: any other may stand there
            with pytest.raises(BadInput, match="prepare"):
                edit(name, {**state.tensors, key: lie}, state.info)
    for key in set(state.info) - {"model", "what", "source"}:
        for lie in (None, "x", [3], {"x": "y"}):
            try:
                edit(name, state.tensors, {**state.info, key: lie})
            except BadInput as error:
                assert "prepare" in str(error)
            else:
                assert key in NOTED


def test_another_methods_state_is_told_by_what_it_lacks() -> None:
    with pytest.raises(BadInput, match="of an earlier version: the tensor alike is missing"):
        edit("rag", {}, {"model": prepared("rag").info["model"], "encoder": "tfidf", "phrasings": []})
    with pytest.raises(BadInput, match="state holds layers"):
        quick("memit").edit(tiny_lm("gpt2"), [EDIT], prepared("rome"))


def test_a_neuron_that_the_model_does_not_have() -> None:
    info = {"groups": [["{} was born in"]]}
    for neuron in ([4, 0], [0, 64], [-1, 0]):
        with pytest.raises(BadInput, match="prepare anew"):
            edit("kn", {"common/0": torch.tensor([neuron])}, info)


@pytest.mark.parametrize("name", NEEDY)
def test_a_state_survives_its_file_and_damage_is_noticed(name: str, tmp_path: Path) -> None:
    state, file = prepared(name), tmp_path / "state.safetensors"
    state.save(file)
    assert State.load(file).info == json.loads(json.dumps(state.info))
    whole = bytearray(file.read_bytes())
    for at in (9, len(whole) // 2, len(whole) - 1):
        file.write_bytes(bytes([*whole[:at], whole[at] ^ 0x10, *whole[at + 1 :]]))
        with pytest.raises(BadInput, match=r"state\.safetensors is no whole state|expected"):
            State.load(file)


def test_states_that_lie(tmp_path: Path) -> None:
    file = tmp_path / "state"
    for info, tensors, words in (
        ({"model": "gpt2"}, {}, "model: input should be"),
        ({"model": {"name": "gpt2"}}, {}, "model.fingerprint is missing"),
        ({}, {"x": torch.tensor([1.0, float("nan")])}, "tensor 'x' is no finite number"),
    ):
        with pytest.raises(BadInput) as refusal:
            State.load(forge(file, info, tensors, what="state"))
        assert words in str(refusal.value) and str(file) in str(refusal.value)
    state = State.load(forge(file, {"model": {"fingerprint": "0"}}, {}, what="state"))  # of a model without a name
    with pytest.raises(WrongModel, match=r"prepared for \? \(0\)"):
        state.check(tiny_lm("gpt2"))
    with pytest.raises(BadInput, match="no finite number"):
        State({"x": torch.tensor(float("inf"))}).save(file)
    with pytest.raises(BadInput, match="was not written"):
        State({}, {"size": float("nan")}).save(tmp_path / "other")
    assert not (tmp_path / "other").exists()


# The cache -----------------------------------------------------------------------------------------------


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", CACHED)
@pytest.mark.parametrize("fault", ["damage", "cut", "nan", "shape", "missing", "type", "info", "empty"])
def test_a_cached_file_that_is_of_no_use_is_made_again(
    name: str, fault: str, cached: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lm, made = tiny_lm("gpt2"), quick(name)
    first = made.prepare(lm, CACHED[name])
    (file,) = cached.iterdir()
    whole = file.read_bytes()
    _spoil(file, fault, first)
    spoilt = file.read_bytes()
    with caplog.at_level(logging.WARNING, "errata"):
        again = made.prepare(lm, CACHED[name])
    assert "computed again" in caplog.text and file.name in caplog.text
    assert again.info == first.info and again.tensors.keys() == first.tensors.keys()
    assert all(torch.equal(again.tensors[n], t) for n, t in first.tensors.items())
    assert file.read_bytes() != spoilt and State.load(file).info == State.load(file).info
    assert len(file.read_bytes()) == len(whole)
    caplog.clear()
    made.prepare(lm, CACHED[name])
    assert "computed again" not in caplog.text


def _spoil(file: Path, fault: str, state: State) -> None:
    whole = file.read_bytes()
    info, tensors = deepcopy(dict(state.info)), dict(state.tensors)
    name = next(iter(tensors))
    if fault == "damage":
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif fault == "cut":
        file.write_bytes(whole[: len(whole) // 2])
    elif fault == "empty":
        file.write_bytes(b"")
    elif fault == "nan":
        forge(file, info, {**tensors, name: torch.full((2, 2), float("nan"))}, what="state")
    elif fault == "shape":
        forge(file, info, {**tensors, name: tensors[name][:, :1].contiguous()}, what="state")
    elif fault == "missing":
        forge(file, {**info, "model": {"fingerprint": 3}}, {}, what="state")
    elif fault == "type":
        forge(file, info, {**tensors, name: tensors[name] > 0}, what="state")
    elif fault == "info":
        forge(file, [], tensors, what="state")


def test_a_cached_file_that_cannot_be_read_is_said(cached: Path, caplog: pytest.LogCaptureFixture) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    lm, made = tiny_lm("gpt2"), quick("rome")
    made.prepare(lm, TEXTS)
    (file,) = cached.iterdir()
    file.chmod(0)
    made.prepare(lm, TEXTS)
    assert "computed again" in caplog.text


# Statistics that no edit can be computed from ------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_statistics_that_are_not_finite_end_the_search_for_an_inverse(bad: float) -> None:
    c = torch.eye(4)
    c[1, 2] = bad
    for function in (lambda: solve.inverse_of(c), lambda: solve.null_projector(c, 0.1)):
        with pytest.raises(BadInput, match="not finite; prepare anew"):
            function()
    state = prepared("memit")
    name = next(iter(state.tensors))
    c = state.tensors[name].clone()
    c[0, 0] = bad
    with pytest.raises(BadInput, match="not finite; prepare anew"):
        edit("memit", {**state.tensors, name: c}, state.info)


def test_statistics_that_are_no_second_moments_end_it_too() -> None:
    for c in (-torch.eye(4), torch.diag(torch.tensor([1.0, -0.999])), torch.full((3, 3), -1e30)):
        with pytest.raises(BadInput, match="no second moments"):
            solve.inverse_of(c)


def test_a_state_of_another_model_is_refused_before_its_content() -> None:
    state = prepared("memit")
    with pytest.raises(WrongModel):
        quick("memit").edit(tiny_lm("llama"), [EDIT], State({}, state.info))
