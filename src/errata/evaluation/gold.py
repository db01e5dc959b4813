"""The gold of some edits: what a model answers that was trained on the world in which they hold, kept in one file.

    gold = Gold.load()                      # of the bundled model and errata.cases("world", limit=100)
    gold.check(lm, patch.edits)             # these edits, of this model
    with patch.applied(lm) as edited:
        print(gold.distances(edited))       # kind of probe -> how far it is from the gold

A distance is the mean KL(retrained ‖ edited) of what follows a prompt (:func:`errata.evaluation.metrics.answer_kl`),
divided by the same mean between two retrainings that differ in their seed: 1 is as far as a retraining is from another,
0 is the gold itself. ``errata.evaluation.make_gold`` makes the file.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from errata.errors import BadInput, WrongModel
from errata.evaluation.asking import Generation, Requests, ask
from errata.evaluation.gold_header import About, Model, unreadable
from errata.evaluation.metrics import Mean, Outlook, answer_kl, mean_over_cases
from errata.evaluation.protocols import METRICS
from errata.patch.schema import Floats, Ints, Length, Number, Saved, bound
from errata.printable import shown
from errata.tensor_files import checksum, read_tensors, write_tensors
from errata.types import Edit
from errata.world.named import GOLD

if TYPE_CHECKING:
    from errata.model.hf import HFLM
    from errata.model.lm import LM


CHUNK = 256  # prompts that are asked at a time: each reply has an entry for every token


@dataclass(frozen=True)
class Int32s(Ints):
    """As :class:`Ints`, in half the room."""

    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.int32,)


Asked = tuple[str, str, str, int]  # case, kind and label of a probe, and the number of its prompt


@dataclass(frozen=True, eq=False)
class Gold(Saved):
    """The answers of a retrained model to the probes of some edits, and how likely it finds them.

    ``asked`` has an entry for each probe and for the edits' own prompts; each distinct prompt stands once in
    ``prompts``, with the greedy answer in ``answers``. Behind a prompt the next tokens that hold 99.9 % of the
    probability are kept, with the answer's first token; ``rest`` is the logarithm of what all others hold together.
    ``between`` is, for each kind, the mean KL between retrainings, in nats. ``recipes`` say how those were trained.
    """

    model: Model
    data: str
    recipes: list[dict[str, Any]]
    vocabulary: str
    tokens: Annotated[int, Number("V")]
    edits: Annotated[list[str], Length("edits")]
    asked: Annotated[list[Asked], Length("asked")]
    prompts: Annotated[list[str], Length("n")]
    answers: Annotated[list[str], Length("n")]
    between: dict[str, Mean]
    counts: Annotated[Tensor, Int32s("n", least=1)]  # of the next tokens that are kept
    ids: Annotated[Tensor, Int32s("k", below="V")]
    logprobs: Annotated[Tensor, Floats("k")]
    rest: Annotated[Tensor, Floats("n")]
    lengths: Annotated[Tensor, Int32s("n")]  # of the answers, in tokens
    answer_ids: Annotated[Tensor, Int32s("m", below="V")]
    answer_logprobs: Annotated[Tensor, Floats("m")]

    # The file --------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Writes it to one file, whole or not at all. Raises :class:`BadInput`."""
        self.check_content()
        write_tensors(Path(path), self.tensors(), self.config(), "gold")
        return Path(path)

    @classmethod
    def load(cls, path: str | Path | None = None) -> Self:
        """The gold in a file; without one that of the bundled model.

        Raises :class:`BadInput` for any other file or a damaged one, and where no gold came with this installation.
        """
        path = path_of(True) if path is None else Path(path)
        tensors, header = read_tensors(path, "gold")
        try:
            made = cls.build(header, tensors)
            bound(made.declared())
            made.check_content()
        except BadInput as error:
            raise unreadable(path, error) from error
        return made

    def check_content(self) -> None:
        """Raises :class:`BadInput` for numbers that contradict each other."""
        for name, counts, values in (("counts", self.counts, self.ids), ("lengths", self.lengths, self.answer_ids)):
            if int(counts.long().sum()) != len(values):
                raise BadInput(f"{name} add up to {int(counts.long().sum())}, expected {len(values)}")
        if len(set(self.prompts)) < len(self.prompts) or len(set(self.edits)) < len(self.edits):
            raise BadInput("a prompt or an edit stands twice")
        if wrong := [kind for _, kind, _, _ in self.asked if kind not in METRICS]:
            raise BadInput(f"asked: no kind of probe is named {shown(wrong[0])}")
        if wrong := [number for *_, number in self.asked if not 0 <= number < len(self.prompts)]:
            raise BadInput(f"asked names the prompt {wrong[0]}, expected 0 to {len(self.prompts) - 1}")
        kinds = {kind for _, kind, _, _ in self.asked}
        if kinds != set(self.between) or not all(unit.mean > 0 for unit in self.between.values()):
            raise BadInput("between has no number above 0 for each kind that is asked, and for no other")
        for name in ("logprobs", "rest", "answer_logprobs"):
            if bool((getattr(self, name) > 1e-6).any()):
                raise BadInput(f"{name} holds the logarithm of a probability above 1")
        for i, (ids, outlook) in enumerate(zip(self._ids, self.outlooks, strict=True)):
            total = float(np.exp(outlook.first).sum() + np.exp(outlook.rest))
            begins = self._answer_ids[i][:1].tolist()
            if abs(total - 1) > 1e-3 or len(set(ids.tolist())) < len(ids) or not set(begins) <= set(ids.tolist()):
                raise BadInput(f"the next tokens of prompt {i} are no distribution that holds its answer")

    # What it is of ---------------------------------------------------------------------------------

    @property
    def about(self) -> About:
        """What it is of."""
        return About(self.model, self.data, self.vocabulary, self.edits)

    def is_of(self, edits: Iterable[Edit]) -> bool:
        """Whether these are its edits, in any order."""
        return self.about.is_of(edits)

    def check(self, lm: "HFLM", edits: Sequence[Edit]) -> None:
        """Raises :class:`BadInput` unless these are its edits, and :class:`WrongModel` for another model."""
        if not self.is_of(edits):
            shared = len({edit.id for edit in edits} & set(self.edits))
            raise BadInput(
                f"this is the gold of {len(self.edits)} edits ({self.data}); {shared} of them are among the "
                f"{len(edits)} edits that are in force: edit those, all of them and no others"
            )
        self.about.check_model(lm)

    @cached_property
    def digest(self) -> str:
        """Eight hexadecimal digits of all that it holds."""
        return checksum({"gold": json.dumps(self.config())}, self.tensors())[:8]

    # How far a model is ----------------------------------------------------------------------------

    @cached_property
    def outlooks(self) -> list[Outlook]:
        """What the retrained model expects behind each prompt."""
        first = _pieces(self.logprobs.double(), self.counts)
        answers = _pieces(self.answer_logprobs.double(), self.lengths)
        return [Outlook(*of) for of in zip(first, self.rest.double().tolist(), answers, strict=True)]

    @cached_property
    def _ids(self) -> list[np.ndarray]:
        return _pieces(self.ids.long(), self.counts)

    @cached_property
    def _answer_ids(self) -> list[np.ndarray]:
        return _pieces(self.answer_ids.long(), self.lengths)

    def divergences(self, lm: "LM") -> "Divergences":
        """KL(retrained ‖ model) behind each prompt, in nats; none, and why, where a verb is unsupported.

        Raises :class:`WrongModel` for a model with other tokens.
        """
        values: list[float] = []
        for start in range(0, len(self.prompts), CHUNK):
            chunk = range(start, min(start + CHUNK, len(self.prompts)))
            pairs = {i: (self.prompts[i], self.answers[i]) for i in chunk if len(self._answer_ids[i])}
            requests = Requests(scores=tuple(pairs.values()), next_logprobs=tuple(self.prompts[i] for i in chunk))
            replies = ask(lm, requests, Generation(), Generation())
            if (error := replies.error(requests)) is not None:
                return Divergences((), error)
            for i in chunk:
                row = replies.next_logprobs[self.prompts[i]]
                score = replies.scores[pairs[i]] if i in pairs else None
                if len(row) != self.tokens or (score and score.tokens != tuple(self._answer_ids[i].tolist())):
                    raise WrongModel(
                        f"{shown(self.answers[i])} has other tokens here than in the gold of {self.model['name']}, or "
                        f"there are {len(row)} tokens and not {self.tokens}; load the model with its own tokenizer"
                    )
                q = outlook_of(row, self._ids[i], score.logprobs if score else ())
                values.append(answer_kl(self.outlooks[i], q))
        return Divergences(tuple(values))

    def distances(self, lm: "LM") -> dict[str, Mean]:
        """Kind of probe -> the mean distance over cases, in units of that between retrainings.

        Empty where the model has no log-probabilities.
        """
        return self.folded(self.divergences(lm))

    def folded(self, of: "Divergences") -> dict[str, Mean]:
        """Kind -> the mean over cases of divergences, in units."""
        means = by_kind(self.asked, of.values) if of.values else {}
        return {kind: mean.times(1 / self.between[kind].mean) for kind, mean in means.items()}


@dataclass(frozen=True)
class Divergences:
    """KL(retrained ‖ model) behind each prompt, in nats, or an ``error`` in their place."""

    values: tuple[float, ...]
    error: str | None = None


def path_of(named: bool | str | None) -> Path:
    """The file of a gold that is named, or of the one that came with Errata.

    Raises :class:`BadInput` where that one is named (True) and none came.
    """
    if named is True and not GOLD.is_file():
        raise BadInput("no gold came with this installation; make one (`make gold`, `errata world gold`)")
    return Path(named) if isinstance(named, str) else GOLD


# Expectations ------------------------------------------------------------------------------------


def outlook_of(row: np.ndarray, ids: np.ndarray, answer: Sequence[float]) -> Outlook:
    """The outlook on these next tokens, of the log-probabilities of all (V,) and those of an answer's tokens.

    What is no number counts as impossible.
    """
    row, behind = (np.nan_to_num(np.asarray(x, np.float64), nan=-np.inf, neginf=-np.inf) for x in (row, answer))
    return Outlook(row[ids], float(np.logaddexp.reduce(np.delete(row, ids))), behind)


def by_kind(asked: Iterable[Asked], values: Sequence[float]) -> dict[str, Mean]:
    """Kind -> the mean over cases of their probes' values; ``values`` has an entry for each prompt."""
    of_kind: dict[str, list[tuple[str, float]]] = {}
    for case, kind, _, number in asked:
        of_kind.setdefault(kind, []).append((case, values[number]))
    return {kind: mean for kind, pairs in of_kind.items() if (mean := mean_over_cases(pairs)) is not None}


def _pieces(values: Tensor, counts: Tensor) -> list[np.ndarray]:
    return [piece.numpy() for piece in values.split(counts.tolist())]
