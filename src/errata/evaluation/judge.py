"""A language model that says whether an answer is right, behind any address that speaks OpenAI's chat completions.

    judge = Judge("http://localhost:8000/v1", "some-model", cache="verdicts.sqlite")
    rows = evaluate(before, edited, cases, judge=judge)

Never asked unless it is named, and never replaced: where it cannot be reached, or says neither word, that is an error.
Its key is read from the environment (``OPENAI_API_KEY``). Verdicts are kept by content, so that nothing is asked twice
and an interrupted run goes on; the name of the model stands in the rows.
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

Asked = tuple[str, tuple[str, ...], str]  # question, accepted answers, the answer that was given


@dataclass(frozen=True)
class Judge:
    """``model`` at ``url``, asked ``parallel`` things at a time; each has ``timeout`` seconds and so many ``tries``."""

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
        return self.model

    def __call__(self, asked: Sequence[Asked]) -> list[bool]:
        """Whether each answer is right. Raises :class:`Unreachable`; verdicts that were given by then are kept."""
        keys = [self._key(its) for its in asked]
        with self._kept() as kept:
            known = {key: found for key in keys if (found := kept.get(key)) is not None}
            left = {key: its for key, its in zip(keys, asked, strict=True) if key not in known}
            with ThreadPoolExecutor(self.parallel) as pool:
                running = {pool.submit(self.ask, its): key for key, its in left.items()}
                try:
                    for done in as_completed(running):
                        key = running[done]
                        known[key] = done.result()
                        kept.put(key, known[key])
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
        return [known[key] for key in keys]

    def check(self) -> None:
        """Raises :class:`Unreachable` unless the judge answers now: before the work, not after it."""
        self.ask(("Which number comes after two?", ("three",), "three"))

    def ask(self, asked: Asked) -> bool:
        """One verdict, from the model and not from the cache."""
        said = self._said(_question(asked))
        found = VERDICT.match(said)
        if found is None:
            heard = f"the judge {self.model} said {said[:80]!r}, and neither CORRECT nor INCORRECT"
            raise Unreachable(f"{heard}; take another --judge-model")
        return found["wrong"] is None

    def _said(self, question: str) -> str:
        messages = [{"role": "system", "content": RULES}, {"role": "user", "content": question}]
        body = json.dumps({"model": self.model, "messages": messages, "temperature": 0}).encode()
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        address = self.url.rstrip("/")
        address += "" if address.endswith("/chat/completions") else "/chat/completions"
        try:
            record = self._sent(Request(address, body, headers))
            return str(record["choices"][0]["message"]["content"])
        except (OSError, HTTPException, ValueError) as error:
            why = f"the judge at {address} cannot be asked ({_told(error)})"
            raise Unreachable(f"{why}; start it, or leave out --judge") from error
        except (KeyError, IndexError, TypeError) as error:
            raise Unreachable(f"{address} does not answer as OpenAI's chat completions do; check --judge") from error

    def _sent(self, request: Request) -> Any:
        for number in range(1, self.tries + 1):
            try:
                with urlopen(request, timeout=self.timeout) as reply:
                    return json.load(reply)
            except HTTPError as error:
                if error.code not in BUSY or number == self.tries:
                    raise
                time.sleep(_wait(error.headers.get("Retry-After"), self.pause * 2 ** (number - 1)))
        raise AssertionError("tries is at least 1")

    def _key(self, asked: Asked) -> str:
        content = json.dumps([self.model, RULES, *asked])
        return hashlib.sha256(content.encode()).hexdigest()

    @contextmanager
    def _kept(self) -> Iterator["_Verdicts"]:
        """The cache; of this call alone where there is no file."""
        path = ":memory:" if self.cache is None else Path(self.cache)
        if isinstance(path, Path):
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with closing(sqlite3.connect(path, timeout=self.timeout, isolation_level=None)) as connection:
                yield _Verdicts(connection)
        except sqlite3.DatabaseError as error:
            raise BadInput(f"{path} is no cache of verdicts ({error}); remove it, or name another") from error


class _Verdicts:
    """Verdicts by key; each is on disk once it is put."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        connection.execute("CREATE TABLE IF NOT EXISTS verdicts (key TEXT PRIMARY KEY, correct INTEGER NOT NULL)")

    def get(self, key: str) -> bool | None:
        found = self.connection.execute("SELECT correct FROM verdicts WHERE key = ?", (key,)).fetchone()
        return None if found is None else bool(found[0])

    def put(self, key: str, correct: bool) -> None:
        self.connection.execute("INSERT OR REPLACE INTO verdicts VALUES (?, ?)", (key, int(correct)))


def _question(asked: Asked) -> str:
    question, answers, said = asked
    return json.dumps({"question": question, "accepted": list(answers), "given": said.strip()}, ensure_ascii=False)


def _wait(told: str | None, otherwise: float) -> float:
    """Seconds, as the server asks for, a minute at most."""
    return min(60.0, float(told)) if told and told.isdigit() else otherwise


def _told(error: BaseException) -> str:
    if isinstance(error, HTTPError):
        return f"{error.code} {error.reason}: {error.read(200).decode(errors='replace').strip()}"
    return str(getattr(error, "reason", None) or error or type(error).__name__)
