"""How exact the tables are: forces against those in float64, and energy kept in dynamics."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.engines import CASES, atoms_of
from fake_data import lattice_sites
from molnets import checkpoint
from molnets.dynamics import (
    State,
    energy_drift,
    langevin_baoab,
    lennard_jones,
    maxwell_boltzmann,
    run,
    start,
    velocity_verlet,
)
from molnets.networks.schnet import Sizes
from molnets.potential import Potential, by_autograd, energy_and_forces
from molnets.tables import tabulated

HERE = Path(__file__).parent
AMU = 103.64269  # eV fs² / Å²
K_B = 8.617333e-5  # eV / K


def frames_of_ethanol() -> tuple[Tensor, Tensor]:
    """Return z (9,) and 200 frames of the network's own dynamics at 300 K, (200, 9, 3)."""
    ethanol = _replicas(tabulated(checkpoint.load(HERE / "ethanol.pt")), 20)
    generator = torch.Generator().manual_seed(1)

    def step(state: State) -> State:
        return langevin_baoab(ethanol[0], state, 0.5, 300.0, 0.01, generator, k_B=K_B)

    _, frames = run(step, ethanol[1], 2000, every=200, progress=False)
    return ethanol[2], frames.positions.reshape(-1, 9, 3)


def _replicas(model: Potential, num: int) -> tuple:
    """Return a force field in the network's dtype, and states at 300 K, float64."""
    from ase.build import molecule

    atoms = molecule("CH3CH2OH")
    z = torch.tensor(atoms.numbers)
    masses = torch.tensor(atoms.get_masses()) * AMU
    dtype = next(model.parameters()).dtype

    def force_fn(pos: Tensor) -> tuple[Tensor, Tensor]:
        batch = torch.arange(len(pos)).repeat_interleave(9)
        flat = pos.reshape(-1, 3).to(dtype)
        energy, forces = energy_and_forces(model, z.repeat(len(pos)).view(-1, 1), flat, batch)
        return energy.squeeze(1).double(), forces.view_as(pos).double()

    generator = torch.Generator().manual_seed(0)
    velocities = maxwell_boltzmann(masses, 300.0, num, generator, k_B=K_B)
    positions = torch.tensor(atoms.positions).repeat(num, 1, 1)
    return force_fn, start(force_fn, positions, velocities, masses), z


def frames_of_cluster() -> Tensor:
    """Return 200 frames of the 7-atom Lennard-Jones cluster, (200, 7, 3)."""
    generator = torch.Generator().manual_seed(0)
    masses, force_fn = torch.ones(7, dtype=torch.float64), lennard_jones()
    velocities = maxwell_boltzmann(masses, 0.15, 20, generator)
    state = start(force_fn, lattice_sites(7).double().repeat(20, 1, 1), velocities, masses)

    def step(state: State) -> State:
        return langevin_baoab(force_fn, state, 0.005, 0.15, 1.0, generator)

    state, _ = run(step, state, 20_000, every=20_000, progress=False)
    _, frames = run(step, state, 2000, every=200, progress=False)
    return frames.positions.reshape(-1, 7, 3)


def force_errors(model: Potential, z: Tensor, pos: Tensor) -> dict[str, float]:
    """Return the largest deviation from the forces of the plain network in float64, by their RMS.

    The exact forces are those at the positions as float32 has them.
    """
    batch = torch.arange(len(pos)).repeat_interleave(pos.shape[1])
    z, pos = z.flatten().repeat(len(pos)).view(-1, 1), pos.reshape(-1, 3).float()
    exact = by_autograd(model.double(), z, pos.double(), batch)[1]
    fine = energy_and_forces(tabulated(model), z, pos.double(), batch)[1]
    plain = by_autograd(model.float(), z, pos, batch)[1]
    fast = energy_and_forces(tabulated(model), z, pos, batch)[1]
    rms = exact.square().mean().sqrt()
    return {
        name: float((forces - exact).abs().max() / rms)
        for name, forces in (("plain", plain), ("tables", fast), ("tables, float64", fine))
    }


def drift(model: Potential) -> dict[str, float]:
    """Return what becomes of the energy in 10 ps of velocity Verlet, 0.5 fs a step, 8 replicas."""
    force_fn, state, _ = _replicas(model, 8)

    def step(state: State) -> State:
        return velocity_verlet(force_fn, state, 0.5)

    _, frames = run(step, state, 20_000, every=50, progress=False)
    total = frames.energies + frames.kinetic_energies  # (T, R)
    slope, _ = energy_drift(total, 0.001 * 0.5 * torch.as_tensor(frames.steps), 9)
    error = slope.std(ddof=1) / math.sqrt(len(slope))
    return {"mev_per_atom_ps": 1000 * slope.mean(), "error": 1000 * error,
            "wobble_mev": 1000 * float((total - total.mean(dim=0)).std(dim=0).mean())}  # fmt: skip


def accuracy() -> dict[str, dict]:
    """Return errors of forces for trained and random weights, and drift with tables and without."""
    z, ethanol = frames_of_ethanol()
    errors = {"ethanol, trained": force_errors(checkpoint.load(HERE / "ethanol.pt"), z, ethanol)}
    cluster = checkpoint.load(HERE / "cluster.pt")
    errors["cluster, trained"] = force_errors(cluster, torch.ones(7), frames_of_cluster())
    for case in (CASES[1], CASES[3]):
        torch.manual_seed(0)
        sizes = Sizes(case.num_features, case.num_features, case.num_blocks, case.num_gaussians)
        z, pos, _ = atoms_of(case._replace(num_samples=1))
        errors[f"{case.name}, random"] = force_errors(Potential(sizes.build()), z, pos[None])
    model = checkpoint.load(HERE / "ethanol.pt")
    return {"forces": errors, "drift": {"plain": drift(model), "tables": drift(tabulated(model))}}
