"""Graphs of the nearest and of bonds beside loops, and what they do along a trajectory."""

from __future__ import annotations

import pytest
import torch
from ase.build import molecule
from contract import assert_equal, crystals, molecules
from networks import schnet

from molnets.edges import Graph
from molnets.graphs import BondGraph, NearestGraph, changes, energy_jumps
from molnets.potential import Potential


def pairs(edges) -> set[tuple[int, int]]:
    return {*zip(*edges.index.tolist(), strict=True)}


def cloud(n: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    return 2 * torch.randn(n, 3, dtype=torch.float64), torch.zeros(n, dtype=torch.int64)


@pytest.mark.parametrize("k", [1, 3, 6, 11, 20])
def test_nearest_are_those_of_a_sorted_list(k):
    pos, batch = cloud()
    d = torch.cdist(pos, pos)
    near = {(j, i) for i in range(12) for j in d[i].argsort()[1 : k + 1].tolist()}
    assert pairs(NearestGraph(k, 30.0).edges(pos, batch)) == near
    other_way = {(i, j) for j, i in near}
    assert pairs(NearestGraph(k, 30.0, "either").edges(pos, batch)) == near | other_way
    assert pairs(NearestGraph(k, 30.0, "both").edges(pos, batch)) == near & other_way
    if k in (1, 3):
        assert near != other_way  # control: who is near to whom is not symmetric


def test_nearest_keeps_samples_apart_and_small_ones_whole():
    _, pos, batch = molecules()
    found = pairs(NearestGraph(2, 9.0).edges(pos, batch))
    assert all(batch[j] == batch[i] for j, i in found)
    assert len(found) == 3 * 2 + 4 * 2
    alone = torch.tensor([0, 1, 2, 3, 4, 5, 6])
    assert pairs(NearestGraph(2, 9.0).edges(pos, alone)) == set()


def test_nearest_of_equals_are_all():
    square = torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 0]]).double()
    batch = torch.zeros(5, dtype=torch.int64)
    found = NearestGraph(2, 9.0).edges(square, batch)
    assert found.index[1].bincount().tolist() == [3, 3, 3, 3, 4]  # centre and two corners; corners


def test_nearest_sees_images():
    _, pos, batch, cells, pbc = crystals()
    found = NearestGraph(4, 6.0).edges(pos, batch, cells, pbc)
    assert found.index[1].bincount()[8:].tolist() == [1, 1]  # two atoms that have no images
    every = Graph(6.0).edges(pos, batch, cells, pbc)
    for i in range(len(pos)):
        mine = found.vector[found.index[1] == i].norm(dim=1).sort().values
        expected = every.vector[every.index[1] == i].norm(dim=1).sort().values
        assert_equal(mine[:4], expected[:4])
        assert (expected[4:] > mine[-1]).sum() == len(expected) - len(mine)
    for symmetry in ("either", "both"):
        index, vector = NearestGraph(4, 6.0, symmetry).edges(pos, batch, cells, pbc)
        there = {(j, i, *(round(x, 6) + 0.0 for x in r))
                 for (j, i), r in zip(index.T.tolist(), vector.tolist(), strict=True)}  # fmt: skip
        assert there == {(i, j, *(-x + 0.0 for x in r)) for j, i, *r in there}


def test_nearest_beyond_the_search_is_an_error():
    pos, batch = cloud()
    with pytest.raises(ValueError, match=r"cutoff: expected one that holds the 6 nearest of every"):
        NearestGraph(6, 2.0).edges(pos, batch)


@pytest.mark.parametrize("name, num_bonds", [("CH3CH2OH", 8), ("C6H6", 12), ("H2O", 2), ("CO2", 2)])
def test_bonds_are_those_of_chemistry(name, num_bonds):
    atoms = molecule(name)
    pos, batch = torch.tensor(atoms.positions), torch.zeros(len(atoms), dtype=torch.int64)
    found = pairs(BondGraph(torch.tensor(atoms.numbers)).edges(pos, batch))
    assert len(found) == 2 * num_bonds
    assert found == {(i, j) for j, i in found}
    nm = BondGraph(torch.tensor(atoms.numbers), unit=10.0).edges(0.1 * pos, batch)
    assert pairs(nm) == found


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: NearestGraph(0, 5.0), "k: expected a positive integer, got 0"),
        (lambda: NearestGraph(3, -5.0), "cutoff: expected a positive finite number"),
        (lambda: NearestGraph(3, 5.0, "mutual"), "symmetry: expected one of .* got 'mutual'"),
        (lambda: BondGraph(torch.tensor([0, 6])), r"z: expected atomic numbers .* got \[0\]"),
        (lambda: BondGraph(torch.tensor([97])), r"z: expected atomic numbers .* got \[97\]"),
        (lambda: BondGraph(torch.tensor([6.5])), r"z: expected atomic numbers .* got \[6.5\]"),
        (lambda: BondGraph(torch.tensor([6]), factor=0.0), "factor: expected a positive"),
        (
            lambda: BondGraph(torch.tensor([6])).edges(torch.zeros(2, 3), torch.tensor([0, 0])),
            "pos: expected 1 atoms as z, got 2",
        ),
    ],
)
def test_wrong_graphs_are_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def moving(num_frames: int = 40) -> torch.Tensor:
    """Return frames of six atoms of which one leaves the others, in small steps."""
    torch.manual_seed(0)
    x = torch.randn(6, 3, dtype=torch.float64)
    away = torch.zeros(6, 3, dtype=torch.float64)
    away[0] = torch.tensor([1.0, 0.4, -0.2])
    return x + torch.linspace(0, 3, num_frames).double().view(-1, 1, 1) * away


def test_changes_are_counted():
    frames = moving()
    found = changes(Graph(2.5), frames)
    assert found.edges.tolist() == [len(Graph(2.5).edges(x, torch.zeros(6).long()).vector)
                                    for x in frames]  # fmt: skip
    assert torch.equal(found.edges.diff(), found.made - found.lost)
    assert int(found.lost.sum()) > 0
    assert changes(Graph(50.0), frames).made.sum() == 0
    nearest = changes(NearestGraph(3, 20.0), frames)
    assert (nearest.made == nearest.lost).all()
    assert int(nearest.made.sum()) > 0


def test_energy_jumps_where_an_edge_appears_and_nowhere_else():
    frames, z = moving(400), torch.tensor([[6], [1], [1], [8], [1], [6]])
    potential = Potential(schnet(cutoff=6.0))
    smooth = energy_jumps(potential, z, frames).abs().max()
    swing = potential.energy_and_forces(z, frames[0], torch.zeros(6).long())[1].abs().max()
    assert smooth < 1e-4 * swing
    potential.graph = NearestGraph(3, 20.0)
    jumps = energy_jumps(potential, z, frames).abs()
    seen = changes(potential.graph, frames).made > 0
    assert jumps[~seen].max() < 1e-4 * swing
    assert jumps[seen].max() > 100 * smooth
