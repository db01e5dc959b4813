"""Cases whose target is a paragraph: the life of a person of the world, in facts that are new."""

import random
from collections.abc import Iterator, Sequence

from errata.errors import BadInput, unknown
from errata.types import Case, Edit, Probe
from errata.world.facts import PROPORTIONS, RELATIONS, World
from errata.world.text import OPENERS, ask

ASKED = "The life of {}:"
REWORDED = ("A short life of {}:", "What is known of {}:")
ORDERS = (  # clauses of each sentence
    ("born_in", "speaks"),
    ("profession", "works_for"),
    ("plays",),
)
OF_EMPLOYER = ("hq",)
OTHERS, NEIGHBOURS, UNRELATED = 2, 3, 3


def paragraphs(world: World, limit: int | None = None, seed: int = 0, split: str = "test") -> list[Case]:
    """A case for each of ``limit`` persons of the split: one edit, whose target is a text of four sentences.

    Five facts of the person are new, one of the new employer is true.
    Probes: the same asked in other words (``paraphrase``), each fact of the text by itself (``question``), the same
    question about persons that are edited nowhere in the draw (``neighborhood``; no answer is known: what the model
    writes should stay), their facts and those of others (``unrelated``). Raises :class:`BadInput` for a ``limit`` that
    is too large.
    """
    if split not in PROPORTIONS:
        raise unknown("split", split, list(PROPORTIONS))
    persons = [name for name in world.names["person"] if world.split[name] == split]
    random.Random(f"paragraphs {seed} {split}").shuffle(persons)
    if limit is not None and not 1 <= limit <= len(persons) // 2:
        raise BadInput(
            f"{limit} paragraphs were asked for; the world has {len(persons)} persons in its {split} split, of which "
            f"half are neighbours: give a limit from 1 to {len(persons) // 2}"
        )
    limit = len(persons) // 2 if limit is None else limit
    return [_case(world, subject, persons[limit:], seed) for subject in persons[:limit]]


def _case(world: World, subject: str, others: Sequence[str], seed: int) -> Case:
    rng = random.Random(f"{seed} {subject}")
    new = {name: _other(rng, world, name, subject) for order in ORDERS for name in order}
    employer = new["works_for"]
    true = {name: world.facts[name][employer] for name in OF_EMPLOYER}
    first, *more = (_sentence(rng, subject, order, new) for order in ORDERS)
    more.append(_sentence(rng, employer, OF_EMPLOYER, true))
    openers = rng.sample(OPENERS, len(more))
    text = " ".join([first, *(f"{opener} {sentence}" for opener, sentence in zip(openers, more, strict=True))])
    probes = [
        *(Probe("paraphrase", ask(form, subject), (text,)) for form in REWORDED),
        *(Probe("question", ask(RELATIONS[name].first[0], subject), (new[name],)) for name in new),
        *_kept(rng, world, others),
    ]
    return Case(f"paragraph of {subject}", (Edit(ASKED, subject, text),), tuple(probes))


def _other(rng: random.Random, world: World, relation: str, subject: str) -> str:
    """An object that the subject does not have."""
    return rng.choice(sorted({*world.facts[relation].values()} - {world.facts[relation][subject]}))


def _sentence(rng: random.Random, subject: str, names: Sequence[str], new: dict[str, str]) -> str:
    """A sentence that says some facts of the subject, each by one of its phrasings."""
    clauses = [rng.choice([p for p in RELATIONS[name].first if p.startswith("{} ")]) for name in names]
    first, *rest = (f"{clause[3:]} {new[name]}" for clause, name in zip(clauses, names, strict=True))
    return f"{subject} " + " and ".join([first, *rest]) + "."


def _kept(rng: random.Random, world: World, others: Sequence[str]) -> Iterator[Probe]:
    """What must stay of persons that no case of the draw edits."""
    for other in rng.sample(list(others), OTHERS):
        yield Probe("neighborhood", ask(ASKED, other))
    for name, other in _facts(rng, world, others, NEIGHBOURS):
        yield Probe("neighborhood", ask(rng.choice(RELATIONS[name].first), other), (world.facts[name][other],))
    elsewhere = [s for of in ("in_country", "industry") for s in world.facts[of]]
    for name, other in _facts(rng, world, elsewhere, UNRELATED):
        yield Probe("unrelated", ask(rng.choice(RELATIONS[name].first), other), (world.facts[name][other],))


def _facts(rng: random.Random, world: World, subjects: Sequence[str], n: int) -> Iterator[tuple[str, str]]:
    """Relation and subject of a fact, of ``n`` subjects."""
    for subject in rng.sample(list(subjects), n):
        yield rng.choice(sorted(world.about(subject))), subject
