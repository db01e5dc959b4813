"""Texts and ids, with a byte-level BPE and a SentencePiece-like tokenizer: spaces, borders, subjects, padding."""

from copy import deepcopy
from functools import cache
from typing import Any

import pytest
import torch
from conftest import sentencepiece, tokenizer
from tokenizers import decoders

from errata.errors import BadInput
from errata.model.padding import pad, positions_of
from errata.model.tokens import Tokens, fed_unchanged, sentence
from errata.subjects import last_word


@cache
def no_prefix_space() -> Any:
    """As GPT-2's own: a text's first word has no space in front."""
    from tokenizers import pre_tokenizers

    other = deepcopy(tokenizer())
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return other


KINDS = {"byte-level": tokenizer, "no prefix space": no_prefix_space, "sentencepiece": sentencepiece}
PROMPTS = ["Ann Lee was born in", "Rome", "The old king\nAnn Lee:", "Zürich ☃ is the mayor of", "Who is it? He is"]


@pytest.fixture(params=KINDS)
def tokens(request: pytest.FixtureRequest) -> Tokens:
    return Tokens(KINDS[request.param]())


# Prompt and target ---------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("target", ["Oslo", "New York", "Zürich ☃"])
def test_prompt_and_target_joined_as_ids_are_the_text(tokens: Tokens, prompt: str, target: str) -> None:
    for given in (target, " " + target, "  " + target):
        ids = tokens.target(prompt, given)
        assert tokens.decode(tokens.prompt(prompt) + ids).strip() == f"{prompt} {target}"
        assert ids == tokens.target(prompt, target)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_target_is_what_the_whole_text_has_behind_the_prompt(tokens: Tokens, prompt: str) -> None:
    whole = list(tokens.tokenizer(f"{prompt} New York")["input_ids"])
    assert tokens.prompt(prompt) + tokens.target(prompt, "New York") == whole


@pytest.mark.parametrize("prompt", ["Ann Lee:\n", "Ann Lee\t"])
def test_behind_white_space_a_target_stands_without_one(tokens: Tokens, prompt: str) -> None:
    ids = tokens.prompt(prompt) + tokens.target(prompt, "Oslo")
    assert tokens.decode(ids).lstrip() == prompt + "Oslo"


@pytest.mark.parametrize("prompt", ["Ann Lee was born in ", "Ann Lee:\n ", " "])
def test_behind_a_space_a_target_stands_without_one(tokens: Tokens, prompt: str) -> None:
    ids = tokens.target(prompt, "Oslo")
    assert ids == tokens.target(prompt, " Oslo")
    assert tokens.decode(tokens.prompt(prompt) + ids).strip() == (prompt + "Oslo").strip()
    assert tokens.decode(tokens.prompt(prompt) + ids) == tokens.decode(tokens.prompt(prompt)) + "Oslo"


def test_a_token_over_the_border_is_split_there() -> None:
    """Where prompt and target would grow together, the prompt keeps its ids."""
    tokens = Tokens(no_prefix_space())
    prompt = "He lives in "  # its last token is the space that the token of " Rome" would take
    (whole,) = tokens._plain(" Rome")
    ids = tokens.target(prompt, "Rome")
    assert tokens.prompt(prompt) == [*tokens.prompt("He lives in"), *tokens._plain(" ")]
    assert ids == tokens._plain("Rome") and whole not in ids


def test_a_target_of_nothing_is_refused(tokens: Tokens) -> None:
    class Deaf:
        pad_token_id, eos_token_id, bos_token_id = 0, 1, 2

        def __call__(self, text: str, **settings: Any) -> dict[str, list[int]]:
            return {"input_ids": [5] if text == "Rome" else []}

        def decode(self, ids: list[int], **settings: Any) -> str:
            return ""

    with pytest.raises(BadInput, match="nothing of the target"):
        Tokens(Deaf()).target("Rome", "☃")


def test_the_empty_prompt_is_the_token_that_begins_a_text(tokens: Tokens) -> None:
    assert tokens.prompt("") == [0]
    ids = tokens.target("", "Rome is old")
    assert tokens.decode(ids).strip() == "Rome is old" and 0 not in ids


class Fixed:
    """A tokenizer of words by number, with the end token behind every text if asked to."""

    eos_token, pad_token_id, bos_token_id = "</s>", None, None

    def __init__(self, end: bool, eos: int | None = 9) -> None:
        self.end, self.eos_token_id = end, eos

    def __call__(self, text: str, add_special_tokens: bool = True, **settings: Any) -> dict[str, list[int]]:
        ids = [9 if word == "</s>" else len(word) for word in text.split()]
        return {"input_ids": ids + [9] * (self.end and add_special_tokens)}

    def decode(self, ids: list[int], **settings: Any) -> str:
        return " ".join("x" * i for i in ids)


class Letters:
    """A tokenizer of letters whose first token tells the text's length, so that no text begins like another."""

    pad_token_id, eos_token_id, bos_token_id = 0, 1, 2

    def __init__(self, front: str, deaf: bool = False) -> None:
        self.front, self.deaf = front, deaf

    def __call__(self, text: str, add_special_tokens: bool = True, **settings: Any) -> dict[str, list[int]]:
        return {"input_ids": [len(text), *map(ord, text)] if add_special_tokens else [*map(ord, self.front + text)]}

    def decode(self, ids: list[int], **settings: Any) -> str:
        return "" if self.deaf else "".join(chr(i) for i in ids if i >= 32)


@pytest.mark.parametrize(("front", "deaf"), [("", False), (" ", False), ("", True)])
def test_apart_a_target_has_one_space_whether_or_not_the_tokenizer_brings_it(front: str, deaf: bool) -> None:
    """Where decoding cannot tell, it is tokenised with its space."""
    assert Tokens(Letters(front, deaf)).target("in", "Oslo") == [*map(ord, " Oslo")]


def test_an_end_token_behind_the_prompt_is_taken_off() -> None:
    tokens = Tokens(Fixed(end=True))
    assert tokens.prompt("a bb ccc") == [1, 2, 3]
    assert tokens.prompt("a bb </s>") == [1, 2, 9, 9]  # it was asked for
    assert tokens.prompt("") == [9]  # alone it begins a text
    assert tokens.target("a bb", "ccc dddd") == [3, 4]
    assert Tokens(Fixed(end=True), seq2seq=True).prompt("a bb ccc") == [1, 2, 3, 9]  # an encoder's text ends with it
    assert Tokens(Fixed(end=True), seq2seq=True).target("a bb", " ccc ") == [3]


def test_the_filling_token_is_the_first_that_there_is() -> None:
    assert Tokens(Fixed(end=False)).fill == 9 and Tokens(Fixed(end=False)).end == 9
    assert Tokens(Fixed(end=False, eos=None)).fill == 0 and Tokens(Fixed(end=False, eos=None)).end is None
    assert Tokens(tokenizer()).fill == 2 and Tokens(tokenizer()).end == 1
    assert Tokens(Fixed(end=False, eos=None)).prompt("") == [0]


def test_what_is_longer_than_the_model_reads_is_refused() -> None:
    tokens = Tokens(Fixed(end=False), limit=3)
    assert tokens.prompt("a bb ccc") == [1, 2, 3] and tokens.count("a bb ccc dddd") == 4
    with pytest.raises(BadInput, match="has 4 tokens; the model reads at most 3"):
        tokens.prompt("a bb ccc dddd")


# Subjects ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("Ann Lee was born in", "Ann Lee"),
        ("The mayor of Lima is Cy Moor, who", "Cy Moor"),
        ("Bob met Bob, and Bob went", "Bob"),  # the last occurrence
        ("He is Zürich ☃", "Zürich ☃"),
        ("Ann Lee", "Ann Lee"),
        ("Ann is no Annette", "Ann"),  # a word, and not a piece of one
        ("A baker of Ann's went", "Ann"),
        ("北京是首都", "北京"),
    ],
)
def test_the_subjects_last_token_ends_where_the_subject_does(tokens: Tokens, prompt: str, subject: str) -> None:
    last = tokens.last_of_subject(prompt, subject)
    ids, end = tokens.prompt(prompt), last_word(prompt, subject) + len(subject)
    assert tokens.decode(ids[: last + 1]).strip().startswith(prompt[:end])
    assert not tokens.decode(ids[:last]).strip().startswith(prompt[:end])


class Slow:
    """A tokenizer that gives no offsets."""

    is_fast = False

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __call__(self, *args: Any, **settings: Any) -> Any:
        assert "return_offsets_mapping" not in settings
        return self.inner(*args, **settings)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def test_a_slow_tokenizer_finds_the_subject_by_the_length_of_what_comes_before(tokens: Tokens) -> None:
    slow = Tokens(Slow(tokens.tokenizer))
    for prompt, subject in (("Ann Lee was born in", "Ann Lee"), ("The mayor is Cy Moor of", "Cy Moor")):
        assert slow.last_of_subject(prompt, subject) == tokens.last_of_subject(prompt, subject)


@pytest.mark.parametrize(
    ("prompt", "at"),
    [
        ("Rome and Rome and Romeo", 0),
        ("Rome and Rome and Romeo", 9),
        ("Rome and Rome and Romeo", 18),  # within a word
        ("Romeland is in", 0),
    ],
)
def test_the_subject_is_found_where_it_is_said_to_begin(tokens: Tokens, prompt: str, at: int) -> None:
    ids, end = tokens.prompt(prompt), at + len("Rome")
    wanted = next(i for i in range(len(ids)) if tokens.decode(ids[: i + 1]).strip().startswith(prompt[:end]))
    assert tokens.last_of_subject(prompt, "Rome", at) == wanted
    assert Tokens(Slow(tokens.tokenizer)).last_of_subject(prompt, "Rome", at) == wanted


def test_a_subject_that_is_not_there_is_refused(tokens: Tokens) -> None:
    with pytest.raises(BadInput, match="'Bob' does not occur"):
        tokens.last_of_subject("Ann Lee was born in", "Bob")


# Pairs and ends of texts ---------------------------------------------------------------------------


def test_a_pair_is_a_text_in_two_parts(tokens: Tokens) -> None:
    prompt, rest = tokens.pair("Ann Lee was born", " in Rome")
    assert prompt == tokens.prompt("Ann Lee was born")
    assert prompt + rest == tokens.prompt("Ann Lee was born in Rome")


def test_spaces_that_end_the_context_go_over_to_the_continuation(tokens: Tokens) -> None:
    assert tokens.pair("Ann Lee was ", "born in") == tokens.pair("Ann Lee was", " born in")


def test_a_continuation_without_a_space_gets_none() -> None:
    tokens = Tokens(no_prefix_space())
    prompt, rest = tokens.pair("Ann Lee was b", "orn")
    assert prompt == tokens.prompt("Ann Lee was b")  # " born" is one token, and reaches over the border
    assert rest == tokens._plain("orn")


def test_a_pair_without_a_context_begins_a_text(tokens: Tokens) -> None:
    prompt, rest = tokens.pair("", "Rome is old")
    assert prompt == [0] and tokens.decode(rest).strip() == "Rome is old"
    long = "Rome " * 50
    tight = Tokens(tokens.tokenizer, limit=4)
    assert tight.pair("", long)[1] == tokens.pair("", long)[1]  # however long


def test_a_pair_of_an_encoder_and_a_decoder_is_tokenised_apart() -> None:
    tokens = Tokens(tokenizer(), seq2seq=True)
    assert tokens.pair("Ann Lee was", " born") == (tokens.prompt("Ann Lee was"), tokens._plain(" born"))


@pytest.mark.parametrize("room", [1, 4, 9, 100])
def test_the_tail_of_a_text_is_its_end_and_fits(tokens: Tokens, room: int) -> None:
    text = "Zürich ☃ is old, and Ann Lee was born in New York by night"
    end = tokens.tail(text, room)
    assert len(tokens._plain(end)) <= room
    assert text.endswith(end.strip()) or "�" in end
    assert end == text or len(tokens._plain(end)) >= room - 3


# Decoding, padding, small things -------------------------------------------------------------------


def test_decoded_text_is_as_it_was_written_without_special_tokens(tokens: Tokens) -> None:
    text = "Ann Lee , who 's old . Is n't she ?"
    assert tokens.decode([0, *tokens._plain(text), 1, 2]).strip() == text


@pytest.mark.parametrize("prompt", ["Ann Lee was born in", "Ann Lee:\n", "He is in ", "Zürich ☃"])
@pytest.mark.parametrize("text", [" Rome", "Rome", "\nRome", "☃", "ly", "  Rome", " ", ""])
def test_a_continuation_is_what_its_ids_add_to_the_prompt(tokens: Tokens, prompt: str, text: str) -> None:
    before, line = tokens.prompt(prompt), tokens._plain("\n")
    ids = tokens._plain("\n" + text)[len(line) :]
    assert tokens.continuation(before, ids) == text
    assert tokens.decode([*before, *ids]) == tokens.decode(before) + text
    if not isinstance(tokens.tokenizer.backend_tokenizer.decoder, decoders.Sequence):
        assert tokens.continuation(before, ids) == tokens.decode(ids)  # raw, with byte-level tokenizers
    stray = tokens._plain("☃")[-1:]  # a byte that is no character
    assert tokens.continuation(before, stray) == tokens.decode(stray) == "�"


def test_a_continuation_of_no_text_is_a_text(tokens: Tokens) -> None:
    ids = tokens._plain("Rome is old")
    assert tokens.continuation(tokens.prompt(""), ids) == tokens.decode(ids)
    assert Tokens(tokens.tokenizer, seq2seq=True).continuation(tokens.prompt("Who?"), ids) == tokens.decode(ids)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(side: Any) -> None:
    padded = pad([[5, 6, 7], [8], []], side, 2)
    left = side == "left"
    assert padded.ids.tolist() == [[5, 6, 7], [2, 2, 8] if left else [8, 2, 2], [2, 2, 2]]
    assert padded.mask.tolist() == [[1, 1, 1], [0, 0, 1] if left else [1, 0, 0], [0, 0, 0]]
    assert padded.lengths == (3, 1, 0)
    assert positions_of(padded.mask).tolist()[0] == [0, 1, 2]
    assert pad([], side, 2).ids.shape == (0, 0)


def test_positions_count_tokens_and_not_padding() -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])
    assert positions_of(mask).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 2, 2]]


@pytest.mark.parametrize(
    ("prompt", "target", "expected"),
    [
        ("in", " Rome", True), ("in", "Rome", False), ("in", "  Rome", False),
        ("in ", "Rome", True), ("in ", " Rome", False), ("", "Rome", True), ("", " Rome", False), ("in", " ", False),
    ],
)  # fmt: skip
def test_what_score_feeds_as_it_is(prompt: str, target: str, expected: bool) -> None:
    assert fed_unchanged(prompt, target) is expected


@pytest.mark.parametrize(
    ("prompt", "answer", "expected"),
    [
        ("He lives in", " Rome ", "He lives in Rome."), ("He:\n", "Rome", "He:\nRome."), ("", "Rome!", "Rome!"),
        ("Is it", "Rome?", "Is it Rome?"), ("在", "京。", "在 京。"), ("In", "Rome.", "In Rome."),
    ],
)  # fmt: skip
def test_the_statement_of_a_prompt_and_its_answer(prompt: str, answer: str, expected: str) -> None:
    assert sentence(prompt, answer) == expected
