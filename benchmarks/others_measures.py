"""What `benchmarks.others` asks of every network, and what it makes of the answers.

A question is positions of copies of one set of atoms, an answer their energies and forces. So one
code measures all networks, those of this project and those that run in other environments.

Axes:   T frames of n atoms, M orthogonal matrices, C crossings of the cutoff.
Units:  eV, Å, eV/Å.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from molnets.training.errors import Errors, errors_of

Array = NDArray[np.floating]
Numbers = NDArray[np.integer]
Calculator = Callable[[Numbers, Array], tuple[Array, Array]]  # (z, R) -> E, F
NUM_TURNED, NUM_MATRICES = 10, 30
STEP = 1e-6  # Å, before and behind the cutoff
CLOSEST = 2.0  # Å between atoms of two molecules


class Questions(NamedTuple):
    """Positions: test frames (T, n, 3), their first turned (T', 1 + M, n, 3), pairs (2 C, 2 n, 3).

    `matrices` (M, 3, 3) turn the frames, row vectors from the right; `near` holds two molecules
    shortly before and behind every distance at which a pair of atoms crosses the cutoff.
    """

    test: Array
    turned: Array
    matrices: Array
    near: Array

    def positions(self) -> dict[str, Array]:
        """Return the positions that are asked, frames along the first axis."""
        flat = self.turned.reshape(-1, *self.turned.shape[2:])
        return {"test": self.test, "turned": flat, "near": self.near}


def orthogonal_matrices(count: int, seed: int = 0) -> Array:
    """Return random orthogonal matrices, (M, 3, 3); determinants are 1 and −1 in turn."""
    Q, R = np.linalg.qr(np.random.default_rng(seed).normal(size=(count, 3, 3)))
    Q = Q * np.sign(np.diagonal(R, axis1=1, axis2=2))[:, None]
    sign = np.where(np.arange(count) % 2, -1.0, 1.0)
    return Q * (sign * np.linalg.det(Q))[:, None, None]


def crossings(molecule: Array, cutoff: float, step: float = STEP) -> Array:
    """Return two molecules before and behind each crossing of the cutoff, (2 C, 2 n, 3).

    The second molecule is the first one, turned, and moves away along x. A pair of atoms crosses
    where |r_j + s x − r_i| = r_c; positions are those at s − step and s + step. Left out are
    distances at which two atoms of the molecules come closer than `CLOSEST`.
    """
    first = molecule - molecule.mean(axis=0)
    second = first @ orthogonal_matrices(1, seed=1)[0]
    apart = (second[None] - first[:, None]).reshape(-1, 3)
    inside = cutoff**2 - (apart[:, 1:] ** 2).sum(axis=1)
    s = np.sort(np.sqrt(inside[inside > 0]) - apart[inside > 0, 0])
    shift = np.stack([s - step, s + step], axis=1).ravel()[:, None, None] * np.array([1.0, 0, 0])
    pairs = np.concatenate([np.broadcast_to(first, (len(shift), *first.shape)), second + shift], 1)
    nearest = [np.linalg.norm(p[: len(first), None] - p[None, len(first) :], axis=2).min()
               for p in pairs[::2]]  # fmt: skip
    return pairs[np.repeat(np.array(nearest) > CLOSEST, 2)]


def questions(test: Array, cutoff: float) -> Questions:
    """Return what is asked of a network with a cutoff, from test frames (T, n, 3), float64."""
    Q = orthogonal_matrices(NUM_MATRICES)
    frames = test[:NUM_TURNED]
    turned = np.einsum("tna,mab->tmnb", frames, Q)
    turned = np.concatenate([frames[:, None], turned], axis=1)
    return Questions(test.astype(np.float32), turned, Q, crossings(frames[0], cutoff))


def rotation_error(E: Array, F: Array, Q: Array, E_unit: float, F_unit: float) -> tuple[float, ...]:
    """Return the largest |E(R Q) − E(R)| and |F(R Q) − F(R) Q|, in the units that are given.

    Args:
        E: energies, (T', 1 + M), the first those of the frames as they are.
        F: forces, (T', 1 + M, n, 3).
        Q: matrices, (M, 3, 3).
        E_unit: what the energies' deviation is compared with: their spread.
        F_unit: the same for forces: their root mean square.
    """
    energy = np.abs(E[:, 1:] - E[:, :1]).max()
    forces = np.abs(F[:, 1:] - np.einsum("tna,mab->tmnb", F[:, 0], Q)).max()
    return float(energy / E_unit), float(forces / F_unit)


def jumps(E: Array, F: Array, near: Array) -> Array:
    """Return what the forces do not explain of the energy's change over each crossing, (C,).

    E(s + h) − E(s − h) + ½ (F(s + h) + F(s − h)) · Δx, as `molnets.graphs.energy_jumps` has it.
    """
    work = 0.5 * ((F[1::2] + F[::2]) * (near[1::2] - near[::2])).sum(axis=(1, 2))
    return E[1::2] - E[::2] + work


def errors(E: Array, F: Array, E_true: Array, F_true: Array) -> Errors:
    """Return the errors of energies, (T,), and forces, (T, n, 3), as the trainer counts them."""
    energies, forces = torch.from_numpy(E - E_true), torch.from_numpy(F - F_true)
    return errors_of(energies.double(), forces.double())


def measure(
    asked: Questions, answers: dict[str, Array], E_true: Array, F_true: Array
) -> dict[str, Any]:
    """Return what a network's answers say of it: errors, rotation, jumps.

    Args:
        asked: the questions.
        answers: E_test, F_test, E_turned, F_turned, E_near, F_near.
        E_true: energies of the test frames, (T,).
        F_true: their forces, (T, n, 3).
    """
    found = errors(answers["E_test"], answers["F_test"], E_true, F_true)
    shape = asked.turned.shape
    turned = rotation_error(
        answers["E_turned"].reshape(shape[:2]), answers["F_turned"].reshape(shape),
        asked.matrices, E_true.std(), float(np.sqrt((F_true**2).mean())),
    )  # fmt: skip
    jump = np.abs(jumps(answers["E_near"], answers["F_near"], asked.near))
    return {
        "force_mae": found.force_mae, "energy_mae": found.energy_mae,
        "rotation_energy": turned[0], "rotation_forces": turned[1],
        "jump": float(jump.max()), "crossings": len(jump),
    }  # fmt: skip


def answers_of(calculator: Calculator, z: Numbers, asked: Questions) -> dict[str, Array]:
    """Return a calculator's answers; z (n,) is repeated where there are two molecules."""
    answers = {}
    for key, R in asked.positions().items():
        copies = R.shape[1] // len(z)
        answers[f"E_{key}"], answers[f"F_{key}"] = calculator(np.tile(z, copies), R)
    return answers
