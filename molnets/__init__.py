"""molnets: networks for molecular energies and forces, their training, and dynamics with them.

checks.py      what input must be
edges.py       edges with vectors, and the graph that finds them, open and periodic
potential.py   a network, its graph and the sum over atoms; forces, virial, units
checkpoint.py  a trained model in a file, what it is, and where it comes from
expansion.py   the atomic cluster expansion: products of sums over neighbours, ordered by bodies
options.py     dataclasses as options of the command
files.py       files that are there whole, or as they were
networks/      the networks, and the registry that finds them by name
tables/        the engine: SchNet, PaiNN and TensorNet on splines of their filters, in C++
training/      data, trainer, errors
graphs/        other ways to connect atoms, and what a graph says of itself
dynamics/      force fields, integrators, trajectories, analysis, figures
coupling/      engines that others wrote: ASE, i-PI, OpenMM, torch-sim
command/       the command `molnets`: train, test, md, ipi, info

The names below are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.2.0"

_PLACES = {
    "Edges": "edges",
    "Graph": "edges",
    "ModelCalculator": "coupling.ase",
    "NETWORKS": "networks",
    "Potential": "potential",
    "SplineSchNet": "tables",
    "energy_and_forces": "potential",
    "energy_forces_virial": "potential",
    "load": "checkpoint",
    "model_force_fn": "dynamics",
    "tabulated": "tables",
}
__all__ = sorted(_PLACES)


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'molnets' has no attribute {name!r}")
    return getattr(importlib.import_module(f"molnets.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES])
