"""A training that is killed at any write goes on as if it had not been."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from frames import dataset, trainer_for

from molnets import checkpoint
from molnets.training import trainer as trainer_module

SETTINGS = {"epochs": 3, "batch_size": 4}
WRITES = 3 * SETTINGS["epochs"]  # last.pt, best.pt and history.csv after each epoch


def in_a_child(task) -> int:
    """Run a task in a forked process; return the signal that ended it, or 0."""
    pid = os.fork()
    if pid == 0:
        try:
            task()
        except BaseException:
            os._exit(1)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def train(out: Path, kill_at: int | None = None, when: str = "before") -> None:
    """Train, or go on; be killed before, in the middle of, or after a write."""
    torch.set_num_threads(1)
    trainer_module.SAVE_EVERY = -1.0  # after each epoch
    replace, written = os.replace, []

    def aimed(source: Path, target: Path) -> None:
        written.append(target)
        hit = len(written) - 1 == kill_at
        if hit and when == "half":
            Path(source).write_bytes(Path(source).read_bytes()[:100])
        if hit and when == "after":
            replace(source, target)
        if hit:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = aimed
    trainer = trainer_for(dataset(), out, **SETTINGS)
    if (out / "last.pt").exists():
        trainer.resume(out / "last.pt")
    trainer.run(progress=False)


def end_of(out: Path) -> dict[str, torch.Tensor]:
    """Return all weights of both files, and the number of lines of the history."""
    found = {}
    for name in ("last.pt", "best.pt"):
        state = checkpoint.read(out / name)
        for key in ("model", "raw", "kept"):
            found |= {f"{name} {key} {k}": x for k, x in state.get(key, {}).items()}
    found["lines"] = torch.tensor(len((out / "history.csv").read_text().splitlines()))
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, torch.Tensor]:
    out = tmp_path_factory.mktemp("whole")
    assert in_a_child(lambda: train(out)) == 0
    return end_of(out)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
@pytest.mark.parametrize("when", ["before", "half", "after"])
@pytest.mark.parametrize("write", range(WRITES))
def test_a_kill_at_any_write_loses_nothing(tmp_path, whole, write, when):
    assert in_a_child(lambda: train(tmp_path, write, when)) == signal.SIGKILL
    left = [path.name for path in tmp_path.glob(".*-*")]
    assert len(left) == (0 if when == "after" else 1)
    assert in_a_child(lambda: train(tmp_path)) == 0
    found = end_of(tmp_path)
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], x) for name, x in whole.items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pt", "history.csv", "last.pt"]
