"""The frames of `benchmarks.minutes`: which ones train, choose weights and test, and their errors.

Axes:   T frames, N atoms of all frames one after the other, E directed edges j -> i.
Units:  eV and Å.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks import others
from benchmarks.accuracy import DATA
from molnets.training import Dataset, load, split
from molnets.training.errors import errors_of

LONGEST = 5.0  # Å, of the edges that others are given


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


def crystals(name: str) -> dict[str, NDArray]:
    """Return frames with their edges as `others_crystals` reads them; test frames have no labels.

    Vectors of edges are pos[index[1]] − pos[index[0]] + shift.
    """
    data, source, found = data_of(name), SOURCES[name], {}
    for part, frames in zip(
        ("train", "valid", "test"), parts_of(data, source.frames, 0, source), strict=True
    ):
        own = data.subset(frames)
        every, edges = torch.arange(len(own)), own.edges(LONGEST)
        counted, vector = edges.take(every, torch.float64)
        shift = -vector - (own.pos[counted[1]] - own.pos[counted[0]])
        arrays = {"z": own.z, "R": own.pos, "n": own.n_atoms, "edges": edges.index.T,
                  "shift": shift, "num_edges": edges.counts}  # fmt: skip
        if part != "test":
            arrays |= {"E": own.energies, "F": own.forces}
        found |= {f"{part}_{key}": x.contiguous().numpy() for key, x in arrays.items()}
    return found
