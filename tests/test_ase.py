"""The ASE calculator against finite differences, ASE's own Lennard-Jones, and the bare model."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

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

from molnets import checkpoint
from molnets.checkpoint import Card
from molnets.coupling.ase import ModelCalculator
from molnets.edges import Edges, Graph
from molnets.potential import NUM_ELEMENTS, Potential, energy_and_forces
from molnets.tables import SplineSchNet
from schnet_helpers import ElementEmbedding, RadiusInteractionGraph, SchNet


@pytest.fixture
def model() -> SchNet:
    """Return a SchNet with random weights in float64 and every bias shaken."""
    torch.manual_seed(0)
    embedding = ElementEmbedding(16, max_z=20)
    model = SchNet(16, 16, 2, 10, cutoff=4.0, gamma=1.0, embedding=embedding).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


class PairNetwork(nn.Module):
    """E_i = ½ Σ_j (4 (d_ij⁻¹² − d_ij⁻⁶) − shift), zero at the cutoff."""

    def __init__(self, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.epsilon = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.num_calls = 0

    def atomic_energies(self, z: Tensor, edges: Edges) -> Tensor:
        self.num_calls += 1
        d_ij = torch.linalg.vector_norm(edges.vector, dim=1)
        shift = self.cutoff**-12 - self.cutoff**-6
        energy_ij = 2 * self.epsilon * (d_ij**-12 - d_ij**-6 - shift)
        return d_ij.new_zeros(len(z)).index_add(0, edges.index[1], energy_ij).unsqueeze(1)


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
    for calculator in (ModelCalculator(PairNetwork(2.5)), LennardJones(rc=2.5, smooth=False)):
        atoms.calc = calculator
        energies = atoms.get_potential_energy(), atoms.get_potential_energies()
        results.append((*energies, atoms.get_forces(), atoms.get_stress()))
    for mine, of_ase in zip(*results, strict=True):
        np.testing.assert_allclose(mine, of_ase, rtol=1e-10, atol=1e-10)
        assert np.abs(mine).max() > 0.1


@pytest.mark.parametrize("lattice_constant, sign", [(1.4, -1), (1.8, 1)])
def test_stress_is_negative_under_pressure_and_positive_under_tension(lattice_constant, sign):
    atoms = bulk("Ar", "fcc", a=lattice_constant)
    atoms.calc = ModelCalculator(PairNetwork(2.5))
    assert (sign * atoms.get_stress()[:3] > 0.1).all()
    np.testing.assert_allclose(atoms.get_stress()[3:], 0, atol=1e-10)


def test_voigt_order():
    """A crystal that is sheared in the yz plane resists in the component yz, the fourth."""
    for component, (a, b) in {3: (1, 2), 4: (0, 2), 5: (0, 1)}.items():
        strain = np.eye(3)
        strain[a, b] = strain[b, a] = 0.01
        atoms = bulk("Ar", "fcc", a=1.55, cubic=True)
        atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
        atoms.calc = ModelCalculator(PairNetwork(2.5))
        shear = atoms.get_stress()[3:]
        assert shear[component - 3] > 0.1
        assert np.abs(np.delete(shear, component - 3)).max() < 0.01


def test_energy_is_extensive(model):
    energy = ModelCalculator(model).get_potential_energy
    for make_atoms, repeats in [(primitive_silicon, (2, 1, 1)), (sheared_silicon, (1, 2, 1))]:
        atoms = make_atoms()
        assert energy(atoms.repeat(repeats)) == pytest.approx(2 * energy(atoms), rel=1e-12)
    stretched = atoms.copy()  # control
    stretched.set_cell(1.02 * atoms.cell, scale_atoms=True)
    assert abs(energy(stretched) - energy(atoms)) > 1e-3


def test_wrapped_atoms_and_equivalent_cells(model):
    atoms, calculator = sheared_silicon(), ModelCalculator(model)
    energy = calculator.get_potential_energy
    expected = energy(atoms)
    scattered = atoms.copy()
    images = np.random.default_rng(0).integers(-2, 3, (len(atoms), 3))
    scattered.positions += images @ atoms.cell.array
    assert energy(scattered) == pytest.approx(expected, rel=1e-12)
    scattered.wrap()
    assert energy(scattered) == pytest.approx(expected, rel=1e-12)
    for change in ([[1, 1, 0], [0, 1, 0], [0, 2, 1]], [[0, 1, 0], [1, 0, 0], [0, 0, 1]]):
        equivalent = atoms.copy()  # the same lattice; the second one is left-handed
        equivalent.set_cell(np.array(change) @ atoms.cell.array)
        assert energy(equivalent) == pytest.approx(expected, rel=1e-12)
        results = []
        for system in (atoms, equivalent):
            system.calc = calculator
            results.append((system.get_forces(), system.get_stress()))
        for mine, other in zip(*results, strict=True):
            np.testing.assert_allclose(mine, other, rtol=0, atol=1e-11)
    not_equivalent = atoms.copy()
    not_equivalent.set_cell(np.array([[1, 0.5, 0], [0, 1, 0], [0, 0, 1]]) @ atoms.cell.array)
    assert abs(energy(not_equivalent) - expected) > 1e-3  # control


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


def test_units_of_a_potential(model):
    atoms = sheared_silicon()
    element_energies = torch.zeros(NUM_ELEMENTS, dtype=torch.float64)
    element_energies[14] = -1000.0
    bare, scaled = ModelCalculator(model), ModelCalculator(Potential(model, 3, element_energies))
    atoms.calc = bare
    expected = 3 * atoms.get_potential_energy() - 16 * 1000.0
    of_atoms = 3 * atoms.get_potential_energies() - 1000.0
    forces, stress = 3 * atoms.get_forces(), 3 * atoms.get_stress()
    atoms.calc = scaled
    assert atoms.get_potential_energy() == pytest.approx(expected, abs=1e-9)
    assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()
    np.testing.assert_allclose(atoms.get_potential_energies(), of_atoms, rtol=0, atol=1e-9)
    np.testing.assert_allclose(atoms.get_forces(), forces, rtol=0, atol=1e-12)
    np.testing.assert_allclose(atoms.get_stress(), stress, rtol=0, atol=1e-12)


def test_types_of_a_float32_model(model):
    atoms = sheared_silicon()
    expected = energy(atoms, model)
    atoms.calc = ModelCalculator(model.float())
    assert type(atoms.get_potential_energy()) is float
    assert atoms.get_forces().dtype == atoms.get_stress().dtype == np.float64
    assert atoms.get_potential_energy() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("wrap", [nn.Identity(), Potential])
def test_model_of_the_caller_stays_as_it_is(model, wrap):
    given = wrap(model)
    given.train()
    before, graph = copy.deepcopy(given.state_dict()), model.interaction_graph
    graph_of_potential = getattr(given, "graph", None)
    calculator = ModelCalculator(given)
    atoms = sheared_silicon()
    atoms.calc = calculator
    expected = atoms.get_potential_energy()
    assert model.interaction_graph is graph
    assert isinstance(graph, RadiusInteractionGraph)
    assert getattr(given, "graph", None) is graph_of_potential
    assert graph_of_potential is None or graph_of_potential.num_builds == 0
    assert given.training and model.training
    assert all(p.requires_grad and p.grad is None for p in given.parameters())
    torch.testing.assert_close(given.state_dict(), before, rtol=0, atol=0)
    with torch.no_grad():
        next(model.readout.parameters()).zero_()
    atoms.calc = copy.deepcopy(calculator)
    atoms.calc.reset()
    assert atoms.get_potential_energy() == expected  # what happens to the model later is not seen
    assert abs(energy(atoms, model) - expected) > 1e-3


SIZES = {"dim_embedding": 8, "num_filters": 8, "num_interactions": 1, "num_gaussians": 6}
CARD = Card("schnet", {**SIZES, "cutoff": 4.0}, "eV", "Å", [6, 14])


def test_checkpoint_is_loaded(tmp_path):
    torch.manual_seed(0)
    potential = checkpoint.build(CARD).double()
    element_energies = torch.zeros(NUM_ELEMENTS)
    element_energies[14] = -10.0
    potential = Potential(potential.network, 2.0, element_energies)
    potential.card = CARD
    checkpoint.save(potential, tmp_path / "best.pt")
    atoms = sheared_silicon()
    bare = energy(atoms, potential.network)
    for path in (tmp_path / "best.pt", str(tmp_path / "best.pt")):
        atoms.calc = ModelCalculator(path)
        assert atoms.get_potential_energy() == pytest.approx(2 * bare - 160, rel=1e-12)
    with pytest.raises(FileNotFoundError, match=r"path: expected a checkpoint, got .*none\.pt"):
        ModelCalculator(tmp_path / "none.pt")


# What the card says


def with_card(model: nn.Module, **changes: object) -> Potential:
    potential = Potential(model)
    potential.card = replace(CARD, **changes)
    return potential


def test_elements_that_were_never_seen_are_an_error():
    model, atoms = PairNetwork(2.5), molecule("CH3CH2OH")
    atoms.calc = ModelCalculator(with_card(model, elements=[6, 14]))
    message = r"atoms: expected elements of the training, \['C', 'Si'\], got \['H', 'O'\]"
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            atoms.get_potential_energy()
        assert atoms.calc.results == {}
    del atoms[[atom.index for atom in atoms if atom.symbol != "C"]]
    assert math.isfinite(atoms.get_potential_energy())  # control
    ghost = Atoms("CX", [[0, 0, 0], [1.5, 0, 0]], calculator=atoms.calc)
    with pytest.raises(ValueError, match=r"atoms: expected elements .*, got \['X'\]"):
        ghost.get_potential_energy()
    for unknown in (with_card(model, elements=[]), Potential(model)):
        calculator = ModelCalculator(unknown)
        assert math.isfinite(calculator.get_potential_energy(molecule("CH3CH2OH")))


@pytest.mark.parametrize(
    "energy_unit, length_unit",
    [
        ("kcal/mol", "Å"),
        ("kJ/mol", "Å"),
        ("Hartree", "Bohr"),
        ("Ha", "Å"),
        ("eV", "nm"),
        ("eV", "Bohr"),
        ("eV", "bohr"),
        ("meV", "Å"),
        ("ε", "σ"),
        ("unknown", "nm"),
        ("Rydberg", "unknown"),
    ],
)
def test_units_that_are_not_those_of_ase_are_an_error(energy_unit, length_unit, tmp_path):
    given = with_card(PairNetwork(2.5), energy_unit=energy_unit, length_unit=length_unit)
    message = f"model_or_checkpoint: expected a model in eV and Å, got one in {energy_unit} and "
    with pytest.raises(ValueError, match=message + length_unit):
        ModelCalculator(given)
    saved = checkpoint.build(given.card)
    checkpoint.save(saved, tmp_path / "best.pt")
    with pytest.raises(ValueError, match=message + length_unit):
        ModelCalculator(tmp_path / "best.pt")


@pytest.mark.parametrize("length_unit", ["Å", "Angstrom", "angstrom", "unknown"])
@pytest.mark.parametrize("energy_unit", ["eV", "unknown"])
@pytest.mark.filterwarnings("ignore::molnets.coupling.driven.UnknownUnits")
def test_units_of_ase_and_unknown_ones_are_taken_as_they_are(energy_unit, length_unit):
    given = with_card(PairNetwork(2.5), energy_unit=energy_unit, length_unit=length_unit)
    expected = energy(sheared_silicon(), given.network)
    assert energy(sheared_silicon(), given) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "energy_unit, length_unit, assumed",
    [
        ("unknown", "unknown", "energies in eV and lengths in Å"),
        ("unknown", "Å", "energies in eV"),
        ("eV", "unknown", "lengths in Å"),
    ],
)
def test_units_that_a_card_does_not_know_are_said_to_be_assumed(energy_unit, length_unit, assumed):
    given = with_card(PairNetwork(2.5), energy_unit=energy_unit, length_unit=length_unit)
    with pytest.warns(UserWarning, match=f"units are unknown: {assumed} are assumed; ") as said:
        ModelCalculator(given)
    assert [warning.filename for warning in said] == [__file__]  # once, where it was made
    ModelCalculator(with_card(PairNetwork(2.5), energy_unit="eV", length_unit="Å"))  # controls:
    ModelCalculator(PairNetwork(2.5))  # warnings are errors here


def test_what_is_no_network_is_an_error(model):
    with pytest.raises(TypeError, match=r"network: expected a network .*, got Linear"):
        ModelCalculator(nn.Linear(1, 1))
    with pytest.raises(TypeError, match=r"network: expected a network .*, got ModuleList"):
        ModelCalculator(nn.ModuleList([model, copy.deepcopy(model)]))
    with pytest.raises(TypeError):
        ModelCalculator(None)
    for skin in (-0.1, math.nan, math.inf, "0.3"):
        with pytest.raises(ValueError, match="skin: expected a finite number, not negative, got"):
            ModelCalculator(model, skin)


# Energies of atoms


def test_energies_of_atoms_sum_to_the_energy_and_follow_permutations(model):
    calculator = ModelCalculator(model)
    for make_atoms in (silicon_slab, sheared_silicon, lambda: molecule("CH3CH2OH")):
        atoms = make_atoms()
        atoms.calc = calculator
        energies = atoms.get_potential_energies()
        assert energies.shape == (len(atoms),) and energies.dtype == np.float64
        assert energies.sum() == pytest.approx(atoms.get_potential_energy(), rel=1e-12)
        order = np.random.default_rng(0).permutation(len(atoms))
        permuted = atoms[order]
        permuted.calc = calculator
        np.testing.assert_allclose(permuted.get_potential_energies(), energies[order], rtol=1e-10)
        assert np.ptp(energies) > 1e-3  # control
    z, pos = torch.tensor(atoms.numbers).view(-1, 1), torch.tensor(atoms.positions)
    bare = Potential(model).atomic_energies(z, pos, torch.zeros(9, dtype=torch.int64))
    np.testing.assert_allclose(energies, bare.detach().numpy().ravel(), rtol=0, atol=1e-9)


def test_energies_of_atoms_are_calculated_when_they_are_asked_for():
    atoms = bulk("Ar", "fcc", a=1.5, cubic=True)
    atoms.calc = calculator = ModelCalculator(PairNetwork(2.5))
    forces = atoms.get_forces()
    assert "energies" not in calculator.results
    for _ in range(2):
        energies = atoms.get_potential_energies()
        np.testing.assert_array_equal(atoms.get_forces(), forces)
        assert calculator.model.network.num_calls == 3  # forces; forces again, and energies
    atoms.positions[0, 0] += 0.05
    atoms.get_potential_energy()
    assert "energies" not in calculator.results  # those of before
    assert np.abs(atoms.get_potential_energies() - energies).max() > 1e-3
    assert calculator.graph.num_builds == 1


# Hostile input


def broken(**changes: object) -> Atoms:
    atoms = sheared_silicon()
    for name, value in changes.items():
        setattr(atoms, name, value)
    return atoms


def moved(atom: int, position: object) -> Atoms:
    atoms = sheared_silicon()
    atoms.positions[atom] = position
    return atoms


def in_cell(cell: object, pbc: object = True) -> Atoms:
    return Atoms("C", cell=cell, pbc=pbc)


FLAT = [[3, 0, 0], [0, 3, 0], [3, 3, 0]]
HOSTILE = [
    (lambda: Atoms(), "batch: expected at least one atom"),
    (lambda: Atoms(cell=[3, 3, 3], pbc=True), "batch: expected at least one atom"),
    (lambda: moved(3, np.nan), r"pos: expected finite numbers, got \[nan, nan, nan\] for atom 3"),
    (lambda: moved(5, [0, np.inf, 0]), "pos: expected finite numbers, got .*inf.* for atom 5"),
    (lambda: in_cell(np.full((3, 3), np.nan)), "cells: expected finite numbers, got .*nan"),
    (lambda: in_cell([3, 3, np.inf]), "cells: expected finite numbers, got .*inf"),
    (lambda: in_cell([3, 3, 0]), "cells: expected independent vectors in periodic directions"),
    (lambda: in_cell([0, 0, 0]), "cells: expected independent vectors in periodic directions"),
    (lambda: in_cell(FLAT), "cells: expected independent vectors in periodic directions"),
    (lambda: in_cell([3, 0, 3], (True, True, False)), "cells: expected independent vectors"),
    (lambda: in_cell([3e-3, 3e-3, 3e-3]), "cells: expected at most 1000000 images"),
    (lambda: in_cell([3e-10, 3e-10, 3e-10]), "cells: expected at most 1000000 images"),
    (
        lambda: Atoms("C2", [[0, 0, 0], [3, 0, -3]], cell=[3, 3, 3], pbc=True),
        "pos: expected distinct positions, got atoms",
    ),
    (lambda: Atoms("C2", np.zeros((2, 3))), "pos: expected distinct positions, got atoms"),
    (lambda: Atoms("U"), "z: expected whole numbers from 0 to 20"),
]


@pytest.fixture(scope="module")
def calculator() -> ModelCalculator:
    """Return the one calculator that has to stand all of it."""
    torch.manual_seed(0)
    embedding = ElementEmbedding(8, max_z=20)
    return ModelCalculator(SchNet(8, 8, 1, 6, cutoff=4.0, embedding=embedding).double())


@pytest.mark.parametrize("make, message", HOSTILE, ids=[message for _, message in HOSTILE])
def test_hostile_atoms_are_an_error_and_leave_nothing_behind(calculator, make, message):
    good = sheared_silicon()
    expected = calculator.get_potential_energy(good)
    for name in ("energy", "forces", "energies"):
        with pytest.raises(ValueError, match=message):
            calculator.get_property(name, make())
        assert calculator.results == {}
    good.calc = calculator
    assert good.get_potential_energy() == expected


@pytest.mark.parametrize("pbc", [True, (True, True, False), False])
def test_float32_far_from_the_origin(model, pbc):
    """A float32 knows 1e6 Å to 1/16 Å only."""
    atoms = sheared_silicon()
    atoms.pbc = pbc
    calculator = ModelCalculator(model.float())
    expected = calculator.get_potential_energy(atoms), calculator.get_forces(atoms)
    atoms.positions += [1e6, -2e6, 3e6]
    assert calculator.get_potential_energy(atoms) == pytest.approx(expected[0], abs=1e-4)
    np.testing.assert_allclose(calculator.get_forces(atoms), expected[1], rtol=0, atol=1e-4)
    assert np.abs(expected[1]).max() > 0.05
    assert calculator.graph.num_builds == 1


def test_atoms_that_have_left_do_not_change_the_others(model):
    atoms = sheared_silicon().repeat((3, 3, 1))
    atoms.pbc = (True, True, False)
    calculator = ModelCalculator(model)
    expected = calculator.get_potential_energies(atoms), calculator.get_forces(atoms)
    atoms += Atoms("Si", [[1.0, 2.0, 3e7]])
    np.testing.assert_allclose(
        calculator.get_potential_energies(atoms)[:-1], expected[0], atol=1e-6
    )
    np.testing.assert_allclose(calculator.get_forces(atoms)[:-1], expected[1], rtol=0, atol=1e-6)
    assert not calculator.get_forces(atoms)[-1].any()


@pytest.mark.parametrize("skin", [0.0, 0.3])
def test_left_handed_cells_and_thin_ones(model, skin):
    atoms = primitive_silicon()
    atoms.set_cell([[0.2, 1.9, 0.1], [7.1, 0.3, 0.2], [-0.3, 0.5, 2.2]])  # thinner than the cutoff
    assert np.linalg.det(atoms.cell.array) < 0
    atoms.calc = ModelCalculator(model, skin)
    forces, stress = atoms.get_forces(), atoms.get_stress()
    expected = calculate_numerical_forces(atoms, eps=1e-5)
    np.testing.assert_allclose(forces, expected, rtol=0, atol=1e-7)
    expected = calculate_numerical_stress(atoms, eps=1e-5)
    np.testing.assert_allclose(stress, expected, rtol=0, atol=1e-8)
    assert np.abs(forces).max() > 1e-3 and np.abs(stress).min() > 1e-5


# With ASE


def test_only_changes_are_calculated():
    atoms = bulk("Ar", "fcc", a=1.5, cubic=True)
    atoms.calc = calculator = ModelCalculator(PairNetwork(2.5))
    for _ in range(2):
        atoms.get_forces(), atoms.get_potential_energy(), atoms.get_stress()
        assert calculator.model.network.num_calls == 1
    before = atoms.get_potential_energy()
    atoms.positions[0, 0] += 0.05
    assert atoms.get_potential_energy() > before
    assert calculator.model.network.num_calls == 2
    atoms.set_cell(1.1 * atoms.cell)
    atoms.get_forces()
    assert calculator.model.network.num_calls == 3
    atoms.pbc = False
    atoms.get_forces()
    assert calculator.model.network.num_calls == 4


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
    atoms.calc = ModelCalculator(PairNetwork(2.5), skin=0.4)
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
    calculator = ModelCalculator(Potential(model, scale=20.0), skin=0.5)

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
    calculators = [ModelCalculator(Potential(model, 10.0), skin) for skin in (0.0, 0.5)]
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
    assert isinstance(calculators[1].graph, Graph)
