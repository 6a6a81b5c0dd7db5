"""The model for torch-sim against the plain networks, its own model, and dynamics of ASE."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.lj import LennardJones
from ase.md.verlet import VelocityVerlet
from couplings import (
    DTYPES,
    NETWORKS,
    RTOL,
    Nothing,
    assert_close,
    crystal,
    ethanol,
    plain,
    with_card,
)
from test_ase import PairNetwork

from molnets import ModelCalculator

ts = pytest.importorskip("torch_sim", reason="torch-sim is an extra: pip install '.[torch-sim]'")
interface = pytest.importorskip("torch_sim.models.interface")
lennard_jones = pytest.importorskip("torch_sim.models.lennard_jones")
coupling = pytest.importorskip("molnets.coupling.torch_sim")
TorchSimModel = coupling.TorchSimModel


def state_of(systems: list[Atoms], dtype: torch.dtype = torch.float64, **changes: object):
    state = ts.io.atoms_to_state(systems, torch.device("cpu"), dtype)
    for name, value in changes.items():
        setattr(state, name, value)
    return state


def crystals() -> list[Atoms]:
    """Return three crystals of different sizes and cells, the last one left-handed."""
    first, second = crystal(), crystal().repeat((2, 1, 1))
    second.rattle(0.1, seed=3)
    third = crystal()
    third.set_cell(third.cell.array[[1, 0, 2]])
    third.cell += np.array([[0.3, 0, 0], [0, 0.4, 0.2], [0.1, 0, 0]])
    assert np.linalg.det(third.cell.array) < 0
    return [first, second, third]


def molecules() -> list[Atoms]:
    others = [ethanol() for _ in range(2)]
    del others[1][4:]
    return [*others, Atoms("O")]


def assert_results(results: dict, systems: list[Atoms], network: torch.nn.Module, dtype) -> None:
    """Assert that results are those of the plain network, system by system."""
    assert results["energy"].shape == (len(systems),) and results["forces"].dtype == dtype
    forces = results["forces"].split([len(atoms) for atoms in systems])
    for k, atoms in enumerate(systems):
        energy, force, virial = plain(network, atoms)
        assert_close(results["energy"][k], energy, dtype)
        if len(atoms) > 1:
            assert_close(forces[k], force, dtype)
        if atoms.pbc.any() and atoms.cell.rank == 3:
            stress = (virial + virial.T) / 2 / atoms.get_volume()
            np.testing.assert_allclose(
                results["stress"][k], stress, atol=RTOL[dtype] * np.abs(stress).max()
            )
            assert np.abs(np.triu(stress, 1)).max() > 1e-5  # control: not of the diagonal only


# Energies, forces and stresses


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make_systems", [crystals, molecules])
@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_results_are_those_of_the_plain_network(make, make_systems, dtype):
    systems, network = make_systems(), make(dtype)
    model = TorchSimModel(network)
    results = model(state_of(systems, dtype))
    assert_results(results, systems, network, dtype)
    assert not any(x.requires_grad for x in results.values())
    assert (model.dtype, model.device) == (dtype, torch.device("cpu"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_torch_sim_finds_nothing_to_complain_about(make, dtype):
    model = TorchSimModel(make(dtype), compute_stress=False)
    interface.validate_model_outputs(model, torch.device("cpu"), dtype)
    assert model.compute_stress  # it asks for stresses


def test_lennard_jones_is_that_of_ase_and_in_the_axes_of_torch_sim():
    """Their own model of version 0.3 counts pairs twice, so only directions are compared."""
    atoms = bulk("Ar", "fcc", a=1.55, cubic=True).repeat((4, 4, 4))
    atoms.set_cell(atoms.cell.array + np.diag([0.2, -0.1, 0.1]), scale_atoms=True)
    atoms.rattle(0.03, seed=0)
    state = state_of([atoms])
    options = {"dtype": torch.float64, "compute_stress": True, "cutoff": 2.5}
    theirs = lennard_jones.LennardJonesModel(**options, device=torch.device("cpu"))(state)
    ours = TorchSimModel(PairNetwork(2.5))(state)
    atoms.calc = LennardJones(rc=2.5, smooth=False)
    expected = {"forces": atoms.get_forces(), "stress": atoms.get_stress(voigt=False)[None]}
    for name, of_ase in expected.items():
        np.testing.assert_allclose(ours[name], of_ase, rtol=0, atol=1e-9)
        factor = float((theirs[name] * ours[name]).sum() / ours[name].square().sum())
        assert factor == pytest.approx(1) or factor == pytest.approx(2)
        torch.testing.assert_close(theirs[name], factor * ours[name], rtol=0, atol=1e-9)
        assert np.abs(of_ase).min() < 0.1 < np.abs(of_ase).max()


def test_a_slab_by_periodicity_along_each_vector():
    """Of each vector on its own: what newer versions of torch-sim hand over."""
    slab, network = crystal(), NETWORKS["schnet"]()
    slab.pbc = (True, False, True)
    state = state_of([slab], pbc=torch.tensor([True, False, True]))
    assert_results(TorchSimModel(network)(state), [slab], network, torch.float64)


def test_stress_where_it_is_not_defined():
    model = TorchSimModel(NETWORKS["schnet"]())
    results = model(state_of(molecules()))
    assert results.get("stress") is None and "stress" not in results
    with pytest.raises(KeyError, match="stress: expected systems with a volume"):
        _ = results["stress"]
    with pytest.raises(KeyError, match="charges: unknown"):
        _ = results["charges"]
    model.compute_stress = False
    assert "stress" not in model(state_of(crystals()))
    model.compute_stress = True
    assert "stress" in model(state_of(crystals()))


def test_systems_come_and_go():
    """As when batches are filled anew: nothing is left of the systems before."""
    systems, network = crystals(), NETWORKS["painn"]()
    model = TorchSimModel(network)
    for which in ([0, 1, 2], [1], [0, 2], [2, 0], [0, 0], [1, 2, 0]):
        chosen = [systems[k].copy() for k in which]
        for atoms in chosen:
            atoms.rattle(0.01, seed=len(which))
        assert_results(model(state_of(chosen)), chosen, network, torch.float64)
    chosen = molecules()
    assert_results(model(state_of(chosen)), chosen, network, torch.float64)


# Dynamics


def moving(atoms: Atoms, model: TorchSimModel, velocities: np.ndarray):
    """Return torch-sim's state with velocities in Å per ASE's unit of time, and its step."""
    dt, kT = (torch.tensor(x, dtype=torch.float64) for x in (0.5 * units.fs, 0.01))
    if hasattr(ts.integrators, "nve_step"):  # newer versions
        state = ts.integrators.nve_init(state_of([atoms]), model, kT=kT)
        step = partial(ts.integrators.nve_step, model=model, dt=dt)
    else:
        start, step = ts.integrators.nve(model=model, dt=dt, kT=kT)
        state = start(state_of([atoms]))
    state.momenta = torch.tensor(velocities) * state.masses.unsqueeze(1)
    return state, step


def wrapped(state):
    """Return the state with all atoms inside their cells: some versions do so at every step."""
    places = state.positions @ torch.linalg.inv(state.row_vector_cell[0])
    state.positions = (places % 1) @ state.row_vector_cell[0]
    return state


def test_trajectory_is_that_of_ase_wherever_atoms_are_wrapped():
    atoms, network = crystal(), NETWORKS["schnet"]()
    atoms.positions[:4] += 0.02 - atoms.positions[:4].min(axis=0)
    velocities = np.random.default_rng(0).normal(size=(8, 3)) * 0.02
    velocities += [0.1, -0.2, 0.15]  # all cross faces of the cell
    model = TorchSimModel(network, skin=1.0)
    state, step = moving(atoms, model, velocities)
    ours = atoms.copy()
    ours.calc = ModelCalculator(network)
    ours.set_velocities(velocities)
    dynamics = VelocityVerlet(ours, timestep=0.5 * units.fs)
    for _ in range(10):
        for _ in range(10):
            state = step(wrapped(state))
        dynamics.run(10)
        kinetic = (state.momenta**2 / state.masses.unsqueeze(1)).sum() / 2
        total = float(state.energy + kinetic)
        assert total == pytest.approx(ours.get_total_energy(), abs=1e-8)
    distance = wrapped(state).positions.numpy() - ours.positions
    crossed = np.linalg.solve(atoms.cell.array.T, distance.T).T
    np.testing.assert_allclose(crossed, crossed.round(), atol=1e-7)
    assert len(np.unique(crossed.round(), axis=0)) > 2  # control: atoms have been wrapped


def test_wrapping_makes_no_new_lists():
    model, atoms = TorchSimModel(NETWORKS["schnet"](), skin=1.0), crystal().repeat((2, 1, 1))
    state = wrapped(state_of([atoms]))
    expected, first = model(state)["forces"], state.positions.clone()
    for _ in range(40):
        state.positions = state.positions + 0.007
        forces = model(wrapped(state))["forces"]
        torch.testing.assert_close(forces, expected, rtol=0, atol=1e-11)
    assert model.graph.num_builds == 1
    jumps = (state.positions - first - 0.28).abs().amax(dim=1) > 1
    assert jumps.sum() > 3  # control
    state.positions = state.positions - 30 * state.row_vector_cell[0, 0]  # too far to be followed
    torch.testing.assert_close(model(state)["forces"], expected, rtol=0, atol=1e-10)
    assert model.graph.num_builds == 2


def test_optimiser_of_cells_lowers_energy_and_stress():
    atoms = bulk("Ar", "fcc", a=1.65, cubic=True)
    atoms.rattle(0.02, seed=0)
    model = TorchSimModel(PairNetwork(2.5), skin=0.4)
    first = model(state_of([atoms]))
    found = ts.optimize(system=atoms, model=model, max_steps=300, **fire_with_cells())
    last = model(found)
    assert last["energy"] < first["energy"] - 0.1
    assert last["stress"].abs().max() < 0.1 * first["stress"].abs().max()


def fire_with_cells() -> dict[str, object]:
    if hasattr(ts, "frechet_cell_fire"):
        return {"optimizer": ts.frechet_cell_fire}
    filters = {"cell_filter": ts.CellFilter.frechet}  # newer versions
    return {"optimizer": ts.Optimizer.fire, "init_kwargs": filters}


def test_static_properties_of_many_systems():
    systems, network = crystals(), NETWORKS["schnet"](torch.float32)
    properties = ts.static(system=systems, model=TorchSimModel(network))
    for k, atoms in enumerate(systems):
        energy = float(properties[k]["potential_energy"])
        assert_close(energy, plain(network, atoms)[0], torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_thermostat_leaves_the_results_of_where_the_atoms_are(dtype):
    network, systems = NETWORKS["schnet"](dtype), crystals()
    nvt = ts.nvt_langevin if hasattr(ts, "nvt_langevin") else ts.Integrator.nvt_langevin
    model = TorchSimModel(network)
    start = model(state_of(systems, dtype))["energy"]
    last = ts.integrate(
        system=systems, model=model, integrator=nvt, n_steps=10, temperature=300, timestep=0.0005
    )
    fresh = TorchSimModel(network)(last)
    assert last.positions.dtype == dtype
    for actual, expected in ((last.energy, fresh["energy"]), (last.forces, fresh["forces"])):
        torch.testing.assert_close(actual, expected, rtol=0, atol=RTOL[dtype])
    assert (last.energy - start).abs().min() > 1e-3


# The model inside, and what is refused


def test_the_state_and_the_model_of_the_caller_stay_as_they_are():
    systems, network = crystals(), NETWORKS["schnet"]()
    state, model = state_of(systems), TorchSimModel(network)
    before = state.clone()
    expected = model(state)["energy"].clone()
    state.positions += 0.01
    model(state)
    state.positions -= 0.01
    for name in ("positions", "cell", "system_idx", "atomic_numbers"):
        torch.testing.assert_close(getattr(state, name), getattr(before, name))
    assert all(p.requires_grad and p.grad is None for p in network.parameters())
    with torch.no_grad():
        next(network.parameters()).zero_()
    torch.testing.assert_close(model(state)["energy"], expected)
    torch.testing.assert_close(copy.deepcopy(model)(state)["energy"], expected)
    assert (TorchSimModel(network)(state)["energy"] - expected).abs().min() > 1e-4


def broken(**changes: object):
    return lambda: state_of(crystals(), **changes)


def with_positions(value: float):
    state = state_of(crystals())
    state.positions[11] = value
    return state


def with_cell(value: float):
    state = state_of(crystals())
    state.cell[1] = value
    return state


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: with_positions(np.nan), r"pos: expected finite numbers, got .*nan.* for atom 11"),
        (lambda: with_positions(np.inf), "pos: expected finite numbers, got .* for atom 11"),
        (lambda: with_cell(np.nan), "cells: expected finite numbers, got"),
        (lambda: with_cell(0.0), "cells: expected independent vectors in periodic directions"),
        (lambda: state_of([Atoms("C2", np.zeros((2, 3)))]), "pos: expected distinct positions"),
        (lambda: state_of([Atoms("CX", [[0, 0, 0], [1, 0, 0]])]), r"state: expected el.*\['X'\]"),
        (lambda: state_of([Atoms("Ar")]), r"state: expected elements of .*, got \['Ar'\]"),
        (lambda: state_of(crystals(), torch.float32), "state: expected dtype torch.float64 as"),
        (lambda: {"positions": torch.zeros(1, 3)}, "state: expected a SimState, got dict"),
        (lambda: crystals(), "state: expected a SimState, got list"),
        (broken(pbc=torch.tensor([True, False])), r"pbc: expected shape \(\), \(3,\) or"),
        (broken(pbc=torch.ones(3)), "pbc: expected dtype torch.bool"),
    ],
)
def test_hostile_states_are_an_error_and_leave_nothing_behind(make, message):
    systems, network = crystals(), NETWORKS["schnet"]()
    model = TorchSimModel(with_card(network))
    for _ in range(2):
        with pytest.raises((ValueError, TypeError), match=message):
            model(make())
        assert_results(model(state_of(systems)), systems, network, torch.float64)


def test_no_atoms_at_all():
    nothing = torch.zeros(0, 3, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
    state = state_of([ethanol()])
    state.positions, state.masses = nothing
    state.atomic_numbers = state.system_idx = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(ValueError, match="batch: expected at least one atom"):
        TorchSimModel(NETWORKS["schnet"]())(state)


def test_models_that_are_refused():
    network = NETWORKS["schnet"]()
    with pytest.raises(ValueError, match="model_or_checkpoint: expected a model in eV and Å"):
        TorchSimModel(with_card(network, energy_unit="Hartree"))
    with pytest.raises(TypeError, match=r"network: expected a network .*, got Linear"):
        TorchSimModel(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="skin: expected a finite number, not negative"):
        TorchSimModel(network, skin=-1)


@pytest.mark.parametrize("of_forces_only, name", [(True, "forces"), (False, "energy")])
def test_results_that_are_not_finite_never_pass(of_forces_only, name):
    with pytest.raises(FloatingPointError, match=f"{name}: expected finite numbers, got"):
        TorchSimModel(Nothing(of_forces_only))(state_of(crystals()))
