"""The patch as a value: algebra, files, refusals, weights on odd devices."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import EDIT, TEXTS, same_weights, tiny_lm, weights

from errata.errors import BadInput, InForce, Unsupported, WrongModel
from errata.methods.registry import method
from errata.model.lm import Call
from errata.patch.delta import Delta
from errata.patch.low_rank import LowRank
from errata.patch.parts import Adapter, Wrapper
from errata.patch.patch import EMPTY, Patch

SITE = "transformer.h.1.mlp.c_proj"  # GPT-2's Conv1D, (in, out) in memory


def low_rank(seed: int, rank: int = 2) -> Patch:
    g = torch.Generator().manual_seed(seed)
    factors = LowRank(torch.randn(32, rank, generator=g), torch.randn(rank, 64, generator=g))
    return Patch((Delta({f"{SITE}.weight": factors}),))


def test_conv1d_is_turned() -> None:
    lm, patch = tiny_lm("gpt2"), low_rank(0)
    linear: Any = lm.model.get_submodule(SITE)
    x = torch.randn(3, 64)
    before = linear(x)
    with patch.applied(lm):
        after = linear(x)
    change = patch.parts[0].weights[f"{SITE}.weight"].dense()  # pyright: ignore
    assert torch.allclose(after - before, x @ change.T, atol=1e-4)


def test_algebra() -> None:
    a, b = low_rank(1), low_rank(2)
    assert a + EMPTY == a and EMPTY + a == a
    assert (a + b) + EMPTY == a + (b + EMPTY)
    lm = tiny_lm("gpt2")
    changed = [dict(weights(lm.model))]
    for patch in (a + b, b + a, a + (-a), 2 * a, a * 0.5):
        with patch.applied(lm):
            changed.append(weights(lm.model))
    name = f"{SITE}.weight"
    assert torch.allclose(changed[1][name], changed[2][name], atol=1e-5)
    assert torch.allclose(changed[3][name], changed[0][name], atol=1e-5)
    assert torch.allclose(changed[4][name] - changed[0][name], 4 * (changed[5][name] - changed[0][name]), atol=1e-4)


def test_a_patch_is_shown_in_one_line() -> None:
    lm, patch = tiny_lm("gpt2"), low_rank(1)
    assert repr(EMPTY) == "<Patch: empty>" and repr(patch) == "<Patch: delta>"
    assert repr(patch.parts) == f"(Delta(weights={{'{SITE}.weight': <LowRank: 32 x 64, rank 2>}}),)"
    lm.name = "tiny"
    more = method("ft-m", steps=1).edit(lm, [EDIT], prior=patch)
    assert repr(more) == "<Patch: 1 edit by ft-m, of the model tiny, delta>"


def test_nested_on_what_was_yielded() -> None:
    lm = tiny_lm("gpt2")
    before = weights(lm.model)
    with low_rank(1).applied(lm) as one:
        first = weights(lm.model)
        with low_rank(2).applied(one) as two:
            two.generate(["Rome"], 1)
            with pytest.raises(InForce):
                one.generate(["Rome"], 1)
        assert same_weights(lm.model, first)
        one.generate(["Rome"], 1)
        with pytest.raises(InForce), low_rank(3).applied(lm):
            pass
    assert same_weights(lm.model, before)


def test_tied_weights_stay_tied() -> None:
    lm = tiny_lm("gpt2")
    model: Any = lm.model
    change = Patch((Delta({"transformer.wte.weight": torch.ones(320, 32)}),))
    assert model.lm_head.weight is model.transformer.wte.weight
    with change.applied(lm):
        assert model.lm_head.weight is model.transformer.wte.weight
        assert model.lm_head.weight.data_ptr() == model.transformer.wte.weight.data_ptr()


def test_merge_is_for_good() -> None:
    import copy

    from conftest import tiny_model, tokenizer

    from errata.model.hf import HFLM

    lm = HFLM(copy.deepcopy(tiny_model("gpt2", torch.float32)), tokenizer())
    patch = low_rank(1)
    with patch.applied(lm) as edited:
        logprobs = edited.next_logprobs(["Rome"])
    old = lm.fingerprint
    patch.merge(lm)
    assert (lm.next_logprobs(["Rome"]) == logprobs).all()
    assert lm.fingerprint != old


def test_bad_files(tmp_path: Path) -> None:
    path = low_rank(1).save(tmp_path / "patch.safetensors")
    whole = path.read_bytes()
    assert Patch.load(path) == low_rank(1)
    for broken in (whole[: len(whole) // 2], b"", b"not a patch at all", whole[:20]):
        path.write_bytes(broken)
        with pytest.raises(BadInput, match="no whole patch"):
            Patch.load(path)
    with pytest.raises(BadInput, match="there is no patch"):
        Patch.load(tmp_path / "none")


def test_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(BadInput, match="No space left"):
        low_rank(1).save(tmp_path / "patch.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_memory_can_be_left_out(tmp_path: Path) -> None:
    patch = Patch(low_rank(1).parts, {"keys/x": torch.ones(2, 3)})
    assert Patch.load(patch.save(tmp_path / "a")) == patch
    assert Patch.load(patch.save(tmp_path / "b", memory=False)) == low_rank(1)


def test_wrong_shapes_and_names_are_refused() -> None:
    lm = tiny_lm("gpt2")
    for name, shape in ((f"{SITE}.weight", (64, 32)), ("no.such.weight", (2, 2))):
        with pytest.raises(WrongModel), Patch((Delta({name: torch.zeros(shape)}),)).applied(lm):
            pass
    lm.generate(["Rome"], 1)


def test_one_edit_can_be_taken_out_only_exactly() -> None:
    lm = tiny_lm("gpt2")
    ft = method("ft-m")
    patch = ft.edit(lm, [EDIT])
    assert patch.without(EDIT.id) == EMPTY
    with pytest.raises(BadInput, match=EDIT.id):
        patch.without("unknown")
    from conftest import EDITS

    with pytest.raises(Unsupported):
        ft.edit(lm, EDITS).without(EDIT.id)


class Shout(Wrapper):
    """Answers in capitals: a wrapper as small as can be."""

    kind = "shout"

    def config(self) -> dict[str, Any]:
        return {}

    def tensors(self) -> dict[str, Any]:
        return {}

    @classmethod
    def build(cls, config: Any, tensors: Any) -> "Shout":
        return cls()

    def wrap(self, inner: Any) -> Any:
        class Loud:
            def generate(self, prompts: Any, max_new_tokens: int = 32, *, until_answer: bool = False) -> list[str]:
                return [t.upper() for t in inner.generate(prompts, max_new_tokens, until_answer=until_answer)]

            def score(self, prompts: Any, targets: Any) -> Any:
                raise Unsupported("no scores in capitals")

        return Loud()


class Bump(Adapter):
    """Adds to the prompt's last token at a site, and keeps in the call's memo where that was."""

    kind = "bump"
    site = SITE

    def config(self) -> dict[str, Any]:
        return {}

    def tensors(self) -> dict[str, Any]:
        return {"size": torch.tensor(5.0)}

    @classmethod
    def build(cls, config: Any, tensors: Any) -> "Bump":
        return cls()

    def out(self, call: Call | None, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        assert call is not None
        if call.prompt_end is None:
            assert len(call.memo[self]) == len(y)  # kept from the prompt on, row by row
            return y
        call.memo[self] = call.prompt_end.clone()
        bumped = y.clone()
        bumped[torch.arange(len(y)), call.prompt_end] += 5.0
        return bumped

    def __hash__(self) -> int:
        return id(self)


def test_other_kinds_of_part(tmp_path: Path) -> None:
    """An adapter that decides at the prompt, inside a wrapper."""
    lm = tiny_lm("gpt2")
    prompts = ["Rome", "Ann Lee was born in", "The old king"]
    patch = low_rank(1) + Patch((Shout(), Bump()))
    loaded = Patch.load(patch.save(tmp_path / "p"))
    assert loaded == patch
    base = lm.next_logprobs(prompts)
    with Patch((Bump(),)).applied(lm) as bumped:
        together = bumped.generate(prompts, 4)
        assert together == [bumped.generate([p], 4)[0] for p in prompts]
        first = bumped.next_logprobs(prompts)
        assert bumped.generate(prompts, 1) == [
            lm.tokens.decode([i]) if i != lm.tokens.end else "" for i in first.argmax(-1).tolist()
        ]
        assert (first != base).any(-1).all()
    with loaded.applied(lm) as loud:
        assert all(text == text.upper() for text in loud.generate(prompts, 4))
        with pytest.raises(Unsupported):
            loud.score(prompts, prompts)
    with pytest.raises(TypeError, match="bump"):
        _ = -patch
    with pytest.raises(Unsupported, match="merged"):
        patch.merge(lm)


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_side_product_where_a_weight_is_offloaded(where: str, tmp_path: Path) -> None:
    """A model kept off the device is edited without its weights: same scores, nothing left behind."""
    accelerate = pytest.importorskip("accelerate")
    import copy

    from conftest import tiny_model, tokenizer

    from errata.model.hf import HFLM

    memit: Any = method("memit", contexts=0)
    for arch in ("gpt2", "llama"):
        plain = tiny_lm(arch)
        state = memit.prepare(plain, TEXTS)
        patch = memit.edit(plain, [EDIT], state)
        model: Any = copy.deepcopy(tiny_model(arch, torch.float32))
        if where == "disk":
            accelerate.disk_offload(model, tmp_path / arch, torch.device("cpu"))
        else:
            accelerate.cpu_offload(model, torch.device("cpu"))
        away = HFLM(model, tokenizer(), name="offloaded")
        assert away.fingerprint == plain.fingerprint
        before = away.score([EDIT.prompt], [EDIT.target_new])
        with patch.applied(plain) as one, patch.applied(away) as two:
            a, b = (lm.score([EDIT.prompt], [EDIT.target_new])[0] for lm in (one, two))
        assert a.total == pytest.approx(b.total, abs=1e-3)
        again = memit.edit(away, [EDIT], state)
        with again.applied(away) as three:
            assert three.score([EDIT.prompt], [EDIT.target_new])[0].total > before[0].total
        assert away.score([EDIT.prompt], [EDIT.target_new]) == before
