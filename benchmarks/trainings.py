"""The trainings behind `schnet_md.ipynb`: what it shows of many seeds, it reads from here.

    python -m benchmarks.trainings --runs runs [--only cluster|faulty|ethanol]

cluster   the Lennard-Jones cluster with several weights of the energy in the loss, three seeds
faulty    the same with networks that are wrong on purpose, one seed
ethanol   50 to 1000 frames of revised MD17, three seeds, two minutes each

A run that is there already is not repeated. Writes `trainings.json` and, for the networks that the
notebook simulates with, `trainings/*.pt`. Ethanol needs the data folder (`SCHNET_DATA`, else
../shared/data). One thread each: start it with OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.accuracy import DATA, SEEDS, cluster_data, slim
from benchmarks.faulty import FAULTS
from molnets import checkpoint
from molnets.command import run as molnets
from molnets.files import write_json
from molnets.networks.schnet import Sizes
from molnets.potential import Potential
from molnets.training import Dataset, Settings, Trainer, evaluate, load, split, standardized

HERE = Path(__file__).parent
NUMBERS, KEPT = HERE / "trainings.json", HERE / "trainings"
RHO = {
    "energies": (1.0, 0.0), "forces": (0.0, 1.0), "0.01": (0.01, 1.0), "0.1": (0.1, 1.0),
    "1": (1.0, 1.0), "10": (10.0, 1.0), "100": (100.0, 1.0),
}  # fmt: skip
SIZES = Sizes(dim_embedding=32, num_filters=32, num_interactions=2, num_gaussians=25, cutoff=4.0)
SETTINGS = Settings(epochs=250, batch_size=20, lr=3e-3, ema_decay=0.99, rho_energy=1.0)
NARROW = 2.0  # a cutoff that pairs of the cluster cross all the time
SIZES_OF = {
    "sound": replace(SIZES, cutoff=NARROW),
    "hard cutoff": replace(SIZES, cutoff=NARROW),
    "own features": SIZES,
    "no expansion": replace(SIZES, num_gaussians=1, gamma=1.0),
}
FRAMES = (50, 100, 200, 500, 1000)
SHOWN = [("energies", 0), ("forces", 0), ("0.1", 0), ("0.1", 1)]


def cluster(runs: Path) -> list[dict[str, Any]]:
    """Train on the cluster with all weights of the energy; return errors on the test frames."""
    data = load(cluster_data_in(runs))
    train, validation, test = split(data, 0, 64, 0, 0)
    rows = []
    for name, (rho_energy, rho_forces) in RHO.items():
        for seed in SEEDS:
            out = runs / "cluster" / f"{name}_{seed}"
            settings = replace(SETTINGS, rho_energy=rho_energy, rho_forces=rho_forces, seed=seed)
            if not (out / "best.pt").exists():
                torch.manual_seed(seed)
                potential = standardized(SIZES, data, train)
                Trainer(potential, data, train, validation, settings, out).run(progress=False)
            found = errors_of(checkpoint.load(out / "best.pt"), data, train, test)
            rows.append({"rho": name, "seed": seed} | found)
            print(rows[-1], flush=True)
            if (name, seed) in SHOWN:
                slim(out / "best.pt", KEPT / f"{name}_{seed}.pt")
    return rows


def cluster_data_in(runs: Path) -> Path:
    """Return the file of the cluster's frames, made if it is not there."""
    path = runs / "cluster.npz"
    return path if path.exists() else cluster_data(path)


def errors_of(potential: Potential, data: Dataset, train: Tensor, test: Tensor) -> dict[str, float]:
    """Return errors on the test frames; the energy's without its mean error in training."""
    energies = evaluate(potential, data, train).energies.flatten() - data.energies[train]
    found = evaluate(potential, data, test)
    residual = found.energies.flatten() - data.energies[test] - energies.mean()
    return {"energy_mae": float(residual.abs().mean()), "force_mae": found.errors.force_mae}


def faulty(runs: Path) -> list[dict[str, Any]]:
    """Train networks that are wrong on purpose, and a sound one with the narrow cutoff."""
    data = load(cluster_data_in(runs))
    train, validation, test = split(data, 0, 64, 0, 0)
    rows = []
    for name, fault in FAULTS.items():
        out = runs / "faulty" / name.replace(" ", "_")
        torch.manual_seed(0)
        potential = standardized(SIZES_OF[name], data, train)
        fault(potential.network)
        if not (out / "best.pt").exists():
            settings = replace(SETTINGS, engine="plain")
            Trainer(potential, data, train, validation, settings, out).run(progress=False)
        potential.load_state_dict(checkpoint.read(out / "best.pt")["model"])
        rows.append({"fault": name} | errors_of(potential, data, train, test))
        print(rows[-1], flush=True)
        checkpoint.save(potential, KEPT / f"{name.replace(' ', '_')}.pt")
    return rows


def ethanol(runs: Path) -> list[dict[str, Any]]:
    """Train on 50 to 1000 frames of ethanol, two minutes each; return errors on the test frames."""
    rows = []
    for num_frames in FRAMES:
        held_out = min(30, num_frames // 10)
        for seed in SEEDS:
            out = runs / "ethanol" / f"{num_frames}_{seed}"
            if not (out / "metrics.json").exists():
                molnets(["train", str(DATA / "rmd17_ethanol.npz"), "--out", str(out), "--gamma=4",
                         "--minutes=2", "--rho-energy=0.05", "--energy-unit=eV", "--length-unit=Å",
                         f"--num-train={num_frames - held_out}", f"--num-validation={held_out}",
                         f"--seed={seed}", "--recipe=none"])  # fmt: skip
            metrics = json.loads((out / "metrics.json").read_text())
            rows.append({"frames": num_frames, "validation": held_out, "seed": seed,
                         "energy_mae": metrics["test_energy_mae"],
                         "force_mae": metrics["test_force_mae"], "epochs": metrics["epochs"],
                         "threads": metrics["threads"]})  # fmt: skip
    return rows


def main() -> None:
    """Train what is not there yet, and write the numbers."""
    parts = {"cluster": cluster, "faulty": faulty, "ethanol": ethanol}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--only", choices=parts, help="one part")
    options = parser.parse_args()
    options.runs.mkdir(parents=True, exist_ok=True)
    KEPT.mkdir(exist_ok=True)
    for name in [options.only] if options.only else parts:
        rows = parts[name](options.runs)
        numbers = json.loads(NUMBERS.read_text()) if NUMBERS.exists() else {}
        write_json(numbers | {name: rows}, NUMBERS)


if __name__ == "__main__":
    main()
