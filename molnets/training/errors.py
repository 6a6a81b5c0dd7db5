"""Errors of a model on frames, in the units of the data: over all, by element, and the loss.

Loss, of B samples with factors a, c and s:

    1/B Σ_b [a_b (E_b − Ê_b)² + c_b Σ_i ‖F_i − F̂_i‖² + s_b ‖Ξ_b − Ξ̂_b‖²],     Ξ = ∂E/∂ε

a_b = ρ_E w_b (n̄ / n_b)²;   c_b = ρ_F w_b / n_b;   s_b = ρ_Ξ w_b / n_b²

with n_b atoms, n̄ in the mean of the training, and a weight w_b: where all frames have equally many
atoms, this is the loss of [1]; else energies count by atom.

[1] Schütt et al., NeurIPS 2017, arXiv:1706.08566, section 4.2.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from molnets.potential import Potential
from molnets.training.data import PATIENCE, Batch, Dataset


@dataclass(frozen=True)
class Errors:
    """Mean absolute and root mean square errors, in the units of the data; NaN if not known."""

    energy_mae: float
    force_mae: float
    energy_rmse: float
    force_rmse: float
    energy_per_atom_mae: float = math.nan
    virial_per_atom_mae: float = math.nan

    def known(self) -> dict[str, float]:
        """Return those that are known, by name."""
        return {name: x for name, x in asdict(self).items() if not math.isnan(x)}


class Evaluation(NamedTuple):
    """Errors of a model on frames, and what it says of them, float64."""

    errors: Errors
    energies: Tensor  # (T, 1)
    forces: Tensor  # (N, 3)
    virials: Tensor | None  # (T, 3, 3)


def factors_of(
    data: Dataset, rho_energy: float, rho_forces: float, rho_virial: float,
    train: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return what the errors of each frame count in the loss, (T, 3): a, c and s.

    Args:
        data: the frames.
        rho_energy: ρ_E.
        rho_forces: ρ_F.
        rho_virial: ρ_Ξ.
        train: the frames whose mean size is n̄, (S,); all that are no isolated atoms if not given.
    """
    n = data.n_atoms.double()
    mean = n[~data.alone if train is None else train].mean()
    each = rho_energy * (mean / n) ** 2, rho_forces / n, rho_virial / n**2
    return torch.stack(each, dim=1) * data.weights.unsqueeze(1) * data.labels


def loss_of(results: tuple[Tensor, ...], target: Batch, factors: Tensor) -> Tensor:
    """Return the loss of a batch.

    Args:
        results: energies (B, 1) and forces (N, 3); virials (B, 3, 3) where they count.
        target: the batch.
        factors: those of its samples, (B, 3).
    """
    energy, forces, *virials = results
    of_energy, of_forces, of_virial = factors.to(forces.dtype).T
    squares = (forces - target.forces).square().sum(dim=1)  # (N,)
    loss = (of_energy * (energy - target.energies).flatten().square()).sum()
    loss = loss + (of_forces[target.batch] * squares).sum()
    if virials and virials[0] is not None and target.virials is not None:
        loss = loss + (of_virial * (virials[0] - target.virials).square().sum(dim=(1, 2))).sum()
    return loss / len(factors)


def errors_of(energies: Tensor, forces: Tensor) -> Errors:
    """Return the errors of some residuals, energies (T, 1) and forces (N, 3)."""
    e, f = energies, forces
    means = e.abs().mean(), f.abs().mean(), e.square().mean().sqrt(), f.square().mean().sqrt()
    return Errors(*map(float, means))


def evaluate(
    potential: Potential, data: Dataset, frames: Tensor, batch_size: int = 100,
    forces_of: nn.Module | None = None,
) -> Evaluation:  # fmt: skip
    """Return the errors of a model on some frames, (T,), and what it says of them.

    Args:
        potential: the model.
        data: the frames.
        frames: which.
        batch_size: how many at a time.
        forces_of: what computes energies and forces in place of the potential itself.
    """
    dtype, device = dtype_and_device(potential)
    found, virial = [], data.virials is not None and bool(data.labels[frames, 2].any())
    parts = frames.split(batch_size)
    for part in tqdm(parts, desc="Testing", leave=False, delay=PATIENCE, disable=None):
        z, _, batch, *_ = data.take(part, dtype, device)
        edges = data.edges(potential.cutoff).take(part, dtype, device)
        with torch.no_grad():
            compute = potential.energy_and_forces_of if forces_of is None else forces_of
            results = compute(z, batch, edges, virial=virial)
        found.append([x.cpu().double() for x in results])
    energies, forces, virials = *(torch.cat(x) for x in zip(*found, strict=True)), *[None][virial:]
    target, n = data.take(frames, torch.float64), data.n_atoms[frames]
    with_energy, with_forces, with_virial = data.labels[frames].T
    off = (energies - target.energies)[with_energy]
    errors = errors_of(off, (forces - target.forces)[with_forces.repeat_interleave(n)])
    more = {"energy_per_atom_mae": float((off.flatten() / n[with_energy]).abs().mean())}
    if virials is not None:
        off = (virials - target.virials) / n.view(-1, 1, 1)
        more["virial_per_atom_mae"] = float(off[with_virial].abs().mean())
    return Evaluation(replace(errors, **more), energies, forces, virials)


def force_errors_by_element(
    z: Tensor, forces: Tensor, predicted: Tensor
) -> dict[int, tuple[int, float, float]]:
    """Return how many atoms of each element there are, and the MAE and RMSE of their forces.

    Args:
        z: atomic numbers, (N, 1).
        forces: forces of the data, (N, 3).
        predicted: those of the model, (N, 3).
    """
    result, residual = {}, predicted - forces
    for element in z.unique().tolist():
        own = residual[z.flatten() == element]
        result[element] = len(own), float(own.abs().mean()), float(own.square().mean().sqrt())
    return result


def dtype_and_device(model: nn.Module) -> tuple[torch.dtype, torch.device]:
    """Return the dtype and the device of a model's weights."""
    parameter = next(model.parameters())
    return parameter.dtype, parameter.device
