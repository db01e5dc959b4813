"""What an MLP sees of a subject: its keys, in the edit's prompt and after other texts."""

from collections.abc import Sequence

import torch
from torch import Tensor

from errata.errors import BadInput
from errata.lm import HFLM
from errata.types import Edit

CONTEXT_TOKENS = 24  # at most, cut after the first sentence where one ends before


def contexts_of(lm: HFLM, n: int, seed: int) -> list[str]:
    """The empty context and ``n`` short texts to stand before a prompt, sampled from the model itself.

    ROME and MEMIT sample prefixes of 5 to 10 tokens and put a full stop behind; here a sample ends where its own
    first sentence ends, if it does within CONTEXT_TOKENS.
    """
    length = min(CONTEXT_TOKENS, max(2, (lm.tokens.limit or 4 * CONTEXT_TOKENS) // 4))
    sampled = lm.sample([""] * n, length, seed=seed) if n else []
    return ["", *(_sentence(lm.tokens.decode(ids)) for ids in sampled)]


def _sentence(text: str) -> str:
    text = " ".join(text.split())
    end = text.find(". ")
    text = text[: end + 1] if end > 0 else text
    return f"{text} " if text.endswith((".", "!", "?")) or not text else f"{text}. "


def at_subjects(
    lm: HFLM, edits: Sequence[Edit], contexts: Sequence[str], sites: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], Tensor]:
    """site -> (n, contexts, width): what flows there at each subject's last token, after each context."""
    rows: list[list[int]] = []
    columns: list[list[int]] = []
    for edit in edits:
        for context in contexts:
            text = context + edit.prompt
            at = lm.tokens.last_of_subject(text, edit.subject)
            rows.append(lm.tokens.prompt(text)[: at + 1])
            columns.append([at])
    if lm.seq2seq:
        raise BadInput("keys at a subject are read in decoder-only models; use a fine-tuning method here")
    seen = lm.read(rows, columns, sites)
    return {site: values.view(len(edits), len(contexts), -1) for site, values in seen.items()}


def mean_over(contexts: int, *, by_type: bool) -> Tensor:
    """(contexts,) weights of a mean over contexts; ``by_type`` the empty one counts as much as all others (MEMIT)."""
    if by_type and contexts > 1:
        return torch.tensor([0.5] + [0.5 / (contexts - 1)] * (contexts - 1))
    return torch.full((contexts,), 1 / contexts)
