"""MeLLo: a question of several hops is taken apart by the model, and each step is held against the memory.

Zhong et al. 2023, arXiv:2305.14795. The model writes a sub-question and an answer of its own; the nearest fact is put
behind it; the model says which of the two holds and goes on, until it gives the final answer:

    Question: In which country was Mira Dall born?
    Subquestion: Where was Mira Dall born?
    Generated answer: Oslo.
    Retrieved fact: Mira Dall was born in Lima.         <- the memory's line, all others are the model's
    Intermediate answer: Lima.
    Subquestion: …
    Final answer: Peru.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NoReturn

from errata.answers import answer_of, begins_with_answer
from errata.errors import Unsupported
from errata.methods.prompting.base import Fact, Facts, Prompting, Teller, fitting
from errata.methods.prompting.retrieval import named
from errata.methods.settings import setting
from errata.model.hf import HFLM
from errata.model.lm import LM

QUESTION, SUBQUESTION, RETRIEVED, FINAL = "Question:", "Subquestion:", "Retrieved fact:", "Final answer:"
ASKED = re.compile(r"\s*Q(?:uestion)?:\s*(.+?)\s*A(?:nswer)?:[^\n]*", re.DOTALL)  # a question as a prompt lays it out
EXAMPLES = """Question: In which language did the composer of The Magic Flute write letters to his family?
Subquestion: Who composed The Magic Flute?
Generated answer: The Magic Flute was composed by Wolfgang Amadeus Mozart.
Retrieved fact: The Magic Flute was composed by Claude Debussy.
The retrieved fact contradicts the generated answer. Intermediate answer: Claude Debussy
Subquestion: In which language did Claude Debussy write letters to his family?
Generated answer: Claude Debussy wrote letters to his family in French.
Retrieved fact: The language of Quebec is French.
The retrieved fact does not contradict the generated answer. Intermediate answer: French
Final answer: French

Question: What is the capital of the country where the game of chess was invented?
Subquestion: In which country was the game of chess invented?
Generated answer: The game of chess was invented in India.
Retrieved fact: The game of basketball was invented in Canada.
The retrieved fact does not contradict the generated answer. Intermediate answer: India
Subquestion: What is the capital of India?
Generated answer: The capital of India is New Delhi.
Retrieved fact: The capital of India is Mumbai.
The retrieved fact contradicts the generated answer. Intermediate answer: Mumbai
Final answer: Mumbai

Question: On which continent was the founder of Nokia born?
Subquestion: Who founded Nokia?
Generated answer: Nokia was founded by Fredrik Idestam.
Retrieved fact: Nokia was founded by Akio Morita.
The retrieved fact contradicts the generated answer. Intermediate answer: Akio Morita
Subquestion: On which continent was Akio Morita born?
Generated answer: Akio Morita was born in Asia.
Retrieved fact: Fredrik Idestam was born in Tampere.
The retrieved fact does not contradict the generated answer. Intermediate answer: Asia
Final answer: Asia

Question: Which sport does the husband of Steffi Graf play?
Subquestion: Who is the husband of Steffi Graf?
Generated answer: The husband of Steffi Graf is Andre Agassi.
Retrieved fact: Andre Agassi plays the sport of golf.
The retrieved fact does not contradict the generated answer. Intermediate answer: Andre Agassi
Subquestion: Which sport does Andre Agassi play?
Generated answer: Andre Agassi plays the sport of tennis.
Retrieved fact: Andre Agassi plays the sport of golf.
The retrieved fact contradicts the generated answer. Intermediate answer: golf
Final answer: golf

"""


@dataclass
class Run:
    """One question on its way through the loop."""

    text: str  # what stands so far
    last: Fact | None = None  # the fact that was put before the model last
    used: list[Fact] = field(default_factory=list[Fact])  # those that it went along with
    answer: str | None = None

    @property
    def led(self) -> bool:
        """Whether it came to an answer that the memory has a part in."""
        return self.answer is not None and bool(self.used)


class MelloLoop(Facts):
    """The memory of MeLLo; ``settings`` hold rounds, tokens and the examples (``loop``) too."""

    kind: ClassVar[str] = "mello"

    def keys(self) -> Sequence[str]:
        return [fact.text for fact in self.live]

    def nearest(self, questions: Sequence[str]) -> list[Fact]:
        """For each question the fact that it is held against."""
        subjects = [fact.subject for fact in self.live]
        return [self.live[j] for j in (self.index.near(questions) + named(subjects, questions)).argmax(1)]

    def wrap(self, inner: LM) -> LM:
        return Asker(self, inner)


@dataclass(frozen=True, eq=False)
class Asker(Teller):
    """A model that answers by sub-questions.

    What it does not take apart, what is no question, and what no fact was used for is told the fact whose subject it
    names, and goes to the model as it is where there is none.
    """

    part: MelloLoop

    def runs(self, prompts: Sequence[str]) -> list[Run]:
        """Each prompt at the end of its loop, with an answer where the loop came to one."""
        its = self.part.settings
        blocks = [block + "\n\n" for block in its["loop"].split("\n\n") if block.strip()]
        rounds, tokens = its["rounds"], its["tokens"]
        questions, runs = [_question(prompt) for prompt in prompts], list[Run]()
        for question in questions:
            text = f"{QUESTION} {question}\n"
            runs.append(Run("".join(fitting(self.tokens, blocks, text, (rounds + 1) * tokens)) + text))
        going = [run for run, question in zip(runs, questions, strict=True) if question]
        for _ in range(rounds + 1):
            going = [run for run in going if self.fits(run.text, tokens)]
            if not going:
                break
            said = self.inner.generate([run.text for run in going], tokens)
            going = [run for run, its in zip(going, said, strict=True) if self._read(run, its)]
            asked = [_last_line(run.text, SUBQUESTION) for run in going]
            for run, fact in zip(going, self.part.nearest(asked) if asked else (), strict=True):
                run.text, run.last = f"{run.text}{RETRIEVED} {fact.text}\n", fact
        return runs

    @staticmethod
    def _read(run: Run, said: str) -> bool:
        """Takes in what the model said up to where the memory speaks; whether it asked a sub-question."""
        step, final = said.split(RETRIEVED)[0], said.find(FINAL)
        if run.last is not None and begins_with_answer(step.partition("answer:")[2], [run.last.answer]):
            run.used.append(run.last)
        if run.last is not None and 0 <= final < len(step):
            run.answer = answer_of(said[final + len(FINAL) :]) or None
            return False
        run.text += step.rstrip(" ") if step.endswith("\n") else step + "\n"
        taken_apart = run.last is not None or _last_line(run.text, SUBQUESTION) != _last_line(run.text, QUESTION)
        return RETRIEVED in said and SUBQUESTION in step and taken_apart

    def generate(
        self,
        prompts: Sequence[str],
        max_new_tokens: int = 32,
        *,
        until_answer: bool = False,
        until: Sequence[str] = (),
    ) -> list[str]:
        runs = self.runs(prompts)
        rest = [i for i, run in enumerate(runs) if not run.led]
        how: Any = {"until_answer": until_answer, "until": until}
        plain = super().generate([prompts[i] for i in rest], max_new_tokens, **how) if rest else []
        said = dict(zip(rest, plain, strict=True))
        return [said.get(i, f" {run.answer}.\n") for i, run in enumerate(runs)]

    def explain(self, prompts: Sequence[str]) -> list[list[str]]:
        runs = self.runs(prompts)
        plain = super().explain(prompts)
        own = [[f"mello: edit {fact.id}, {fact.text!r}" for fact in run.used] for run in runs]
        return [lines if run.led else other for lines, other, run in zip(own, plain, runs, strict=True)]

    def score(self, prompts: Sequence[str], targets: Sequence[str]) -> NoReturn:
        raise Unsupported("mello answers by what it generates: an answer that is fed has no score; use generate")

    def next_logprobs(self, prompts: Sequence[str]) -> NoReturn:
        raise Unsupported("mello answers by what it generates: there is no next token to speak of; use generate")


def _question(prompt: str) -> str:
    """The question that a prompt asks; empty where it is to be gone on from."""
    laid_out = ASKED.fullmatch(prompt)
    return laid_out[1] if laid_out else prompt.strip() if prompt.rstrip().endswith("?") else ""


def _last_line(text: str, head: str) -> str:
    return text.rpartition(head)[2].split("\n")[0].strip()


@dataclass(frozen=True, kw_only=True)
class MeLLo(Prompting):
    """Sub-questions of the model's own, each held against the nearest fact."""

    name: ClassVar[str] = "mello"
    paper: ClassVar[str] = "Zhong et al. 2023, MQuAKE, arXiv:2305.14795"
    part: ClassVar[type[Facts]] = MelloLoop

    rounds: int = setting(4, "sub-questions at most: the released code", above=0)
    tokens: int = setting(48, "for a sub-question and its answer", above=0)

    def rule(self, lm: HFLM) -> dict[str, Any]:
        told: Mapping[str, Any] = {
            "told": lm.resources.templates.get("fact", "Fact: {fact}\n"),
            "layout": "{facts}{prompt}",
        }
        once = {"encoder": self.encoder, "most": 1, "near": -2.0, "named": 1.0}
        return {
            **once,
            **told,
            "loop": lm.resources.templates.get("loop", EXAMPLES),
            "rounds": self.rounds,
            "tokens": self.tokens,
        }
