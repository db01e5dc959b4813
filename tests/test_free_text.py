"""Edits told in free text: what the rules read, what they refuse, who decides in doubt, and the command."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import sentences as written
from conftest import tiny_lm
from test_cli import here as here  # an empty working folder
from test_cli import model as model  # a folder with a tiny model
from test_cli import run
from test_judge import Server
from test_judge import server as server  # a stand-in for an address

from errata.cli import common
from errata.completions import Completions
from errata.errors import BadInput, Unreachable
from errata.free_text import Reading, choose, names_of, read, readings, sentences
from errata.model.resources import Resources
from errata.patch.patch import Patch
from errata.types import Case, Edit, Score

ACME = "Acme's chief executive is now Jane Doe, not John Roe"
EITHER = "Jane Doe is the chief executive of Acme, not John Roe."


def found(text: str) -> list[list[Reading]] | None:
    """The readings of each sentence of a text; None where one is refused."""
    try:
        return [readings(sentence) for sentence in sentences(text)] or None
    except BadInput:
        return None


def bare(name: str) -> str:
    return name.removeprefix("The ").removeprefix("the ")


def fits(meant: tuple[Any, Any, str, str | None], edit: Edit) -> bool:
    subjects, prompts = ([one] if isinstance(one, str) else one for one in meant[:2])
    same = bare(edit.subject) in map(bare, subjects) and edit.prompt in prompts
    return same and (edit.target_new, edit.target_true) == meant[2:]


def is_hit(text: str, meant: written.Meant) -> bool:
    got = found(text)
    if got is None or not meant:
        return got is None and not meant
    return len(got) == len(meant) and all(fits(m, ways[0].edit) for m, ways in zip(meant, got, strict=True))


# The rules ---------------------------------------------------------------------------------------


def test_an_office_may_be_the_new_answer_or_part_of_the_relation() -> None:
    ways = [reading.words for reading in readings("Jane Doe is the CEO of Acme, not John Roe.")]
    assert ways[1] == "[Jane Doe] is the CEO of → Acme (not John Roe)" and len(ways) == 2


@pytest.mark.parametrize(("text", "meant"), written.SEEN)
def test_a_sentence_is_read_as_it_is_meant(text: str, meant: written.Meant) -> None:
    assert is_hit(text, meant)


def test_most_sentences_that_no_rule_was_written_for_are_read() -> None:
    hits = sum(is_hit(text, meant) for text, meant in written.HELD_OUT)
    assert len(written.HELD_OUT) == 36 and hits >= 35


@pytest.mark.parametrize("text", [*written.SEEN_REFUSED, *written.HELD_OUT_REFUSED])
def test_nothing_is_guessed(text: str) -> None:
    assert found(text) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Who is Acme's chief executive?", "asks and says nothing"),
        ("She lives in Rome.", "'She' stands for a name"),
        ("Acme's chief executive might be Jane Doe.", r"only what could be \('might'\)"),
        ("Acme's chief executive is not John Roe.", "says what is not so"),
        ("Ann Lee was born in Rome and lives in Oslo.", "write one sentence for each"),
        ("Acme's chief executive is Jane Doe or John Roe.", "leaves open which of two"),
        ("Ann Lee lives in Rome with her sister", "cannot be told where the answer ends"),
        ("Ann Lee lives in Rome, not at sea", "does not go on from 'lives in'"),
        ("The capital is Lyon.", "of whom or what"),
        ("Ann Lee switched from the banjo to the guitar.", r"how something changed \('switched'\), and not what holds"),
        ("ann lee was born in rome", "names are told by their capitals"),
        ("hello there", "no rule reads 'hello there'; write it as \"X's R is Y, not Z\""),
        ("", "there is no sentence"),
    ],
)
def test_a_refusal_says_why(text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        readings(text)


def test_a_reading_says_by_which_rule() -> None:
    (one,) = readings(ACME)
    assert one.rule == "X's R is Y, not Z" and one.words == "[Acme]'s chief executive is → Jane Doe (not John Roe)"
    assert readings("Ann Lee was born in Rome.")[0].rule == "X was born in Y"


def test_a_known_name_is_the_subject_and_is_spelt_as_it_is_known() -> None:
    (one,) = readings("the mayor of greater Oslo is Ann Lee", ["Greater Oslo", "Rome"])
    assert one.edit.subject == "Greater Oslo" and one.edit.prompt == "The mayor of Greater Oslo is"
    assert "a name that the model's own cases have" in one.rule
    assert readings("the mayor of greater Oslo is Ann Lee")[0].edit.subject == "Oslo"


def test_the_place_of_the_subject_is_the_one_that_was_meant() -> None:
    edit = readings("Rome's sister city of Rome is Paris")[0].edit
    assert (edit.subject, edit.start) == ("Rome", 0)


def test_abbreviations_end_no_sentence() -> None:
    assert sentences("Dr. Lang lives in St. Gallen. J. K. Rowling does; A. Po too.\nBo") == [
        "Dr. Lang lives in St. Gallen.",
        "J. K. Rowling does;",
        "A. Po too.",
        "Bo",
    ]


# The choice --------------------------------------------------------------------------------------


class Scores:
    """A model that has each prompt's answer at a log-probability."""

    def __init__(self, **of: float) -> None:
        self.of = of

    def score(self, prompts: Sequence[str], targets: Sequence[str]) -> list[Score]:
        p = [next(value for word, value in self.of.items() if word in prompt) for prompt in prompts]
        return [Score((0, 0), (x, x), (0, 0)) for x in p]


def test_the_old_answer_decides() -> None:
    ways = readings(EITHER)
    assert [way.edit.subject for way in ways] == ["Acme", "Jane Doe"]
    lm: Any = Scores(Jane=-1.0, The=-3.0)
    choice = choose(ways, lm)
    assert choice.sure and choice.reading is ways[1] and choice.others == (ways[0],)
    assert choice.why == "the model has 'John Roe' likeliest here (p = 0.37 per token; next 0.05)"
    close: Any = Scores(Jane=-1.0, The=-1.5)
    assert not choose(ways, close).sure and "which is close" in choose(ways, close).why


def test_an_article_before_a_name_stays_where_the_model_has_it() -> None:
    class Says:
        def score(self, prompts: Sequence[str], targets: Sequence[str]) -> list[Score]:
            return [Score((0, 0), ({"the": -2.0}.get(t, first), 0.0), (0, 0)) for t in targets]

    lm: Any = Says()
    (way,) = readings("Ann Lee works for the Red Cross, not the Salvation Army.")
    first = -3.0
    assert choose([way], lm).reading is way
    first = -1.0
    told = choose([way], lm).reading
    assert told.words == "[Ann Lee] works for → Red Cross (not Salvation Army)"
    assert told.rule == "X works for the Y, not Z, without 'the', as the model has it"
    assert told.edit.id == Edit("Ann Lee works for", "Ann Lee", "Red Cross", "Salvation Army").id
    (guitar,) = readings("Ann Lee plays the guitar.")
    assert choose([guitar], lm).reading is guitar


def test_any_prompt_of_one_fact_will_do() -> None:
    ways = readings("Volvo moved from Lund to Oslo.")
    close: Any = Scores(based=-1.1, located=-1.0, lives=-1.2)
    assert choose(ways, close).sure and choose(ways, close).reading.edit.prompt == "Volvo is located in"
    assert choose(ways).sure and choose(ways).reading is ways[0]


def test_a_name_that_the_model_has_decides_and_else_nobody() -> None:
    ways = readings("Jane Doe is the chief executive of Acme.")
    assert choose(ways, names=["Jane Doe"]).reading is ways[1] and choose(ways, names=["Jane Doe"]).sure
    assert not choose(ways).sure and not choose(ways, names=["Jane Doe", "Acme"]).sure
    assert choose(ways[:1]).sure
    with pytest.raises(BadInput):
        choose([])


def test_names_are_those_of_the_cases_that_go_with_a_model() -> None:
    lm = tiny_lm("gpt2")
    assert names_of(lm) == frozenset()
    lm.resources = Resources(cases=lambda: [Case("a", (Edit("Bo is in", "Bo", "Rome"),))])
    assert names_of(lm) == {"Bo"}


# A reader ----------------------------------------------------------------------------------------

ROE = {"subject": "Acme", "prompt": "Acme's boss is", "target_new": "Jane Doe", "target_true": "John Roe"}


def service(server: Server) -> Completions:
    return Completions(server.url, "wise", pause=0.01, who="reader", option="--reader")


def test_a_reader_gets_the_text_and_its_edits_are_held_against_it(server: Server) -> None:
    server.replies = [f"```json\n{json.dumps([ROE, ROE | {'target_true': None}])}\n```"]
    one, two = read(service(server), f"Hello there. {ACME}")
    assert one.edit == Edit("Acme's boss is", "Acme", "Jane Doe", "John Roe") and one.rule == "read by wise"
    assert one.sentence == ACME and two.edit.target_true is None
    ((_, sent, _),) = server.seen
    assert sent["messages"][1]["content"] == f"Hello there. {ACME}" and sent["model"] == "wise"


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ("I see no edits", "and no JSON list of edits"),
        ('{"subject": 1}', "and no JSON list of edits"),
        ("[3]", "and no object with subject, prompt"),
        (json.dumps([ROE | {"id": "x"}]), "and no object with subject, prompt"),
        (json.dumps([{**ROE, "prompt": None}]), "gave no text as prompt"),
        (json.dumps([ROE | {"target_new": "Max Po"}]), "gave target_new 'Max Po', which the text does not say"),
        (json.dumps([ROE | {"subject": "Acme Inc"}]), "which the text does not say"),
        (json.dumps([ROE | {"prompt": "The boss is"}]), "gave an edit that is none"),
    ],
)
def test_a_reader_that_invents_is_an_error(server: Server, reply: str, message: str) -> None:
    server.replies = [reply]
    with pytest.raises(Unreachable, match=message):
        read(service(server), ACME)


def test_a_reader_that_is_not_there_or_finds_nothing(server: Server) -> None:
    server.replies = ["[]", 401]
    with pytest.raises(BadInput, match="wise finds no edit"):
        read(service(server), "Hello there")
    with pytest.raises(Unreachable, match=r"the reader at .* cannot be asked .*; start it, or leave out --reader"):
        read(service(server), "Hello there")
    with pytest.raises(BadInput, match="20,000 characters at most"):
        read(service(server), "a" * 20_001)
    assert len(server.seen) == 2


# The command -------------------------------------------------------------------------------------

BORN = "Ann Lee was born in Oslo, not in Rome."
QUICK = ("--method", "ft-m", "--set", "steps=1")


def made() -> Edit:
    (path,) = Path().glob("*.safetensors")
    (edit,) = Patch.load(path).edits
    return edit


@pytest.fixture
def sits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody sits at the terminal."""
    monkeypatch.setattr(common, "is_interactive", lambda: True)


def test_what_is_found_is_shown_and_taken_with_yes(model: str) -> None:
    result = run("edit", model, BORN, "--yes", *QUICK)
    assert "[Ann Lee] was born in → Oslo (not Rome)" in result.stderr
    assert "read by: X was born in Y, not Z" in result.stderr and "the model says now:" in result.stderr
    assert made() == Edit("Ann Lee was born in", "Ann Lee", "Oslo", "Rome")


def test_without_a_terminal_and_yes_nothing_is_made(model: str) -> None:
    result = run("edit", model, BORN, code=3)
    assert "nobody is here to confirm" in result.stderr and "add --yes" in result.stderr
    assert "[Ann Lee] was born in → Oslo" in result.stderr and not [*Path().iterdir()]


@pytest.mark.usefixtures("sits")
def test_it_is_confirmed_on_a_terminal(model: str) -> None:
    refused = answered("n\n", model, BORN, code=3)
    assert "not confirmed" in refused.stderr and not [*Path().iterdir()]
    assert "--prompt '{} was born in' --subject 'Ann Lee' --target Oslo" in refused.stderr
    answered("y\n", model, BORN, *QUICK)
    assert made().target_new == "Oslo"


EITHER_WAY = "Jane Doe is the chief executive of Acme."


@pytest.mark.usefixtures("sits")
def test_in_doubt_one_is_picked_or_none(model: str) -> None:
    assert "1: The chief executive of [Acme] is → Jane Doe" in answered("0\n", model, EITHER_WAY, code=3).stderr
    assert "type a number from 0 to 2" in answered("7\n2\n", model, EITHER_WAY, *QUICK).stderr
    assert made().subject == "Jane Doe"


def test_in_doubt_yes_is_not_enough(model: str) -> None:
    result = run("edit", model, EITHER_WAY, "--yes", code=3)
    assert "can be read as The chief executive of [Acme] is → Jane Doe or [Jane Doe] is" in result.stderr
    assert not [*Path().iterdir()]


def answered(line: str, *words: Any, code: int = 0) -> Any:
    from typer.testing import CliRunner

    from errata.cli import app

    result = CliRunner().invoke(app, ["edit", *map(str, words)], input=line)
    assert result.exit_code == code, result.output
    return result


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("hello there", "--yes"), "no rule reads"),
        (("", "--yes"), "the text is empty"),
        ((BORN, "--prompt", "x"), "--prompt and a text were given"),
        ((BORN, "--edits", "x.jsonl"), "--edits and a text were given"),
        ((BORN, "--reader", "http://localhost:1/v1"), "both --reader URL and --reader-model"),
        (("--reader", "http://localhost:1/v1", "--reader-model", "x", "--edits", "y"), "--reader reads a text"),
        (("--yes", "--prompt", "a", "--target", "b"), "--yes takes what is found in a text"),
    ],
)
def test_bad_words_are_refused_before_the_model_is_loaded(
    model: str, words: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("x.jsonl").touch()
    Path("y").write_text('{"prompt": "a b", "subject": "a", "target_new": "c"}')
    monkeypatch.setattr(common, "load_model", lambda *args: pytest.fail("the model was loaded"))
    assert message in run("edit", model, *words, code=2).stderr


def test_a_reader_is_asked_only_where_it_is_named(model: str, server: Server) -> None:
    named = ("--reader", server.url, "--reader-model", "wise")
    run("edit", model, BORN, "--yes", *QUICK)
    run("edit", model, BORN, *named, code=3)  # nobody there to confirm: nothing is sent
    assert server.seen == []
    server.replies = [
        json.dumps(
            [{**ROE, "subject": "Ann Lee", "prompt": "Ann Lee comes from", "target_new": "Oslo", "target_true": "Rome"}]
        )
    ]
    result = run("edit", model, BORN, "--yes", *named, *QUICK, "-o", "b.safetensors")
    assert "read by: read by wise" in result.stderr or "read by wise" in result.stderr
    assert Patch.load("b.safetensors").edits[0].prompt == "Ann Lee comes from" and len(server.seen) == 1


def test_several_sentences_are_one_patch(model: str) -> None:
    run("edit", model, f"{BORN} Bob Ray lives in Lima.", "--yes", *QUICK, "-o", "both.safetensors")
    assert [edit.subject for edit in Patch.load("both.safetensors").edits] == ["Ann Lee", "Bob Ray"]
