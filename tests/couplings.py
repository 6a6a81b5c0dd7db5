"""What the tests of couplings share: networks, atoms, and what the plain networks say of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from ase import Atoms
from ase.build import molecule
from networks import painn, schnet, shaken
from numpy.typing import NDArray
from torch import Tensor, nn

from molnets import networks
from molnets.checkpoint import Card
from molnets.edges import Edges
from molnets.potential import Potential

CARD = Card("schnet", {}, "eV", "Å", [1, 6, 8])
RTOL = {torch.float64: 5e-10, torch.float32: 5e-5}  # the splines' own tolerance: 1e-10 of filters
DTYPES = list(RTOL)


def egnn(dtype: torch.dtype = torch.float64) -> nn.Module:
    """Return a network that has no tables."""
    torch.manual_seed(0)
    sizes = {"dim_embedding": 12, "num_interactions": 2, "num_gaussians": 10, "cutoff": 2.5}
    return shaken(networks.build("egnn", sizes), 0.1).to(dtype)


NETWORKS: dict[str, Callable[..., nn.Module]] = {"schnet": schnet, "painn": painn, "egnn": egnn}


def ethanol() -> Atoms:
    """Return nine atoms of three elements, off every axis."""
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=0)
    atoms.rotate(40, (1, 2, 3))
    atoms.positions += [1.0, -2.0, 3.0]
    return atoms


def crystal() -> Atoms:
    """Return eight atoms of three elements in a triclinic cell in which they see their images.

    The cell is as OpenMM and i-PI want it: a along x, b in the plane of x and y, and not too
    oblique. Some atoms are outside.
    """
    cell = np.array([[4.1, 0, 0], [0.9, 3.9, 0], [-0.6, 0.7, 4.4]])
    sites = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)]) / 2
    atoms = Atoms("CHOHCOHH", sites @ cell, cell=cell, pbc=True)
    atoms.rattle(0.25, seed=1)
    atoms.positions[2] += cell[0] - 2 * cell[2]
    return atoms


SYSTEMS: dict[str, Callable[[], Atoms]] = {"ethanol": ethanol, "crystal": crystal}


def plain(network: nn.Module, atoms: Atoms) -> tuple[float, NDArray, NDArray]:
    """Return the energy, forces (N, 3) and ∂E/∂ε (3, 3) of the plain network in float64."""
    potential = Potential(copy.deepcopy(network)).double()
    n, periodic = len(atoms), atoms.pbc.any()
    system = torch.tensor(atoms.numbers).view(-1, 1), torch.tensor(atoms.positions)
    cells = torch.tensor(atoms.cell.array).unsqueeze(0) if periodic else None
    pbc = torch.tensor(atoms.pbc) if periodic else None
    results = potential.energy_forces_virial(*system, torch.zeros(n, dtype=torch.int64), cells, pbc)
    energy, forces, virial = (x.numpy() for x in results)
    return energy.item(), forces, virial[0]


def assert_close(actual: object, expected: object, dtype: torch.dtype) -> None:
    """Assert equality to the round-off of a dtype, relative to the largest number expected."""
    expected = np.asarray(expected)
    largest = np.abs(expected).max()
    assert largest > 1e-3  # control: there is something to be compared
    np.testing.assert_allclose(actual, expected, rtol=0, atol=RTOL[dtype] * largest)


def with_card(network: nn.Module, **changes: object) -> Potential:
    """Return a potential whose card says which units and elements it knows."""
    potential = Potential(network)
    potential.card = replace(CARD, **changes)
    return potential


class Nothing(nn.Module):
    """A network that has gone wrong: its energies are numbers, but not its forces, or neither."""

    cutoff = 2.5

    def __init__(self, of_forces_only: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.of_forces_only = of_forces_only

    def atomic_energies(self, z: Tensor, edges: Edges) -> Tensor:
        energy = edges.vector.square().sum() * self.weight
        each = (energy - energy).sqrt() if self.of_forces_only else energy / 0  # √0 has no slope
        return each.expand(len(z), 1)
