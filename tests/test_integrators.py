"""Single steps against closed forms, conservation laws, and replicas that move alone.

Tolerances of random quantities are five standard errors: with M independent samples that of a mean
is σ / √M, that of a normal variable's variance σ² √(2 / M), of a covariance σ² √((1 + ρ²) / M).
"""

from __future__ import annotations

import math

import pytest
import torch
from contract import assert_equal, random_orthogonal
from systems import (
    CELLS,
    MASSES,
    SPECIES,
    Crowd,
    cluster,
    in_cells,
    langevin,
    seeded,
    springs,
    verlet,
)

from molnets.dynamics import (
    ForceFn,
    State,
    kinetic_energy,
    langevin_baoab,
    lennard_jones,
    maxwell_boltzmann,
    model_force_fn,
    remove_drift,
    remove_rotation,
    run,
    start,
    temperature_of,
    velocity_verlet,
)
from molnets.edges import Graph
from molnets.potential import Potential

pytestmark = pytest.mark.usefixtures("float64")


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


def worst_energy_error(dt: float, state: State, force_fn: ForceFn | None = None) -> float:
    _, frames = run(verlet(dt, force_fn), state, round(1.0 / dt), progress=False)
    total = frames.energies + frames.kinetic_energies
    assert frames.kinetic_energies.std(dim=0).min() > 100 * total.std(dim=0).max()  # they trade
    before = state.energies + kinetic_energy(state.velocities, state.masses)
    return (total - before).abs().max().item()


def test_energy_error_is_of_second_order():
    state = cluster(4)
    errors = [worst_energy_error(dt, state) for dt in (0.004, 0.002, 0.001)]
    assert 3.5 < errors[0] / errors[1] < 4.5
    assert 3.5 < errors[1] / errors[2] < 4.5


def test_energy_error_in_cells_of_their_own_is_of_second_order():
    network, masses = Crowd(), MASSES[:4]
    potential = Potential(network, graph=Graph(network.cutoff, skin=0.3))
    force_fn = model_force_fn(potential, SPECIES, CELLS)
    velocities = maxwell_boltzmann(masses, 0.3, 3, seeded(1))
    state = start(force_fn, in_cells(), velocities, masses)
    errors = [worst_energy_error(dt, state, force_fn) for dt in (0.02, 0.01, 0.005)]
    assert 3.5 < errors[0] / errors[1] < 4.5
    assert 3.5 < errors[1] / errors[2] < 4.5
    last, _ = run(verlet(0.01, force_fn), state, 100, progress=False)
    for r in range(3):
        alone = model_force_fn(network, SPECIES, CELLS[r])
        own = start(alone, state.positions[r : r + 1], velocities[r : r + 1], masses)
        own, _ = run(verlet(0.01, alone), own, 100, progress=False)
        assert_equal(own.positions, last.positions[r : r + 1], atol=1e-10)
        assert (own.positions - state.positions[r]).abs().max() > 0.1


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

    ⟨x⟩ = ⟨v⟩ = 0, ⟨x²⟩ = k_B T / k, ⟨v²⟩ = (1 − k Δt² / 4m) k_B T / m, ⟨x v⟩ = 0, and for t > 0
    ⟨x(0) x(t)⟩ / ⟨x²⟩ = exp(−γt/2) (cos ωt + γ/(2ω) sin ωt) with ω² = k/m − γ²/4.
    """
    k, kT, friction, dt, samples = 2.0, 0.7, 0.8, 0.08, 3 * 10_000
    masses, generator = torch.tensor([1.0, 4.0]), seeded(0)

    def step(state: State) -> State:
        return langevin_baoab(springs(k), state, dt, kT / 2, friction, generator, k_B=2.0)

    x = torch.ones(samples // 3, 2, 3)
    state = start(springs(k), x, torch.zeros_like(x), masses)
    origin, _ = run(step, state, 250, every=250, progress=False)  # 8 relaxation times
    _, frames = run(step, origin, 32, every=8, progress=False)
    x, v = origin.positions, origin.velocities
    for atom, m in enumerate(masses.tolist()):
        x0, v0 = x[:, atom].flatten(), v[:, atom].flatten()
        assert abs(x0.mean()) < 5 * math.sqrt(kT / k / samples)
        assert abs(v0.mean()) < 5 * math.sqrt(kT / m / samples)
        assert abs(x0.var() / (kT / k) - 1) < 5 * math.sqrt(2 / samples)
        of_the_steps = 1 - k / m * dt**2 / 4  # BAOAB: x has no error of the step, v this one
        assert abs(v0.var() / (kT / m) - of_the_steps) < 5 * math.sqrt(2 / samples)
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


def state_of(positions, velocities=None, masses=MASSES):
    velocities = torch.zeros_like(positions) if velocities is None else velocities
    return start(lennard_jones(), positions, velocities, masses)


def two_in_one_place():
    positions = cluster(3).positions
    positions[1, 4] = positions[1, 5]
    return positions


ERRORS = [
    (lambda: state_of(torch.rand(2, 7, 3), torch.zeros(7, 3)), "velocities: expected shape"),
    (lambda: state_of(torch.rand(2, 7, 3), None, torch.ones(6)), "masses: expected shape"),
    (lambda: state_of(torch.rand(2, 7, 3), None, torch.zeros(7)), "masses: expected positive"),
    (lambda: state_of(two_in_one_place()), "positions: expected finite .* replica 1"),
    (lambda: maxwell_boltzmann(MASSES, -1.0, 2, seeded(0)), "temperature: expected .* got -1"),
    (lambda: maxwell_boltzmann(MASSES, 1.0, 0, seeded(0)), "num_replicas: expected .* got 0"),
    (lambda: maxwell_boltzmann(-MASSES, 1.0, 2, seeded(0)), "masses: expected positive, finite"),
    (
        lambda: langevin_baoab(springs(1.0), cluster(1), 0.1, -1.0, 1.0, seeded(0)),
        "temperature: expected a finite number, not negative, got -1",
    ),
    (
        lambda: langevin_baoab(springs(1.0), cluster(1), 0.1, 1.0, -1.0, seeded(0)),
        "friction: expected a finite number, not negative, got -1",
    ),
]


@pytest.mark.parametrize(("attempt", "message"), ERRORS)
def test_errors_name_the_argument(attempt, message):
    with pytest.raises(ValueError, match=message):
        attempt()


@pytest.mark.parametrize("constraints", [-1, 3, 4])
def test_one_atom_at_rest_has_no_temperature(constraints):
    v, mass = torch.zeros(1, 1, 3), torch.ones(1)
    with pytest.raises(ValueError, match=f"num_constraints: expected 0 to 2, .*got {constraints}"):
        temperature_of(v, mass, num_constraints=constraints)
    assert temperature_of(v, mass, num_constraints=2) == 0
