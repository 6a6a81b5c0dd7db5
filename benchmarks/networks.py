"""The networks side by side at equal training time: what `molnets.ipynb` shows of long runs.

    OMP_NUM_THREADS=1 python -m benchmarks.networks train --runs runs [--only painn]
    OMP_NUM_THREADS=1 python -m benchmarks.networks measure --runs runs [--only painn]
    OMP_NUM_THREADS=1 python -m benchmarks.networks speed --runs runs [--only painn]

`train` fits each network to ethanol for 28.5 minutes and to the Lennard-Jones cluster for 5, on one
thread each, and keeps the weights in `networks/`; SchNet's are those of `benchmarks.accuracy`, and
a SchNet that sees 3 Å of ethanol only is trained for two minutes. TensorNet learns ethanol for the
same time in `benchmarks.minutes`, by its recipe. A run that is there already is not repeated.
`measure` writes `networks.json`: errors, size, time and memory, drift of the total energy, and how
long dynamics lasts at 500 K. Ethanol needs the data folder (`SCHNET_DATA`, else ../shared/data).
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import units
from ase.build import molecule
from torch import Tensor

from benchmarks.accuracy import DATA, cluster_data, slim
from molnets import Potential, checkpoint, model_force_fn, tabulated
from molnets.command import run as molnets
from molnets.dynamics import (
    ExplosionError,
    State,
    analysis,
    langevin_baoab,
    maxwell_boltzmann,
    remove_drift,
    run,
    start,
    velocity_verlet,
)
from molnets.files import write_json
from molnets.graphs import BondGraph
from molnets.training import evaluate, load

HERE = Path(__file__).parent
NUMBERS, KEPT = HERE / "networks.json", HERE / "networks"
NAMES = ("schnet", "egnn", "painn", "tensornet", "dimenet")
IN_MINUTES = {"tensornet": "tensornet-tables"}  # trained as a case of `benchmarks.minutes`
COMMON = {
    "ethanol": ["--minutes=28.5", "--rho-energy=0.05", "--num-validation=30", "--batch-size=5",
                "--energy-unit=eV", "--length-unit=Å"],
    "cluster": ["--minutes=5", "--rho-energy=1", "--batch-size=20", "--cutoff=4",
                "--dim-embedding=32", "--num-interactions=2", "--energy-unit=ε",
                "--length-unit=σ"],
}  # fmt: skip
OWN = {
    ("ethanol", "egnn"): ["--gamma=4", "--lr=0.003"],
    ("ethanol", "painn"): ["--gamma=4", "--lr=0.003", "--engine=compiled"],
    ("ethanol", "dimenet"): ["--lr=0.001"],
    ("cluster", "egnn"): ["--lr=0.003"],
    ("cluster", "painn"): ["--lr=0.003"],
    ("cluster", "tensornet"): ["--lr=0.003", "--clip-norm=1"],
    ("cluster", "dimenet"): ["--lr=0.001"],
}
REPLICAS, STEP = 8, 0.5  # fs
BROKEN = 1.5  # a bond is broken at so many times its length in the molecule at rest, or below 1/1.5


def weights_of(data: str, name: str) -> Path:
    """Return the file of a network's trained weights."""
    return HERE / f"{data}.pt" if name == "schnet" else KEPT / f"{data}_{name}.pt"


def train_near(runs: Path) -> None:
    """Train the SchNet that sees 3 Å only."""
    flags = [
        *COMMON["ethanol"][1:],
        "--recipe=none",
        "--minutes=2",
        "--cutoff=3",
        "--gamma=4",
        "--lr=0.001",
    ]
    if not (runs / "near" / "metrics.json").exists():
        molnets(["train", str(DATA / "rmd17_ethanol.npz"), "--out", str(runs / "near"), *flags])
    slim(runs / "near" / "best.pt", KEPT / "ethanol_near.pt")


def train(runs: Path, name: str) -> None:
    """Train a network on both data sets."""
    files = {"ethanol": DATA / "rmd17_ethanol.npz", "cluster": runs / "cluster.npz"}
    if not files["cluster"].exists():
        cluster_data(files["cluster"])
    for data, file in files.items():
        out = runs / f"{data}_{name}"
        if data == "ethanol" and name in IN_MINUTES:
            out = runs / f"{IN_MINUTES[name]}_28.5_0_1000"
            minutes("train", IN_MINUTES[name], "--minutes=28.5", f"--runs={runs}")
        elif not (out / "metrics.json").exists():
            flags = [*COMMON[data], "--recipe=none", *OWN[data, name]]
            molnets(["train", str(file), "--out", str(out), "--network", name, *flags])
        slim(out / "best.pt", weights_of(data, name))


def minutes(*arguments: str) -> None:
    """Run `benchmarks.minutes`."""
    call = [sys.executable, "-m", "benchmarks.minutes", *arguments]
    subprocess.run(call, cwd=HERE.parent, check=True)


def epochs_of(runs: Path, data: str, name: str) -> float:
    """Return how many epochs a network was trained for."""
    if data == "ethanol" and name in IN_MINUTES:
        rows = json.loads((HERE / "minutes.json").read_text())["rows"]
        (row,) = [row for row in rows if (row["case"], row["minutes"], row["seed"], row["frames"])
                  == (IN_MINUTES[name], 28.5, 0, 1000)]  # fmt: skip
        return row["epochs"]
    metrics = HERE / f"{data}.json" if name == "schnet" else runs / f"{data}_{name}/metrics.json"
    return json.loads(metrics.read_text())["epochs"]


def seconds(call: Callable[[], Any], budget: float = 3.0) -> float:
    """Return the median time of a call."""
    for _ in range(5):
        call()
    times, started = [], time.perf_counter()
    while len(times) < 10 or time.perf_counter() - started < budget:
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return float(np.median(times))


def ethanols(num_replicas: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return atomic numbers, (n,), positions, (R, n, 3), and masses, (n,), of ethanol."""
    atoms = molecule("CH3CH2OH")
    x = torch.tensor(atoms.positions, dtype=torch.float32).repeat(num_replicas, 1, 1)
    return torch.tensor(atoms.numbers), x, torch.tensor(atoms.get_masses(), dtype=torch.float32)


def force_field(potential: Potential, z: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Return a network's force field, from tables where there are some."""
    return model_force_fn(tabulated(potential), z)


def memory(path: Path) -> float:
    """Return by how many MB 64 ethanols raise the memory of a new process."""
    code = f"import benchmarks.networks as b; b.print_memory({str(path)!r})"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(out.stdout.split()[-1])


def print_memory(path: str) -> None:
    """Print by how many MB 64 ethanols raise the memory of this process, in which one is warm.

    Linux keeps the peak, and forgets it when 5 is written to a file.
    """
    z, x, _ = ethanols(64)
    force_fn = force_field(checkpoint.load(path), z)
    force_fn(x[:1])
    Path("/proc/self/clear_refs").write_text("5")
    before = memory_of("VmHWM")
    force_fn(x)
    print((memory_of("VmHWM") - before) / 1024)


def memory_of(kind: str) -> int:
    """Return what Linux says of this process, in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(kind)).split()[1])


def drift(force_fn: Callable, picoseconds: float = 2.5) -> dict[str, float]:
    """Return the drift of the total energy at 300 K, in µeV per atom and ps, and its error."""
    _, x, masses = ethanols(REPLICAS)
    state, generator = heated(force_fn, x, masses, 300.0)
    state = run(bath(force_fn, 300.0, generator), state, 2000, every=2000, progress=False)[0]
    begin = start(force_fn, state.positions, remove_drift(state.velocities, masses), masses)
    num_steps = round(1000 * picoseconds / STEP)
    _, frames = run(lambda s: velocity_verlet(force_fn, s, STEP * units.fs), begin, num_steps,
                    every=50, progress=False)  # fmt: skip
    times = STEP / 1000 * frames.steps.numpy()
    slope = 1e6 * analysis.energy_drift(frames.energies + frames.kinetic_energies, times, 9).slope
    return {"drift": float(slope.mean()), "drift_error": float(slope.std() / REPLICAS**0.5)}


def heated(force_fn: Callable, x: Tensor, masses: Tensor, T: float) -> tuple[State, Any]:
    """Return a state with velocities of a temperature, and the generator that goes on."""
    generator = torch.Generator().manual_seed(0)
    v = maxwell_boltzmann(masses, T, len(x), generator, k_B=units.kB)
    return start(force_fn, x, v.to(x.dtype), masses), generator


def bath(force_fn: Callable, T: float, generator: torch.Generator) -> Callable[[State], State]:
    """Return a step of Langevin dynamics."""
    fs = units.fs
    return lambda s: langevin_baoab(force_fn, s, STEP * fs, T, 0.02 / fs, generator, k_B=units.kB)


def survival(force_fn: Callable, T: float = 500.0, picoseconds: float = 5.0) -> dict[str, Any]:
    """Return how many replicas break a bond at a temperature, and how long they last, in ps."""
    z, x, masses = ethanols(REPLICAS)
    (j, i), bonds = BondGraph(z).edges(x[0], torch.zeros(len(z), dtype=torch.int64))
    length = torch.linalg.vector_norm(bonds, dim=1)
    state, generator = heated(force_fn, x, masses, T)
    step, when = bath(force_fn, T, generator), torch.full((REPLICAS,), math.inf)
    for block in range(round(1000 * picoseconds / STEP / 20)):
        try:
            state = run(step, state, 20, every=20, progress=False)[0]
        except ExplosionError as error:
            state = error.state
            when[error.replicas] = when[error.replicas].clamp(max=block * 20 * STEP / 1000)
        ratio = torch.linalg.vector_norm(state.positions[:, i] - state.positions[:, j], dim=2)
        ratio = ratio / length  # (R, bonds)
        broken = ((ratio > BROKEN) | (ratio < 1 / BROKEN)).any(dim=1)
        when[broken] = when[broken].clamp(max=block * 20 * STEP / 1000)
        lost = when.isfinite().view(-1, 1, 1)
        if lost.any():  # back to the start: a broken replica must not stop the others
            x_new, v_new = torch.where(lost, x, state.positions), state.velocities * ~lost
            state = start(force_fn, x_new, v_new.nan_to_num(), masses)
        if when.isfinite().all():
            break
    return {"lost": int(when.isfinite().sum()), "replicas": REPLICAS,
            "survived_ps": float(when.clamp(max=picoseconds).mean())}  # fmt: skip


def measure(runs: Path, name: str) -> dict[str, Any]:
    """Return what is known of a trained network."""
    row: dict[str, Any] = {"network": name, "threads": torch.get_num_threads()}
    files = {"ethanol": DATA / "rmd17_ethanol.npz", "cluster": runs / "cluster.npz"}
    for data, file in files.items():
        potential, frames = checkpoint.load(weights_of(data, name)), load(file)
        errors = evaluate(potential, frames, (frames.split == 1).nonzero().flatten()).errors
        row |= {f"{data}_energy_mae": errors.energy_mae, f"{data}_force_mae": errors.force_mae}
        row |= {f"{data}_epochs": epochs_of(runs, data, name)}
    potential = checkpoint.load(weights_of("ethanol", name))
    row["parameters"] = sum(weight.numel() for weight in potential.parameters())
    force_fn = force_field(potential, ethanols(1)[0])
    return row | drift(force_fn) | survival(force_fn)


def speed(name: str) -> dict[str, float]:
    """Return the time of energies and forces of 1 and of 64 ethanols, and the memory of 64."""
    potential, row = checkpoint.load(weights_of("ethanol", name)), {}
    for num_replicas in (1, 64):
        z, x, _ = ethanols(num_replicas)
        force_fn = force_field(potential, z)
        row[f"ms_{num_replicas}"] = 1000 * seconds(lambda f=force_fn, x=x: f(x))
    return row | {"memory_mb": memory(weights_of("ethanol", name))}


def main() -> None:
    """Train or measure the networks that are asked for."""
    measures = {"measure": lambda name: measure(options.runs, name), "speed": speed}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("train", *measures))
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--only", choices=NAMES, help="one network")
    options = parser.parse_args()
    options.runs.mkdir(parents=True, exist_ok=True)
    KEPT.mkdir(exist_ok=True)
    for name in [options.only] if options.only else NAMES:
        if options.what in measures:
            found = measures[options.what](name)
            rows = json.loads(NUMBERS.read_text()) if NUMBERS.exists() else {}
            write_json(rows | {name: rows.get(name, {}) | found}, NUMBERS)
        elif name == "schnet":
            train_near(options.runs)
        else:
            train(options.runs, name)


if __name__ == "__main__":
    main()
