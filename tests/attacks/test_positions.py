"""Any positions, cells and orders: forces as those of a double loop over atoms and images."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from contract import assert_equal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import ON_SPLINES

from molnets.coupling.ase import ModelCalculator
from molnets.edges import Edges, Graph
from molnets.potential import Potential, energy_and_forces, energy_forces_virial
from molnets.tables import tabulated

CUTOFF = 2.5
OFTEN = settings(max_examples=30, deadline=None, derandomize=True,
                 suppress_health_check=list(HealthCheck))  # fmt: skip
NETWORKS = {name: make() for name, make in ON_SPLINES.items()}
FAST = {name: tabulated(Potential(network)) for name, network in NETWORKS.items()}


def brute_force(pos: torch.Tensor, batch: torch.Tensor, cells=None, pbc=None) -> Edges:
    """Return all edges shorter than the cutoff, found atom by atom and image by image."""
    span = [range(-10, 11) if cells is not None and pbc[k] else (0,) for k in range(3)]
    shifts = torch.tensor(list(itertools.product(*span)), dtype=torch.float64)
    offsets = (
        shifts[:, :0].sum(1, keepdim=True).expand(-1, 3) if cells is None else shifts @ cells[0]
    )
    vectors = pos[None, None] - pos[None, :, None] + offsets[:, None, None]  # (S, i, j, 3)
    near = (vectors.norm(dim=-1) < CUTOFF) & (batch[:, None] == batch[None])
    near &= ~((shifts == 0).all(dim=1)[:, None, None] & torch.eye(len(pos), dtype=torch.bool))
    _, i, j = near.nonzero().T
    return Edges(torch.stack([j, i]), vectors[near])


def check(name: str, pos: torch.Tensor, batch: torch.Tensor, cells=None, pbc=None) -> None:
    """Compare energies, forces and virials, if the input is one that is accepted."""
    z = torch.tensor([[1], [6], [8]]).repeat(len(pos), 1)[: len(pos)]
    periodic = None if cells is None else torch.tensor(pbc)
    try:
        found = FAST[name].energy_forces_virial(z, pos, batch, cells, periodic)
    except ValueError as error:
        assert "pos: expected distinct" in str(error)
        d = torch.cdist(pos, pos) + 9 * torch.eye(len(pos)) + (batch[:, None] != batch)
        assert cells is not None or d.min() < 1e-150  # squares of smaller numbers are 0
        return
    edges = brute_force(pos, batch, cells, pbc)
    shortest = float(edges.vector.norm(dim=1).min()) if len(edges.vector) else 1.0
    noise = 1e-15 / shortest  # what turns an edge is rounded, then over its length
    for a, b in zip(found, energy_forces_virial(NETWORKS[name], z, batch, edges), strict=True):
        assert_equal(a, b, atol=1e-7 * max(1.0, float(b.abs().max())) + noise)


numbers = st.one_of(
    st.floats(-4, 4), st.floats(-1e20, 1e20), st.just(0.0), st.just(CUTOFF), st.just(-CUTOFF),
    st.floats(-1e-300, 1e-300), st.sampled_from([5e-324, 1e-160, 3e38, -1e150, 1.0, 2.0]),
)  # fmt: skip


@OFTEN
@given(st.lists(st.tuples(numbers, numbers, numbers), min_size=1, max_size=12), st.data())
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_coordinates_of_any_size(name, atoms, data):
    sizes = data.draw(st.lists(st.integers(1, len(atoms)), min_size=1, max_size=3))
    batch = torch.tensor([b for b, n in enumerate(sizes) for _ in range(n)][: len(atoms)])
    check(name, torch.tensor(atoms[: len(batch)], dtype=torch.float64), batch)


@OFTEN
@given(st.integers(65, 200), st.integers(0, 10**6), st.sampled_from([0.3, 1.0, 30.0, 1e9, 1e200]),
       st.integers(0, 3), st.integers(1, 4))  # fmt: skip
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_samples_sorted_into_cells(name, n, seed, far, flat, threads):
    """More atoms than are compared one by one; some far away, some axes without any extent."""
    rng = np.random.default_rng(seed)
    pos = 5.0 * rng.random((n, 3))
    pos[:, :flat] = 0.0 if flat < 3 else pos[:, :3]
    pos[rng.random(n) < 0.05] *= far
    before = torch.get_num_threads
    torch.get_num_threads = lambda: threads
    try:
        check(name, torch.from_numpy(pos), torch.zeros(n, dtype=torch.int64))
    finally:
        torch.get_num_threads = before


@OFTEN
@given(st.integers(1, 5), st.integers(0, 10**6), st.lists(st.booleans(), min_size=3, max_size=3),
       st.sampled_from([0.0, 0.4]))  # fmt: skip
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_cells_of_any_shape(name, n, seed, pbc, skin):
    rng = np.random.default_rng(seed)
    cell = np.diag(rng.uniform(1.2, 4.0, 3)) + rng.uniform(-0.3, 0.3, (3, 3))
    pos = torch.from_numpy(rng.uniform(-2, 2, (n, 3)))
    FAST[name].graph = Graph(CUTOFF, skin)
    check(name, pos, torch.zeros(n, dtype=torch.int64), torch.from_numpy(cell)[None], pbc)
    FAST[name].graph = Graph(CUTOFF)


@pytest.mark.parametrize("name", sorted(NETWORKS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("away", [1e20, -3e38, 1e30])
def test_one_atom_far_away_does_not_disturb_the_others(name, dtype, away):
    """An exploding run: its cell's number overflows where it is computed without care."""
    torch.manual_seed(0)
    network = ON_SPLINES[name](dtype)
    for n in (9, 100):
        z, pos = torch.ones(n, 1), 4.0 * torch.rand(n, 3).to(dtype)
        batch = torch.zeros(n, dtype=torch.int64)
        model = tabulated(Potential(network))
        expected = energy_and_forces(model, z[1:], pos[1:], batch[1:])
        pos[0, 1] = away
        energy, forces = energy_and_forces(model, z, pos, batch)
        atol = (1e-4 if dtype == torch.float32 else 1e-9) * float(expected[1].abs().max())
        assert_equal(forces[1:], expected[1], atol=atol)
        assert energy.isfinite() and not forces[0].any()


@pytest.mark.parametrize("name", sorted(NETWORKS))
@pytest.mark.parametrize("move", [1e4, 1e6, -1e8])
@pytest.mark.parametrize("by", ["everything", "images"])
def test_atoms_far_from_the_origin_in_single_precision(name, move, by):
    """Positions are taken to where single precision has digits before they lose them."""
    from ase.build import bulk

    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.1, seed=0)
    make = ON_SPLINES[name]
    calculator = ModelCalculator(make(torch.float32, cutoff=4.0))
    atoms.calc = calculator
    expected = atoms.get_potential_energy(), atoms.get_forces()
    if by == "everything":
        atoms.positions += move
    else:  # each atom in another cell
        edge = atoms.cell[0, 0]
        atoms.positions[::2] += round(move / edge) * edge
    tolerance = 3e-5 + 1e-15 * abs(move) * 20
    np.testing.assert_allclose(atoms.get_potential_energy(), expected[0], rtol=tolerance)
    scale = np.abs(expected[1]).max()
    np.testing.assert_allclose(atoms.get_forces(), expected[1], atol=tolerance * scale * 3)
