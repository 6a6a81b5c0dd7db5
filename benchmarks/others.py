"""Heavier networks beside ours: the same ethanol, the same half hour of one core, one measure.

    OMP_NUM_THREADS=1 python -m benchmarks.others train --runs runs [--only mace]
    OMP_NUM_THREADS=1 python -m benchmarks.others measure --runs runs [--only mace]
    OMP_NUM_THREADS=1 python -m benchmarks.others speed --runs runs [--only mace]
    python -m benchmarks.others page

Each network runs in an environment of its own, which one command makes:

    python3 -m venv .venv/mace && .venv/mace/bin/pip install -r benchmarks/mace.txt
    python3 -m venv .venv/nequip && .venv/nequip/bin/pip install -r benchmarks/nequip.txt
    python3 -m venv .venv/torchmd && .venv/torchmd/bin/pip install -r benchmarks/torchmd.txt
    python3 -m venv .venv/visnet && .venv/visnet/bin/pip install -r benchmarks/visnet.txt

`train` trains for 28.5 minutes of the processor's time, as long as `benchmarks.networks` gave each
of ours; a run that is there already is not repeated. `measure` asks the trained networks, and ours,
and writes `others.json`; `speed` adds times, one network after another; each rewrites `others.md`.
Ethanol needs the data folder (`SCHNET_DATA`, else ../shared/data).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.accuracy import DATA
from benchmarks.networks import NAMES, NUMBERS, weights_of
from benchmarks.others_measures import Array, Calculator, answers_of, measure, questions
from benchmarks.others_page import page
from molnets import Potential, checkpoint
from molnets.files import write_json
from molnets.training import load, split

HERE = Path(__file__).parent
RESULTS = HERE / "others.json"
ENVIRONMENTS = {
    "mace": "mace", "nequip": "nequip", "tensornet": "torchmd", "et": "torchmd",
    "visnet": "visnet", "mace-small": "mace", "schnetpack-painn": "schnetpack",
}  # fmt: skip
# Ours, by what they are called here: TensorNet is torchmd-net's, too.
OURS = {f"{name}-tables" if name in ENVIRONMENTS else name: name for name in NAMES}
OF_PAGE = ("mace", "nequip", "tensornet", "et", "visnet")  # the rest is for `benchmarks.minutes`
MINUTES, NUM_VALIDATION, SEED = 28.5, 30, 0  # those of `benchmarks.networks`
MALLOC = {"MALLOC_TRIM_THRESHOLD_": str(2**31 - 1), "MALLOC_MMAP_THRESHOLD_": str(2**25)}
"""Our trainer asks glibc to keep what a step frees; so it does for the others."""


def frames() -> dict[str, NDArray]:
    """Return z (n,), and positions, energies and forces of our trainings' frames, in Å and eV."""
    data = load(DATA / "rmd17_ethanol.npz")
    parts = split(data, 0, NUM_VALIDATION, 0, SEED)
    n = int(data.n_atoms[0])
    found: dict[str, NDArray] = {"z": data.z[:n].numpy()}
    for part, index in zip(("train", "valid", "test"), parts, strict=True):
        R, F = (x.view(-1, n, 3)[index].numpy() for x in (data.pos, data.forces))
        found |= {f"{part}_R": R, f"{part}_E": data.energies[index].numpy(), f"{part}_F": F}
    return found


def worker(what: str, name: str, options: argparse.Namespace, minutes: float = MINUTES) -> str:
    """Let a network's own environment do something; return what it prints."""
    python = options.environments / ENVIRONMENTS[name] / "bin" / "python"
    if not python.exists():
        raise FileNotFoundError(f"environments: expected {python}, which `--help` says how to make")
    call = [python.absolute(), HERE / "others_worker.py", what, name, options.runs / name]
    call += [str(minutes)] if what == "train" else []
    done = subprocess.run([str(x) for x in call], env=os.environ | MALLOC, text=True,
                          capture_output=True)  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr[-2000:]}")
    return done.stdout


def train(name: str, options: argparse.Namespace, minutes: float = MINUTES) -> None:
    """Train a network on the frames, for minutes of the processor's time."""
    (options.runs / name).mkdir(parents=True, exist_ok=True)
    if not (options.runs / "frames.npz").exists():
        np.savez(options.runs / "frames.npz", **frames())
    if not (options.runs / name / "trained.json").exists():
        worker("train", name, options, minutes)


def asked_elsewhere(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return what is measured of a network in its own environment, and how it was trained."""
    run, given = options.runs / name, frames()
    trained = json.loads((run / "trained.json").read_text())
    asked = questions(given["test_R"], trained["cutoff"])
    z, positions = given["z"], asked.positions()
    arrays = {f"R_{key}": R for key, R in positions.items()}
    arrays |= {f"z_{key}": np.tile(z, R.shape[1] // len(z)) for key, R in positions.items()}
    np.savez(run / "questions.npz", **arrays)
    worker("answer", name, options)
    with np.load(run / "answers.npz", allow_pickle=False) as file:
        answers = {key: file[key] for key in file.files}
    return trained | measure(asked, answers, given["test_E"], given["test_F"])


def calculator_of(potential: Potential) -> Calculator:
    """Return one of our networks as a calculator, in the dtype of the positions."""

    def calculate(z: NDArray[np.integer], R: Array) -> tuple[Array, Array]:
        x = torch.from_numpy(R)
        energies, forces, n = [], [], len(z)
        for part in x.split(50):
            batch = torch.arange(len(part)).repeat_interleave(n)
            atoms = torch.from_numpy(z).repeat(len(part)).view(-1, 1)
            model = potential.to(x.dtype)
            E, F = model.energy_and_forces(atoms, part.reshape(-1, 3), batch)
            energies.append(E.detach().flatten().double())
            forces.append(F.detach().view(-1, n, 3).double())
        return torch.cat(energies).numpy(), torch.cat(forces).numpy()

    return calculate


def asked_here(name: str) -> dict[str, Any]:
    """Return what is measured of one of our networks, with what `networks.json` says of it."""
    given, potential = frames(), checkpoint.load(weights_of("ethanol", name))
    asked = questions(given["test_R"], potential.cutoff)
    answers = answers_of(calculator_of(potential), given["z"], asked)
    row = json.loads(NUMBERS.read_text())[name]
    kept = {key: row[key] for key in ("parameters", "ms_1", "ms_64")}
    kept |= {"epochs": row["ethanol_epochs"], "cutoff": potential.cutoff}
    found = measure(asked, answers, given["test_E"], given["test_F"])
    ours = {part: row[f"ethanol_{part}"] for part in ("energy_mae", "force_mae")}
    return {"network": name, "ours": True} | kept | found | ours


def speed(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return times of energies and forces in ms: medians of rounds, and their range."""
    times = json.loads(worker("time", name, options).splitlines()[-1])
    row: dict[str, Any] = {}
    for count, medians in times.items():
        ms = 1000 * np.array(medians)
        row[f"ms_{count}"] = float(np.median(ms))
        row[f"range_{count}"] = [float(ms.min()), float(ms.max())]
    return row


def machine() -> str:
    """Return the processor's name, cores and this machine's system."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "")
    return f"{model}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}"


def add(name: str, row: dict[str, Any]) -> None:
    """Write what is known of a network to others.json, and the page anew."""
    numbers = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"networks": {}}
    old = numbers["networks"].get(name, {})
    numbers["networks"][name] = old | row
    numbers |= {"date": datetime.now(timezone.utc).date().isoformat(), "machine": machine(),
                "torch": torch.__version__, "minutes": MINUTES}  # fmt: skip
    write_json(numbers, RESULTS)
    write_page()


def write_page() -> None:
    """Write others.md from others.json."""
    RESULTS.with_suffix(".md").write_text(page(json.loads(RESULTS.read_text())))


def main() -> None:
    """Train, measure or time the networks that are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("train", "measure", "speed", "page"))
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs")
    parser.add_argument("--environments", type=Path, default=Path(".venv"), help="their folder")
    parser.add_argument("--only", choices=(*OURS, *OF_PAGE), help="one network")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.what == "page":
        write_page()
        return
    for name in [options.only] if options.only else (*OURS, *OF_PAGE):
        if name in OURS:
            if options.what == "measure":
                add(name, asked_here(OURS[name]))
        elif options.what == "train":
            train(name, options)
        else:
            measured = {"measure": asked_elsewhere, "speed": speed}[options.what]
            add(name, measured(name, options))


if __name__ == "__main__":
    main()
