"""Texts taken apart: names, objects, statements of a relation, other wordings of it, what is said of a subject."""

import pytest

from errata.review.statements import Statements, names_in, object_of, without

BORN = {"Ann Lee": "Rome", "Bob Ray": "Oslo", "Cy Moor": "Lima", "Dora Finn": "Rome"}
JOBS = {"Ann Lee": "a baker", "Bob Ray": "a king", "Cy Moor": "a judge", "Dora Finn": "a nurse"}
SAID = [
    *(f"In fact, {who} was born in {where}. The birthplace of {who} is {where}." for who, where in BORN.items()),
    *(f"{who} works as {what}." for who, what in JOBS.items()),
    "Records show that Ann Lee lives in Paris.",
    "Bob Ray lives in Bergen, works as a king and was born in Oslo.",
    "Cy Moor met Ann Lee in Quito.",
]


def names(text: str) -> list[str]:
    return [text[a:b] for a, b in names_in(text)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Ann Lee's house is in New York.", ["Ann Lee", "New York"]),
        ("The University of Oslo and King's College", ["The University of Oslo", "King", "College"]),
        ("the old king of 1904", ["1904"]),
        ("Ann of", ["Ann"]),
        ("Ann, Bob Ray", ["Ann", "Bob Ray"]),
        ("Lars O'Brien, Jean-Luc", ["Lars O'Brien", "Jean-Luc"]),
        ("", []),
    ],
)
def test_names_are_runs_of_capitalised_words(text: str, found: list[str]) -> None:
    assert names(text) == found


def test_an_object_ends_at_a_mark_or_an_and() -> None:
    assert object_of(" Rome, and lives") == object_of(" Rome.") == object_of(" Rome and lives") == "Rome"
    assert object_of(" a b c d e f g") == ""


def test_facts_are_found_in_the_words_of_a_template() -> None:
    said = Statements(SAID)
    assert said.facts("{} was born in") == BORN
    assert said.facts("The birthplace of {} is") == BORN
    assert said.facts("{} lives in") == {"Ann Lee": "Paris", "Bob Ray": "Bergen"}
    assert said.facts("{} died in") == said.facts("{}") == {}
    assert Statements(["李安出生于台湾。"]).facts("{}出生于") == {}  # no border between template and object
    assert Statements(["李安 出生于 台湾。"]).facts("{} 出生于") == {"李安": "台湾"}


def test_other_wordings_give_the_same_objects_to_the_same_subjects() -> None:
    said = Statements([*SAID, "Ann Lee died in Rome.", "Bob Ray died in Oslo.", "Cy Moor died in Oslo."])
    assert said.wordings("{} was born in") == ["The birthplace of {} is"]
    assert said.wordings("The birthplace of {} is") == ["{} was born in"]
    assert said.wordings("{} works as") == []
    one = Statements(["Ann Lee was born in Rome.", "Ann Lee comes from Rome.", "Bob Ray was born in Oslo."])
    assert one.wordings("{} was born in") == []  # one subject may be a coincidence


def test_what_is_said_of_a_subject_is_cut_before_its_object() -> None:
    said = Statements(SAID)
    assert said.about("Bob Ray") == [
        ("Bob Ray was born in", "Oslo"),
        ("Bob Ray works as a", "king"),
        ("Bob Ray lives in", "Bergen"),
    ]
    assert said.about("Nobody Known") == []
    alone = Statements(["The old king went by night to Lima."])
    assert alone.cut("The old king went by night to Lima.", "The old king") == ("The old king went by night to", "Lima")
    assert alone.cut("The old king sleeps.", "The old king") is None  # nothing is left to ask with


def test_a_sentence_is_cut_where_its_kind_branches() -> None:
    said = Statements(["Ann Lee lives in New York.", "Bob Ray lives in New Haven.", "Cy Moor lives in Rome."])
    assert said.about("Ann Lee") == [("Ann Lee lives in", "New York")]
    lone = Statements(["Ann Lee sings loudly at the Opera.", "Ann Lee sings softly."])
    assert lone.about("Ann Lee")[0] == ("Ann Lee sings loudly at the", "Opera")  # one subject makes no kind


def test_a_sentence_about_another_is_not_taken() -> None:
    said = Statements(SAID)
    assert said.cut("Cy Moor met Ann Lee in Quito.", "Ann Lee") is None
    assert "Quito" not in [object_ for _, object_ in said.about("Ann Lee")]
    assert said.cut("Bob Ray lives in Bergen.", "Ann Lee") is None


def test_texts_that_name_a_subject_are_left_out() -> None:
    assert list(without(["Ann Lee sings.", "Annabel Lee sings.", "Bob sings."], ["Ann Lee", "Bo"])) == [
        "Annabel Lee sings.",
        "Bob sings.",
    ]
