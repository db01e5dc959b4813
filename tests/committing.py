"""Processes that commit to a journal, for tests that kill them: all are forks of one, which has imported everything.

A line on stdin asks for one: the folder, a name, and how many commits. It says who it is, and each commit when that is
done. An empty line is answered when all have ended.
"""

import os
import signal
import sys
from contextlib import suppress

from journals import WHO, patch_of

import errata.journal.clashes
import errata.journal.database  # noqa: F401
from errata.journal.journal import Journal
from errata.types import Edit


def say(*words: object) -> None:
    """A line on stdout, in one piece."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def commit(folder: str, name: str, count: int) -> None:
    journal = Journal.open(folder)
    say("open", name)
    for i in range(count):
        edit = Edit("{} was born in", WHO[i % len(WHO)], f"{name} {i}")
        say("done", name, i, journal.commit(patch_of([edit]), why=f"{name} {i}").id)
    say("end", name)


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    say("ready")
    for line in sys.stdin:
        if not line.strip():
            with suppress(ChildProcessError):  # none is left
                os.wait()
            say("idle")
            continue
        folder, name, count = line.rstrip("\n").split("\t")
        child = os.fork()
        if not child:
            try:
                commit(folder, name, int(count))
            except BaseException as error:  # a fork that returned would be a second server
                say("failed", name, repr(error))
            finally:
                os._exit(0)
        say("pid", name, child)


if __name__ == "__main__":
    main()
