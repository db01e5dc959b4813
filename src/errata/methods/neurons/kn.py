"""KN: find the few neurons that hold a fact up, and rewrite or erase what they say.

Dai et al. 2022, Knowledge Neurons in Pretrained Transformers, arXiv:2104.08696; the authors' code is
github.com/Hunter-DDM/knowledge-neurons. A neuron is a coordinate of a down projection's input, what it says is the
weight's column.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from errata.errors import BadInput, Unsupported
from errata.locate.attribution import Neuron, attributions, down_projection, shared, strongest
from errata.methods.base import Method, State, Tags, cached_state
from errata.methods.settings import setting
from errata.methods.texts import contexts_of
from errata.model.hf import HFLM
from errata.model.passes import exact
from errata.patch.delta import Delta, LowRank, Weight
from errata.patch.patch import Patch
from errata.types import Case, Edit

log = logging.getLogger(__name__)

FACTS = 8  # of a relation, in which the neurons common to it are looked for
ASKED = 3  # phrasings of each of them


@dataclass(frozen=True)
class Cloze:
    """A token of the new answer that the model would not say: what is ``given`` before it, the token it says, the new.

    The paper's answers are one token. Here each token of the new answer is a question of its own behind those before
    it, as the model will meet them: what both answers begin with needs no edit, nor does what the model says anyhow
    once it has begun (the rest of a name it can spell).
    """

    given: tuple[int, ...]
    old: int
    new: int


@dataclass(frozen=True)
class Found:
    """A neuron that holds up the old token of a cloze, and the sign of its activation behind the edit's own prompt."""

    neuron: Neuron
    cloze: Cloze
    sign: float


@dataclass(frozen=True, kw_only=True)
class KN(Method):
    """Columns of a few neurons, turned from the old answer to the new one, or set to zero.

    Neurons are those that several phrasings of the fact share. ``prepare`` learns from cases which prompts ask the
    same, and which neurons serve many facts of a relation and so none in particular; without it, the prompt is asked
    behind a few sampled openers. Where no neuron is shared the authors leave the fact; here the ``wanted[0]``
    strongest are taken. Answers of several tokens are edited token by token (:class:`Cloze`), each with neurons of
    its own.

    A column gains ``± ‖column‖ (add · ê_new − subtract · ê_old)``, ê the row of the output embedding at length 1 and
    the column that of the unedited model: edits that meet in a neuron add up and do not grow on each other. The sign is
    that of the activation: the paper's GELU neurons hold a fact up by being positive, those of gated MLPs as often by
    being negative.
    """

    name: ClassVar[str] = "kn"
    family: ClassVar[str] = "neuron attribution"
    paper: ClassVar[str] = "Dai et al. 2022, Knowledge Neurons in Pretrained Transformers, arXiv:2104.08696"
    stores: ClassVar[str] = "changed columns of down projections"
    tags: ClassVar[Tags] = Tags(quick={"phrasings": 1, "points": 5})

    mode: Literal["update", "erase"] = setting("update")
    points: int = setting(20, "experimental settings; at k/m of the activation, k = 1 … m", above=0)
    phrasings: int = setting(8, "at most, of one fact; the paper's data have some 9 on average", above=0)
    threshold: float = setting(0.2, "experimental settings: of the largest attribution in a phrasing")
    share: float = setting(0.7, "experimental settings: of the phrasings that must hold a neuron")
    least: int = setting(3, "released code: and at least so many of them")
    wanted: tuple[int, ...] = setting(
        (2, 5), "experimental settings: neurons of a fact, from and to; of more, the strongest"
    )
    step: float = setting(0.05, "experimental settings: by which the share is moved until there are so many")
    rounds: int = setting(6, "released code", above=0)
    common: float = setting(0.1, "released code: neurons in more of a relation's facts (and in two) are left alone")
    subtract: float = setting(1.0, "updating facts, λ1")
    add: float = setting(8.0, "updating facts, λ2")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.wanted) != 2 or not 1 <= self.wanted[0] <= self.wanted[1]:
            raise BadInput(f"kn's wanted are the fewest and the most neurons of a fact, as (2, 5); found {self.wanted}")
        if over := [name for name in ("threshold", "share", "common") if getattr(self, name) > 1]:
            raise BadInput(f"kn's {' and '.join(over)} must lie between 0 and 1")

    # What goes before ------------------------------------------------------------------------------

    def prepare(self, lm: HFLM, data: Iterable[Any] | None = None) -> State:
        """Prompts that ask the same, and the neurons common to a relation's facts; cached on disk.

        ``data`` are cases (by default those that go with the model, if any): the prompt of a case's edit and its
        paraphrases, with the subject taken out, belong together, and so do those of all cases that share one.
        """
        _check(lm)
        cases = _cases(data if data is not None else lm.resources.cases() if lm.resources.cases else ())
        if not cases:
            return State()
        groups = templates_of(cases)
        facts = _facts_of(groups, cases)
        ours = {name: value for name, value in self.settings.items() if name not in ("mode", "subtract", "add", "seed")}
        asked = [[edit.to_json() for edit in its] for its in facts]

        def make() -> State:
            tensors = {f"common/{g}": self._common(lm, groups[g], its) for g, its in enumerate(facts) if len(its) > 1}
            info = {
                "model": {"name": lm.name, "fingerprint": lm.fingerprint},
                "what": "prompts that ask the same, and neurons common to their relation",
                "groups": groups,
            }
            return State(tensors, info)

        return cached_state("neurons", [lm.fingerprint, groups, asked, ours], make)

    def _common(self, lm: HFLM, group: Sequence[str], facts: Sequence[Edit]) -> Tensor:
        """(k, 2): layer and coordinate of the neurons that too many of the facts share."""
        held: Counter[Neuron] = Counter()
        for fact in facts:
            prompts = _asked_otherwise(fact, group, ASKED)
            for cloze in clozes(lm, fact)[:1]:
                rows = [[*lm.tokens.prompt(prompt), *cloze.given] for prompt in prompts]
                held.update(self._shared(attributions(lm, [(row, cloze.old) for row in rows], self.points)))
        most = max(self.common * len(facts), 1)
        return torch.tensor(sorted(n for n, count in held.items() if count > most), dtype=torch.long).view(-1, 2)

    # The edit --------------------------------------------------------------------------------------

    def _edit(self, lm: HFLM, edits: Sequence[Edit], state: State, prior: Patch) -> Patch:
        _check(lm)
        prompts, common = self._known(lm, edits, state)
        found: list[Found] = []
        with prior.inside().applied(lm) as edited:
            for edit, asked, its in zip(edits, prompts, common, strict=True):
                found += self._find(edited, edit, asked, its)
            present = _columns(edited, [its.neuron for its in found]) if self.mode == "erase" else {}
        changes = self._updates(lm, found) if self.mode == "update" else {n: -column for n, column in present.items()}
        return prior + Patch((_delta(lm, changes),)) if changes else prior

    def _known(self, lm: HFLM, edits: Sequence[Edit], state: State) -> tuple[list[list[str]], list[Tensor | None]]:
        """For each edit its prompt and others that ask the same, and where the relation's common neurons are."""
        groups: list[list[str]] = state.info.get("groups", [])
        group_of = {template: g for g, group in enumerate(groups) for template in group}
        of = [group_of.get(template_of(edit.prompt, edit.subject)) for edit in edits]
        contexts = [""]
        if None in of and self.phrasings > 1:
            contexts = contexts_of(lm, self.phrasings - 1, self.seed)
            log.warning(
                "no other phrasings of %d of %d prompts are known: they are asked behind openers sampled from the "
                "model instead; prepare with cases that paraphrase them",
                of.count(None),
                len(edits),
            )
        prompts = [
            list(dict.fromkeys(context + edit.prompt for context in contexts))
            if g is None
            else _asked_otherwise(edit, groups[g], self.phrasings)
            for edit, g in zip(edits, of, strict=True)
        ]
        return prompts, [None if g is None else state.tensors.get(f"common/{g}") for g in of]

    def _find(self, lm: HFLM, edit: Edit, prompts: Sequence[str], common: Tensor | None) -> list[Found]:
        """The neurons of each token that must change (to erase: of the first of them)."""
        asked = clozes(lm, edit)[: 1 if self.mode == "erase" else None]
        if not asked:
            log.warning("the model already says %r to %r; nothing is changed", edit.target_new, edit.prompt)
        found: list[Found] = []
        for cloze in asked:
            rows = [[*lm.tokens.prompt(prompt), *cloze.given] for prompt in prompts]
            its = attributions(lm, [(row, cloze.old) for row in rows], self.points)
            free = torch.ones(its.shape[1:], dtype=torch.bool)
            if common is not None:
                free[common[:, 0], common[:, 1]] = False
            neurons = [neuron for neuron in self._shared(its) if free[neuron]]
            if not neurons:
                log.info("%r: no neuron is shared by its phrasings alone; the strongest are taken", edit.prompt)
                neurons = strongest(its, self.wanted[0], free)
            signs = _signs(lm, rows[0], neurons)
            found += [Found(neuron, cloze, sign) for neuron, sign in zip(neurons, signs, strict=True)]
        return found

    def _shared(self, its: Tensor) -> list[Neuron]:
        return shared(
            its,
            threshold=self.threshold,
            share=self.share,
            least=self.least,
            wanted=(self.wanted[0], self.wanted[1]),
            step=self.step,
            rounds=self.rounds,
        )

    def _updates(self, lm: HFLM, found: Sequence[Found]) -> dict[Neuron, Tensor]:
        """What each column gains, (d,)."""
        columns = _columns(lm, [its.neuron for its in found])
        changes = {neuron: torch.zeros_like(column) for neuron, column in columns.items()}
        for its in found:
            column = columns[its.neuron]
            old, new = _directions(lm, [its.cloze.old, its.cloze.new], len(column))
            changes[its.neuron] += its.sign * column.norm() * (self.add * new - self.subtract * old)
        return changes


# Prompts that ask the same -----------------------------------------------------------------------


def template_of(prompt: str, subject: str) -> str:
    """The prompt with ``{}`` where the subject stands."""
    return prompt.replace(subject, "{}")


def templates_of(cases: Iterable[Case]) -> list[list[str]]:
    """Templates in groups that ask the same relation, in the order in which they were met."""
    group_of: dict[str, dict[str, None]] = {}
    for case in cases:
        if len(case.edits) != 1:  # whose paraphrase it is would be a guess
            continue
        edit = case.edits[0]
        its = [edit.prompt, *(p.prompt for p in case.probes if p.kind == "paraphrase" and edit.subject in p.prompt)]
        templates = [template_of(prompt, edit.subject) for prompt in its]
        joined = dict.fromkeys(other for template in templates for other in group_of.get(template, [template]))
        for template in joined:
            group_of[template] = joined
    return [list(group) for group in {id(group): group for group in group_of.values()}.values()]


def _facts_of(groups: Sequence[Sequence[str]], cases: Sequence[Case]) -> list[list[Edit]]:
    """For each group, a few facts that are asked by it."""
    group_of = {template: g for g, group in enumerate(groups) for template in group}
    facts: list[list[Edit]] = [[] for _ in groups]
    for case in cases:
        for edit in case.edits:
            g = group_of.get(template_of(edit.prompt, edit.subject))
            if g is not None and len(facts[g]) < FACTS:
                facts[g].append(edit)
    return facts


def _asked_otherwise(edit: Edit, group: Sequence[str], most: int) -> list[str]:
    """The edit's prompt, and its sisters for the same subject."""
    sisters = (template.replace("{}", edit.subject) for template in group)
    return list(dict.fromkeys([edit.prompt, *sisters]))[:most]


def _cases(data: Iterable[Any]) -> list[Case]:
    cases = list(data)
    for case in cases:
        if not isinstance(case, Case):
            raise BadInput(f"kn prepares with cases, which paraphrase an edit; found {type(case).__name__}: {case!r}")
    return cases


# Answers and columns -----------------------------------------------------------------------------


@torch.no_grad()
def clozes(lm: HFLM, edit: Edit) -> list[Cloze]:
    """Where the new answer parts from what the model says, token by token.

    What it says is ``target_true`` where that is given and has begun like the new answer so far, else its own choice.
    """
    prompt, new = lm.tokens.prompt(edit.prompt), lm.tokens.target(edit.prompt, edit.target_new)
    true = [] if edit.target_true is None else lm.tokens.target(edit.prompt, edit.target_true)
    says: list[int] = lm.target_logits([(prompt, new)]).argmax(-1).tolist()
    for j in range(min(len(new), len(true))):
        if true[:j] == new[:j]:
            says[j] = true[j]
    return [Cloze(tuple(new[:j]), says[j], new[j]) for j in range(len(new)) if says[j] != new[j]]


def _signs(lm: HFLM, row: Sequence[int], neurons: Sequence[Neuron]) -> list[float]:
    """Of each neuron's activation at the last token of a row: 1 or −1."""
    sites = [(lm.sites.mlp_out[layer], "in") for layer in sorted({layer for layer, _ in neurons})]
    seen = lm.read([row], [[len(row) - 1]], sites)
    return [-1.0 if seen[lm.sites.mlp_out[layer], "in"][0, i] < 0 else 1.0 for layer, i in neurons]


def _columns(lm: HFLM, neurons: Sequence[Neuron]) -> Mapping[Neuron, Tensor]:
    """(d,) for each neuron: its column in the down projection as it is now, on the CPU."""
    found: dict[Neuron, Tensor] = {}
    for layer in sorted({layer for layer, _ in neurons}):
        weight = down_projection(lm, layer)
        found |= {(at, i): weight[:, i].clone().cpu() for at, i in neurons if at == layer}
    return found


def _directions(lm: HFLM, tokens: Sequence[int], width: int) -> Tensor:
    """(n, d): the output embeddings of tokens, at length 1."""
    weight = lm.model.get_parameter(f"{lm.sites.lm_head}.weight").detach()  # (V, d)
    if weight.device.type == "meta" or not weight.is_floating_point() or weight.shape[1] != width:
        raise Unsupported(
            f"kn writes output embeddings into columns of width {width}; here {lm.sites.lm_head}.weight is offloaded, "
            f"quantised or of another width ({tuple(weight.shape)}): choose another method"
        )
    rows = exact(weight[list(tokens)]).cpu()
    return rows / rows.norm(dim=1, keepdim=True)


def _delta(lm: HFLM, changes: Mapping[Neuron, Tensor]) -> Delta:
    """One rank for each changed column."""
    weights: dict[str, Weight] = {}
    for layer in sorted({layer for layer, _ in changes}):
        its = sorted(i for at, i in changes if at == layer)
        a = torch.stack([changes[layer, i] for i in its], 1).float()  # (d, r)
        b = torch.zeros(len(its), down_projection(lm, layer).shape[1])  # (r, f)
        b[range(len(its)), its] = 1
        weights[f"{lm.sites.mlp_out[layer]}.weight"] = LowRank(a, b).compact()
    return Delta(weights)


def _check(lm: HFLM) -> None:
    if lm.seq2seq:
        raise Unsupported("kn finds neurons in decoder-only models; use a fine-tuning method on an encoder-decoder")
