"""Questions about an edit where nobody gives any: the fact in other words, facts nearby, other facts of its subject.

    cases = probes_for(lm, patch.edits, texts=["Ann Lee was born in Rome.", ...])

They are found in texts, or written by the model itself; each probe's ``label`` says which. What cannot be made is
missing: no question is invented, and none has an expected answer that neither a text nor the edit gives.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from errata.answers import answer_of, normalise
from errata.errors import BadInput
from errata.model.hf import HFLM
from errata.model.texts import END, contexts_of, texts_of
from errata.phrasings import group_index, rephrased, templates_of
from errata.review.statements import Statements
from errata.subjects import mentions, template_of
from errata.types import Case, Edit, Probe

PARAPHRASES, NEIGHBOURS, FACTS = 4, 6, 4  # of an edit, at most
READ = 4000  # texts at most, of those given or that go with the model
SAMPLED = 64  # texts that are sampled where there are none
DRAWS = 8  # continuations that the model writes for each edit that lacks a kind
SENTENCE = 24  # tokens of one
CASES, TEXTS, MODEL, BEHIND = "the model's own cases", "found in texts", "written by the model", "behind a text"


def pool(lm: HFLM, texts: Iterable[str] | None = None, seed: int = 0) -> list[str]:
    """The texts that a review reads: those given, else those that go with the model, else some sampled from it (said).

    Raises :class:`BadInput` for what is no text, and where there are none.
    """
    most = READ if texts is not None or lm.resources.texts is not None else SAMPLED
    found = [text for text in islice(texts_of(lm, texts, seed), most) if not isinstance(text, str) or text.strip()]
    if not found or not all(isinstance(text, str) for text in found):
        what = next((type(text).__name__ for text in found if not isinstance(text, str)), "nothing")
        raise BadInput(f"a review reads texts, found {what}; give a list of texts, or leave them out")
    return found


def probes_for(lm: HFLM, edits: Sequence[Edit], texts: Iterable[str] | None = None, seed: int = 0) -> list[Case]:
    """A case for each edit, with the questions that could be made about it; ``label`` says from what.

    ``texts`` are searched for sentences about the subject, and about others in the edit's words; by default the texts
    that go with the model, or ones sampled from it. What they do not give the model writes: it continues the subject,
    and lists of facts in the edit's words. Kinds: ``paraphrase`` (other wordings that the texts or the model's own
    cases have, else the same prompt behind a sampled text), ``neighborhood`` (other subjects of the relation, first
    those with the old object), ``same_subject``. No question of two hops is made. Answers that a probe expects are
    those of the texts; one that the model wrote expects none, and is held to what the model says before the edit.
    Raises :class:`BadInput`.
    """
    if not edits:
        return []
    maker = _Maker(lm, list(edits), Statements(pool(lm, texts, seed)), seed)
    return maker.cases()


@dataclass(frozen=True)
class _About:
    """An edit, the unedited model's answer to it, and the templates that ask for its relation, its own first."""

    edit: Edit
    answer: str
    templates: tuple[str, ...]
    label: str
    rng: random.Random

    @property
    def old(self) -> set[str]:
        """What the fact's object was, normalised."""
        return {normalise(text) for text in (self.answer, self.edit.target_true) if text and text.strip()}

    def states_it(self, prompt: str, object_: str) -> bool:
        """Whether a statement about the subject may be the edited fact itself."""
        said = {*self.old, normalise(self.edit.target_new)}
        return normalise(object_) in said or template_of(prompt, self.edit.subject) in self.templates


class _Maker:
    """Makes the probes of edits: first from texts, then from what the model writes, for all edits at once."""

    def __init__(self, lm: HFLM, edits: list[Edit], said: Statements, seed: int) -> None:
        self.lm, self.said, self.seed = lm, said, seed
        self.subjects = {edit.subject for edit in edits}
        self._facts: dict[str, dict[str, str]] = {}
        self._wordings: dict[str, list[str]] = {}
        own = templates_of(lm.resources.cases(), ("paraphrase", "question")) if lm.resources.cases else []
        answers = lm.generate([edit.prompt for edit in edits], until_answer=True)
        groups = group_index(own)
        self.about = [
            self._about(edit, answer_of(answer), own[groups[edit.template]] if edit.template in groups else None)
            for edit, answer in zip(edits, answers, strict=True)
        ]

    def _about(self, edit: Edit, answer: str, known: list[str] | None) -> _About:
        templates = (edit.template, *(self.wordings(edit.template) if known is None else known))
        label = TEXTS if known is None else CASES
        return _About(edit, answer, tuple(dict.fromkeys(templates)), label, random.Random(f"{self.seed} {edit.id}"))

    def facts(self, template: str) -> dict[str, str]:
        """What the texts say in the template's words, but for subjects that are edited."""
        if template not in self._facts:
            found = self.said.facts(template)
            self._facts[template] = {s: o for s, o in found.items() if not self._edited(s)}
        return self._facts[template]

    def wordings(self, template: str) -> list[str]:
        """Other templates of the relation that the texts hold."""
        if template not in self._wordings:
            self._wordings[template] = self.said.wordings(template, self.facts(template))
        return self._wordings[template]

    def cases(self) -> list[Case]:
        """A case for each edit."""
        made = [
            [_reworded(about) for about in self.about],
            [self._nearby(about) for about in self.about],
            [self._of_subject(about) for about in self.about],
        ]
        self._fill_reworded(made[0])
        self._fill_nearby(made[1])
        self._fill_of_subject(made[2])
        return [
            Case(about.edit.id, (about.edit,), tuple(probe for probes in kinds for probe in probes))
            for about, *kinds in zip(self.about, *made, strict=True)
        ]

    # From texts ----------------------------------------------------------------------------------

    def _nearby(self, about: _About) -> list[Probe]:
        """Other subjects of the relation in the edit's own words, first those that share its old object."""
        found: dict[str, str] = {}
        for template in about.templates:
            for subject, object_ in self.facts(template).items():
                found.setdefault(subject, object_)
        subjects = about.rng.sample(sorted(found), len(found))
        subjects.sort(key=lambda subject: normalise(found[subject]) not in about.old)
        template, new = about.edit.template, about.edit.target_new
        return [
            Probe("neighborhood", template.replace("{}", s), (found[s],), rival=new, label=TEXTS)
            for s in subjects[:NEIGHBOURS]
        ]

    def _of_subject(self, about: _About) -> list[Probe]:
        """What else the texts say of the subject."""
        facts = [fact for fact in self.said.about(about.edit.subject) if not about.states_it(*fact)]
        chosen = about.rng.sample(facts, min(FACTS, len(facts)))
        return [Probe("same_subject", prompt, (object_,), label=TEXTS) for prompt, object_ in chosen]

    # From the model ------------------------------------------------------------------------------

    def _fill_reworded(self, made: list[list[Probe]]) -> None:
        """Where no other wording is known: the prompt behind texts that the model writes."""
        lacking = [i for i, probes in enumerate(made) if not probes]
        contexts = [text for text in contexts_of(self.lm, PARAPHRASES, self.seed) if text] if lacking else []
        for i in lacking:
            edit = self.about[i].edit
            prompts = (context + edit.prompt for context in contexts)
            made[i] = [Probe("paraphrase", prompt, (edit.target_new,), label=BEHIND) for prompt in prompts]

    def _fill_nearby(self, made: list[list[Probe]]) -> None:
        """Where too few others are known: the model goes on behind the fact as it says it, in the same words or not."""
        lacking = [i for i, probes in enumerate(made) if len(probes) < NEIGHBOURS and self.about[i].answer]
        prompts = [f"{self.about[i].edit.prompt} {self.about[i].answer}." for i in lacking]
        for i, sentences in zip(lacking, self._written(prompts), strict=True):
            edit, known = self.about[i].edit, {probe.prompt for probe in made[i]}
            said = Statements(sentences)
            for subject in {s: None for template in self.about[i].templates for s in said.facts(template)}:
                prompt = edit.template.replace("{}", subject)
                if not self._edited(subject) and prompt not in known and len(made[i]) < NEIGHBOURS:
                    made[i].append(Probe("neighborhood", prompt, rival=edit.target_new, label=MODEL))

    def _fill_of_subject(self, made: list[list[Probe]]) -> None:
        """Where too few facts are known: the model goes on behind the subject."""
        lacking = [i for i, probes in enumerate(made) if len(probes) < FACTS]
        prompts = [self.about[i].edit.subject for i in lacking]
        for i, continued in zip(lacking, self._written(prompts), strict=True):
            about = self.about[i]
            known = {normalise(answer) for probe in made[i] for answer in probe.answers}
            for text in continued:
                sentence = text if mentions(text, about.edit.subject) else about.edit.subject + text
                cut = self.said.cut(sentence.split(END)[0], about.edit.subject)
                if cut and not about.states_it(*cut) and normalise(cut[1]) not in known and len(made[i]) < FACTS:
                    known.add(normalise(cut[1]))
                    made[i].append(Probe("same_subject", cut[0], label=MODEL))

    def _written(self, prompts: Sequence[str]) -> list[list[str]]:
        """For each prompt some continuations, drawn at temperature 1, to the end of a sentence."""
        room = (self.lm.tokens.limit or SENTENCE + 1) - 1 - max(map(self.lm.tokens.count, prompts), default=0)
        if not prompts or room < 2:
            return [[] for _ in prompts]
        seeds = [self.seed * 7919 + i for i in range(DRAWS * len(prompts))]
        several = [prompt for prompt in prompts for _ in range(DRAWS)]
        ids = self.lm.sample(several, min(SENTENCE, room), seed=seeds, until=(END,))
        texts = list(map(self.lm.tokens.decode, ids))
        return [texts[i : i + DRAWS] for i in range(0, len(texts), DRAWS)]

    def _edited(self, subject: str) -> bool:
        return any(subject == one or mentions(subject, one) or mentions(one, subject) for one in self.subjects)


def _reworded(about: _About) -> list[Probe]:
    """The fact in other words that are known for its relation."""
    edit, others = about.edit, list(about.templates[1:])
    chosen = about.rng.sample(others, len(others)) if about.label == CASES else others
    prompts = rephrased(edit, chosen, PARAPHRASES + 1)[1:]
    return [Probe("paraphrase", prompt, (edit.target_new,), label=about.label) for prompt in prompts]
