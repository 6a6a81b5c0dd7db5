"""Folders of runs: nothing that an earlier training has left is lost or mixed up by mistake."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from frames import FLAGS, arrays

from molnets.command import run
from molnets.files import LOCK, alone_in

BRIEF = [*FLAGS, "--epochs=2"]


def test_runs_of_another_kind_are_not_written_over(tmp_path):
    """A committee beside a single run would replace its metrics, and the other way round."""
    np.savez(tmp_path / "data.npz", **arrays())
    out = tmp_path / "run"
    single = ["train", str(tmp_path / "data.npz"), "--out", str(out), *BRIEF]
    committee = [*single, "--seeds=2"]
    run(single)
    before = (out / "metrics.json").read_bytes()
    for more in ([], ["--resume"]):
        with pytest.raises(FileExistsError, match=f"out: expected .*{re.escape(str(out))}"):
            run([*committee, *more])
    assert (out / "metrics.json").read_bytes() == before
    run([*committee, "--overwrite"])
    assert not (out / "last.pt").exists() and not (out / "force_parity.svg").exists()
    for more in ([], ["--resume"]):
        with pytest.raises(FileExistsError, match=r"out: expected .*seed-0"):
            run([*single, *more])
    run([*single, "--overwrite"])
    assert not (out / "seed-0").exists() and not (out / "seed-1").exists()
    assert json.loads((out / "metrics.json").read_text())["num_train"] > 0


def test_a_mistake_does_not_cost_the_earlier_run(tmp_path):
    np.savez(tmp_path / "data.npz", **arrays())
    out = tmp_path / "run"
    command = ["train", str(tmp_path / "data.npz"), "--out", str(out), *BRIEF]
    run(command)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(ValueError, match="batch_size: expected 1 to"):
        run([*command, "--overwrite", "--batch-size=1000"])
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_one_training_at_a_time_writes_to_a_folder(tmp_path):
    """The lock of a process that runs stops others; the file that a killed one left does not."""
    np.savez(tmp_path / "data.npz", **arrays())
    out = tmp_path / "run"
    out.mkdir()
    (out / LOCK).write_text("process 1 of a container")
    command = ["train", str(tmp_path / "data.npz"), "--out", str(out), *BRIEF]
    run(command)
    assert not [*out.glob(".*")]
    with alone_in(out):
        got = f"which another process writes to; .* remove {re.escape(str(out / LOCK))}"
        with pytest.raises(FileExistsError, match=f"out: expected a folder of its own, .*{got}"):
            run([*command, "--overwrite"])
        assert [*out.glob(".*")] == [out / LOCK]
    assert (out / "best.pt").exists()


def link_to_nothing(folder: Path) -> tuple[Path, str]:
    (folder / "link").symlink_to("nothing")
    return folder / "link", "a folder, got .*link, which is a link to nothing, where nothing is"


def below_a_link_to_nothing(folder: Path) -> tuple[Path, str]:
    return link_to_nothing(folder)[0] / "run", "a folder, got .*run; .*link is a link to nothing"


def below_a_file(folder: Path) -> tuple[Path, str]:
    (folder / "file").touch()
    return folder / "file" / "a" / "b", "a folder, got .*a.b; .*file is a file"


def where_the_system_refuses(folder: Path) -> tuple[Path, str]:
    return Path("/proc/run"), "a folder that is there or can be made, got /proc/run: No such file"


@pytest.mark.parametrize(
    "place", [link_to_nothing, below_a_link_to_nothing, below_a_file, where_the_system_refuses]
)
def test_where_no_folder_can_be_it_is_said_before_data_are_read(tmp_path, place):
    out, message = place(tmp_path)
    if out.is_relative_to("/proc") and not Path("/proc/self").exists():
        pytest.skip("no /proc")
    with pytest.raises((ValueError, OSError), match=f"^out: expected {message}"):
        run(["train", str(tmp_path / "no data.npz"), "--out", str(out), *BRIEF])


@pytest.mark.parametrize("seeds", [1, 2])
def test_mistakes_leave_no_new_folder(tmp_path, seeds):
    """What was there before stays, empty or not."""
    np.savez(tmp_path / "data.npz", **arrays())
    (tmp_path / "old").mkdir()
    flags = [*BRIEF, f"--seeds={seeds}"]
    for out in (tmp_path / "new" / "run", tmp_path / "old"):
        command = ["train", str(tmp_path / "data.npz"), "--out", str(out), *flags]
        got = f"got {re.escape(str(out))}, where no last.pt is"
        with pytest.raises(FileNotFoundError, match=f"out: expected the folder of a run .*{got}"):
            run([*command, "--resume"])
        with pytest.raises(ValueError, match="batch_size: "):
            run([*command, "--batch-size=1000"])
        assert sorted(path.name for path in tmp_path.iterdir()) == ["data.npz", "old"]
        assert not [*(tmp_path / "old").iterdir()]


def test_more_patience_goes_on(tmp_path, capsys):
    np.savez(tmp_path / "data.npz", **arrays())
    out = tmp_path / "run"
    command = ["train", str(tmp_path / "data.npz"), "--out", str(out), *BRIEF, "--ema-decay=0"]
    metrics = run([*command, "--epochs=40", "--lr=3", "--patience=1"])
    assert metrics["epochs"] < 40
    again = run([*command, "--epochs=40", "--lr=3", "--patience=1", "--resume"])
    assert again["epochs"] == metrics["epochs"]
    assert "nothing to do: 1 epochs were no better, and patience is 1" in capsys.readouterr().out
    more = run([*command, "--epochs=40", "--lr=3", "--patience=0", "--resume"])
    assert more["epochs"] == 40
