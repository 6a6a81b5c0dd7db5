"""Steps in time of many replicas at once, with any force field.

Axes:   R independent replicas, n atoms in each.
Units:  any consistent set; time is length · √(mass / energy). Reduced Lennard-Jones units and ASE's
        (eV, Å, u, with `k_B=ase.units.kB` and times in multiples of `ase.units.fs`) both are.

[1] Leimkuhler & Matthews, Appl. Math. Res. Express 2013, 34 (BAOAB).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from molnets.checks import (
    expect,
    expect_masses,
    expect_not_negative,
    expect_replicas,
    expect_size,
)
from molnets.dynamics.force_fields import ForceFn


class State(NamedTuple):
    """Positions and velocities (R, n, 3), energies (R,), forces (R, n, 3) and masses (n,)."""

    positions: Tensor
    velocities: Tensor
    energies: Tensor
    forces: Tensor
    masses: Tensor

    def is_finite(self) -> Tensor:
        """Return whether velocities, energy and forces of each replica are finite, (R,)."""
        total = self.forces.sum(dim=(1, 2)) + self.velocities.sum(dim=(1, 2)) + self.energies
        return total.isfinite()


def start(force_fn: ForceFn, positions: Tensor, velocities: Tensor, masses: Tensor) -> State:
    """Return the state to start from; positions and velocities are (R, n, 3), masses (n,).

    Raises:
        ValueError: for wrong shapes, masses that are not positive, or energies or forces that are
            not finite.
    """
    expect_replicas(positions)
    shape = tuple(positions.shape)
    expect(velocities.shape == shape, "velocities", f"shape {shape}", tuple(velocities.shape))
    expect_masses(masses, shape[1])
    positions, velocities = positions.detach().clone(), velocities.detach().clone()
    state = State(positions, velocities, *force_fn(positions), masses.to(positions))
    for replica, sound in enumerate(state.is_finite().tolist()):
        energy = state.energies[replica].item()
        expect(sound, "positions", "finite energy and forces", f"{energy} for replica {replica}")
    return state


def maxwell_boltzmann(
    masses: Tensor, temperature: float, num_replicas: int, generator: torch.Generator,
    *, k_B: float = 1.0,
) -> Tensor:  # fmt: skip
    """Draw velocities, (R, n, 3): each component is normal with the variance k_B T / m_i."""
    expect_masses(masses, len(masses))
    expect_not_negative("temperature", temperature)
    expect_size("num_replicas", num_replicas)
    like = masses.new_empty(num_replicas, len(masses), 3)
    return _normal(like, generator) * (k_B * temperature / masses).sqrt().unsqueeze(1)


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    device = generator.device
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=device).to(like)


def remove_drift(velocities: Tensor, masses: Tensor) -> Tensor:
    """Return the velocities, (R, n, 3), with the centre of mass at rest: v_i − Σ m v / Σ m."""
    weights = (masses / masses.sum()).unsqueeze(1)  # (n, 1)
    return velocities - (weights * velocities).sum(dim=1, keepdim=True)


def remove_rotation(positions: Tensor, velocities: Tensor, masses: Tensor) -> Tensor:
    """Return the velocities, (R, n, 3), without angular momentum about the centre of mass.

    v_i − ω × x_i;  I ω = L = Σ m x × v;  I = Σ m (x² 1 − x xᵀ);  x_i = r_i − Σ m r / Σ m

    A linear molecule has no inertia about its axis: that component of ω is zero.
    """
    m = masses.unsqueeze(1)  # (n, 1)
    x = remove_drift(positions, masses)
    angular = (m * torch.linalg.cross(x, remove_drift(velocities, masses))).sum(dim=1)  # (R, 3)
    moments = torch.einsum("nk,rnc,rnd->rcd", m, x, x)
    trace = moments.diagonal(dim1=1, dim2=2).sum(1).view(-1, 1, 1)
    inertia = trace * torch.eye(3).to(x) - moments  # (R, 3, 3)
    omega = torch.linalg.pinv(inertia, rtol=1e-6, hermitian=True) @ angular.unsqueeze(2)
    return velocities - torch.linalg.cross(omega.transpose(1, 2), x)  # (R, 1, 3) × (R, n, 3)


def kinetic_energy(velocities: Tensor, masses: Tensor) -> Tensor:
    """Return ½ Σ m v² of each replica: (R, n, 3) -> (R,)."""
    return 0.5 * (masses.unsqueeze(1) * velocities.square()).sum(dim=(-2, -1))


def temperature_of(
    velocities: Tensor, masses: Tensor, *, num_constraints: int = 0, k_B: float = 1.0
) -> Tensor:
    """Return T = 2 K / ((3n − constraints) k_B) of each replica: (R, n, 3) -> (R,).

    Raises:
        ValueError: if no degree of freedom is left.
    """
    dof = 3 * len(masses) - num_constraints  # 3 if the centre of mass rests, 6 without rotation
    expected = f"0 to {3 * len(masses) - 1}, fewer than the degrees of freedom"
    expect(num_constraints >= 0 and dof > 0, "num_constraints", expected, num_constraints)
    return 2 * kinetic_energy(velocities, masses) / (dof * k_B)


def velocity_verlet(force_fn: ForceFn, state: State, dt: float) -> State:
    """Make one step of length Δt at constant energy.

    equation                      code
    v ← v + ½ Δt F(x) / m         v = state.velocities + kick * state.forces
    x ← x + Δt v                  x = state.positions + dt * v
    v ← v + ½ Δt F(x) / m         v = v + kick * forces
    """
    kick = 0.5 * dt / state.masses.unsqueeze(1)  # (n,) -> (n, 1)
    v = state.velocities + kick * state.forces
    x = state.positions + dt * v
    energies, forces = force_fn(x)
    v = v + kick * forces
    return State(x, v, energies, forces, state.masses)


def langevin_baoab(
    force_fn: ForceFn, state: State, dt: float, temperature: float, friction: float,
    generator: torch.Generator, *, k_B: float = 1.0,
) -> State:  # fmt: skip
    """Make one step of Langevin dynamics at the temperature T, split as B A O A B [1].

    equation                                        code
    B  v ← v + ½ Δt F(x) / m                        v = state.velocities + kick * state.forces
    A  x ← x + ½ Δt v                               x = state.positions + 0.5 * dt * v
    O  v ← c v + √((1 − c²) k_B T / m) N(0, 1)      v = c * v + noise * _normal(v, generator)
       c = exp(−γ Δt)                               c = math.exp(-friction * dt)
    A  x ← x + ½ Δt v                               x = x + 0.5 * dt * v
    B  v ← v + ½ Δt F(x) / m                        v = v + kick * forces

    The friction γ is an inverse time; all replicas draw from one generator.
    """
    expect_not_negative("temperature", temperature)
    expect_not_negative("friction", friction)
    m = state.masses.unsqueeze(1)  # (n,) -> (n, 1)
    kick, c = 0.5 * dt / m, math.exp(-friction * dt)
    noise = ((1 - c**2) * k_B * temperature / m).sqrt()
    v = state.velocities + kick * state.forces
    x = state.positions + 0.5 * dt * v
    v = c * v + noise * _normal(v, generator)
    x = x + 0.5 * dt * v
    energies, forces = force_fn(x)
    v = v + kick * forces
    return State(x, v, energies, forces, state.masses)
