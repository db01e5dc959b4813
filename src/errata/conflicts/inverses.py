# pyright: strict
"""Two edits that say one relation from its two ends: A is the CEO of B, and the CEO of B is A."""

from errata.answers import normalise
from errata.types import Edit

# Words that say nothing of a relation.
PLAIN = frozenset(
    "a an the of in on at by for from to with as and or is are was were be been has have had does do did it its his "
    "her their who whom whose what which where when how name named called s one that this".split()
)

OPEN = frozenset("of by in on at for from to with".split())


def disagree(one: Edit, two: Edit) -> bool:
    """Whether, if their relations are inverse, both cannot hold: one answers with what the other is about, and not the
    other way round."""
    about = [normalise(edit.subject) for edit in (one, two)]
    answers = [normalise(edit.target_new) for edit in (one, two)]
    return (answers[0] == about[1]) != (answers[1] == about[0])


def inverse(one: Edit, two: Edit) -> bool:
    """Whether two relations are one from its two ends, as far as their words say.

    They share a word that means something, and one of them alone ends in a preposition: "{} is the CEO of" and "The CEO
    of {} is", "{} founded" and "{} was founded by"; but "{} is the father of" twice leads on to another.
    """
    return bool(_meaning(one) & _meaning(two)) and _ends_open(one) != _ends_open(two)


def _ends_open(edit: Edit) -> bool:
    """Whether the prompt ends in a preposition."""
    return normalise(edit.prompt).rpartition(" ")[2] in OPEN


def _meaning(edit: Edit) -> set[str]:
    return set(normalise(edit.template.replace("{}", " ")).split()) - PLAIN
