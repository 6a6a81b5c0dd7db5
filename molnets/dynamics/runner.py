"""Many steps: frames, a progress bar, a trajectory on disk, and what is left of an explosion.

Axes:   R independent replicas, n atoms in each, T recorded frames.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from molnets.checks import expect_not_negative, expect_size
from molnets.dynamics.integrators import State, kinetic_energy
from molnets.dynamics.trajectory import ExtxyzWriter


class Frames(NamedTuple):
    """Steps (T,), positions and velocities (T, R, n, 3), energies and kinetic energies (T, R)."""

    steps: Tensor
    positions: Tensor
    velocities: Tensor
    energies: Tensor
    kinetic_energies: Tensor


class ExplosionError(RuntimeError):
    """Replicas exploded at a step; `frames` and the last sound `state` are what was before."""

    def __init__(self, replicas: list[int], step: int, frames: Frames, state: State) -> None:
        super().__init__(f"replicas {replicas} exploded at step {step}; the frames before it stay")
        self.replicas, self.step, self.frames, self.state = replicas, step, frames, state


def run(
    step: Callable[[State], State], state: State, num_steps: int, *, every: int = 1,
    trajectory: ExtxyzWriter | None = None, first_step: int = 0, max_move: float = 1.0,
    progress: bool = True,
) -> tuple[State, Frames]:  # fmt: skip
    """Make many steps; return the last state, and the frames after every so many steps.

    The start itself is no frame, so the frames of consecutive runs follow one another.

    Args:
        step: one step, e.g. `lambda state: velocity_verlet(force_fn, state, dt)`.
        state: where to start, from `start` or an earlier run.
        num_steps: how many steps to make.
        every: steps from one frame to the next.
        trajectory: where frames are written as well, while the run goes on.
        first_step: steps made by earlier runs; the frames are numbered from there.
        max_move: the furthest that an atom may move along an axis in one step.
        progress: show a progress bar.

    Raises:
        ExplosionError: if a replica moves further, or is not finite any more.
    """
    expect_not_negative("num_steps", num_steps)
    expect_size("every", every)
    steps, frames = [], [state]
    for i in tqdm(range(1, num_steps + 1), unit="step", disable=not progress):
        before, state = state, step(state)
        moved = (state.positions - before.positions).abs().amax(dim=(1, 2))
        sound = (moved <= max_move) & state.is_finite()  # (R,); a NaN is not <= anything
        if not sound.all():
            replicas = (~sound).nonzero().flatten().tolist()
            raise ExplosionError(replicas, first_step + i, _collect(steps, frames), before)
        if i % every == 0:
            steps.append(first_step + i)
            frames.append(state)
            if trajectory is not None:
                trajectory.write(steps[-1], state)
    return state, _collect(steps, frames)


def _collect(steps: list[int], states: list[State]) -> Frames:
    x, v, energies, _, masses = zip(*states, strict=True)
    x, v, energies = (torch.stack(parts)[1:] for parts in (x, v, energies))  # the start is no frame
    return Frames(torch.tensor(steps), x, v, energies, kinetic_energy(v, masses[0]))
