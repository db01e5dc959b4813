"""Opinions: a topic, and replies about it of several sorts. ConvSent (positive, negative) and PersonalityEdit (traits).

ConvSent, KnowEdit's sub-set, after SERAC: Mitchell et al. 2022 (https://arxiv.org/abs/2206.06520, eric-mitchell/serac:
data_classes/sentiment.py); zjunlp/EasyEdit: examples/run_convsent_llama2.py. PersonalityEdit: Mao et al. 2024
(https://arxiv.org/abs/2310.02168, zjunlp/EasyEdit: easyeditor/dataset/personality.py), whose ES is SERAC's.
"""

from collections.abc import Sequence
from pathlib import Path

from errata.data.fields import Record, choice, distinct, make_edit, optional_text, text, texts
from errata.data.formats import Format, MakeCase
from errata.errors import BadInput
from errata.types import Case, Probe

SENTIMENTS = ("pos", "neg")
TRAITS = ("extraversion", "agreeableness", "neuroticism")
QUESTIONS = ("What do you think of {}?", "What do you feel about {}?", "How do you view {}?")  # three of SERAC's 13


def reader(path: Path | None, *, sentiment: str = "pos") -> MakeCase:
    """Cases that edit each topic to one ``sentiment``: a question is answered by the first reply of that sentiment."""
    return _opinions(choice("sentiment", sentiment, SENTIMENTS), SENTIMENTS)


def personality_reader(path: Path | None, *, personality: str = "") -> MakeCase:
    """Cases that edit each topic to one ``personality``; without it to the record's ``target_per``, or extraversion."""
    return _opinions(choice("personality", personality, ("", *TRAITS)), TRAITS)


def _opinions(wanted: str, sorts: Sequence[str]) -> MakeCase:
    """Cases of topics whose replies are of several sorts.

    Every question is a ``generation`` probe twice, with the replies of the ``wanted`` sort as references and with those
    of the other ones, ``opposite`` (labels). The topic of the record before must stay as it is (``unrelated``).
    """
    previous_topic = ""

    def case(record: Record, id: str) -> Case:
        nonlocal previous_topic
        topic, replies = text(record, "ent"), {key: texts(record, key) for key in sorts}
        sort = wanted or choice("target_per", optional_text(record, "target_per") or sorts[0], tuple(sorts))
        if not replies[sort]:
            raise BadInput(f"{sort} holds no reply; one is the target")
        others = distinct(reply for key in sorts if key != sort for reply in replies[key])
        questions = [question.replace("{}", topic) for question in QUESTIONS]
        probes = [
            Probe("generation", question, references=references, label=label)
            for label, references in (("wanted", replies[sort]), ("opposite", others))
            for question in questions
        ]
        if previous_topic and previous_topic != topic:
            probes.append(Probe("unrelated", QUESTIONS[0].replace("{}", previous_topic)))
        previous_topic = topic
        return Case(id, (make_edit(questions[0], topic, replies[sort][0]),), tuple(probes))

    return case


CONVSENT = Format("ent pos neg", reader, "id")
PERSONALITY = Format(f"ent {' '.join(TRAITS)}", personality_reader, "target_per")
