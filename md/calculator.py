"""An ASE calculator for any energy model: optimisers and dynamics of ASE run on it.

Axes:   N atoms; an `Atoms` object is one sample.
Units:  those of the model's data; ASE takes eV and Å for granted. Stress is energy / length**3, in
        ASE's order xx, yy, zz, yz, xz, xy and sign: positive under tension, where the energy rises
        as the cell grows.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.stress import full_3x3_to_voigt_6_stress
from torch import nn

from md.neighbors import PeriodicGraph
from md.potential import Standardized
from md.spline import SplineSchNet, tables_apply, tabulated


class ModelCalculator(Calculator):
    """Energy, forces and stress of a model, for molecules, crystals of any cell, and slabs.

    F_i = −∂E/∂r_i;  σ = (1/V) ∂E/∂ε at ε = 0, where r → r (1 + ε), C → C (1 + ε), ε symmetric

    The model is copied: the caller's stays as it is, and what happens to it later is not seen here.
    In the copy, a `PeriodicGraph` takes the place of the model's `interaction_graph`, and tables
    that of the filters of a `SchNet`. One backward pass gives all properties, so all are computed
    whichever is asked for.

    Args:
        model_or_checkpoint: any `model(z, pos, batch) -> (B, 1)` that is, or holds, one module with
            a `cutoff` and an `interaction_graph`; or the path of a checkpoint of `md.training`.
        skin: how much further than the cutoff the neighbour list reaches, so that it can be kept.

    Raises:
        ValueError: if not exactly one module of the model has an `interaction_graph`.
    """

    implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012

    def __init__(
        self, model_or_checkpoint: nn.Module | str | os.PathLike, skin: float = 0.3
    ) -> None:
        super().__init__()
        given = model_or_checkpoint
        given = copy.deepcopy(given) if isinstance(given, nn.Module) else _load(given)
        self.model = tabulated(given)
        self.model.eval().requires_grad_(False)  # no time for the gradients of the weights
        inner = [m for m in self.model.modules() if hasattr(m, "interaction_graph")]
        if len(inner) != 1:
            raise ValueError(
                "model_or_checkpoint: expected one module with an interaction_graph, "
                f"got {len(inner)} in {type(self.model).__name__}"
            )
        self.graph = inner[0].interaction_graph = PeriodicGraph(inner[0].cutoff, skin)
        self._has_tables = isinstance(inner[0], SplineSchNet) and (
            self.model is inner[0] or isinstance(self.model, Standardized)
        )
        self._weight = next(inner[0].parameters())  # the model's dtype and device are its own

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Fill `results`; ASE calls this when something has changed since the last time.

        Raises:
            PropertyNotImplementedError: if the stress is asked for where no volume defines it.
            TypeError, ValueError: as the model and its graph.
        """
        super().calculate(atoms, properties, system_changes)
        self.results = {}  # an error leaves nothing of the last system
        atoms = self.atoms
        has_volume = atoms.pbc.any() and atoms.cell.rank == 3
        if "stress" in properties and not has_volume:
            raise PropertyNotImplementedError(
                "stress: expected a periodic system with three independent cell vectors, "
                f"got pbc {atoms.pbc.tolist()} and cell {atoms.cell.tolist()}"
            )
        energy, forces, virial = self._energy_forces_virial(atoms)
        self.results = {"energy": energy, "free_energy": energy, "forces": forces}
        if has_volume:
            self.results["stress"] = full_3x3_to_voigt_6_stress(virial / atoms.get_volume())

    def _energy_forces_virial(self, atoms: Atoms) -> tuple[float, np.ndarray, np.ndarray]:
        """Return E, −∂E/∂r, (N, 3), and ∂E/∂ε, (3, 3)."""
        to_model = {"dtype": self._weight.dtype, "device": self._weight.device}
        z = torch.from_numpy(atoms.numbers).to(self._weight.device).view(-1, 1)
        batch = torch.zeros(len(atoms), dtype=torch.int64, device=self._weight.device)
        pos = torch.tensor(atoms.positions, **to_model).requires_grad_()
        strain = torch.zeros(3, 3, **to_model).requires_grad_()
        stretch = torch.eye(3, **to_model) + (strain + strain.T) / 2  # 1 + ε
        cell = torch.tensor(atoms.cell.array, **to_model) @ stretch
        self.graph.set_cells(cell.unsqueeze(0), torch.from_numpy(atoms.pbc))
        if self._has_tables and tables_apply(pos.device, pos.dtype):
            energy, forces, virial = self.model.energy_forces_virial(z, pos.detach(), batch)
            return energy.item(), forces.double().numpy(), virial.double().numpy()
        with torch.enable_grad():
            energy = self.model(z, pos @ stretch, batch)  # (1, 1)
            gradient, virial = torch.autograd.grad(energy.sum(), (pos, strain))
        return energy.item(), -gradient.cpu().double().numpy(), virial.cpu().double().numpy()


def _load(path: str | os.PathLike) -> nn.Module:
    from md.training import load_model  # only here: a calculator needs no training code

    return load_model(path)
