"""Every network of the registry, from the command that trains it to dynamics in a cell."""

from __future__ import annotations

import ase.io
import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from frames import arrays, npz
from test_networks import small

from molnets import ModelCalculator, checkpoint, model_force_fn, networks
from molnets.command import run as molnets
from molnets.dynamics import maxwell_boltzmann, run, start, velocity_verlet
from molnets.potential import Potential

pytestmark = pytest.mark.parametrize("name", sorted(networks.NETWORKS))
UNITS = ["--energy-unit=eV", "--length-unit=Å"]


def potential_of(name: str) -> Potential:
    """Return a small network with random weights, in float64."""
    torch.manual_seed(0)
    return Potential(small(name)).double()


def crystal():
    """Return silicon with two elements, strained and shaken: nothing about it is symmetric."""
    atoms = bulk("Si", cubic=True)
    atoms.numbers[::3] = 6
    strain = np.array([[1.02, 0.03, 0.0], [0.0, 0.97, 0.02], [0.01, 0.0, 1.05]])
    atoms.set_cell(0.6 * atoms.cell.array @ strain, scale_atoms=True)
    atoms.rattle(0.05, seed=1)
    return atoms


def test_trains_tests_and_tells(name, tmp_path, capsys):
    flags = ["--batch-size=4", "--num-validation=4", "--num-test=4", "--cutoff=2.0", "--epochs=3"]
    flags += ["--dim-embedding=8", "--num-interactions=2", "--lr=0.01", "--float64", *UNITS]
    data, out = npz(tmp_path / "data.npz"), tmp_path / "run"
    molnets(["train", str(data), "--network", name, "--out", str(out), *flags])
    trained = checkpoint.load(out / "best.pt")
    assert trained.card.network == name
    losses = np.loadtxt(out / "history.csv", delimiter=",", skiprows=1)[:, 2]
    assert losses[-1] < losses[0]
    capsys.readouterr()
    molnets(["test", str(out / "best.pt"), str(data)])
    molnets(["info", str(out / "best.pt")])
    said = capsys.readouterr().out
    assert name in said
    source = arrays()
    start_file = tmp_path / "start.extxyz"
    ase.io.write(start_file, ase.Atoms(source["z"], source["R"][0]))
    molnets(["md", str(out / "best.pt"), str(start_file), "--steps=4", "--temperature=10",
             "--out", str(tmp_path / "md")])  # fmt: skip


def test_calculator_has_forces_and_stress_in_a_cell(name):
    atoms = crystal()
    atoms.calc = ModelCalculator(potential_of(name))
    forces, stress = atoms.get_forces(), atoms.get_stress()
    scale = max(1.0, np.abs(forces).max())
    expected = calculate_numerical_forces(atoms, eps=1e-5, iatoms=range(2))
    np.testing.assert_allclose(forces[:2], expected, rtol=0, atol=1e-7 * scale)
    expected = calculate_numerical_stress(atoms, eps=1e-5)
    np.testing.assert_allclose(stress, expected, rtol=0, atol=1e-7 * scale)
    assert np.abs(forces).min() > 1e-8 and np.abs(stress).min() > 1e-8


def test_dynamics_in_a_cell_conserves_energy_to_second_order(name):
    atoms = crystal()
    z, cell = torch.tensor(atoms.numbers), torch.tensor(atoms.cell.array)
    x, potential = torch.tensor(atoms.positions)[None], potential_of(name)
    force_fn = model_force_fn(potential, z, cell)
    potential.scale *= 1.5 / force_fn(x)[1].abs().max()  # the same dynamics for each
    masses = torch.ones(len(z), dtype=torch.float64)
    v = maxwell_boltzmann(masses, 0.05, 1, torch.Generator().manual_seed(0))
    errors = []
    for dt, num_steps in ((0.02, 25), (0.01, 50)):
        begin = start(force_fn, x, v, masses)
        _, frames = run(lambda s, dt=dt: velocity_verlet(force_fn, s, dt), begin, num_steps,
                        progress=False)  # fmt: skip
        total = frames.energies + frames.kinetic_energies
        first = begin.energies + 0.5 * v.square().sum()
        errors.append(float((total - first).abs().max()))
    assert 3 < errors[0] / errors[1] < 5
    traded = frames.kinetic_energies.max() - frames.kinetic_energies.min()
    assert traded > 30 * errors[1]  # control: kinetic and potential energy do trade
