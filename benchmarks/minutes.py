r"""Errors against minutes of one core, on ethanol and silicon: networks, ours and others', kernels.

    OMP_NUM_THREADS=1 python -m benchmarks.minutes train painn --minutes 3 --seed 1 --runs runs
    OMP_NUM_THREADS=1 python -m benchmarks.minutes train painn --minutes 1.5 --frames 100
    OMP_NUM_THREADS=1 python -m benchmarks.minutes train tensornet --minutes 3 --runs runs
    OMP_NUM_THREADS=1 python -m benchmarks.minutes train sgdml --frames 400 --runs runs
    OMP_NUM_THREADS=1 python -m benchmarks.minutes train painn --minutes 3 --data silicon
    OMP_NUM_THREADS=1 python -m benchmarks.minutes speed painn --runs runs
    python -m benchmarks.minutes page

`train` trains one case, tests it and adds a row to `minutes.json`; a row that is there is not
repeated, unless another kind of machine measured it. Minutes are the processor's, of one core:
whatever else runs does not count. Packages that others wrote run in environments of their own, see
`benchmarks.others`; kernels and SchNetPack in these:

    python3 -m venv .venv/kernels && .venv/kernels/bin/pip install -r benchmarks/kernels.txt
    python3 -m venv .venv/schnetpack && .venv/schnetpack/bin/pip install \
        -r benchmarks/schnetpack.txt && .venv/schnetpack/bin/pip install --no-deps schnetpack==2.1.1

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
from benchmarks.minutes_data import SOURCES, crystals, data_of, parts_of
from benchmarks.minutes_data import errors as errors_of_frames
from benchmarks.minutes_figure import draw
from benchmarks.minutes_page import CASES, DATA_OF_CASES, KEY, page, training_of
from benchmarks.others_measures import errors
from benchmarks.recipes import Timed
from molnets import Potential, checkpoint, tabulated
from molnets.files import write_json
from molnets.networks import sizes_of
from molnets.training import Dataset, Settings, evaluate, recipes, standardized

NUMBERS = Path(__file__).with_suffix(".json")
HIDDEN = ("test_E", "test_F")  # from what is trained
OF_NETWORKS = {  # where a recipe has none of the network's
    "ethanol": {
        "egnn": {"batch_size": 5, "lr": 3e-3, "rho_energy": 0.05, "gamma": 4.0},
        "dimenet": {"batch_size": 5, "lr": 1e-3, "rho_energy": 0.05},
    },
    "silicon": {
        "egnn": {"batch_size": 2, "lr": 1e-3, "gamma": 4.0},
        "dimenet": {"batch_size": 2, "lr": 1e-3},
    },
}


def folder(data: str, runs: Path) -> Path:
    """Return the folder of the runs on some data."""
    return runs if data == "ethanol" else runs / data


def values_of(case: str, data: Dataset, name: str = "ethanol") -> dict[str, Any]:
    """Return the settings and sizes of one of our networks."""
    network, engine = CASES[case].network, CASES[case].engine
    values = recipes.values_of(recipes.choose(data), network)
    return {**values, **OF_NETWORKS[name].get(network, {}), "engine": engine}


def train_ours(
    case: str, minutes: float, seed: int, frames: int, runs: Path, name: str = "ethanol"
) -> dict[str, Any]:
    """Train one of our networks for minutes of the processor; return how, and its test errors."""
    data = data_of(name)
    train, validation, test = parts_of(data, frames, seed, SOURCES[name])
    values = values_of(case, data, name) | {"minutes": minutes, "seed": seed}
    sizes = recipes.with_values(sizes_of(CASES[case].network)(), values)
    settings = recipes.with_values(Settings(), values)
    torch.manual_seed(seed)
    out = folder(name, runs) / f"{case}_{minutes:g}_{seed}_{frames}"
    trainer = Timed(standardized(sizes, data, train), data, train, validation, settings, out)
    begun = time.process_time()
    trainer.run(progress=False)
    seconds = time.process_time() - begun
    potential = checkpoint.load(out / "best.pt")
    _, energies, forces, _ = evaluate(potential, data, test)
    return errors_of_frames(energies, forces, data, test) | {
        "num_train": len(train), "num_validation": len(validation), "num_test": len(test),
        "processor_seconds": seconds, "epochs": trainer.epoch,
        "parameters": sum(w.numel() for w in trainer.weights), "cutoff": potential.cutoff,
        "changed": {k: v for k, v in values.items() if k != "minutes"},
        "sizes": asdict(sizes), "versions": {"torch": torch.__version__},
    }  # fmt: skip


def train_theirs(case: str, minutes: float, options: argparse.Namespace) -> dict[str, Any]:
    """Train a network in its package's environment; return how, and its test errors."""
    runs = folder(options.data, options.runs) / f"{minutes:g}"
    runs.mkdir(parents=True, exist_ok=True)
    placed = argparse.Namespace(runs=runs, environments=options.environments)
    kept = ("processor_seconds", "epochs", "parameters", "cutoff", "versions", "source",
            "batch_size")  # fmt: skip
    if options.data == "ethanol":
        others.train(case, placed, minutes)
        found, given = others.asked_elsewhere(case, placed), others.frames()
        kept = ("force_mae", "energy_mae", *kept)
        sizes = [len(given[f"{part}_E"]) for part in ("train", "valid", "test")]
    else:
        found, sizes = crystals_elsewhere(case, minutes, placed, options.data)
        kept = (*(key for key in found if "_mae" in key or "_rmse" in key), *kept)
    counts = zip(("num_train", "num_validation", "num_test"), sizes, strict=True)
    return {key: found[key] for key in kept} | dict(counts)


def crystals_elsewhere(
    case: str, minutes: float, placed: argparse.Namespace, name: str
) -> tuple[dict[str, Any], list[int]]:
    """Train a network elsewhere on periodic frames; return how, its errors, and the frames."""
    if not (placed.runs / "frames.npz").exists():
        np.savez(placed.runs / "frames.npz", **crystals(name))
    others.train(case, placed, minutes)
    others.worker("answer-crystals", case, placed)
    run, data, source = placed.runs / case, data_of(name), SOURCES[name]
    parts = parts_of(data, source.frames, 0, source)
    with np.load(run / "answers.npz", allow_pickle=False) as answers:
        energies, forces = (torch.from_numpy(answers[key]) for key in "EF")
    found = errors_of_frames(energies, forces, data, parts[2])
    return json.loads((run / "trained.json").read_text()) | found, [len(part) for part in parts]


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
    """Return ms of the processor for energies and forces, medians.

    On ethanol of 1 and of 64 molecules; on silicon of a cell of 64 atoms and of 8 such cells.
    """
    name = options.data
    if CASES[case].kind == "theirs":
        return speed_elsewhere(case, options)
    found = folder(name, options.runs).glob(f"{case}_*_0_{SOURCES[name].frames}/best.pt")
    model = checkpoint.load(sorted(found)[-1])
    model = tabulated(model) if CASES[case].engine == "spline" else model
    if name == "ethanol":
        z, R = (torch.from_numpy(others.frames()[key]) for key in ("z", "test_R"))
        return {f"ms_{count}": ms(model, molecules(z, R[:count])) for count in (1, 64)}
    data = data_of(name)
    *_, test = parts_of(data, SOURCES[name].frames, 0, SOURCES[name])
    whole = test[data.n_atoms[test] == 64][:1]
    return {f"ms_{64 * k**3}": ms(model, crystal(data, whole, k)) for k in (1, 2)}


def speed_elsewhere(case: str, options: argparse.Namespace) -> dict[str, float]:
    """Return such times of a network in its package's environment, on ethanol."""
    asked = sorted(options.runs.glob(f"*/{case}/questions.npz"))[-1]
    placed = argparse.Namespace(runs=asked.parents[1], environments=options.environments)
    times = others.speed(case, placed)
    return {key: times[key] for key in ("ms_1", "ms_64")}


def molecules(z: Tensor, R: Tensor) -> tuple[Tensor, ...]:
    """Return what a model takes of copies of a molecule, z (n,), R (B, n, 3)."""
    atoms, batch = z.repeat(len(R)).view(-1, 1), torch.arange(len(R)).repeat_interleave(len(z))
    return atoms, R.float().reshape(-1, 3), batch


def crystal(data: Dataset, frame: Tensor, k: int) -> tuple[Tensor, ...]:
    """Return what a model takes of a frame, (1,), repeated k times along each lattice vector."""
    atoms, cell = data.atoms_of(frame), data.cells[frame[0]]
    shifts = torch.cartesian_prod(*3 * [torch.arange(k)]).double() @ cell  # (k³, 3)
    pos = (data.pos[atoms] + shifts.unsqueeze(1)).reshape(-1, 3)
    z, batch = data.z[atoms].repeat(k**3).view(-1, 1), torch.zeros(len(pos), dtype=torch.int64)
    return z, pos.float(), batch, (k * cell).float().unsqueeze(0)


def ms(model: Potential, inputs: tuple[Tensor, ...], budget: float = 5.0) -> float:
    """Return the median time of energies and forces in ms of the processor."""
    lasted: list[float] = []
    for _ in range(5):
        model.energy_and_forces(*inputs)
    while sum(lasted) < budget or len(lasted) < 9:
        begun = time.process_time()
        model.energy_and_forces(*inputs)
        lasted.append(time.process_time() - begun)
    return 1000 * float(np.median(lasted))


def numbers() -> dict[str, Any]:
    """Return what was measured."""
    empty = {"machines": [], "rows": [], "speed": {}}
    return json.loads(NUMBERS.read_text()) if NUMBERS.exists() else empty


def key_of(row: dict[str, Any]) -> tuple:
    """Return what a row is known by: the training and the machine that ran it."""
    return (*training_of(row), row["machine"])


def add(found: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers with a row, instead of one of the same key."""
    rows = [old for old in found["rows"] if key_of(old) != key_of(row)]
    machines = list(dict.fromkeys([*found["machines"], row["machine"]]))
    rows = sorted([*rows, row], key=lambda x: tuple(map(str, key_of(x))))
    return found | {"machines": machines, "rows": rows}


def train(options: argparse.Namespace) -> None:
    """Train and test a case that is not there yet, and add it to the numbers."""
    case, minutes = options.case, options.minutes if CASES[options.case].kind != "kernel" else 0
    frames = options.frames or SOURCES[options.data].frames
    key = dict(zip(KEY, (options.data, case, minutes, options.seed, frames), strict=True))
    key["machine"] = others.machine()
    if key_of(key) in [key_of(row) for row in numbers()["rows"]]:
        return
    if CASES[case].kind == "ours":
        row = train_ours(case, minutes, options.seed, frames, options.runs, options.data)
    elif CASES[case].kind == "theirs":
        row = train_theirs(case, minutes, options)
    else:
        row = train_kernel(case, frames, options)
    today = datetime.now(timezone.utc).date().isoformat()
    write_json(add(numbers(), key | row | {"date": today}), NUMBERS)
    print(key, round(1000 * row["force_mae"], 2), round(1000 * row["energy_mae"], 2), flush=True)


def add_speed(found: dict[str, Any], data: str, case: str, ms: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers with the times of a case: ethanol's under "speed"."""
    key = "speed" if data == "ethanol" else f"speed_{data}"
    return found | {key: found.get(key, {}) | {case: ms}}


def write_page() -> None:
    """Write minutes.md and minutes.svg from minutes.json and others.json."""
    earlier = json.loads(others.RESULTS.read_text())
    NUMBERS.with_suffix(".md").write_text(page(numbers(), earlier))
    draw(numbers(), earlier, NUMBERS.with_suffix(".svg"))


def check(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Stop at what cannot be trained as it is asked for."""
    case = options.case
    if options.what == "page":
        return
    if case is None:
        parser.error("case: expected a network or a kernel")
    if options.data not in DATA_OF_CASES.get(case, ("ethanol",)):
        parser.error(f"data: expected no {options.data} for {case}")
    if options.what == "speed" and CASES[case].kind == "kernel":
        parser.error(f"case: expected a network, got {case}: a kernel's training has its times")
    if options.what == "speed" and CASES[case].kind == "theirs" and options.data != "ethanol":
        parser.error(f"data: expected ethanol for the times of {case}")
    all_frames = SOURCES[options.data].frames
    if CASES[case].kind == "theirs" and (options.seed or options.frames not in (None, all_frames)):
        parser.error(f"seed, frames: expected 0 and all for {case}, which has no others")


def main() -> None:
    """Do what is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("train", "speed", "page"))
    parser.add_argument("case", nargs="?", choices=CASES)
    parser.add_argument("--data", choices=SOURCES, default="ethanol")
    parser.add_argument("--minutes", type=float, default=3.0, help="of the processor")
    parser.add_argument("--seed", type=int, default=0, help="of weights and order")
    parser.add_argument("--frames", type=int, help="with those that validate, else all")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs")
    parser.add_argument("--environments", type=Path, default=Path(".venv"), help="their folder")
    options = parser.parse_args()
    check(options, parser)
    torch.set_num_threads(1)
    if options.what == "train":
        train(options)
    elif options.what == "speed":
        times = speed(options.case, options) | {"machine": others.machine()}
        write_json(add_speed(numbers(), options.data, options.case, times), NUMBERS)
    else:
        write_page()


if __name__ == "__main__":
    main()
