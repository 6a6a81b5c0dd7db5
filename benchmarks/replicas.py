"""How fast dynamics runs when all replicas are one batch: writes the table replicas.md.

    python -m benchmarks.replicas

Langevin dynamics of the 7-atom Lennard-Jones cluster, 512 replicas at once and one after the other,
in turn: medians of several blocks of steps, and the ratio of the medians.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from fake_data import lattice_sites
from molnets.dynamics import (
    ForceFn,
    State,
    langevin_baoab,
    lennard_jones,
    maxwell_boltzmann,
    model_force_fn,
    run,
    start,
)
from schnet_helpers import SchNet

NUM_REPLICAS, BLOCKS, STEPS = 512, 7, {1: 200, 512: 40}


def blocks(force_fn: ForceFn, num_replicas: int) -> Callable[[], float]:
    """Return what runs a block of steps and says how many replica-steps it made per second."""
    generator = torch.Generator().manual_seed(0)
    masses = torch.ones(7)
    positions = 1.1 * lattice_sites(7).float().repeat(num_replicas, 1, 1)
    velocities = maxwell_boltzmann(masses, 0.1, num_replicas, generator)
    state = start(force_fn, positions, velocities, masses)
    num_steps = STEPS[num_replicas]

    def step(state: State) -> State:
        return langevin_baoab(force_fn, state, 0.002, 0.1, 1.0, generator)

    def block() -> float:
        started = time.perf_counter()
        run(step, state, num_steps, every=num_steps, progress=False)
        return num_replicas * num_steps / (time.perf_counter() - started)

    return block


def row(name: str, force_fn: ForceFn) -> str:
    """Measure one force field both ways, in turn; return its line of the table."""
    one, many = blocks(force_fn, 1), blocks(force_fn, NUM_REPLICAS)
    one(), many()  # warm up
    speeds = [(one(), many()) for _ in range(BLOCKS)]
    slow, fast = (statistics.median(column) for column in zip(*speeds, strict=True))
    return f"| {name} | {fast:,.0f} | {slow:,.0f} | {fast / slow:.0f}× |"


def main() -> None:
    """Measure, and write the table."""
    torch.manual_seed(0)
    fields = {
        "Lennard-Jones": lennard_jones(),
        "SchNet, F 32, 2 blocks, r_c 4": model_force_fn(SchNet(cutoff=4.0), torch.ones(7, 1)),
    }
    head = f"| force field | {NUM_REPLICAS} replicas at once | one at a time | ratio |"
    machine = f"{torch.get_num_threads()} threads, {platform.machine()}"
    lines = ["# Replicas", "", "Replica-steps per second, Langevin dynamics, 7 atoms, float32.", ""]
    lines += [head, "| --- | --- | --- | --- |", *(row(*field) for field in fields.items()), ""]
    lines += [f"Medians of {BLOCKS} blocks; {machine}, torch {torch.__version__}."]
    Path(__file__).with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
