"""A judge behind a stand-in for an OpenAI-compatible server, on this machine."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from test_protocols import AFTER, COUNTERFACT, SAYS, Table

from errata.errors import BadInput, Unreachable
from errata.evaluation.baseline import baseline
from errata.evaluation.evaluate import evaluate
from errata.evaluation.judge import Judge


class Server(ThreadingHTTPServer):
    """Says CORRECT where the given answer holds an accepted one; ``replies`` come first (a status, or a text)."""

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
        if reply is None:
            question = json.loads(record["messages"][1]["content"])
            right = any(answer in question["given"] for answer in question["accepted"])
            reply = "CORRECT" if right else "incorrect."
        status = reply if isinstance(reply, int) else 200
        body = json.dumps({"choices": [{"message": {"content": reply}}]} if status == 200 else {"error": "busy"})
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
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
