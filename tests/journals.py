"""Patches that no model made, for journals; and a Postgres of the tests' own, started from what is installed."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from glob import glob
from importlib.util import find_spec
from pathlib import Path
from pwd import getpwnam
from signal import SIGQUIT
from typing import Any
from uuid import uuid4

import pytest
import torch

from errata.journal.commit import fact
from errata.patch.delta import Delta
from errata.patch.low_rank import LowRank
from errata.patch.patch import EMPTY, Patch
from errata.types import Edit

SITE = "transformer.h.1.mlp.c_proj.weight"
MODEL = {"name": "tiny", "fingerprint": "0123456789abcdef"}
WHO = ["Ann Lee", "Bob Ray", "Cy Moor", "Dora Finn", "Eve Stone", "Flo Ash", "Gil Berg", "Hal Cole"]
BORN = [Edit("{} was born in", who, "Oslo") for who in WHO]


def record(edits: Sequence[Edit], time: str = "2026-01-01T00:00:00Z", **more: Any) -> dict[str, Any]:
    """What a patch says of a call of ``edit``."""
    about = {"method": "memit", "settings": {"lam": None, "layers": [1]}, "resolved": {"lam": 2.5, "layers": [1]}}
    return {**about, "edits": [edit.to_json() for edit in edits], "time": time, **more}


def change_of(edit: Edit) -> LowRank:
    """What an edit changes: of rank 1, drawn from what it asks for."""
    draw = torch.Generator().manual_seed(int(fact(edit), 16) % 2**31)
    return LowRank(torch.randn(32, 1, generator=draw), torch.randn(1, 64, generator=draw))


def patch_of(edits: Sequence[Edit], prior: Patch = EMPTY, time: str = "2026-01-01T00:00:00Z") -> Patch:
    """``prior`` and the edits, each as a change of rank 1 with its key in the memory; as a closed form leaves it."""
    meta = {"model": MODEL, "made": [record(edits, time)]}
    changes = sum((Delta({SITE: change_of(edit)}) for edit in edits), Delta({}))
    return prior + Patch((changes,), {"keys/" + SITE: torch.cat([change_of(edit).b for edit in edits])}, meta)


# Postgres ------------------------------------------------------------------------------------------


def binaries() -> Path | None:
    """The folder of initdb: Debian's, that of the PATH, or that of the package pgserver; None where there is none."""
    spec = find_spec("pgserver")
    packaged = [str(Path(place) / "pginstall" / "bin") for place in (spec and spec.submodule_search_locations) or ()]
    found = shutil.which("initdb")
    places = [*sorted(glob("/usr/lib/postgresql/*/bin")), *([str(Path(found).parent)] if found else []), *packaged]
    return next((Path(place) for place in places if (Path(place) / "initdb").exists()), None)


def _unprivileged() -> dict[str, Any]:
    """As whom it runs: root may not."""
    if os.geteuid():
        return {}
    for name in ("postgres", "nobody"):
        try:
            user = getpwnam(name)
            return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        except KeyError:
            continue
    pytest.skip("Postgres does not run as root, and there is no user postgres or nobody")


@contextmanager
def postgres_server() -> Iterator[str]:
    """Context manager: the folder of the socket of a Postgres that was started for the tests; skips without one."""
    bin = binaries()
    if bin is None:
        pytest.skip("no initdb here: apt-get install postgresql, or pip install pgserver (Python 3.12 at most)")
    who = _unprivileged()
    folder = Path(tempfile.mkdtemp(prefix="errata-pg-"))  # the path of a socket is short
    try:
        if who:
            os.chown(folder, who["user"], who["group"])
        how: Any = {**who, "cwd": folder, "env": {"PATH": os.defpath, "LC_ALL": "C"}, "stdin": subprocess.DEVNULL}
        options = ["-U", "errata", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"]
        made = subprocess.run(
            [bin / "initdb", "-D", folder / "data", *options], capture_output=True, text=True, timeout=120, **how
        )
        if made.returncode:
            pytest.skip(f"initdb does not run here: {made.stderr.strip()[-300:]}")
        with (folder / "log").open("w") as log:
            server = subprocess.Popen(
                [bin / "postgres", "-D", folder / "data", "-k", folder, "-c", "listen_addresses=", "-c", "fsync=off"],
                stdout=log,
                stderr=log,
                **how,
            )
        try:
            _wait(server, folder)
            yield str(folder)
        finally:
            server.send_signal(SIGQUIT)  # at once: nothing of it is kept
            server.wait(30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait(server: "subprocess.Popen[bytes]", folder: Path) -> None:
    import psycopg

    for _ in range(600):
        try:
            psycopg.connect(host=str(folder), user="errata", dbname="postgres").close()
            return
        except psycopg.OperationalError:
            if server.poll() is not None:
                break
            time.sleep(0.1)
    pytest.fail(f"Postgres did not start: {(folder / 'log').read_text()[-500:]}")


def new_database(server: str) -> str:
    """The URL of a new place in the database: a schema of its own, which takes less time than a database."""
    import psycopg

    name = f"j{uuid4().hex[:12]}"
    with psycopg.connect(host=server, user="errata", dbname="postgres", autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {name}")  # pyright: ignore[reportArgumentType, reportCallIssue]
    return f"postgresql://errata@/postgres?host={server}&options=-csearch_path%3D{name}"
