"""The baseline: what the unedited model replies to everything that some cases ask, asked once and kept as a value."""

import base64
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from errata.errors import BadInput, unknown
from errata.evaluation import protocols
from errata.evaluation.asking import Replies, Requests, ask
from errata.evaluation.groups import ProbeGroup, probe_groups, requests_of_required
from errata.evaluation.metrics import Tfidf
from errata.evaluation.scorers import SCORERS
from errata.files import write_text
from errata.inputs import parsed, read_text
from errata.types import MODES, Case, Mode, Score

if TYPE_CHECKING:
    from errata.model.lm import LM

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Baseline:
    """The unedited model's replies to everything that some cases ask, and the protocol and modes of the questions.

    ``idf`` are the word frequencies of all reference texts of these cases, which the reference score weighs words with.
    """

    protocol: protocols.Protocol
    modes: tuple[Mode, ...]
    replies: Replies
    idf: dict[str, float] = field(default_factory=dict[str, float])

    def save(self, path: str | Path) -> None:
        """Writes it as JSON, whole or not at all."""
        replies = self.replies
        answers = [[prompt, "", text] for prompt, text in replies.answers.items()]
        record = {
            "protocol": self.protocol.name,
            "modes": self.modes,
            "max_new_tokens": self.protocol.answer.tokens,
            "generated": [*answers, *([*pair, text] for pair, text in replies.texts.items())],
            "forced": [[*pair, asdict(score)] for pair, score in replies.scores.items()],
            "next": [[p, base64.b85encode(row.tobytes()).decode()] for p, row in replies.next_logprobs.items()],
            "unsupported": replies.unsupported,
            "idf": self.idf,
        }
        write_text(path, json.dumps(record))

    @classmethod
    def load(cls, path: str | Path) -> "Baseline":
        """What :meth:`save` wrote. Raises :class:`BadInput` for another file."""
        import numpy as np

        text = read_text(Path(path), "Baseline.load")
        try:
            record = parsed(text)
            generated = [(prompt, number, text) for prompt, number, text in record["generated"]]
            answers = {prompt: text for prompt, number, text in generated if not number}
            texts = {(prompt, number): text for prompt, number, text in generated if number}
            scores = {
                (prompt, target): Score(**{name: tuple(entries) for name, entries in score.items()})
                for prompt, target, score in record["forced"]
            }
            next_logprobs = {p: np.frombuffer(base64.b85decode(row), np.float32) for p, row in record["next"]}
            chosen = _with_tokens(protocols.protocol(record["protocol"]), record["max_new_tokens"])
            replies = Replies(answers, texts, scores, next_logprobs, record.get("unsupported", {}))
            return cls(chosen, tuple(record["modes"]), replies, record["idf"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise BadInput(f"{path} holds no baseline ({error}); make one with errata.baseline(lm, cases)") from error

    def groups(self, cases: Sequence[Case]) -> list[ProbeGroup]:
        """The probe groups of cases, by this protocol. Raises :class:`BadInput` where one was not asked before."""
        groups = groups_of(cases, self.protocol)
        for mode in self.modes:
            if missing := self.replies.missing(requests_of(groups, mode)):
                more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
                raise BadInput(
                    f"the baseline has no {mode} reply to {missing[0]!r}{more}; "
                    "make it on the unedited model with errata.baseline(lm, cases) of these cases"
                )
        return groups


def baseline(
    lm: "LM",
    cases: Sequence[Case],
    modes: Sequence[str] | None = None,
    max_new_tokens: int | None = None,
    *,
    protocol: "str | protocols.Protocol" = "errata",
) -> Baseline:
    """The model's replies before any edit; each distinct prompt of the cases is asked once.

    ``modes`` and the length of an answer are the protocol's own by default (of ``errata``: generated alone, 32 tokens).
    Where the model does not support what a mode needs, the rows of :func:`errata.evaluate` say so. Raises
    :class:`BadInput` where the protocol finds nothing to ask.
    """
    chosen = _with_tokens(protocols.protocol(protocol), max_new_tokens)
    in_modes = modes_of(chosen, modes)
    groups = groups_of(cases, chosen)
    if cases:
        check_asks(groups, chosen, in_modes)
    for text in dict.fromkeys(s.without for group in groups for mode in in_modes for _, s in group.left_out(mode)):
        log.warning("%s", text)
    replies = Replies()
    for mode in in_modes:
        replies |= ask(lm, requests_of(groups, mode), chosen.answer, chosen.text)
    references = dict.fromkeys(text for group in groups for probe in group.probes for text in probe.references)
    idf = Tfidf.of(references).idf if references and "reference" in chosen.scorers.get("generation", ()) else {}
    return Baseline(chosen, in_modes, replies, idf)


def check_asks(groups: Sequence[ProbeGroup], protocol: protocols.Protocol, modes: Sequence[Mode]) -> None:
    """Raises :class:`BadInput` where the groups of some cases give none of the protocol's numbers."""
    measured = {(group.kind, name) for group in groups for mode in modes for name, _ in group.scorers(mode)}
    known = [(kind, name) for mode in modes for kind in protocol.scorers for name in protocol.scorers_of(kind, mode)]
    wanted = [(kind, line.metric) for line in protocol.lines for kind in line.kinds] or known
    if measured.isdisjoint(wanted):
        scorers = [(kind, SCORERS.get((name, mode))) for kind, name in wanted for mode in modes]
        kinds = dict.fromkeys(kind for kind, scorer in scorers if scorer)
        needs = dict.fromkeys(need for _, scorer in scorers if scorer for need in (*scorer.needs, *scorer.labels))
        raise BadInput(
            f"the protocol {protocol.name} finds nothing to ask in these cases: it measures {', '.join(kinds)} "
            f"({' and '.join(modes)}){' by ' if needs else ''}{' and '.join(needs)}; "
            "take another protocol or mode, or cases that have these"
        )


def modes_of(protocol: protocols.Protocol, modes: Sequence[str] | None) -> tuple[Mode, ...]:
    """The modes in which a protocol is asked: its own, or those given. Raises :class:`BadInput` for others."""
    if modes is None:
        return protocol.modes
    chosen = (modes,) if isinstance(modes, str) else tuple(dict.fromkeys(modes))
    if not chosen:
        raise BadInput(f"no mode was given; expected one or more of {', '.join(MODES)}")
    for mode in chosen:
        if mode not in MODES:
            raise unknown("mode", mode, list(MODES))
        if mode not in (*protocol.modes, *protocol.also):
            raise BadInput(
                f"the protocol {protocol.name} asks nothing {mode}; its modes are {', '.join(protocol.modes)}"
            )
    return cast(tuple[Mode, ...], chosen)


def groups_of(cases: Iterable[Case], protocol: protocols.Protocol) -> list[ProbeGroup]:
    """The probe groups of all cases."""
    return [group for case in cases for group in probe_groups(case, protocol)]


def requests_of(groups: Iterable[ProbeGroup], mode: Mode) -> Requests:
    """All that must be asked before the edit: what scorers need, and what probes require."""
    groups = list(groups)
    required = [probe for group in groups for probe in group.required(mode)]
    return Requests.joined([*(group.requests(mode) for group in groups), requests_of_required(required, mode)])


def _with_tokens(protocol: protocols.Protocol, tokens: int | None) -> protocols.Protocol:
    return protocol if tokens is None else replace(protocol, answer=replace(protocol.answer, tokens=tokens))
