"""Errors against minutes of one core, on ethanol: networks and kernels, ours and others'.

    OMP_NUM_THREADS=1 python -m benchmarks.minutes train painn --minutes 3 --seed 1 --runs runs
    OMP_NUM_THREADS=1 python -m benchmarks.minutes train painn --minutes 1.5 --frames 100
    OMP_NUM_THREADS=1 python -m benchmarks.minutes train tensornet --minutes 3 --runs runs
    OMP_NUM_THREADS=1 python -m benchmarks.minutes train sgdml --frames 400 --runs runs
    OMP_NUM_THREADS=1 python -m benchmarks.minutes speed painn --runs runs
    python -m benchmarks.minutes page

`train` trains one case, tests it and adds a row to `minutes.json`; a row that is there is not
repeated. Minutes are the processor's, of one core: whatever else runs does not count. Packages that
others wrote run in environments of their own, see `benchmarks.others`; kernels in this one:

    python3 -m venv .venv/kernels && .venv/kernels/bin/pip install -r benchmarks/kernels.txt

Needs the data folder (`SCHNET_DATA`, else ../shared/data).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import others
from benchmarks.accuracy import DATA
from benchmarks.minutes_page import CASES, draw, page
from benchmarks.others_measures import errors
from benchmarks.recipes import Timed
from molnets import Potential, checkpoint, tabulated
from molnets.files import write_json
from molnets.networks import sizes_of
from molnets.training import (
    Dataset,
    Settings,
    evaluate,
    load,
    recipes,
    split,
    standardized,
)

NUMBERS = Path(__file__).with_suffix(".json")
KEY = ("case", "minutes", "seed", "frames")
HIDDEN = ("test_E", "test_F")  # from what is trained
ALL_FRAMES = 1000  # for training, those that choose the weights among them
OF_NETWORKS = {  # beside the recipe's; without one, the settings of `benchmarks.networks`
    "painn": {"cutoff": 3.5},  # the best of the recipes' search; the recipe keeps the default
    "egnn": {"batch_size": 5, "lr": 3e-3, "rho_energy": 0.05, "gamma": 4.0},
    "dimenet": {"batch_size": 5, "lr": 1e-3, "rho_energy": 0.05},
}


def parts_of(data: Dataset, frames: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return training, validation and test frames: a tenth of the frames, at most 30, validates.

    All frames are split as they are for the others; fewer are drawn with the seed.
    """
    num_validation = min(others.NUM_VALIDATION, frames // 10)
    drawn = others.SEED if frames == ALL_FRAMES else seed
    return split(data, frames - num_validation, num_validation, 0, drawn)


def values_of(case: str, data: Dataset) -> dict[str, Any]:
    """Return the settings and sizes of one of our networks."""
    network, engine = CASES[case].network, CASES[case].engine
    values = recipes.values_of(recipes.choose(data), network)
    return {**values, **OF_NETWORKS.get(network, {}), "engine": engine}


def train_ours(
    case: str, minutes: float, seed: int, frames: int, runs: Path, data: Dataset | None = None
) -> dict[str, Any]:
    """Train one of our networks for minutes of the processor; return how, and its test errors."""
    data = load(DATA / "rmd17_ethanol.npz") if data is None else data
    train, validation, test = parts_of(data, frames, seed)
    values = values_of(case, data) | {"minutes": minutes, "seed": seed}
    sizes = recipes.with_values(sizes_of(CASES[case].network)(), values)
    settings = recipes.with_values(Settings(), values)
    torch.manual_seed(seed)
    out = runs / f"{case}_{minutes:g}_{seed}_{frames}"
    trainer = Timed(standardized(sizes, data, train), data, train, validation, settings, out)
    begun = time.process_time()
    trainer.run(progress=False)
    seconds = time.process_time() - begun
    potential = checkpoint.load(out / "best.pt")
    found = evaluate(potential, data, test).errors
    return {
        "force_mae": found.force_mae, "energy_mae": found.energy_mae, "num_train": len(train),
        "num_validation": len(validation), "num_test": len(test), "processor_seconds": seconds,
        "epochs": trainer.epoch, "parameters": sum(w.numel() for w in trainer.weights),
        "cutoff": potential.cutoff, "changed": {k: v for k, v in values.items() if k != "minutes"},
        "sizes": asdict(sizes), "versions": {"torch": torch.__version__},
    }  # fmt: skip


def train_theirs(case: str, minutes: float, options: argparse.Namespace) -> dict[str, Any]:
    """Train a network in its package's environment; return how, and its test errors."""
    runs = options.runs / f"{minutes:g}"
    runs.mkdir(parents=True, exist_ok=True)
    placed = argparse.Namespace(runs=runs, environments=options.environments)
    others.train(case, placed, minutes)
    found, given = others.asked_elsewhere(case, placed), others.frames()
    kept = ("force_mae", "energy_mae", "processor_seconds", "epochs", "parameters", "cutoff",
            "versions", "source", "batch_size")  # fmt: skip
    counts = {f"num_{name}": len(given[f"{part}_E"]) for name, part in
              (("train", "train"), ("validation", "valid"), ("test", "test"))}  # fmt: skip
    return {key: found[key] for key in kept} | counts


def train_kernel(case: str, frames: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train a kernel model in its environment; return how, and its test errors."""
    run, given = options.runs / f"{case}_{frames}", others.frames()
    run.mkdir(parents=True, exist_ok=True)
    num_train = frames - others.NUM_VALIDATION
    asked = {key: x[:num_train] if key.startswith("train") else x for key, x in given.items()}
    np.savez(run / "frames.npz", **{k: x for k, x in asked.items() if k not in HIDDEN})
    python = options.environments / "kernels" / "bin" / "python"
    call = [python.absolute(), Path(__file__).with_name("kernels_worker.py"), case, run]
    subprocess.run([str(x) for x in call], check=True, env=os.environ | others.MALLOC)
    with np.load(run / "answers.npz", allow_pickle=False) as answers:
        found = errors(answers["E"], answers["F"], given["test_E"], given["test_F"])
    record = json.loads((run / "trained.json").read_text())
    counts = {"num_train": num_train, "num_validation": others.NUM_VALIDATION,
              "num_test": len(given["test_E"])}  # fmt: skip
    return {"force_mae": found.force_mae, "energy_mae": found.energy_mae} | counts | record


def speed(case: str, options: argparse.Namespace) -> dict[str, float]:
    """Return ms of the processor for energies and forces of 1 and of 64 ethanols, medians."""
    best = sorted(options.runs.glob(f"{case}_*_0_{ALL_FRAMES}/best.pt"))[-1]
    z, R = (torch.from_numpy(others.frames()[key]) for key in ("z", "test_R"))
    potential = checkpoint.load(best)
    return {f"ms_{count}": ms(case, potential, z, R[:count]) for count in (1, 64)}


def ms(case: str, potential: Potential, z: Tensor, R: Tensor, budget: float = 5.0) -> float:
    """Return the median time of energies and forces in ms of the processor."""
    model = tabulated(potential) if CASES[case].engine == "spline" else potential
    pos = R.float().reshape(-1, 3)
    atoms, batch = z.repeat(len(R)).view(-1, 1), torch.arange(len(R)).repeat_interleave(len(z))
    lasted: list[float] = []
    for _ in range(5):
        model.energy_and_forces(atoms, pos, batch)
    while sum(lasted) < budget or len(lasted) < 9:
        begun = time.process_time()
        model.energy_and_forces(atoms, pos, batch)
        lasted.append(time.process_time() - begun)
    return 1000 * float(np.median(lasted))


def numbers() -> dict[str, Any]:
    """Return what was measured."""
    return json.loads(NUMBERS.read_text()) if NUMBERS.exists() else {"rows": [], "speed": {}}


def key_of(row: dict[str, Any]) -> tuple:
    """Return what a row is known by."""
    return tuple(row[name] for name in KEY)


def add(found: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers with a row, instead of one of the same key."""
    rows = [old for old in found["rows"] if key_of(old) != key_of(row)]
    return found | {"rows": sorted([*rows, row], key=lambda x: tuple(map(str, key_of(x))))}


def train(options: argparse.Namespace) -> None:
    """Train and test a case that is not there yet, and add it to the numbers."""
    case, minutes = options.case, options.minutes if CASES[options.case].kind != "kernel" else 0
    key = {"case": case, "minutes": minutes, "seed": options.seed, "frames": options.frames}
    if key_of(key) in [key_of(row) for row in numbers()["rows"]]:
        return
    if CASES[case].kind == "ours":
        row = train_ours(case, minutes, options.seed, options.frames, options.runs)
    elif CASES[case].kind == "theirs":
        row = train_theirs(case, minutes, options)
    else:
        row = train_kernel(case, options.frames, options)
    today = datetime.now(timezone.utc).date().isoformat()
    write_json(add(numbers(), key | row | {"date": today, "machine": others.machine()}), NUMBERS)
    print(key, round(1000 * row["force_mae"], 2), round(1000 * row["energy_mae"], 2), flush=True)


def write_page() -> None:
    """Write minutes.md and minutes.svg from minutes.json and others.json."""
    earlier = json.loads(others.RESULTS.read_text())
    NUMBERS.with_suffix(".md").write_text(page(numbers(), earlier))
    draw(numbers(), earlier, NUMBERS.with_suffix(".svg"))


def main() -> None:
    """Do what is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("train", "speed", "page"))
    parser.add_argument("case", nargs="?", choices=CASES)
    parser.add_argument("--minutes", type=float, default=3.0, help="of the processor")
    parser.add_argument("--seed", type=int, default=0, help="of weights and order")
    parser.add_argument("--frames", type=int, default=ALL_FRAMES, help="with those that validate")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs")
    parser.add_argument("--environments", type=Path, default=Path(".venv"), help="their folder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.what == "train":
        train(options)
    elif options.what == "speed":
        found = numbers()
        found["speed"][options.case] = speed(options.case, options)
        write_json(found, NUMBERS)
    else:
        write_page()


if __name__ == "__main__":
    main()
