"""What is written is there whole or not at all: whatever stands there, who else writes, when it is interrupted."""

import errno
import logging
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from shutil import rmtree
from types import FrameType
from typing import Any

import pytest
import torch
from conftest import EDIT, quick, tiny_lm
from typer.testing import CliRunner

from errata import files
from errata.cli import app
from errata.cli.common import check_output
from errata.errors import BadInput
from errata.evaluation.baseline import baseline
from errata.files import (
    cache_folder,
    check_writable,
    write_bytes,
    write_text,
    written_whole,
)
from errata.locks import held
from errata.methods.state import State, cached_state
from errata.patch.patch import Patch
from errata.tensor_files import read_tensors, write_tensors

STATE = State({"a": torch.arange(3.0)}, {"b": 1})
AT_WORK = """
import sys
from pathlib import Path
from errata.files import written_whole
with written_whole(Path(sys.argv[1])) as part:
    part.write_text("half")
    print("writing", flush=True)
    sys.stdin.readline()
    part.write_text("whole")
"""
HOLDING = """
import sys
from pathlib import Path
from errata.locks import held
with held(Path(sys.argv[1]), "rows"):
    print("held", flush=True)
    sys.stdin.readline()
"""


def left_in(folder: Path) -> list[str]:
    """What hidden files are in a folder."""
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


@pytest.fixture()
def other() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts another process, and returns when it has said its first line."""
    started: list[subprocess.Popen[str]] = []

    def start(program: str, *words: Any) -> subprocess.Popen[str]:
        own: Any = {"env": {**os.environ, "PYTHONPATH": str(Path(files.__file__).parents[1])}, "text": True}
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        made = subprocess.Popen([sys.executable, "-c", program, *map(str, words)], **pipes, **own)
        started.append(made)
        assert made.stdout is not None and made.stdout.readline()
        return made

    yield start
    for process in started:
        process.kill()
        process.communicate()


# What stands there -------------------------------------------------------------------------------


def stand(path: Path, kind: str) -> None:
    """Puts something that is no regular file at a path."""
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        (path.parent / "target").write_text("as it was")
        path.symlink_to("target" if kind == "link" else "nowhere")


@pytest.mark.parametrize("kind", ["folder", "pipe", "link", "dangling link"])
def test_only_a_regular_file_is_replaced(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "there"
    stand(path, kind)
    before = path.lstat()
    writers: list[Callable[[], Any]] = [
        lambda: write_bytes(path, b"new"),
        lambda: write_text(path, "new"),
        lambda: STATE.save(path),
        lambda: Patch().save(path),
        lambda: baseline(tiny_lm("gpt2"), []).save(path),
        lambda: check_writable(path),
        lambda: check_output(path, force=True),
    ]
    for write in writers:
        with pytest.raises(BadInput, match=f"is a {'symbolic link' if 'link' in kind else kind}"):
            write()
    assert (path.lstat().st_ino, path.lstat().st_mode) == (before.st_ino, before.st_mode) and not left_in(tmp_path)
    assert kind != "link" or (tmp_path / "target").read_text() == "as it was"


def test_devices_and_sockets_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match="cannot write /dev/null: it is a device"):
        Patch().save("/dev/null")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    monkeypatch.chdir(tmp_path)  # the name of a socket is short
    with closing(socket.socket(socket.AF_UNIX)) as there:
        there.bind("socket")
        with pytest.raises(BadInput, match="is a socket"):
            Patch().save("socket")


@pytest.mark.parametrize("name", ["n" * 300, "file/below", "with\0zero", "gone/below"])
def test_a_name_that_no_file_can_have_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "gone").symlink_to("nowhere")
    for write in (lambda path: write_text(path, ""), check_writable, lambda path: check_output(path, True)):
        with pytest.raises(BadInput, match="cannot write"):
            write(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "gone"]


# Permissions -------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_are_the_umasks_and_stay(umask: int, tmp_path: Path) -> None:
    def mode(name: str) -> int:
        return stat.S_IMODE((tmp_path / name).stat().st_mode)

    before = os.umask(umask)
    try:
        Patch().save(tmp_path / "patch")
        write_text(tmp_path / "text", "")
        assert mode("patch") == mode("text") == 0o666 & ~umask
        (tmp_path / "patch").chmod(0o604)
        Patch().save(tmp_path / "patch")
        assert mode("patch") == 0o604
    finally:
        os.umask(before)


# Who else writes ---------------------------------------------------------------------------------


def test_what_a_dead_process_left_is_removed(other: Any, tmp_path: Path) -> None:
    killed, living = other(AT_WORK, tmp_path / "one"), other(AT_WORK, tmp_path / "two")
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert len(left_in(tmp_path)) == 2
    write_text(tmp_path / "three", "whole")
    assert len(left_in(tmp_path)) == 1  # of the one that lives
    living.communicate("\n")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"two": "whole", "three": "whole"}


def test_what_was_left_before_it_was_locked_is_removed_and_what_is_not_ours_stays(tmp_path: Path) -> None:
    (tmp_path / ".errata-0.part").mkdir()
    (tmp_path / ".errata-1.part").write_text("a file of somebody else's")
    (tmp_path / "precious").mkdir()
    (tmp_path / ".errata-2.part").symlink_to("precious")
    write_text(tmp_path / "three", "whole")
    assert left_in(tmp_path) == [".errata-1.part", ".errata-2.part"] and not list((tmp_path / "precious").iterdir())


def test_two_threads_that_write_one_file_do_not_meet(tmp_path: Path) -> None:
    path, both = tmp_path / "file", threading.Barrier(2, timeout=60)
    texts, wrong = ["one" * 1000, "two" * 1000], list[BaseException]()

    def write(text: str) -> None:
        try:
            with written_whole(path) as part:
                part.write_text(text[:3])
                both.wait()
                part.write_text(text)
                both.wait()
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and path.read_text() in texts and not left_in(tmp_path)


def test_a_lock_names_who_has_it_and_ends_with_its_process(other: Any, tmp_path: Path) -> None:
    path = tmp_path / "folder" / "lock"
    holder = other(HOLDING, path)
    with (
        pytest.raises(BadInput, match=f"rows is being written by process {holder.pid} on .* since"),
        held(path, "rows"),
    ):
        raise AssertionError("it is held")
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert path.exists()
    with held(path, "rows"), pytest.raises(BadInput, match=f"by process {os.getpid()}"), held(path, "rows"):
        raise AssertionError("it is held here")
    assert not path.exists()


def test_without_locks_in_the_file_system_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none(path: Path) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    (tmp_path / ".errata-0.part").mkdir()
    monkeypatch.setattr("errata.locks.try_lock", none)
    monkeypatch.setattr(files, "try_lock", none)
    with held(tmp_path / "lock", "rows"):
        write_text(tmp_path / "file", "whole")
    assert "rows cannot be locked here (No locks available)" in caplog.text
    assert (tmp_path / "file").read_text() == "whole"
    assert left_in(tmp_path) == [".errata-0.part"]  # nobody can tell whether it is in use


# Interrupted -------------------------------------------------------------------------------------


class Interrupts:
    """Raises KeyboardInterrupt before the ``at``-th line that is run in errata/files.py."""

    def __init__(self, at: int) -> None:
        self.at, self.lines = at, 0

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.endswith(("errata/files.py", "errata/locks.py")):
            return None
        if event == "line":
            self.lines += 1
            if self.lines == self.at:
                raise KeyboardInterrupt
        return self


def interrupted(at: int, write: Callable[[], Any]) -> bool:
    """Whether ``write`` was interrupted: it has fewer lines than that otherwise."""
    before = sys.gettrace()
    sys.settrace(Interrupts(at))
    try:
        write()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of a file that was opened in that line
def test_whenever_it_is_interrupted_the_old_or_the_new_is_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    tensors = {"a": torch.arange(1000.0)}
    seen = set[str]()
    for at in range(1, 1000):
        write_tensors(path, tensors, {"is": "old"}, "state")
        assert not left_in(tmp_path)  # what the last interruption left, too
        ended = not interrupted(at, lambda: write_tensors(path, tensors, {"is": "new"}, "state"))
        found, header = read_tensors(path, "state")
        assert torch.equal(found["a"], tensors["a"])
        seen.add(header["is"])
        if ended:
            break
    assert ended and at > 40 and seen == {"old", "new"}


def test_a_path_that_goes_up_is_tried_where_it_leads_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot write"):
        check_writable(tmp_path / "gone/../../../../../../../../../../proc/x")
    write_text(tmp_path / "gone/../here", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


# Where nothing can be written --------------------------------------------------------------------


def good(state: State) -> None:
    """A check that every state passes."""


def full_disk(path: Path, content: bytes) -> int:
    raise OSError(28, "No space left on device")


def homeless(path: Path) -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_the_cache_is_where_it_was_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for own, shared, expected in (
        ("/a", "/b", "/a"),
        ("~/a", "", f"{tmp_path}/a"),
        ("", "/b", "/b/errata"),
        ("", "", f"{tmp_path}/.cache/errata"),
    ):
        monkeypatch.setenv("ERRATA_CACHE", own)
        monkeypatch.setenv("XDG_CACHE_HOME", shared)
        assert str(cache_folder()) == expected
    monkeypatch.setattr(Path, "expanduser", homeless)
    with pytest.raises(BadInput, match="set ERRATA_CACHE"):
        cache_folder()


@pytest.mark.parametrize("why", ["a file", "below a file", "a full disk", "no home"])
def test_a_cache_that_cannot_be_written_is_said_before_the_work(
    why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def work() -> State:
        done.append(caplog.text)
        return STATE

    done: list[str] = []
    (tmp_path / "file").write_text("")
    place = {"a file": "file", "below a file": "file/cache"}.get(why, "cache")
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path / place))
    if why == "a full disk":
        monkeypatch.setattr(Path, "write_bytes", full_disk)
    if why == "no home":
        monkeypatch.delenv("ERRATA_CACHE")
        monkeypatch.setattr(Path, "expanduser", homeless)
    with caplog.at_level(logging.WARNING):
        assert cached_state("kind", [why], work, good) is STATE
    assert "kept in memory alone" in done[0] and len(caplog.records) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_cache_that_fails_after_the_work_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def work() -> State:
        monkeypatch.setattr(files, "_flush", lambda path: full_disk(path, b""))
        return STATE

    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path / "cache"))
    assert cached_state("kind", [], work, good) is STATE
    assert "No space left on device" in caplog.text and not list((tmp_path / "cache").iterdir())


def test_a_state_that_is_cached_is_read_from_a_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path))
    cached_state("kind", [], lambda: STATE, good)
    monkeypatch.setattr(Path, "write_bytes", full_disk)
    assert cached_state("kind", [], State, good).info == STATE.info


def test_an_edit_that_could_not_be_saved_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def edit(*words: str) -> str:
        one = ("edit", "./nowhere", "--prompt", "{} is", "--subject", "Ann", "--target", "Bo", "--method", "ft")
        result = CliRunner().invoke(app, [*one, *words])
        assert result.exit_code == 2 and not result.stdout
        return result.stderr

    monkeypatch.chdir(tmp_path)
    assert "there is no model" in edit("-o", "new/folder/patch")  # which is looked for next
    assert not list(tmp_path.iterdir())
    assert "cannot write /dev/null: it is a device" in edit("-o", "/dev/null", "--force")
    monkeypatch.setattr(Path, "write_bytes", full_disk)
    assert "cannot write new/folder/patch: No space left on device" in edit("-o", "new/folder/patch")


def test_a_patch_that_cannot_be_saved_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patch = quick("ft-m").edit(tiny_lm("gpt2"), [EDIT])
    monkeypatch.setattr(files, "_flush", lambda path: full_disk(path, b""))
    with pytest.raises(BadInput, match="No space left on device; nothing was left there"):
        patch.save(tmp_path / "patch")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("seen", ["before it was locked", "while it was locked"])
def test_a_folder_that_another_process_took_for_a_left_one_is_made_anew(
    seen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, taken = files.try_lock, list[Path]()

    def try_lock(path: Path) -> object:
        if taken:
            return real(path)
        taken.append(path.parent)
        lock = real(path) if seen == "while it was locked" else None
        rmtree(path.parent)
        if lock is None:
            raise FileNotFoundError(path)
        return lock

    monkeypatch.setattr(files, "try_lock", try_lock)
    files.write_text(tmp_path / "a", "text")
    assert (tmp_path / "a").read_text() == "text" and taken
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
