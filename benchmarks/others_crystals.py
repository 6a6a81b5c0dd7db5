"""Periodic frames of any sizes for the packages of `benchmarks.others`; imports nothing of this
project.

Axes:   T frames, N atoms and E directed edges, those of all frames one after the other.
Units:  eV and Å in the file; inside, energies in the unit of the recipe.
Edges:  as in `others_networks`; they are found once, by whoever wrote the file.
"""

from __future__ import annotations

from pathlib import Path
from types import EllipsisType
from typing import NamedTuple

import numpy as np
import torch
from others_networks import Atoms, Network, Statistics
from torch import Tensor


class Crystal(NamedTuple):
    """A frame of n atoms with its edges, atoms counted from 0, and its labels."""

    z: Tensor  # (n,)
    R: Tensor  # (n, 3)
    edges: Tensor  # (E, 2)
    shift: Tensor  # (E, 3)
    energy: Tensor  # (), less the mean energy of an atom
    forces: Tensor  # (n, 3)


class Crystals:
    """Frames of a file: of each part z, R, n (T,), edges (E, 2), shift (E, 3), num_edges (T,).

    Those that train or validate have labels, E (T,) and F (N, 3).
    """

    at_once = 2  # where no weights are changed
    most = 2  # in a step, as this project's networks have it: 10 would be 10 steps in 3 minutes

    def __init__(self, path: Path, unit: float) -> None:
        with np.load(path, allow_pickle=False) as arrays:
            given = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
        self.offset = float((given["train_E"] / given["train_n"]).mean())  # eV for each atom
        self.parts = {}
        for part in ("train", "valid", "test"):
            own = {
                key.removeprefix(f"{part}_"): x for key, x in given.items() if key.startswith(part)
            }
            n, num_edges = own["n"].tolist(), own["num_edges"].tolist()
            energy = (own.get("E", self.offset * own["n"]) - self.offset * own["n"]) / unit
            forces = own.get("F", torch.zeros_like(own["R"])) / unit
            columns = (own["z"].split(n), own["R"].float().split(n), own["edges"].split(num_edges),
                       own["shift"].float().split(num_edges), energy.float(),
                       forces.float().split(n))  # fmt: skip
            self.parts[part] = [Crystal(*frame) for frame in zip(*columns, strict=True)]
        self.z = given["train_z"]

    @staticmethod
    def are_in(path: Path) -> bool:
        """Return whether a file holds crystals, and not frames of one set of atoms."""
        with np.load(path, allow_pickle=False) as arrays:
            return "train_num_edges" in arrays.files

    def statistics(self) -> Statistics:
        """Return what the recipes take from the training frames; the spread is that of an atom."""
        frames = self.parts["train"]
        z, F = (torch.cat([getattr(frame, name) for frame in frames]) for name in ("z", "forces"))
        energies = torch.stack([frame.energy / len(frame.z) for frame in frames])
        rms = {int(k): float(F[z == k].square().mean().sqrt()) for k in z.unique()}
        neighbours = sum(len(frame.edges) for frame in frames) / len(z)
        return Statistics(neighbours, float(energies.std()), float(F.square().mean().sqrt()), rms)

    def count(self, part: str) -> int:
        """Return the number of frames of a part."""
        return len(self.parts[part])

    def sizes(self, part: str) -> Tensor:
        """Return the number of atoms of the frames of a part, (T,)."""
        return torch.tensor([len(frame.z) for frame in self.parts[part]])

    def found(self, network: Network, part: str, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return a network's energies, (B,), and forces, (N, 3), of some frames of a part."""
        return network.of(joined([self.parts[part][k] for k in index.tolist()], network.cutoff))

    def target(self, part: str, index: Tensor | EllipsisType) -> tuple[Tensor, Tensor, Tensor]:
        """Return energies, (B,), forces, (N, 3), and numbers of atoms, (B,), of some frames."""
        index = torch.arange(self.count(part))[index]
        frames = [self.parts[part][k] for k in index.tolist()]
        energy = torch.stack([frame.energy for frame in frames])
        return energy, torch.cat([frame.forces for frame in frames]), self.sizes(part)[index]


def joined(frames: list[Crystal], cutoff: float) -> Atoms:
    """Return frames as the networks take them, with the edges that are no longer than a cutoff."""
    n = torch.tensor([len(frame.z) for frame in frames])
    pos = torch.cat([frame.R for frame in frames])
    first = (n.cumsum(0) - n).tolist()
    edges = torch.cat([frame.edges + k for frame, k in zip(frames, first, strict=True)]).T
    shift = torch.cat([frame.shift for frame in frames])
    near = (pos[edges[1]] - pos[edges[0]] + shift).norm(dim=1) < cutoff
    batch = torch.arange(len(n)).repeat_interleave(n)
    z = torch.cat([frame.z for frame in frames])
    return Atoms(z, pos, batch, n, edges[:, near], shift[near])
