"""A language model that decides whether an answer is right, behind any OpenAI-compatible chat completions address.

    judge = Judge("http://localhost:8000/v1", "some-model", cache="verdicts.sqlite")
    rows = evaluate(before, edited, cases, judge=judge)

Used only where it is named, and never replaced: a judge that cannot be reached, or replies with neither word, is an
error. The key is read from the environment (``OPENAI_API_KEY``), goes to that address alone and stands in no message.
Verdicts are cached by content, so that nothing is asked twice and an interrupted run goes on; the name of the model
stands in the rows.
"""

import asyncio
import hashlib
import json
import logging
import math
import os
import re
import sqlite3
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import responses
from ipaddress import ip_address
from pathlib import Path
from typing import Any, cast
from urllib.parse import SplitResult, urlsplit

import httpx2

from errata.errors import BadInput, Unreachable
from errata.printable import printable, shown

log = logging.getLogger(__name__)

# What WILD asks its judge to decide (https://arxiv.org/abs/2502.11177, section 3), in our words.
RULES = """You grade short answers. You get a question, the answers that are accepted, and the answer that was given.
CORRECT: the given answer says what one of the accepted answers says, perhaps in other words, and nothing against it.
INCORRECT: it says something else, leaves part of it out, names others beside it, takes it back, or repeats itself.
Reply with the one word CORRECT or INCORRECT."""
VERDICT = re.compile(r"\W*(?:(?P<wrong>incorrect)|correct)\b", re.IGNORECASE)
BUSY = (408, 409, 429, 500, 502, 503, 504)  # worth another try
MOST = 2**20  # bytes of a reply, of which one word is wanted
TOLD = 200  # characters of what a server says that stand in an error

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

    def __post_init__(self) -> None:
        if not isinstance(cast(Any, self.model), str) or not self.model.strip():
            raise BadInput("a judge needs the name of a model")
        for name in ("parallel", "tries"):
            if not isinstance(number := getattr(self, name), int) or number < 1:
                raise BadInput(f"a judge's {name} is a whole number from 1, found {number!r}")
        for name in ("timeout", "pause"):
            if not isinstance(number := getattr(self, name), int | float) or not 0 < number < math.inf:
                raise BadInput(f"a judge's {name} is a number of seconds above 0, found {number!r}")
        place = _checked(self.url)
        if place.scheme == "http" and _key() and not _is_here(place.hostname or ""):
            log.warning(
                "the key in OPENAI_API_KEY goes to %s over http, where others can read it; give an https address",
                place.hostname,
            )

    @property
    def name(self) -> str:
        """The judge's model."""
        return self.model

    @property
    def address(self) -> str:
        """Where questions go."""
        address = self.url.rstrip("/")
        return address if address.endswith("/chat/completions") else f"{address}/chat/completions"

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
        reply = _content(self._reply(self._body(answer)))
        if reply is None:
            raise Unreachable(f"{self.address} does not answer as OpenAI's chat completions do; check --judge")
        verdict = VERDICT.match(reply)
        if verdict is None:
            found = f"the judge {self.model} said {shown(_without_key(reply))}, and neither CORRECT nor INCORRECT"
            raise Unreachable(f"{found}; take another --judge-model")
        return verdict["wrong"] is None

    def _body(self, answer: GivenAnswer) -> bytes:
        messages = [{"role": "system", "content": RULES}, {"role": "user", "content": _question(answer)}]
        return json.dumps({"model": self.model, "messages": messages, "temperature": 0}).encode()

    def _reply(self, body: bytes) -> bytes:
        """What the server replies. A server that is busy is asked again."""
        for number in range(1, self.tries + 1):
            try:
                status, headers, reply = asyncio.run(self._post(body))
            except TimeoutError:
                raise self._unreachable(f"no whole reply within {self.timeout:g} s") from None
            except (httpx2.HTTPError, OSError, ValueError) as error:  # whose message may hold what the server said
                raise self._unreachable(str(error) or type(error).__name__) from None
            if status == 200:
                return reply
            if status not in BUSY or number == self.tries:
                raise self._unreachable(_refusal(status, headers, reply))
            time.sleep(_wait(headers.get("Retry-After", ""), self.pause * 2.0 ** min(number - 1, 9)))
        raise AssertionError("tries is at least 1")

    async def _post(self, body: bytes) -> tuple[int, httpx2.Headers, bytes]:
        """Status, headers and body of the reply to one request, in ``timeout`` seconds. No redirect is followed."""
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if key := _key():
            headers["Authorization"] = f"Bearer {key}"
        async with (
            asyncio.timeout(self.timeout),
            httpx2.AsyncClient(timeout=None) as client,
            client.stream("POST", self.address, content=body, headers=headers) as reply,
        ):
            read = bytearray()
            async for part in reply.aiter_raw():
                read += part
                if len(read) > MOST:
                    raise ValueError(f"it replies with more than {MOST:,} bytes")
            return reply.status_code, reply.headers, bytes(read)

    def _unreachable(self, why: str) -> Unreachable:
        why = printable(_without_key(why))
        return Unreachable(f"the judge at {self.address} cannot be asked ({why}); start it, or leave out --judge")

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


# The address and the key -------------------------------------------------------------------------


def _checked(url: Any) -> SplitResult:
    """The parts of an address that can be asked. An address that may hold a secret is not repeated in the error."""
    try:
        place = urlsplit(url)
        usable = place.scheme in ("http", "https") and bool(httpx2.URL(url).host)
    except (httpx2.InvalidURL, ValueError, TypeError, AttributeError):
        raise BadInput("a judge's address cannot be read; give one like http://localhost:8000/v1") from None
    if place.username is not None or place.password is not None or place.query or place.fragment:
        raise BadInput(
            "a judge's address holds a name, a password or a query, which would be seen; leave out what stands before "
            "the @ and behind the ?, and give the key in OPENAI_API_KEY"
        )
    if not usable:
        raise BadInput(f"a judge's address begins with http:// or https:// and a host, found {shown(url)}")
    return place


def _key() -> str:
    """The key, "" where there is none. Raises :class:`BadInput` for what cannot be sent, without repeating it."""
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not (key.isascii() and key.isprintable()):
        raise BadInput("OPENAI_API_KEY holds characters that no key has; set it anew")
    return key


def _without_key(text: str) -> str:
    """A text of a server's, which may repeat what it was sent."""
    return text.replace(key, "(the key)") if (key := _key()) else text


def _is_here(host: str) -> bool:
    """Whether a host is this machine."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


# Questions and replies ---------------------------------------------------------------------------


def _question(answer: GivenAnswer) -> str:
    question, accepted, given = answer
    return json.dumps({"question": question, "accepted": list(accepted), "given": given.strip()}, ensure_ascii=False)


def _content(reply: bytes) -> str | None:
    """What the model says in a chat completion; None where it is none."""
    try:
        said = json.loads(reply)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return None
    return said if isinstance(said, str) else None


def _refusal(status: int, headers: httpx2.Headers, reply: bytes) -> str:
    """Why a reply is of no use: its status, and where it sends on to or what it says."""
    if 300 <= status < 400:
        return f"{status}: it sends on to {_place(headers.get('Location', ''))}; give that address if you trust it"
    said = _without_key(reply.decode(errors="replace"))  # first, so that no part of the key is left by the cut
    return f"{status} {responses.get(status, 'unknown')}: {said[:TOLD].strip()}"


def _place(url: str) -> str:
    """An address without what may be secret in it."""
    try:
        to = urlsplit(url)
    except ValueError:
        return "an address that cannot be read"
    return f"{to.scheme}://{to.netloc.rpartition('@')[2]}{to.path}" if to.netloc else to.path


def _wait(retry_after: str, otherwise: float) -> float:
    """Seconds to wait: those of the header Retry-After, a minute at most."""
    return min(60.0, float(retry_after)) if re.fullmatch(r"[0-9]{1,9}", retry_after) else otherwise
