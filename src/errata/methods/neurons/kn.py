"""KN: find the few neurons that a fact depends on, and rewrite or erase what they add.

Dai et al. 2022, Knowledge Neurons in Pretrained Transformers, arXiv:2104.08696; the authors' code is
github.com/Hunter-DDM/knowledge-neurons. A neuron is a coordinate of a down projection's input; what it adds to the
hidden state is the weight's column.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import TypedDict, override

from errata.errors import BadInput, Unsupported
from errata.locate.attribution import Neuron, attributions, check_attributes, down_projection, shared, strongest
from errata.methods.base import Method, Tags
from errata.methods.settings import setting
from errata.methods.state import State, cached_state
from errata.model.hf import HFLM
from errata.model.passes import at_least_float32
from errata.model.texts import contexts_of
from errata.model.weights import plain, weight_shape
from errata.patch.delta import Delta
from errata.patch.low_rank import LowRank, Weight
from errata.patch.patch import Patch
from errata.patch.schema import Ints
from errata.phrasings import facts_of, group_index, rephrased, templates_of
from errata.types import Case, Edit

log = logging.getLogger(__name__)

COMMON_FACTS = 8  # of a relation, in which the neurons common to it are looked for
COMMON_PHRASINGS = 3  # of each of them


@dataclass(frozen=True)
class TokenChange:
    """A token of the new answer that the model does not predict: the answer's tokens before it, the predicted, the new.

    The paper's answers are one token. Here each token of the new answer is edited by itself behind those before it, as
    they precede it when the model decodes: what both answers begin with needs no edit, nor does what the model predicts
    once the answer has begun (the rest of a name it can spell). ``written``: an earlier edit of the prompt put the old
    one there.
    """

    prefix: tuple[int, ...]
    old: int
    new: int
    written: bool = False


@dataclass(frozen=True)
class LocatedNeuron:
    """A neuron that raises the old token of a change, and the sign of its activation behind the edit's own prompt."""

    neuron: Neuron
    change: TokenChange
    sign: float


class Groups(TypedDict):
    """What KN's state says besides the neurons common to a group: prompts that ask for the same relation."""

    groups: list[list[str]]


@dataclass(frozen=True, kw_only=True)
class KN(Method):
    """Columns of a few neurons, turned from the old answer to the new one, or set to zero.

    Neurons are those that several phrasings of the fact share. ``prepare`` learns from cases which prompts ask for the
    same relation, and which neurons serve many facts of a relation and so none in particular; without it, the prompt
    is put behind a few sampled openers. Where no neuron is shared the authors leave the fact; here the ``neurons[0]``
    strongest are taken. Answers of several tokens are edited token by token (:class:`TokenChange`), each with neurons
    of its own.

    A column gains ``± ‖column‖ (add · ê_new − subtract · ê_old)``, ê the row of the output embedding at length 1 and
    the column that of the unedited model: edits that meet in a neuron add up and do not grow on each other. What an
    earlier edit of the prompt wrote is subtracted as often as it was added, and once more. The sign is that of the
    activation: the paper's GELU neurons raise an answer by being positive, those of gated MLPs as often by being
    negative.
    """

    name: ClassVar[str] = "kn"
    family: ClassVar[str] = "neuron attribution"
    paper: ClassVar[str] = "Dai et al. 2022, Knowledge Neurons in Pretrained Transformers, arXiv:2104.08696"
    stores: ClassVar[str] = "changed columns of down projections"
    tags: ClassVar[Tags] = Tags(quick={"phrasings": 1, "points": 5}, mixtures=False, restates=True)
    holds: ClassVar[type[Any] | None] = Groups

    mode: Literal["update", "erase"] = setting("update")
    points: int = setting(20, "experimental settings; at k/m of the activation, k = 1 … m", key="steps", above=0)
    phrasings: int = setting(8, "at most, of one fact; the paper's data have some 9 on average", above=0)
    threshold: float = setting(
        0.2, "experimental settings: of the largest attribution in a phrasing", key="threshold_ratio"
    )
    share: float = setting(0.7, "experimental settings: of the phrasings that must hold a neuron", key="mode_ratio_bag")
    min_phrasings: int = setting(3, "released code: and at least so many of them", key="min_threshold")
    neurons: tuple[int, ...] = setting((2, 5), "experimental settings: of a fact, from and to; of more, the strongest")
    step: float = setting(0.05, "experimental settings: by which the share is moved until there are so many")
    rounds: int = setting(6, "released code", above=0)
    common: float = setting(
        0.1,
        "released code: neurons in more of a relation's facts (and in two) are left alone",
        key="mode_ratio_rel",
    )
    subtract: float = setting(1.0, "updating facts, λ1")
    add: float = setting(8.0, "updating facts, λ2")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.neurons) != 2 or not 1 <= self.neurons[0] <= self.neurons[1]:
            raise BadInput(
                f"kn's neurons are the fewest and the most neurons of a fact, as (2, 5); found {self.neurons}"
            )
        if over := [name for name in ("threshold", "share", "common") if getattr(self, name) > 1]:
            raise BadInput(f"kn's {' and '.join(over)} must lie between 0 and 1")

    # Phrasings, and neurons common to a relation ------------------------------------------------------

    def prepare(self, lm: HFLM, data: Iterable[Any] | None = None) -> State:
        """Prompts that ask for the same relation, and the neurons common to its facts; cached on disk.

        ``data`` are cases, by default those that go with the model, if any.
        """
        _check(lm)
        cases = _cases(data if data is not None else lm.resources.cases() if lm.resources.cases else ())
        if not cases:
            return State()
        groups = templates_of(cases)
        facts = facts_of(groups, cases, COMMON_FACTS)
        update_only = ("mode", "subtract", "add", "seed")
        settings = {name: value for name, value in self.settings.items() if name not in update_only}

        def make() -> State:
            common = {f"common/{g}": self._common(lm, groups[g], edits) for g, edits in enumerate(facts) if edits[1:]}
            info = {
                "model": {"name": lm.name, "fingerprint": lm.fingerprint},
                "what": "prompts that ask the same, and neurons common to their relation",
                "groups": groups,
            }
            return State(common, info)

        edits = [[edit.to_json() for edit in of_group] for of_group in facts]
        content = [lm.fingerprint, groups, edits, settings, *lm.tokens.turn]
        return cached_state("neurons", content, make, lambda state: self.check_state(lm, state))

    @override
    def check_state(self, lm: HFLM, state: State) -> None:
        super().check_state(lm, state)
        for name in state.tensors:
            common = state.tensor(name, Ints("* 2"))
            widths = [weight_shape(lm.model, f"{path}.weight")[1] for path in lm.sites.mlp_out]
            if strange := [(layer, i) for layer, i in common.tolist() if layer >= len(widths) or i >= widths[layer]]:
                raise BadInput(f"this state names the neuron {strange[0]}, which is none of this model; prepare anew")

    def _common(self, lm: HFLM, group: Sequence[str], facts: Sequence[Edit]) -> Tensor:
        """(k, 2): layer and coordinate of the neurons that too many of the facts share."""
        counts: Counter[Neuron] = Counter()
        for fact in facts:
            prompts = rephrased(fact, group, COMMON_PHRASINGS)
            for change in token_changes(lm, fact)[:1]:
                counts.update(self._shared(self._attributions(lm, prompts, change)))
        most = max(self.common * len(facts), 1)
        return torch.tensor(sorted(n for n, count in counts.items() if count > most), dtype=torch.long).view(-1, 2)

    def _phrasings(self, lm: HFLM, edits: Sequence[Edit], state: State) -> tuple[list[list[str]], list[Tensor | None]]:
        """For each edit its prompt and others that ask the same, and where the relation's common neurons are."""
        groups: list[list[str]] = state.info.get("groups", [])
        group_of = group_index(groups)
        numbers = [group_of.get(edit.template) for edit in edits]
        contexts = [""]
        if None in numbers and self.phrasings > 1:
            contexts = contexts_of(lm, self.phrasings - 1, self.seed)
            log.warning(
                "no other phrasings of %d of %d prompts are known: they are asked behind openers sampled from the "
                "model instead; prepare with cases that paraphrase them",
                numbers.count(None),
                len(edits),
            )
        prompts = [
            list(dict.fromkeys(context + edit.prompt for context in contexts))
            if g is None
            else rephrased(edit, groups[g], self.phrasings)
            for edit, g in zip(edits, numbers, strict=True)
        ]
        return prompts, [None if g is None else state.tensors.get(f"common/{g}") for g in numbers]

    # The edit -----------------------------------------------------------------------------------------

    def _edit(self, lm: HFLM, edits: Sequence[Edit], state: State, prior: Patch) -> Patch:
        _check(lm)
        phrasings, common = self._phrasings(lm, edits, state)
        located: list[LocatedNeuron] = []
        records = [made["edits"] for made in prior.meta.get("made", ()) if made["method"] == self.name]
        earlier = {edit["prompt"]: edit["target_new"] for of_call in records for edit in of_call}
        with prior.without_wrappers().applied(lm) as edited:
            for edit, prompts, excluded in zip(edits, phrasings, common, strict=True):
                located += self._locate(edited, edit, prompts, excluded, earlier.get(edit.prompt))
            present = _columns(edited, [one.neuron for one in located]) if self.mode == "erase" else {}
        gains = self._updates(lm, located) if self.mode == "update" else {n: -column for n, column in present.items()}
        return prior + Patch((_delta(lm, gains),)) if gains else prior

    def _locate(
        self,
        lm: HFLM,
        edit: Edit,
        prompts: Sequence[str],
        excluded: Tensor | None,
        earlier: str | None = None,
    ) -> list[LocatedNeuron]:
        """The neurons of each token that must change (to erase: of the first of them)."""
        changes = token_changes(lm, edit, earlier)[: 1 if self.mode == "erase" else None]
        if not changes:
            log.warning("the model already says %r to %r; nothing is changed", edit.target_new, edit.prompt)
        located: list[LocatedNeuron] = []
        for change in changes:
            attribution = self._attributions(lm, prompts, change)
            free = torch.ones(attribution.shape[1:], dtype=torch.bool)
            if excluded is not None:
                free[excluded[:, 0], excluded[:, 1]] = False
            neurons = [neuron for neuron in self._shared(attribution) if free[neuron]]
            if not neurons:
                log.info("%r: no neuron is shared by its phrasings alone; the strongest are taken", edit.prompt)
                neurons = strongest(attribution, self.neurons[0], free)
            signs = _signs(lm, [*lm.tokens.prompt(prompts[0]), *change.prefix], neurons)
            located += [LocatedNeuron(neuron, change, sign) for neuron, sign in zip(neurons, signs, strict=True)]
        return located

    def _attributions(self, lm: HFLM, prompts: Sequence[str], change: TokenChange) -> Tensor:
        """(prompts, layers, f): what each neuron adds to the old token's probability behind each prompt."""
        rows = [[*lm.tokens.prompt(prompt), *change.prefix] for prompt in prompts]
        return attributions(lm, [(row, change.old) for row in rows], self.points)

    def _shared(self, attribution: Tensor) -> list[Neuron]:
        return shared(
            attribution,
            threshold=self.threshold,
            share=self.share,
            least=self.min_phrasings,
            bounds=(self.neurons[0], self.neurons[1]),
            step=self.step,
            rounds=self.rounds,
        )

    def _updates(self, lm: HFLM, located: Sequence[LocatedNeuron]) -> dict[Neuron, Tensor]:
        """What each column gains, (d,)."""
        columns = _columns(lm, [one.neuron for one in located])
        gains = {neuron: torch.zeros_like(column) for neuron, column in columns.items()}
        for one in located:
            column = columns[one.neuron]
            old, new = _directions(lm, [one.change.old, one.change.new], len(column))
            subtract = self.subtract + (self.add if one.change.written else 0.0)
            gains[one.neuron] += one.sign * column.norm() * (self.add * new - subtract * old)
        return gains


def _cases(data: Iterable[Any]) -> list[Case]:
    cases = list(data)
    for case in cases:
        if not isinstance(case, Case):
            raise BadInput(f"kn prepares with cases, which paraphrase an edit; found {type(case).__name__}: {case!r}")
    return cases


# Answers and columns -----------------------------------------------------------------------------


@torch.no_grad()
def token_changes(lm: HFLM, edit: Edit, earlier: str | None = None) -> list[TokenChange]:
    """Where the new answer differs from the old one, token by token.

    The old token is that of the answer of an ``earlier`` edit of the prompt, or ``target_true``'s, where that is given
    and has begun like the new answer so far, else the one that the model predicts.
    """
    prompt, new = lm.tokens.prompt(edit.prompt), lm.tokens.target(edit.prompt, edit.target_new)
    true, wrote = (
        [] if answer is None else lm.tokens.target(edit.prompt, answer) for answer in (edit.target_true, earlier)
    )
    old: list[int] = lm.target_logits([(prompt, new)]).argmax(-1).tolist()
    written = [j < len(wrote) and wrote[:j] == new[:j] for j in range(len(new))]
    for j in range(len(new)):
        if written[j]:
            old[j] = wrote[j]
        elif j < len(true) and true[:j] == new[:j]:
            old[j] = true[j]
    return [TokenChange(tuple(new[:j]), old[j], new[j], written[j]) for j in range(len(new)) if old[j] != new[j]]


def _signs(lm: HFLM, row: Sequence[int], neurons: Sequence[Neuron]) -> list[float]:
    """Of each neuron's activation at the last token of a row: 1 or −1."""
    sites = [(lm.sites.mlp_out[layer], "in") for layer in sorted({layer for layer, _ in neurons})]
    keys = lm.read([row], [[len(row) - 1]], sites)
    return [-1.0 if keys[lm.sites.mlp_out[layer], "in"][0, i] < 0 else 1.0 for layer, i in neurons]


def _columns(lm: HFLM, neurons: Sequence[Neuron]) -> Mapping[Neuron, Tensor]:
    """(d,) for each neuron: its column in the down projection as it is now, on the CPU."""
    columns: dict[Neuron, Tensor] = {}
    for layer in sorted({layer for layer, _ in neurons}):
        weight = down_projection(lm, layer)
        columns |= {(at, i): weight[:, i].clone().cpu() for at, i in neurons if at == layer}
    return columns


def _directions(lm: HFLM, tokens: Sequence[int], width: int) -> Tensor:
    """(n, d): the output embeddings of tokens, at length 1."""
    name = f"{lm.sites.lm_head}.weight"
    weight = plain(lm.model, name, "kn writes its rows into other weights").detach()  # (V, d)
    if weight.shape[1] != width:
        raise Unsupported(
            f"kn writes output embeddings into columns of width {width}; here {name} is of another width "
            f"({tuple(weight.shape)}): choose another method"
        )
    rows = at_least_float32(weight[list(tokens)]).cpu()
    return rows / rows.norm(dim=1, keepdim=True)


def _delta(lm: HFLM, changes: Mapping[Neuron, Tensor]) -> Delta:
    """One rank for each changed column."""
    weights: dict[str, Weight] = {}
    for layer in sorted({layer for layer, _ in changes}):
        coordinates = sorted(i for at, i in changes if at == layer)
        a = torch.stack([changes[layer, i] for i in coordinates], 1).float()  # (d, r)
        b = torch.zeros(len(coordinates), down_projection(lm, layer).shape[1])  # (r, f)
        b[range(len(coordinates)), coordinates] = 1
        weights[f"{lm.sites.mlp_out[layer]}.weight"] = LowRank(a, b).compact()
    return Delta(weights)


def _check(lm: HFLM) -> None:
    if lm.seq2seq:
        raise Unsupported("kn finds neurons in decoder-only models; use a fine-tuning method on an encoder-decoder")
    check_attributes(lm)
