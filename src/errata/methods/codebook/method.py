"""What the codebook methods share: texts are read once, and each edit's key reaches half way to them."""

import logging
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import TypedDict, override

from errata.methods.codebook.keys import KeyTable, Training, half_way
from errata.methods.codebook.training import read_queries
from errata.methods.memory.adapter import EditMemory
from errata.methods.memory.log import EditRecord
from errata.methods.memory.method import MemoryMethod
from errata.methods.memory.reading import Measured
from errata.methods.memory.replacing import replaced
from errata.methods.settings import setting
from errata.methods.state import State
from errata.model.hf import HFLM
from errata.patch.schema import Floats, Length
from errata.subjects import mentions

logger = logging.getLogger(__name__)


class Queries(TypedDict):
    """What the state of a codebook method holds: texts, their queries, and the size of the layer's outputs."""

    queries: Annotated[Tensor, Floats("texts in")]
    texts: Annotated[list[str], Length("texts")]
    size: float


@dataclass(frozen=True, kw_only=True)
class CodebookMethod(MemoryMethod):
    """Puts edits into a memory with a :class:`KeyTable`."""

    holds: ClassVar[type[Any] | None] = Queries

    blocks_above: ClassVar[int] = 1  # which carry to the answer's later tokens what the last token of the prompt holds

    texts: int = setting(512, "openings of texts, whose queries say where other texts begin", least=2)
    share: float = setting(
        5e-3, "of the texts without an edit's subject, that may ask what it asks all the same", most=1
    )

    @abstractmethod
    def keys(self, f: int) -> KeyTable:
        """A table without keys, for queries of width ``f``."""

    @abstractmethod
    def fixed_reach(self) -> float | None:
        """How far all keys reach at first; None: half way to where other texts begin, for each edit."""

    @override
    def measure(self, lm: HFLM, texts: list[str]) -> Measured:
        queries, outputs = read_queries(lm, self.site(lm), self.keys(0), [lm.tokens.prompt(text) for text in texts])
        size = float(outputs.square().mean().sqrt())
        what = f"queries of {len(texts)} texts that are no edits"
        return {"queries": queries}, {"what": what, "texts": texts, "size": size}

    def placed(
        self, lm: HFLM, old: EditMemory[Any, Any], log: Sequence[EditRecord], state: State
    ) -> tuple[Any, list[Training], Tensor]:
        """The look-up with more edits, what each is trained on, and the site's outputs at their last tokens (k, d).

        Edits that nothing finds any more, or that are not found by their own prompt, are warned of.
        """
        queries, outputs = read_queries(lm, old.site, old.lookup, [record.prompt_ids for record in log])
        named = torch.tensor([[mentions(text, record.subject) for text in state.info["texts"]] for record in log])
        reach = old.lookup.measured(half_way(queries, state.tensors["queries"], named, self.share))
        if (fixed := self.fixed_reach()) is not None:
            reach = torch.full_like(reach, fixed)
        whole, found = (*old.log, *log), replaced(lm, old, old.lookup.in_use.nonzero()[:, 0].tolist(), log)
        reworded = [
            [j for j in some if old.log[j].prompt_ids != new.prompt_ids] for new, some in zip(log, found, strict=True)
        ]
        lookup, training = old.lookup.extended(whole, queries, reach, reworded)
        before = torch.cat([old.lookup.in_use, torch.ones(len(log), dtype=torch.bool)])
        if gone := [str(whole[i]) for i in (before & ~lookup.in_use).nonzero()[:, 0].tolist()]:
            logger.warning("no longer in force, as newer edits ask the same: %s", "; ".join(gone))
        return lookup, training, outputs

    def asked(self, lm: HFLM, log: Sequence[EditRecord], training: Training, i: int) -> list[EditRecord]:
        """What the payload of edit i is trained on: prompts that it answers, each with its target."""
        new = log[i].target_new
        return [
            record
            if record.target_new == new
            else replace(record, target_new=new, target_ids=lm.tokens.target(record.prompt, new))
            for record in (log[j] for j in training.edits)
        ]
