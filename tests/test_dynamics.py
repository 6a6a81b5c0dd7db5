"""Dynamics against closed forms, known minima, conservation laws, and a process that is killed.

Tolerances of random quantities are five standard errors: with M independent samples that of a mean
is σ / √M, that of a normal variable's variance σ² √(2 / M), of a covariance σ² √((1 + ρ²) / M).
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.io import read
from contract import assert_equal, random_orthogonal

from fake_data import ORIENTATION, lattice_sites
from md import dynamics
from md.dynamics import (
    ExplosionError,
    ExtxyzWriter,
    State,
    kinetic_energy,
    langevin_baoab,
    lennard_jones,
    maxwell_boltzmann,
    model_force_fn,
    read_trajectory,
    remove_drift,
    remove_rotation,
    run,
    start,
    temperature_of,
    velocity_verlet,
)
from schnet_helpers import SchNet

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("SCHNET_DATA", ROOT.parent / "shared" / "data"))
MASSES = torch.tensor([1.0, 2.0, 1.5, 1.0, 3.0, 1.0, 0.5], dtype=torch.float64)

pytestmark = pytest.mark.usefixtures("float64")


def load(name: str) -> dict[str, np.ndarray]:
    if not (DATA / name).exists():
        pytest.skip(f"{name} is not in {DATA}; SCHNET_DATA names another folder")
    with np.load(DATA / name, allow_pickle=False) as file:
        return dict(file)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cluster(num_replicas: int, temperature: float = 0.1, seed: int = 0) -> State:
    """Return the warm 7-atom cluster, its atoms of different masses, every replica its own."""
    shake = 0.05 * torch.randn(num_replicas, 7, 3, generator=seeded(seed))
    positions = 1.1 * lattice_sites(7) + shake
    velocities = maxwell_boltzmann(MASSES, temperature, num_replicas, seeded(seed + 1))
    return start(lennard_jones(), positions, velocities, MASSES)


def verlet(dt: float, force_fn=None):
    force_fn = force_fn or lennard_jones()
    return lambda state: velocity_verlet(force_fn, state, dt)


def langevin(seed: int, dt: float = 0.01):
    force_fn, generator = lennard_jones(), seeded(seed)
    return lambda state: langevin_baoab(force_fn, state, dt, 0.2, 1.0, generator)


def springs(k: float):
    return lambda pos: (0.5 * k * pos.square().sum(dim=(1, 2)), -k * pos)


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
    monkeypatch.setattr(dynamics, "MAX_PAIRS", pairs_at_once)
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


def test_maxwell_boltzmann():
    v = maxwell_boltzmann(MASSES, 0.3, 20_000, seeded(0), k_B=2.0)
    variance = 0.6 / MASSES
    samples = 60_000  # of each mass
    assert (v.mean(dim=(0, 2)).abs() < 5 * (variance / samples).sqrt()).all()
    assert ((v.var(dim=(0, 2)) / variance - 1).abs() < 5 * math.sqrt(2 / samples)).all()
    assert torch.equal(v, maxwell_boltzmann(MASSES, 0.3, 20_000, seeded(0), k_B=2.0))
    assert not torch.equal(v, maxwell_boltzmann(MASSES, 0.3, 20_000, seeded(1), k_B=2.0))
    temperature = temperature_of(v, MASSES, k_B=2.0).mean().item()  # of 21 degrees of freedom
    assert temperature == pytest.approx(0.3, rel=5 * math.sqrt(2 / (21 * 20_000)))
    rest = temperature_of(remove_drift(v, MASSES), MASSES, num_constraints=3, k_B=2.0)
    assert rest.mean().item() == pytest.approx(0.3, rel=5 * math.sqrt(2 / (18 * 20_000)))


def test_drift_and_rotation_are_removed():
    state = cluster(3)
    v = remove_drift(state.velocities, MASSES)
    assert_equal(momentum(v), torch.zeros(3, 3))
    assert momentum(state.velocities).abs().min() > 1e-3
    assert_equal((v[:, 0] - v[:, 1]), state.velocities[:, 0] - state.velocities[:, 1])
    still = remove_rotation(state.positions, v, MASSES)
    assert_equal(angular_momentum(state.positions, still), torch.zeros(3, 3))
    assert_equal(momentum(still), torch.zeros(3, 3))
    assert angular_momentum(state.positions, v).abs().max() > 0.1
    assert (kinetic_energy(still, MASSES) < kinetic_energy(v, MASSES)).all()
    assert_equal(remove_rotation(state.positions, still, MASSES), still)


def test_rotation_of_a_linear_molecule():
    masses = torch.tensor([16.0, 12.0, 16.0])
    x = torch.tensor([[[-1.1], [0.0], [1.1]]]) * random_orthogonal(1)[0]
    v = remove_drift(maxwell_boltzmann(masses, 1.0, 1, seeded(0)), masses)
    still = remove_rotation(x, v, masses)
    torque = (masses.view(-1, 1) * torch.linalg.cross(x, still)).sum(dim=1)
    assert_equal(torque, torch.zeros(1, 3), atol=1e-9)
    assert kinetic_energy(still, masses) > 0.01


def momentum(v):
    return (MASSES.view(-1, 1) * v).sum(dim=1)


def angular_momentum(x, v):
    return (MASSES.view(-1, 1) * torch.linalg.cross(x, v)).sum(dim=1)


def worst_energy_error(dt: float, state: State) -> float:
    _, frames = run(verlet(dt), state, round(1.0 / dt), progress=False)
    total = frames.energies + frames.kinetic_energies
    assert frames.kinetic_energies.std(dim=0).min() > 100 * total.std(dim=0).max()  # they trade
    before = state.energies + kinetic_energy(state.velocities, MASSES)
    return (total - before).abs().max().item()


def test_energy_error_is_of_second_order():
    state = cluster(4)
    errors = [worst_energy_error(dt, state) for dt in (0.004, 0.002, 0.001)]
    assert 3.5 < errors[0] / errors[1] < 4.5
    assert 3.5 < errors[1] / errors[2] < 4.5


def test_momentum_and_angular_momentum_are_kept():
    state = cluster(4)
    last, _ = run(verlet(0.005), state, 300, progress=False)
    assert_equal(momentum(last.velocities), momentum(state.velocities))
    before = angular_momentum(state.positions, state.velocities)
    assert_equal(angular_momentum(last.positions, last.velocities), before)
    assert before.abs().max() > 0.1
    assert (last.velocities - state.velocities).abs().max() > 0.1


def test_time_can_be_reversed():
    state = cluster(4)
    there, _ = run(verlet(0.005), state, 200, progress=False)
    back, _ = run(verlet(0.005), there._replace(velocities=-there.velocities), 200, progress=False)
    assert_equal(back.positions, state.positions, atol=1e-8)
    assert_equal(back.velocities, -state.velocities, atol=1e-8)
    assert (there.positions - state.positions).abs().max() > 0.1


def test_langevin_of_the_harmonic_oscillator():
    """Two masses on springs, k = 2, T = 0.7, γ = 0.8, started with x and v far from equilibrium.

    ⟨x⟩ = ⟨v⟩ = 0, ⟨x²⟩ = k_B T / k, ⟨v²⟩ = k_B T / m, ⟨x v⟩ = 0, and for t > 0
    ⟨x(0) x(t)⟩ / ⟨x²⟩ = exp(−γt/2) (cos ωt + γ/(2ω) sin ωt) with ω² = k/m − γ²/4.
    """
    k, kT, friction, dt, samples = 2.0, 0.7, 0.8, 0.04, 3 * 10_000
    masses, generator = torch.tensor([1.0, 4.0]), seeded(0)

    def step(state: State) -> State:
        return langevin_baoab(springs(k), state, dt, kT / 2, friction, generator, k_B=2.0)

    x = torch.ones(samples // 3, 2, 3)
    state = start(springs(k), x, torch.zeros_like(x), masses)
    origin, _ = run(step, state, 500, every=500, progress=False)  # 8 relaxation times
    _, frames = run(step, origin, 60, every=15, progress=False)
    x, v = origin.positions, origin.velocities
    for atom, m in enumerate(masses.tolist()):
        x0, v0 = x[:, atom].flatten(), v[:, atom].flatten()
        assert abs(x0.mean()) < 5 * math.sqrt(kT / k / samples)
        assert abs(v0.mean()) < 5 * math.sqrt(kT / m / samples)
        assert abs(x0.var() / (kT / k) - 1) < 5 * math.sqrt(2 / samples)
        assert abs(v0.var() / (kT / m) - 1) < 5 * math.sqrt(2 / samples) + k / m * dt**2
        assert abs((x0 * v0).mean()) < 5 * math.sqrt(kT**2 / (k * m) / samples)
        omega = math.sqrt(k / m - friction**2 / 4)
        for step_number, later in zip(frames.steps.tolist(), frames.positions, strict=True):
            t = step_number * dt
            cosine = math.cos(omega * t) + friction / (2 * omega) * math.sin(omega * t)
            rho = math.exp(-friction * t / 2) * cosine
            measured = (x0 * later[:, atom].flatten()).mean() / (kT / k)
            assert abs(measured - rho) < 5 * math.sqrt((1 + rho**2) / samples)


def test_velocities_forget_at_the_rate_of_the_friction():
    free = springs(0.0)
    generator = seeded(0)
    v = torch.ones(20_000, 1, 3)
    state = start(free, torch.zeros_like(v), v, torch.ones(1))
    for _ in range(10):
        state = langevin_baoab(free, state, 0.1, 0.5, 0.7, generator)
    mean, variance = math.exp(-0.7), 0.5 * (1 - math.exp(-1.4))  # after the time 1
    assert abs(state.velocities.mean() - mean) < 5 * math.sqrt(variance / 60_000)
    assert abs(state.velocities.var() / variance - 1) < 5 * math.sqrt(2 / 60_000)


def test_langevin_without_friction_is_velocity_verlet():
    state, generator = cluster(2), seeded(0)
    for _ in range(20):
        one = langevin_baoab(lennard_jones(), state, 0.01, 0.5, 0.0, generator)
        state = velocity_verlet(lennard_jones(), state, 0.01)
        assert_equal(one.positions, state.positions)
        assert_equal(one.velocities, state.velocities)


def test_seed_decides():
    state = cluster(3)
    first, again, other = (run(langevin(s), state, 50, progress=False)[0] for s in (5, 5, 6))
    assert torch.equal(first.positions, again.positions)
    assert torch.equal(first.velocities, again.velocities)
    assert (first.positions - other.positions).abs().amin(dim=(1, 2)).min() > 0
    assert (first.positions[0] - first.positions[1] - state.positions[0] + state.positions[1]).any()


def test_replicas_in_a_batch_move_as_they_do_alone():
    state = cluster(5)
    together, _ = run(verlet(0.005), state, 50, progress=False)
    for r in range(5):
        own = slice(r, r + 1)
        alone = start(lennard_jones(), state.positions[own], state.velocities[own], MASSES)
        alone, _ = run(verlet(0.005), alone, 50, progress=False)
        assert_equal(together.positions[own], alone.positions, atol=1e-12)
        assert_equal(together.velocities[own], alone.velocities, atol=1e-12)


@pytest.mark.parametrize("make_step", [lambda: verlet(0.005), lambda: langevin(0, 0.005)])
def test_a_replica_has_no_influence_on_another(make_step):
    state = cluster(5)
    changed = state.positions.clone()
    changed[2] *= 1.05
    changed = start(lennard_jones(), changed, state.velocities, MASSES)
    (a, _), (b, _) = (run(make_step(), s, 100, progress=False) for s in (state, changed))
    for r in (0, 1, 3, 4):
        assert torch.equal(a.positions[r], b.positions[r])
        assert torch.equal(a.velocities[r], b.velocities[r])
    assert (a.positions[2] - b.positions[2]).abs().max() > 0.01


def test_frames_and_their_numbers():
    state = cluster(2)
    last, frames = run(verlet(0.005), state, 10, every=4, first_step=100, progress=False)
    assert frames.steps.tolist() == [104, 108]
    assert frames.positions.shape == frames.velocities.shape == (2, 2, 7, 3)
    for _ in range(8):
        state = velocity_verlet(lennard_jones(), state, 0.005)
    assert torch.equal(frames.positions[1], state.positions)
    assert torch.equal(frames.energies[1], state.energies)
    assert torch.equal(frames.kinetic_energies[1], kinetic_energy(state.velocities, MASSES))
    assert not torch.equal(last.positions, state.positions)
    assert len(run(verlet(0.005), state, 3, every=4, progress=False)[1].positions) == 0


def test_progress_bar(capfd):
    run(verlet(0.005), cluster(1), 3)
    assert "3/3" in capfd.readouterr().err
    run(verlet(0.005), cluster(1), 3, progress=False)
    assert capfd.readouterr().err == ""


def poisoned(steps: int, replica: int, energy: float, force: float):
    """Return a force field that turns bad for one replica after some calls."""
    calls = []

    def force_fn(pos):
        energies, forces = lennard_jones()(pos)
        calls.append(1)
        if len(calls) >= steps:
            energies[replica], forces[replica, 3, 1] = energy, force
        return energies, forces

    return force_fn


@pytest.mark.parametrize(
    ("energy", "force", "delay"),
    [(math.nan, 0.0, 0), (-math.inf, 0.0, 0), (0.0, math.nan, 0), (0.0, math.inf, 0), (0, 1e7, 1)],
)
def test_an_explosion_names_replica_and_step_and_keeps_the_frames(tmp_path, energy, force, delay):
    step, state = verlet(0.005, poisoned(8, 3, energy, force)), cluster(5)
    writer = ExtxyzWriter(tmp_path / "run.xyz", ["X"] * 7)
    message = rf"replicas \[3\] exploded at step {108 + delay}"
    with pytest.raises(ExplosionError, match=message) as caught:
        run(step, state, 50, every=2, trajectory=writer, first_step=100, progress=False)
    error = caught.value
    assert (error.replicas, error.step) == ([3], 108 + delay)
    sound = [102, 104, 106] + [108] * delay
    assert error.frames.steps.tolist() == sound
    assert error.frames.positions.isfinite().all()
    assert error.state.positions.isfinite().all()
    entries = read_trajectory(tmp_path / "run.xyz")
    assert [a.info["step"] for a in entries] == [s for s in sound for _ in range(5)]


def test_ase_reads_the_trajectory(tmp_path):
    path, state = tmp_path / "run.xyz", cluster(3)
    writer = ExtxyzWriter(path, ["Ar", "C", "O", "H", "H", "H", "X"])
    _, frames = run(langevin(0), state, 6, every=3, trajectory=writer, progress=False)
    entries = read(path, ":")
    assert [(a.info["step"], a.info["replica"]) for a in entries] == [
        (3, 0), (3, 1), (3, 2), (6, 0), (6, 1), (6, 2)
    ]  # fmt: skip
    for i, atoms in enumerate(entries):
        t, r = divmod(i, 3)
        assert np.array_equal(atoms.positions, frames.positions[t, r].numpy())
        assert np.allclose(atoms.get_velocities(), frames.velocities[t, r].numpy(), rtol=1e-14)
        assert atoms.get_potential_energy() == frames.energies[t, r].item()
        assert atoms.get_kinetic_energy() == pytest.approx(frames.kinetic_energies[t, r].item())
        forces = lennard_jones()(frames.positions[t, r].unsqueeze(0))[1]
        assert np.allclose(atoms.get_forces(), forces[0].numpy(), rtol=1e-9, atol=1e-11)
        assert atoms.get_chemical_symbols() == ["Ar", "C", "O", "H", "H", "H", "X"]
        assert not atoms.pbc.any()


def test_a_box_is_written_as_the_lattice(tmp_path):
    ExtxyzWriter(tmp_path / "box.xyz", ["X"] * 7, box=(8, 9.5, 10)).write(1, cluster(1))
    atoms = read(tmp_path / "box.xyz")
    assert atoms.pbc.all()
    assert atoms.cell.lengths().tolist() == [8, 9.5, 10]


def test_every_cut_loses_at_most_the_entry_that_it_hits(tmp_path):
    path, state = tmp_path / "run.xyz", cluster(2)
    writer = ExtxyzWriter(path, ["X"] * 7)
    writer.write(1, state)
    one = path.stat().st_size // 2  # near the border of the two entries
    text = path.read_bytes()
    border = text.index(b"\n7\n") + 1
    assert abs(border - one) < 100
    for length in [0, 1, 2, 50, *range(border - 20, border + 20), len(text) - 1, len(text)]:
        path.write_bytes(text[:length])
        entries = read_trajectory(path)
        assert len(entries) == (length >= border) + (length == len(text))
        ExtxyzWriter(path, ["X"] * 7, append=True).write(2, state)
        steps = [a.info["step"] for a in read(path, ":")]
        assert steps == [1] * len(entries) + [2, 2]


KILLED = """
import sys, torch
from md.dynamics import ExtxyzWriter, State
n = 4_000
x = torch.rand(1, n, 3, dtype=torch.float64)
writer = ExtxyzWriter(sys.argv[1], ["X"] * n)
for step in range(1, 1000):
    writer.write(step, State(x, x, x.new_zeros(1), x, x.new_ones(n)))
    print(step, flush=True)
"""


def test_a_killed_run_loses_at_most_the_last_frame(tmp_path):
    path = tmp_path / "run.xyz"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, path], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    written = 0
    while written < 3:
        written = int(process.stdout.readline())
    one = path.stat().st_size / 3
    while path.stat().st_size < 3.02 * one:  # the next frame has begun
        pass
    os.kill(process.pid, signal.SIGKILL)
    rest = process.stdout.read().split()
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    written = int(rest[-1]) if rest else written
    steps = [atoms.info["step"] for atoms in read_trajectory(path)]
    assert steps in (list(range(1, written + 1)), list(range(1, written + 2)))


def test_an_existing_file_is_not_overwritten(tmp_path):
    path = tmp_path / "run.xyz"
    path.write_text("precious")
    with pytest.raises(FileExistsError, match="run"):
        ExtxyzWriter(path, ["X"] * 7)
    with pytest.raises(FileNotFoundError):
        read_trajectory(tmp_path / "none.xyz")
    assert path.read_text() == "precious"


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("precious\nnotes\n")
    for attempt in (lambda: read_trajectory(path), lambda: ExtxyzWriter(path, ["X"], append=True)):
        with pytest.raises(ValueError, match="path: expected extended XYZ, got b'precious"):
            attempt()
    assert path.read_text() == "precious\nnotes\n"


def state_of(positions, velocities=None, masses=MASSES):
    velocities = torch.zeros_like(positions) if velocities is None else velocities
    return start(lennard_jones(), positions, velocities, masses)


def two_in_one_place():
    positions = cluster(3).positions
    positions[1, 4] = positions[1, 5]
    return positions


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
    (lambda: state_of(torch.rand(2, 7, 3), torch.zeros(7, 3)), "velocities: expected shape"),
    (lambda: state_of(torch.rand(2, 7, 3), None, torch.ones(6)), "masses: expected shape"),
    (lambda: state_of(torch.rand(2, 7, 3), None, torch.zeros(7)), "masses: expected positive"),
    (lambda: state_of(two_in_one_place()), "positions: expected finite .* replica 1"),
    (lambda: maxwell_boltzmann(MASSES, -1.0, 2, seeded(0)), "temperature: expected .* got -1"),
    (lambda: maxwell_boltzmann(MASSES, 1.0, 0, seeded(0)), "num_replicas: expected .* got 0"),
    (lambda: maxwell_boltzmann(-MASSES, 1.0, 2, seeded(0)), "masses: expected positive masses"),
    (
        lambda: langevin_baoab(springs(1.0), cluster(1), 0.1, -1.0, 1.0, seeded(0)),
        "temperature: expected a number >= 0, got -1",
    ),
    (
        lambda: langevin_baoab(springs(1.0), cluster(1), 0.1, 1.0, -1.0, seeded(0)),
        "friction: expected a number >= 0, got -1",
    ),
    (lambda: run(verlet(0.1), cluster(1), -1), "num_steps: expected a number >= 0, got -1"),
    (lambda: run(verlet(0.1), cluster(1), 1, every=0), "every: expected a positive .* got 0"),
]


@pytest.mark.parametrize(("attempt", "message"), ERRORS)
def test_errors_name_the_argument(attempt, message):
    with pytest.raises(ValueError, match=message):
        attempt()


def test_a_trajectory_of_other_atoms_is_refused(tmp_path):
    with pytest.raises(ValueError, match="state: expected 3 atoms, got 7"):
        ExtxyzWriter(tmp_path / "run.xyz", ["X"] * 3).write(1, cluster(1))
