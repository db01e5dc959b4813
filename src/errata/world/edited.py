"""The world after edits: what would be true, and what would follow from it, if they held."""

from collections.abc import Iterable
from dataclasses import replace

from errata.errors import BadInput
from errata.printable import shown
from errata.types import Edit
from errata.world.facts import INVERSES, RELATIONS, TWO_HOPS, Relation, World, derived_of

Fact = tuple[str, str, str]  # relation, subject, object
ASKED_BY = {phrasing: relation for relation in RELATIONS.values() for phrasing in relation.phrasings}
FOLLOWING = {  # phrasings of what follows from facts -> the relations of those
    **{phrasing: (of,) for of, (_, inverse) in INVERSES.items() for phrasing in inverse.phrasings},
    **{phrasing: hops for hops, relation in TWO_HOPS.items() for phrasing in relation.phrasings},
}


def edited(world: World, edits: Iterable[Edit]) -> World:
    """The world with these edits made: facts replaced in their places, and all that follows from them anew.

    Names, aliases, splits and the order of facts are the world's own. Raises :class:`BadInput` for an edit that changes
    no fact of the world, and for edits that contradict each other.
    """
    facts = {relation: dict(objects) for relation, objects in world.facts.items()}
    changed: dict[tuple[str, str], Edit] = {}
    for edit in edits:
        relation, subject, object_ = fact_of(world, edit)
        earlier = changed.setdefault((relation, subject), edit)
        if facts[relation][subject] != object_ and earlier is not edit:
            raise BadInput(
                f"the edits {earlier.id} and {edit.id} give {shown(subject)} two objects of {relation}, "
                f"{shown(earlier.target_new)} and {shown(edit.target_new)}; leave one out"
            )
        facts[relation][subject] = object_
    for relation, (inverse, _) in INVERSES.items():
        _check_one_to_one(relation, inverse, facts[relation])
    return replace(world, facts=facts, derived=derived_of(facts))


def fact_of(world: World, edit: Edit) -> Fact:
    """The relation, subject (by its first name) and new object of an edit. Raises :class:`BadInput` for no fact."""
    relation = _relation(edit)
    own_names = {alias: name for name, alias in world.aliases.items()}
    subject = own_names.get(edit.subject, edit.subject)
    objects, target = world.facts[relation.name], edit.target_new.strip()
    if subject not in objects:
        raise _no_fact(edit, f"{shown(edit.subject)} is no {relation.subject} of this world")
    if target not in world.names[relation.object]:
        some = ", ".join(world.names[relation.object][:3])
        raise _no_fact(edit, f"its new object {shown(target)} is no {relation.object} of this world ({some}, …)")
    if edit.target_true not in (None, objects[subject]):
        raise _no_fact(edit, f"its old object is {shown(edit.target_true)}, and here it is {shown(objects[subject])}")
    return relation.name, subject, target


def _relation(edit: Edit) -> Relation:
    if (found := ASKED_BY.get(edit.template)) is not None:
        return found
    if edit.template in FOLLOWING:
        of = " and ".join(FOLLOWING[edit.template])
        raise _no_fact(edit, f"{shown(edit.template)} follows from other facts ({of}); edit those")
    raise _no_fact(
        edit, f"{shown(edit.template)} is no phrasing of a relation, as {shown(next(iter(ASKED_BY)))} is one"
    )


def _no_fact(edit: Edit, why: str) -> BadInput:
    return BadInput(
        f"the edit {edit.id} ({shown(edit.prompt)}) changes no fact of the world: {why}; take edits of "
        "errata.cases of this world, as `errata world edits FILE` writes them"
    )


def _check_one_to_one(relation: str, inverse: str, objects: dict[str, str]) -> None:
    """Raises :class:`BadInput` where two subjects would have one object, so that its inverse had two answers."""
    subject_of: dict[str, str] = {}
    for subject, object_ in objects.items():
        if (other := subject_of.setdefault(object_, subject)) != subject:
            raise BadInput(
                f"with these edits {shown(object_)} would be the {relation} of {shown(other)} and of "
                f"{shown(subject)}, and {inverse} has one answer; give one of them another target, or leave it out"
            )
