"""A judge behind a stand-in for an OpenAI-compatible server, on this machine."""

import asyncio
import gzip
import json
import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from test_protocols import AFTER, COUNTERFACT, SAYS, Table

from errata.completions import MOST
from errata.errors import BadInput, Unreachable
from errata.evaluation.baseline import baseline
from errata.evaluation.evaluate import evaluate
from errata.evaluation.judge import Judge


class Server(ThreadingHTTPServer):
    """Says CORRECT where the given answer holds an accepted one.

    ``replies`` come first: a status, a text, bytes that are a whole body, or a function of the handler.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies: list[Any] = []
        self.seen: list[tuple[str, dict[str, Any], str | None]] = []
        self.lock, self.at_once, self.most = threading.Lock(), 0, 0
        self.barrier: threading.Barrier | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        record = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.seen.append((self.path, record, self.headers.get("Authorization")))
            reply = self.server.replies.pop(0) if self.server.replies else None
        if self.server.barrier is not None:
            self.server.barrier.wait(10)
        if callable(reply):
            with suppress(ConnectionError):  # who asked has gone
                reply(self)
            self.close_connection = True
            return
        if reply is None:
            question = json.loads(record["messages"][1]["content"])
            right = any(answer in question["given"] for answer in question["accepted"])
            reply = "CORRECT" if right else "incorrect."
        status = reply if isinstance(reply, int) else 200
        record = {"choices": [{"message": {"content": reply}}]} if status == 200 else {"error": "busy"}
        self.answer(status, reply if isinstance(reply, bytes) else json.dumps(record).encode())

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with served() as running:
        yield running


@contextmanager
def served() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


ANSWERS = [("Who?", ("Ann",), " It was Ann"), ("Who?", ("Ann",), "Bob"), ("Where?", ("Rome", "Roma"), "Roma")]


def test_it_is_asked_as_openai_is(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    assert Judge(server.url, "wise")(ANSWERS) == [True, False, True]
    assert {path for path, _, _ in server.seen} == {"/v1/chat/completions"}
    assert {key for _, _, key in server.seen} == {"Bearer secret"}
    assert {(record["model"], record["temperature"]) for _, record, _ in server.seen} == {("wise", 0)}
    monkeypatch.delenv("OPENAI_API_KEY")
    Judge(server.url + "/chat/completions/", "wise").check()
    assert server.seen[-1][::2] == ("/v1/chat/completions", None)


def test_nothing_is_asked_twice(server: Server, tmp_path: Path) -> None:
    judge = Judge(server.url, "wise", cache=tmp_path / "folder" / "verdicts.sqlite")
    assert judge([*ANSWERS, ANSWERS[0]]) == [True, False, True, True]
    assert len(server.seen) == 3
    assert judge(ANSWERS[::-1]) == [True, False, True]
    assert len(server.seen) == 3
    Judge(server.url, "other", cache=judge.cache)(ANSWERS[:1])
    assert len(server.seen) == 4  # another judge, another verdict


def test_several_are_asked_at_a_time(server: Server) -> None:
    server.barrier = threading.Barrier(3)  # each request waits until three are there
    assert Judge(server.url, "wise", parallel=3)(ANSWERS) == [True, False, True]


def test_a_busy_judge_is_asked_again_and_a_refusing_one_is_not(server: Server) -> None:
    server.replies = [429, 503]
    assert Judge(server.url, "wise", pause=0.001)(ANSWERS[:1]) == [True]
    assert len(server.seen) == 3
    server.replies = [401]
    with pytest.raises(Unreachable, match="401 Unauthorized"):
        Judge(server.url, "wise", pause=0.001)(ANSWERS[:1])
    assert len(server.seen) == 4
    server.replies = [503, 503]
    with pytest.raises(Unreachable, match="503"):
        Judge(server.url, "wise", pause=0.001, tries=2)(ANSWERS[:1])


def test_verdicts_before_an_error_are_kept(server: Server, tmp_path: Path) -> None:
    judge = Judge(server.url, "wise", cache=tmp_path / "verdicts.sqlite", parallel=1)
    server.replies = ["CORRECT", "well, it depends"]
    with pytest.raises(Unreachable, match="'well, it depends', and neither"):
        judge(ANSWERS)
    requests = len(server.seen)
    assert judge(ANSWERS[:1]) == [True]
    assert len(server.seen) == requests


def test_a_judge_that_is_not_there_is_an_error(server: Server) -> None:
    gone = Judge("http://127.0.0.1:9/v1", "wise")  # the port that discards; nothing listens
    with pytest.raises(Unreachable, match=r"cannot be asked .*; start it, or leave out --judge"):
        gone.check()
    before = baseline(Table(SAYS), [COUNTERFACT])
    with pytest.raises(Unreachable):
        evaluate(before, Table(AFTER), [COUNTERFACT], judge=gone)


def test_bad_judges_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="begins with http"):
        Judge("file:///etc/passwd", "wise")
    with pytest.raises(BadInput, match="name of a model"):
        Judge("http://localhost", " ")
    (tmp_path / "cache").write_text("no data base at all, and long enough to be one" * 9)
    with pytest.raises(BadInput, match="no cache of verdicts"):
        Judge("http://localhost", "wise", cache=tmp_path / "cache")(ANSWERS)


def test_a_judge_takes_the_place_of_the_match(server: Server) -> None:
    replies = {**AFTER, "Ann was born in": " the city of New Rome."}
    before = baseline(Table(SAYS), [COUNTERFACT], protocol="wild")
    (matched,) = [row for row in evaluate(before, Table(replies), [COUNTERFACT]) if row.kind == "edit"]
    assert (matched.match, matched.after) == ("exact", 0.0)
    rows = evaluate(before, Table(replies), [COUNTERFACT], judge=Judge(server.url, "wise"))
    (judged,) = [row for row in rows if row.kind == "edit"]
    assert (judged.match, judged.before, judged.after) == ("judge wise", 0.0, 1.0)
    assert {row.match for row in rows if row.metric == "identity"} == {"identity"}


# What is secret, and what a server may do ---------------------------------------------------------

KEY = "sk-0123456789abcdef"


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    return KEY


def failure(judge: Judge) -> str:
    """The message of a judge that cannot be used; nothing in it or behind it holds the key."""
    with pytest.raises(Unreachable) as caught:
        judge.check()
    told = "".join(traceback.format_exception(caught.value))
    assert KEY not in told and KEY[:6] not in told
    return str(caught.value)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_the_key_goes_to_no_other_address(server: Server, key: str, status: int) -> None:
    with served() as other:
        for target in (f"{other.url}/chat/completions?key={KEY}", f"//{KEY}@127.0.0.1/x", "http://[", "/elsewhere"):
            server.replies = [lambda handler, target=target: handler.answer(status, b"", Location=target)]
            message = failure(Judge(server.url, "wise"))
            assert f"{status}: it sends on to" in message and "give that address if you trust it" in message
        assert not other.seen and {path for path, _, _ in server.seen} == {"/v1/chat/completions"}


@pytest.mark.parametrize("at", [0, 150, 170, 180, 195, 900])
def test_a_server_that_repeats_the_key_is_not_repeated(server: Server, key: str, at: int) -> None:
    server.replies = [lambda handler: handler.answer(401, b"x" * at + f" no such key: {KEY}".encode())]
    assert "401 Unauthorized: " in failure(Judge(server.url, "wise"))
    server.replies = [f"{' ' * min(at, 75)}{KEY} is your key"]
    assert "neither CORRECT nor INCORRECT" in failure(Judge(server.url, "wise"))
    server.replies = [lambda handler: handler.wfile.write(f"HTTP/1.1 200 OK\r\n{KEY}\r\n\r\n".encode())]
    assert "cannot be asked" in failure(Judge(server.url, "wise"))


def test_what_a_server_says_steers_no_terminal(server: Server) -> None:
    server.replies = [lambda handler: handler.answer(400, b"\x1b[2J\nerrata: all is well")]
    assert r"400 Bad Request: \x1b[2J\nerrata: all is well" in failure(Judge(server.url, "wise"))


@pytest.mark.parametrize(
    "url",
    [
        f"https://user:{KEY}@host/v1",
        f"https://{KEY}@host/v1",
        f"https://host/v1?key={KEY}",
        f"https://host/v1#{KEY}",
        f"http://:{KEY}@[::1/v1",
        f"ftp://user:{KEY}@host/v1",
    ],
)
def test_an_address_with_a_secret_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(BadInput) as caught:
        Judge(url, "wise")
    assert KEY not in "".join(traceback.format_exception(caught.value))
    assert "OPENAI_API_KEY" in str(caught.value) or "cannot be read" in str(caught.value)


@pytest.mark.parametrize("value", [f"{KEY}\nX-Other: 1", f"{KEY}é"])
def test_a_key_that_cannot_be_sent_is_refused_and_not_repeated(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", value)
    with pytest.raises(BadInput, match="OPENAI_API_KEY holds characters that no key has") as caught:
        Judge("http://host/v1", "wise")
    assert KEY not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("url", "warned"),
    [
        ("http://judge.example/v1", True),
        ("http://10.0.0.7:8000/v1", True),
        ("https://judge.example/v1", False),
        ("http://localhost:8000/v1", False),
        ("http://127.0.0.9/v1", False),
        ("http://[::1]:8000/v1", False),
    ],
)
def test_a_key_in_the_open_is_warned_of(
    url: str, warned: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Judge(url, "wise")
    assert not caplog.records  # no key, no warning
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with caplog.at_level(logging.WARNING, logger="errata"):
        Judge(url, "wise")
    assert ("where others can read it; give an https address" in caplog.text) == warned
    assert KEY not in caplog.text


@pytest.mark.parametrize(
    "body",
    [
        b"", b"no json", b"[]", b"null", b"{}", b'{"choices": []}', b'{"choices": 3}',
        b'{"choices": [{"message": "x"}]}',
        b'{"choices": [{"message": {"content": null}}]}', b'{"choices": [{"message": {"content": ["CORRECT"]}}]}',
        b'{"choices": {"0": 1}}', b"[" * 200_000, b'{"a":' * 200_000, b"9" * 10_000, b"\xff\xfe{}",
    ],
    ids=lambda body: repr(body[:20]),
)  # fmt: skip
def test_a_reply_that_is_no_completion_is_an_error(server: Server, body: bytes) -> None:
    server.replies = [body]
    assert "does not answer as OpenAI's chat completions do" in failure(Judge(server.url, "wise"))


def too_long(handler: Handler) -> None:
    handler.answer(200, b" " * (MOST + 1))


def endless(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        handler.wfile.write(b"10000\r\n" + b" " * 65536 + b"\r\n")


def packed(handler: Handler) -> None:
    """A few KiB that would be a hundred MiB, which nobody asked to be packed."""
    handler.answer(200, gzip.compress(b" " * 100 * 2**20, 1), **{"Content-Encoding": "gzip"})


def slow_headers(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    _slowly(handler)


def slow_body(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    _slowly(handler)


def _slowly(handler: Handler) -> None:
    while True:  # until who asked has gone
        handler.wfile.write(b" ")
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (too_long, "more than 1,048,576 bytes"), (endless, "more than 1,048,576 bytes"),
        (packed, "does not answer as OpenAI's"), (slow_headers, "no whole reply within 0.3 s"),
        (slow_body, "no whole reply within 0.3 s"),
    ],
)  # fmt: skip
def test_a_reply_has_an_end(server: Server, reply: Callable[[Handler], None], told: str) -> None:
    server.replies = [reply]
    slow = "slow" in reply.__name__
    assert told in failure(Judge(server.url, "wise", timeout=0.3 if slow else 60))


def test_verdicts_are_those_of_an_address(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "verdicts.sqlite"
    assert Judge(server.url, "wise", cache=file)(ANSWERS[:1]) == [True]
    with served() as other:
        other.replies = ["INCORRECT"]
        assert Judge(other.url, "wise", cache=file)(ANSWERS[:1]) == [False]
    assert Judge(server.url + "/", "wise", cache=file)(ANSWERS[:1]) == [True]
    assert len(server.seen) == 1
    monkeypatch.setattr("errata.evaluation.judge.RULES", "Be kind. Reply with CORRECT.")
    Judge(server.url, "wise", cache=file)(ANSWERS[:1])
    assert len(server.seen) == 2  # by other rules, another verdict
    assert KEY.encode() not in file.read_bytes() and b"127.0.0.1" not in file.read_bytes()


@pytest.mark.parametrize("wait", ["²", "-1", "soon", "9" * 400, ""])
def test_a_wait_that_cannot_be_read_is_our_own(server: Server, wait: str, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("errata.completions.time.sleep", waited.append)
    server.replies = [lambda handler: handler.answer(503, b"", **{"Retry-After": wait})]
    assert Judge(server.url, "wise", pause=0.5)(ANSWERS[:1]) == [True]
    assert waited == [0.5]


@pytest.mark.parametrize(
    "wrong", [{"tries": 0}, {"tries": 1.5}, {"parallel": 0}, {"timeout": 0}, {"timeout": float("nan")}, {"pause": -1}]
)
def test_numbers_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=f"a judge's {next(iter(wrong))} is a"):
        Judge("http://localhost", "wise", **wrong)
    with pytest.raises(BadInput):
        Judge(None, "wise")  # type: ignore[arg-type]


def test_it_can_be_asked_where_an_event_loop_runs(server: Server) -> None:
    """As in a notebook."""

    async def asked() -> list[bool]:
        return Judge(server.url, "wise")(ANSWERS)

    assert asyncio.run(asked()) == [True, False, True]
