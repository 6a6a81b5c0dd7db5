"""Errors of a model on frames, in the units of the data: over all, by element, and the loss.

Loss [1]:  ρ_E mean_b (E_b − Ê_b)² + ρ_F mean_b (1/n_b) Σ_i ‖F_i − F̂_i‖², i over sample b's atoms.

[1] Schütt et al., NeurIPS 2017, arXiv:1706.08566, section 4.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from molnets.potential import Potential
from molnets.training.data import PATIENCE, Batch, Dataset


@dataclass(frozen=True)
class Errors:
    """Mean absolute and root mean square errors, in the units of the data."""

    energy_mae: float
    force_mae: float
    energy_rmse: float
    force_rmse: float


class Evaluation(NamedTuple):
    """Errors of a model on frames, its energies (T, 1) and its forces (N, 3), float64."""

    errors: Errors
    energies: Tensor
    forces: Tensor


def loss_of(
    energy: Tensor, forces: Tensor, target: Batch, rho_energy: float, rho_forces: float
) -> Tensor:
    """Return the loss of a batch: energies (B, 1) and forces (N, 3) against the batch's own."""
    n_atoms = target.batch.bincount()
    energy_loss = (energy - target.energies).square().mean()
    squares = (forces - target.forces).square().sum(dim=1)  # (N,)
    force_loss = (squares / n_atoms[target.batch]).sum() / len(n_atoms)
    return rho_energy * energy_loss + rho_forces * force_loss


def errors_of(energies: Tensor, forces: Tensor) -> Errors:
    """Return the errors of some residuals, energies (T, 1) and forces (N, 3)."""
    e, f = energies, forces
    means = e.abs().mean(), f.abs().mean(), e.square().mean().sqrt(), f.square().mean().sqrt()
    return Errors(*map(float, means))


def evaluate(
    potential: Potential, data: Dataset, frames: Tensor, batch_size: int = 100
) -> Evaluation:
    """Return the errors of a model on some frames, (T,), and what it says of them."""
    energies, forces = [], []
    dtype, device = dtype_and_device(potential)
    parts = frames.split(batch_size)
    for part in tqdm(parts, desc="Testing", leave=False, delay=PATIENCE, disable=None):
        target, edges = data.take(part, dtype), data.edges(potential.cutoff).take(part, dtype)
        z, _, batch, *_ = (x.to(device) for x in target)
        on_device = type(edges)(*(x.to(device) for x in edges))
        energy, force = potential.energy_and_forces_of(z, batch, on_device)
        energies.append(energy.cpu().double())
        forces.append(force.cpu().double())
    energy, force, target = torch.cat(energies), torch.cat(forces), data.take(frames, torch.float64)
    errors = errors_of(energy - target.energies, force - target.forces)
    return Evaluation(errors, energy, force)


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
