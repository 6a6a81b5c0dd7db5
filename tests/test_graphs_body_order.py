"""What each network sees along bonds, and the chain that it is shown."""

from __future__ import annotations

import pytest
import torch
from ase import Atoms
from contract import assert_equal
from networks import shaken

from molnets import networks
from molnets.expansion import ClusterExpansion, Order
from molnets.graphs import along_bonds, chain, sight
from molnets.graphs.body_order import ANGLES, BONDS, DIHEDRAL, ELEMENTS

SEEN, NOT_SEEN = 1e-8, 1e-12
# From how many layers on an angle, and a dihedral angle, is seen; 9 for never.
FROM = {"tensornet": (1, 1), "schnet": (9, 9), "egnn": (2, 2), "painn": (1, 2), "dimenet": (1, 9)}


def test_the_chain_has_the_angles_that_it_is_given():
    atoms = Atoms(numbers=ELEMENTS, positions=chain().numpy())
    degrees = 180 / torch.pi
    assert [atoms.get_distance(k, k + 1) for k in range(3)] == pytest.approx(BONDS)
    assert atoms.get_angle(0, 1, 2) == pytest.approx(ANGLES[0] * degrees)
    assert atoms.get_angle(1, 2, 3) == pytest.approx(ANGLES[1] * degrees)
    assert atoms.get_dihedral(0, 1, 2, 3) == pytest.approx(DIHEDRAL * degrees)
    mirror = chain(BONDS, ANGLES, -DIHEDRAL)
    assert_equal(mirror * torch.tensor([1.0, 1.0, -1.0]).double(), chain())
    edges = along_bonds(chain())
    assert_equal(edges.vector.norm(dim=1)[:3], torch.tensor(BONDS, dtype=torch.float64))


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("name", sorted(networks.NETWORKS))
def test_what_a_network_sees_along_bonds(name, layers):
    network = networks.build(name, {"num_interactions": layers, "dim_embedding": 16})
    seen = sight(shaken(network, 0.2))
    angle, dihedral = FROM[name]
    assert seen.bond > 1e-4  # control
    assert seen.angle > SEEN if layers >= angle else seen.angle < NOT_SEEN
    assert seen.dihedral > SEEN if layers >= dihedral else seen.dihedral < NOT_SEEN
    assert seen.mirror < NOT_SEEN


@pytest.mark.parametrize("nu", [1, 2, 3])
def test_what_the_cluster_expansion_sees_along_bonds(nu):
    orders = [Order(2, 0), Order(2, 2), Order(2, 2)][:nu]

    class Linear:
        cutoff = 3.0
        basis = ClusterExpansion(sorted(ELEMENTS), orders, 3.0).double()

        def atomic_energies(self, z, edges):
            return self.basis(z, edges).sum(dim=1, keepdim=True)

    seen = sight(Linear())
    assert seen.bond > 1e-4
    assert (seen.angle > 1e-4) == (nu > 1)
    assert seen.dihedral < NOT_SEEN  # no atom has three bonds here, and none sees beyond its own


def test_energies_without_differences_are_an_error():
    class Constant:
        cutoff = 3.0

        def atomic_energies(self, z, edges):
            return torch.zeros(len(z), 1)

    with pytest.raises(ValueError, match="network: expected energies that differ"):
        sight(Constant())
