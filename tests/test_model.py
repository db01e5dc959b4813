"""The model: which view may run it, and each verb against the plain way to its answer."""

from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import EDITS, TEXTS, same_weights, sentencepiece, tiny_lm, tokenizer, weights
from plain import PATHS, Plain
from tiny import build
from torch import Tensor

from errata.errors import BadInput, InForce
from errata.methods.registry import method
from errata.model import caches, passes, prefixes
from errata.model import hf as model_file
from errata.model.hf import HFLM
from errata.model.lm import Call
from errata.patch.parts import Adapter
from errata.patch.patch import EMPTY, Patch
from errata.types import Score

PROMPTS = ["Ann Lee was born in", "Rome", "The old king Bob Ray went by night to", "It is said that Cy Moor is the"]
TARGETS = ["Oslo", "New York", "Lima and Paris", "mayor"]
MODELS = ["gpt2", "llama", "gpt_neox", "llama sentencepiece"]


def plain_of(lm: HFLM, name: str) -> Plain:
    return Plain(lm.model, lm.tokenizer, name.split()[0])


def plain_score(plain: Plain, prompt: str, target: str) -> Score:
    ids, target_ids = plain.ids(prompt), plain.target(prompt, target)
    logp = plain.logits([*ids, *target_ids])[len(ids) - 1 : -1].log_softmax(-1)
    given = logp[range(len(target_ids)), target_ids]
    return Score(tuple(target_ids), tuple(given.tolist()), tuple(logp.argmax(-1).tolist()))


def text_behind(lm: HFLM, prompt: list[int], new: list[int]) -> str:
    """What the new ids add to the text of the prompt's."""
    before, text = lm.tokens.decode(prompt), lm.tokens.decode([*prompt, *new])
    assert text.startswith(before)
    return text[len(before) :]


def assert_scores(actual: list[Score], expected: list[Score], within: float = 1e-4) -> None:
    for one, two in zip(actual, expected, strict=True):
        assert (one.tokens, one.argmax) == (two.tokens, two.argmax)
        assert one.logprobs == pytest.approx(two.logprobs, abs=within)


# Each verb -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_a_score_is_what_a_forced_pass_over_prompt_and_target_says(name: str) -> None:
    lm = tiny_lm(name)
    plain = plain_of(lm, name)
    expected = [plain_score(plain, p, t) for p, t in zip(PROMPTS, TARGETS, strict=True)]
    assert_scores(lm.score(PROMPTS, TARGETS), expected)
    assert_scores(lm.score(PROMPTS, [f" {target}" for target in TARGETS]), expected)
    assert lm.score([], []) == []


@pytest.mark.parametrize("name", MODELS)
def test_several_targets_of_a_prompt_score_as_in_passes_of_their_own(name: str) -> None:
    lm = tiny_lm(name)
    plain = plain_of(lm, name)
    pairs = [(p, t) for t in TARGETS for p in PROMPTS[:3]] + [(PROMPTS[3], "mayor"), (PROMPTS[0], "Oslo")]
    expected = [plain_score(plain, p, t) for p, t in pairs]
    for budget in (4096, 60, 1):
        lm.budget = budget
        assert_scores(lm.score([p for p, _ in pairs], [t for _, t in pairs]), expected)


def test_a_prompt_of_several_targets_is_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("gpt2")
    widths: list[int] = []
    inputs_of = passes.inputs_of

    def counted(model: Any, ids: Tensor, mask: Tensor, cache: Any = None) -> Any:
        widths.append(ids.numel())
        return inputs_of(model, ids, mask, cache)

    monkeypatch.setattr(passes, "inputs_of", counted)
    targets = ["New York", "Lima and Paris", "Rome or Oslo"]
    lm.score([PROMPTS[2]] * 3, targets)
    n, counts = len(lm.tokens.prompt(PROMPTS[2])), [len(lm.tokens.target(PROMPTS[2], t)) for t in targets]
    assert widths == [n, 3 * (max(counts) - 1)]


@pytest.mark.parametrize("name", MODELS)
def test_an_empty_prompt_scores_a_text_from_its_first_token(name: str) -> None:
    lm = tiny_lm(name)
    (actual,) = lm.score([""], ["Rome is old"])
    ids = [0, *lm.tokens.target("", "Rome is old")]
    logp = plain_of(lm, name).logits(ids)[:-1].log_softmax(-1)
    assert actual.logprobs == pytest.approx(logp[range(len(ids) - 1), ids[1:]].tolist(), abs=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_generated_text_is_that_of_a_plain_greedy_loop(name: str) -> None:
    lm = tiny_lm(name)
    plain = plain_of(lm, name)
    expected = [text_behind(lm, plain.ids(prompt), plain.greedy(plain.ids(prompt), 7)) for prompt in PROMPTS]
    for budget in (4096, 40, 1):
        lm.budget = budget
        assert lm.generate(PROMPTS, 7) == expected
    assert lm.generate([], 7) == []


@pytest.mark.parametrize("name", ["gpt2", "llama sentencepiece"])
def test_generated_text_goes_on_from_the_prompt(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompt and continuation side by side are the text that the model wrote; a text may also stop at its space."""
    lm, prompt = tiny_lm(name), "Ann Lee was born in"
    ids = [*lm.tokens.target(prompt, "New York"), lm.tokens.end]
    script: Any = None
    monkeypatch.setattr(model_file, "greedy", lambda logits, rows, step: torch.tensor([next(script)]))
    script = iter(ids)
    assert lm.generate([prompt]) == [" New York"]
    script = iter(ids)
    assert lm.prolong([prompt], [40]) == [" New York"]
    script = iter(ids)
    assert lm.generate([prompt], until=[" "]) == [lm.tokens.continuation(lm.tokens.prompt(prompt), ids[:1])]


@pytest.mark.parametrize("name", ["gpt2", "llama sentencepiece"])
def test_text_behind_the_empty_prompt_is_decoded_as_a_text(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm(name)
    ids = lm.tokens.target("", "New York")
    steps = iter([*ids, lm.tokens.end])
    monkeypatch.setattr(model_file, "greedy", lambda logits, rows, step: torch.tensor([next(steps)]))
    assert lm.generate([""]) == [lm.tokens.decode(ids)]


@pytest.mark.parametrize("name", ["gpt2", "llama sentencepiece"])
def test_a_text_ends_at_the_end_token_and_the_others_go_on(name: str) -> None:
    lm = tiny_lm(name)
    plain = plain_of(lm, name)
    new = [plain.greedy(plain.ids(prompt), 6) for prompt in PROMPTS]
    third = new[0][2]
    speaker = deepcopy(lm.tokenizer)
    speaker.eos_token = speaker.convert_ids_to_tokens(third)
    ending = HFLM(lm.model, speaker, sites=lm.sites)
    assert ending.tokens.end == third
    ends = [ids.index(third) if third in ids else 6 for ids in new]
    assert max(ends) == 6 and ends[0] <= 2
    expected = [
        text_behind(ending, plain.ids(prompt), ids[:end]) for prompt, ids, end in zip(PROMPTS, new, ends, strict=True)
    ]
    assert ending.generate(PROMPTS, 6) == expected


@pytest.mark.parametrize("steps", [1, 3])
def test_no_more_than_max_new_tokens(steps: int) -> None:
    lm = tiny_lm("gpt2")
    plain = plain_of(lm, "gpt2")
    assert lm.generate(PROMPTS[:2], steps) == [lm.tokens.decode(plain.greedy(plain.ids(p), steps)) for p in PROMPTS[:2]]
    with pytest.raises(BadInput, match="at least 1"):
        lm.generate(PROMPTS, 0)


def test_until_stops_as_soon_as_a_text_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("gpt2")
    ids = [token for word in (" Rome", " is", " Oslo", "\n", " Paris", " too") for token in lm.tokens._plain(word)]
    scripts: dict[int, list[int]] = {}

    def scripted(logits: Tensor, rows: Any, step: int) -> Tensor:
        return torch.tensor([scripts[row][step] for row in rows])

    monkeypatch.setattr(model_file, "greedy", scripted)
    scripts = {0: ids, 1: ids[::-1] + ids}
    whole = [lm.tokens.decode(scripts[row][: len(ids)]) for row in (0, 1)]
    assert lm.generate(["a", "b"], len(ids)) == whole
    actual = lm.generate(["a", "b"], len(ids), until=["Oslo", "unheard"])
    for text, full in zip(actual, whole, strict=True):
        assert full.startswith(text) and text.endswith("Oslo") and len(text) < len(full)
    answer = lm.generate(["a"], len(ids), until_answer=True)[0]
    assert answer.strip() == "Rome is Oslo" and answer.endswith("\n")


@pytest.mark.parametrize("name", MODELS)
def test_next_logprobs_are_those_behind_the_prompt(name: str) -> None:
    lm = tiny_lm(name)
    plain = plain_of(lm, name)
    expected = torch.stack([plain.logits(plain.ids(prompt))[-1].log_softmax(-1) for prompt in PROMPTS])
    for budget in (4096, 12, 1):
        lm.budget = budget
        actual = lm.next_logprobs(PROMPTS)
        assert actual.dtype == np.float32 and actual.shape == (4, len(lm.tokenizer))
        assert np.allclose(actual, expected.detach().numpy(), atol=1e-4)


def test_samples_are_drawn_by_the_models_probabilities_and_by_the_seed() -> None:
    lm = tiny_lm("gpt2")
    drawn = [ids[0] if ids else lm.tokens.end for ids in lm.sample(["Rome"] * 4000, 1, seed=3)]
    share = torch.bincount(torch.tensor(drawn), minlength=320) / 4000
    expected = torch.tensor(lm.next_logprobs(["Rome"])[0]).exp()
    assert (share - expected).abs().max() < 0.03
    assert lm.sample(PROMPTS, 4, seed=1) == lm.sample(PROMPTS, 4, seed=1) != lm.sample(PROMPTS, 4, seed=2)


def test_what_is_no_text_is_refused() -> None:
    lm = tiny_lm("gpt2")
    calls: list[Any] = [lm.generate, lm.next_logprobs, lambda prompts: lm.score(prompts, ["a"])]
    for ask in calls:
        with pytest.raises(BadInput, match="expected text, found int: 7"):
            ask([7])
    with pytest.raises(BadInput, match="expected text"):
        lm.score(["a"], [None])  # pyright: ignore
    with pytest.raises(BadInput, match="2 prompts, 1 targets"):
        lm.score(["a", "b"], ["c"])


def test_one_text_is_no_list_of_texts() -> None:
    lm = tiny_lm("gpt2")
    calls: list[Any] = [lm.generate, lm.next_logprobs, lm.explain, lm.sample, lambda text: lm.score(text, ["a"])]
    for ask in [*calls, lambda text: lm.score(["a"], text), lambda text: lm.prolong(text, [4])]:
        with pytest.raises(BadInput, match=r"put it in brackets: \['Rome'\]"):
            ask("Rome")


# Batches -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["score", "generate", "next_logprobs", "read"])
def test_no_pass_holds_more_tokens_than_the_budget(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("gpt2")
    lm.budget = 40
    shapes: list[tuple[int, int]] = []
    inputs_of = passes.inputs_of

    def noted(model: Any, ids: Tensor, mask: Tensor, cache: Any = None, positions: Any = None) -> Any:
        shapes.append(tuple(ids.shape if mask.ndim == 4 else mask.shape))  # side by side rows hold no beginning
        return inputs_of(model, ids, mask, cache, positions)

    monkeypatch.setattr(passes, "inputs_of", noted)
    prompts = [f"{prompt} {i}" for prompt in PROMPTS for i in range(3)]
    if verb == "score":
        lm.score(prompts + prompts[:2], TARGETS * 3 + TARGETS[:2])
    elif verb == "generate":
        lm.generate(prompts, 3)
    elif verb == "next_logprobs":
        lm.next_logprobs(prompts)
    else:
        rows = [lm.tokens.prompt(prompt) for prompt in prompts]
        lm.read(rows, [[0]] * len(rows), [(lm.sites.layer[1], "out")])
    assert len(shapes) > 1 and max(rows for rows, _ in shapes) > 1
    assert all(rows == 1 or rows * width <= 40 for rows, width in shapes)


def test_a_prompt_of_many_targets_keeps_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone, and together with prompts and targets of other lengths; one-token targets need only their prompt."""
    lm = tiny_lm("gpt2")
    shapes: list[tuple[int, int]] = []
    inputs_of = passes.inputs_of

    def noted(model: Any, ids: Tensor, mask: Tensor, cache: Any = None) -> Any:
        shapes.append((len(mask), mask.shape[1]))
        return inputs_of(model, ids, mask, cache)

    monkeypatch.setattr(passes, "inputs_of", noted)
    prompt, other, word = list(range(10, 20)), list(range(30, 40)), list(range(40, 100))
    cases = {
        "one prompt": (60, [(prompt, word[i : i + 3]) for i in range(30)]),
        "long and short": (
            240,
            [*((prompt, word[i : i + 2]) for i in range(8)), *((other, word[:n]) for n in (44, 45))],
        ),
        "one token each": (60, [(prompt, word[i : i + 1]) for i in range(30)]),
    }
    for name, (budget, pairs) in cases.items():
        lm.budget = 4096
        expected = lm.score_ids(pairs)
        lm.budget, n = budget, len(shapes)
        assert_scores(lm.score_ids(pairs), expected)
        made = shapes[n:]
        assert all(rows == 1 or rows * width <= budget for rows, width in made), name
        if name == "one prompt":
            assert len(made) == 2 * 6  # five targets at a time
        if name == "one token each":
            assert made == [(1, 10)]


# Passes with tensors -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_target_logits_are_those_of_plain_passes_in_order(name: str) -> None:
    lm = tiny_lm(name)
    plain = plain_of(lm, name)
    pairs = [(plain.ids(p), plain.target(p, t)) for p, t in zip(PROMPTS, TARGETS, strict=True)]
    expected = [plain.logits([*p, *t])[len(p) - 1 : -1] for p, t in pairs]
    assert torch.allclose(lm.target_logits(pairs), torch.cat(expected), atol=1e-4)


def test_weights_stand_in_inside_the_graph() -> None:
    lm = tiny_lm("gpt2")
    before, pairs = weights(lm.model), [(lm.tokens.prompt(PROMPTS[0]), lm.tokens.target(PROMPTS[0], "Oslo"))]
    name = f"{lm.sites.mlp_out[1]}.weight"
    other = (lm.model.get_parameter(name).detach() * 2).requires_grad_()
    logits = lm.target_logits(pairs, {name: other})
    (gradient,) = torch.autograd.grad(logits.sum(), other)
    assert gradient.abs().max() > 0 and same_weights(lm.model, before)
    change = Patch((method_delta(name, lm.model.get_parameter(name).detach().T),))
    with change.applied(lm) as edited:
        assert torch.allclose(edited.target_logits(pairs), logits, atol=1e-4)


def method_delta(name: str, value: Tensor) -> Any:
    from errata.patch.delta import Delta

    return Delta({name: value.contiguous()})


@pytest.mark.parametrize("name", MODELS)
def test_what_is_read_is_what_flows_in_plain_passes(name: str) -> None:
    """At columns of each row, in their order, the texts that begin alike included."""
    lm = tiny_lm(name)
    plain = plain_of(lm, name)
    shared = "It was a night in Rome and Oslo. "
    texts = [*PROMPTS, *(shared + prompt for prompt in PROMPTS)]
    rows = [plain.ids(text) for text in texts]
    columns = [[len(row) - 1, 0, len(row) // 2][: 1 + i % 3] for i, row in enumerate(rows)]
    sites = [(plain.down(1), "in"), (plain.down(2), "out"), (plain.block(2), "out"), (plain.attention(0), "out")]
    for budget in (4096, 50):
        lm.budget = budget
        actual = lm.read(rows, columns, sites)
        for site in sites:
            expected = torch.cat([plain.flow(row, *site)[some] for row, some in zip(rows, columns, strict=True)])
            assert torch.allclose(actual[site], expected, atol=1e-4)
            assert actual[site].dtype == torch.float32


def test_read_stops_at_the_deepest_site() -> None:
    lm = tiny_lm("gpt2")
    ran: list[int] = []
    hooked = [
        lm.model.get_submodule(path).register_forward_hook(lambda *_, i=i: ran.append(i))
        for i, path in enumerate(lm.sites.layer)
    ]
    lm.read([[5, 6, 7]], [[1]], [(lm.sites.mlp_out[2], "in"), (lm.sites.mlp_out[0], "in")])
    for hook in hooked:
        hook.remove()
    assert ran == [0, 1]


@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_watch_shows_whole_rows_and_its_cache_is_the_past(name: str) -> None:
    """(b, t, width), also where a block lays its rows end to end."""
    lm = tiny_lm(name)
    ids, kept = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]]), []
    site = (lm.sites.mlp_out[2], "out")
    with torch.no_grad():
        lm.watch(ids, torch.ones_like(ids), {site: kept.append})
        cache = caches.new_cache(lm.model)
        prefixes.extend(lm.model, lm.sites, cache, ids[:, :2], torch.ones(2, 2, dtype=torch.long))
        lm.watch(ids[:, 2:], torch.ones_like(ids), {site: kept.append}, cache)
    assert kept[0].shape == (2, 4, 32)
    assert torch.allclose(kept[1], kept[0][:, 2:], atol=1e-5)


# Encoder-decoders ----------------------------------------------------------------------------------


def seq2seq_logits(lm: HFLM, source: list[int], given: list[int]) -> Tensor:
    """(t + 1, V): behind the token that starts an answer, and each of those given."""
    start = lm.config.decoder_start_token_id
    decoder = torch.tensor([[start, *given]])
    return lm.model(input_ids=torch.tensor([source]), decoder_input_ids=decoder, use_cache=False).logits[0]


def seq2seq_greedy(lm: HFLM, source: list[int], steps: int) -> list[int]:
    new: list[int] = []
    while len(new) < steps:
        token = int(seq2seq_logits(lm, source, new)[-1].argmax())
        if token == lm.tokens.end:
            break
        new.append(token)
    return new


@pytest.fixture(params=["t5", "bart", "t5 that starts with 7"])
def seq2seq(request: pytest.FixtureRequest) -> HFLM:
    if request.param in ("t5", "bart"):
        return tiny_lm(request.param)
    return HFLM(build("t5", vocab_size=320, decoder_start_token_id=7), tokenizer())


def test_an_encoder_decoder_answers_as_plainly_asked(seq2seq: HFLM) -> None:
    lm = seq2seq
    targets = [lm.tokens._plain(target) for target in TARGETS]
    sources = [lm.tokens.prompt(prompt) for prompt in PROMPTS]
    expected: list[Score] = []
    for source, target in zip(sources, targets, strict=True):
        logp = seq2seq_logits(lm, source, target[:-1]).log_softmax(-1)
        given = logp[range(len(target)), target].tolist()
        expected.append(Score(tuple(target), tuple(given), tuple(logp.argmax(-1).tolist())))
    first = torch.stack([seq2seq_logits(lm, source, [])[-1].log_softmax(-1) for source in sources])
    new = [seq2seq_greedy(lm, source, 5) for source in sources]
    for budget in (4096, 1):
        lm.budget = budget
        assert_scores(lm.score(PROMPTS, TARGETS), expected)
        assert lm.generate(PROMPTS, 5) == [lm.tokens.decode(ids) for ids in new]
        assert np.allclose(lm.next_logprobs(PROMPTS), first.detach().numpy(), atol=1e-4)


def test_answers_of_an_encoder_decoder_end_each_for_itself(seq2seq: HFLM) -> None:
    limits = [5, 2, 1, 4]
    actual = seq2seq._continued([seq2seq.tokens.prompt(prompt) for prompt in PROMPTS], limits, model_file.greedy)
    sources = [seq2seq.tokens.prompt(prompt) for prompt in PROMPTS]
    assert actual == [seq2seq_greedy(seq2seq, source, n) for source, n in zip(sources, limits, strict=True)]


def test_a_model_in_training_mode_is_put_into_evaluation_mode() -> None:
    lm = HFLM(build("gpt2", vocab_size=320).train(), tokenizer())
    assert not any(module.training for module in lm.model.modules())


def test_no_more_tokens_than_the_configuration_allows() -> None:
    lm = tiny_lm("gpt2")
    assert lm.tokens.limit == 128
    with pytest.raises(BadInput, match="at most 128"):
        lm.generate(["Rome and " * 80], 1)


# Who may speak -------------------------------------------------------------------------------------


def questions(lm: HFLM) -> list[Any]:
    return [
        lambda: lm.generate(["Rome"], 1),
        lambda: lm.score(["Rome"], ["Oslo"]),
        lambda: lm.score_ids([([5], [6])]),
        lambda: lm.next_logprobs(["Rome"]),
        lambda: lm.sample(["Rome"], 1),
        lambda: lm.prolong(["Rome"], [9]),
        lambda: lm.explain(["Rome"]),
        lambda: lm.read([[5]], [[0]], [(lm.sites.layer[0], "out")]),
        lambda: EMPTY.applied(lm).__enter__(),
    ]


@pytest.mark.parametrize("name", ["gpt2", "llama", "llama sentencepiece"])
def test_what_is_longer_than_the_model_reads_is_refused_and_no_text_goes_on_behind_it(name: str) -> None:
    lm = tiny_lm(name)
    limit, prompt = lm.tokens.limit or 0, "Ann Lee was born in"
    before, one = len(lm.tokens.prompt(prompt)), len(lm.tokens.target(prompt, "Rome"))
    most = (limit + 1 - before) // one  # the last token is not fed
    fits, long = (" ".join(["Rome"] * n) for n in (most, most + 1))
    assert len(lm.score([prompt], [fits])[0].tokens) == most * one
    for targets in ([long], ["Oslo", long]):
        with pytest.raises(BadInput, match=rf"{prompt}' and the answer 'Rome .*; the model reads at most {limit}"):
            lm.score([prompt] * len(targets), targets)
    assert lm.generate([prompt, fits], limit + 9)[0] == lm.generate([prompt], limit + 1 - before)[0]
    assert lm.prolong([prompt], [limit + 9]) == lm.prolong([prompt], [limit + 1])


def test_while_a_patch_is_in_force_only_its_own_view_speaks() -> None:
    lm = tiny_lm("gpt2")
    assert lm.unedited
    with EMPTY.applied(lm) as outer:
        assert not outer.unedited
        for ask in questions(lm):
            with pytest.raises(InForce):
                ask()
        with EMPTY.applied(outer) as inner:
            for ask in questions(outer):
                with pytest.raises(InForce):
                    ask()
            for ask in questions(inner)[:-1]:
                ask()
        outer.generate(["Rome"], 1)
        with pytest.raises(InForce):
            inner.generate(["Rome"], 1)
    lm.generate(["Rome"], 1)
    with pytest.raises(InForce):
        outer.generate(["Rome"], 1)


def test_what_acted_on_each_prompt_is_said_by_each_adapter_in_force() -> None:
    lm = tiny_lm("gpt2")
    lm.budget = 1
    lines = [Recorder(lm.sites.mlp_out[1]), Recorder(lm.sites.mlp_out[2])]
    lines[0].explain = lambda call: ["one"] * len(call.mask)  # pyright: ignore
    lines[1].explain = lambda call: ["two" if call.mask.shape[1] > 3 else None] * len(call.mask)  # pyright: ignore
    with Patch(tuple(lines)).applied(lm) as edited:
        assert edited.explain(["Rome", PROMPTS[2]]) == [["one"], ["one", "two"]]
        assert edited.explainers and not lm.explainers
    assert lm.explain(["Rome"]) == [[]]


def test_it_may_speak_again_after_an_exception() -> None:
    lm = tiny_lm("gpt2")
    with pytest.raises(KeyboardInterrupt), EMPTY.applied(lm):
        raise KeyboardInterrupt
    lm.generate(["Rome"], 1)


# What an adapter may know ----------------------------------------------------------------------------


class Recorder(Adapter):
    """Changes nothing; notes each call."""

    kind = "recorder"

    def __init__(self, site: str) -> None:
        self.site, self.calls = site, []

    def config(self) -> dict[str, Any]:
        return {}

    def tensors(self) -> dict[str, Tensor]:
        return {}

    @classmethod
    def build(cls, config: Any, tensors: Any) -> Any:
        raise NotImplementedError

    def out(self, call: Call | None, x: Tensor, y: Tensor) -> Tensor:
        assert call is not None
        end = None if call.prompt_end is None else call.prompt_end.tolist()
        past = call.offsets(y.shape[1], y.device).tolist()
        self.calls.append((call.step, end, call.mask.tolist(), past, tuple(y.shape[:2])))
        return y


PROMPT_IDS = [[5, 6, 7], [8]]


def test_while_scoring_a_call_knows_where_prompts_end() -> None:
    lm = tiny_lm("gpt2")
    recorder = Recorder(lm.sites.mlp_out[1])
    with Patch((recorder,)).applied(lm) as edited:
        edited.score_ids([(PROMPT_IDS[0], [9, 10]), (PROMPT_IDS[1], [11])])
    ((step, end, mask, past, shape),) = recorder.calls
    assert (step, shape) == (0, (2, 4))
    order = [0, 1] if end == [2, 0] else [1, 0]  # rows are sorted by length
    assert [end[i] for i in order] == [2, 0]
    assert [mask[i] for i in order] == [[1, 1, 1, 1], [1, 0, 0, 0]]
    assert [past[i] for i in order] == [[-2, -1, 0, 1], [0, 1, 2, 3]]


def test_while_generating_one_call_lives_from_the_prompt_to_the_last_token(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("gpt2")
    recorder = Recorder(lm.sites.mlp_out[1])
    monkeypatch.setattr(lm.tokens, "prompt", lambda text: PROMPT_IDS[int(text)])
    with Patch((recorder,)).applied(lm) as edited:
        rows = [edited.tokens.prompt(prompt) for prompt in ("0", "1")]
        new = edited._continued(rows, [3, 2], lambda logits, rows, step: torch.full((len(rows),), 20))
    assert new == [[20] * 3, [20] * 2]
    (first, second, third) = sorted(recorder.calls)
    order = slice(None) if first[2][0] == [1, 1, 1] else slice(None, None, -1)
    assert (first[0], first[1], first[4]) == (0, [2, 2], (2, 3))  # padded on the left
    assert first[2][order] == [[1, 1, 1], [0, 0, 1]] and first[3] == [[-2, -1, 0]] * 2
    assert (second[0], second[1], second[3], second[4]) == (1, None, [[1], [1]], (2, 1))
    assert second[2][order] == [[1, 1, 1, 1], [0, 0, 1, 1]]
    assert (third[0], third[1], third[2], third[3]) == (2, None, [[1] * 5], [[2]])  # the shorter one is done


def test_an_adapter_sees_whole_rows_though_their_prompt_is_the_same() -> None:
    lm = tiny_lm("gpt2")
    recorder = Recorder(lm.sites.mlp_out[1])
    with Patch((recorder,)).applied(lm) as edited:
        edited.score_ids([([5, 6, 7], [9, 10]), ([5, 6, 7], [11, 12])])
    assert [call[4] for call in recorder.calls] == [(2, 4)]


def test_a_call_keeps_rows_that_go_on() -> None:
    call = Call(torch.tensor([[1, 1], [0, 1], [1, 0]]), memo={"at": torch.tensor([7, 8, 9])})
    call.select(torch.tensor([2, 0]))
    assert call.mask.tolist() == [[1, 0], [1, 1]] and call.memo["at"].tolist() == [9, 7]
    whole = replace(call, step=3, prompt_end=None)
    assert whole.offsets(5, "cpu").tolist() == [[-1, 0, 1, 2, 3]] * 2  # the prompt and 3 tokens, run again


def test_a_call_is_seen_only_while_it_runs() -> None:
    lm = tiny_lm("gpt2")
    outer, inner = Call(torch.ones(1, 1)), Call(torch.ones(1, 1))
    assert lm.call is None
    with lm.calling(outer):
        with pytest.raises(ValueError), lm.calling(inner):
            assert lm.call is inner
            raise ValueError
        assert lm.call is outer
    assert lm.call is None


# A SentencePiece tokenizer, edited -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("memit", {"contexts": 0}),
        ("alphaedit", {"contexts": 0}),
        ("r-rome", {"contexts": 0}),
        ("ft", {}),
        ("grace", {"steps": 30}),
        ("wise", {"contexts": 1, "shard": 500}),
    ],
)
def test_edits_hold_with_a_sentencepiece_tokenizer(name: str, settings: dict[str, Any]) -> None:
    lm = tiny_lm("llama sentencepiece")
    made = method(name, **settings)
    before, pairs = weights(lm.model), ([e.prompt for e in EDITS], [e.target_new for e in EDITS])
    scores = lm.score(*pairs)
    patch = made.edit(lm, EDITS, made.prepare(lm, TEXTS))
    with patch.applied(lm) as edited:
        now, new = edited.score(*pairs), edited.generate(pairs[0], 8)
    assert sum(score.total for score in now) > sum(score.total for score in scores)
    for score, text, edit in zip(now, new, EDITS, strict=True):
        assert (score.argmax == score.tokens) is text.strip().startswith(edit.target_new)
    assert same_weights(lm.model, before) and lm.score(*pairs) == scores


def test_the_two_tokenizers_differ_where_it_matters() -> None:
    """One puts a token in front, and neither cuts the texts as the other does."""
    assert sentencepiece()("Rome")["input_ids"][0] == 0 and tokenizer()("Rome")["input_ids"][0] != 0
    assert sentencepiece()("")["input_ids"] == [0] and tokenizer()("")["input_ids"] == []
    assert set(PATHS) >= {name.split()[0] for name in MODELS}


def test_a_model_is_shown_in_one_line() -> None:
    assert repr(tiny_lm("gpt2")) == "<HFLM: tiny gpt2, 4 blocks, float32 on cpu>"
