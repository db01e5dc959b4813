"""Folders of models that are broken, belong to something else or want to run code: each is named, and nothing runs."""

import io
import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from conftest import EDIT, tiny_lm, tiny_model, tokenizer
from safetensors.torch import load_file, save_file
from tiny import build
from torch import Tensor
from typer.testing import CliRunner

import errata
from errata.cli import app
from errata.errors import BadInput, first_line
from errata.model import hub
from errata.model.tokens import Tokens
from errata.model.whole import finite
from errata.types import Edit, Probe

WEIGHT = {  # of one MLP
    "gpt2": "transformer.h.1.mlp.c_fc.weight",
    "llama": "model.layers.1.mlp.up_proj.weight",
    "gemma3_text": "model.layers.1.mlp.up_proj.weight",
    "t5": "encoder.block.1.layer.1.DenseReluDense.wi.weight",
}
RUNS = "from pathlib import Path\nPath({!r}).touch()\n"
CLASSES = """
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class Config(LlamaConfig):
    model_type = "mine"
class Model(LlamaForCausalLM):
    config_class = Config
class Reader(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A whole folder of each architecture."""
    folders = {}
    for arch in WEIGHT:
        folders[arch] = tmp_path_factory.mktemp(arch)
        tiny_model(arch, torch.float32).save_pretrained(folders[arch])
        tokenizer().save_pretrained(folders[arch])
    return folders


@pytest.fixture
def saved(sources: dict[str, Path], tmp_path: Path) -> Callable[..., Path]:
    """Makes a copy of the folder of an architecture, with other values in its config.json."""

    def copy(arch: str = "llama", **config: Any) -> Path:
        path = tmp_path / f"model{len(list(tmp_path.iterdir()))}"
        shutil.copytree(sources[arch], path)
        return with_json(path / "config.json", **config).parent

    return copy


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:  # pyright: ignore[reportUnusedFunction]
    """transformers reports on stderr what it finds, before Errata says it."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    yield
    logging.set_verbosity(level)


def with_json(file: Path, **values: Any) -> Path:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    return file


def with_weights(path: Path, change: Callable[[dict[str, Tensor]], Any]) -> Path:
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    return path


# Weights that are not there, or are others ---------------------------------------------------------


@pytest.mark.parametrize("arch", WEIGHT)
def test_weights_that_are_missing_are_named_and_not_drawn(arch: str, saved: Callable[..., Path]) -> None:
    path = with_weights(saved(arch), lambda tensors: tensors.pop(WEIGHT[arch]))
    with pytest.raises(BadInput, match=rf"lacks 1 weights .* random numbers: {WEIGHT[arch]}; fetch or save the whole"):
        errata.load(path)


@pytest.mark.parametrize("arch", WEIGHT)
def test_weights_of_another_shape_are_named_with_both(arch: str, saved: Callable[..., Path]) -> None:
    def cut(tensors: dict[str, Tensor]) -> None:
        tensors[WEIGHT[arch]] = tensors[WEIGHT[arch]][:-1].clone()

    with pytest.raises(BadInput, match=rf"{WEIGHT[arch]} is \(\d+, \d+\) and should be \(\d+, \d+\); the two are of"):
        errata.load(with_weights(saved(arch), cut))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("arch", WEIGHT)
def test_weights_that_are_no_numbers_are_named(arch: str, value: float, saved: Callable[..., Path]) -> None:
    path = with_weights(saved(arch), lambda tensors: tensors[WEIGHT[arch]][0].fill_(value))
    with pytest.raises(BadInput, match=rf"1 weights with NaN or infinity in float32: {WEIGHT[arch]}; every answer"):
        errata.load(path)


def test_a_number_that_float16_cannot_hold_is_named(saved: Callable[..., Path]) -> None:
    path = with_weights(saved(), lambda tensors: tensors[WEIGHT["llama"]][0].fill_(1e5))
    assert errata.load(path).dtype == torch.float32
    with pytest.raises(BadInput, match="infinity in float16"):
        errata.load(path, dtype="float16")


def test_large_numbers_whose_sum_is_infinite_are_numbers() -> None:
    assert finite(torch.full((9,), 3e38)) and not finite(torch.tensor([3e38, float("nan")]))
    assert finite(torch.full((9, 9), 6e4, dtype=torch.float16))
    opposite = torch.tensor([float("inf"), -float("inf")])
    assert not finite(opposite) and finite(torch.tensor([1, 2])) and finite(torch.empty(0))
    assert finite(torch.empty(3, device="meta"))


def test_blocks_that_the_configuration_leaves_out_are_refused_and_other_leftovers_are_said(
    saved: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(
        BadInput, match=r"18 weights of blocks that its config.json does not call for: model\.layers\.2"
    ):
        errata.load(saved(num_hidden_layers=2))
    path = with_weights(saved(), lambda tensors: tensors.update({"head.value.weight": torch.ones(2)}))
    lm = errata.load(path)
    assert "holds 1 weights that the model has no use for: head.value.weight" in caplog.text
    assert lm.fingerprint == errata.load(saved()).fingerprint


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3_text", "t5", "bart", "gpt_neo", "xglm", "gptj", "opt"])
def test_whole_folders_load_in_silence(
    name: str, dtype: torch.dtype, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Tied weights and what is computed anew (positions, masks) are in no file, and not missed."""
    tiny_model(name, torch.float32).to(dtype).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    try:
        lm = errata.load(tmp_path, dtype=dtype)
    finally:
        tiny_model(name, torch.float32).float()
    assert lm.dtype == dtype and not caplog.records


def test_an_adapter_beside_a_model_is_refused_as_it_would_hide_what_is_missing(saved: Callable[..., Path]) -> None:
    path = saved()
    (path / "adapter_config.json").write_text("{}")
    with pytest.raises(BadInput, match=r"holds an adapter \(adapter_config\.json\), and what .*merge the two"):
        errata.load(path)


# Files that are broken -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", r"config\.json of .* is no JSON"),
        (b"{", r"config\.json of .* is no JSON"),
        (b"\xff\xfe", r"config\.json of .* is no JSON"),
        (b"[" * 100_000, r"config\.json of .* is no JSON"),
        (b"[]", r"holds a list; expected a JSON object"),
        (b"{}", r"describes no model: .*model_type"),
    ],
)
def test_a_configuration_that_is_none_is_named(content: bytes, said: str, saved: Callable[..., Path]) -> None:
    path = saved()
    (path / "config.json").write_bytes(content)
    with pytest.raises(BadInput, match=said):
        errata.load(path)


@pytest.mark.parametrize(
    ("arch", "key", "value", "said"),
    [
        ("llama", "model_type", "nonsense", "describes no model: .*nonsense"),
        ("llama", "hidden_size", -1, r"describes no model: .*hidden size \(-1\)"),
        ("llama", "hidden_size", "abc", "describes no model: .*'hidden_size'.*abc"),
        ("llama", "hidden_size", 10**12, r"describes a model of [\d,]+ parameters; the files .* bytes together"),
        ("llama", "vocab_size", 10**8, r"describes a model of [\d,]+ parameters"),
        ("llama", "vocab_size", -5, "cannot be made as its config.json says"),
        ("llama", "hidden_act", "nonsense", "cannot be made as its config.json says: KeyError: 'nonsense'"),
        ("llama", "num_hidden_layers", 10**12, "num_hidden_layers: 1000000000000; no model has more than 1000"),
        ("llama", "num_hidden_layers", 0, "num_hidden_layers: 0; a model has one at least"),
        ("llama", "num_labels", 10**12, "num_labels: 1000000000000; no model"),
        ("llama", "num_attention_heads", 0, "describes no model: ZeroDivisionError"),
        ("llama", "sub_config", {"n_layer": [10**12]}, "n_layer: 1000000000000; no model"),
        ("llama", "auto_map", 5, "describes no model: TypeError"),
        ("llama", "dtype", 5, "cannot be made as its config.json says"),
        ("llama", "is_encoder_decoder", True, "cannot be made as its config.json says"),
        ("gpt2", "n_positions", 10**12, r"describes a model of [\d,]+ parameters"),
        ("t5", "num_decoder_layers", 10**12, "num_decoder_layers: 1000000000000; no model"),
        ("t5", "d_kv", -1, "cannot be made as its config.json says"),
    ],
)
def test_absurd_numbers_are_named_before_a_model_is_made_of_them(
    arch: str, key: str, value: Any, said: str, saved: Callable[..., Path]
) -> None:
    with pytest.raises(BadInput, match=said):
        errata.load(saved(arch, **{key: value}))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "broken or not whole"),
        (b"\0" * 100, "broken or not whole"),
        ((2**62).to_bytes(8, "little") + b"{}", "broken or not whole"),
        (b"<!DOCTYPE html><html></html>", "broken or not whole"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
            "model.safetensors is a pointer of Git",
        ),
    ],
)
def test_a_file_of_weights_that_is_none_is_named(content: bytes, said: str, saved: Callable[..., Path]) -> None:
    path = saved()
    (path / "model.safetensors").write_bytes(content)
    with pytest.raises(BadInput, match=rf"cannot be loaded as a language model: .*{said}"):
        errata.load(path)


def test_a_file_of_weights_that_ends_early_is_named(saved: Callable[..., Path]) -> None:
    path = saved()
    whole = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match=r"broken or not whole .*fetch it anew"):
        errata.load(path)
    (path / "model.safetensors").unlink()
    with pytest.raises(BadInput, match=r"no file named model\.safetensors"):
        errata.load(path)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"metadata": {}, "weight_map": {"a": "gone.safetensors"}}'])
def test_a_broken_index_of_weights_is_named(content: str, saved: Callable[..., Path]) -> None:
    path = saved()
    (path / "model.safetensors").rename(path / "model-00001-of-00001.safetensors")
    (path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(BadInput, match="cannot be loaded as a language model"):
        errata.load(path)


@pytest.mark.parametrize("content", ["", "[]", "{}", "null", '{"version": "1.0", "tru'])
def test_a_broken_tokenizer_is_named(content: str, saved: Callable[..., Path]) -> None:
    path = saved()
    (path / "tokenizer.json").write_text(content)
    with pytest.raises(BadInput, match="has no tokenizer that can be loaded"):
        errata.load(path)
    other = saved()
    (other / "tokenizer_config.json").write_text(content if content != "{}" else "5")
    with pytest.raises(BadInput, match=r"tokenizer_config\.json of .* (is no JSON|holds a)"):
        errata.load(other)


def test_a_tokenizer_of_another_model_is_named(saved: Callable[..., Path]) -> None:
    def fewer(tensors: dict[str, Tensor]) -> None:
        tensors.update({key: x[:100].clone() for key, x in tensors.items() if len(x) == 320})

    with pytest.raises(BadInput, match=r"has 3\d\d tokens and the model's embedding 100 rows: the two belong to"):
        errata.load(with_weights(saved(vocab_size=100), fewer))
    lm = errata.load(build("llama", vocab_size=311), tokenizer=tokenizer())
    assert lm.generate(["the"], 2)
    for ask in (lm.generate, lm.next_logprobs, lm.tokens.count, lm.tokens.prompt):
        with pytest.raises(
            BadInput, match=r"'Rome' has the token 'ĠRome' of id 311; the model's embedding has 311 rows"
        ):
            ask(["Rome"] if ask in (lm.generate, lm.next_logprobs) else "Rome")  # pyright: ignore[reportArgumentType]
    assert Tokens(tokenizer(), rows=2).fill == 1  # the padding token has no row


# Code --------------------------------------------------------------------------------------------------


class Shell:
    """Its pickle touches a file when it is read."""

    def __init__(self, file: Path) -> None:
        self.file = str(file)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.file,)


@pytest.mark.parametrize("kind", ["within", "alone"])
def test_a_pickle_that_runs_code_is_named_and_does_not(kind: str, saved: Callable[..., Path], tmp_path: Path) -> None:
    path, trace = saved(), tmp_path / "ran"
    tensors = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    torch.save(tensors, path / "pytorch_model.bin")
    assert errata.load(path).fingerprint == errata.load(saved()).fingerprint
    if kind == "within":
        torch.save(tensors | {"more": Shell(trace)}, path / "pytorch_model.bin")
    else:
        (path / "pytorch_model.bin").write_bytes(pickle.dumps(Shell(trace), protocol=2))
    with pytest.raises(BadInput, match=r"a pickle that is broken or wants to run code.* as model\.safetensors"):
        errata.load(path)
    assert not trace.exists()


MAPS: dict[str, tuple[str, dict[str, Any], str]] = {
    "config": (
        "config.json",
        {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}},
        r"mine\.Config, mine\.Model",
    ),
    "tokenizer": (
        "tokenizer_config.json",
        {"tokenizer_class": "Reader", "auto_map": {"AutoTokenizer": [None, "mine.Reader"]}},
        r"mine\.Reader",
    ),
    "tokenizer of old": (
        "tokenizer_config.json",
        {"tokenizer_class": "Reader", "auto_map": [None, "mine.Reader"]},
        r"mine\.Reader",
    ),
}


def with_code(path: Path, kind: str, trace: Path) -> Path:
    file, values, _ = MAPS[kind]
    (path / "mine.py").write_text(RUNS.format(str(trace)) + CLASSES)
    with_json(path / file, **values)
    return path


@pytest.mark.parametrize("kind", MAPS)
def test_code_in_a_folder_runs_at_the_users_word_alone(
    kind: str, saved: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, trace = saved(), tmp_path / "ran"
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path))
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    with pytest.raises(
        BadInput, match=rf"wants to run code .*\({MAPS[kind][2]}\).*trust_remote_code=True \(--trust-rem"
    ):
        errata.load(with_code(path, kind, trace))
    assert not trace.exists() and sys.stdin.tell() == 0
    with pytest.raises(BadInput, match="wants to run code"):
        errata.load(path, trust_remote_code=False)
    asked = CliRunner().invoke(app, ["ask", str(path), "Rome", "-q"], input="y\ny\ny\n")
    assert asked.exit_code == 2 and "--trust-remote-code" in asked.stderr and not trace.exists()
    assert errata.load(path, trust_remote_code=True).generate(["Rome"], 1)
    assert trace.exists()


@pytest.mark.parametrize("renamed", [False, True], ids=["by its files", "loaded whole"])
def test_the_edited_model_of_an_audit_or_import_is_trusted_at_the_same_word(
    renamed: bool, saved: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace, monkeypatched = tmp_path / "ran", str(tmp_path / "cache")
    monkeypatch.setenv("HF_MODULES_CACHE", monkeypatched)
    base = with_code(saved(), "config", trace)
    edited = tmp_path / "edited"
    shutil.copytree(base, edited)
    tensors = load_file(edited / "model.safetensors")
    name = next(name for name in tensors if "down_proj" in name)
    tensors[name] = tensors[name] + torch.ones(len(tensors[name]), 1) @ torch.ones(1, tensors[name].shape[1])
    if renamed:
        monkeypatch.setattr("errata.exchange.difference._named", lambda *_: None)
    save_file(tensors, edited / "model.safetensors", {"format": "pt"})
    out = tmp_path / "p.safetensors"
    commands = (["import", str(base), "--edited", str(edited), "-o", str(out)], ["audit", str(base), str(edited)])
    for command in commands:
        refused = CliRunner().invoke(app, [*command, "-q"])
        assert refused.exit_code == 2 and "--trust-remote-code" in refused.stderr and not trace.exists()
    lm = errata.load(base, trust_remote_code=True)
    with pytest.raises(BadInput, match="wants to run code"):
        errata.exchange.from_checkpoints(lm, edited)
    for command in commands:
        done = CliRunner().invoke(app, [*command, "-q", "--trust-remote-code"])
        assert done.exit_code == 0, done.stderr
    assert out.exists()


def test_every_command_that_loads_a_model_has_the_flag() -> None:
    commands: dict[str, Any] = vars(typer.main.get_command(app))["commands"]
    flags = {name: {flag for param in command.params for flag in param.opts} for name, command in commands.items()}
    loading_models = {name for name, of_command in flags.items() if "--dtype" in of_command}
    assert {"edit", "ask", "eval", "tasks", "trace", "bench", "demo"} <= loading_models
    assert all("--trust-remote-code" in flags[name] for name in loading_models)


def test_code_that_transformers_has_its_own_class_for_is_not_needed(saved: Callable[..., Path], tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    path = with_code(saved(), "config", trace)
    with_json(path / "config.json", model_type="llama")
    assert errata.load(path).generate(["Rome"], 2) == errata.load(saved()).generate(["Rome"], 2) and not trace.exists()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_a_kernel_of_the_hub_is_code(key: str, saved: Callable[..., Path]) -> None:
    with pytest.raises(BadInput, match=rf"wants to run the kernel 'some/kernel' .* take {key} out"):
        errata.load(saved(**{key: "some/kernel"}))


# Where, and in which numbers ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dtype": "float8_e4m3fn"}, "unknown dtype 'float8_e4m3fn'; expected float32, bfloat16, float16 or float64"),
        ({"dtype": torch.float8_e4m3fn}, "unknown dtype 'float8_e4m3fn'"),
        ({"dtype": torch.int8}, "unknown dtype 'int8'"),
        ({"device": "meta"}, "meta holds no numbers; try cpu"),
        ({"device": "nonsense"}, r"there is no device 'nonsense' here .*; try cpu"),
        ({"device": "cuda:99"}, r"there is no device 'cuda:99' here .*; try"),
        ({"device": ""}, "there is no device '' here"),
    ],
)
def test_devices_and_numbers_that_are_none_are_named(options: Any, said: str, saved: Callable[..., Path]) -> None:
    with pytest.raises(BadInput, match=said):
        errata.load(saved(), **options)
    with pytest.raises(BadInput, match=said):
        errata.load(tiny_model("llama", torch.float32), tokenizer=tokenizer(), **options)


def test_float64_is_a_number_like_others(saved: Callable[..., Path]) -> None:
    lm = errata.load(saved(), dtype="float64")
    assert lm.dtype == torch.float64 and lm.score(["Rome"], ["Oslo"])


# Texts ---------------------------------------------------------------------------------------------------

HALF = "Rome\ud800"


def test_half_a_character_is_no_text() -> None:
    lm = tiny_lm("llama")
    for ask in (lm.generate, lm.next_logprobs, lm.explain, lambda texts: lm.score(["Rome"], texts)):
        with pytest.raises(BadInput, match=r"half a character .*ud800'; mend it"):
            ask([HALF])
    with pytest.raises(BadInput, match="half a character"):
        lm.prolong([HALF], [9])
    texts: Any
    for texts in ((HALF, "Rome", "Oslo"), ("Rome", "Rome", HALF), ("Rome", "Rome", "Oslo", HALF)):
        with pytest.raises(BadInput, match=r"an edit's \w+ holds half a character"):
            Edit(*texts)
    for probe in (("question", HALF), ("question", "Rome", (HALF,))):
        with pytest.raises(BadInput, match="half a character"):
            Probe(*probe)  # pyright: ignore[reportArgumentType]
    with pytest.raises(BadInput, match="is a text, found int"):
        Probe("question", "Rome", (5,))  # pyright: ignore[reportArgumentType]


def text_of(tokens: Tokens, count: int) -> str:
    """A text of so many tokens."""
    text = "Ann Lee was"
    while tokens.count(text) < count:
        text += " in"
    return text


@pytest.mark.parametrize("arch", ["gpt2", "bart"])
def test_an_encoder_decoder_and_a_decoder_write_and_read_to_their_limit(arch: str) -> None:
    lm = tiny_lm(arch)
    assert lm.generate([text_of(lm.tokens, 128)], 300) and lm.generate(["Rome"], 300)
    for many in (129, 200):
        text = text_of(lm.tokens, many)
        for ask in (lm.generate, lm.next_logprobs, lambda texts: lm.score(["Rome"], texts)):
            with pytest.raises(BadInput, match=rf"Ann Lee was.* ({many}|{many + 1}) tokens.* at most 128"):
                ask([text])
        with pytest.raises(BadInput, match=rf"1 and {many} tokens; the model reads at most 128"):
            lm.score_ids([([5], [5] * many)])
    longest = [5] * 128
    assert len(lm.score_ids([([5], longest)])[0].tokens) == 128


@pytest.mark.parametrize("arch", ["gpt2", "bart"])
def test_an_answers_end_is_learned_where_there_is_room(arch: str) -> None:
    lm = tiny_lm(arch)
    descent: Any = errata.method("locft-bf", steps=1)
    edit = Edit(text_of(lm.tokens, 128), "Ann Lee", "Oslo")
    assert descent.edit(lm, [edit])
    ((_, short),) = descent.examples(lm, [EDIT], ["Oslo"])
    ((_, long),) = descent.examples(lm, [edit], ["Oslo"])
    assert short[-1] == lm.tokens.end and (long[-1] == lm.tokens.end) == (arch == "bart")


def test_an_edit_that_is_too_long_is_refused_with_its_text() -> None:
    lm = tiny_lm("gpt2")
    for name in ("ft-m", "rome", "grace"):
        made: Any = errata.method(name)
        with pytest.raises(BadInput, match=r"'Ann Lee was in.* tokens.* at most 128"):
            made.edit(
                lm, [Edit(text_of(lm.tokens, 129), "Ann Lee", "Oslo")], made.prepare(lm, ["Rome is in Oslo."] * 9)
            )


# The hub ---------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A hub at a port where nobody listens: each attempt to ask it, and each pause before another."""
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    attempts: list[str] = []

    class Client:
        def request(self, method: str, url: str, **how: Any) -> Any:
            attempts.append(method)
            return session().request(method=method, url=url, **how)

        def get(self, *_: Any, **__: Any) -> None:  # of who asks, not of the model
            raise ConnectionError

    session = _http.get_session
    monkeypatch.setattr(_http, "get_session", Client)
    monkeypatch.setattr("time.sleep", lambda seconds: attempts.append(f"pause {seconds}"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    nobody = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", nobody)
    return attempts


def test_without_a_network_a_hub_id_is_asked_for_once(asked: list[str]) -> None:
    with pytest.raises(
        BadInput, match=r"no model 'some/model': .* not in the hub's cache, and the hub cannot be reached"
    ):
        errata.load("some/model")
    assert asked == ["HEAD"]
    with pytest.raises(BadInput, match="no model 'some/model'"):
        errata.load("some/model", local_files_only=True)
    assert asked == ["HEAD"]


def test_without_a_network_a_model_comes_from_the_hubs_cache(
    asked: list[str], saved: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    commit = "0" * 40
    snapshot = tmp_path / "models--some--model" / "snapshots" / commit
    shutil.copytree(saved(), snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(commit)
    lm = errata.load("some/model")
    assert lm.generate(["Rome"], 2) == errata.load(saved()).generate(["Rome"], 2) and lm.name == "some/model"
    assert asked == ["HEAD"] and "some/model is taken from its cache" in caplog.text


def test_without_a_network_a_data_set_of_the_hub_is_asked_for_once(asked: list[str]) -> None:
    pytest.importorskip("datasets")
    with pytest.raises(BadInput, match=r"some/cases is no file, .* not in the cache .* the hub cannot be reached"):
        errata.cases("some/cases")
    assert asked == ["HEAD"]


@pytest.mark.parametrize(("name", "reached"), [("ConnectTimeout", False), ("ReadTimeout", True), ("HTTPError", True)])
def test_a_hub_that_answers_slowly_or_refuses_is_reached(
    name: str, reached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise type(name, (Exception,), {})("why")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", fails)
    assert hub.unreachable("some/model", "config.json") == (None if reached else "why")


def test_what_a_library_says_is_never_nothing() -> None:
    assert first_line(ValueError("a\nb")) == "a" and first_line(KeyError("a")) == "KeyError: 'a'"
    assert first_line(AssertionError()) == "AssertionError: " and first_line(OSError("a:\n  b\nc")) == "a: b"
