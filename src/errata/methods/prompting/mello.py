"""MeLLo: a question of several hops is taken apart by the model, and each step is held against the memory.

Zhong et al. 2023, arXiv:2305.14795. The model writes a sub-question and an answer of its own; the nearest fact is put
behind it; the model decides which of the two holds and goes on, until it gives the final answer:

    Question: In which country was Mira Dall born?
    Subquestion: Where was Mira Dall born?
    Generated answer: Oslo.
    Retrieved fact: Mira Dall was born in Lima.         <- the memory's line, all others are the model's
    Intermediate answer: Lima.
    Subquestion: …
    Final answer: Peru.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, NoReturn

from pydantic import Field
from typing_extensions import Unpack, override

from errata.answers import answer_of, begins_with_answer
from errata.errors import Unsupported
from errata.methods.memory.log import EditRecord
from errata.methods.prompting.method import PromptMethod
from errata.methods.prompting.prompted import FactPrompt, FactSettings, PromptedLM, fitting
from errata.methods.settings import setting
from errata.methods.state import State
from errata.model.hf import HFLM
from errata.model.lm import LM, listed
from errata.model.sampling import Sampling, is_drawn

MOST_ROUNDS, MOST_TOKENS = 1000, 100_000  # that a file may ask for
QUESTION, SUBQUESTION, RETRIEVED, FINAL = "Question:", "Subquestion:", "Retrieved fact:", "Final answer:"
LAID_OUT = re.compile(r"\s*Q(?:uestion)?:\s*(.+?)\s*A(?:nswer)?:[^\n]*", re.DOTALL)  # a question laid out as a prompt
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
class Loop:
    """One question on its way through the loop."""

    text: str  # the prompt so far
    last: EditRecord | None = None  # the fact that was retrieved last
    used: list[EditRecord] = field(default_factory=list[EditRecord])  # those that the model adopted
    answer: str | None = None


class LoopSettings(FactSettings):
    """The settings of a :class:`MelloLoop`."""

    loop: str
    rounds: Annotated[int, Field(ge=1, le=MOST_ROUNDS)]
    tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)]


class MelloLoop(FactPrompt):
    """The memory of MeLLo; ``settings`` hold ``rounds``, ``tokens`` and the examples of the ``loop`` too."""

    kind: ClassVar[str] = "mello"
    declares: ClassVar[type[Any]] = LoopSettings

    @override
    def keys(self) -> Sequence[str]:
        return [fact.text for fact in self.facts]

    def nearest(self, questions: Sequence[str]) -> list[EditRecord]:
        """The fact that each question is held against."""
        near, share = self.similarity(questions)
        return [self.facts[j] for j in (near + share).argmax(1)]

    @override
    def wrap(self, inner: LM) -> LM:
        return MelloLM(self, inner)


@dataclass(frozen=True, eq=False)
class MelloLM(PromptedLM):
    """A model that answers questions by sub-questions: the final answer of the loop counts, whatever facts it used.

    The loop is for questions. A prompt that is none (a text to continue), and a question that the loop gives no final
    answer (the model asks no sub-question, or runs out of rounds or of context), gets the fact prepended whose
    subject it names, as with RAG without a threshold; it goes to the model as it is where there is none.
    """

    part: MelloLoop

    stream = LM.stream  # in one piece: the answer stands at the end of the loop

    def loops(self, prompts: Sequence[str]) -> list[Loop]:
        """Each prompt at the end of its loop, with an answer where the loop came to one."""
        settings = self.part.settings
        blocks = [block + "\n\n" for block in settings["loop"].split("\n\n") if block.strip()]
        rounds, tokens = settings["rounds"], settings["tokens"]
        questions, loops = [_question(prompt) for prompt in listed(prompts)], list[Loop]()
        for question in questions:
            text = f"{QUESTION} {question}\n"
            loops.append(Loop("".join(fitting(self.tokens, blocks, text, (rounds + 1) * tokens)) + text))
        going = [loop for loop, question in zip(loops, questions, strict=True) if question]
        for _ in range(rounds + 1):
            going = [loop for loop in going if self.fits(loop.text, tokens)]
            if not going:
                break
            outputs = self.inner.generate([loop.text for loop in going], tokens)
            going = [loop for loop, output in zip(going, outputs, strict=True) if self._advance(loop, output)]
            asked = [_last_line(loop.text, SUBQUESTION) for loop in going]
            for loop, fact in zip(going, self.part.nearest(asked) if asked else (), strict=True):
                loop.text, loop.last = f"{loop.text}{RETRIEVED} {fact.text}\n", fact
        return loops

    @staticmethod
    def _advance(loop: Loop, output: str) -> bool:
        """Adds the model's output up to where a fact is to be retrieved; whether it ends in a sub-question."""
        step, final = output.split(RETRIEVED)[0], output.find(FINAL)
        if loop.last is not None and begins_with_answer(step.partition("answer:")[2], [loop.last.target_new]):
            loop.used.append(loop.last)
        if 0 <= final < len(step):
            loop.answer = answer_of(output[final + len(FINAL) :]) or None
            return False
        loop.text += step.rstrip(" ") if step.endswith("\n") else step + "\n"
        return RETRIEVED in output and SUBQUESTION in step

    @override
    def generate(
        self,
        prompts: Sequence[str],
        max_new_tokens: int = 32,
        *,
        until_answer: bool = False,
        until: Sequence[str] = (),
        **sampling: Unpack[Sampling],
    ) -> list[str]:
        if is_drawn(sampling):
            raise Unsupported("mello takes its steps greedily: it draws no answer; leave temperature out")
        loops = self.loops(prompts)
        rest = [i for i, loop in enumerate(loops) if loop.answer is None]
        how: Any = {"until_answer": until_answer, "until": until}
        plain = super().generate([prompts[i] for i in rest], max_new_tokens, **how) if rest else []
        texts = dict(zip(rest, plain, strict=True))
        return [texts.get(i, f" {loop.answer}.\n") for i, loop in enumerate(loops)]

    @override
    def explain(self, prompts: Sequence[str]) -> list[list[str]]:
        loops = self.loops(prompts)
        plain = super().explain(prompts)
        own = [[f"mello: edit {fact.id}, {fact.text!r}" for fact in loop.used] for loop in loops]
        return [other if loop.answer is None else lines for lines, other, loop in zip(own, plain, loops, strict=True)]

    @override
    def score(self, prompts: Sequence[str], targets: Sequence[str]) -> NoReturn:
        raise Unsupported("mello answers by generation: an answer that is fed has no score; use generate")

    @override
    def next_logprobs(self, prompts: Sequence[str]) -> NoReturn:
        raise Unsupported("mello answers by generation: there are no log-probabilities of a next token; use generate")

    @override
    def prolong(
        self, prompts: Sequence[str], totals: Sequence[int], *, top_k: int = 1, seeds: Sequence[int] | None = None
    ) -> NoReturn:
        raise Unsupported("mello answers questions and does not go on with a text; use generate")


def _question(prompt: str) -> str:
    """The question that a prompt asks; empty where it is a text to continue."""
    laid_out = LAID_OUT.fullmatch(prompt)
    return laid_out[1] if laid_out else prompt.strip() if prompt.rstrip().endswith("?") else ""


def _last_line(text: str, head: str) -> str:
    return text.rpartition(head)[2].split("\n")[0].strip()


@dataclass(frozen=True, kw_only=True)
class MeLLo(PromptMethod):
    """Sub-questions of the model's own, each held against the nearest fact."""

    name: ClassVar[str] = "mello"
    paper: ClassVar[str] = "Zhong et al. 2023, MQuAKE, arXiv:2305.14795"
    part: ClassVar[type[FactPrompt]] = MelloLoop

    rounds: int = setting(4, "sub-questions at most: the released code", above=0)
    tokens: int = setting(48, "for a sub-question and its answer", above=0)

    @override
    def part_settings(self, lm: HFLM, state: State) -> dict[str, Any]:
        once = {"most": 1, "near": -2.0, "named": 1.0}
        layout = {"fact": lm.resources.templates.get("fact", "Fact: {fact}\n"), "layout": "{facts}{prompt}"}
        loop = {"loop": lm.resources.templates.get("loop", EXAMPLES), "rounds": self.rounds, "tokens": self.tokens}
        return {**once, **layout, **loop}
