"""Probe groups: what becomes one row for each scorer. An edit's own prompt, a probe, or probes that count as one."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from errata.errors import Unsupported
from errata.evaluation.asking import Requests
from errata.evaluation.metrics import forced_accuracy
from errata.evaluation.protocols import Protocol
from errata.evaluation.scorers import SCORERS, GradedReplies, Scorer
from errata.types import Case, Edit, Mode, Probe

SAME_FACT = ("paraphrase", "question", "alias")  # kinds whose rival is the edit's old answer


@dataclass(frozen=True)
class ProbeGroup:
    """Probes of a case that are scored as one, in the protocol's form; ``name`` is the row's ``probe``."""

    case: str
    kind: str
    name: str
    probes: tuple[Probe, ...]
    protocol: Protocol

    def scorers(self, mode: Mode) -> list[tuple[str, Scorer]]:
        """Name and scorer of each that the protocol uses in this mode and that some of the probes are usable for."""
        return [(name, scorer) for name, scorer in self._known(mode) if scorer.usable(self.probes)]

    def left_out(self, mode: Mode) -> list[tuple[str, Scorer]]:
        """Those for which no probe is usable, and that say what would be needed."""
        known = self._known(mode) if self.probes else []
        return [(name, scorer) for name, scorer in known if scorer.without and not scorer.usable(self.probes)]

    def _known(self, mode: Mode) -> list[tuple[str, Scorer]]:
        names = self.protocol.scorers_of(self.kind, mode)
        return [(name, SCORERS[name, mode]) for name in names if (name, mode) in SCORERS]

    def requests(self, mode: Mode) -> Requests:
        """What the scorers need of a model."""
        return Requests.joined(scorer.requests(scorer.usable(self.probes)) for _, scorer in self.scorers(mode))

    def required(self, mode: Mode) -> list[Probe]:
        """The probes that must be answered before the edit, where anything is scored."""
        return list(_required(self.probes)) if self.scorers(mode) else []

    def compares_answers(self, mode: Mode) -> bool:
        """Whether answers are compared with the accepted ones, by the protocol's match or by a judge."""
        return any(not scorer.match for _, scorer in self.scorers(mode))

    def where_required(self, before: GradedReplies, mode: Mode) -> "ProbeGroup":
        """Only the probes whose required probes were all answered before the edit; all where that is not known."""
        if before.replies.error(requests_of_required(self.required(mode), mode)):
            return self
        kept = tuple(p for p in self.probes if all(_answered(required, before, mode) for required in p.require))
        return replace(self, probes=kept)

    def rows(
        self, mode: Mode, before: GradedReplies, after: GradedReplies, match: str, counted: "ProbeGroup"
    ) -> Iterator[dict[str, Any]]:
        """Row fields of each value, before and after; ``counted`` is the group :meth:`where_required`.

        A value is None, with the reason in ``error``, where what the scorer needs is unsupported. Where the protocol
        wants it, a first row says of each test whether its conditions held; one without conditions is executed.
        """
        if self.protocol.executed and self.kind != "edit":
            held = float(bool(counted.probes))
            yield self._row("executed", "conditions", held, held)
        for name, scorer in counted.scorers(mode):
            probes = scorer.usable(counted.probes)
            requests = scorer.requests(probes)
            why_before = before.replies.error(requests)
            error = why_before or after.replies.error(requests)
            try:
                was = None if why_before else scorer.value(probes, before, before)
                now = None if error else scorer.value(probes, before, after)
            except Unsupported as lacking:  # an encoder that is not installed
                was, now, error = None, None, str(lacking)
            yield self._row(name, scorer.match or match, was, now, error)
        for name, scorer in counted.left_out(mode):
            yield self._row(name, scorer.match or match, None, None, scorer.without)

    def _row(
        self, metric: str, match: str, before: float | None, after: float | None, error: str | None = None
    ) -> dict[str, Any]:
        names = {"case": self.case, "probe": self.name, "kind": self.kind, "metric": metric, "match": match}
        label = self.probes[0].label if self.probes else ""
        return {**names, "label": label, "before": before, "after": after, "error": error}


def probe_groups(case: Case, protocol: Protocol) -> Iterator[ProbeGroup]:
    """The groups of a case whose kind the protocol asks."""
    for edit in case.edits if "edit" in protocol.scorers else ():
        probe = Probe("paraphrase", protocol.formatted(edit.prompt), (edit.target_new,), rival=edit.target_true)
        yield ProbeGroup(case.id, "edit", edit.prompt, (probe,), protocol)
    grouped: dict[tuple[str, object], list[Probe]] = {}
    for number, probe in enumerate(case.probes):
        if probe.kind in protocol.scorers:
            alone = "generation" if probe.kind == "generation" else number  # all texts of a case are scored as one
            grouped.setdefault((probe.kind, alone if probe.group is None else probe.group), []).append(probe)
    for probes in grouped.values():
        name = probes[0].group or probes[0].prompt
        formatted = tuple(_formatted(probe, case.edits, protocol) for probe in probes)
        yield ProbeGroup(case.id, probes[0].kind, name, formatted, protocol)


def requests_of_required(probes: Sequence[Probe], mode: Mode) -> Requests:
    """What a model must be asked to know whether required probes are answered."""
    return SCORERS["accuracy", mode].requests(probes)


def _formatted(probe: Probe, edits: Sequence[Edit], protocol: Protocol) -> Probe:
    """The probe in the protocol's template; if it asks the edited fact, the old answer is the rival."""
    rival = probe.rival
    if rival is None and probe.kind in SAME_FACT:
        rival = next((edit.target_true for edit in edits if edit.target_new.strip() in probe.answers), None)
    require = tuple(_formatted(required, edits, protocol) for required in probe.require)
    return replace(probe, prompt=protocol.formatted(probe.prompt), rival=rival, require=require)


def _required(probes: Iterable[Probe]) -> Iterator[Probe]:
    """What the probes require, and what that requires in turn."""
    for probe in probes:
        yield from probe.require
        yield from _required(probe.require)


def _answered(probe: Probe, before: GradedReplies, mode: Mode) -> bool:
    """Whether the probe, and what it requires in turn, was answered right."""
    if not all(_answered(required, before, mode) for required in probe.require):
        return False
    if mode == "generated":
        return before.right(probe)
    return bool(forced_accuracy(before.score(probe, answer) for answer in probe.answers))
