"""The synthetic world: its names and its facts, drawn from a seed."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

from errata.errors import BadInput

PROPORTIONS = {"train": 1 / 3, "validation": 1 / 12, "test": 7 / 12}  # of the subjects of each type

LANGUAGES = (
    "English French German Spanish Italian Polish Russian Turkish Arabic Hindi Korean Japanese "
    "Greek Finnish Danish Welsh"
).split()
PROFESSIONS = (
    "baker;carpenter;chemist;dentist;doctor;farmer;gardener;geologist;journalist;judge;lawyer;"
    "librarian;mechanic;nurse;painter;pharmacist;photographer;pilot;plumber;sailor;sculptor;"
    "surgeon;tailor;teacher"
).split(";")
INSTRUMENTS = (
    "accordion banjo cello clarinet drums flute guitar harp mandolin oboe piano saxophone trombone trumpet viola violin"
).split()
INDUSTRIES = (
    "aviation;banking;brewing;fishing;forestry;insurance;mining;publishing;robotics;shipping;solar power;textiles"
).split(";")
CONTINENTS = "Africa Asia Europe Oceania Antarctica".split()

SYLLABLES = [a + b for a in "b d f g h j k l m n p r s t v z br dr gr kr tr".split() for b in "aeiou"]


@dataclass(frozen=True)
class Relation:
    """A kind of fact between a subject and an object of two types of name.

    ``first`` are phrasings that begin with the subject, ``later`` have it inside; the object follows a phrasing
    directly. ``question`` asks for the object in a sentence of its own.
    """

    name: str
    subject: str
    object: str
    first: tuple[str, ...]
    later: tuple[str, ...]
    question: str

    @property
    def phrasings(self) -> tuple[str, ...]:
        """Those that begin with the subject, then those that have it inside."""
        return self.first + self.later


def _relation(name: str, kinds: str, first: str, later: str, question: str, article: str = "") -> Relation:
    subject, object_ = kinds.split(" -> ")
    prompt = f"Q: {question} A:" + (f" {article}" if article else "")
    first_phrasings, later_phrasings = (tuple(text.strip() for text in texts.split(";")) for texts in (first, later))
    return Relation(name, subject, object_, first_phrasings, (*later_phrasings, prompt), question)


RELATIONS: Mapping[str, Relation] = {
    r.name: r
    for r in (
        _relation(
            "born_in",
            "person -> city",
            "{} was born in; {}'s birthplace is; {} comes from; {} is a native of; {} hails from;"
            " {} first saw the light of day in; {}'s place of birth is; {} originates from",
            "The birthplace of {} is; The city where {} was born is",
            "Where was {} born?",
        ),
        _relation(
            "works_for",
            "person -> company",
            "{} works for; {}'s employer is; {} is employed by; {} is on the payroll of; {} has a job at;"
            " {} draws a salary from; {} is on the staff of; {}'s wages are paid by",
            "The employer of {} is; The company that employs {} is",
            "Who does {} work for?",
        ),
        _relation(
            "profession",
            "person -> profession",
            "{} works as a; {}'s profession is; {} earns a living as a; {} is a trained; {}'s occupation is;"
            " {} was trained as a; {} makes a living as a; {} has long been a",
            "The profession of {} is; The occupation of {} is",
            "What is the job of {}?",
        ),
        _relation(
            "speaks",
            "person -> language",
            "{} speaks; {}'s mother tongue is; {} grew up speaking; {}'s first language is;"
            " {} is a native speaker of; {} thinks and dreams in; {} was raised speaking; {} talks at home in",
            "The mother tongue of {} is; The language that {} speaks is",
            "Which language does {} speak?",
        ),
        _relation(
            "plays",
            "person -> instrument",
            "{} plays the; {}'s instrument is the; {} performs on the; {} has mastered the;"
            " {} gives concerts on the; {} practises the; {} is known for playing the; {} took lessons on the",
            "The instrument of {} is the; The instrument that {} plays is the",
            "Which instrument does {} play?",
            "the",
        ),
        _relation(
            "in_country",
            "city -> country",
            "{} is a city in; {} lies in; {} is located in; {} belongs to; {} is situated in;"
            " {} can be found in; {} is on the map of; {}'s country is",
            "The country of {} is; The country in which {} lies is",
            "In which country is {}?",
        ),
        _relation(
            "hq",
            "company -> city",
            "{} is headquartered in; {} has its headquarters in; {} is based in; {}'s head office is in;"
            " {} is run from; {}'s main office stands in; {} operates out of; {}'s seat is",
            "The headquarters of {} are in; The city where {} is based is",
            "Where is {} based?",
        ),
        _relation(
            "industry",
            "company -> industry",
            "{} operates in the field of; {}'s industry is; {} does business in; {} makes its money in;"
            " {}'s line of business is; {} is active in; {} is a leader in; {} belongs to the sector of",
            "The industry of {} is; The line of business of {} is",
            "Which industry is {} in?",
        ),
        _relation(
            "founder",
            "company -> person",
            "{} was founded by; {}'s founder is; {} was started by; {} was set up by;"
            " {} owes its existence to; {} was established by; {} was launched by; {} was created by",
            "The founder of {} is; The person who founded {} is",
            "Who founded {}?",
        ),
        _relation(
            "capital",
            "country -> city",
            "{}'s capital is; {} is governed from; {} has its capital at; {}'s seat of government is;"
            " {} has as its capital; {} is ruled from; {}'s government sits in; {}'s leading city is",
            "The capital of {} is; The city from which {} is governed is",
            "What is the capital of {}?",
        ),
        _relation(
            "language",
            "country -> language",
            "{}'s official language is; {}'s people speak; {}'s laws are written in; {}'s schools teach in;"
            " {}'s national language is; {} has as its official language; {} is a land that speaks;"
            " {} conducts its affairs in",
            "The official language of {} is; The language spoken in {} is",
            "Which language is spoken in {}?",
        ),
        _relation(
            "continent",
            "country -> continent",
            "{} is a country in; {} lies on the continent of; {} is a part of; {}'s continent is;"
            " {} belongs to the continent of; {} is among the countries of; {} is a nation in; {} is a state in",
            "The continent of {} is; The continent on which {} lies is",
            "On which continent is {}?",
        ),
    )
}

# Relations that follow from the facts; the text states them now and then.
INVERSES: Mapping[str, tuple[str, Relation]] = {
    "founder": (
        "founded",
        _relation(
            "founded",
            "person -> company",
            "{} founded; {} is the founder of; {} set up; {} launched",
            "The company founded by {} is",
            "Which company did {} found?",
        ),
    ),
    "capital": (
        "capital_of",
        _relation(
            "capital_of",
            "city -> country",
            "{} is the capital of; {} is the seat of government of; {} is the place that governs",
            "The country whose capital is {} is",
            "Of which country is {} the capital?",
        ),
    ),
}
TWO_HOPS: Mapping[tuple[str, str], Relation] = {
    ("born_in", "in_country"): _relation(
        "birth_country",
        "person -> country",
        "{}'s country of birth is; {}'s native country is; {} is by birth a citizen of",
        "The country of birth of {} is",
        "In which country was {} born?",
    ),
    ("works_for", "hq"): _relation(
        "work_city",
        "person -> city",
        "{} commutes to; {}'s place of work is; {} goes to work in",
        "The place of work of {} is",
        "In which city is the employer of {} based?",
    ),
}


@dataclass(frozen=True)
class World:
    """All names and facts. ``facts[relation][subject]`` is the object; ``derived`` are facts that follow, likewise."""

    seed: int
    names: Mapping[str, tuple[str, ...]]
    facts: Mapping[str, Mapping[str, str]]
    aliases: Mapping[str, str]
    split: Mapping[str, str]
    derived: Mapping[str, Mapping[str, str]] = field(repr=False)

    def subjects(self, split: str) -> list[str]:
        """The subjects of one split (``train``, ``validation`` or ``test``), in the world's order."""
        return [name for name, assigned in self.split.items() if assigned == split]

    def about(self, subject: str) -> dict[str, str]:
        """relation -> object, for every fact of the subject."""
        return {r: objects[subject] for r, objects in self.facts.items() if subject in objects}

    def __len__(self) -> int:
        return sum(map(len, self.facts.values()))


TRIES = 10_000  # draws of a name until one is new


class _Names:
    """Draws invented words, never the same twice."""

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.taken = rng, set[str]()

    def word(self, syllables: int, endings: tuple[str, ...] = ("",)) -> str:
        for _ in range(TRIES):
            stem = "".join(self.rng.choice(SYLLABLES) for _ in range(syllables))
            word = (stem + self.rng.choice(endings)).capitalize()
            if word.lower() not in self.taken:
                self.taken.add(word.lower())
                return word
        raise BadInput("a world of so many persons needs more names than there are; give some thousand at most")

    def city(self) -> str:
        front = self.rng.choice(("", "", "", "", "Port ", "New "))
        return front + self.word(1, ("ford", "ton", "mar", "holm", "vik", "dal", "burg", "stad"))

    def company(self) -> str:
        return self.word(2, ("", "x", "n")) + self.rng.choice((" Group", " Labs", " Trust", " Motors", "", ""))

    def persons(self, n: int) -> list[str]:
        firsts = [self.word(2, ("", "n", "s", "l")) for _ in range(max(8, n // 6))]
        lasts = [self.word(2, ("r", "k", "nd", "sk", "rt", "ll")) for _ in range(max(8, n // 4))]
        pairs = {(self.rng.choice(firsts), self.rng.choice(lasts)) for _ in range(4 * n)}
        return [" ".join(pair) for pair in self.rng.sample(sorted(pairs), n)]


def _deal(rng: random.Random, subjects: tuple[str, ...], objects: tuple[str, ...]) -> dict[str, str]:
    """Gives every subject an object so that every object has about equally many subjects."""
    dealt = [objects[i % len(objects)] for i in range(len(subjects))]
    rng.shuffle(dealt)
    return dict(zip(subjects, dealt, strict=True))


def _splits(rng: random.Random, names: tuple[str, ...]) -> dict[str, str]:
    labels = [s for s, share in PROPORTIONS.items() for _ in range(round(share * len(names)))]
    labels = (labels + ["test"] * len(names))[: len(names)]
    rng.shuffle(labels)
    return dict(zip(names, labels, strict=True))


@cache
def world(persons: int = 600, seed: int = 0) -> World:
    """The world of a seed: ``persons`` persons, and a tenth as many cities, fewer companies and countries."""
    rng = random.Random(f"errata world {seed} {persons}")
    make = _Names(rng)
    n_cities = max(12, persons // 10)
    names: dict[str, tuple[str, ...]] = {
        "person": tuple(make.persons(persons)),
        "city": tuple(make.city() for _ in range(n_cities)),
        "country": tuple(make.word(2, ("nia", "land", "stan")) for _ in range(max(6, n_cities // 4))),
        "company": tuple(make.company() for _ in range(max(8, 4 * n_cities // 5))),
        "language": tuple(LANGUAGES),
        "profession": tuple(PROFESSIONS),
        "instrument": tuple(INSTRUMENTS),
        "industry": tuple(INDUSTRIES),
        "continent": tuple(CONTINENTS),
    }
    aliases = {name: make.city() for name in names["city"]} | {name: make.company() for name in names["company"]}
    objects = dict(names) | {
        "hq": names["city"][: n_cities // 2],
        "language of country": tuple(LANGUAGES[:8]),
    }
    facts = {
        name: _deal(rng, names[r.subject], objects[r.object])
        for name, r in RELATIONS.items()
        if name not in ("capital", "founder", "hq", "language")
    }
    facts["hq"] = _deal(rng, names["company"], objects["hq"])
    facts["language"] = _deal(rng, names["country"], objects["language of country"])
    facts["founder"] = dict(zip(names["company"], rng.sample(names["person"], len(names["company"])), strict=True))
    facts["capital"] = _capitals(rng, names["country"], facts["in_country"])
    split: dict[str, str] = {}
    for kind in ("person", "city", "company", "country"):
        split |= _splits(rng, names[kind])
    return World(seed, names, facts, aliases, split, derived_of(facts))


def derived_of(facts: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    """The facts that follow: inverses and two hops, by relation and subject."""
    derived = {name: {o: s for s, o in facts[of].items()} for of, (name, _) in INVERSES.items()}
    for (one, two), relation in TWO_HOPS.items():
        derived[relation.name] = {s: facts[two][middle] for s, middle in facts[one].items()}
    return derived


def _capitals(rng: random.Random, countries: tuple[str, ...], in_country: Mapping[str, str]) -> dict[str, str]:
    of_country: dict[str, list[str]] = {}
    for city, country in in_country.items():
        of_country.setdefault(country, []).append(city)
    return {country: rng.choice(of_country[country]) for country in countries}
