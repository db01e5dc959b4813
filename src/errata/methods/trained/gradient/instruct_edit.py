"""InstructEdit: MEND, whose gradient is that of a prompt behind an instruction that says which task the edit is of."""

from collections.abc import Sequence
from dataclasses import dataclass
from string import Formatter
from typing import ClassVar

from typing_extensions import override

from errata.errors import BadInput
from errata.methods.settings import setting
from errata.methods.trained.gradient.mend import MEND
from errata.model.hf import HFLM
from errata.model.reading import Pair
from errata.types import Edit


@dataclass(frozen=True, kw_only=True)
class InstructEdit(MEND):
    """MEND over many tasks: an instruction stands before an edit's prompt where its gradient is taken, and only there.

    The paper writes task, description and input for each of its data sets. Here the task is what an edit's prompt asks
    for: the prompt without its subject, which every edit has.
    """

    name: ClassVar[str] = "instruct-edit"
    paper: ClassVar[str] = "Zhang et al. 2024, InstructEdit: Instruction-Based Knowledge Editing, arXiv:2402.16123"

    instruction: str = setting("Task: {task}. Input: {prompt}", "what stands before and around an edit's prompt")

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            names = {name for _, name, _, _ in Formatter().parse(self.instruction) if name is not None}
        except ValueError:
            names = {"?"}
        if not names <= {"task", "prompt"} or not self.instruction.endswith("{prompt}"):
            raise BadInput(
                f"{self.name}'s instruction ends with {{prompt}} and may hold {{task}}; found {self.instruction!r}"
            )

    @override
    def pairs(self, lm: HFLM, edits: Sequence[Edit]) -> list[Pair]:
        """Token ids of each edit's prompt behind the instruction, as far as the model can read it, and its answer."""
        found: list[Pair] = []
        for edit, plain in zip(edits, super().pairs(lm, edits), strict=True):
            task = " ".join(edit.template.replace("{}", " ").split())
            prompt = self.instruction.format(task=task, prompt=edit.prompt)
            pair = lm.tokens.prompt(prompt), lm.tokens.target(prompt, edit.target_new)
            found.append(pair if lm.tokens.fits(*pair) else plain)
        return found
