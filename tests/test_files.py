"""Files are there whole, or as they were before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from molnets.files import UNFINISHED, remove_unfinished, write_json, write_whole


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
