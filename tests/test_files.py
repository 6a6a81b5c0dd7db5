"""Files are there whole, or as they were before."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from molnets.files import LOCK, UNFINISHED, alone_in, remove_unfinished, write_json, write_whole


def test_files_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.txt"

    def break_off(unfinished: Path) -> None:
        unfinished.write_text("ha")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(path, break_off)
    assert not path.exists()
    write_whole(path, lambda unfinished: unfinished.write_text("first"))
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, break_off)
    assert path.read_text() == "first"
    write_whole(path, lambda unfinished: unfinished.write_text("second"))
    assert path.read_text() == "second"
    assert list(tmp_path.iterdir()) == [path]  # nothing unfinished is left


def test_values_that_are_no_json_leave_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json({"ä": 1.5}, path)
    with pytest.raises(TypeError):
        write_json({"a": object()}, path)
    assert json.loads(path.read_text()) == {"ä": 1.5}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("kind", ["text", "checkpoint"])
def test_a_full_disk_leaves_the_old_file(tmp_path, kind):
    import torch

    path = tmp_path / "a.pt"
    path.write_text("old")

    def write(unfinished: Path) -> None:
        unfinished.symlink_to("/dev/full")
        if kind == "text":
            unfinished.write_text("new")
        else:
            torch.save({"x": torch.zeros(10_000)}, unfinished)

    with pytest.raises(OSError, match=r"a\.pt cannot be written, what was there is kept: .*"):
        write_whole(path, write)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_removed(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    left = [f".molnets-{process.pid}-last.pt", f".molnets-{process.pid}-best.pt"]
    kept = [f".molnets-{os.getpid()}-last.pt", ".molnets-notes", ".molnets-12a-b", "last.pt"]
    for name in left + kept:
        (tmp_path / name).write_text("half")
    remove_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


def test_hidden_files_that_others_made_stay(tmp_path):
    """A number at the start is a year as well; and no process has so large a number."""
    gone = 2**22 + 1
    names = [f".{gone}-notes.txt", f".x.molnets-{gone}-y", f".molnets-{10**20}-last.pt"]
    for name in names:
        (tmp_path / name).write_text("mine")
    folders = [f".{gone}-figs", f".molnets-{gone}-figs"]
    for name in folders:
        (tmp_path / name).mkdir()
    remove_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names + folders)


def test_what_is_written_carries_the_name_that_is_removed(tmp_path):
    names = []
    write_whole(tmp_path / "last.pt", lambda path: names.append(path.name) or path.touch())
    assert [UNFINISHED.fullmatch(name)[1] for name in names] == [str(os.getpid())]


HOLDS = """
import os, signal, sys, time
from pathlib import Path
from molnets.files import alone_in
with alone_in(Path(sys.argv[1])):
    forked = os.fork() if "fork" in sys.argv else 1
    print(forked if forked else "", flush=True)
    time.sleep(600)
"""


def holder(folder: Path, *more: str) -> tuple[subprocess.Popen, int]:
    """Start a process that holds a folder; return it and the number of its child, or 1."""
    command = [sys.executable, "-c", HOLDS, str(folder), *more]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    lines = [process.stdout.readline().strip() for _ in range(2 if more else 1)]
    return process, int("".join(lines))


def expect_refused(folder: Path, match: str) -> None:
    with pytest.raises(FileExistsError, match=match), alone_in(folder):
        raise AssertionError


def killed(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()
    process.stdout.close()


needs_locks = pytest.mark.skipif(not hasattr(os, "fork"), reason="no locks that end by themselves")


@needs_locks
def test_a_folder_is_held_as_long_as_its_process_runs(tmp_path):
    """Killed, it leaves its file but not the lock; the numbers of processes do not count."""
    process, _ = holder(tmp_path)
    got = f"{tmp_path}, which another process writes to; .* remove {tmp_path / LOCK}$"
    expect_refused(tmp_path, f"out: expected a folder of its own, got {got}")
    assert (tmp_path / LOCK).exists()
    killed(process)
    assert (tmp_path / LOCK).exists()
    (tmp_path / LOCK).write_text("process 1 of a container, which always runs")
    with alone_in(tmp_path):
        expect_refused(tmp_path, "out: ")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EACCES])
def test_where_files_cannot_be_locked_it_is_said(tmp_path, monkeypatch, number):
    """Some file systems lock none; and a folder may be closed to us."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("filelock.BaseFileLock.acquire", refuse)
    folder, held = tmp_path / "new", []
    if number == errno.ENOLCK:
        with pytest.warns(UserWarning, match="no files can be locked here"), alone_in(folder):
            held = [*folder.iterdir()]
    else:
        with pytest.raises(OSError, match="out: expected a folder that one can"), alone_in(folder):
            raise AssertionError
    assert not held
    assert not folder.exists()


@needs_locks
def test_a_child_that_outlives_its_parent_holds_no_folder(tmp_path):
    process, child = holder(tmp_path, "fork")
    try:
        expect_refused(tmp_path, "out: ")
        killed(process)
        os.kill(child, 0)  # it runs
        with alone_in(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


@needs_locks
def test_a_child_that_ends_leaves_the_lock_of_its_parent(tmp_path):
    with alone_in(tmp_path):
        pid = os.fork()
        if pid == 0:
            try:
                with alone_in(tmp_path):
                    os._exit(1)
            except FileExistsError:
                os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert (tmp_path / LOCK).exists()
