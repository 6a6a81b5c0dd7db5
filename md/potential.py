"""Energies and forces of any model, in the units of the data.

Axes:   N atoms in the batch, B samples.
Units:  those of the data that the model is fitted to, e.g. eV and Å; forces are energy / length.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from schnet_helpers import get_batch_dimensions, spread_atomic_numbers

NUM_ELEMENTS = 119  # rows of the table of element energies: row Z, and row 0 for nothing


def energy_and_forces(
    model: nn.Module, z: Tensor, pos: Tensor, batch: Tensor, *, create_graph: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the energies, (B, 1), and the forces, (N, 3).

    F_i = −∂(Σ_b E_b) / ∂r_i: samples do not see each other, so one backward pass serves all. A
    model with a method of this name has a faster way; it is taken unless a graph is wanted.

    Args:
        model: any `model(z, pos, batch) -> (B, 1)`.
        z: atomic numbers, (B, 1) or (N, 1).
        pos: positions, (N, 3).
        batch: the sample that each atom belongs to, (N,).
        create_graph: keep the graph of both, so that a loss can be made of them.
    """
    if hasattr(model, "energy_and_forces") and not create_graph:
        return model.energy_and_forces(z, pos, batch)
    return by_autograd(model, z, pos, batch, create_graph=create_graph)


def by_autograd(
    model: nn.Module, z: Tensor, pos: Tensor, batch: Tensor, *, create_graph: bool = False
) -> tuple[Tensor, Tensor]:
    """Return what `energy_and_forces` does, always by a backward pass of torch."""
    pos = pos.detach().requires_grad_()
    with torch.enable_grad():
        energy = model(z, pos, batch)
        (gradient,) = torch.autograd.grad(energy.sum(), pos, create_graph=create_graph)
    return (energy if create_graph else energy.detach()), -gradient


class Standardized(nn.Module):
    """A model in the units of the data: the network itself learns numbers of order 1.

    E = s · model(z, pos, batch) + Σ_i e(Z_i)

    The scale s and the element energies e are float64 buffers, whatever the model's dtype: they
    travel with the state dict, and a large offset costs no digits of the energy, which is float64.

    Args:
        model: any `model(z, pos, batch) -> (B, 1)`.
        scale: s, energy of the data per unit of the network's output.
        element_energies: e, the energy of an atom of each element, (119,), row Z for element Z.

    Raises:
        ValueError: if `scale` is not positive and finite, or `element_energies` not finite (119,).
    """

    def __init__(
        self, model: nn.Module, scale: float = 1.0, element_energies: Tensor | None = None
    ) -> None:
        super().__init__()
        if element_energies is None:
            element_energies = torch.zeros(NUM_ELEMENTS)
        if element_energies.shape != (NUM_ELEMENTS,) or not element_energies.isfinite().all():
            raise ValueError(
                f"element_energies: expected finite energies of shape ({NUM_ELEMENTS},), "
                f"got shape {tuple(element_energies.shape)}: {element_energies}"
            )
        if not 0 < scale < float("inf"):
            raise ValueError(f"scale: expected a positive finite number, got {scale}")
        self.model = model
        self.register_buffer("scale", torch.tensor(float(scale), dtype=torch.float64))
        self.register_buffer("element_energies", element_energies.detach().double().clone())

    @property
    def cutoff(self) -> float:
        """The cutoff of the model inside."""
        return self.model.cutoff

    def forward(self, z: Tensor, pos: Tensor, batch: Tensor) -> Tensor:
        """Return the energy of each sample, (B, 1), float64; the arguments are the model's."""
        energy = self.model(z, pos, batch)  # (B, 1)
        return self.in_units(energy, spread_atomic_numbers(z, batch, len(energy)), batch)

    def energy_and_forces(self, z: Tensor, pos: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Return energies (B, 1), float64, and forces (N, 3), as fast as the model inside can."""
        energy, forces = energy_and_forces(self.model, z, pos, batch)
        z = spread_atomic_numbers(z, batch, len(energy))
        return self.in_units(energy, z, batch), self.scale.to(forces.dtype) * forces

    def energy_forces_virial(
        self, z: Tensor, pos: Tensor, batch: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return also the virial, (3, 3), of a model inside that has a method of this name."""
        energy, forces, virial = self.model.energy_forces_virial(z, pos, batch)
        z = spread_atomic_numbers(z, batch, len(energy))
        scale = self.scale.to(forces.dtype)
        return self.in_units(energy, z, batch), scale * forces, scale * virial

    def in_units(self, energy: Tensor, z: Tensor, batch: Tensor) -> Tensor:
        """Return the energies, (B, 1), for the network's own ones, (B, 1); z is (N, 1)."""
        offset = self.scale.new_zeros(len(energy), 1)
        offset = offset.index_add(0, batch, self.element_energies[z.long()].view(-1, 1))
        return self.scale * energy.double() + offset

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        exact = self.scale, self.element_energies
        super()._apply(fn, recurse)
        device = self.scale.device  # `.float()` and `.half()` move the buffers but must not round
        self.scale, self.element_energies = (buffer.to(device) for buffer in exact)
        return self


def fit_element_energies(z: Tensor, energies: Tensor, batch: Tensor) -> Tensor:
    """Return the energy of an atom of each element that fits the total energies best, (119,).

    min_e Σ_b (E_b − Σ_i e(Z_i))², the solution of least norm: with one composition only the sum
    over the molecule is determined. Elements that do not occur get 0. All in float64.

    Args:
        z: atomic numbers, (B, 1) or (N, 1).
        energies: energies of the samples, (B, 1).
        batch: the sample that each atom belongs to, (N,).
    """
    batch_size, _ = get_batch_dimensions(batch)
    elements = spread_atomic_numbers(z, batch, batch_size).long().flatten()
    counts = torch.zeros(batch_size, NUM_ELEMENTS, dtype=torch.float64)
    counts.index_put_((batch, elements), torch.ones(len(batch)).double(), accumulate=True)
    solution = torch.linalg.lstsq(counts, energies.double().view(-1, 1), driver="gelsd").solution
    return solution.flatten()
