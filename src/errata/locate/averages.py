"""The average of causal traces over facts, by the role of a token."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from errata.errors import BadInput
from errata.locate.tracing import Trace, lists_of

ROLES = (
    "first subject token",
    "middle subject tokens",
    "last subject token",
    "first token after",
    "further tokens",
    "last token",
)


@dataclass(frozen=True, eq=False)
class Average:
    """The average indirect effect over facts by the role of a token (ROME, figure 2), with its standard error.

    A role that no fact has is NaN (null in JSON), and so is the error of a role that only one fact has.
    """

    facts: int
    """Number of facts."""
    clean: float
    """Mean P(o), nothing changed."""
    corrupted: float
    """Mean P*(o) of the corrupted runs."""
    counts: Mapping[str, int]
    """Role -> number of facts that have such a token."""
    effects: Mapping[str, Tensor]
    """Kind of state -> mean effect (roles, layers)."""
    errors: Mapping[str, Tensor]
    """Kind of state -> standard error of the mean (roles, layers)."""

    def to_json(self) -> dict[str, Any]:
        """A record for JSON: the fields, and ``roles``."""
        return {**vars(self), "roles": ROLES, "effects": lists_of(self.effects), "errors": lists_of(self.errors)}


def average(traces: Sequence[Trace]) -> Average:
    """The mean effect by role of the token; several tokens of one role in a fact count as their mean.

    Each token has one role: the prompt's last token is always ``last token``, and a subject of one token is its last.
    Raises :class:`BadInput` for no traces, or traces of different kinds or depths.
    """
    if not traces:
        raise BadInput("no trace was given to average")
    shapes = {tuple((kind, table.shape[1]) for kind, table in trace.effects.items()) for trace in traces}
    if len(shapes) > 1:
        raise BadInput(f"traces of different kinds or depths cannot be averaged; found {len(shapes)} sorts")
    effects: dict[str, Tensor] = {}
    errors: dict[str, Tensor] = {}
    for kind in traces[0].effects:
        by_fact = torch.stack([_by_role(trace, trace.effects[kind]) for trace in traces])  # (n, roles, layers)
        count = (~by_fact.isnan()).sum(0)
        effects[kind] = by_fact.nanmean(0)
        squares = (by_fact - effects[kind]).square().nansum(0)
        errors[kind] = torch.where(count > 1, (squares / (count - 1) / count).sqrt(), math.nan)
    present = [set(_roles(trace)) for trace in traces]
    return Average(
        facts=len(traces),
        clean=sum(trace.clean for trace in traces) / len(traces),
        corrupted=sum(trace.corrupted for trace in traces) / len(traces),
        counts={name: sum(i in roles for roles in present) for i, name in enumerate(ROLES)},
        effects=effects,
        errors=errors,
    )


def _roles(trace: Trace) -> list[int | None]:
    """The role of each token, as an index of ROLES; None before the subject."""
    (first, end), n = trace.subject, len(trace.tokens)

    def role(i: int) -> int | None:
        if i < first:
            return None
        if i == n - 1:
            return 5
        if i < end:
            return 2 if i == end - 1 else 0 if i == first else 1
        return 3 if i == end else 4

    return [role(i) for i in range(n)]


def _by_role(trace: Trace, effect: Tensor) -> Tensor:
    """The mean over the tokens of each role, NaN where there is none. (roles, layers)."""
    roles = _roles(trace)
    rows = [[i for i, role in enumerate(roles) if role == index] for index in range(len(ROLES))]
    return torch.stack([effect[some].mean(0) for some in rows])  # the mean of nothing is NaN
