"""Many processes at one journal, and processes that are killed: what was said to be done is there, whole."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from journals import BORN, new_database, patch_of

from errata.journal.journal import Journal

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")


class Committers:
    """The process of ``committing.py``, and what its forks have said."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "committing.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        self.done: list[tuple[str, str]] = []  # name, id
        self.read_until("ready")

    def start(self, journal: Journal, name: str, count: int) -> int:
        """Asks for a process; its id."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{journal.path}\t{name}\t{count}\n")
        return int(self.read_until("pid", name)[2])

    def read_until(self, *words: str) -> list[str]:
        """The next line that begins so; commits that are done meanwhile are noted."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            said = line.split()
            if said[0] == "done":
                self.done.append((said[1], said[3]))
            assert said[0] != "failed", line
            if said[: len(words)] == list(words):
                return said
        raise AssertionError(f"the committing process ended before it said {words}")

    def all_done(self) -> list[tuple[str, str]]:
        """Waits until every process has ended; what all of them have said to be done since this was last asked."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.read_until("idle")
        done, self.done = self.done, []
        return done

    def close(self) -> None:
        self.process.communicate()


@pytest.fixture(scope="module")
def committers() -> Iterator[Committers]:
    made = Committers()
    yield made
    made.close()


@pytest.fixture(params=["sqlite", "postgres"])
def journal(request: pytest.FixtureRequest, tmp_path: Path) -> Journal:
    url = new_database(request.getfixturevalue("postgres")) if request.param == "postgres" else None
    return Journal.create(tmp_path / "journal", url)


def killed(journal: Journal, committers: Committers, moments: int) -> None:
    """Kills a process that commits at so many moments; after each, all that it said to be done is there, whole."""
    draw, held = random.Random(moments), 0
    for moment in range(moments):
        pid = committers.start(journal, f"run-{moment}", 10**6)
        committers.read_until("open", f"run-{moment}")
        for _ in range(awaited := draw.randrange(3)):
            committers.read_until("done", f"run-{moment}")
        time.sleep(draw.uniform(0, 0.1))
        os.kill(pid, signal.SIGKILL)
        opened = Journal.open(journal.path)
        log = opened.log()
        assert all(commit.parents == ((log[i + 1].id,) if log[i + 1 :] else ()) for i, commit in enumerate(log))
        own = [commit for commit in log if commit.why.startswith(f"run-{moment} ")]
        assert [commit.why for commit in own] == [f"run-{moment} {i}" for i in range(len(own) - 1, -1, -1)]
        assert len(log) == held + len(own) and len(own) >= awaited
        assert all(opened.load(commit) for commit in own)
        held = len(log)
        last = opened.commit(patch_of(BORN[:1]), why="by us, at once")  # nothing that was killed holds the journal
        assert opened.find() == last
        held += 1
    log, done = Journal.open(journal.path).log(), committers.all_done()
    assert done and {id for _, id in done} <= {commit.id for commit in log}
    assert journal.check() == []


def test_a_process_that_is_killed_loses_nothing_that_it_had_done(journal: Journal, committers: Committers) -> None:
    killed(journal, committers, 8)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_processes_that_are_killed_at_many_moments(journal: Journal, committers: Committers) -> None:
    killed(journal, committers, 50)


def committed_at_once(journal: Journal, committers: Committers, processes: int, each: int) -> None:
    names = [f"p{i}" for i in range(processes)]
    for name in names:
        committers.start(journal, name, each)
    done = committers.all_done()
    opened = Journal.open(journal.path)
    log = opened.log()
    assert len(log) == processes * each == len(done)
    assert {id for _, id in done} == {commit.id for commit in log}
    assert [commit.depth for commit in log] == list(range(len(log), 0, -1))
    assert [commit.parents for commit in log] == [*((commit.id,) for commit in log[1:]), ()]
    for name in names:
        own = [commit.why for commit in reversed(log) if commit.why.startswith(f"{name} ")]
        assert own == [f"{name} {i}" for i in range(each)]
    assert opened.check() == []


def test_processes_that_commit_at_once(journal: Journal, committers: Committers) -> None:
    committed_at_once(journal, committers, 8, 5)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_processes_that_commit_much_at_once(journal: Journal, committers: Committers) -> None:
    committed_at_once(journal, committers, 8, 25)
