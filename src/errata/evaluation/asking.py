"""What a model is asked and what it replied: the only module here that calls the verbs of an :class:`LM`."""

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, cast

from errata.answers import complete, cut, room
from errata.errors import BadInput, Unsupported
from errata.types import Score

if TYPE_CHECKING:
    import numpy as np

    from errata.model.lm import LM

Pair = tuple[str, str]  # a prompt with a target, or with the number of a text ("text 2") that continues it


@dataclass(frozen=True, kw_only=True)
class Generation:
    """How a reply is generated, and which part of it is kept.

    At most ``tokens`` new tokens; or, with ``total``, as many as make prompt and continuation that long together.
    ``top_k`` above 1 samples among the k likeliest tokens and goes on past an end token, as ROME's generator does. The
    text is cut before the first of ``stops``, and behind the last of ``markers``; ``with_prompt`` prepends the prompt.
    A stop inside an accepted answer is none, but with ``blind``. With ``grows`` there is room for the longest accepted
    answer, whatever ``tokens`` says.
    """

    tokens: int = 32
    grows: bool = False
    total: Callable[[str], int] | None = None
    top_k: int = 1
    until_answer: bool = True
    stops: tuple[str, ...] = ()
    blind: bool = False
    markers: tuple[str, ...] = ()
    with_prompt: bool = False


@dataclass(frozen=True)
class Requests:
    """What to ask a model, each entry once: prompts to answer, texts to write, targets to score, next tokens.

    ``whole`` are a prompt and an accepted answer with a full stop inside, or a long one: there no reply is cut.
    """

    answers: tuple[str, ...] = ()
    texts: tuple[Pair, ...] = ()
    scores: tuple[Pair, ...] = ()
    next_logprobs: tuple[str, ...] = ()
    whole: tuple[Pair, ...] = ()

    @classmethod
    def joined(cls, several: Iterable["Requests"]) -> "Requests":
        """All of them as one, without repetitions."""
        several = list(several)
        names = (entry.name for entry in fields(cls))
        return cls(*(tuple(dict.fromkeys(key for one in several for key in getattr(one, name))) for name in names))


KINDS = ("answers", "texts", "scores", "next_logprobs")  # of requests, in the order of the fields of replies


@dataclass(frozen=True)
class Replies:
    """What a model replied, by request. ``unsupported`` maps a kind of request to the reason why it has no replies."""

    answers: Mapping[str, str] = field(default_factory=dict[str, str])
    texts: Mapping[Pair, str] = field(default_factory=dict[Pair, str])
    scores: Mapping[Pair, Score] = field(default_factory=dict[Pair, Score])
    next_logprobs: Mapping[str, "np.ndarray"] = field(default_factory=dict)  # natural log-probabilities (V,)
    unsupported: Mapping[str, str] = field(default_factory=dict[str, str])

    def __or__(self, other: "Replies") -> "Replies":
        return Replies(*({**mine, **new} for mine, new in zip(vars(self).values(), vars(other).values(), strict=True)))

    def error(self, requests: Requests) -> str | None:
        """Why some of the requests have no reply; None where nothing that they need is unsupported."""
        return next((why for kind, why in self.unsupported.items() if getattr(requests, kind)), None)

    def missing(self, requests: Requests) -> list[str]:
        """Prompts of supported requests that were not asked."""
        supported = [(kind, key) for kind in KINDS if kind not in self.unsupported for key in getattr(requests, kind)]
        return [key if isinstance(key, str) else key[0] for kind, key in supported if key not in getattr(self, kind)]


def ask(lm: "LM", requests: Requests, answer: Generation, text: Generation) -> Replies:
    """The model's replies, with ``answer`` and ``text`` for the two kinds of generation.

    A verb that is :class:`Unsupported` gives no replies of its kind, and a reason.
    """
    whole: dict[str, list[str]] = {}
    for prompt, accepted in () if answer.blind else requests.whole:
        whole.setdefault(prompt, []).append(accepted)
    verbs: Mapping[str, Callable[[Sequence[Any]], Iterable[Any]]] = {
        "answers": lambda prompts: _answers(lm, prompts, answer, whole),
        "texts": lambda pairs: generate(lm, pairs, text),
        "scores": lambda pairs: lm.score([prompt for prompt, _ in pairs], [target for _, target in pairs]),
        "next_logprobs": lambda prompts: lm.next_logprobs(prompts).astype("float32"),
    }
    replies: dict[str, dict[Any, Any]] = {}
    unsupported: dict[str, str] = {}
    for kind in KINDS:
        keys = getattr(requests, kind)
        try:
            replies[kind] = dict(zip(keys, verbs[kind](keys), strict=True)) if keys else {}
        except Unsupported as error:
            unsupported[kind] = str(error) or "unsupported"
    return Replies(**replies, unsupported=unsupported)


def _answers(lm: "LM", prompts: Sequence[str], how: Generation, whole: Mapping[str, Sequence[str]]) -> list[str]:
    """A reply to each prompt; one that could end early, inside an accepted answer, is written in full.

    Prompts whose answers want about as much room are asked together.
    """
    alike: dict[tuple[bool, int], list[Pair]] = {}
    for prompt in prompts:
        early = not any(map(complete, whole.get(prompt, ())))
        alike.setdefault((early, _tokens(how, whole.get(prompt, ()))), []).append((prompt, ""))
    replies: dict[str, str] = {}
    for (early, tokens), some in alike.items():
        here = replace(how, until_answer=how.until_answer and early, tokens=tokens)
        replies |= {prompt: text for (prompt, _), text in zip(some, generate(lm, some, here, whole), strict=True)}
    return [replies[prompt] for prompt in prompts]


def _tokens(how: Generation, answers: Sequence[str]) -> int:
    """How many new tokens a reply may have: twice as many until the longest of the answers has room."""
    wanted = max(map(room, answers), default=0) if how.grows else 0
    tokens = how.tokens
    while tokens < wanted:
        tokens *= 2
    return tokens


def generate(
    lm: "LM", pairs: Sequence[Pair], how: Generation, whole: Mapping[str, Sequence[str]] | None = None
) -> list[str]:
    """A text for each pair of prompt and number, cut; a sampled one depends on that pair alone, not on the batch.

    ``whole`` are answers to some of the prompts inside of which nothing is cut.
    """
    prompts = [prompt for prompt, _ in pairs]
    if how.total is None:
        inside = [answer for answers in (whole or {}).values() for answer in answers]
        until = tuple(stop for stop in how.stops if not any(stop in answer for answer in inside))
        texts = lm.generate(prompts, how.tokens, until_answer=how.until_answer, until=until)
    else:
        seeds = [zlib.crc32("\n".join(pair).encode()) for pair in pairs]
        texts = lm.prolong(prompts, [how.total(prompt) for prompt in prompts], top_k=how.top_k, seeds=seeds)
    if len(texts) != len(prompts) or not all(isinstance(cast(Any, text), str) for text in texts):
        kinds = " and ".join(sorted({type(text).__name__ for text in texts})) or "nothing"
        raise BadInput(
            f"{type(lm).__name__} gave {len(texts)} replies ({kinds}) to {len(prompts)} prompts; "
            "a model gives a text for each prompt, in their order"
        )
    front = prompts if how.with_prompt else [""] * len(prompts)
    kept = [(whole or {}).get(prompt, ()) for prompt in prompts]
    texts = [cut(text, how.stops, how.markers, answers) for text, answers in zip(texts, kept, strict=True)]
    return [before + text for before, text in zip(front, texts, strict=True)]
