"""What an energy sees of a chain of four atoms, where nothing but its bonds are edges.

Axes:   N atoms, E directed edges j -> i.
Units:  those of the bonds' lengths.

A network that only hears along bonds must carry all else in its features: whether it can, and
after how many layers, is its body order. The chain a - b - c - d is bent at b, then turned about
b - c; both leave all bonds as they are. Its mirror image has the opposite dihedral angle.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from molnets.checks import expect
from molnets.edges import Edges
from molnets.potential import Network

ELEMENTS = (1, 6, 8, 7)
BONDS, ANGLES, DIHEDRAL = (1.1, 1.4, 1.0), (1.9, 1.7), 1.1
STEP = 0.1  # by how much a bond, an angle or the dihedral angle is changed


class Sight(NamedTuple):
    """How much the energies of the atoms change, relative to their spread, at the most.

    Args:
        bond: with the length of a bond.
        angle: with the angle between two bonds, the dihedral angle kept.
        dihedral: with the dihedral angle.
        mirror: from the chain to its mirror image.
    """

    bond: float
    angle: float
    dihedral: float
    mirror: float


def chain(
    bonds: tuple[float, ...] = BONDS, angles: tuple[float, ...] = ANGLES,
    dihedral: float = DIHEDRAL,
) -> Tensor:  # fmt: skip
    """Return positions of four atoms, (4, 3), from three bonds, two angles and the one between."""
    expect(len(bonds) == 3 and len(angles) == 2, "bonds, angles", "three and two", (bonds, angles))
    (ab, bc, cd), (at_b, at_c) = bonds, angles
    a = [ab * math.cos(at_b), ab * math.sin(at_b), 0.0]
    d = [bc - cd * math.cos(at_c), cd * math.sin(at_c) * math.cos(dihedral),
         cd * math.sin(at_c) * math.sin(dihedral)]  # fmt: skip
    return torch.tensor([a, [0.0, 0.0, 0.0], [bc, 0.0, 0.0], d], dtype=torch.float64)


def along_bonds(pos: Tensor) -> Edges:
    """Return the edges of a chain's bonds, both ways."""
    index = torch.tensor([[0, 1, 2, 1, 2, 3], [1, 2, 3, 0, 1, 2]])
    return Edges(index, pos[index[0]] - pos[index[1]])


def sight(network: Network) -> Sight:
    """Return what a network sees of the chain; it is float64, and its cutoff beyond the bonds."""
    z = torch.tensor(ELEMENTS).view(-1, 1)

    def energies(*changed: object) -> Tensor:
        return network.atomic_energies(z, along_bonds(chain(*changed))).detach()

    before = energies()
    spread = float(before.std())
    expect(spread > 0, "network", "energies that differ from atom to atom", before.tolist())
    others = (
        energies((BONDS[0], BONDS[1] + STEP, BONDS[2])),
        energies(BONDS, (ANGLES[0] + STEP, ANGLES[1])),
        energies(BONDS, ANGLES, DIHEDRAL + STEP),
        energies(BONDS, ANGLES, -DIHEDRAL),
    )
    return Sight(*(float((other - before).abs().max()) / spread for other in others))
