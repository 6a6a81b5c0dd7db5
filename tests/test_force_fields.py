"""Force fields against loops over pairs and images, known minima, and NIST's reference energies."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from contract import assert_equal
from systems import CELLS, PBC, SPECIES, Crowd, cluster, in_cells, seeded

from fake_data import ORIENTATION, lattice_sites
from molnets.dynamics import force_fields, lennard_jones, model_force_fn
from molnets.potential import Potential
from schnet_helpers import SchNet

DATA = Path(__file__).parent / "data"

pytestmark = pytest.mark.usefixtures("float64")


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(DATA / name, allow_pickle=False) as file:
        return dict(file)


def cross(num_replicas: int) -> torch.Tensor:
    """Return the cluster along the axes: in the periodic box, opposite arms nearly touch."""
    sites = 1.2 * lattice_sites(7) @ ORIENTATION.double()
    return sites + 0.05 * torch.randn(num_replicas, 7, 3, generator=seeded(0))


def energy_pair_by_pair(pos, epsilon, sigma, cutoff=math.inf, box=None):
    """Return the Lennard-Jones energy of one replica (n, 3) by a loop over pairs and images."""
    images = [torch.zeros(3)]
    if box is not None:
        shift = torch.tensor([-1.0, 0.0, 1.0])
        images = torch.cartesian_prod(shift, shift, shift) * torch.as_tensor(box)
    energy = pos.new_zeros(())
    for i in range(len(pos)):
        for j in range(i):
            for image in images:
                d = (pos[i] - pos[j] + image).norm()
                if d < cutoff:
                    energy = energy + 4 * epsilon * ((sigma / d) ** 12 - (sigma / d) ** 6)
    return energy


CLUSTER = {"epsilon": 0.7, "sigma": 1.1}
TRUNCATED = {"epsilon": 0.7, "sigma": 1.1, "cutoff": 1.7}
PERIODIC = {"epsilon": 0.7, "sigma": 1.1, "cutoff": 1.8, "box": (3.7, 4.1, 3.6)}


@pytest.mark.parametrize("pairs_at_once", [2**16, 20])
@pytest.mark.parametrize("settings", [CLUSTER, TRUNCATED, PERIODIC])
def test_lennard_jones_is_the_sum_over_pairs(settings, pairs_at_once, monkeypatch):
    monkeypatch.setattr(force_fields, "MAX_PAIRS", pairs_at_once)
    pos = cross(4)
    energies, forces = lennard_jones(**settings)(pos)
    assert energies.shape == (4,)
    for replica in range(4):
        own = pos[replica].clone().requires_grad_()
        energy = energy_pair_by_pair(own, **settings)
        assert_equal(energies[replica], energy.detach(), atol=1e-10)
        assert_equal(forces[replica], -torch.autograd.grad(energy, own)[0], atol=1e-9)
    assert energies.abs().min() > 0.1
    assert energies.diff().abs().min() > 1e-3


@pytest.mark.parametrize("settings", [CLUSTER, PERIODIC])
def test_forces_are_the_finite_differences_of_the_energy(settings):
    force_fn = lennard_jones(**settings)
    pos, step = cross(1), 1e-6
    shifts = step * torch.eye(21).view(21, 7, 3)
    slope = (force_fn(pos + shifts)[0] - force_fn(pos - shifts)[0]) / (2 * step)
    assert_equal(force_fn(pos)[1].flatten(), -slope, atol=1e-6)
    assert slope.abs().max() > 1


def test_a_periodic_image_is_the_same_atom():
    force_fn = lennard_jones(cutoff=2.5, box=6.0)
    pos = 6 * torch.rand(1, 10, 3, generator=seeded(1))
    moved = pos + 6 * torch.randint(-2, 3, pos.shape, generator=seeded(2))
    for ours, theirs in zip(force_fn(moved), force_fn(pos), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert (lennard_jones(cutoff=2.5)(pos)[0] - force_fn(pos)[0]).abs() > 1e-3


@pytest.mark.parametrize("name", ["LJ13", "LJ38", "LJ55"])
def test_global_minima_of_clusters(name):
    data = load("lj_clusters.npz")
    pos = torch.as_tensor(data[f"{name}_R"]).unsqueeze(0)
    energies, forces = lennard_jones()(pos)
    assert energies.item() == pytest.approx(float(data[f"{name}_E"]), abs=1e-5)
    assert forces.abs().max() < 1e-4
    assert lennard_jones()(1.01 * pos)[1].abs().max() > 0.1


@pytest.mark.parametrize("cutoff", [3, 4])
@pytest.mark.parametrize("number", [1, 2])
def test_reference_configurations_of_nist(number, cutoff):
    data = load("nist_lj.npz")
    box = np.broadcast_to(data[f"c{number}_L"], 3).tolist()
    force_fn = lennard_jones(cutoff=cutoff, box=box)
    energies, _ = force_fn(torch.as_tensor(data[f"c{number}_R"]).unsqueeze(0))
    assert energies.item() == pytest.approx(data[f"U_rc{cutoff}"][number - 1], rel=1e-4)


def test_a_model_is_a_force_field():
    torch.manual_seed(0)
    model = SchNet(8, 8, 1, 6, cutoff=3.0)
    positions = cluster(5).positions
    energies, forces = model_force_fn(model, torch.ones(7))(positions)
    assert energies.shape == (5,) and forces.shape == (5, 7, 3)
    assert not energies.requires_grad and not forces.requires_grad
    for replica in range(5):
        pos = positions[replica].clone().requires_grad_()
        energy = model(torch.ones(7, 1), pos, torch.zeros(7, dtype=torch.int64))
        assert_equal(energies[replica], energy.detach().squeeze())
        assert_equal(forces[replica], -torch.autograd.grad(energy.sum(), pos)[0])
    assert forces.abs().max() > 1e-3


def energies_image_by_image(pos, cells, pbc):
    """Return the energies, (R,), of a `Crowd` by a loop over atoms and all images near them."""
    near = torch.tensor(list(product(range(-5, 6), repeat=3))).to(pos)
    energies = []
    for x, cell, periodic in zip(pos, cells, pbc, strict=True):
        images = near[(near[:, ~periodic] == 0).all(dim=1)] @ cell  # (images, 3)
        energy = pos.new_zeros(())
        for i in range(len(x)):
            seen = pos.new_zeros(())
            for j in range(len(x)):
                d = (x[j] + images - x[i]).norm(dim=1)
                d = d[(d > 0) & (d < 2.2)]
                seen = seen + SPECIES[j] ** 0.5 * ((1 - d**2 / 2.2**2) ** 3).sum()
            energy = energy + SPECIES[i] * torch.tanh(0.1 * seen)
        energies.append(energy)
    return torch.stack(energies)


PARTLY = [True, False, True]


@pytest.mark.parametrize("pbc", [None, True, PARTLY, PBC])
def test_periodic_energies_and_forces_are_the_sum_over_images(pbc):
    pos = in_cells()
    everywhere = torch.as_tensor(True if pbc is None else pbc).expand(3, 3)
    energies, forces = model_force_fn(Crowd(), SPECIES, CELLS, pbc)(pos)
    assert energies.shape == (3,) and forces.shape == (3, 4, 3)
    assert not energies.requires_grad and not forces.requires_grad
    own = pos.clone().requires_grad_()
    expected = energies_image_by_image(own, CELLS, everywhere)
    assert_equal(energies, expected.detach())
    assert_equal(forces, -torch.autograd.grad(expected.sum(), own)[0])
    assert energies.diff().abs().min() > 0.01
    assert forces.abs().amax(dim=(1, 2)).min() > 0.1


def test_replicas_in_cells_of_their_own_equal_one_by_one():
    pos, potential = in_cells(), Potential(Crowd(), scale=2.0)
    energies, forces = model_force_fn(potential, SPECIES, CELLS, PBC)(pos)
    for r in range(3):
        alone = model_force_fn(potential, SPECIES, CELLS[r], PBC[r])(pos[r : r + 1])
        assert_equal(energies[r : r + 1], alone[0])
        assert_equal(forces[r : r + 1], alone[1])
    for cells, pbc in ((CELLS.roll(1, dims=0), PBC), (CELLS, PBC.roll(1, dims=0))):
        other = model_force_fn(potential, SPECIES, cells, pbc)(pos)[0]
        assert (other - energies).abs().min() > 1e-3  # it matters whose cell it is


def test_one_cell_serves_all_replicas():
    pos = in_cells()
    energies, forces = model_force_fn(Crowd(), SPECIES.view(4, 1), CELLS[1], PARTLY)(pos)
    each = model_force_fn(Crowd(), SPECIES, CELLS[1].expand(3, 3, 3), PARTLY)(pos)
    assert torch.equal(energies, each[0]) and torch.equal(forces, each[1])
    assert energies.diff().abs().min() > 1e-3


def test_images_matter():
    pos, potential = in_cells(), Potential(Crowd())
    force_fn = model_force_fn(potential, SPECIES, CELLS)
    energies, forces = force_fn(pos)
    moved = pos.clone()
    moved[:, 2] += 2 * CELLS[:, 0] - CELLS[:, 1]  # to an image of itself
    for ours, theirs in zip(force_fn(moved), (energies, forces), strict=True):
        assert_equal(ours, theirs, atol=1e-10)
    outside = model_force_fn(potential, SPECIES)(pos)
    assert (outside[0] - energies).abs().min() > 0.1
    assert (outside[1] - forces).abs().amax(dim=(1, 2)).min() > 0.1
    nowhere = model_force_fn(potential, SPECIES, CELLS, False)(pos)
    assert_equal(nowhere[0], outside[0])
    assert_equal(nowhere[1], outside[1])


def test_cells_follow_the_precision_of_the_positions():
    pos = in_cells()
    energies, forces = model_force_fn(Crowd().float(), SPECIES, CELLS)(pos.float())
    exact = model_force_fn(Crowd(), SPECIES, CELLS)(pos)
    assert forces.dtype == torch.float32
    assert_equal(energies.double(), exact[0], atol=1e-4)
    assert_equal(forces.double(), exact[1], atol=1e-4)


def test_only_a_network_or_a_potential_takes_cells():
    with pytest.raises(TypeError, match=r"network: expected a network .* got Linear"):
        model_force_fn(torch.nn.Linear(1, 1), SPECIES, CELLS)
    with pytest.raises(TypeError, match=r"cells: expected a tensor, got .*list"):
        crowded(CELLS.tolist())


def crowded(cells, pbc=None):
    return model_force_fn(Potential(Crowd()), SPECIES, cells, pbc)(in_cells())


ERRORS = [
    (lambda: lennard_jones(epsilon=0.0), "epsilon: expected a positive number, got 0"),
    (lambda: lennard_jones(sigma=-1.0), "sigma: expected a positive number, got -1"),
    (lambda: lennard_jones(cutoff=math.nan), "cutoff: expected a positive number, got nan"),
    (lambda: lennard_jones(box=5.0), "cutoff: expected at most half the box, 2.5, got None"),
    (lambda: lennard_jones(cutoff=2.6, box=(9, 5.0, 9)), "cutoff: expected at most half the box"),
    (lambda: lennard_jones(cutoff=1, box=(9, 5)), r"box: expected one or three positive edges"),
    (lambda: lennard_jones(cutoff=1, box=-3), r"box: expected one or three positive edges, got -3"),
    (lambda: lennard_jones()(torch.zeros(7, 3)), r"positions: expected .*\(R, n, 3\).*\(7, 3\)"),
    (lambda: lennard_jones()(torch.zeros(0, 7, 3)), r"positions: expected .*R, n > 0"),
    (lambda: model_force_fn(SchNet(), torch.ones(2, 7)), r"z: expected .*\(2, 7\)"),
    (
        lambda: model_force_fn(SchNet(), torch.ones(4))(torch.rand(2, 7, 3)),
        "positions: expected 4 atoms as z, got 7",
    ),
    (lambda: crowded(CELLS[:2]), r"cells: expected shape \(3, 3\) or \(3, 3, 3\), got \(2, 3, 3\)"),
    (lambda: crowded(CELLS[0, 0]), r"cells: expected shape \(3, 3\) or \(3, 3, 3\), got \(3,\)"),
    (lambda: crowded(CELLS, [True] * 2), r"pbc: expected shape .*\(3, 3\), got \(2,\)"),
    (lambda: crowded(0 * CELLS), "cells: expected independent vectors in periodic directions"),
    (lambda: crowded(None, True), "pbc: expected None without cells, got True"),
]


@pytest.mark.parametrize(("attempt", "message"), ERRORS)
def test_errors_name_the_argument(attempt, message):
    with pytest.raises(ValueError, match=message):
        attempt()
