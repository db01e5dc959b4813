"""Chat models: prompts as a user's turn under the tokenizer's template, with two tokenizers and templates like those
of Qwen and Llama 3."""

import json
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import CASES, EDIT, EDITS, TEXTS, data_for, quick, same_weights, sentencepiece, tokenizer, weights
from test_cli import run
from tiny import build

import errata
from errata.answers import begins_with_answer
from errata.errors import BadInput
from errata.evaluation.harness import Verbs
from errata.locate import trace
from errata.methods.closed_form.objective import continuations_of, rows_of
from errata.methods.neurons import kn
from errata.methods.prompting.prompted import fitting
from errata.methods.state import State
from errata.methods.trained import method as trained
from errata.methods.trained.routed.language_part import PatchedLM
from errata.model.chat import Template, chosen
from errata.model.hf import HFLM
from errata.model.tokens import Tokens

CHATML = """{%- if messages[0]['role'] != 'system' -%}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}"""
LLAMA = """{{- bos_token }}
{%- for message in messages %}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""
STOP = 7  # one more token at which the models stop
PROMPTS = ["Ann Lee was born in", "The user lives in ", " Who is it? Zürich ☃", "a"]


def with_template(of: Any, template: str, *special: str) -> Any:
    made = deepcopy(of)
    made.add_special_tokens({"additional_special_tokens": list(special)})
    made.chat_template = template
    return made


@cache
def chatml() -> Any:
    return with_template(tokenizer(), CHATML, "<|im_start|>", "<|im_end|>")


@cache
def llama() -> Any:
    return with_template(sentencepiece(), LLAMA, "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


KINDS = {"chatml": chatml, "llama": llama}


@cache
def model(kind: str) -> Any:
    made = build("llama", vocab_size=len(KINDS[kind]()), max_position_embeddings=256)
    made.generation_config.eos_token_id = [1, Template.of(KINDS[kind]()).end, STOP]
    return made


def chat(kind: str = "chatml", **options: Any) -> HFLM:
    return errata.load(model(kind), tokenizer=KINDS[kind](), **{"chat": True, **options})


def asked_of(kind: str) -> Tokens:
    return Tokens(KINDS[kind](), template=Template.of(KINDS[kind]()))


def rendered(kind: str, *said: str, **how: Any) -> list[int]:
    """What transformers makes of turns of the user and the assistant."""
    turns = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), said, strict=False)]
    answer = len(said) == 1
    text = KINDS[kind]().apply_chat_template(turns, tokenize=False, add_generation_prompt=answer, **how)
    return KINDS[kind]()(text, add_special_tokens=False)["input_ids"]


# The ids -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_has_the_ids_of_the_template(kind: str) -> None:
    tokens = asked_of(kind)
    for prompt in PROMPTS:
        assert tokens.prompt(prompt) == rendered(kind, prompt, enable_thinking=False)
        assert tokens.count(prompt) == len(tokens.prompt(prompt))
    assert asked_of("llama").prompt("Rome").count(0) == 1  # the token that begins a text is not doubled


@pytest.mark.parametrize("kind", KINDS)
def test_a_target_begins_the_assistants_turn_without_a_space(kind: str) -> None:
    tokens = asked_of(kind)
    for target in ("New York", " New York"):
        ids = tokens.target("Ann Lee was born in", target)
        assert tokens.continuation(tokens.prompt("Ann Lee was born in"), ids) == "New York"
        whole = tokens.ended([], tokens.prompt("Ann Lee was born in") + ids)
        opened = {"chatml": "<think>\n\n</think>\n\n", "llama": ""}[kind]  # which this template shows to be asked alone
        assert whole == rendered(kind, "Ann Lee was born in", opened + "New York")[: len(whole)]
        assert tokens.exchange("Ann Lee was born in", target) == (tokens.prompt("Ann Lee was born in"), ids)


@pytest.mark.parametrize("kind", KINDS)
def test_plain_texts_stay_plain(kind: str) -> None:
    plain, tokens = Tokens(KINDS[kind]()), asked_of(kind)
    assert tokens.prompt("") == plain.prompt("") and tokens.target("", "Rome is old") == plain.target("", "Rome is old")
    assert tokens.pair("Ann Lee was born", " in Rome") == plain.pair("Ann Lee was born", " in Rome")
    assert tokens.ids("Rome") == plain.ids("Rome") and tokens.tail("Ann Lee was born", 2) == plain.tail(
        "Ann Lee was born", 2
    )
    assert tokens.ends == {1, tokens.template.end} and plain.ends == {1}
    assert tokens.end == tokens.template.end and plain.end == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("The user lives in", "user"),
        ("The system of the assistant is", "system"),
        ("  The assistant met a helpful assistant in", "assistant"),
        ("Ann Lee", "Ann Lee"),
        ("Zürich ☃ is the mayor of", "Zürich ☃"),
    ],
)
def test_a_subject_is_found_in_the_users_turn(kind: str, fast: bool, prompt: str, subject: str) -> None:
    tokens = asked_of(kind)
    ids, at = tokens.prompt(prompt), prompt.rindex(subject)
    last = (tokens if fast else slow(tokens)).last_of_subject(prompt, subject)
    front = tokens.template.before

    def text(n: int) -> str:
        return tokens.tokenizer.decode(ids[:n], skip_special_tokens=False)

    said = prompt.lstrip() if kind == "llama" else prompt
    end = front + said[: at + len(subject) - len(prompt) + len(said)]
    assert text(last + 1).replace(" ", "").startswith(end.replace(" ", ""))
    assert not text(last).replace(" ", "").startswith(end.replace(" ", ""))
    assert tokens.mentions(ids, [subject])[0][1] == last
    assert tokens.mentions(tokens.prompt("Rome is old"), ["user", "system", "assistant", "You"]) == {}
    assert tokens.mentions(tokens.ids("The user is old"), ["user"]) == Tokens(tokens.tokenizer).mentions(
        tokens.ids("The user is old"), ["user"]
    )


def slow(tokens: Tokens) -> Tokens:
    """The same without offsets."""

    class Slow:
        is_fast = False

        def __call__(self, *args: Any, **settings: Any) -> Any:
            assert "return_offsets_mapping" not in settings
            return tokens.tokenizer(*args, **settings)

        def __getattr__(self, name: str) -> Any:
            return getattr(tokens.tokenizer, name)

    return Tokens(Slow(), template=tokens.template)


# Templates ---------------------------------------------------------------------------------------


def made_of(template: str, *special: str, system: str | None = None) -> Template:
    return Template.of(with_template(tokenizer(), template, *special), system)


ONE_TURN = "{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] + '<|x|>' }}{% endfor %}"
BEGUN = ONE_TURN + "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"


def test_what_an_answer_opens_belongs_to_the_prompt() -> None:
    """As gpt-oss, whose answers stand in a channel."""
    channel = "{% for m in messages %}{{ m['role'] + ('<|c|>final<|m|>' if m['role'] == 'assistant' else ':') }}"
    template = made_of(channel + "{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}assistant{% endif %}")
    assert (template.after, template.gap, template.end) == ("assistant<|c|>final<|m|>", "", None)
    tokens = Tokens(tokenizer(), template=template)
    assert tokens.continuation([5], tokens.target("Ann Lee", " Rome")) == "Rome"


def test_a_space_before_an_answer_is_the_answers() -> None:
    """As Mistral's older models, and Vicuna."""
    said = "{{ '[I] ' + m['content'] + ' [/I]' if m['role'] == 'user' else ' ' + m['content'] + eos_token }}"
    spaced = "{% for m in messages %}" + said + "{% endfor %}"
    assert replace(made_of(spaced), digest="") == Template("[I] ", " [/I]", " ", end=1)
    tokens = Tokens(with_template(tokenizer(), spaced), template=made_of(spaced))
    assert tokens.continuation([5], tokens.target("Ann Lee", "Rome")) == " Rome"
    told = "{% for m in messages %}{{ 'USER: ' + m['content'] + ' ' }}{% endfor %}"
    told += "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    assert replace(made_of(told), digest="") == Template("USER: ", " ASSISTANT:", " ")  # which its answers do not tell
    assert made_of(BEGUN.replace("[assistant]", "[assistant]<|x|>"), "<|x|>").gap == ""


def test_an_open_block_of_thoughts_is_closed() -> None:
    """As R1's distilled models, whose answers stand without it."""
    opens = made_of(ONE_TURN + "{% if add_generation_prompt %}{{ '[assistant]<think>\n' }}{% endif %}", "<|x|>")
    assert opens.after == "<|x|>[assistant]<think>\n\n</think>\n\n" and opens.gap == ""
    assert made_of(CHATML, "<|im_start|>", "<|im_end|>").after.endswith("assistant\n<think>\n\n</think>\n\n")


def test_no_template_writes_the_date_of_today() -> None:
    dated = "{{ strftime_now('%d %b %Y') + '; ' + strftime_now('%Y-%m-%d') + '; ' + (date_string or '') }}" + BEGUN
    assert made_of(dated).before == "26 Jul 2024; 2024-07-26; 26 Jul 2024[user]"


def test_a_system_message_stands_in_front() -> None:
    assert made_of(CHATML, system="Be brief.").before == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"
    refuses = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + BEGUN
    assert made_of(refuses).before == "[user]"
    with pytest.raises(BadInput, match=r"turns of system, user \(.*no system\); leave system out"):
        made_of(refuses, system="Be brief.")


@pytest.mark.parametrize("template", ["{{ 'nothing' }}", BEGUN + "{{ messages[0]['content'] }}"])
def test_a_template_that_alters_what_users_say_is_refused(template: str) -> None:
    with pytest.raises(BadInput, match="does not write the user's text once"):
        made_of(template)


# Which models ------------------------------------------------------------------------------------


def test_a_model_that_stops_at_the_end_of_its_turns_is_asked_in_a_chat(caplog: pytest.LogCaptureFixture) -> None:
    end = Template.of(chatml()).end
    assert chosen(chatml(), None, None, {0, end}, "mine", False) == Template.of(chatml())
    assert "mine is asked under its chat template" in caplog.text and "<|im_end|>" in caplog.text
    caplog.clear()
    assert chosen(chatml(), None, None, {1}, "base", False) is None  # as base models that come with one
    assert chosen(chatml(), False, None, {end}, "mine", False) is None
    assert chosen(chatml(), True, None, {1}, "base", False) == Template.of(chatml())
    assert chosen(chatml(), None, "Be brief.", {1}, "base", False) == Template.of(chatml(), "Be brief.")
    assert chosen(tokenizer(), None, None, {1}, "plain", False) is None
    assert chosen(chatml(), None, None, {end}, "encoder", True) is None
    assert not caplog.text


def test_what_cannot_be_asked_in_a_chat_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(BadInput, match=r"tokenizer of plain has no chat template; .* chat=False"):
        chosen(tokenizer(), True, None, {1}, "plain", False)
    with pytest.raises(BadInput, match="encoder is an encoder-decoder"):
        chosen(chatml(), True, None, {1}, "encoder", True)
    with pytest.raises(BadInput, match="leave one of the two out"):
        chosen(chatml(), False, "Be brief.", {1}, "mine", False)
    broken = with_template(tokenizer(), "{{ messages[7].content.no() }}")
    with pytest.raises(BadInput, match="cannot be rendered"):
        chosen(broken, True, None, {1}, "mine", False)
    assert chosen(broken, None, None, {1}, "mine", False) is None
    assert "mine is asked in plain text: the chat template cannot be rendered" in caplog.text


@pytest.mark.parametrize(
    "template",
    [
        "{{ ().__class__.__bases__[0].__subclasses__() }}",
        "{{ 'a' * 10**15 }}",
        "{% for i in range(10**9) %}{% endfor %}",
    ],
)
def test_a_template_that_wants_more_than_to_write_text_is_left_alone(
    template: str, caplog: pytest.LogCaptureFixture
) -> None:
    """transformers renders templates in a sandbox."""
    hostile = with_template(tokenizer(), BEGUN + template)
    assert chosen(hostile, None, None, {1}, "theirs", False) is None
    assert "theirs is asked in plain text" in caplog.text


# The verbs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_generate_and_score_ask_alike(kind: str) -> None:
    lm = chat(kind)
    assert lm.chat and not chat(kind, chat=False).chat
    said, scores = lm.generate(PROMPTS, 1), lm.score(PROMPTS, ["Oslo"] * len(PROMPTS))
    for prompt, text, score in zip(PROMPTS, said, scores, strict=True):
        assert lm.tokens.continuation(lm.tokens.prompt(prompt), score.argmax[:1]) == text
        assert lm.next_logprobs([prompt])[0].argmax() == score.argmax[0]
    assert scores != chat(kind, chat=False).score(PROMPTS, ["Oslo"] * len(PROMPTS))
    assert scores != chat(kind, system="Be brief.").score(PROMPTS, ["Oslo"] * len(PROMPTS))


def test_an_answer_ends_with_the_turn() -> None:
    lm = chat()
    prompt = lm.tokens.prompt("Rome")
    first = int(lm.next_logprobs(["Rome"])[0].argmax())
    assert (
        lm.generate(["Rome"], 3)
        == [lm.tokens.continuation(prompt, lm._continued([prompt], [3], _likeliest)[0])]
        != [""]
    )
    template = replace(lm.tokens.template, end=first)
    assert HFLM(lm.model, lm.tokenizer, template=template).generate(["Rome"], 3) == [""]
    assert lm.tokens.ends == {1, lm.tokens.end, STOP} and chat(chat=False).tokens.ends == {1}


def _likeliest(logits: torch.Tensor, rows: Any, step: int) -> torch.Tensor:
    return logits.argmax(-1)


def test_tasks_are_asked_in_turns() -> None:
    lm = chat()
    harness = Verbs(lm, lm)
    ((total, _),) = harness.loglikelihood([SimpleNamespace(args=("Ann Lee was born in", " Oslo"))])
    assert total == pytest.approx(lm.score(["Ann Lee was born in"], ["Oslo"])[0].total, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_of_what_is_too_long_for_a_task_the_beginning_of_the_users_words_is_left_out(kind: str) -> None:
    lm = chat(kind, system="Be brief.")
    long, limit = "Ann Lee was born in Rome. " * 60 + "Bob Ray lives in", lm.tokens.limit or 0
    before, after = lm.tokens._frame
    ids, target = lm.tokens.exchange_within(long, " Oslo")
    assert limit - 8 < len(ids) + len(target) - 1 <= limit
    assert ids[: len(before)] == before and ids[-len(after) :] == after and before and after
    said = lm.tokens.decode(ids[len(before) : -len(after)])
    assert "Rome. Bob Ray lives in" in said and len(said) < len(long)
    assert target == lm.tokens.target("Bob Ray lives in", "Oslo")
    assert lm.tokens.exchange_within("Bob Ray lives in", " Oslo") == lm.tokens.exchange("Bob Ray lives in", " Oslo")
    ((total, _),) = Verbs(lm, lm).loglikelihood([SimpleNamespace(args=(long, " Oslo"))])
    assert total == pytest.approx(lm.score_ids([(ids, target)])[0].total, abs=1e-4)
    asked: list[str] = []
    talker: Any = SimpleNamespace(generate=lambda prompts, *_, **__: asked.extend(prompts) or [""] * len(prompts))
    Verbs(talker, lm)._generate([long], 8, ())
    (ids,) = (lm.tokens.prompt(prompt) for prompt in asked)
    assert limit - 16 <= len(ids) <= limit - 8 and ids[: len(before)] == before


def test_a_template_that_leaves_no_room_for_a_task_is_refused() -> None:
    lm = chat(system="Ann Lee was born in Rome. " * 60)
    with pytest.raises(BadInput, match=r"the chat template has .* tokens, and there is room for 25\d; shorten system"):
        lm.tokens.exchange_within("Bob Ray lives in", " Oslo")


def test_a_trace_disturbs_the_subject_of_the_user() -> None:
    found = trace(chat(), "The user lives in", "user", samples=1, noise=1.0)
    first, end = found.subject
    assert "".join(found.tokens[first:end]).strip() == "user"
    assert first > len(Tokens(chatml()).ids(asked_of("chatml").template.before)) - 2


# Edits -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"), [("r-rome", "llama"), ("memit", "chatml"), ("ft", "llama"), ("grace", "chatml")]
)
def test_an_edit_in_a_chat(name: str, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    lm, made = chat(kind), quick(name)
    before, was = weights(lm.model), lm.score([EDIT.prompt], [EDIT.target_new])[0]
    patch = made.edit(lm, [EDIT], made.prepare(lm, data_for(made)) if made.needs_prepare else None)
    assert patch.meta["made"][0]["chat"] is True
    with patch.applied(lm) as edited:
        (now,) = edited.score([EDIT.prompt], [EDIT.target_new])
        (text,) = edited.generate([EDIT.prompt], len(now.tokens))
        assert now.total > was.total
        assert begins_with_answer(text, [EDIT.target_new]) == now.correct
        assert (
            lm.tokens.continuation(lm.tokens.prompt(EDIT.prompt), now.argmax[:1])
            == edited.generate([EDIT.prompt], 1)[0]
        )
    assert same_weights(lm.model, before) and lm.score([EDIT.prompt], [EDIT.target_new])[0] == was
    caplog.clear()
    with patch.applied(lm):
        assert "edits of this patch were made" not in caplog.text
    with patch.applied(chat(kind, chat=False)):
        made = f"made under the chat template {lm.asked.template}; load with chat=True (--chat)"
        assert f"asked in plain text, and edits of this patch were {made}" in caplog.text


def test_continuations_of_a_subject_are_held_where_it_stands() -> None:
    lm = chat()
    settings: Any = errata.method("rome", preserve=8.0, kl=0.0)
    rows = rows_of(lm, EDIT, [""], settings, *continuations_of(lm, [EDIT], settings))
    assert len(rows.ids) > 1
    last = lm.tokens.last_of_subject(EDIT.subject, EDIT.subject)
    for position, columns in zip(rows.positions[1:], rows.columns[1:], strict=True):
        assert position == last and position + columns[0] == len(lm.tokens.prompt(EDIT.subject)) - 1


def test_facts_are_told_in_the_users_turn() -> None:
    lm: Any = chat()
    rag: Any = errata.method("rag", encoder="tfidf", near=0.0, named=0.0)
    with rag.edit(lm, EDITS, rag.prepare(lm)).applied(lm) as edited:
        ((told, facts),) = edited.prompted([EDIT.prompt])
        texts, scores = edited.generate([EDIT.prompt], 4), edited.score([EDIT.prompt], ["Oslo"])
    assert facts and told != EDIT.prompt and told.endswith(EDIT.prompt)
    assert (texts, scores) == (lm.generate([told], 4), lm.score([told], ["Oslo"]))
    assert lm.tokens.prompt(told) == rendered("chatml", told, enable_thinking=False)


def test_texts_before_a_prompt_are_counted_without_the_template() -> None:
    """As many facts fit as there is room for: the template is there once."""
    tokens = asked_of("chatml")
    parts = ["Ann Lee was born in Rome. "] * 6
    tokens.limit = tokens.count("Rome") + 6 * len(tokens.ids(parts[0]))
    assert tokens.count("".join(parts) + "Rome") <= tokens.limit < 2 * tokens.frame + len(tokens.ids("".join(parts)))
    assert fitting(tokens, parts, "Rome", 0) == parts


def test_behind_a_patchs_answer_a_chat_has_ended() -> None:
    for lm, goes_on in ((chat(), False), (chat(chat=False), True)):
        patched: Any = PatchedLM(None, lm)  # pyright: ignore[reportArgumentType]
        assert patched._goes_on("Ann Lee was born in Oslo") is goes_on


@pytest.mark.parametrize(("name", "module"), [("mend", trained), ("kn", kn)])
def test_what_is_prepared_in_a_chat_is_kept_apart(name: str, module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []
    monkeypatch.setattr(module, "cached_state", lambda kind, content, *_: kept.append(json.dumps(content)) or State())
    for lm in (chat(), chat(chat=False), chat(system="Be brief.")):
        quick(name).prepare(lm, CASES)
    assert len(set(kept)) == 3


# Folders and commands ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("chat")
    model("chatml").save_pretrained(made)
    chatml().save_pretrained(made)
    return made


def test_a_folder_with_a_template_loads_as_a_chat(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    lm = errata.load(folder)
    assert lm.chat and "asked under its chat template" in caplog.text
    assert lm.generate(["Rome"], 3) == chat().generate(["Rome"], 3)
    assert lm.tokens.ends == chat().tokens.ends and not errata.load(folder, chat=False).chat


def test_the_commands_ask_in_a_chat(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def texts(*words: Any) -> list[str]:
        return [line["text"] for line in json.loads(run("ask", folder, EDIT.prompt, "--json", *words).stdout)]

    asked, plain = chat().generate([EDIT.prompt]), chat(chat=False).generate([EDIT.prompt])
    assert texts() == texts("--chat") == asked != plain == texts("--no-chat")
    assert run("ask", folder, EDIT.prompt, "-q").stdout.startswith(f"{EDIT.prompt}\n")
    one = ("--prompt", "{} was born in", "--subject", "Ann Lee", "--target", "Oslo", "-o", "p.safetensors")
    edited = json.loads(
        run(
            "edit", folder, *one, "--method", "ft-m", "--set", "steps=100", "--set", "end=true", "--chat", "--json"
        ).stdout
    )
    assert errata.Patch.load("p.safetensors").meta["made"][0]["chat"] is True and edited["took"] == 1
    assert edited["edits"][0]["before"] == chat().generate([EDIT.prompt], until_answer=True)[0]
    assert "under the chat template" in run("show", "p.safetensors").stdout

    def accuracy(*words: Any) -> float:
        rows = json.loads(run("eval", folder, "--patch", "p.safetensors", "--json", "-q", *words).stdout)
        return next(row["after"]["mean"] for row in rows if (row["kind"], row["metric"]) == ("edit", "accuracy"))

    assert accuracy() == accuracy("--chat") == accuracy("--mode", "forced") == 1
    assert accuracy("--no-chat") == 0
    for words, told in (((), False), (("--no-chat",), True), (("--system", "Be brief."), True)):
        asked_so = " ".join(run("ask", folder, EDIT.prompt, "--patch", "p.safetensors", *words).stderr.split())
        assert ("edits of this patch were made under the chat template" in asked_so) is told
    assert "with the system message 'Be brief.', and edits" in asked_so  # pyright: ignore[reportPossiblyUnboundVariable]


def test_a_state_that_served_a_chat_does_not_lend_its_contexts_to_plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are written up to where a turn ends, which plain text does not know."""
    asked: list[Any] = []

    def contexts_of(lm: HFLM, n: int, seed: int) -> list[str]:
        asked.append(sorted(lm.tokens.ends))
        return [""]

    monkeypatch.setattr("errata.methods.closed_form.base.contexts_of", contexts_of)
    made: Any = errata.method("memit", layers=(1,), steps=1, contexts=1)
    state = made.prepare(chat(), TEXTS)
    for lm in (chat(), chat(chat=False), chat()):
        made.edit(lm, [EDIT], state)
    assert len(asked) == 2 and asked[0] != asked[1]
