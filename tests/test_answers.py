"""Where answers end and which are right, on texts one can check by eye."""

from typing import Any

import pytest

from errata.answers import answer_of, begins_with_answer, complete, contains, cut, exact, normalise, verbatim


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" Paris. It is a city", "Paris"),
        (" Paris.", "Paris"),
        (" Paris\nQ: Who", "Paris"),
        (" 3.5 million. More", "3.5 million"),
        (" Paris<|endoftext|>Next", "Paris"),
        (" Paris</s>", "Paris"),
        (" Paris, of course", "Paris, of course"),
        ("\nParis", ""),
        ("", ""),
    ],
)
def test_where_an_answer_ends(text: str, answer: str) -> None:
    assert answer_of(text) == answer


@pytest.mark.parametrize("text", [" Paris. It", " Paris.\n", " Paris\n", "<|endoftext|>", " St. Louis. It", "\n"])
def test_what_is_complete_stays_the_same_whatever_follows(text: str) -> None:
    assert complete(text)
    for more in (" France", ". Yes", "5", "\nQ:"):
        assert answer_of(text + more) == answer_of(text)


@pytest.mark.parametrize("text", ["", " Paris", " Paris.", " 3.", " St. ", " U.S. "])
def test_what_may_still_change_is_not_complete(text: str) -> None:
    assert not complete(text)


def test_normalised_as_squad_does() -> None:
    assert normalise("  The  Eiffel-Tower, (a) big “one”! ") == "eiffeltower big one"
    assert normalise("An") == "an"  # nothing would be left
    assert normalise("") == ""


@pytest.mark.parametrize(
    ("text", "answers", "right"),
    [
        (" Paris.", ("Paris",), True),
        (" the city of Paris", ("Paris",), False),
        (" paris, France", ("Paris",), True),
        (" Parisian food", ("Paris",), False),
        (" The Hague", ("Hague",), True),
        (" Berlin", ("Paris", "Berlin"), True),
        (" St. Louis. It is", ("St. Louis",), True),
        (" St. Louis. It is", ("St. Petersburg",), False),
        (" no. Paris", ("Paris",), False),
        (" the New Rome. And so on", ("new rome",), True),
        (" New Romes.", ("New Rome",), False),
        (" A", ("A",), True),
        (" B", ("A",), False),
        ("", ("Paris",), False),
        (" Paris", (), False),
        (" Paris", ("",), False),
    ],
)
def test_begins_with_an_accepted_answer(text: str, answers: tuple[str, ...], right: bool) -> None:
    assert begins_with_answer(text, answers) is right


ENDS = [
    ("Washington, D.C.", " Washington, D.C. It is", " Washington. D.C."),
    ("George W. Bush", " George W. Bush.", " George W. Smith"),
    ("St. Louis", " St. Louis. It is", " St. Paul."),
    ("Mr. No. 5", " Mr. No. 5\nQ:", " Mr. No. 6"),
    ("A.\nB.", " A.\nB.", " A."),
]


@pytest.mark.parametrize(("answer", "right", "wrong"), ENDS)
def test_what_stands_in_an_accepted_answer_ends_nothing(answer: str, right: str, wrong: str) -> None:
    for match in (begins_with_answer, exact, verbatim):
        assert match(right, (answer,))
    assert not verbatim(wrong, (answer,)) and not begins_with_answer(
        wrong, ("Rome", answer.replace(",", "")[:-1] + "x")
    )
    assert answer_of(right, ("Rome", answer)).rstrip(".") == answer.rstrip(".")
    assert answer_of(" Rome. It is", (answer,)) == "Rome"


def test_a_title_ends_no_answer() -> None:
    assert answer_of(" St. Louis. It") == "St. Louis"
    assert answer_of(" Mrs. Dalloway. It") == "Mrs. Dalloway"
    assert answer_of(" first. It") == "first"


def test_a_text_is_cut_but_not_inside_an_accepted_answer() -> None:
    assert cut(" St. Louis. It. So", (".",)) == " St"
    assert cut(" St. Louis. It. So", (".",), (), ("Rome", "st. louis")) == " St. Louis"
    assert cut(" Washington, D.C. It. So", (".",), (), ("Washington, D.C.",)) == " Washington, D.C"
    assert cut(" Rome. St. Louis", (".",), (), ("St. Louis",)) == " Rome"
    assert cut("Hm. Answer: Rome\nQ: x Answer: Oslo", ("\nQ",), ("Answer:",)) == " Rome"


@pytest.mark.parametrize(
    ("match", "text", "answer", "right"),
    [
        (contains, " in (a) Rome!", ")", True),
        (contains, " in Rome", "---", False),
        (contains, " in Rome --- or", "---", True),
        (begins_with_answer, " ).", ")", True),
        (exact, " ---", "---", True),
        (verbatim, " Rome (Italy).", "Rome (Italy)", True),
        (begins_with_answer, " Rome (Italy), yes", "Rome (Italy)", True),
        (begins_with_answer, " Ελλάδα.", "ελλάδα", True),
        (verbatim, " 北京。", "北京。", True),
        (verbatim, " 北京。", "北京", True),
        (begins_with_answer, "北京。它是首都。", "北京", True),
        (exact, " दिल्ली। यह", "दिल्ली", True),
        (contains, " Rome", "", False),
        (exact, "", "", False),
    ],
)
def test_odd_answers(match: Any, text: str, answer: str, right: bool) -> None:
    assert match(text, (answer,)) is right


def test_exact_is_the_answer_and_nothing_more() -> None:
    assert exact(" the Paris.", ("paris",))
    assert not exact(" Paris, France.", ("Paris",))
