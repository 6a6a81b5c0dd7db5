"""What SchNet reaches: trains on each data set, tests, and writes the table accuracy.md.

    python -m benchmarks.accuracy --runs runs [--only ethanol]

A run that is there already (its metrics.json) is not repeated. Ethanol needs the data folder
(`SCHNET_DATA`, else ../shared/data); the Lennard-Jones cluster makes its own data. Beside the page
go the trained networks. The last table trains ethanol on tables and on the plain network.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path

import numpy as np
import torch

from fake_data import lattice_sites
from molnets import checkpoint
from molnets.command import run as molnets
from molnets.dynamics import State, langevin_baoab, lennard_jones, maxwell_boltzmann, run, start
from molnets.files import write_json

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("SCHNET_DATA", ROOT.parent / "shared" / "data"))
SEEDS = (0, 1, 2)
UNITS = {"ethanol": ("meV", "meV/Å", 1000.0), "cluster": ("10⁻³ ε", "10⁻³ ε/σ", 1000.0)}
FLAGS = {
    "ethanol": ["--minutes=28.5", "--gamma=4", "--rho-energy=0.05", "--num-validation=30",
                "--energy-unit=eV", "--length-unit=Å", "--recipe=none"],
    "cluster": ["--energy-unit=ε", "--length-unit=σ", "--minutes=5", "--batch-size=20",
                "--lr=0.003", "--cutoff=4", "--dim-embedding=32", "--num-filters=32",
                "--num-interactions=2", "--rho-energy=1", "--recipe=none"],
}  # fmt: skip


def cluster_data(path: Path, temperature: float = 0.15) -> Path:
    """Write frames of the 7-atom Lennard-Jones cluster from Langevin dynamics, 64 replicas."""
    generator = torch.Generator().manual_seed(0)
    masses, force_fn = torch.ones(7, dtype=torch.float64), lennard_jones()
    velocities = maxwell_boltzmann(masses, temperature, 64, generator)
    state = start(force_fn, lattice_sites(7).double().repeat(64, 1, 1), velocities, masses)

    def step(state: State) -> State:
        return langevin_baoab(force_fn, state, 0.005, temperature, 1.0, generator)

    # the cluster starts on a cubic lattice, and needs a while to find its own shape
    state, _ = run(step, state, 30_000, every=30_000, progress=False)
    _, frames = run(step, state, 6400, every=200, progress=False)
    R = frames.positions.transpose(0, 1).reshape(-1, 7, 3)  # replica after replica: (2048, 7, 3)
    energies, forces = force_fn(R)
    split = np.arange(len(R)) >= 1024  # half of the replicas to train on, the others to test
    np.savez(path, R=R, E=energies, F=forces, z=np.ones(7), split=split.astype(int))
    return path


def row(name: str, metrics: dict, force_rms: float) -> str:
    """Return one line of the table."""
    energy_unit, force_unit, factor = UNITS[name]
    frames = f"{metrics['num_train']} + {metrics['num_validation']} / {metrics['num_test']}"
    minutes, seed = metrics["seconds"] / 60, metrics["settings"]["seed"]
    return (
        f"| {name} | {frames} | {factor * metrics['test_energy_mae']:.2f} {energy_unit} "
        f"| {factor * metrics['test_force_mae']:.2f} {force_unit} "
        f"| {100 * metrics['test_force_mae'] / force_rms:.2f} % | {metrics['num_parameters']} "
        f"| {metrics['epochs']} | {minutes:.1f} min | {seed} |"
    )


def main() -> None:
    """Train what is not there yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--only", choices=FLAGS, help="one data set")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    options = parser.parse_args()
    options.runs.mkdir(parents=True, exist_ok=True)
    rows, commands, threads = [], [], 0
    for name in [options.only] if options.only else FLAGS:
        data = DATA / "rmd17_ethanol.npz"
        if name == "cluster":
            data = options.runs / "cluster.npz"
            if not data.exists():
                cluster_data(data)
        if not data.exists():
            print(f"{name}: no {data}, left out")
            continue
        out = options.runs / name
        if not (out / "metrics.json").exists():
            molnets(["train", str(data), "--out", str(out), *FLAGS[name]])
        metrics = json.loads((out / "metrics.json").read_text())
        with np.load(data, allow_pickle=False) as arrays:
            force_rms = float(np.sqrt((arrays["F"][arrays["split"] == 1] ** 2).mean()))
        rows.append(row(name, metrics, force_rms))
        commands.append(f"molnets train {data.name} --out {name} {' '.join(FLAGS[name])}")
        threads = metrics["threads"]
        slim(out / "best.pt", Path(__file__).with_name(f"{name}.pt"))
        write_json(metrics, Path(__file__).with_name(f"{name}.json"))
    lines = table(rows, commands)
    if not options.only and (DATA / "rmd17_ethanol.npz").exists():
        lines += engines(DATA / "rmd17_ethanol.npz", options.runs)
    lines += [
        f"{threads} threads, {platform.machine()}, {platform.system()}, torch "
        f"{torch.__version__}. `python -m benchmarks.accuracy --runs runs` makes this page."
    ]
    options.out.write_text("\n".join(lines) + "\n")


def slim(trained: Path, path: Path) -> None:
    """Write the part of a checkpoint that a calculator needs."""
    checkpoint.save(checkpoint.load(trained), path)


def engines(data: Path, runs: Path, epochs: int = 200) -> list[str]:
    """Train ethanol with both engines, three seeds each; return the lines of the comparison."""
    flags = [f"--epochs={epochs}", *FLAGS["ethanol"][1:]]
    head = ["force MAE, meV/Å", *(f"seed {seed}" for seed in SEEDS), "energy MAE, meV"]
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for engine in ("plain", "spline"):
        forces, energies = [], []
        for seed in SEEDS:
            out = runs / "engines" / f"{engine}{seed}"
            if not (out / "metrics.json").exists():
                chosen = [f"--engine={engine}", f"--seed={seed}"]
                molnets(["train", str(data), "--out", str(out), *chosen, *flags])
            metrics = json.loads((out / "metrics.json").read_text())
            forces.append(f"{1000 * metrics['test_force_mae']:.2f}")
            energies.append(f"{1000 * metrics['test_energy_mae']:.2f}")
        lines += [f"| {engine} | {' | '.join(forces)} | {', '.join(energies)} |"]
    text = f"Ethanol again, {epochs} epochs with each engine; the seed decides weights and order:"
    return [text, "", *lines, ""]


def table(rows: list[str], commands: list[str]) -> list[str]:
    """Return the lines of the table, and the commands."""
    head = ("data", "frames: training + validation / test", "energy MAE", "force MAE",
            "of the force RMS", "parameters", "epochs", "training time", "seed")  # fmt: skip
    lines = ["# Accuracy", "", f"| {' | '.join(head)} |", "| --- " * len(head) + "|", *rows, ""]
    lines += ["Energies are those of the whole molecule or cluster; errors are means of absolute",
              "values on test frames that the training never sees.", "", "```"]  # fmt: skip
    return [*lines, *commands, "```", ""]


if __name__ == "__main__":
    main()
