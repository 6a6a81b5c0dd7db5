"""Fake molecular dynamics: batches in the shapes that a real simulation would give.

Axes:   T frames, n atoms per frame, N = n * B atoms in a batch of B samples.
Units:  reduced (the spacing of the cluster is 1.1); masses are 1, one frame is one unit of time.

Harmonic oscillators: the atoms sit on the n sites of a cubic lattice that are nearest to the origin
(for n = 7 a centre and six neighbours), and each coordinate swings on a spring of its own. The
exact solution is known: consecutive frames are correlated, the forces are minus the energy's
gradient, and the amplitudes bound how close two atoms can come.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

SPACING = 1.1
AMPLITUDE = 0.1  # the largest displacement of one coordinate from its site
MIN_DISTANCE = SPACING - 2 * math.sqrt(3) * AMPLITUDE  # 0.75: no two atoms are ever closer
ORIENTATION = torch.tensor([[2, -1, 2], [2, 2, -1], [-1, 2, 2]]).double() / 3  # hides no atom
PERIODS = (15.0, 60.0)  # shortest and longest period of a coordinate, in frames


class Trajectory(NamedTuple):
    """Positions (T, n, 3), energies (T, 1) and forces (T, n, 3) of T frames."""

    positions: Tensor
    energies: Tensor
    forces: Tensor


def lattice_sites(n_atoms: int) -> Tensor:
    """Return the n cubic lattice sites nearest to the origin, (n, 3), the origin first."""
    reach = math.ceil(n_atoms ** (1 / 3))  # a cube of (2 reach + 1)**3 sites holds the nearest n
    axis = torch.arange(-reach, reach + 1)
    sites = torch.cartesian_prod(axis, axis, axis)
    order = sites.square().sum(dim=1).argsort(stable=True)
    nearest = SPACING * sites[order[:n_atoms]].double() @ ORIENTATION.T
    return nearest.to(torch.get_default_dtype())


def fake_trajectory(n_frames: int = 10, n_atoms: int = 7, seed: int = 0) -> Trajectory:
    """Make a trajectory of the cluster.

    u(t) = A cos(ω t + φ);  E = ½ Σ ω² u²;  F = −ω² u

    Args:
        n_frames: number of frames T.
        n_atoms: number of atoms n.
        seed: seed of the amplitudes A, frequencies ω and phases φ.

    Raises:
        ValueError: if `n_frames` or `n_atoms` is not a positive integer.
    """
    _check_count("n_frames", n_frames)
    _check_count("n_atoms", n_atoms)
    generator = torch.Generator().manual_seed(seed)
    amplitude, frequency, phase = torch.rand(
        3, n_atoms, 3, generator=generator, dtype=torch.float64
    )
    amplitude = AMPLITUDE * (0.5 + 0.5 * amplitude)
    shortest, longest = PERIODS
    omega = 2 * math.pi / (shortest + (longest - shortest) * frequency)
    t = torch.arange(n_frames).view(-1, 1, 1)
    u = amplitude * torch.cos(omega * t + 2 * math.pi * phase)  # (T, n, 3)
    energies = 0.5 * (omega * u).square().sum(dim=(1, 2)).unsqueeze(1)  # (T, n, 3) -> (T, 1)
    dtype = torch.get_default_dtype()  # drawn in float64 whatever it is: the seed alone decides
    frames = lattice_sites(n_atoms) + u.to(dtype), energies, -omega.square() * u
    return Trajectory(*(x.to(dtype) for x in frames))


def fake_batch(
    batch_size: int = 10, n_atoms: int = 7, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Make a batch of consecutive frames in the shapes of the sheet's section 1.2.

    Args:
        batch_size: number of samples B.
        n_atoms: number of atoms n of each.
        seed: seed of the trajectory.

    Returns:
        Atomic numbers `z` (B, 1), all 1.0, positions `pos` (n * B, 3), and `batch` (n * B,).

    Raises:
        ValueError: if `batch_size` or `n_atoms` is not a positive integer.
    """
    _check_count("batch_size", batch_size)
    positions = fake_trajectory(batch_size, n_atoms, seed).positions
    batch = torch.arange(batch_size).repeat_interleave(n_atoms)
    return torch.ones(batch_size, 1), positions.reshape(-1, 3), batch


def _check_count(name: str, value: int) -> None:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: expected a positive integer, got {value!r}")
