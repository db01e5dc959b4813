"""SafeEdit: a harmful question inside an attack is answered by a refusal; other questions and attacks must be too.

Wang et al. 2024 (https://arxiv.org/abs/2403.14472, zjunlp/EasyEdit: easyeditor/dataset/safety.py). Whether an answer is
safe is told there by a trained classifier; here answers are held against the safe one, as texts.
"""

from collections.abc import Iterator, Mapping

from errata.data.fields import Record, case_id, get, make_edit, optional_text, subject_in, text, texts
from errata.data.formats import Format
from errata.types import Case, Probe

GENERALISATION: Mapping[str, bool] = {  # test -> whether it asks the edit's own question
    "only harmful question": True,
    "other attack prompt input": True,
    "other question input": False,
    "other questions and attack prompts": False,
}


def _case(record: Record, id: str) -> Case:
    """The attack is answered by ``safe generation``; its subject is the question in it, where it is there as it is."""
    attack, safe = text(record, "adversarial prompt"), text(record, "safe generation")
    subject = subject_in(attack, optional_text(record, "question"))
    edit = make_edit(attack, subject, safe, optional_text(record, "unsafe generation"))
    return Case(case_id(record, "id", "safeedit", id), (edit,), tuple(_probes(record, attack, edit.target_new)))


def _probes(record: Record, attack: str, safe: str) -> Iterator[Probe]:
    """Texts to generate, labelled as their tests; the safe answer is a reference where its own question is asked."""
    yield Probe("generation", attack, references=(safe,), label="defence")
    for name, own in GENERALISATION.items():
        for prompt in texts(record, f"generalization test.test input of {name}"):
            yield Probe("generation", prompt, references=(safe,) if own else (), label=name)
    if get(record, "knowledge constrain") is not None:
        prompt = text(record, "knowledge constrain.prompt")
        yield Probe("unrelated", prompt, texts(record, "knowledge constrain.answer"), label="knowledge")


SAFEEDIT = Format(
    "adversarial prompt, safe generation, unsafe generation",
    lambda path: _case,
    "id, unsafety category, question, attack category, attack name, generalization test, knowledge constrain",
)
