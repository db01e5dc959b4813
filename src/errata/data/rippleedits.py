"""RippleEdits: an edit, and six criteria of what should follow from it and what should stay.

Cohen et al. 2023 (https://arxiv.org/abs/2307.12976, edenbiran/RippleEdits: src/benchmark.py, testcase.py,
testrunner.py, relation.py). Records name neither subject nor target in words: both are taken from the prompts.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import takewhile
from typing import Any

from errata.data.fields import Record, as_text, distinct, make_edit, objects, optional_text, text, texts
from errata.data.formats import Format
from errata.errors import BadInput
from errata.printable import shown
from errata.types import Case, Edit, Kind, Probe

CRITERIA: Mapping[str, Kind] = {
    "Logical_Generalization": "logical",
    "Compositionality_I": "one_hop",
    "Compositionality_II": "one_hop",
    "Subject_Aliasing": "alias",
    "Forgetfulness": "preservation",  # the paper's Preservation
    "Relation_Specificity": "same_subject",
    "Relation_Specifity": "same_subject",  # as the README spells it
}
RULES: Mapping[str, Any] = {"OR": "any", "AND": "all"}
# The sentence of each relation around its subject {}, # being the relation's name in words (src/relation.py).
SENTENCES: Mapping[str, str] = {
    "The name of the # of {} is": "MOTHER FATHER BROTHER SISTER SPOUSE UNCLE AUNT CHILD STEPFATHER STEPMOTHER "
    "COUNTRY_OF_CITIZENSHIP ALMA_MATER EMPLOYER FIELD_OF_WORK HEAD_OF_GOVERNMENT HEAD_OF_STATE ANTHEM AUTHOR EDITOR "
    "DIRECTOR SCREENWRITER ARCHITECT COMPOSER FOUNDER",
    "The # of {} is": "PLACE_OF_BIRTH PLACE_OF_DEATH PLACE_OF_BURIAL SEXUAL_ORIENTATION OCCUPATION EYE_COLOR "
    "DATE_OF_BIRTH DATE_OF_DEATH OFFICIAL_LANGUAGE",
    "The name of the # which {} is associated with is": "COUNTRY ETHNIC_GROUP RELIGION",
    "The names of the #s of {} are": "SIBLING CAST_MEMBER",
    "The gender of {} is": "SEX_OR_GENDER",
    "The mother tongue of {} is": "NATIVE_LANGUAGE",
    "The number of children {} has is": "NUMBER_OF_CHILDREN",
    "The name of the position held by {} is": "POSITION_HELD",
    "The name of the sports team which {} is a member of is": "MEMBER_OF_SPORTS_TEAM",
    "The name of the league which {} plays in is": "LEAGUE",
    "The name of the award {} won is": "AWARD_RECEIVED",
    "The name of the continent which {} is part of is": "CONTINENT",
    "The name of the capital city of {} is": "CAPITAL",
    "The name of the country which {} is the capital of is": "CAPITAL_OF",
    "The name of the currency in {} is": "CURRENCY",
    "{} #": "FOLLOWS",
    "{} is #": "FOLLOWED_BY",
}


def relations(record: Record) -> list[str]:
    """The relation of the record's edit; empty where it has none."""
    relation = optional_text(record, "edit.relation")
    return [relation] if relation else []


def _case(record: Record, id: str) -> Case:
    tests = [(criterion, test) for criterion in CRITERIA for test in objects(record, criterion)]
    edit = _edit(record, tests)
    probes = [
        probe
        for number, (criterion, test) in enumerate(tests)
        for probe in _probes(criterion, test, f"{criterion} {number}")
    ]
    return Case(id, (edit,), tuple(probes))


def _probes(criterion: str, test: Record, group: str) -> Iterator[Probe]:
    """A probe for each query of a test and each of its answers: a query wants all of them (queryexecutor.py).

    The probes of a test count as one, by its condition; all its condition queries must be answered before the edit
    (testrunner.py). A query without answers cannot be asked (the released scorer lets it pass): as a condition it is
    left out, as a test it stays without an answer.
    """
    rule = RULES.get(as_text(test.get("test_condition", "OR"), "test_condition"))
    if rule is None:
        raise BadInput(f"a test_condition is OR or AND, found {shown(test['test_condition'])}")
    kind = CRITERIA[criterion]
    require = tuple(
        Probe(kind, text(query, "prompt"), answers, label=criterion)
        for query in objects(test, "condition_queries")
        for answers in _answers(query)
    )
    for query in objects(test, "test_queries"):
        for answers in _answers(query) or [()]:
            yield Probe(kind, text(query, "prompt"), answers, group, rule, require, label=criterion)


def _answers(query: Record) -> list[tuple[str, ...]]:
    """The names of each answer."""
    answers = [
        distinct((optional_text(answer, "value") or "", *texts(answer, "aliases")))
        for answer in objects(query, "answers")
    ]
    return [names for names in answers if names]


# Subject and target of an edit -------------------------------------------------------------------


def _edit(record: Record, tests: Iterable[tuple[str, Record]]) -> Edit:
    """The edit of "The name of the mother of Ann is Eve.", divided by the sentence of its relation.

    ``original_fact`` is the same sentence with the old target. Where the relation's sentence is unknown, the target
    begins with the first word that differs from the old one's, or is the name that a test expects as its answer.
    """
    sentence, old = text(record, "edit.prompt"), optional_text(record, "edit.original_fact.prompt")
    before, _, after = _sentence(optional_text(record, "edit.relation") or "").partition("{}")
    start = len(before) if sentence.startswith(before) else 0
    shared = _shared_start(sentence, old) if old else sentence
    if old is None and (name := _target_name(record, tests)) and _bare(sentence).endswith(" " + name):
        cut = len(_bare(sentence)) - len(name)
    elif after and (index := (shared.rfind if old else shared.find)(f"{after} ", start)) >= 0:
        cut = index + len(after) + 1
    elif old:
        cut = shared.rfind(" ") + 1
    else:
        raise BadInput(f"where the target begins in {shown(sentence)} cannot be determined: its relation is unknown")
    prompt, new, true = sentence[:cut].rstrip(), _bare(sentence[cut:]), _bare(old[cut:]) if old else None
    known = after and prompt.startswith(before) and prompt.endswith(after)
    return make_edit(prompt, prompt[start : len(prompt) - len(after)] if known else None, new, true)


def _sentence(relation: str) -> str:
    """The sentence of a relation around its subject {}; "" of an unknown one."""
    sentence = next((sentence for sentence, known in SENTENCES.items() if relation in known.split()), "")
    return sentence.replace("#", relation.lower().replace("_", " "))


def _target_name(record: Record, tests: Iterable[tuple[str, Record]]) -> str | None:
    """The target's name where a test has it as its answer."""
    target = optional_text(record, "edit.target_id")
    queries = (query for _, test in tests for query in objects(test, "test_queries"))
    named = (query for query in queries if target and query.get("target_ids") == [target])
    return next((answers[0][0] for query in named if (answers := _answers(query))), None)


def _shared_start(a: str, b: str) -> str:
    return "".join(x for x, _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def _bare(sentence: str) -> str:
    return sentence.strip().removesuffix(".")


RIPPLEEDITS = Format("edit.prompt edit.relation", lambda path: _case, f"example_type {' '.join(CRITERIA)}", relations)
