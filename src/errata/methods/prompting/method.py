"""The method that adds facts to a :class:`FactPrompt`: no pass of the model is needed to edit, but for a subject that
has an edit already, of which the new one may be the same fact in other words.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from typing_extensions import override

from errata.errors import BadInput
from errata.methods.base import Method, Tags
from errata.methods.memory.log import EditRecord
from errata.methods.memory.reworded import reworded_by
from errata.methods.prompting.prompted import Example, FactPrompt
from errata.methods.retrieval import default_encoder
from errata.methods.settings import setting
from errata.methods.state import State
from errata.model.hf import HFLM
from errata.patch.patch import Patch
from errata.printable import shown
from errata.types import Edit


@dataclass(frozen=True, kw_only=True)
class PromptMethod(Method):
    """Adds facts to those that are prepended to prompts; no weight changes."""

    family: ClassVar[str] = "prompting"
    stores: ClassVar[str] = "the facts as text; no weight changes"
    part: ClassVar[type[FactPrompt]] = FactPrompt
    tags: ClassVar[Tags] = Tags(quick={"encoder": "tfidf"}, reads_context=True, runs_model=False)

    encoder: str | None = setting(None, "the sentence encoder where the extra `retrieval` is installed, else tfidf")

    @abstractmethod
    def part_settings(self, lm: HFLM, state: State) -> dict[str, Any]:
        """How facts are chosen and laid out: ``settings`` of :class:`FactPrompt`, but for method and encoder."""

    def examples(self, state: State) -> tuple[Example, ...]:
        """The examples that are prepended with facts; by default none."""
        return ()

    @override
    def resolve(self, lm: HFLM, state: State) -> Self:
        encoder = self.encoder or state.info.get("encoder") or default_encoder()
        if state.info.get("encoder", encoder) != encoder:
            raise BadInput(f"this state was prepared with the encoder {state.info['encoder']!r}, not {encoder!r}")
        return replace(self, encoder=encoder)

    @override
    def _edit(self, lm: HFLM, edits: Sequence[Edit], state: State, prior: Patch) -> Patch:
        log = tuple(EditRecord.of(edit) for edit in edits)
        settings = {"method": self.name, "encoder": self.encoder, **self.part_settings(lm, state)}
        part = self.part(log, settings, self.examples(state))
        part.index  # noqa: B018  an encoder that is missing raises here, and not at the first prompt
        for held in reversed(prior.of_kind(self.part)):
            if held.settings["method"] == self.name:
                self._check(held, part)
                part = replace(held, log=(*held.log, *log))
                return prior.swap(held, part.with_reworded((), reworded_by(lm, part.log, len(log))))
        return prior + Patch((part.with_reworded((), reworded_by(lm, log, len(log))),))

    def _check(self, held: FactPrompt, new: FactPrompt) -> None:
        for name, value in new.settings.items():
            if held.settings.get(name) != value:
                raise BadInput(
                    f"{self.name} in prior has {name} = {shown(held.settings.get(name))}, and this one {shown(value)}; "
                    "go on with the same settings and state"
                )
        if held.examples != new.examples:
            raise BadInput(f"{self.name} in prior has other examples; go on with the same state")
