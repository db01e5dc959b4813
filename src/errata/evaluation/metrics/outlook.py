"""What a model expects behind a prompt, and how far another model's expectation is from it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

FLOOR = 2.0**-24  # the least probability that counts: float32 cannot tell one from 1 where less is left


@dataclass(frozen=True, eq=False)
class Outlook:
    """The probabilities of some ways to go on behind a prompt, as natural logarithms.

    ``first`` are those of some next tokens (k,), ``rest`` that of all others together; ``answer`` are those of the
    tokens of one answer, each behind the ones before it (m,). The answer's first token is among those of ``first``.
    """

    first: "np.ndarray"
    rest: float
    answer: "np.ndarray"


def answer_kl(p: Outlook, q: Outlook) -> float:
    """KL(P ‖ Q) of what follows a prompt, in nats, over a partition of it; both outlooks are of the same ways.

        Σ_i P(i) log P(i)/Q(i) + Σ_{t>1} P(y_<t) d(P(y_t | y_<t) ‖ Q(y_t | y_<t)),  d(a ‖ b) = a log a/b + ā log ā/b̄

    with i over the first tokens and the rest as one, y the answer and ā = 1 - a. By the chain rule that is the
    divergence of two distributions over the cells "begins with token i", "begins with any other" and "follows y up to
    its t-th token and leaves it there": never more than the divergence over all texts. No probability counts as less
    than 2⁻²⁴, so that one that is 0 in float32 costs 16.6 nats and not infinitely many.
    """
    import numpy as np

    logs = [np.maximum(np.append(of.first, of.rest), np.log(FLOOR)) for of in (p, q)]  # (k + 1,)
    first = np.sum(np.exp(np.append(p.first, p.rest)) * (logs[0] - logs[1]))
    a, b = (np.clip(np.exp(of.answer[1:]), FLOOR, 1 - FLOOR) for of in (p, q))  # (m - 1,)
    so_far = np.exp(np.cumsum(p.answer))[: len(a)]  # P(y_<t)
    return float(first + np.sum(so_far * (a * np.log(a / b) + (1 - a) * np.log((1 - a) / (1 - b)))))
