"""What the tests of dynamics share: a warm cluster, springs, a network in cells, random numbers."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from fake_data import lattice_sites
from molnets.dynamics import (
    Distribution,
    ForceFn,
    State,
    distribution,
    langevin_baoab,
    lennard_jones,
    maxwell_boltzmann,
    start,
    velocity_verlet,
)

MASSES = torch.tensor([1.0, 2.0, 1.5, 1.0, 3.0, 1.0, 0.5], dtype=torch.float64)

SPECIES = torch.tensor([1, 8, 6, 1])
CELLS = torch.tensor(
    [
        [[1.9, 0.0, 0.0], [0.5, 2.1, 0.0], [-0.3, 0.4, 1.8]],
        [[2.3, 0.2, 0.1], [0.0, 1.7, -0.4], [0.6, 0.0, 2.2]],
        [[2.0, 0.3, 0.0], [0.7, 2.4, 0.2], [0.0, -0.5, 2.6]],
    ],
    dtype=torch.float64,
)
PBC = torch.tensor([[True, True, False], [False, False, True], [True, True, True]])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cluster(num_replicas: int, temperature: float = 0.1, seed: int = 0) -> State:
    """Return the warm 7-atom cluster, its atoms of different masses, every replica its own."""
    shake = 0.05 * torch.randn(num_replicas, 7, 3, generator=seeded(seed))
    positions = 1.1 * lattice_sites(7) + shake
    velocities = maxwell_boltzmann(MASSES, temperature, num_replicas, seeded(seed + 1))
    return start(lennard_jones(), positions, velocities, MASSES)


def verlet(dt: float, force_fn: ForceFn | None = None):
    force_fn = force_fn or lennard_jones()
    return lambda state: velocity_verlet(force_fn, state, dt)


def langevin(seed: int, dt: float = 0.01):
    force_fn, generator = lennard_jones(), seeded(seed)
    return lambda state: langevin_baoab(force_fn, state, dt, 0.2, 1.0, generator)


def springs(k: float) -> ForceFn:
    return lambda pos: (0.5 * k * pos.square().sum(dim=(1, 2)), -k * pos)


class Crowd(nn.Module):
    """A network as small as can be: atoms repel each other, more softly the more there are.

    E_i = Z_i tanh(w Σ_j √Z_j (1 − d_ij² / r_c²)³)

    The cutoff is longer than most vectors of `CELLS`: atoms see several images of one another, and
    of themselves. Two derivatives are continuous at the cutoff, as the order of an error demands.
    """

    cutoff = 2.2

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.1, dtype=torch.float64))

    def atomic_energies(self, z: Tensor, edges) -> Tensor:
        z, (j, i) = z.to(edges.vector), edges.index
        closeness = (1 - edges.vector.square().sum(dim=1) / self.cutoff**2) ** 3  # (E,)
        seen = closeness.new_zeros(len(z)).index_add(0, i, z[j, 0].sqrt() * closeness)  # (N,)
        return z * torch.tanh(self.weight * seen).unsqueeze(1)


def in_cells(num_replicas: int = 3) -> Tensor:
    """Return positions, (R, 4, 3), of the atoms `SPECIES`, some of them outside their cells."""
    generator = seeded(0)
    fractions = torch.tensor([[0.0, 0, 0], [0.5, 0.4, 0.1], [0.1, 0.5, 0.6], [0.6, 0, 0.5]])
    shifts = torch.randint(-1, 2, (num_replicas, 4, 3), generator=generator)
    shake = 0.1 * torch.randn(num_replicas, 4, 3, generator=generator)
    return (fractions.double() + shifts + shake) @ CELLS[:num_replicas]


def random(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def normal(seed: int, shift: float = 0.0, num_replicas: int = 8) -> Distribution:
    """Return a distribution of replicas that are each a little off: correlated frames."""
    rng = random(seed)
    values = rng.normal(size=(20, num_replicas)) + 0.3 * rng.normal(size=num_replicas)
    return distribution(values + shift, 10, -3, 3)
