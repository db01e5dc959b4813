"""The questions of a batch, asked with a patch in force: which are not answered, and what to try for them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from errata.methods.assured.questions import Question
from errata.model.hf import HFLM
from errata.patch.patch import Patch
from errata.types import Edit

ROOM = 4  # tokens behind the longest answer, in which it may end
LEAST = 16  # tokens of an answer that is asked for


def answers_to(lm: HFLM, patch: Patch, questions: Sequence[Question]) -> list[str]:
    """What the model generates for each question with the patch in force; a prompt that occurs twice is asked once."""
    prompts = list(dict.fromkeys(question.prompt for question in questions))
    if not prompts:
        return []
    longest = max(lm.tokens.count(question.answer) for question in questions)
    with patch.applied(lm) as edited:
        texts = edited.generate(prompts, max(LEAST, longest + ROOM), until_answer=True)
    given = dict(zip(prompts, texts, strict=True))
    return [given[question.prompt] for question in questions]


@dataclass(frozen=True)
class Asked:
    """Questions, and what was generated for each with a patch in force."""

    patch: Patch
    questions: Sequence[Question]
    texts: Sequence[str]

    @classmethod
    def of(cls, lm: HFLM, patch: Patch, questions: Sequence[Question]) -> "Asked":
        """The questions, asked now."""
        return cls(patch, questions, answers_to(lm, patch, questions))

    @property
    def wrong(self) -> list[Question]:
        """The questions that do not get their answer."""
        return [q for q, text in zip(self.questions, self.texts, strict=True) if not q.right(text)]

    @property
    def cost(self) -> tuple[int, int]:
        """What the better of two patches has less of: edits whose first question fails, then questions that do."""
        first = {question.of: question for question in reversed(self.questions) if not question.stays}
        wrong = set(self.wrong)
        return sum(question in wrong for question in first.values()), len(wrong)

    def of_edit(self, id: str) -> list[tuple[Question, str]]:
        """The questions of an edit, and what was generated for each."""
        return [(q, text) for q, text in zip(self.questions, self.texts, strict=True) if q.of == id]


def again(wrong: Sequence[Question]) -> list[Edit]:
    """Edits that make right what is wrong: of each fact's words the first that fails, all that should have stayed."""
    firsts = {
        (question.of, question.stays, question.stays and question.prompt): question for question in reversed(wrong)
    }
    return [question.edit() for question in reversed(firsts.values())]


def whole(wrong: Sequence[Question], known: Mapping[str, Edit]) -> list[Edit]:
    """The edits, each once, of which an answer is wrong, as they were asked for; and all that should have stayed."""
    own = dict.fromkeys(question.of for question in wrong if not question.stays)
    return [known[id] for id in own] + [question.edit() for question in wrong if question.stays]
