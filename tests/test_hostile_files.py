"""Files that are damaged, and files that lie with a right checksum: each is refused with its name, or is harmless."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import EDITS, data_for, quick, tiny_lm
from forged import Content, content_of, forge
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from errata.errors import BadInput, Unsupported, WrongModel
from errata.methods.registry import METHODS
from errata.methods.state import State
from errata.patch.delta import Delta
from errata.patch.low_rank import LowRank
from errata.patch.parts import KINDS, Adapter
from errata.patch.patch import Patch

SITE = "transformer.h.1.mlp.c_proj.weight"


@cache
def made(name: str) -> Patch:
    """A patch of the method, of three edits, on the tiny GPT-2."""
    lm, method = tiny_lm("gpt2"), quick(name)
    return method.edit(lm, EDITS, method.prepare(lm, data_for(method)) if method.needs_prepare else State())


@cache
def by_kind() -> dict[str, str]:
    """Kind of part -> a method that makes it, of every kind that Errata's methods make."""
    kinds: dict[str, str] = {}
    for name in METHODS:
        for part in made(name).parts:
            kinds.setdefault(part.kind, name)
    return kinds


def content(name: str) -> Content:
    return deepcopy(content_of(made(name)))


def use(patch: Patch) -> None:
    """All that is done with a patch that was read; it may not fit the model, and that is said."""
    lm = tiny_lm("gpt2")
    repr(patch), patch.edits, patch.summary(), patch.nbytes
    json.dumps([part.entries() for part in patch.parts])
    for edit in patch.edits[:1]:
        with suppress(Unsupported):
            patch.without(edit.id)
    with suppress(WrongModel, Unsupported, BadInput), patch.applied(lm) as edited:  # it may name an encoder
        edited.generate(["Ann Lee was born in"], 2)


def refused(file: Path, *words: str) -> str:
    """The message of the refusal, which names the file and has these words in it."""
    with pytest.raises(BadInput) as refusal:
        Patch.load(file)
    message = str(refusal.value)
    assert str(file) in message and len(message) < 1500
    assert all(word in message for word in words), message
    return message


def test_every_kind_of_part_is_made_by_a_method() -> None:
    kinds = set(by_kind())  # which imports all methods
    assert kinds == {kind for kind, cls in KINDS.items() if cls.__module__.startswith("errata.")}


@pytest.mark.parametrize("name", METHODS)
def test_forging_what_is_true_is_reading_it(name: str, tmp_path: Path) -> None:
    patch = made(name)
    assert Patch.load(forge(tmp_path / "p", *content(name))) == patch
    assert Patch.load(patch.save(tmp_path / "p")) == patch
    use(patch)


# Damage ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_damage_is_noticed(name: str, tmp_path: Path) -> None:
    file = made(name).save(tmp_path / "patch.safetensors")
    whole, draw = file.read_bytes(), torch.Generator().manual_seed(0)
    for at in [len(whole) - 1, *torch.randint(8, len(whole), (20,), generator=draw).tolist()]:
        damaged = bytearray(whole)
        damaged[at] ^= 0x10
        file.write_bytes(damaged)
        refused(file)
    file.write_bytes(whole[:-1])
    refused(file)
    file.write_bytes(whole + b"\0")
    refused(file)


def test_damage_is_said(tmp_path: Path) -> None:
    file = Patch((Delta({SITE: torch.ones(32, 64)}),)).save(tmp_path / "p")
    whole = file.read_bytes()
    for damaged in (
        whole[:-1] + bytes([whole[-1] ^ 1]),
        whole.replace(b"[32,64]", b"[64,32]"),
        whole.replace(b'"F32"', b'"I32"'),
        whole.replace(SITE.encode(), SITE.replace("1", "2").encode()),
    ):
        assert damaged != whole
        file.write_bytes(damaged)
        refused(file, "its checksum differ: it was damaged", "fetch it anew")


# Headers that lie ------------------------------------------------------------------------------------

LOG = {"prompt_ids": [1], "target_ids": [2]}
OWN = EDITS[0].to_json()


def without(path: str) -> Callable[[Any], None]:
    """A change that takes out the value at a path."""
    *way, last = path.split(".")

    def change(header: Any) -> None:
        at = _at(header, way)
        del at[int(last) if isinstance(at, list) else last]

    return change


def put(path: str, value: Any) -> Callable[[Any], None]:
    """A change that puts a value at a path."""
    *way, last = path.split(".")

    def change(header: Any) -> None:
        at = _at(header, way)
        at[int(last) if isinstance(at, list) else last] = value

    return change


def _at(value: Any, way: list[str]) -> Any:
    for step in way:
        value = value[int(step) if isinstance(value, list) else step]
    return value


EDIT, MADE = "meta.made.0.edits.0", "meta.made.0"
HEADERS: dict[str, tuple[Callable[[Any], None], str]] = {
    "no parts": (without("parts"), "parts is missing"),
    "no meta": (without("meta"), "meta is missing"),
    "more": (put("more", 1), "nothing reads more"),
    "parts": (put("parts", {}), "parts: input should be a valid"),
    "a part that is none": (put("parts.0", 3), "parts.0: input should be"),
    "a part without kind": (without("parts.0.kind"), "parts.0.kind is missing"),
    "a kind that is no text": (put("parts.0.kind", 3), "parts.0.kind: input should be a valid string, found 3"),
    "an unknown kind": (put("parts.0.kind", "nobody"), "kind 'nobody', which nothing here defines"),
    "a config that is none": (put("parts.0.config", []), "parts.0.config: input should be"),
    "more in a part": (put("parts.0.more", 1), "nothing reads parts.0.more"),
    "more in a config": (put("parts.0.config.more", 1), "nothing reads more"),
    "more parts than tensors": (put("parts", [{"kind": "steering", "config": {}}] * 2), "part 0 ('steering')"),
    "too many parts": (
        put("parts", [{"kind": "delta", "config": {"low_rank": [], "dense": []}}] * 20_000),
        "parts: list should",
    ),
    "meta": (put("meta", []), "meta: input should be"),
    "made": (put("meta.made", {}), "meta.made: input should be a valid"),
    "a record": (put(MADE, "memit"), "meta.made.0: input should be"),
    "no method": (without(f"{MADE}.method"), "meta.made.0.method is missing"),
    "settings": (put(f"{MADE}.settings", 3), "meta.made.0.settings"),
    "seconds": (put(f"{MADE}.seconds", "1"), "meta.made.0.seconds: input should be a valid number, found '1'"),
    "negative seconds": (put(f"{MADE}.seconds", -1), "meta.made.0.seconds: input should be greater"),
    "versions": (put(f"{MADE}.versions", {"torch": 3}), "meta.made.0.versions.torch"),
    "outcomes": (put(f"{MADE}.outcomes", []), "meta.made.0.outcomes"),
    "an outcome": (
        put(f"{MADE}.outcomes", {OWN["id"]: {"met": "yes"}}),
        "met: input should be a valid boolean, found 'yes'",
    ),
    "an outcome of no edit": (put(f"{MADE}.outcomes", {"nobody": {}}), "is of 'nobody', which is none of the edits"),
    "rounded": (put(f"{MADE}.rounded", {"x": None}), "meta.made.0.rounded.x"),
    "no edits": (without(f"{MADE}.edits"), "meta.made.0.edits is missing"),
    "an edit": (put(EDIT, "x"), "meta.made.0.edits.0"),
    "an edit without id": (without(f"{EDIT}.id"), "id is missing"),
    "an edit with more": (put(f"{EDIT}.more", 1), "nothing reads more"),
    "an edit of another subject": (put(f"{EDIT}.subject", "Zed"), "the subject 'Zed' does not occur"),
    "an edit without target": (put(f"{EDIT}.target_new", " "), "the target of the edit"),
    "an edit at a wrong place": (put(f"{EDIT}.at", 3), "does not begin at character 3"),
    "an edit that is not as kept": (put(f"{EDIT}.prompt", "{} was born in"), "would not keep like this"),
    "an edit that grows": (put(EDIT, OWN | {"prompt": "{}" * 9999, "subject": "x" * 99999}), "filled, this one has"),
    "an edit whose subject is long": (
        put(EDIT, OWN | {"prompt": "a" * 99999, "subject": "a" * 50000}),
        "about a subject of 50,000",
    ),
    "model": (put("meta.model", None), "model is null"),
    "no fingerprint": (without("meta.model.fingerprint"), "meta.model.fingerprint is missing"),
    "fingerprint": (put("meta.model.fingerprint", 3), "meta.model.fingerprint: input should be a valid string"),
    "name": (put("meta.model.name", ["x"]), "meta.model.name"),
    "scaled": (put("meta.scaled", "twice"), "meta.scaled"),
    "transformed": (put("meta.transformed", [3]), "meta.transformed.0"),
    "site": (put("parts.0.config.site", 3), "part 0 ('steering'): site: input should be a valid string, found 3"),
    "no site": (without("parts.0.config.site"), "part 0 ('steering'): site is missing"),
    "strength": (put("parts.0.config.strength", "1"), "part 0 ('steering'): strength"),
    "log": (put("parts.0.config.log", 3), "part 0 ('steering'): log"),
    "an empty log": (put("parts.0.config.log", []), "part 0 ('steering'): differences has the shape 3 x 32"),
    "a shorter log": (without("parts.0.config.log.0"), "differences has the shape 3 x 32, expected n = 2 x out"),
    "a record of the log": (put("parts.0.config.log.0", {"color": "blue"}), "log.0: id is missing"),
    "ids": (put("parts.0.config.log.0.prompt_ids", [1.5]), "log.0"),
    "negative ids": (put("parts.0.config.log.0.prompt_ids", [-1]), "log.0"),
    "no ids": (without("parts.0.config.log.0.prompt_ids"), "log.0"),
}


@pytest.mark.parametrize("lie", HEADERS)
def test_headers_that_lie(lie: str, tmp_path: Path) -> None:
    change, words = HEADERS[lie]
    header, tensors = content("steering")
    change(header)
    refused(forge(tmp_path / "p", header, tensors), words)


TEXTS = {
    "not JSON": "{parts",
    "a list": "[]",
    "a number": "3",
    "nothing": "",
    "a key twice": '{"parts": [], "meta": {"a": 1, "a": 2}}',
    "deeply nested": '{"parts": [], "meta": {"a": ' + "[" * 5000 + "]" * 5000 + "}}",
    "very deeply nested": "[" * 500_000,
    "a number that is none": '{"parts": [], "meta": {"a": NaN}}',
    "a number that is too large": '{"parts": [], "meta": {"a": 1e999}}',
    "a number of many digits": '{"parts": [], "meta": {"a": ' + "1" * 10_000 + "}}",
    "half a letter": '{"parts": [], "meta": {"a": "\\ud800"}}',
    "spaces": '{"parts":[],"meta":{}}',
}
LONG: dict[str, Callable[[], str]] = {  # made when they are needed
    "many values": lambda: '{"parts": [], "meta": {"a": [' + "[], " * 13_000_000 + "[]]}}",
    "a long text": lambda: '{"parts": [], "meta": {"a": "' + "x" * (80 * 2**20) + '"}}',
}


@pytest.mark.parametrize("name", [*TEXTS, *LONG])
def test_headers_that_are_none(name: str, tmp_path: Path) -> None:
    text = TEXTS[name] if name in TEXTS else LONG[name]()
    refused(forge(tmp_path / "p", text, {}), "is no whole patch")


def test_a_file_of_another_library(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    for metadata in (None, {"format": "pt"}):
        save_file({"x": torch.ones(2)}, tmp_path / "p", metadata)
        refused(tmp_path / "p", "it has no header")
    refused(forge(tmp_path / "p", *content("ft"), checksum="0" * 64), "damaged")
    refused(forge(tmp_path / "p", *content("ft"), format="3"), "this Errata reads format 2: update Errata")
    refused(forge(tmp_path / "p", *content("ft"), what="state"), "is a state; give a patch")
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "folder", "is a folder")


# Tensors that lie --------------------------------------------------------------------------------------

NAN, HUGE = float("nan"), 2**62


@pytest.mark.parametrize("name", METHODS)
def test_tensors_that_are_missing_or_of_another_shape_or_type(name: str, tmp_path: Path) -> None:
    """Whatever is done to a tensor of a part is noticed when it is read."""
    kind, (header, tensors) = made(name).parts[0].kind, content(name)
    lies = 0
    for at, tensor in tensors.items():
        for lie in _lies(tensor):
            if not tensor.ndim and lie is not None and lie.dtype == tensor.dtype and lie.shape == () and lie == lie:
                continue  # a single number: any other may stand there
            changed = {n: t for n, t in tensors.items() if n != at} | ({} if lie is None else {at: lie})
            lies += 1
            try:
                patch = Patch.load(forge(tmp_path / "p", header, changed))
            except BadInput as error:
                assert str(tmp_path / "p") in str(error) and "cannot be read" not in str(error)
                continue
            assert kind == "delta"  # a weight may have any shape, but for the model's; keys may be any number
            if not at.startswith("memory."):
                with pytest.raises(WrongModel):
                    patch.check(tiny_lm("gpt2"))
    assert lies or not tensors
    refused(forge(tmp_path / "p", header, {**tensors, "part.0.more.a": torch.ones(2)}), "more.a")
    n = len(made(name).parts)
    refused(forge(tmp_path / "p", header, {**tensors, f"part.{n}.x": torch.ones(2)}), f"of none of the {n} parts")
    refused(forge(tmp_path / "p", header, {**tensors, "x": torch.ones(2)}), "nothing reads the tensor 'x'")


def _lies(tensor: Tensor) -> Iterator[Tensor | None]:
    """None for no tensor, and others in the place of one: a side more, a side less, a row more, another type."""
    yield None
    yield tensor[None]
    if tensor.ndim:
        yield torch.cat([tensor, tensor[:1]]) if len(tensor) else tensor.new_ones(1, *tensor.shape[1:])
    yield tensor.new_ones(())
    yield tensor.bool() if tensor.dtype != torch.bool else tensor.float()
    yield tensor.long() if tensor.is_floating_point() else tensor.float()
    if not tensor.numel():
        return
    if tensor.is_floating_point():
        yield torch.full_like(tensor, NAN)
    elif tensor.dtype == torch.int64:
        yield torch.full_like(tensor, HUGE)
        yield torch.full_like(tensor, -7)


def test_a_low_rank_change_whose_factors_differ(tmp_path: Path) -> None:
    header = {"parts": [{"kind": "delta", "config": {"low_rank": ["w"], "dense": []}}], "meta": {}}
    a, b = torch.ones(4, 2), torch.ones(3, 5)
    refused(
        forge(tmp_path / "p", header, {"part.0.w.a": a, "part.0.w.b": b}), "w.b has the shape 3 x 5, expected r = 2"
    )
    refused(forge(tmp_path / "p", header, {"part.0.w.a": a}), "the tensor 'w.b' is missing")
    halves = {"part.0.w.a": a.half(), "part.0.w.b": torch.ones(2, 5)}
    refused(forge(tmp_path / "p", header, halves), "the change of 'w' is of float16 and float32")
    header["parts"][0]["config"] = {"low_rank": [], "dense": ["w"]}
    refused(forge(tmp_path / "p", header, {"part.0.w": torch.ones(3, dtype=torch.int32)}), "is of int32")
    header["parts"][0]["config"] = {"low_rank": "w", "dense": []}
    refused(forge(tmp_path / "p", header, {}), "low_rank: input should be")


def test_a_shape_that_takes_much_room_is_refused_before_it_does(tmp_path: Path) -> None:
    header, tensors = content("memoir")
    for shape in ([2**20, 2**20], [2**32, 2**32], [2**63 - 1, 2], [-1, 64], [0, 0], [64] * 9, [[32, 64]], []):
        lie = {**tensors, "part.0.payload.weight.shape": torch.tensor(shape, dtype=torch.int64)}
        refused(forge(tmp_path / "p", header, lie), "payload: weight.bits")
    header = {"parts": [{"kind": "delta", "config": {"low_rank": [], "dense": ["w"]}}], "meta": {}}
    refused(forge(tmp_path / "p", header, {"part.0.w": torch.ones(0, 2**40)}), "has no numbers, and a side of")


def test_a_large_product_is_not_computed_to_show_it() -> None:
    a, b = torch.full((2**20, 1), 0.5), torch.full((1, 2**20), 0.25)
    (line,) = Patch((Delta({"w": LowRank(a, b)}),)).summary()
    assert line["norm"] == pytest.approx(0.125 * 2**20) and line["shape"] == [2**20, 2**20]
    (line,) = Patch((Delta({"w": LowRank(b, a)}),)).summary()
    assert line["norm"] == pytest.approx(0.125 * 2**20) and line["shape"] == [1, 1]


def test_types_that_nothing_computes_with_are_refused(tmp_path: Path) -> None:
    header = {"parts": [{"kind": "delta", "config": {"low_rank": [], "dense": ["w"]}}], "meta": {}}
    for dtype in (torch.float8_e4m3fn, torch.complex64):
        refused(forge(tmp_path / "p", header, {"part.0.w": torch.zeros(2, 2, dtype=dtype)}), "is of type")
    with pytest.raises(BadInput, match="is of type float8"):
        Patch((Delta({"w": torch.zeros(2, 2, dtype=torch.float8_e4m3fn)}),)).save(tmp_path / "p")


CONTENT: dict[str, tuple[str, Callable[[Any, dict[str, Tensor]], Any], str]] = {
    "a column twice": ("memoir", lambda h, t: t["part.0.lookup.columns"].fill_(3), "lookup.columns holds one twice"),
    "too many columns": ("memoir", lambda h, t: put("parts.0.config.lookup.k", 65)(h), "lookup.k is 65"),
    "a key out of reach": ("grace", lambda h, t: t["part.0.lookup.owner"].fill_(3), "lookup.owner holds 3 to 3"),
    "a matrix out of reach": ("wise", lambda h, t: t["part.0.payload.of"].fill_(1), "payload.of holds 1 to 1"),
    "another rank": ("melo", lambda h, t: put("parts.0.config.payload.rank", 3)(h), "expected b = 1 x r = 3"),
    "a group of no edit": ("calinet", lambda h, t: t["part.0.payload.owner"].fill_(9), "owner names the group 9"),
    "an activation": ("calinet", lambda h, t: put("parts.0.config.payload.act", "tanh")(h), "payload: act: input"),
    "a place": ("grace", lambda h, t: put("parts.0.config.payload.replace", "x")(h), "payload: replace: input"),
    "a template that is wide": (
        "ice",
        lambda h, t: put("parts.0.config.settings.fact", "{fact:>999999999}")(h),
        "fact: the fields of a template are {fact}",
    ),
    "a template that looks inside": (
        "ice",
        lambda h, t: put("parts.0.config.settings.layout", "{prompt.__class__}")(h),
        "layout: the fields of a template are {facts} and {prompt}",
    ),
    "no facts": ("ice", lambda h, t: put("parts.0.config.settings.most", 0)(h), "most: input should be greater"),
    "a log of nothing": ("ice", lambda h, t: put("parts.0.config.log", [])(h), "log is empty"),
    "more settings": ("ice", lambda h, t: put("parts.0.config.settings.more", 0)(h), "nothing reads more"),
    "no settings": ("rag", lambda h, t: without("parts.0.config.settings.phrasings")(h), "phrasings is missing"),
    "rounds": ("mello", lambda h, t: put("parts.0.config.settings.rounds", 10**9)(h), "rounds: input should be less"),
    "examples": ("ike", lambda h, t: put("parts.0.config.examples.0.kind", 3)(h), "examples.0.kind"),
    "examples that none shows": ("ike", lambda h, t: without("parts.0.config.settings.shown")(h), "settings.shown"),
    "keys": (
        "alphaedit",
        lambda h, t: t.update({"memory.keys/x": torch.ones(3)}),
        "the memory's 'keys/x' is float32 of the shape (3,), expected vectors",
    ),
    "a Gram matrix": (
        "alphaedit",
        lambda h, t: t.update({"memory.gram/x": torch.ones(3, 2)}),
        "the memory's 'gram/x' is float32 of the shape (3, 2), expected a square",
    ),
}


@pytest.mark.parametrize("lie", CONTENT)
def test_content_that_makes_no_sense(lie: str, tmp_path: Path) -> None:
    name, change, words = CONTENT[lie]
    header, tensors = content(name)
    tensors = {n: t.clone() for n, t in tensors.items()}
    change(header, tensors)
    refused(forge(tmp_path / "p", header, tensors), words)


# Models that do not fit ------------------------------------------------------------------------------


def test_a_site_that_is_not_there_or_of_another_width(tmp_path: Path) -> None:
    adapters = [name for name in by_kind().values() if isinstance(made(name).parts[0], Adapter)]
    assert len(adapters) > 5
    for name in adapters:
        check_sites(name, tmp_path)


def check_sites(name: str, tmp_path: Path) -> None:
    lm, (header, tensors) = tiny_lm("gpt2"), content(name)
    for site in ("", "transformer.h.9.mlp.c_proj", "transformer", "transformer.h.1.attn.c_attn", "lm_head"):
        header["parts"][0]["config"]["site"] = site
        patch = Patch.load(forge(tmp_path / "p", header, tensors))
        with pytest.raises(WrongModel, match=f"the {patch.parts[0].kind} part of this patch"), patch.applied(lm):
            pass
    lm.generate(["Rome"], 1)


def test_tokens_that_the_model_does_not_have(tmp_path: Path) -> None:
    header, tensors = content("grace")
    header["parts"][0]["config"]["log"][0]["target_ids"] = [320]
    patch = Patch.load(forge(tmp_path / "p", header, tensors))
    with pytest.raises(WrongModel, match="holds the token 320"):
        patch.check(tiny_lm("gpt2"))


def test_melos_loras_fit_the_model(tmp_path: Path) -> None:
    header, tensors = content("melo")
    path = next(name for name in tensors if ".a." in name).partition(".a.")[2]
    for there in ("transformer.h.9.mlp.c_fc", "transformer.h.3.mlp.c_proj"):
        moved = {name.replace(path, there): t for name, t in tensors.items()}
        with pytest.raises(WrongModel, match="the melo part of this patch"):
            Patch.load(forge(tmp_path / "p", header, moved)).check(tiny_lm("gpt2"))


def test_a_memory_that_does_not_fit_the_model() -> None:
    lm = tiny_lm("gpt2")
    for memory in ({"keys/nowhere": torch.ones(1, 64)}, {f"gram/{SITE.removesuffix('.weight')}": torch.eye(3)}):
        with pytest.raises(WrongModel, match=r"memory|remembers keys"):
            Patch(memory=memory).check(lm)


# Parts of other packages -------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Careless(Adapter):
    """A part that checks nothing, as another package may bring one."""

    kind = "careless"
    site: str
    vector: Tensor

    def config(self) -> dict[str, Any]:
        return {"site": self.site}

    def tensors(self) -> dict[str, Tensor]:
        return {"vector": self.vector}

    @classmethod
    def build(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "Careless":
        return cls(config["site"], tensors["vector"])

    def out(self, call: Any, x: Tensor, y: Tensor) -> Tensor:
        return y + self.vector.to(y)


@dataclass(frozen=True, eq=False)
class Plain(Adapter):
    """A part that says by its annotations alone what its file holds."""

    kind = "plain"
    site: str
    strength: float
    vector: Tensor

    def out(self, call: Any, x: Tensor, y: Tensor) -> Tensor:
        return y + self.strength * self.vector.to(y)


def test_a_part_that_checks_nothing_raises_no_error_of_its_own(tmp_path: Path) -> None:
    part = Careless("transformer.h.1", torch.ones(32))
    header, tensors = content_of(Patch((part,)))
    assert Patch.load(forge(tmp_path / "p", header, tensors)).parts == (part,)
    use(Patch((part,)))
    refused(forge(tmp_path / "p", header, {}), "part 0 ('careless') cannot be read (KeyError: 'vector')")
    refused(forge(tmp_path / "p", header, {**tensors, "part.0.x": torch.ones(1)}), "nothing reads the tensor 'x'")
    header["parts"][0]["config"]["more"] = 1
    refused(forge(tmp_path / "p", header, tensors), "its config says more than is read")


def test_a_part_needs_no_code_for_its_file(tmp_path: Path) -> None:
    part = Plain("transformer.h.1", 2.0, torch.ones(32))
    assert Patch.load(Patch((part,)).save(tmp_path / "p")).parts == (part,)
    header, tensors = content_of(Patch((part,)))
    header["parts"][0]["config"]["strength"] = "2"
    refused(forge(tmp_path / "p", header, tensors), "part 0 ('plain'): strength: input should be a valid number")


# Any file at all ---------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=4,
)


def _places(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to every value inside a JSON value."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield (*way, key)
        yield from _places(value[key], (*way, key))


LYING = ("alphaedit", "kn", "ft")  # beside one method of each kind of part


@cache
def lying() -> list[str]:
    """The methods whose patches are made to lie, which are made here: hypothesis wants no chance in its strategies."""
    return [name for name in sorted({*by_kind().values(), *LYING}) if made(name)]


@st.composite
def lies(draw: Any) -> Content:
    """The content of a method's patch with some of its JSON or its tensors changed."""
    header, tensors = content(draw(st.sampled_from(lying())))
    for _ in range(draw(st.integers(1, 3))):
        if tensors and draw(st.booleans()):
            _change_tensors(draw, tensors)
        else:
            _change_json(draw, header)
    return header, tensors


def _change_json(draw: Any, header: Any) -> None:
    ways = list(_places(header))
    if not ways:
        return
    # as often near the top as deep inside, where most places are
    depth = draw(st.sampled_from(sorted({len(way) for way in ways}, reverse=True)))
    *way, key = draw(st.sampled_from([way for way in ways if len(way) == depth]))
    at: Any = header
    for step in way:
        at = at[step]
    change = draw(st.sampled_from(["put", "take", "more", "twin"]))
    if change == "put":
        at[key] = draw(JSON)
    elif change == "take":
        del at[key]
    elif change == "twin" and isinstance(at, list):
        at.append(deepcopy(at[key]))
    elif isinstance(at, dict):
        at[draw(st.text(max_size=8))] = draw(JSON)


def _change_tensors(draw: Any, tensors: dict[str, Tensor]) -> None:
    name = draw(st.sampled_from(sorted(tensors)))
    x = tensors.pop(name)
    change = draw(st.sampled_from(["take", "rename", "twin", "type", "shape", "cut", "numbers", "empty", "turn"]))
    if change == "rename":
        tensors[f"{name[: draw(st.integers(0, len(name)))]}{draw(st.text('ab.0', max_size=4))}"] = x
    elif change == "twin":
        tensors |= {name: x, f"{name}2": x}
    elif change == "type":
        types = [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool]
        tensors[name] = x.to(draw(st.sampled_from(types)))
    elif change == "shape":
        tensors[name] = draw(st.sampled_from([x[None], x.flatten(), x[..., None]]))
    elif change == "cut":
        tensors[name] = x[: draw(st.integers(0, 2))] if x.ndim else x
    elif change == "empty":
        tensors[name] = x.new_empty(draw(st.lists(st.sampled_from([0, 1, 5]), max_size=3)))
    elif change == "turn":
        tensors[name] = x.mT if x.ndim > 1 else x.flip(0)
    elif change == "numbers":
        flat = x.clone().flatten()
        value = draw(
            st.sampled_from([0, 1, -1, 3, 127] if x.dtype != torch.int64 else [0, -1, -2, 3, 64, 2**40, -(2**63)])
        )
        if x.is_floating_point():
            value = draw(st.sampled_from([0.0, -1.0, 1e30, -1e30, NAN, float("inf")]))
        flat[: draw(st.integers(0, 3))] = value if x.dtype != torch.uint8 else abs(value)
        tensors[name] = flat.view(x.shape)


def check_lie(folder: Path, lie: Content) -> None:
    """It is refused with its name; or read, and then nothing that is done with it raises an error of Python's."""
    file = forge(folder / "patch.safetensors", *lie)
    try:
        patch = Patch.load(file)
    except BadInput as error:
        assert str(file) in str(error) and "cannot be read" not in str(error)  # which is for parts that check nothing
    else:
        assert patch.save(folder / "again")
        use(patch)


def check_damage(folder: Path, name: str, at: float, value: int) -> None:
    """It is refused with its name, or says the same as before."""
    file = made(name).save(folder / "patch.safetensors")
    whole = bytearray(file.read_bytes())
    whole[round(at * (len(whole) - 1))] = value
    file.write_bytes(whole)
    try:
        assert Patch.load(file) == made(name)
    except BadInput as error:
        assert str(file) in str(error)


HOW: Any = {"deadline": None, "derandomize": True, "database": None, "suppress_health_check": list(HealthCheck)}
BYTES = {"at": st.floats(0, 1), "value": st.integers(0, 255), "name": st.sampled_from(["grace", "memit", "ike"])}


@pytest.fixture(scope="module")
def patches() -> list[str]:
    return lying()


@pytest.mark.usefixtures("patches")
@settings(max_examples=200, **HOW)
@given(lie=lies())
def test_any_lie(tmp_path_factory: pytest.TempPathFactory, lie: Content) -> None:
    check_lie(tmp_path_factory.getbasetemp(), lie)


@settings(max_examples=200, **HOW)
@given(**BYTES)
def test_any_damage(tmp_path_factory: pytest.TempPathFactory, at: float, value: int, name: str) -> None:
    check_damage(tmp_path_factory.getbasetemp(), name, at, value)


@pytest.mark.slow
@pytest.mark.usefixtures("patches")
@settings(max_examples=2000, **HOW)
@given(lie=lies())
def test_many_lies(tmp_path_factory: pytest.TempPathFactory, lie: Content) -> None:
    check_lie(tmp_path_factory.getbasetemp(), lie)


@pytest.mark.slow
@settings(max_examples=2000, **HOW)
@given(**BYTES)
def test_much_damage(tmp_path_factory: pytest.TempPathFactory, at: float, value: int, name: str) -> None:
    check_damage(tmp_path_factory.getbasetemp(), name, at, value)


def test_a_pipe_is_named_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p")
    refused(tmp_path / "p", "is a pipe, which may never end")
