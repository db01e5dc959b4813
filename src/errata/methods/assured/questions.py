"""What an edit is asked: its fact in other words, and what should stay; made from the edit, by templates of cases.

Templates are learned from cases of other subjects. Without any, the prompt is asked behind contexts, and what should
stay is what the model writes of the bare subject.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest

from typing_extensions import TypedDict

from errata.answers import answer_of, begins_with_answer, normalise
from errata.model.hf import HFLM
from errata.model.texts import contexts_of
from errata.phrasings import group_index, templates_of
from errata.subjects import mentions, template_of
from errata.types import Case, Edit, Kind

SAME: tuple[Kind, ...] = ("paraphrase", "question")  # what asks for the edited fact in other words
OTHERS = 64  # subjects that are kept for each group of templates
TOKENS = 12  # of a continuation of a bare subject
WORDS = 4  # of an answer, that must be the same where it should stay


@dataclass(frozen=True)
class Question:
    """A prompt about a subject, and the answer that it must get. ``of`` is the id of the edit that it belongs to."""

    prompt: str
    subject: str
    answer: str
    of: str
    stays: bool = False

    def right(self, text: str) -> bool:
        """Whether a generated text gives the answer; of what stays, whether it begins with the same words."""
        if self.stays:
            return _first_words(text) == _first_words(self.answer)
        return begins_with_answer(text, [self.answer])

    def edit(self) -> Edit:
        """The edit that makes the answer the prompt's."""
        return Edit(self.prompt, self.subject, self.answer)


def _first_words(text: str) -> list[str]:
    return normalise(answer_of(text)).split()[:WORDS]


class Learned(TypedDict):
    """What cases teach: templates that ask the same, in groups; by group, templates of what else is asked of its
    subjects, and other subjects with their answers; and templates that ask over several hops, in groups."""

    asks: list[list[str]]
    stays: list[list[str]]
    others: list[list[list[str]]]
    hops: list[list[str]]


def learned(cases: Sequence[Case]) -> Learned:
    """The templates and subjects of cases; all empty without any."""
    asks = templates_of(cases, SAME)
    number = group_index(asks)
    stays: list[dict[str, None]] = [{} for _ in asks]
    others: list[dict[tuple[str, str], None]] = [{} for _ in asks]
    for case in cases:
        edit = case.edits[0]
        if len(case.edits) != 1 or (g := number.get(edit.template)) is None:
            continue
        if edit.target_true and len(others[g]) < OTHERS:
            others[g][edit.subject, edit.target_true] = None
        about = (p.prompt for p in case.probes if p.kind == "same_subject" and mentions(p.prompt, edit.subject))
        stays[g] |= dict.fromkeys(template_of(prompt, edit.subject) for prompt in about)
    return {
        "asks": asks,
        "stays": [*map(list, stays)],
        "others": [[*map(list, some)] for some in others],
        "hops": _hops(cases),
    }


def _hops(cases: Iterable[Case]) -> list[list[str]]:
    """Templates of probes over several hops that begin at an edit's subject, in groups of one answer."""
    group_of: dict[str, dict[str, None]] = {}
    for case in cases:
        alike: dict[tuple[str, ...], list[str]] = {}
        for probe in case.probes:
            if probe.kind == "multi_hop" and mentions(probe.prompt, case.edits[0].subject):
                alike.setdefault(probe.answers, []).append(template_of(probe.prompt, case.edits[0].subject))
        for templates in alike.values():
            joined = dict.fromkeys(other for template in templates for other in group_of.get(template, [template]))
            group_of |= dict.fromkeys(joined, joined)
    return [list(group) for group in {id(group): group for group in group_of.values()}.values()]


def slot(template: str) -> re.Pattern[str]:
    """What matches a prompt of a template, with its subject as the only group."""
    before, _, after = template.partition("{}")
    return re.compile(rf"\s*{re.escape(before)}(.+?){re.escape(after)}\s*", re.DOTALL)


@dataclass(frozen=True)
class Asker:
    """Makes questions of edits, at most ``most`` in all for each: of each sort, its fact and what stays."""

    lm: HFLM
    known: Learned
    most: int
    seed: int

    @cached_property
    def number(self) -> dict[str, int]:
        """Template -> its group."""
        return group_index(self.known["asks"])

    @cached_property
    def contexts(self) -> list[str]:
        """Texts to put before a prompt that no known template made."""
        return contexts_of(self.lm, self.most - 1, self.seed)

    def fact(self, edit: Edit) -> tuple[str, str | int]:
        """What an edit is about: its subject, and the group of its template or that itself."""
        return " ".join(edit.subject.casefold().split()), self.number.get(edit.template, edit.template)

    def own(self, edit: Edit, most: int | None = None) -> list[Question]:
        """The edit's prompt and its fact in other words; those first in which the subject comes latest, the hardest."""
        group = self.number.get(edit.template)
        if group is None:
            prompts = [edit.prompt, *(context + edit.prompt for context in self.contexts[1:])]
        else:
            others = sorted(self.known["asks"][group], key=lambda template: -template.find("{}"))
            prompts = [edit.prompt, *(template.replace("{}", edit.subject) for template in others)]
        kept = list(dict.fromkeys(prompts))[: self.most if most is None else most]
        return [Question(prompt, edit.subject, edit.target_new, edit.id) for prompt in kept]

    def staying(self, edits: Sequence[Edit], beside: Sequence[Edit]) -> list[Question]:
        """What should stay as it is: other facts of each subject, and the same fact of others; no answers yet.

        What the edits or those ``beside`` are about is left out.
        """
        edited = {self.fact(edit) for edit in (*edits, *beside)}
        found: dict[str, Question] = {}
        for edit in edits:
            group = self.number.get(edit.template)
            if group is None:
                asked = [(prompt, edit.subject) for prompt in self._written(edit)]
            else:
                others = sorted(self.known["others"][group], key=lambda one: one[1] != edit.target_true)
                asked = [(t.replace("{}", edit.subject), edit.subject) for t in self._of_subject(group)]
                asked += [(edit.template.replace("{}", other), other) for other, _ in others[: self.most // 2]]
            for prompt, subject in asked:
                if self.fact(Edit(prompt, subject, "-")) not in edited:
                    found.setdefault(prompt, Question(prompt, subject, "", edit.id, stays=True))
        return list(found.values())

    def _of_subject(self, group: int) -> list[str]:
        """Templates of other relations that are asked of the group's subjects: one of each, then one more of each."""
        of: dict[str | int, list[str]] = {}
        for template in self.known["stays"][group]:
            of.setdefault(self.number.get(template, template), []).append(template)
        turns = zip_longest(*of.values())
        return [template for turn in turns for template in turn if template is not None][: self.most]

    def _written(self, edit: Edit) -> list[str]:
        """Beginnings of what the model writes of the bare subject, but for what states the old answer or the new."""
        some = self.most // 2
        rows = self.lm.sample([edit.subject] * some, TOKENS, seed=[self.seed + i for i in range(some)])
        texts = [edit.subject + self.lm.tokens.decode(ids) for ids in rows]
        answers = [answer.casefold() for answer in (edit.target_true, edit.target_new) if answer]
        kept = [text for text in texts if not any(answer in text.casefold() for answer in answers)]
        halves = (edit.subject + _half(text[len(edit.subject) :]) for text in kept)
        return [half for half in dict.fromkeys(halves) if half != edit.subject and mentions(half, edit.subject)]


def _half(text: str) -> str:
    words = list(re.finditer(r"\S+", text.split("\n")[0]))
    return text[: words[len(words) // 2 - 1].end()] if len(words) > 1 else ""


def with_answers(questions: Sequence[Question], texts: Sequence[str]) -> list[Question]:
    """The questions with what was generated for each as the answer that should stay; those without any are left out."""
    answered = (replace(q, answer=answer_of(text)) for q, text in zip(questions, texts, strict=True))
    return [question for question in answered if question.answer]
