"""The ASE calculator against finite differences, ASE's own Lennard-Jones, and the bare model."""

from __future__ import annotations

import copy
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.calculators.lj import LennardJones
from ase.filters import FrechetCellFilter
from ase.md.langevin import Langevin
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from torch import Tensor, nn

from md.calculator import ModelCalculator
from md.neighbors import PeriodicGraph
from md.potential import Standardized, energy_and_forces
from md.spline import SplineSchNet
from schnet_helpers import ElementEmbedding, RadiusInteractionGraph, SchNet


@pytest.fixture(autouse=True)
def one_thread():
    """Compute on one thread: on a busy machine, tiny systems wait for a second one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def model() -> SchNet:
    """Return a SchNet with random weights in float64 and every bias shaken."""
    torch.manual_seed(0)
    model = SchNet(16, 16, 2, 10, cutoff=4.0, embedding=ElementEmbedding(16, max_z=20)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


class PairModel(nn.Module):
    """E = ½ Σ_ij (4 (d_ij⁻¹² − d_ij⁻⁶) − shift), zero at the cutoff."""

    def __init__(self, cutoff: float) -> None:
        super().__init__()
        self.interaction_graph = RadiusInteractionGraph(cutoff)
        self.cutoff = cutoff
        self.epsilon = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.num_calls = 0

    def forward(self, z: Tensor, pos: Tensor, batch: Tensor) -> Tensor:
        self.num_calls += 1
        _, d_ij = self.interaction_graph(pos, batch)
        shift = self.cutoff**-12 - self.cutoff**-6
        energy = 2 * self.epsilon * (d_ij**-12 - d_ij**-6 - shift).sum()
        return energy.view(1, 1)


def primitive_silicon() -> Atoms:
    """Return 2 atoms in a cell that is smaller than the cutoff, one moved from its site."""
    atoms = bulk("Si")
    atoms.positions[1] += [0.1, -0.2, 0.15]
    return atoms


def sheared_silicon() -> Atoms:
    """Return 16 atoms in a cell without symmetry."""
    atoms = bulk("Si", cubic=True).repeat((2, 1, 1))
    shear = np.array([[0.2, 0.7, -0.1], [0.3, -0.2, 0.4], [0.9, 0.1, 0.1]])
    atoms.set_cell(atoms.cell.array + shear, scale_atoms=True)
    atoms.rattle(0.1, seed=0)
    return atoms


def silicon_slab() -> Atoms:
    """Return a slab: periodic in two directions, with a cell vector across."""
    atoms = sheared_silicon()
    atoms.pbc = (True, True, False)
    return atoms


SYSTEMS = [primitive_silicon, sheared_silicon, silicon_slab]


def energy(atoms: Atoms, model: nn.Module) -> float:
    atoms = atoms.copy()
    atoms.calc = ModelCalculator(model)
    return atoms.get_potential_energy()


# Energy, forces and stress


@pytest.mark.parametrize("skin", [0.0, 0.3])
@pytest.mark.parametrize("make_atoms", SYSTEMS)
def test_forces_and_stress_are_finite_differences(model, make_atoms, skin):
    atoms = make_atoms()
    atoms.calc = ModelCalculator(model, skin)
    forces, stress = atoms.get_forces(), atoms.get_stress()
    expected = calculate_numerical_forces(atoms, eps=1e-5, iatoms=range(2))
    np.testing.assert_allclose(forces[:2], expected, rtol=0, atol=1e-7)
    expected = calculate_numerical_stress(atoms, eps=1e-5)
    np.testing.assert_allclose(stress, expected, rtol=0, atol=1e-8)
    assert np.abs(forces).min() > 1e-5
    distances = np.abs(stress[:, None] - stress[None])[np.triu_indices(6, 1)]
    assert distances.min() > 1e-5  # control: no two components are equal, so their order counts
    assert np.abs(stress).min() > 1e-5


@pytest.mark.parametrize("make_atoms", SYSTEMS)
def test_lennard_jones_is_that_of_ase(make_atoms):
    atoms = make_atoms()
    atoms.set_cell(0.45 * atoms.cell.array, scale_atoms=True)
    results = []
    for calculator in (ModelCalculator(PairModel(2.5)), LennardJones(rc=2.5, smooth=False)):
        atoms.calc = calculator
        results.append((atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()))
    for mine, of_ase in zip(*results, strict=True):
        np.testing.assert_allclose(mine, of_ase, rtol=1e-10, atol=1e-10)
        assert np.abs(mine).max() > 0.1


@pytest.mark.parametrize("lattice_constant, sign", [(1.4, -1), (1.8, 1)])
def test_stress_is_negative_under_pressure_and_positive_under_tension(lattice_constant, sign):
    atoms = bulk("Ar", "fcc", a=lattice_constant)
    atoms.calc = ModelCalculator(PairModel(2.5))
    assert (sign * atoms.get_stress()[:3] > 0.1).all()
    np.testing.assert_allclose(atoms.get_stress()[3:], 0, atol=1e-10)


def test_voigt_order():
    """A crystal that is sheared in the yz plane resists in the component yz, the fourth."""
    for component, (a, b) in {3: (1, 2), 4: (0, 2), 5: (0, 1)}.items():
        strain = np.eye(3)
        strain[a, b] = strain[b, a] = 0.01
        atoms = bulk("Ar", "fcc", a=1.55, cubic=True)
        atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
        atoms.calc = ModelCalculator(PairModel(2.5))
        shear = atoms.get_stress()[3:]
        assert shear[component - 3] > 0.1
        assert np.abs(np.delete(shear, component - 3)).max() < 0.01


def test_energy_is_extensive(model):
    for make_atoms, repeats in [(primitive_silicon, (2, 1, 1)), (sheared_silicon, (1, 2, 1))]:
        atoms = make_atoms()
        assert energy(atoms.repeat(repeats), model) == pytest.approx(
            2 * energy(atoms, model), rel=1e-12
        )
    stretched = atoms.copy()  # control
    stretched.set_cell(1.02 * atoms.cell, scale_atoms=True)
    assert abs(energy(stretched, model) - energy(atoms, model)) > 1e-3


def test_wrapped_atoms_and_equivalent_cells(model):
    atoms = sheared_silicon()
    expected = energy(atoms, model)
    scattered = atoms.copy()
    images = np.random.default_rng(0).integers(-2, 3, (len(atoms), 3))
    scattered.positions += images @ atoms.cell.array
    assert energy(scattered, model) == pytest.approx(expected, rel=1e-12)
    scattered.wrap()
    assert energy(scattered, model) == pytest.approx(expected, rel=1e-12)
    for change in ([[1, 1, 0], [0, 1, 0], [0, 2, 1]], [[0, 1, 0], [1, 0, 0], [0, 0, 1]]):
        equivalent = atoms.copy()  # the same lattice; the second one is left-handed
        equivalent.set_cell(np.array(change) @ atoms.cell.array)
        assert energy(equivalent, model) == pytest.approx(expected, rel=1e-12)
        results = []
        for system in (atoms, equivalent):
            system.calc = ModelCalculator(model)
            results.append((system.get_forces(), system.get_stress()))
        for mine, other in zip(*results, strict=True):
            np.testing.assert_allclose(mine, other, rtol=0, atol=1e-11)
    not_equivalent = atoms.copy()
    not_equivalent.set_cell(np.array([[1, 0.5, 0], [0, 1, 0], [0, 0, 1]]) @ atoms.cell.array)
    assert abs(energy(not_equivalent, model) - expected) > 1e-3  # control


def test_molecule_equals_the_bare_model(model):
    atoms = molecule("CH3CH2OH")
    atoms.calc = ModelCalculator(model)
    z = torch.tensor(atoms.numbers).view(-1, 1)
    bare = z, torch.tensor(atoms.positions), torch.zeros(9, dtype=torch.int64)
    for same, digits in ((SplineSchNet(model), 1e-12), (model, 1e-10)):
        expected, forces = energy_and_forces(same, *bare)
        assert atoms.get_potential_energy() == pytest.approx(expected.item(), rel=digits)
        np.testing.assert_allclose(atoms.get_forces(), forces.numpy(), rtol=0, atol=digits)
    assert forces.abs().max() > 1e-2
    atoms.set_cell(3 * np.eye(3))
    assert atoms.get_potential_energy() == pytest.approx(expected.item(), rel=1e-10)
    atoms.pbc = True  # control: images do change the energy
    assert abs(atoms.get_potential_energy() - expected.item()) > 1e-3


def test_single_atom_has_no_force(model):
    atoms = Atoms("C", calculator=ModelCalculator(model))
    assert math.isfinite(atoms.get_potential_energy())
    np.testing.assert_array_equal(atoms.get_forces(), np.zeros((1, 3)))


@pytest.mark.parametrize("pbc, cell", [(False, np.eye(3) * 9), ((True, False, False), [9, 0, 0])])
def test_stress_without_a_volume_is_an_error(model, pbc, cell):
    atoms = molecule("H2O", pbc=pbc, cell=cell)
    atoms.calc = ModelCalculator(model)
    for _ in range(2):  # with and without energy and forces in the cache
        with pytest.raises(PropertyNotImplementedError, match="stress: expected a periodic system"):
            atoms.get_stress()
        assert atoms.get_forces().shape == (3, 3)


# The model inside


def test_units_of_a_standardized_model(model):
    atoms = sheared_silicon()
    element_energies = torch.zeros(119, dtype=torch.float64)
    element_energies[14] = -1000.0
    bare, scaled = ModelCalculator(model), ModelCalculator(Standardized(model, 3, element_energies))
    atoms.calc = bare
    expected = 3 * atoms.get_potential_energy() - 16 * 1000.0
    forces, stress = 3 * atoms.get_forces(), 3 * atoms.get_stress()
    atoms.calc = scaled
    assert atoms.get_potential_energy() == pytest.approx(expected, abs=1e-9)
    assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()
    np.testing.assert_allclose(atoms.get_forces(), forces, rtol=0, atol=1e-12)
    np.testing.assert_allclose(atoms.get_stress(), stress, rtol=0, atol=1e-12)


def test_types_of_a_float32_model(model):
    atoms = sheared_silicon()
    expected = energy(atoms, model)
    atoms.calc = ModelCalculator(model.float())
    assert type(atoms.get_potential_energy()) is float
    assert atoms.get_forces().dtype == atoms.get_stress().dtype == np.float64
    assert atoms.get_potential_energy() == pytest.approx(expected, abs=1e-4)


def test_model_of_the_caller_stays_as_it_is(model):
    model.train()
    before, graph = copy.deepcopy(model.state_dict()), model.interaction_graph
    calculator = ModelCalculator(model)
    atoms = sheared_silicon()
    atoms.calc = calculator
    expected = atoms.get_potential_energy()
    assert model.interaction_graph is graph
    assert isinstance(graph, RadiusInteractionGraph)
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    with torch.no_grad():
        next(model.readout.parameters()).zero_()
    atoms.calc = copy.deepcopy(calculator)
    atoms.calc.reset()
    assert atoms.get_potential_energy() == expected  # what happens to the model later is not seen
    assert abs(energy(atoms, model) - expected) > 1e-3


def test_checkpoint_is_loaded(model, monkeypatch):
    def load_model(path: str) -> nn.Module:
        assert path == "runs/x/best.pt"
        return Standardized(model, 2.0)

    monkeypatch.setitem(sys.modules, "md.training", SimpleNamespace(load_model=load_model))
    atoms = sheared_silicon()
    atoms.calc = ModelCalculator("runs/x/best.pt")
    assert atoms.get_potential_energy() == pytest.approx(2 * energy(atoms, model), rel=1e-12)


def test_model_without_exactly_one_graph_is_an_error(model):
    with pytest.raises(ValueError, match="expected one module with an interaction_graph, got 0 in"):
        ModelCalculator(nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"expected one module .*, got 2 in ModuleList"):
        ModelCalculator(nn.ModuleList([model, copy.deepcopy(model)]))


# With ASE


def test_only_changes_are_calculated():
    atoms = bulk("Ar", "fcc", a=1.5, cubic=True)
    atoms.calc = calculator = ModelCalculator(PairModel(2.5))
    for _ in range(2):
        atoms.get_forces(), atoms.get_potential_energy(), atoms.get_stress()
        assert calculator.model.num_calls == 1
    before = atoms.get_potential_energy()
    atoms.positions[0, 0] += 0.05
    assert atoms.get_potential_energy() > before
    assert calculator.model.num_calls == 2
    atoms.set_cell(1.1 * atoms.cell)
    atoms.get_forces()
    assert calculator.model.num_calls == 3
    atoms.pbc = False
    atoms.get_forces()
    assert calculator.model.num_calls == 4


def test_error_leaves_no_results_behind(model):
    atoms = primitive_silicon()
    calculator = ModelCalculator(model)
    calculator.calculate(atoms)
    assert calculator.results["energy"] == pytest.approx(energy(atoms, model))
    atoms.positions[1] = atoms.positions[0]
    with pytest.raises(ValueError, match="pos: expected distinct positions"):
        calculator.calculate(atoms)
    assert calculator.results == {}


def test_optimiser_lowers_the_energy(model):
    atoms = sheared_silicon()
    atoms.calc = ModelCalculator(model)
    energies = []
    optimiser = BFGS(atoms, logfile=None)
    optimiser.attach(lambda: energies.append(atoms.get_potential_energy()))
    optimiser.run(fmax=1e-6, steps=15)
    assert len(energies) == 16
    assert (np.diff(energies) < 0).all()
    assert energies[-1] < energies[0] - 1e-2


def test_optimiser_of_cells_finds_the_lattice_constant():
    atoms = bulk("Ar", "fcc", a=1.65)
    atoms.set_cell(atoms.cell.array @ np.diag([1.02, 0.99, 1.0]), scale_atoms=True)
    atoms.calc = ModelCalculator(PairModel(2.5), skin=0.4)
    BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=1e-4, steps=100)
    assert np.abs(atoms.get_stress()).max() < 1e-3
    np.testing.assert_allclose(atoms.cell.angles(), 60, atol=0.01)
    atoms.calc = LennardJones(rc=2.5, smooth=False)
    assert np.abs(atoms.get_stress()).max() < 1e-3  # the lattice constant that ASE finds, too


def moving_silicon(calculator: ModelCalculator) -> Atoms:
    atoms = sheared_silicon()
    atoms.calc = calculator
    spread = np.sqrt(600 * units.kB * atoms.get_masses())
    atoms.set_momenta(spread[:, None] * np.random.default_rng(0).normal(size=(16, 3)))
    return atoms


def test_verlet_of_ase_keeps_the_total_energy_to_second_order(model):
    calculator = ModelCalculator(Standardized(model, scale=20.0), skin=0.5)

    def worst_error(dt: float) -> tuple[float, float]:
        atoms = moving_silicon(calculator)
        total, kinetic = [], []

        def record() -> None:
            total.append(atoms.get_total_energy())
            kinetic.append(atoms.get_kinetic_energy())

        dynamics = VelocityVerlet(atoms, timestep=dt * units.fs)
        dynamics.attach(record)
        dynamics.run(round(64 / dt))
        return np.abs(np.array(total) - total[0]).max(), np.ptp(kinetic)

    (coarse, traded), (fine, _) = worst_error(2.0), worst_error(1.0)
    assert 3.5 < coarse / fine < 4.5
    assert traded > 20 * coarse  # control: kinetic and potential energy do trade


def test_skin_changes_no_trajectory(model):
    calculators = [ModelCalculator(Standardized(model, 20.0), skin) for skin in (0.0, 0.5)]
    ends = []
    for calculator in calculators:
        atoms = moving_silicon(calculator)
        rng = np.random.default_rng(1)
        settings = {"temperature_K": 600, "friction": 0.02, "fixcm": False, "rng": rng}
        dynamics = Langevin(atoms, 2 * units.fs, **settings)
        dynamics.run(50)
        ends.append(atoms.positions)
    start = sheared_silicon().positions
    np.testing.assert_allclose(ends[0], ends[1], rtol=0, atol=1e-8)
    assert np.abs(ends[0] - start).max() > 0.1
    assert calculators[0].graph.num_builds == 51
    assert 1 < calculators[1].graph.num_builds < 15
    assert isinstance(calculators[1].graph, PeriodicGraph)
