"""What several processes want to prepare is made by one of them, and read by the others."""

import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from errata import locks
from errata.files import cache_file
from errata.locks import in_turn
from errata.methods.state import State, cached_state

STATE = State({"C": torch.eye(2)}, {"what": "a state"})
HOLDER = """
from pathlib import Path
from errata.locks import in_turn
with in_turn(Path({path!r}), "keys"):
    print("holds it", flush=True)
    input()
"""


@contextmanager
def another_process(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Context manager: a process that holds the lock file, until it is written to."""
    command = [sys.executable, "-c", HOLDER.format(path=str(path))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "holds it\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the cache has the state."""
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path))
    return cache_file("keys", ["content"])


@pytest.mark.parametrize("how", ["made", "killed"])
def test_what_another_process_makes_is_waited_for_and_read(
    how: str, file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made: list[str] = []
    with another_process(file.with_name(f".{file.name}.lock")) as process:

        def sleep(seconds: float) -> None:
            if how == "made":
                STATE.save(file)
                process.communicate("\n")
            else:
                process.kill()
                process.wait()

        def make() -> State:
            made.append("here")
            return STATE

        monkeypatch.setattr(locks.time, "sleep", sleep)
        with caplog.at_level(logging.INFO, "errata"):
            found = cached_state("keys", ["content"], make, lambda state: None)
    assert found.info == STATE.info and made == (["here"] if how == "killed" else [])
    assert caplog.text.count(f"keys are prepared by process {process.pid} on ") == 1
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_what_was_made_between_two_looks_is_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = locks.try_lock

    def just_before(path: Path) -> object:
        STATE.save(file)
        return real(path)

    monkeypatch.setattr(locks, "try_lock", just_before)
    assert cached_state("keys", ["content"], lambda: 1 / 0, lambda state: None).info == STATE.info  # pyright: ignore


def test_what_is_of_no_use_is_made_again_once(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"nothing")
    assert cached_state("keys", ["content"], lambda: STATE, lambda state: None) is STATE
    assert State.load(file).info == STATE.info


def test_this_process_does_not_wait_for_itself(tmp_path: Path) -> None:
    with in_turn(tmp_path / "lock", "keys") as first, in_turn(tmp_path / "lock", "keys") as second:
        assert not first and not second and (tmp_path / "lock").exists()
    assert not (tmp_path / "lock").exists()


def test_where_nothing_can_be_locked_nobody_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(path: Path) -> None:
        raise OSError(38, "no locks here")

    monkeypatch.setattr(locks, "try_lock", fails)
    with in_turn(tmp_path / "lock", "keys") as waited:
        assert not waited
