"""Cases of the world: one changed fact of a subject, the facts that follow from it, and facts that must stay."""

import random
from collections.abc import Iterator, Sequence

from errata.errors import BadInput, unknown
from errata.types import Case, Edit, Kind, Probe
from errata.world.facts import INVERSES, PROPORTIONS, RELATIONS, TWO_HOPS, Relation, World
from errata.world.text import ask

PARAPHRASES, QUESTIONS, NEIGHBOURS, UNRELATED = 4, 3, 4, 2

Fact = tuple[str, str]  # relation, subject: what an edit changes the object of


def cases(
    world: World, limit: int | None = None, seed: int = 0, split: str = "test", *, apart: bool = False
) -> list[Case]:
    """Cases of one edit each: distinct subjects of the split while there are any, then their other relations.

    Every probe's answer holds after the case's own edit alone and after all edits of the draw together. Neighbours and
    unrelated subjects are edited nowhere in the draw; other facts of an edited subject are ``same_subject``. Without a
    limit every fact of the split is changed, and no other fact of a subject is left to ask about. Two draws of one seed
    begin with the same edits. With ``apart`` no subject of another split is asked about. Raises :class:`BadInput` where
    ``limit`` is too large.
    """
    if split not in PROPORTIONS:
        raise unknown("split", split, list(PROPORTIONS))
    order = _order(world, seed, split)
    if limit is not None and not 1 <= limit <= len(order):
        raise BadInput(
            f"{limit} cases were asked for; the world has {len(order)} in its {split} split "
            f"({len(world.subjects(split))} of distinct subjects): give a limit from 1 to {len(order)}"
        )
    draw = _Draw(world, order[:limit], seed, set(world.subjects(split)) if apart else None)
    return [
        draw.case(f"world-{split}-{seed}-{number:04d}-{fact[0]}", *fact) for number, fact in enumerate(order[:limit])
    ]


def _order(world: World, seed: int, split: str) -> list[Fact]:
    """Every fact of the split's subjects: one of each subject, then a second one of each, and so on."""
    rng = random.Random(f"cases {seed} {split}")
    subjects = world.subjects(split)
    rng.shuffle(subjects)
    relations = {
        subject: rng.sample(about, len(about)) for subject in subjects if (about := list(world.about(subject)))
    }
    rounds = max(map(len, relations.values()), default=0)
    return [(names[i], subject) for i in range(rounds) for subject, names in relations.items() if i < len(names)]


class _Draw:
    """Makes the cases of one draw, which must not contradict each other."""

    def __init__(self, world: World, edited: Sequence[Fact], seed: int, askable: set[str] | None) -> None:
        self.world, self.edited, self.seed = world, set(edited), seed
        self.touched = {subject for _, subject in edited}
        facts = [(r, s) for r, objects in world.facts.items() for s in objects if askable is None or s in askable]
        self.kept = [fact for fact in facts if fact not in self.edited]
        self.subjects_of: dict[Fact, list[str]] = {}  # (relation, object) -> subjects whose fact is kept
        for relation, subject in self.kept:
            self.subjects_of.setdefault((relation, world.facts[relation][subject]), []).append(subject)
        self.taken: set[Fact] = set()

    def case(self, id: str, relation: str, subject: str) -> Case:
        """The case of an edited fact: its new object and its probes are drawn."""
        rng = random.Random(f"{self.seed} {relation} {subject}")
        words = RELATIONS[relation]
        phrasing, old = rng.choice(words.first), self.world.facts[relation][subject]
        edit = Edit(phrasing, subject, self._other_object(rng, words, old), old)
        probes = [
            *self._reworded(rng, words, phrasing, edit),
            *self._implied(rng, words, old, edit),
            *self._kept(rng, words, phrasing, old, edit),
        ]
        return Case(id, (edit,), tuple(probes))

    def _other_object(self, rng: random.Random, words: Relation, old: str) -> str:
        """Another object of the pool; of a relation with an inverse, one that is no subject's object yet."""
        objects = set(self.world.facts[words.name].values())
        pool = sorted(objects - {old})
        if words.name in INVERSES:
            names = self.world.names[words.object]
            pool = [o for o in names if o not in objects and (words.name, o) not in self.taken]
        if not pool:
            raise BadInput(f"no other object is left for {words.name!r} in this world; make a larger one")
        chosen = rng.choice(pool)
        self.taken.add((words.name, chosen))
        return chosen

    def _reworded(self, rng: random.Random, words: Relation, phrasing: str, edit: Edit) -> Iterator[Probe]:
        """The edited fact in other phrasings."""
        others = [other for other in words.first if other != phrasing]
        for other in rng.sample(others, min(PARAPHRASES, len(others))):
            yield Probe("paraphrase", ask(other, edit.subject), (edit.target_new,))
        for other in rng.sample(words.later, min(QUESTIONS, len(words.later))):
            yield Probe("question", ask(other, edit.subject), (edit.target_new,))
        if alias := self.world.aliases.get(edit.subject):
            yield Probe("alias", ask(phrasing, alias), (edit.target_new,))

    def _implied(self, rng: random.Random, words: Relation, old: str, edit: Edit) -> Iterator[Probe]:
        """Facts that are true because of the edit, and of no other edit of the draw."""
        new = edit.target_new
        if words.name in INVERSES:
            inverse = INVERSES[words.name][1]
            yield Probe("inverse", ask(rng.choice(inverse.first), new), (edit.subject,))
        for (one, two), hops in TWO_HOPS.items():
            ends = self.world.facts[two]
            starts = self.subjects_of.get((one, edit.subject), [])
            if words.name == one and (two, new) not in self.edited and ends[new] != ends[old]:
                start, end = edit.subject, ends[new]
            elif words.name == two and starts:
                start, end = rng.choice(starts), new
            else:
                continue
            for form in (rng.choice(hops.first), hops.later[-1]):
                yield Probe("multi_hop", ask(form, start), (end,), label="2 hops")

    def _kept(self, rng: random.Random, words: Relation, phrasing: str, old: str, edit: Edit) -> Iterator[Probe]:
        """Facts that the edit must not change."""
        neighbours = [s for s in self.subjects_of.get((words.name, old), []) if s not in self.touched]
        for other in rng.sample(neighbours, min(NEIGHBOURS, len(neighbours))):
            yield self._fact("neighborhood", phrasing, words.name, other, edit.target_new)
        for name in self.world.about(edit.subject):
            if (name, edit.subject) not in self.edited:
                yield self._fact("same_subject", rng.choice(RELATIONS[name].first), name, edit.subject)
        near = {*self.touched, edit.target_new, old}
        some = rng.sample(self.kept, min(50, len(self.kept)))
        for name, other in [(r, s) for r, s in some if r != words.name and s not in near][:UNRELATED]:
            yield self._fact("unrelated", rng.choice(RELATIONS[name].first), name, other)

    def _fact(self, kind: Kind, phrasing: str, relation: str, subject: str, rival: str | None = None) -> Probe:
        return Probe(kind, ask(phrasing, subject), (self.world.facts[relation][subject],), rival=rival)
