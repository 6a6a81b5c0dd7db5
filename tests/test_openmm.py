"""The force for OpenMM against the plain networks, against dynamics of ASE, and hostile systems."""

from __future__ import annotations

import copy
import threading

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.md.verlet import VelocityVerlet
from couplings import (
    DTYPES,
    NETWORKS,
    SYSTEMS,
    Nothing,
    assert_close,
    crystal,
    ethanol,
    plain,
    with_card,
)

from molnets import ModelCalculator, checkpoint
from molnets.checkpoint import Card
from molnets.coupling.driven import DrivenModel

openmm = pytest.importorskip("openmm", reason="OpenMM is an extra: pip install '.[openmm]'")
app = pytest.importorskip("openmm.app")
coupling = pytest.importorskip("molnets.coupling.openmm")
force = coupling.force

EV = units.kJ / units.mol  # of one kJ/mol


def system_of(atoms: Atoms, made: openmm.Force) -> openmm.System:
    """Return a system with these atoms, and a force."""
    system = openmm.System()
    for mass in atoms.get_masses():
        system.addParticle(mass)
    if atoms.pbc.any():
        system.setDefaultPeriodicBoxVectors(*(atoms.cell.array / units.nm))
    system.addForce(made)
    return system


def context_of(
    atoms: Atoms, made: openmm.Force, integrator: openmm.Integrator | None = None,
    platform: str = "Reference",
) -> openmm.Context:  # fmt: skip
    integrator = integrator or openmm.VerletIntegrator(0.001)
    where = openmm.Platform.getPlatformByName(platform)
    context = openmm.Context(system_of(atoms, made), integrator, where)
    context.setPositions(atoms.positions / units.nm)
    return context


def results(context: openmm.Context) -> tuple[float, np.ndarray]:
    """Return the energy in eV and the forces in eV/Å of a context."""
    state = context.getState(getEnergy=True, getForces=True)
    energy = state.getPotentialEnergy().value_in_unit(openmm.unit.kilojoule_per_mole)
    forces = state.getForces(asNumpy=True)
    unit = openmm.unit.kilojoule_per_mole / openmm.unit.nanometer
    return energy * EV, forces.value_in_unit(unit) * EV / units.nm


def on(atoms: Atoms, network: torch.nn.Module, **more: object) -> openmm.PythonForce:
    return force(network, atoms.numbers, periodic=bool(atoms.pbc.any()), **more)


def topology_of(atoms: Atoms, elements: list[str | None] | None = None) -> app.Topology:
    topology = app.Topology()
    residue = topology.addResidue("X", topology.addChain())
    for symbol in elements or atoms.get_chemical_symbols():
        topology.addAtom("x", symbol and app.Element.getBySymbol(symbol), residue)
    if atoms.pbc.any():
        vectors = atoms.cell.array / units.nm
        topology.setPeriodicBoxVectors([openmm.Vec3(*v) for v in vectors] * openmm.unit.nanometer)
    return topology


# Energies and forces


@pytest.mark.parametrize("platform", ["Reference", "CPU"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make_atoms", SYSTEMS.values(), ids=SYSTEMS)
@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_energies_and_forces_are_those_of_the_plain_network(make, make_atoms, dtype, platform):
    atoms, network = make_atoms(), make(dtype)
    energy, forces = results(context_of(atoms, on(atoms, network), platform=platform))
    expected = plain(network, atoms)
    assert_close(energy, expected[0], dtype)
    assert_close(forces, expected[1], dtype)


@pytest.mark.parametrize("make_atoms", SYSTEMS.values(), ids=SYSTEMS)
def test_a_topology_says_elements_and_whether_it_is_periodic(make_atoms):
    atoms, network = make_atoms(), NETWORKS["schnet"]()
    made = force(network, topology_of(atoms))
    assert made.usesPeriodicBoundaryConditions() == atoms.pbc.any()
    energy, forces = results(context_of(atoms, made))
    expected = plain(network, atoms)
    assert_close(energy, expected[0], torch.float64)
    assert_close(forces, expected[1], torch.float64)
    opposite = force(network, topology_of(atoms), periodic=not atoms.pbc.any())
    other = atoms.copy()
    other.pbc = ~atoms.pbc
    other.cell = atoms.cell if atoms.pbc.any() else 20 * np.eye(3)
    assert_close(results(context_of(other, opposite))[0], plain(network, other)[0], torch.float64)


def test_some_particles_in_another_order_and_a_virtual_site_among_all():
    """Ethanol upside down among two argons and a site in the middle of two of its atoms."""
    atoms, network = ethanol(), NETWORKS["painn"]()
    system = openmm.System()
    for mass in (40.0, *reversed(atoms.get_masses()), 0.0, 40.0):
        system.addParticle(mass)
    system.setVirtualSite(10, openmm.TwoParticleAverageSite(1, 2, 0.5, 0.5))
    particles = list(range(9, 0, -1))  # particle 9 is the first of the atoms
    elements = ["Ar", *reversed(atoms.get_chemical_symbols()), None, "Ar"]
    system.addForce(force(network, topology_of(atoms, elements), particles))
    where = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, openmm.VerletIntegrator(0.0005), where)
    positions = np.vstack([[9, 9, 9], atoms.positions[::-1], [0, 0, 0], [-9, 0, 0]])
    context.setPositions(positions / units.nm)
    context.computeVirtualSites()
    energy, forces = results(context)
    expected = plain(network, atoms)
    assert_close(energy, expected[0], torch.float64)
    assert_close(forces[9:0:-1], expected[1], torch.float64)
    np.testing.assert_array_equal(forces[[0, 10, 11]], 0)
    context.getIntegrator().step(5)
    moved = context.getState(getPositions=True).getPositions(asNumpy=True)._value * units.nm
    np.testing.assert_allclose(moved[10], (moved[1] + moved[2]) / 2, atol=1e-6)
    with pytest.raises(ValueError, match=r"an element for each .*, got none for particles \[10\]"):
        force(network, topology_of(atoms, elements))


def test_a_checkpoint_is_loaded(tmp_path):
    sizes = {"dim_embedding": 8, "num_filters": 8, "num_interactions": 1, "num_gaussians": 6}
    potential = checkpoint.build(Card("schnet", {**sizes, "cutoff": 2.5}, "eV", "Å", [1, 6, 8]))
    checkpoint.save(potential.double(), tmp_path / "best.pt")
    atoms = ethanol()
    energy, _ = results(context_of(atoms, on(atoms, tmp_path / "best.pt")))
    assert_close(energy, plain(potential.network, atoms)[0], torch.float64)


# Dynamics


def velocity_verlet(dt: float) -> openmm.CustomIntegrator:
    """Return the integrator of ASE, dt in fs."""
    integrator = openmm.CustomIntegrator(dt / 1000)
    integrator.addUpdateContextState()
    integrator.addComputePerDof("v", "v + 0.5 * dt * f / m")
    integrator.addComputePerDof("x", "x + dt * v")
    integrator.addComputePerDof("v", "v + 0.5 * dt * f / m")
    return integrator


@pytest.mark.parametrize("make_atoms", SYSTEMS.values(), ids=SYSTEMS)
def test_trajectory_is_that_of_ase_and_keeps_the_energy(make_atoms):
    atoms, network = make_atoms(), NETWORKS["schnet"]()
    velocities = 0.02 * np.random.default_rng(0).normal(size=(len(atoms), 3))
    context = context_of(atoms, on(atoms, network), velocity_verlet(0.25))
    context.setVelocities(velocities * (1000 * units.fs / units.nm))  # nm/ps
    ours = atoms.copy()
    ours.calc = ModelCalculator(network)
    ours.set_velocities(velocities)
    dynamics = VelocityVerlet(ours, timestep=0.25 * units.fs)
    totals, kinetic = [], []
    for _ in range(40):
        context.getIntegrator().step(5)
        dynamics.run(5)
        state = context.getState(getEnergy=True)
        kinetic.append(state.getKineticEnergy()._value * EV)
        totals.append(state.getPotentialEnergy()._value * EV + kinetic[-1])
        assert totals[-1] == pytest.approx(ours.get_total_energy(), rel=1e-6)
    moved = context.getState(getPositions=True).getPositions(asNumpy=True)._value * units.nm
    np.testing.assert_allclose(moved, ours.positions, rtol=0, atol=1e-6)
    assert np.abs(moved - atoms.positions).max() > 0.1
    assert np.ptp(totals) < 0.02 * np.ptp(kinetic)


def test_constraints_hold_and_the_energy_is_kept():
    atoms, network = ethanol(), NETWORKS["schnet"]()
    system = system_of(atoms, on(atoms, network))
    bonds = [(0, 3), (0, 4), (1, 2)]
    lengths = [atoms.get_distance(*bond) for bond in bonds]
    for bond, length in zip(bonds, lengths, strict=True):
        system.addConstraint(*bond, length / units.nm)
    integrator = openmm.VerletIntegrator(0.00025)
    integrator.setConstraintTolerance(1e-10)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(atoms.positions / units.nm)
    context.setVelocitiesToTemperature(300, 1)
    totals, kinetic = [], []
    for _ in range(40):
        integrator.step(5)
        state = context.getState(getEnergy=True, getPositions=True)
        kinetic.append(state.getKineticEnergy()._value)
        totals.append(kinetic[-1] + state.getPotentialEnergy()._value)
    atoms.positions = state.getPositions(asNumpy=True)._value * units.nm
    np.testing.assert_allclose([atoms.get_distance(*b) for b in bonds], lengths, rtol=1e-8)
    assert np.ptp(totals) < 0.02 * np.ptp(kinetic)


def test_the_box_is_that_of_the_state_under_a_barostat():
    atoms, network = crystal(), NETWORKS["schnet"]()
    system = system_of(atoms, on(atoms, network))
    barostat = openmm.MonteCarloAnisotropicBarostat(openmm.Vec3(1e4, 1e4, 1e4), 300)
    barostat.setFrequency(1)
    barostat.setRandomNumberSeed(1)
    system.addForce(barostat)
    integrator = openmm.LangevinMiddleIntegrator(300, 1, 0.0005)
    integrator.setRandomNumberSeed(1)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(atoms.positions / units.nm)
    for _ in range(3):
        integrator.step(10)
        state = context.getState(getPositions=True)
        box = np.array(state.getPeriodicBoxVectors(asNumpy=True)._value) * units.nm
        now = Atoms(atoms.numbers, state.getPositions(asNumpy=True)._value * units.nm)
        now.set_cell(box)
        now.pbc = True
        energy, forces = results(context)
        expected = plain(network, now)
        assert_close(energy, expected[0], torch.float64)
        assert_close(forces, expected[1], torch.float64)
    assert np.abs(box - atoms.cell.array).max() > 1e-3  # control


def test_the_list_is_kept_while_atoms_hardly_move(monkeypatch):
    made = []
    monkeypatch.setattr(coupling, "DrivenModel", lambda *a: made.append(DrivenModel(*a)) or made[0])
    atoms = crystal()
    context = context_of(atoms, on(atoms, NETWORKS["schnet"]()))
    for _ in range(5):
        atoms.rattle(0.01)
        context.setPositions(atoms.positions / units.nm)
        results(context)
    assert made[0].graph.num_builds == 1


# Saved, copied, shared


def test_a_system_with_the_force_can_be_saved_and_copied():
    atoms, network = crystal(), NETWORKS["painn"](torch.float32)
    system = system_of(atoms, on(atoms, network))
    expected = results(context_of(atoms, on(atoms, network)))
    loaded = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(system))
    for other in (loaded, copy.deepcopy(system)):
        made = copy.deepcopy(other.getForce(0))
        assert made.usesPeriodicBoundaryConditions() and made.getName() == "molnets"
        energy, forces = results(context_of(atoms, made))
        assert energy == expected[0]
        np.testing.assert_array_equal(forces, expected[1])


def test_the_model_of_the_caller_stays_as_it_is():
    atoms, network = ethanol(), NETWORKS["schnet"]()
    context = context_of(atoms, on(atoms, network))
    expected = results(context)[0]
    assert all(p.requires_grad and p.grad is None for p in network.parameters())
    with torch.no_grad():
        next(network.parameters()).zero_()
    context.reinitialize(preserveState=True)
    assert results(context)[0] == expected
    assert abs(plain(network, atoms)[0] - expected) > 1e-3


def test_two_contexts_in_two_threads_share_a_force():
    network, systems = NETWORKS["schnet"](), [crystal(), crystal()]
    systems[1].rattle(0.2, seed=7)
    system = system_of(systems[0], on(systems[0], network))
    where = openmm.Platform.getPlatformByName("Reference")
    integrators = [openmm.VerletIntegrator(0.001) for _ in systems]
    contexts = [openmm.Context(system, integrator, where) for integrator in integrators]
    ends: list[list[float]] = [[], []]

    def run(k: int) -> None:
        for _ in range(30):
            contexts[k].setPositions(systems[k].positions / units.nm)
            ends[k].append(results(contexts[k])[0])
            contexts[k].getIntegrator().step(1)

    threads = [threading.Thread(target=run, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for atoms, energies in zip(systems, ends, strict=True):
        expected = plain(network, atoms)[0]
        np.testing.assert_allclose(energies, expected, rtol=1e-9)
        assert len(energies) == 30
    assert abs(ends[0][0] - ends[1][0]) > 1e-4


# What is refused


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"periodic": None}, "periodic: expected True or False, which atomic numbers do not say"),
        ({"periodic": 1}, "periodic: expected True or False"),
        ({"skin": -1.0}, "skin: expected a finite number, not negative"),
        ({"particles": range(9)}, "particles: expected a topology with it, .*, got atomic numbers"),
        ({"topology_or_numbers": []}, "topology_or_numbers: expected a topology, or atomic numb"),
        ({"topology_or_numbers": [1.0]}, r"topology_or_numbers: .* got list of float64 \(1,\)"),
        ({"topology_or_numbers": "CO"}, "topology_or_numbers: expected a topology, or atomic numb"),
        ({"topology_or_numbers": None}, "topology_or_numbers: expected a topology, or atomic numb"),
        ({"topology_or_numbers": Atoms("C")}, "topology_or_numbers: .*, got Atoms of object"),
    ],
)
def test_arguments_that_make_no_sense(arguments, message):
    given = {"topology_or_numbers": ethanol().numbers, "periodic": False} | arguments
    with pytest.raises(ValueError, match=message):
        force(NETWORKS["schnet"](), **given)


@pytest.mark.parametrize("particles", [[], [1, 9], [-1, 2], [0, 0], [0.5], 3, "C", [[0, 1]]])
def test_particles_that_a_topology_does_not_have(particles):
    """OpenMM itself would read what lies behind the last one in memory."""
    with pytest.raises(ValueError, match=r"particles: expected different indices from 0 to 8"):
        force(NETWORKS["schnet"](), topology_of(ethanol()), particles=particles)


def test_what_the_card_does_not_know():
    atoms, network = ethanol(), NETWORKS["schnet"]()
    message = r"topology_or_numbers: expected elements of the training, \['C', 'Si'\], got \['H', "
    with pytest.raises(ValueError, match=message):
        on(atoms, with_card(network, elements=[6, 14]))
    ghost = np.array([1, 6, 400])
    with pytest.raises(ValueError, match=r"expected elements of the training, .*, got \[400\]"):
        force(with_card(network), ghost, periodic=False)
    with pytest.raises(ValueError, match="expected a model in eV and Å, got one in kJ/mol and nm"):
        on(atoms, with_card(network, energy_unit="kJ/mol", length_unit="nm"))
    with pytest.raises(TypeError, match=r"network: expected a network .*, got Linear"):
        on(atoms, torch.nn.Linear(1, 1))
    assert np.isfinite(results(context_of(atoms, on(atoms, with_card(network))))[0])  # control


def test_errors_of_a_step_come_out_of_it():
    atoms, network = ethanol(), NETWORKS["schnet"]()
    context = context_of(atoms, on(atoms, network))
    expected = results(context)[0]
    for position, message in (
        (np.nan, r"pos: expected finite numbers, got \[nan, nan, nan\] for atom 3"),
        (atoms.positions[0] / units.nm, "pos: expected distinct positions, got atoms"),
    ):
        wrong = atoms.positions / units.nm
        wrong[3] = position
        context.setPositions(wrong)
        for step in (lambda: context.getIntegrator().step(1), lambda: results(context)):
            with pytest.raises(openmm.OpenMMException, match=message):
                step()
    context.setPositions(atoms.positions / units.nm)
    assert results(context)[0] == expected


def test_another_number_of_particles():
    atoms = ethanol()
    made = force(NETWORKS["schnet"](), atoms.numbers[:-1], periodic=False)
    with pytest.raises(openmm.OpenMMException, match=r"particles: expected 8 .* numbers, got 9"):
        results(context_of(atoms, made))


@pytest.mark.parametrize("of_forces_only, name", [(True, "forces"), (False, "energy")])
def test_results_that_are_not_finite_never_pass(of_forces_only, name):
    atoms = ethanol()
    made = on(atoms, Nothing(of_forces_only))
    message = f"{name}: expected finite numbers, got .*(nan|inf)"
    with pytest.raises(openmm.OpenMMException, match=message):
        results(context_of(atoms, made))
