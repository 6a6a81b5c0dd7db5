"""Graphs beside that of a radius, and what a choice does to a trajectory.

Axes:   N atoms in the batch, B samples, E directed edges j -> i, T frames, n atoms of a molecule.
Units:  the caller's length unit; covalent radii are ASE's, in Å.

Each graph has the method `edges` of `molnets.edges.Graph`, so that a `Potential` can take it. A
network's energy is smooth on a graph that holds all edges within its cutoff, and on no other: where
an edge appears at a length at which the network has not faded out, the energy jumps.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from ase.data import covalent_radii
from torch import Tensor

from molnets.checks import as_pbc, expect, expect_positive, expect_size, sample_sizes
from molnets.edges import Edges, Graph
from molnets.potential import Potential

HEAVIEST = 96  # curium: beyond it ASE has a number for a radius that nobody measured
EQUAL = 1e-6  # relative difference of distances below which two neighbours are as near
SYMMETRIES = ("directed", "either", "both")


class NearestGraph:
    """Connect each atom to its k nearest ones, as it hears them: edges j -> i.

    i's neighbours are all j with d_ij ≤ ρ_i, the distance of the k-th. "directed" is that, and
    no more symmetric than nearness is: i can hear j and j not i. "either" has both directions where
    one atom is among the nearest of the other, d_ij ≤ max(ρ_i, ρ_j), "both" where each is,
    d_ij ≤ min(ρ_i, ρ_j). Atoms as far as the k-th one count as well: a choice among equals would
    hang on their order.

    Args:
        k: how many neighbours.
        cutoff: how far they are looked for.
        symmetry: one of the three.

    Raises:
        ValueError: for another symmetry, or numbers that are not positive.
    """

    def __init__(self, k: int, cutoff: float, symmetry: str = "directed") -> None:
        expect_size("k", k)
        expect_positive("cutoff", cutoff)
        expect(symmetry in SYMMETRIES, "symmetry", f"one of {SYMMETRIES}", repr(symmetry))
        self.k, self.cutoff, self.symmetry = int(k), float(cutoff), symmetry
        self._graph = Graph(cutoff)

    def edges(
        self, pos: Tensor, batch: Tensor, cells: Tensor | None = None, pbc: object = None
    ) -> Edges:
        """Return the edges; arguments and errors are those of `Graph.edges`.

        Raises:
            ValueError: if an atom has fewer than k neighbours within the cutoff, though its sample
                is large enough or periodic.
        """
        edges = self._graph.edges(pos, batch, cells, pbc)
        (j, i), d_ij = edges.index, torch.linalg.vector_norm(edges.vector.detach(), dim=1)
        order = d_ij.argsort(stable=True)
        order = order[i[order].argsort(stable=True)]  # by receiver, the nearest first
        found = i.bincount(minlength=len(pos))  # (N,)
        there = sample_sizes(batch) - 1  # (B,)
        if cells is not None:
            periodic = as_pbc(True if pbc is None else pbc, len(there)).any(dim=1)
            there = torch.where(periodic.to(there.device), self.k, there)
        wanted = there[batch].clamp(max=self.k)
        few = (found < wanted).nonzero().flatten().tolist()
        expected = f"one that holds the {self.k} nearest of every atom"
        expect(not few, "cutoff", expected, f"{self.cutoff}, which does not for atoms {few[:5]}")
        farthest = d_ij.new_full((len(pos),), -1.0)  # ρ, none for atoms on their own
        last = (found.cumsum(0) - found + wanted - 1)[wanted > 0]
        farthest[wanted > 0] = d_ij[order[last]] * (1 + EQUAL)
        near_i, near_j = d_ij <= farthest[i], d_ij <= farthest[j]
        near = {"directed": near_i, "either": near_i | near_j, "both": near_i & near_j}
        return _chosen(edges, near[self.symmetry])


class BondGraph:
    """Connect atoms that are closer than the sum of their covalent radii, times a factor.

    d_ij < factor (R_i + R_j), with the radii of Cordero et al., Dalton Trans. 2008, 2832.

    Args:
        z: atomic numbers of all atoms of a batch, (N, 1) or (N,).
        factor: how much longer than the sum a bond may be.
        unit: the length unit of the positions, in Å.

    Raises:
        ValueError: for elements without a radius, or numbers that are not positive.
    """

    def __init__(self, z: Tensor, factor: float = 1.2, unit: float = 1.0) -> None:
        expect_positive("factor", factor)
        expect_positive("unit", unit)
        z = z.reshape(-1)
        known = (z > 0) & (z <= HEAVIEST) & (z == z.long())
        expected = f"atomic numbers from 1 to {HEAVIEST}"
        expect(known.all(), "z", expected, z[~known].tolist())
        self.reach = torch.tensor(covalent_radii)[z.long()] * factor / unit  # (N,)
        self.cutoff = 2 * float(self.reach.max())
        self._graph = Graph(self.cutoff)

    def edges(
        self, pos: Tensor, batch: Tensor, cells: Tensor | None = None, pbc: object = None
    ) -> Edges:
        """Return the edges; arguments and errors are those of `Graph.edges`."""
        expect(len(pos) == len(self.reach), "pos", f"{len(self.reach)} atoms as z", len(pos))
        edges = self._graph.edges(pos, batch, cells, pbc)
        j, i = edges.index
        d_ij = torch.linalg.vector_norm(edges.vector.detach(), dim=1)
        reach = self.reach.to(d_ij)
        return _chosen(edges, d_ij < reach[i] + reach[j])


def _chosen(edges: Edges, mask: Tensor) -> Edges:
    return Edges(edges.index[:, mask], edges.vector[mask])


class Changes(NamedTuple):
    """What happens to the edges from each frame to the next: how many are made and lost, (T − 1,).

    `edges` is how many there are in each frame, (T,).
    """

    edges: Tensor
    made: Tensor
    lost: Tensor


def changes(graph: Graph | NearestGraph | BondGraph, frames: Tensor) -> Changes:
    """Return how the graph of an isolated molecule changes along frames, (T, n, 3)."""
    batch = torch.zeros(frames.shape[1], dtype=torch.int64)
    sets = [{*zip(*graph.edges(pos, batch).index.tolist(), strict=True)} for pos in frames]
    steps = list(pairwise(sets))
    return Changes(
        torch.tensor([len(edges) for edges in sets]),
        torch.tensor([len(after - before) for before, after in steps]),
        torch.tensor([len(before - after) for before, after in steps]),
    )


def energy_jumps(potential: Potential, z: Tensor, frames: Tensor) -> Tensor:
    """Return what the forces do not explain of the energy's change at each step, (T − 1,).

    E(t + 1) − E(t) + ½ (F(t) + F(t + 1)) · (x(t + 1) − x(t)), which is of third order in the step
    where the energy is smooth.

    Args:
        potential: with the graph that is looked at.
        z: atomic numbers, (n, 1).
        frames: positions, (T, n, 3), in steps of dynamics.
    """
    batch = torch.zeros(frames.shape[1], dtype=torch.int64)
    results = [potential.energy_and_forces(z, pos, batch) for pos in frames]
    energy = torch.cat([energy for energy, _ in results]).flatten()  # (T,)
    forces = torch.stack([forces for _, forces in results])  # (T, n, 3)
    work = 0.5 * ((forces[1:] + forces[:-1]) * frames.diff(dim=0)).sum(dim=(1, 2))
    return energy.diff() + work
