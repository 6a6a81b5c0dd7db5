"""The frames of `benchmarks.minutes`: which ones train, choose weights and test, and their errors.

Axes:   T frames, N atoms of all frames one after the other, E directed edges j -> i.
Units:  eV and Å.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from benchmarks import others
from benchmarks.accuracy import DATA
from molnets.training import Dataset, load, split
from molnets.training.errors import errors_of


class Source(NamedTuple):
    """A file, its frames that are not for the test, and how many of them choose the weights."""

    file: str
    frames: int
    num_validation: int


SOURCES = {
    "ethanol": Source("rmd17_ethanol.npz", 1000, others.NUM_VALIDATION),
    "silicon": Source("mlearn_Si.npz", 214, 14),
}


def data_of(name: str) -> Dataset:
    """Return all frames of a data set."""
    data = load(DATA / SOURCES[name].file)
    data.energy_unit, data.length_unit = "eV", "Å"
    return data


def parts_of(
    data: Dataset, frames: int, seed: int, source: Source = SOURCES["ethanol"]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return training, validation and test frames.

    A tenth of the frames validates, at most as many as the source says. All frames are split in one
    way for every seed; fewer are drawn with it.
    """
    num_validation = min(source.num_validation, frames // 10)
    drawn = others.SEED if frames == source.frames else seed
    return split(data, frames - num_validation, num_validation, 0, drawn)


def errors(
    energies: Tensor, forces: Tensor, data: Dataset, frames: Tensor
) -> dict[str, float | int]:
    """Return errors of energies, (T,), and forces, (N, 3), of some frames, and those by atom."""
    n = data.n_atoms[frames].double()
    off = energies.double().flatten() - data.energies[frames]
    whole = errors_of(off, forces.double() - data.forces[data.atoms_of(frames)])
    by_atom = off / n
    return {
        "force_mae": whole.force_mae, "force_rmse": whole.force_rmse,
        "energy_mae": whole.energy_mae, "energy_rmse": whole.energy_rmse,
        "energy_per_atom_mae": float(by_atom.abs().mean()),
        "energy_per_atom_rmse": math.sqrt(float(by_atom.square().mean())),
    }  # fmt: skip
