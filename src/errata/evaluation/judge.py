"""A language model that decides whether an answer is right, behind any OpenAI-compatible chat completions address.

    judge = Judge("http://localhost:8000/v1", "some-model", cache="verdicts.sqlite")
    rows = evaluate(before, edited, cases, judge=judge)

Used only where it is named, and never replaced: a judge that cannot be reached, or replies with neither word, is an
error. The key is read from the environment (``OPENAI_API_KEY``). Verdicts are cached by content, so that nothing is
asked twice and an interrupted run goes on; the name of the model stands in the rows.
"""

import hashlib
import json
import os
import re
import sqlite3
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from errata.errors import BadInput, Unreachable

# What WILD asks its judge to decide (https://arxiv.org/abs/2502.11177, section 3), in our words.
RULES = """You grade short answers. You get a question, the answers that are accepted, and the answer that was given.
CORRECT: the given answer says what one of the accepted answers says, perhaps in other words, and nothing against it.
INCORRECT: it says something else, leaves part of it out, names others beside it, takes it back, or repeats itself.
Reply with the one word CORRECT or INCORRECT."""
VERDICT = re.compile(r"\W*(?:(?P<wrong>incorrect)|correct)\b", re.IGNORECASE)
BUSY = (408, 409, 429, 500, 502, 503, 504)  # worth another try

GivenAnswer = tuple[str, tuple[str, ...], str]  # question, accepted answers, the answer that was given


@dataclass(frozen=True)
class Judge:
    """``model`` at ``url``: ``parallel`` requests at a time, each with ``timeout`` seconds and so many ``tries``."""

    url: str
    model: str
    cache: str | Path | None = None
    parallel: int = 8
    timeout: float = 60.0
    tries: int = 4
    pause: float = 1.0  # seconds before the second try; doubled each time

    def __post_init__(self) -> None:
        if urlsplit(self.url).scheme not in ("http", "https"):
            raise BadInput(f"a judge's address begins with http:// or https://, found {self.url!r}")
        if not self.model.strip():
            raise BadInput("a judge needs the name of a model")

    @property
    def name(self) -> str:
        """The judge's model."""
        return self.model

    def __call__(self, answers: Sequence[GivenAnswer]) -> list[bool]:
        """Whether each answer is right. Raises :class:`Unreachable`; verdicts that were given by then are cached."""
        keys = [self._key(answer) for answer in answers]
        with self._opened() as cache:
            known = {key: verdict for key in keys if (verdict := cache.get(key)) is not None}
            left = {key: answer for key, answer in zip(keys, answers, strict=True) if key not in known}
            with ThreadPoolExecutor(self.parallel) as pool:
                running = {pool.submit(self.ask, answer): key for key, answer in left.items()}
                try:
                    for done in as_completed(running):
                        key = running[done]
                        known[key] = done.result()
                        cache.put(key, known[key])
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
        return [known[key] for key in keys]

    def check(self) -> None:
        """Raises :class:`Unreachable` unless the judge answers now: before the work, not after it."""
        self.ask(("Which number comes after two?", ("three",), "three"))

    def ask(self, answer: GivenAnswer) -> bool:
        """One verdict, from the model and not from the cache. Raises :class:`Unreachable`."""
        reply = self._reply(_question(answer))
        verdict = VERDICT.match(reply)
        if verdict is None:
            found = f"the judge {self.model} said {reply[:80]!r}, and neither CORRECT nor INCORRECT"
            raise Unreachable(f"{found}; take another --judge-model")
        return verdict["wrong"] is None

    def _reply(self, question: str) -> str:
        messages = [{"role": "system", "content": RULES}, {"role": "user", "content": question}]
        body = json.dumps({"model": self.model, "messages": messages, "temperature": 0}).encode()
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        address = self.url.rstrip("/")
        address += "" if address.endswith("/chat/completions") else "/chat/completions"
        try:
            record = self._send(Request(address, body, headers))
            return str(record["choices"][0]["message"]["content"])
        except (OSError, HTTPException, ValueError) as error:
            why = f"the judge at {address} cannot be asked ({_reason(error)})"
            raise Unreachable(f"{why}; start it, or leave out --judge") from error
        except (KeyError, IndexError, TypeError) as error:
            raise Unreachable(f"{address} does not answer as OpenAI's chat completions do; check --judge") from error

    def _send(self, request: Request) -> Any:
        for number in range(1, self.tries + 1):
            try:
                with urlopen(request, timeout=self.timeout) as reply:
                    return json.load(reply)
            except HTTPError as error:
                if error.code not in BUSY or number == self.tries:
                    raise
                time.sleep(_wait(error.headers.get("Retry-After"), self.pause * 2 ** (number - 1)))
        raise AssertionError("tries is at least 1")

    def _key(self, answer: GivenAnswer) -> str:
        content = json.dumps([self.model, RULES, *answer])
        return hashlib.sha256(content.encode()).hexdigest()

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


def _question(answer: GivenAnswer) -> str:
    question, accepted, given = answer
    return json.dumps({"question": question, "accepted": list(accepted), "given": given.strip()}, ensure_ascii=False)


def _wait(retry_after: str | None, otherwise: float) -> float:
    """Seconds to wait: those of the header Retry-After, a minute at most."""
    return min(60.0, float(retry_after)) if retry_after and retry_after.isdigit() else otherwise


def _reason(error: BaseException) -> str:
    if isinstance(error, HTTPError):
        return f"{error.code} {error.reason}: {error.read(200).decode(errors='replace').strip()}"
    return str(getattr(error, "reason", None) or error or type(error).__name__)
