"""Folders of runs: nothing that an earlier training has left is lost or mixed up by mistake."""

from __future__ import annotations

import json
import os
import re

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
        got = f"which process {os.getpid()} of .* writes to; .* remove {re.escape(str(out / LOCK))}"
        with pytest.raises(FileExistsError, match=f"out: expected a folder of its own, .*{got}"):
            run([*command, "--overwrite"])
        assert [*out.glob(".*")] == [out / LOCK]
    assert (out / "best.pt").exists()


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
