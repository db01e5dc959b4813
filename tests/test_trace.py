"""Causal tracing: the batched, suffix-only runs against plain ones, averages, and the command."""

import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import EDIT, EDITS, TEXTS, same_weights, tiny_lm, tiny_model, tokenizer, weights
from test_cli import here, refused, run, saved  # noqa: F401  (here: an empty working folder for each test)
from tiny import CAUSAL

import errata
from errata.cli import maps
from errata.cli import trace as command
from errata.errors import BadInput, UnknownName, Unsupported
from errata.locate import KINDS, ROLES, Trace, average, embedding_std, trace
from errata.model import hooks
from errata.model.hf import HFLM

PROMPT, SUBJECT = "The mayor is Ann Lee of", "Ann Lee"
NAMES = ("gpt2", "llama", "gpt_neox", "opt", "gemma2")
FEW: dict[str, Any] = {"samples": 3, "window": 2, "seed": 4}


# Against the plain way ---------------------------------------------------------------------------


def plain(lm: HFLM, result: Trace, ids: list[int], o: int, noise: torch.Tensor, kind: str) -> torch.Tensor:
    """(positions, layers): one draw, one position, one layer at a time, the whole model each time."""
    first, end = result.subject
    depth, t = lm.sites.depth, len(ids)
    paths = {"hidden": lm.sites.layer, "mlp": lm.sites.mlp_out, "attention": lm.sites.attn_out}[kind]

    def probability(draw: int | None, changes: dict[str, Callable[[torch.Tensor], torch.Tensor]]) -> float:
        def corrupt(out: torch.Tensor) -> torch.Tensor:
            out = out.clone()
            if draw is not None:
                out[0, first:end] += noise[draw].to(out)
            return out

        def hooked(path: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
            def after(args: Any, kwargs: Any, out: Any) -> Any:
                hidden = out if isinstance(out, torch.Tensor) else out[0]
                new = change(hidden.reshape(t, -1)).view_as(hidden)
                return new if isinstance(out, torch.Tensor) else (new, *out[1:])

            return hooks.after(lm.model.get_submodule(path), after)

        embed = hooks.after(lm.model.get_submodule(lm.sites.embed), lambda a, k, out: corrupt(out))
        with torch.no_grad(), embed, hooks.all_of(hooked(path, change) for path, change in changes.items()):
            logits = lm.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        return float(logits.double().softmax(-1)[o])

    clean: dict[str, torch.Tensor] = {}

    def note(path: str) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda hidden: clean.setdefault(path, hidden.clone())

    def put(path: str, position: int) -> Callable[[torch.Tensor], torch.Tensor]:
        def change(hidden: torch.Tensor) -> torch.Tensor:
            hidden = hidden.clone()
            hidden[position] = clean[path][position]
            return hidden

        return change

    assert probability(None, {path: note(path) for path in paths}) == pytest.approx(result.clean, abs=1e-5)
    corrupted = sum(probability(i, {}) for i in range(len(noise))) / len(noise)
    assert corrupted == pytest.approx(result.corrupted, abs=1e-5)
    table = torch.zeros(t, depth, dtype=torch.float64)
    for position in range(t):
        for layer in range(depth):
            low = layer if kind == "hidden" else layer - result.window // 2
            high = layer + 1 if kind == "hidden" else low + result.window
            changes = {path: put(path, position) for path in paths[max(0, low) : high]}
            runs = [probability(i, changes) for i in range(len(noise))]
            table[position, layer] = sum(runs) / len(runs) - corrupted
    return table


@pytest.mark.parametrize("name", NAMES)
def test_batched_runs_equal_plain_ones(name: str, caplog: pytest.LogCaptureFixture) -> None:
    lm = tiny_lm(name)
    lm.budget = 50  # several batches, none of them a whole number of draws
    result = trace(lm, PROMPT, SUBJECT, **FEW)
    assert not caplog.records  # blocks were skipped
    ids, (first, end) = lm.tokens.prompt(PROMPT), result.subject
    width = tiny_model(name, torch.float32).get_input_embeddings().weight.shape[1]
    drawn = torch.randn(FEW["samples"], end - first, width, generator=torch.Generator().manual_seed(FEW["seed"]))
    with torch.no_grad():
        embedded = lm.model.get_submodule(lm.sites.embed)(torch.tensor([ids[first:end]]))
    assert result.sigma == pytest.approx(3 * float(embedded.std()), rel=1e-6)
    o = int(lm.next_logprobs([PROMPT])[0].argmax())
    assert result.answer == lm.tokens.decode([o])
    for kind in KINDS:
        expected = plain(lm, result, ids, o, result.sigma * drawn, kind)
        assert expected.abs().amax() > 1e-3
        torch.testing.assert_close(result.effects[kind], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", sorted({*NAMES, "openai-gpt", "bloom", "falcon", "mpt", "granite", "phi"} & {*CAUSAL}))
def test_the_last_state_brings_everything_back(name: str) -> None:
    result = trace(tiny_lm(name), PROMPT, SUBJECT, kinds=["hidden"], samples=2)
    hidden = result.effects["hidden"]
    assert abs(result.clean - result.corrupted) > 1e-6
    assert float(hidden[-1, -1]) == pytest.approx(result.clean - result.corrupted, abs=1e-6)
    assert hidden[:-1, -1].abs().amax() < 1e-6  # nobody reads the others any more
    assert not hidden[: result.subject[0]].any()


def test_a_window_ends_with_the_model_and_is_a_fifth_of_it() -> None:
    lm = tiny_lm("llama")
    result = trace(lm, PROMPT, SUBJECT, kinds=["mlp"], samples=2, window=100)
    assert result.window == lm.sites.depth
    assert trace(lm, PROMPT, SUBJECT, kinds=["mlp"], samples=2).window == 1  # a fifth of 4


def test_a_model_that_bends_the_rules_runs_whole(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny_lm("gpt2")
    fast = trace(lm, PROMPT, SUBJECT, **FEW)
    monkeypatch.setattr("errata.model.passes.same_logits", lambda fast, full: False)
    slow = trace(lm, PROMPT, SUBJECT, **FEW)
    assert "all layers run" in caplog.text
    for kind in KINDS:
        torch.testing.assert_close(fast.effects[kind], slow.effects[kind], atol=1e-6, rtol=0)


# Arguments and results ---------------------------------------------------------------------------


def test_without_noise_there_is_no_effect() -> None:
    result = trace(tiny_lm("gpt_neox"), PROMPT, SUBJECT, noise=0, samples=2)
    assert result.clean == pytest.approx(result.corrupted, abs=1e-6) and result.sigma == 0
    assert all(effect.abs().amax() < 1e-6 for effect in result.effects.values())


def test_the_answer_is_the_models_own_or_the_target() -> None:
    lm = tiny_lm("gpt2")
    own = trace(lm, PROMPT, SUBJECT, kinds="hidden", samples=1)
    assert own.clean == pytest.approx(math.exp(lm.next_logprobs([PROMPT])[0].max()), abs=1e-6)
    result = trace(lm, PROMPT, SUBJECT, "Oslo", kinds="hidden", samples=1)
    score = lm.score([PROMPT], ["Oslo"])[0]
    assert result.clean == pytest.approx(math.exp(score.logprobs[0]), abs=1e-6)
    assert result.answer == lm.tokens.decode(score.tokens[:1])


@pytest.mark.parametrize(
    ("prompt", "subject", "expected"),
    [
        (PROMPT, "Ann Lee", " Ann Lee"),
        ("{} was born in", " Ann Lee ", " Ann Lee"),
        ("Ann Lee, says Ann Lee, lives in", "Ann Lee", " Ann Lee"),
        ("The old king of 東京 is", "東京", "東京"),
        ("Ann Lee", "Ann Lee", " Ann Lee"),
    ],
)
def test_the_subjects_tokens_are_found(prompt: str, subject: str, expected: str) -> None:
    lm = tiny_lm("gpt2")
    result = trace(lm, prompt, subject, kinds=["hidden"], samples=1)
    ids = lm.tokens.prompt(prompt.replace("{}", "Ann Lee"))
    (first, end), n = result.subject, len(result.tokens)
    assert lm.tokens.decode(ids[first:end]).lstrip() == expected.lstrip() and n == len(ids)
    later = lm.tokens.decode(ids[end:])
    assert subject.strip() not in later  # the last occurrence


def test_the_same_seed_gives_the_same_and_nothing_else_is_drawn() -> None:
    lm = tiny_lm("llama")
    state = torch.get_rng_state()
    one, two = (trace(lm, PROMPT, SUBJECT, **FEW) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one.effects[kind], two.effects[kind]) for kind in KINDS)
    other = trace(lm, PROMPT, SUBJECT, **{**FEW, "seed": 5})
    assert not torch.equal(one.effects["hidden"], other.effects["hidden"])


@pytest.mark.parametrize("name", NAMES)
def test_the_model_is_left_as_it_was(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm(name)
    before, logprobs = weights(lm.model), lm.next_logprobs([PROMPT])
    trace(lm, PROMPT, SUBJECT, **FEW)

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("in the middle of a run")

    monkeypatch.setattr("errata.locate.runs.probability", fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        trace(lm, PROMPT, SUBJECT, **FEW)
    path = lm.sites.layer[-1]
    monkeypatch.setattr(type(lm.model.get_submodule(path)), "forward", fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        trace(lm, PROMPT, SUBJECT, **FEW)
    monkeypatch.undo()
    assert same_weights(lm.model, before) and (lm.next_logprobs([PROMPT]) == logprobs).all()
    for module in lm.model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks and not module.training
        assert "forward" not in module.__dict__


def test_an_edited_model_is_traced_as_edited() -> None:
    lm = tiny_lm("gpt2")
    base = trace(lm, EDIT.prompt, EDIT.subject, EDIT.target_new, samples=1, kinds=["hidden"])
    with errata.method("ft-m", steps=30).edit(lm, [EDIT]).applied(lm) as edited:
        result = trace(edited, EDIT.prompt, EDIT.subject, EDIT.target_new, samples=1, kinds=["hidden"])
        with pytest.raises(RuntimeError, match="a patch is in force"):
            trace(lm, EDIT.prompt, EDIT.subject)
    assert result.clean > 10 * base.clean


@pytest.mark.parametrize(
    ("words", "settings", "message"),
    [
        ((PROMPT, "Zed"), {}, "'Zed' does not occur in the prompt"),
        ((PROMPT, " "), {}, "is empty"),
        ((PROMPT, SUBJECT), {"kinds": ["mpl"]}, "did you mean mlp"),
        ((PROMPT, SUBJECT), {"kinds": []}, "no kind of state"),
        ((PROMPT, SUBJECT), {"window": 0}, "window, .* at least 1, found 0"),
        ((PROMPT, SUBJECT), {"samples": 0}, "samples, .* at least 1, found 0"),
        ((PROMPT, SUBJECT), {"noise": -1.0}, "noise, .* found -1.0"),
        ((PROMPT, SUBJECT), {"noise": math.nan}, "noise, .* found nan"),
    ],
)
def test_bad_input_is_named(words: tuple[str, str], settings: dict[str, Any], message: str) -> None:
    with pytest.raises((BadInput, UnknownName), match=message):
        trace(tiny_lm("gpt2"), *words, **settings)


def test_what_cannot_be_traced_is_unsupported() -> None:
    with pytest.raises(Unsupported, match="encoder-decoder"):
        trace(tiny_lm("t5"), PROMPT, SUBJECT)
    lm = tiny_lm("gpt2")
    lm.sites = replace(lm.sites, attn_out=())
    with pytest.raises(Unsupported, match="name no attention output"):
        trace(lm, PROMPT, SUBJECT)
    assert trace(lm, PROMPT, SUBJECT, kinds=["mlp"], samples=1).effects.keys() == {"mlp"}


# Averages ----------------------------------------------------------------------------------------


def made(tokens: int, subject: tuple[int, int], rows: list[float], kind: str = "mlp") -> Trace:
    effect = torch.tensor(rows, dtype=torch.float64)[:, None] * torch.tensor([1.0, 2.0])
    return Trace(("x",) * tokens, subject, "o", 0.8, 0.2, {kind: effect}, 1, 0.1, 1)


def test_the_average_is_by_role() -> None:
    one = made(8, (1, 5), [9, 1, 2, 4, 5, 6, 7, 8])  # before, first, middle, middle, last, after, further, last token
    two = made(3, (0, 1), [3, 10, 12])  # a subject of one token
    result = average([one, two])
    assert result.facts == 2 and list(result.counts.values()) == [1, 1, 2, 2, 1, 2]
    assert result.clean == pytest.approx(0.8) and result.corrupted == pytest.approx(0.2)
    assert result.effects["mlp"][:, 0].tolist() == [1, 3, 4, 8, 7, 10]
    assert result.effects["mlp"][:, 1].tolist() == [2, 6, 8, 16, 14, 20]
    errors = result.errors["mlp"][:, 0]
    assert errors[[0, 1, 4]].isnan().all() and errors[[2, 3, 5]].tolist() == [1, 2, 2]  # s / √2
    record = json.loads(json.dumps(result.to_json()))
    assert record["roles"] == list(ROLES) and record["errors"]["mlp"][0] == [None, None]


def test_only_like_traces_are_averaged() -> None:
    with pytest.raises(BadInput, match="no trace"):
        average([])
    with pytest.raises(BadInput, match="different kinds or depths"):
        average([made(2, (0, 1), [1, 2]), made(2, (0, 1), [1, 2], kind="hidden")])


def test_the_spread_of_many_subjects_is_pooled() -> None:
    lm = tiny_lm("gpt2")
    pairs = [(e.prompt, e.subject) for e in EDITS]
    ids = [lm.tokens.prompt(p)[slice(*trace(lm, p, s, samples=1, kinds="mlp").subject)] for p, s in pairs]
    table = lm.model.get_submodule(lm.sites.embed).weight.detach()
    assert embedding_std(lm, pairs) == pytest.approx(float(table[[i for some in ids for i in some]].std()), rel=1e-6)


# The command -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved("gpt2", tmp_path_factory.mktemp("model"))


ONE = (PROMPT, "--subject", SUBJECT, "--samples", 2)


def known(lm: HFLM, n: int) -> list[dict[str, Any]]:
    """Facts that the tiny model "knows", result own next tokens being the attributes; and one that it does not."""
    facts: list[dict[str, Any]] = []
    for prompt in (f"{subject} {text}" for subject in ("Ann Lee", "Bob Ray", "Cy Moor") for text in TEXTS):
        token = lm.tokens.decode([int(lm.next_logprobs([prompt])[0].argmax())])
        if len(facts) < n and token.strip() and lm.score([prompt], [token])[0].correct:
            facts.append({"known_id": len(facts), "subject": prompt[:7], "prompt": prompt, "attribute": token})
    assert len(facts) == n
    return [*facts, {"subject": "Ann Lee", "prompt": "{} was born in", "attribute": "Lima"}]


def test_a_fact_is_shown_as_a_map(model: str) -> None:
    result = run("trace", model, *ONE)
    for kind in KINDS:
        assert f"{kind}: " in result.stdout
    assert "e*" in result.stdout and "clean" in result.stdout
    record = json.loads(run("trace", model, *ONE, "--kind", "mlp", "--window", 3, "--json", "-q").stdout)
    lm = HFLM(tiny_model("gpt2", torch.float32), tokenizer())
    result = trace(lm, PROMPT, SUBJECT, kinds=["mlp"], samples=2, window=3)
    assert record == json.loads(json.dumps(result.to_json())) and set(record["effects"]) == {"mlp"}
    other = json.loads(run("trace", model, *ONE, "--target", "Oslo", "--kind", "mlp", "--json", "-q").stdout)
    assert other["clean"] != record["clean"]


def test_a_picture_is_drawn(model: str, here: Path) -> None:  # noqa: F811
    pytest.importorskip("matplotlib")
    assert "wrote deep/trace.png" in run("trace", model, *ONE, "-o", "deep/trace.png").stderr
    assert (here / "deep" / "trace.png").read_bytes().startswith(b"\x89PNG")
    assert "add --force" in refused("trace", model, *ONE, "-o", "deep/trace.png", "-q")
    (here / "deep" / "trace.png").write_text("old")
    run("trace", model, *ONE, "-o", "deep/trace.png", "--force")
    assert (here / "deep" / "trace.png").read_bytes().startswith(b"\x89PNG")
    run("trace", model, *ONE, "--kind", "hidden", "-o", "one.svg", "-q")
    assert "<svg" in (here / "one.svg").read_text()
    assert [path.name for path in (here / "deep").iterdir()] == ["trace.png"]


def test_odd_tokens_do_not_break_a_picture() -> None:
    pytest.importorskip("matplotlib")
    table = [[0.1, -0.2], [math.nan, math.nan], [0.0, 0.0]]
    made = maps.picture("a $ b $x$ 東京", ["$\\frac", "$x$", "東京"], {"hidden": table})
    assert made.startswith(b"\x89PNG")


def test_without_matplotlib_the_extra_is_named(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "errata[plots]" in refused("trace", model, *ONE, "-o", "t.png", "-q")
    run("trace", model, *ONE, "-q")


def test_known_facts_are_averaged(model: str, here: Path) -> None:  # noqa: F811
    lm = HFLM(tiny_model("gpt2", torch.float32), tokenizer())
    facts = known(lm, 3)
    (here / "facts.json").write_text(json.dumps(facts))
    words = ("--facts", "facts.json", "--samples", 2, "--kind", "hidden")
    record = json.loads(run("trace", model, *words, "--json", "-q").stdout)
    assert record["facts"] == len(facts) - 1 and record["unknown"] == 1
    std = embedding_std(lm, [(f["prompt"], f["subject"]) for f in facts[:-1]])
    result = average(
        [trace(lm, f["prompt"], f["subject"], f["attribute"], kinds=["hidden"], samples=2, std=std) for f in facts[:-1]]
    )
    torch.testing.assert_close(
        torch.tensor(record["effects"]["hidden"][2]), result.effects["hidden"][2].float(), atol=1e-6, rtol=0
    )
    shown = run("trace", model, *words, "-q").stdout
    assert f"1 of {len(facts)} not known" in shown
    row, layer = divmod(int(result.effects["hidden"].nan_to_num(-1).argmax()), result.effects["hidden"].shape[1])
    best, error = (100 * float(table["hidden"][row, layer]) for table in (result.effects, result.errors))
    assert f"hidden: at most {best:.1f} ± {error:.1f} points, {ROLES[row]}, layer {layer} (" in shown
    assert json.loads(run("trace", model, *words, "--limit", 2, "--json", "-q").stdout)["facts"] == 2
    assert "facts were asked for" in refused("trace", model, *words, "--limit", 1000, "-q")


def test_world_is_the_one_that_the_model_knows(model: str) -> None:
    recipe = Path(model) / "recipe.json"
    recipe.write_text('{"persons": 30, "world_seed": 3}')
    try:
        assert command.read_facts(model, 3) != command.read_facts("world", 3)
        looked_at: list[str] = []
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(command, "read_facts", lambda name, *_: looked_at.append(name) or [])
            refused("trace", model, "--facts", "world", "-q")
        assert looked_at == [model]
    finally:
        recipe.unlink()


def test_facts_may_be_those_of_cases(model: str, here: Path) -> None:  # noqa: F811
    world = command.read_facts("world", 3, seed=2)
    edits = [case.edits[0] for case in errata.cases("world", 3, seed=2)]
    assert [tuple(fact) for fact in world] == [(e.template, e.subject, e.target_true) for e in edits]
    assert [fact.prompt for fact in world] == [e.prompt for e in edits]
    cases = [{"id": str(i), "edits": [e.to_json()]} for i, e in enumerate(EDITS)]
    (here / "cases.jsonl").write_text("".join(json.dumps(case) + "\n" for case in cases))
    assert command.read_facts("cases.jsonl") == [(EDIT.template, EDIT.subject, EDIT.target_true)]
    assert "knows none of the 1 facts" in refused("trace", model, "--facts", "cases.jsonl", "-q")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"subject": "Ann", "attribute": "x", "prom', "not JSON"),
        ("{}", "no format is known by the keys"),
        ("[]", "facts.json is empty"),
        ('[{"subject": "Ann", "attribute": "x"}]', "record 1: a fact is a JSON object whose prompt"),
        ('[{"subject": "Ann", "attribute": "x", "prompt": "{} is"}, 3]', "record 2: a fact is"),
        ('[{"subject": "Zed", "attribute": "x", "prompt": "Ann is"}]', "record 1: the subject 'Zed'"),
    ],
)
def test_wrong_facts_are_named(here: Path, content: str, message: str) -> None:  # noqa: F811
    (here / "facts.json").write_text(content)
    assert message in refused("trace", "world", "--facts", "facts.json", "-q")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("Ann is", "--subject", "Zed"), "'Zed' does not occur"),
        (("Ann is",), "--subject missing"),
        ((), "PROMPT and --subject missing"),
        ((*ONE, "--kind", "mpl"), "did you mean mlp"),
        ((*ONE, "--window", "0"), "window, the layers restored together, must be at least 1"),
        ((*ONE, "--samples", "0"), "samples, the draws of noise"),
        ((*ONE, "--noise", "-1"), "noise, in standard deviations"),
        ((*ONE, "--limit", "3"), "--limit counts facts"),
        ((*ONE, "--facts", "world"), "PROMPT and --subject and --facts were given"),
        (("--facts", "none.json"), "there is no file none.json"),
        (("--facts", "world", "--limit", "0"), "--limit must be at least 1"),
        ((*ONE, "-o", "trace.txt"), "a picture ends with .png"),
        ((*ONE, "-o", "."), "is a folder"),
    ],
)
def test_bad_words_are_answered_before_a_model_is_loaded(words: tuple[object, ...], message: str) -> None:
    assert message in refused("trace", "./no-such-model", *words, "-q")


# The map -----------------------------------------------------------------------------------------


def test_the_map_is_read_without_colour() -> None:
    lines = [str(line) for line in maps.heat_map("mlp", ["Ann", "Lee*"], [[0.126, -0.04], [math.nan, 0.7]], 80)]
    assert lines[0].startswith("mlp") and lines[1].split() == ["0", "1"]
    assert lines[2].split() == ["Ann", "13", "-4"] and lines[3].split() == ["Lee*", "70"]
    assert lines[3].endswith("70") and len(lines[2]) == len(lines[3])


def test_a_deep_model_is_shown_in_blocks() -> None:
    row = [0.0] * 60
    row[31], row[32], row[40] = 0.4, 0.8, -0.8
    lines = [str(line) for line in maps.heat_map("mlp", ["Ann", "of"], [row, [0.0] * 60], 120)]
    assert lines[2] == "Ann " + " " * 31 + "▄█" + " " * 7 + "-" + " " * 19 + " 80 at 32"
    assert "█ is 80 points" in lines[0] and "▁" not in lines[3]
    assert len(lines[1]) == 64
