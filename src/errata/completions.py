"""An OpenAI-compatible chat completions address, asked for one reply at a time.

    service = Completions("http://localhost:8000/v1", "some-model", who="judge", option="--judge")
    service.said(service.body([{"role": "user", "content": "Hello"}]))

Nothing is sent but what :meth:`Completions.reply` is called with, by whoever was told an address. The key is read from
the environment (``OPENAI_API_KEY``), goes to that address alone and stands in no message. No redirect is followed.
"""

import asyncio
import json
import logging
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import responses
from ipaddress import ip_address
from typing import Any, cast
from urllib.parse import SplitResult, urlsplit

import httpx2

from errata.errors import BadInput, Unreachable
from errata.printable import printable, shown

log = logging.getLogger(__name__)

BUSY = (408, 409, 429, 500, 502, 503, 504)  # worth another try
MOST = 2**20  # bytes of a reply
TOLD = 200  # characters of what a server says that stand in an error


@dataclass(frozen=True)
class Completions:
    """``model`` at ``url``, with so many ``tries`` of ``timeout`` seconds.

    ``who`` it is, and the ``option`` that named it, stand in errors. Raises :class:`BadInput`, for an address with a
    password or a query too: what is secret is the environment's.
    """

    url: str
    model: str
    timeout: float = 60.0
    tries: int = 4
    pause: float = 1.0  # seconds before the second try; doubled each time
    who: str = "model"
    option: str = "its address"

    def __post_init__(self) -> None:
        if not isinstance(cast(Any, self.model), str) or not self.model.strip():
            raise BadInput(f"a {self.who} needs the name of a model")
        check_count(f"a {self.who}'s tries", self.tries)
        for name in ("timeout", "pause"):
            if not isinstance(number := getattr(self, name), int | float) or not 0 < number < math.inf:
                raise BadInput(f"a {self.who}'s {name} is a number of seconds above 0, found {number!r}")
        place = _checked(self.url, self.who)
        if place.scheme == "http" and _key() and not _is_here(place.hostname or ""):
            log.warning(
                "the key in OPENAI_API_KEY goes to %s over http, where others can read it; give an https address",
                place.hostname,
            )

    @property
    def address(self) -> str:
        """Where questions go."""
        address = self.url.rstrip("/")
        return address if address.endswith("/chat/completions") else f"{address}/chat/completions"

    def body(self, messages: Sequence[Mapping[str, str]]) -> bytes:
        """What is sent to have the likeliest reply to messages."""
        return json.dumps({"model": self.model, "messages": list(messages), "temperature": 0}).encode()

    def said(self, body: bytes) -> str:
        """What the model says. In a thread of its own, or where no event loop runs. Raises :class:`Unreachable`."""
        reply = _content(self.reply(body))
        if reply is None:
            raise Unreachable(f"{self.address} does not answer as OpenAI's chat completions do; check {self.option}")
        return reply

    def reply(self, body: bytes) -> bytes:
        """What the server replies. A server that is busy is asked again. Raises :class:`Unreachable`."""
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
        why = printable(without_key(why))
        return Unreachable(
            f"the {self.who} at {self.address} cannot be asked ({why}); start it, or leave out {self.option}"
        )


def check_count(what: str, number: Any) -> None:
    """Raises :class:`BadInput` unless the number is a whole one from 1."""
    if not isinstance(number, int) or number < 1:
        raise BadInput(f"{what} is a whole number from 1, found {number!r}")


# The address and the key -------------------------------------------------------------------------


def _checked(url: Any, who: str) -> SplitResult:
    """The parts of an address that can be asked. An address that may hold a secret is not repeated in the error."""
    try:
        place = urlsplit(url)
        usable = place.scheme in ("http", "https") and bool(httpx2.URL(url).host)
    except (httpx2.InvalidURL, ValueError, TypeError, AttributeError):
        raise BadInput(f"a {who}'s address cannot be read; give one like http://localhost:8000/v1") from None
    if place.username is not None or place.password is not None or place.query or place.fragment:
        raise BadInput(
            f"a {who}'s address holds a name, a password or a query, which would be seen; leave out what stands before "
            "the @ and behind the ?, and give the key in OPENAI_API_KEY"
        )
    if not usable:
        raise BadInput(f"a {who}'s address begins with http:// or https:// and a host, found {shown(url)}")
    return place


def _key() -> str:
    """The key, "" where there is none. Raises :class:`BadInput` for what cannot be sent, without repeating it."""
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not (key.isascii() and key.isprintable()):
        raise BadInput("OPENAI_API_KEY holds characters that no key has; set it anew")
    return key


def without_key(text: str) -> str:
    """A text of a server's, which may repeat what it was sent."""
    return text.replace(key, "(the key)") if (key := _key()) else text


def _is_here(host: str) -> bool:
    """Whether a host is this machine."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


# Replies -----------------------------------------------------------------------------------------


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
    said = without_key(reply.decode(errors="replace"))  # first, so that no part of the key is left by the cut
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
