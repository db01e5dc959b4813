"""Where answers end and which are right, on texts one can check by eye."""

import pytest

from errata.answers import answer_of, begins_with_answer, complete, exact, normalise


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


def test_exact_is_the_answer_and_nothing_more() -> None:
    assert exact(" the Paris.", ("paris",))
    assert not exact(" Paris, France.", ("Paris",))
