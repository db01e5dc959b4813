"""A language model that decides whether an answer is right, behind any OpenAI-compatible chat completions address.

    judge = Judge("http://localhost:8000/v1", "some-model", cache="verdicts.sqlite")
    rows = evaluate(before, edited, cases, judge=judge)

Used only where it is named, and never replaced: a judge that cannot be reached, or replies with neither word, is an
error. The key is read from the environment (``OPENAI_API_KEY``), goes to that address alone and stands in no message.
Verdicts are cached by content, so that nothing is asked twice and an interrupted run goes on; the name of the model
stands in the rows.
"""

import hashlib
import json
import re
import sqlite3
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from errata.completions import Completions, check_count, without_key
from errata.errors import BadInput, Unreachable
from errata.printable import shown

# What WILD asks its judge to decide (https://arxiv.org/abs/2502.11177, section 3), in our words.
RULES = """You grade short answers. You get a question, the answers that are accepted, and the answer that was given.
CORRECT: the given answer says what one of the accepted answers says, perhaps in other words, and nothing against it.
INCORRECT: it says something else, leaves part of it out, names others beside it, takes it back, or repeats itself.
Reply with the one word CORRECT or INCORRECT."""
VERDICT = re.compile(r"\W*(?:(?P<wrong>incorrect)|correct)\b", re.IGNORECASE)

GivenAnswer = tuple[str, tuple[str, ...], str]  # question, accepted answers, the answer that was given


@dataclass(frozen=True)
class Judge:
    """``model`` at ``url``: ``parallel`` requests at a time, each with so many ``tries`` of ``timeout`` seconds.

    Raises :class:`BadInput`, for an address with a password or a query too: what is secret is the environment's.
    """

    url: str
    model: str
    cache: str | Path | None = None
    parallel: int = 8
    timeout: float = 60.0
    tries: int = 4
    pause: float = 1.0  # seconds before the second try; doubled each time
    service: Completions = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        how: Any = {"timeout": self.timeout, "tries": self.tries, "pause": self.pause}
        object.__setattr__(self, "service", Completions(self.url, self.model, **how, who="judge", option="--judge"))
        check_count("a judge's parallel", self.parallel)

    @property
    def name(self) -> str:
        """The judge's model."""
        return self.model

    @property
    def address(self) -> str:
        """Where questions go."""
        return self.service.address

    def __call__(self, answers: Sequence[GivenAnswer]) -> list[bool]:
        """Whether each answer is right. Raises :class:`Unreachable`; verdicts that were given by then are cached."""
        keys = [self._cache_key(answer) for answer in answers]
        with self._opened() as cache:
            known = {key: verdict for key in keys if (verdict := cache.get(key)) is not None}
            left = {key: answer for key, answer in zip(keys, answers, strict=True) if key not in known}
            for key, verdict in self._asked(left):
                known[key] = verdict
                cache.put(key, verdict)
        return [known[key] for key in keys]

    def check(self) -> None:
        """Raises :class:`Unreachable` unless the judge answers now: before the work, not after it."""
        for _ in self._asked({"": ("Which number comes after two?", ("three",), "three")}):
            pass

    def _asked(self, answers: dict[str, GivenAnswer]) -> Iterator[tuple[str, bool]]:
        """The verdicts by key, as they come, from the model and not from the cache. Raises :class:`Unreachable`."""
        with ThreadPoolExecutor(self.parallel) as pool:
            running = {pool.submit(self._ask, answer): key for key, answer in answers.items()}
            try:
                for done in as_completed(running):
                    yield running[done], done.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _ask(self, answer: GivenAnswer) -> bool:
        """One verdict. In a thread of its own, since it runs an event loop."""
        reply = self.service.said(self._body(answer))
        verdict = VERDICT.match(reply)
        if verdict is None:
            found = f"the judge {self.model} said {shown(without_key(reply))}, and neither CORRECT nor INCORRECT"
            raise Unreachable(f"{found}; take another --judge-model")
        return verdict["wrong"] is None

    def _body(self, answer: GivenAnswer) -> bytes:
        messages = [{"role": "system", "content": RULES}, {"role": "user", "content": _question(answer)}]
        return self.service.body(messages)

    def _cache_key(self, answer: GivenAnswer) -> str:
        """A digest of all that a verdict depends on: the address, and what is sent there but for the key."""
        return hashlib.sha256(self.address.encode() + b"\n" + self._body(answer)).hexdigest()

    @contextmanager
    def _opened(self) -> Iterator["_Verdicts"]:
        """The cache; in memory, for one call, where there is no file."""
        path = ":memory:" if self.cache is None else Path(self.cache)
        if isinstance(path, Path):
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with closing(sqlite3.connect(path, timeout=self.timeout, isolation_level=None)) as connection:
                yield _Verdicts(connection)
        except sqlite3.DatabaseError as error:
            raise BadInput(f"{path} is no cache of verdicts ({error}); remove it, or name another") from error


class _Verdicts:
    """A cache of verdicts by key; each is on disk once it is put."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        connection.execute("CREATE TABLE IF NOT EXISTS verdicts (key TEXT PRIMARY KEY, correct INTEGER NOT NULL)")

    def get(self, key: str) -> bool | None:
        row = self.connection.execute("SELECT correct FROM verdicts WHERE key = ?", (key,)).fetchone()
        return None if row is None else bool(row[0])

    def put(self, key: str, correct: bool) -> None:
        self.connection.execute("INSERT OR REPLACE INTO verdicts VALUES (?, ?)", (key, int(correct)))


# Questions -----------------------------------------------------------------------------------------


def _question(answer: GivenAnswer) -> str:
    question, accepted, given = answer
    return json.dumps({"question": question, "accepted": list(accepted), "given": given.strip()}, ensure_ascii=False)
