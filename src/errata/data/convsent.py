"""ConvSent: a topic with positive and negative replies about it. KnowEdit's sub-set, after SERAC.

Mitchell et al. 2022 (https://arxiv.org/abs/2206.06520, eric-mitchell/serac: data_classes/sentiment.py);
zjunlp/EasyEdit: examples/run_convsent_llama2.py.
"""

from pathlib import Path

from errata.data.fields import Record, choice, make_edit, text, texts
from errata.data.formats import Format, MakeCase
from errata.errors import BadInput
from errata.types import Case, Probe

SENTIMENTS = ("pos", "neg")
QUESTIONS = ("What do you think of {}?", "What do you feel about {}?", "How do you view {}?")  # three of SERAC's 13


def reader(path: Path | None, *, sentiment: str = "pos") -> MakeCase:
    """Cases that edit each topic to one ``sentiment``: a question is answered by the first reply of that sentiment.

    Every question is a ``generation`` probe twice, with the replies of the ``wanted`` sentiment as references and with
    those of the ``opposite`` one (labels). The topic of the record before must stay as it is (``unrelated``).
    """
    choice("sentiment", sentiment, SENTIMENTS)
    (opposite,) = set(SENTIMENTS) - {sentiment}
    previous_topic = ""

    def case(record: Record, id: str) -> Case:
        nonlocal previous_topic
        topic, replies = text(record, "ent"), {key: texts(record, key) for key in SENTIMENTS}
        if not replies[sentiment]:
            raise BadInput(f"{sentiment} holds no reply; one is the target")
        questions = [question.replace("{}", topic) for question in QUESTIONS]
        probes = [
            Probe("generation", question, references=replies[key], label=label)
            for label, key in (("wanted", sentiment), ("opposite", opposite))
            for question in questions
        ]
        if previous_topic and previous_topic != topic:
            probes.append(Probe("unrelated", QUESTIONS[0].replace("{}", previous_topic)))
        previous_topic = topic
        return Case(id, (make_edit(questions[0], topic, replies[sentiment][0]),), tuple(probes))

    return case


CONVSENT = Format("ent pos neg", reader, "id")
