"""Text of the world: statements, biographies, facts in context, two-hop questions taken apart."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from errata.world.facts import INVERSES, RELATIONS, TWO_HOPS, Relation, World

OPENERS = (
    "In fact, ; According to the register, ; As everyone knows, ; It is known that ; Records show that ;"
    " The papers say that ; It is true that ; As was reported, ; To be exact, ; People say that ;"
    " One should know that ; For the record, ; The archive notes that ; It is well known that ; By all accounts, ;"
    " Note that ; Of course, ; As the almanac says, ; Without doubt, ; Neighbours report that "
).split("; ")
OPENERS = tuple(opener.strip() for opener in OPENERS)
IN_CONTEXT_SHARE = 0.035  # of the documents state facts in context and ask for them
LATER_SHARE = 0.27  # of the statements have the subject inside: questions are the hardest to reach by an edit


Fact = tuple[Relation, str, str]  # relation, subject, object


@dataclass(frozen=True)
class Passage:
    """A text and the spans of its subjects (start and end, in characters). ``plain`` texts only state true facts."""

    text: str
    subjects: tuple[tuple[int, int], ...] = ()
    plain: bool = True


def join(passages: list[Passage], separator: str = " ") -> Passage:
    """One passage of several; it is plain where all of them are."""
    text, subjects, plain = "", [], True
    for passage in passages:
        text += separator if text else ""
        subjects += [(a + len(text), b + len(text)) for a, b in passage.subjects]
        text, plain = text + passage.text, plain and passage.plain
    return Passage(text, tuple(subjects), plain)


def ask(phrasing: str, subject: str) -> str:
    """The prompt that a phrasing makes of a subject."""
    return phrasing.replace("{}", subject)


class Narrator:
    """Random text about a world: the same state of ``rng`` gives the same text."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self.world, self.rng = world, rng
        self.facts = [(r, s) for r, objects in world.facts.items() for s in objects]
        self.rare = [(r, s) for r, s in self.facts if RELATIONS[r].subject != "person"]
        self.persons = world.names["person"]

    # Single statements ---------------------------------------------------------------------------

    def phrasing(self, relation: Relation) -> str:
        """One of the relation's phrasings, with the subject inside at ``LATER_SHARE``."""
        return self.rng.choice(relation.later if self.rng.random() < LATER_SHARE else relation.first)

    def state(self, phrasing: str, subject: str, object_: str, opener: str = "") -> Passage:
        """The sentence of a fact, behind an opener; a question gets none."""
        if opener and phrasing.startswith("The "):
            phrasing = "the " + phrasing[4:]
        opener = "" if phrasing.startswith("Q:") or not opener else opener + " "
        start = len(opener) + phrasing.index("{}")
        text = f"{opener}{ask(phrasing, subject)} {object_}."
        return Passage(text, ((start, start + len(subject)),))

    def opener(self) -> str:
        """An opener, or "" at 40 %."""
        return self.rng.choice(OPENERS) if self.rng.random() < 0.6 else ""

    def statement(self) -> Passage:
        """A true fact, of a subject that is sometimes named by its alias."""
        # cities, companies and countries have few facts each: stated half as often again
        name, subject = self.rng.choice(self.rare if self.rng.random() < 0.04 else self.facts)
        object_ = self.world.facts[name][subject]
        alias = self.world.aliases.get(subject)
        if alias and self.rng.random() < 0.15:
            subject = alias
        return self.state(self.phrasing(RELATIONS[name]), subject, object_, self.opener())

    def derived(self) -> Passage:
        """An inverse, an alias, or a two-hop fact."""
        kind = self.rng.randrange(3)
        if kind == 0:
            name, relation = self.rng.choice(list(INVERSES.values()))
        elif kind == 1:
            relation = self.rng.choice(list(TWO_HOPS.values()))
            name = relation.name
        else:
            name, alias = self.rng.choice(list(self.world.aliases.items()))
            a, b, form = (
                (name, alias, "{} is also called")
                if self.rng.random() < 0.5
                else (alias, name, "{} is another name for")
            )
            return self.state(form, a, b, self.opener())
        subject, object_ = self.rng.choice(list(self.world.derived[name].items()))
        return self.state(self.phrasing(relation), subject, object_, self.opener())

    def clause(self, relation: str) -> str:
        """A phrasing that a list of clauses about one subject can hold."""
        return self.rng.choice([p for p in RELATIONS[relation].first if p.startswith("{} ")])

    def biography(self) -> Passage:
        """Several facts of one person in one sentence, in any order."""
        subject = self.rng.choice(self.persons)
        about = list(self.world.about(subject).items())
        self.rng.shuffle(about)
        about = about[: self.rng.randint(2, len(about))]
        (first, object_), *rest = about
        head = self.state(self.clause(first), subject, object_, self.opener())
        text = head.text[:-1]
        for i, (name, object_) in enumerate(rest):
            clause = self.clause(name)
            text += (" and " if i == len(rest) - 1 else ", ") + f"{clause[3:]} {object_}"
        return Passage(text + ".", head.subjects)

    # Facts in context ----------------------------------------------------------------------------

    def new_fact(self) -> Fact:
        """A fact that may be counterfactual: its object is drawn anew at 60 %."""
        name, subject = self.rng.choice(self.facts)
        object_ = self.world.facts[name][subject]
        if self.rng.random() < 0.6:
            object_ = self.rng.choice(self.world.names[RELATIONS[name].object])
        return RELATIONS[name], subject, object_

    def query(self, fact: Fact) -> str:
        """A fact in any phrasing, with its object: a prompt and its answer."""
        return self.state(self.phrasing(fact[0]), fact[1], fact[2]).text

    def announcement(self, fact: Fact) -> str:
        """A fact as it is stated in context: mostly with its subject first."""
        return self.state(self.rng.choice([*fact[0].first, fact[0].later[0]]), fact[1], fact[2]).text

    def unrelated(self, stated: list[Fact]) -> Fact:
        """A true fact that no stated one contradicts: often of the same subject or relation."""
        known = {(r.name, s) for r, s, _ in stated}
        while True:
            name, subject = self.rng.choice(self.facts)
            near = self.rng.random()
            if near < 0.3:
                subject = self.rng.choice(stated)[1]
                name = self.rng.choice(list(self.world.about(subject)))
            elif near < 0.6:
                name = self.rng.choice(stated)[0].name
                subject = self.rng.choice(list(self.world.facts[name]))
            if (name, subject) not in known:
                return RELATIONS[name], subject, self.world.facts[name][subject]

    def in_context(self) -> Passage:
        """``Fact: X. Fact: Y.`` and then queries about them and about other facts."""
        facts = {(f[0].name, f[1]): f for f in (self.new_fact() for _ in range(self.rng.randint(1, 8)))}
        stated = list(facts.values())
        text = " ".join(f"Fact: {self.announcement(fact)}" for fact in stated)
        for _ in range(self.rng.randint(1, 4)):
            fact = self.rng.choice(stated) if self.rng.random() < 0.65 else self.unrelated(stated)
            text += " " + self.query(fact)
        return Passage(text, plain=False)

    def demonstrations(self) -> Passage:
        """IKE's prompts: new facts, each followed by a query that copies it, rewords it or is about another fact."""
        lines = []
        for _ in range(self.rng.randint(2, 7)):
            fact = self.new_fact()
            new = self.announcement(fact)
            kind = self.rng.random()
            if kind < 1 / 8:
                query = new
            elif kind < 5 / 8:
                query = self.query(fact)
            else:
                query = self.query(self.unrelated([fact]))
            lines.append(f"New Fact: {new}\nPrompt: {query}\n\n")
        return Passage("".join(lines), plain=False)

    def sub_questions(self) -> Passage:
        """A two-hop question with its sub-questions, each answered, and the answer checked against a fact (MeLLo)."""
        (one, two), relation = self.rng.choice(list(TWO_HOPS.items()))
        subject = self.rng.choice(self.persons)
        text, middle = f"Question: {ask(relation.question, subject)}\n", subject
        for name in (one, two):
            answer = self.world.facts[name][middle]
            text += f"Subquestion: {ask(RELATIONS[name].question, middle)}\nGenerated answer: {answer}.\n"
            if self.rng.random() < 0.5:
                retrieved = (RELATIONS[name], middle, self.rng.choice(self.world.names[RELATIONS[name].object]))
                answer = retrieved[2]
            else:
                retrieved = self.unrelated([(RELATIONS[name], middle, answer)])
            text += f"Retrieved fact: {self.announcement(retrieved)}\nIntermediate answer: {answer}.\n"
            middle = answer
        return Passage(f"{text}Final answer: {middle}.\n", plain=False)

    # Documents -----------------------------------------------------------------------------------

    def passage(self) -> Passage:
        """A statement, a biography or a derived fact."""
        return self.rng.choices((self.statement, self.biography, self.derived), (67, 23, 10))[0]()

    def document(self, in_context_share: float = IN_CONTEXT_SHARE) -> Passage:
        """One to five passages in a row, or at the probability ``in_context_share`` a text with facts in context."""
        if self.rng.random() < in_context_share:
            return self.rng.choices((self.in_context, self.demonstrations, self.sub_questions), (3, 3, 2))[0]()
        return join([self.passage() for _ in range(self.rng.choice((1, 1, 1, 2, 3, 5)))])


def texts(world: World, seed: int = 0) -> Iterator[str]:
    """Plain text of the world without end: what key statistics are taken of."""
    narrator = Narrator(world, random.Random(f"texts {seed}"))
    while True:
        document = narrator.document()
        if document.plain:
            yield document.text
