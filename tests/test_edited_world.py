"""The world in which edits hold: its facts, its text, and models that are trained on it."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_cli import SMALL, here, one_tokenizer, refused, run
from test_world import after

import errata
from errata.errors import BadInput
from errata.types import Edit
from errata.world import train as world_train
from errata.world.cases import cases
from errata.world.edited import edited, fact_of
from errata.world.facts import INVERSES, World
from errata.world.facts import world as make_world
from errata.world.named import world_named
from errata.world.recipe import Recipe, first_reader, rate
from errata.world.text import Narrator

__all__ = ["here", "one_tokenizer"]  # fixtures

WORLD = make_world()
DRAWN = cases(WORLD, 300)
EDITS = tuple(edit for case in DRAWN for edit in case.edits)
CHANGED = edited(WORLD, EDITS)
PERSON = WORLD.names["person"][0]
HOME, OTHER_HOME = WORLD.facts["born_in"][PERSON], WORLD.facts["born_in"][WORLD.names["person"][1]]
ALIASED, ALIAS = next((name, alias) for name, alias in WORLD.aliases.items() if name in WORLD.names["company"])


# Its facts -----------------------------------------------------------------------------------------


def test_facts_are_replaced_in_their_places_and_what_follows_follows() -> None:
    wanted = after(WORLD, *DRAWN)
    assert CHANGED.facts == {name: wanted[name] for name in WORLD.facts}
    assert CHANGED.derived == {name: wanted[name] for name in WORLD.derived}
    assert CHANGED.derived["birth_country"] != WORLD.derived["birth_country"]
    assert all(CHANGED.derived[inverse] != WORLD.derived[inverse] for inverse, _ in INVERSES.values())
    for relation, objects in WORLD.facts.items():
        assert list(CHANGED.facts[relation]) == list(objects)
    same = ("names", "aliases", "split", "seed")
    assert [getattr(CHANGED, name) for name in same] == [getattr(WORLD, name) for name in same]
    assert edited(WORLD, ()) == WORLD


def test_an_edit_by_an_alias_or_in_other_words_is_of_the_same_fact() -> None:
    city = next(c for c in WORLD.names["city"] if c != WORLD.facts["hq"][ALIASED])
    assert fact_of(WORLD, Edit("{} is based in", ALIAS, city)) == ("hq", ALIASED, city)
    assert fact_of(WORLD, Edit("Q: Where is {} based? A:", ALIASED, city)) == ("hq", ALIASED, city)
    twice = edited(WORLD, [Edit("{} is based in", ALIAS, city), Edit("{}'s seat is", ALIASED, city)])
    assert twice.facts["hq"][ALIASED] == city


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (Edit("{} likes", PERSON, HOME), "is no phrasing of a relation, as '{} was born in' is"),
        (Edit("{}'s country of birth is", PERSON, HOME), "follows from other facts .born_in and in_country.; edit th"),
        (Edit("{} founded", PERSON, ALIASED), "follows from other facts .founder.; edit those"),
        (Edit("{} was born in", "Nobody Atall", HOME), "'Nobody Atall' is no person of this world"),
        (Edit("{} was born in", PERSON, "Rome"), "its new object 'Rome' is no city of this world"),
        (Edit("{} was born in", PERSON, OTHER_HOME, "Rome"), f"its old object is 'Rome', and here it is '{HOME}'"),
    ],
)
def test_an_edit_that_is_no_fact_is_refused(edit: Edit, message: str) -> None:
    with pytest.raises(BadInput, match=f"(?s){edit.id}.*changes no fact of the world.*{message}.*errata world edits"):
        edited(WORLD, [edit])


def test_edits_that_contradict_each_other_are_refused() -> None:
    first = Edit("{} was born in", PERSON, OTHER_HOME)
    assert edited(WORLD, [first, replace(first, id="again")]).facts["born_in"][PERSON] == OTHER_HOME
    with pytest.raises(BadInput, match=f"{first.id} and .* give '{PERSON}' two objects of born_in"):
        edited(WORLD, [first, Edit("{} comes from", PERSON, HOME)])
    one, two = WORLD.names["company"][:2]
    founder = WORLD.facts["founder"][one]
    with pytest.raises(BadInput, match=f"'{founder}' would be the founder of '{one}' and of '{two}'"):
        edited(WORLD, [Edit("{} was founded by", two, founder)])


# Its text ------------------------------------------------------------------------------------------


def names_of_changes(one: World, other: World) -> set[str]:
    """The subjects, by both names, of facts that differ."""
    found: set[str] = set()
    for a, b in [*zip(one.facts.values(), other.facts.values()), *zip(one.derived.values(), other.derived.values())]:
        found |= {name for name in {*a, *b} if a.get(name) != b.get(name)}
    return found | {one.aliases[name] for name in found if name in one.aliases}


def test_the_text_differs_only_where_facts_differ() -> None:
    hundred = edited(WORLD, EDITS[:100])
    changed, differing = names_of_changes(WORLD, hundred), 0
    for step in range(30):
        narrators = [Narrator(world, random.Random(f"0 {step}")) for world in (WORLD, hundred)]
        for _ in range(100):
            one, other = (narrator.document(0.4).text for narrator in narrators)
            differing += one != other
            assert one == other or any(name in one + other for name in changed)
    assert 100 < differing < 1000  # of 3,000


# Training ------------------------------------------------------------------------------------------


def write_edits(path: str, limit: int = 10, seed: int = 0) -> tuple[Edit, ...]:
    """The edits of a draw of the small world, in a file."""
    drawn = cases(make_world(30), limit, seed)
    edits = tuple(edit for case in drawn for edit in case.edits)
    Path(path).write_text("".join(json.dumps(edit.to_json()) + "\n" for edit in edits))
    return edits


def test_a_folder_that_was_trained_with_edits_knows_their_world(here: Path) -> None:
    edits = write_edits("e.jsonl")
    run("world", "train", "made", *SMALL, "--edits", "e.jsonl", "-q")
    run("world", "train", "plain", *SMALL, "-q")
    changed = edited(make_world(30), edits)
    assert world_named("made") == changed != world_named("plain")
    assert errata.cases("made", limit=5) == cases(changed, 5)
    made, plain = errata.load("made"), errata.load("plain")
    own = cases(changed, len(changed.subjects("train")), split="train")
    assert made.resources.cases is not None and made.resources.cases() == own
    assert made.tokens.tokenizer.backend_tokenizer.to_str() == plain.tokens.tokenizer.backend_tokenizer.to_str()
    assert made.fingerprint != plain.fingerprint
    recipes = [json.loads(Path(folder, "recipe.json").read_text()) for folder in ("made", "plain")]
    assert all(recipe["precision"] in world_train.PRECISIONS for recipe in recipes)
    kept = {**recipes[1], "precision": recipes[0]["precision"]}
    assert recipes[0] == {**kept, "edits": [edit.to_json() for edit in edits]}
    for broken in (7, [7], [{"prompt": "x"}], [edits[0].to_json() | {"target_new": "Rome"}]):
        Path("made/recipe.json").write_text(json.dumps(recipes[0] | {"edits": broken}))
        with pytest.raises(BadInput, match="no recipe of a world"):
            world_named("made")


def test_a_training_with_edits_resumes_and_others_are_not_taken_for_it(here: Path, one_tokenizer: None) -> None:
    write_edits("e.jsonl")
    write_edits("other.jsonl", seed=1)
    run("world", "train", "made", *SMALL, "--edits", "e.jsonl", "-q")
    run("world", "train", "made", *SMALL, "--edits", "e.jsonl", "-q")
    said = refused("world", "train", "made", *SMALL, "--edits", "other.jsonl", "-q")
    assert "was made by another recipe (other edits)" in said
    assert "another recipe (other edits)" in refused("world", "train", "made", *SMALL, "-q")
    Path("no.jsonl").write_text(json.dumps(Edit("Ann lives in", "Ann", "Rome").to_json()))
    assert "changes no fact of the world" in refused("world", "train", "none", *SMALL, "--edits", "no.jsonl", "-q")
    assert not Path("none").exists()


def test_a_checkpoint_from_before_there_were_edits_goes_on(
    here: Path, one_tokenizer: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("world", "train", "made", *SMALL, "-q")
    state = torch.load("made/checkpoint.pt", weights_only=True)
    recipe, published = state["recipe"], json.loads(Path("made/recipe.json").read_text())
    assert published == {**recipe, "precision": state["precision"]} and "edits" not in recipe
    monkeypatch.setattr(world_train, "faster_precision", lambda *of: torch.float32)
    for precision, goes_on in (("bfloat16", "bfloat16"), ("float32", "float32"), (None, "float32")):
        torch.save({**state, "precision": precision}, "made/checkpoint.pt")
        run("world", "train", "made", *SMALL, "-q")
        assert json.loads(Path("made/recipe.json").read_text())["precision"] == goes_on


def test_training_goes_on_from_the_weights_of_another_model(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edits = write_edits("e.jsonl")
    run("world", "train", "plain", *SMALL, "--seed", "4", "-q")
    first: list[Any] = []
    real = world_train.loss_of

    def loss_of(model: Any, recipe: Any, batch: Any, step: int) -> Any:
        first.append({name: value.detach().clone() for name, value in model.state_dict().items()} if not first else 0)
        return real(model, recipe, batch, step)

    def none(*arguments: Any) -> Any:
        raise AssertionError("a tokenizer is there")

    monkeypatch.setattr(world_train, "loss_of", loss_of)
    monkeypatch.setattr(world_train, "make_tokenizer", none)
    monkeypatch.setattr(world_train, "faster_precision", lambda model, recipe, batch: torch.float32)
    again = ["world", "train", "again", "--from", "plain", "--edits", "e.jsonl", "--follow", "3", "-q"]
    run(*again)
    assert len(first) == 3
    plain, made = errata.load("plain", dtype="float32"), errata.load("again", dtype="float32")
    assert all(torch.equal(value, first[0][name]) for name, value in plain.model.state_dict().items())
    assert plain.fingerprint != made.fingerprint and world_named("again") == edited(make_world(30), edits)
    recipe = json.loads(Path("again/recipe.json").read_text())
    stages = {name: recipe[name] for name in ("learn", "move", "follow", "start", "seed")}
    assert stages == {"learn": 0, "move": 0, "follow": 3, "start": "plain", "seed": 0} and recipe["layers"] == 2
    run(*again)  # all is done
    assert len(first) == 3
    run("world", "train", "third", "--from", "again", "--follow", "1", "-q")
    assert world_named("third") == world_named("again")  # its world is kept where no other edits are given
    assert "layers is 2 in plain, found 3" in refused("world", "train", "x", "--from", "plain", "--layers", "3", "-q")
    assert "other is no model of a world" in refused("world", "train", "x", "--from", "other", "-q")
    assert "no stage has a step" in refused("world", "train", "x", "--from", "plain", "--follow", "0", "-q")
    assert "random weights know no facts" in refused("world", "train", "x", *SMALL, "--learn", "0", "-q")


def test_a_warm_start_begins_softly_and_reads_where_the_model_reads() -> None:
    warm = Recipe(learn=0, move=0, follow=100, start="world")
    rates = [rate(warm, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.025) and max(rates) == 0.5 and rates[-1] < 0.02
    assert first_reader(warm, 0) == 4
    full = Recipe(learn=100, move=100, follow=100)
    assert [round(rate(full, step), 3) for step in (59, 100, 159, 199, 200, 205)] == [
        0.699,
        0.5,
        0.5,
        0.022,
        0.025,
        0.5,
    ]
    assert [first_reader(full, step) for step in (100, 115, 200)] == [1, 2, 4]


def test_the_edits_of_a_draw_are_written(here: Path) -> None:
    run("world", "edits", "e.jsonl", "--limit", "7", "--seed", "2", "--split", "validation")
    wanted = [edit.to_json() for case in errata.cases("world", 7, 2, split="validation") for edit in case.edits]
    assert [json.loads(line) for line in Path("e.jsonl").read_text().splitlines()] == wanted
    assert "exists; add --force" in refused("world", "edits", "e.jsonl")
    assert "gpt2 knows no world" in refused("world", "edits", "x.jsonl", "--model", "gpt2")
