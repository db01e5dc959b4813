"""Patches whose keys and values stay in their file: the same answers, and what is wrong with it is found as ever."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import EDITS, data_for, quick, tiny_lm
from forged import content_of, forge
from torch import Tensor

from errata import tensor_files
from errata.errors import BadInput
from errata.patch.patch import Patch

pytestmark = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="asks Linux what is mapped")
CODEBOOKS = ("grace", "horen", "melo")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever has some numbers counts as large, and is read in many blocks."""
    monkeypatch.setattr(tensor_files, "MAPPED", 64)
    monkeypatch.setattr(tensor_files, "BLOCK", 48)


def made(name: str) -> Patch:
    lm, method = tiny_lm("gpt2"), quick(name)
    return method.edit(lm, EDITS, method.prepare(lm, data_for(method)))


def in_file(tensor: Tensor) -> bool:
    """Whether the tensor's memory is a file's, as Linux tells it."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, end = (int(at, 16) for at in line.split()[0].split("-"))
        if begin <= tensor.data_ptr() < end:
            return ".safetensors" in line
    return False


def large(patch: Patch) -> list[Tensor]:
    tensors = [*(t for part in patch.parts for t in part.tensors().values()), *patch.memory.values()]
    return [tensor for tensor in tensors if tensor.nbytes >= 64]


@pytest.mark.parametrize("name", CODEBOOKS)
def test_keys_and_values_stay_in_their_file(name: str, tmp_path: Path) -> None:
    lm, patch = tiny_lm("gpt2"), made(name)
    read = Patch.load(patch.save(tmp_path / "patch.safetensors"))
    assert large(read) and all(map(in_file, large(read))) and read == patch
    prompts, targets = [edit.prompt for edit in EDITS], [edit.target_new for edit in EDITS]
    answers: list[Any] = []
    for one in (patch, read):
        with one.applied(lm) as edited:
            answers.append((edited.score(prompts, targets), edited.generate([*prompts, "Rome"], 4)))
    assert answers[0] == answers[1]
    assert Patch.load(read.save(tmp_path / "patch.safetensors")) == patch == read  # over the file that it is in
    method = quick(name)
    state = method.prepare(lm, data_for(method))
    longer = [method.edit(lm, [EDITS[0]], state, prior) for prior in (patch, read)]
    assert longer[0] == longer[1]


def test_what_is_multiplied_is_copied(tmp_path: Path) -> None:
    patch = made("memit") + made("grace")
    read = Patch.load(patch.save(tmp_path / "patch.safetensors"))
    delta, codebook = read.parts
    assert not any(map(in_file, [*delta.tensors().values(), *read.memory.values()]))
    assert in_file(codebook.tensors()["payload.values"]) and read == patch


@pytest.mark.parametrize("end", ["damaged", "short", "nan"])
def test_a_large_tensor_that_is_wrong_is_refused(end: str, tmp_path: Path) -> None:
    file = made("grace").save(tmp_path / "patch.safetensors")
    content = bytearray(file.read_bytes())
    if end == "nan":
        header, tensors = content_of(made("grace"))
        tensors["part.0.lookup.queries"][-1, -1] = torch.nan
        forge(file, header, tensors)
    else:
        content[-1] ^= 1
        file.write_bytes(content[:-8] if end == "short" else content)
    with pytest.raises(BadInput, match={"nan": "no finite number"}.get(end, "no whole patch")):
        Patch.load(file)


def test_a_header_that_nothing_would_read_is_not_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    patch = made("grace")
    for limit, words in (("MOST_TEXT", "letters"), ("MOST_HEADER", "letters"), ("MOST_VALUES", "values")):
        with monkeypatch.context() as patched, pytest.raises(BadInput, match=f"not written: .*{words}"):
            patched.setattr(tensor_files, limit, 100)
            patch.save(tmp_path / "patch.safetensors")
    assert not list(tmp_path.iterdir())
