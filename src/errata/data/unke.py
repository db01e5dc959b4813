"""Free text as the target: UnKE, EditEverything, and the paragraphs of AKEW.

UnKE: Deng et al. 2024 (https://arxiv.org/abs/2405.15349). EditEverything: Jiang et al. 2025
(https://arxiv.org/abs/2502.05628). AKEW: Wu et al. 2024 (https://arxiv.org/abs/2402.18909; zjunlp/EasyEdit:
easyeditor/dataset/AKEW_both.py); its records contain those of CounterFact and MQuAKE, which are read as facts where
``format`` names these.
"""

from collections.abc import Iterable, Iterator
from typing import Any, cast

from errata.data import counterfact, mquake
from errata.data.fields import (
    Excluded,
    Record,
    as_object,
    case_id,
    make_edit,
    objects,
    optional_text,
    text,
    text_pairs,
    texts,
)
from errata.data.formats import Format
from errata.types import Case, Edit, Probe

TRIPLETS = 5  # of a paragraph's facts are asked (AKEW_both.py)


def _case(record: Record, id: str) -> Case:
    """A question, and the paragraph that answers it."""
    edit = make_edit(text(record, "question"), None, text(record, "answer"))
    facts = text_pairs(record, "sub_question", "sub_answer")
    probes = (*_text_probes(edit, texts(record, "para_question")), *_fact_probes(facts, "sub_question"))
    return Case(case_id(record, "id", "unke", id), (edit,), probes)


def _akew_case(record: Record, id: str) -> Case:
    """Each rewrite's prompt, filled with its subject, is answered by the paragraph ``fact_new_uns``.

    The questions about a chain of MQuAKE's facts are asked as there.
    """
    rewrites = [rewrite for rewrite in _rewrites(record) if optional_text(rewrite, "fact_new_uns")]
    if not rewrites:
        raise Excluded("no rewrite has a paragraph (fact_new_uns)")
    edits: list[Edit] = []
    probes: list[Probe] = []
    for rewrite in rewrites:
        edit = make_edit(text(rewrite, "prompt"), text(rewrite, "subject"), text(rewrite, "fact_new_uns"))
        prompts = texts(rewrite, "question") or texts(record, "paraphrase_prompts")[:1]
        triplets = objects(rewrite, "unsfact_triplets_GPT")[:TRIPLETS]
        facts = [(text(fact, "prompt").replace("{}", text(fact, "subject")), text(fact, "target")) for fact in triplets]
        edits.append(edit)
        probes += [*_text_probes(edit, prompts), *_fact_probes(facts, "unsfact_triplets_GPT")]
    probes += [Probe("unrelated", prompt, texts(record, "loc_ans")) for prompt in texts(record, "loc")]
    if texts(record, "questions"):
        probes += mquake.chain_probes(record, rewrites)
    return Case(case_id(record, "case_id", "akew", id), tuple(edits), tuple(probes))


def _rewrites(record: Record) -> list[dict[str, Any]]:
    """The rewrites of a record: one of CounterFact and WikiUpdate, several of MQuAKE."""
    value = record.get("requested_rewrite")
    rewrites = cast("list[Any]", value) if isinstance(value, list) else [value]
    return [as_object(rewrite, "each of requested_rewrite") for rewrite in rewrites]


def _text_probes(edit: Edit, prompts: Iterable[str]) -> Iterator[Probe]:
    """The text is a reference behind the edit's own prompt, and the answer to others that ask the same."""
    yield Probe("generation", edit.prompt, references=(edit.target_new,), label="question")
    for prompt in prompts:
        yield Probe("paraphrase", prompt, (edit.target_new,), label="para_question")


def _fact_probes(facts: Iterable[tuple[str, str]], label: str) -> Iterator[Probe]:
    """Single facts that the text contains, as prompt and answer."""
    for prompt, answer in dict(facts).items():
        yield Probe("question", prompt, (answer,), label=label)


UNKE = Format("question para_question answer", lambda path: _case, "id sub_question sub_answer category")
EDITEVERYTHING = Format("question answer category", lambda path: _case, "id")
AKEW = Format(
    "requested_rewrite.fact_new_uns",
    lambda path: _akew_case,
    f"{counterfact.OTHER_KEYS} {mquake.OTHER_KEYS} neighborhood_prompts questions new_answer loc loc_ans",
)
