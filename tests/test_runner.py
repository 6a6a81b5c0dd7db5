"""Runs: which frames they keep, what they show, and how they end when a replica explodes."""

from __future__ import annotations

import math

import pytest
import torch
from systems import MASSES, cluster, verlet

from molnets.dynamics import (
    ExplosionError,
    ExtxyzWriter,
    kinetic_energy,
    lennard_jones,
    read_trajectory,
    run,
    velocity_verlet,
)

pytestmark = pytest.mark.usefixtures("float64")


def test_frames_and_their_numbers():
    state = cluster(2)
    last, frames = run(verlet(0.005), state, 10, every=4, first_step=100, progress=False)
    assert frames.steps.tolist() == [104, 108]
    assert frames.positions.shape == frames.velocities.shape == (2, 2, 7, 3)
    for _ in range(8):
        state = velocity_verlet(lennard_jones(), state, 0.005)
    assert torch.equal(frames.positions[1], state.positions)
    assert torch.equal(frames.energies[1], state.energies)
    assert torch.equal(frames.kinetic_energies[1], kinetic_energy(state.velocities, MASSES))
    assert not torch.equal(last.positions, state.positions)
    assert len(run(verlet(0.005), state, 3, every=4, progress=False)[1].positions) == 0


def test_progress_bar(capfd):
    run(verlet(0.005), cluster(1), 3)
    assert "3/3" in capfd.readouterr().err
    run(verlet(0.005), cluster(1), 3, progress=False)
    assert capfd.readouterr().err == ""


def poisoned(steps: int, replica: int, energy: float, force: float):
    """Return a force field that turns bad for one replica after some calls."""
    calls = []

    def force_fn(pos):
        energies, forces = lennard_jones()(pos)
        calls.append(1)
        if len(calls) >= steps:
            energies[replica], forces[replica, 3, 1] = energy, force
        return energies, forces

    return force_fn


@pytest.mark.parametrize(
    ("energy", "force", "delay"),
    [(math.nan, 0.0, 0), (-math.inf, 0.0, 0), (0.0, math.nan, 0), (0.0, math.inf, 0), (0, 1e7, 1)],
)
def test_an_explosion_names_replica_and_step_and_keeps_the_frames(tmp_path, energy, force, delay):
    step, state = verlet(0.005, poisoned(8, 3, energy, force)), cluster(5)
    writer = ExtxyzWriter(tmp_path / "run.xyz", ["X"] * 7)
    message = rf"replicas \[3\] exploded at step {108 + delay}"
    with pytest.raises(ExplosionError, match=message) as caught:
        run(step, state, 50, every=2, trajectory=writer, first_step=100, progress=False)
    error = caught.value
    assert (error.replicas, error.step) == ([3], 108 + delay)
    sound = [102, 104, 106] + [108] * delay
    assert error.frames.steps.tolist() == sound
    assert error.frames.positions.isfinite().all()
    assert error.state.positions.isfinite().all()
    entries = read_trajectory(tmp_path / "run.xyz")
    assert [a.info["step"] for a in entries] == [s for s in sound for _ in range(5)]


ERRORS = [
    (
        lambda: run(verlet(0.1), cluster(1), -1),
        "num_steps: expected a finite number, not negative, got -1",
    ),
    (lambda: run(verlet(0.1), cluster(1), 1, every=0), "every: expected a positive .* got 0"),
]


@pytest.mark.parametrize(("attempt", "message"), ERRORS)
def test_errors_name_the_argument(attempt, message):
    with pytest.raises(ValueError, match=message):
        attempt()
