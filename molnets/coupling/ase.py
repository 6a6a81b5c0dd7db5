"""An ASE calculator for any network: optimisers and dynamics of ASE run on it.

Axes:   N atoms; an `Atoms` object is one sample.
Units:  eV and Å, which ASE takes for granted; a model whose card names others is refused, and of
        one whose card says that they are unknown, a warning says what is assumed. Stress is
        energy / length**3, in ASE's order xx, yy, zz, yz, xz, xy and sign: positive under tension,
        where the energy rises as the cell grows.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.stress import full_3x3_to_voigt_6_stress
from torch import Tensor, nn

from molnets.coupling.driven import DrivenModel, in_float64


class ModelCalculator(Calculator):
    """Energy, forces and stress of a model, for molecules, crystals of any cell, and slabs.

    F_i = −∂E/∂r_i;  σ = (1/V) ∂E/∂ε at ε = 0, where r → r (1 + ε), C → C (1 + ε), ε symmetric

    The model is copied: the caller's stays as it is, and what happens to it later is not seen here.
    The copy gets a list with a skin as its graph, and tables where there are filters. Energy,
    forces and stress come from one pass, so all are computed whichever is asked for; energies of
    atoms take one more.

    Args:
        model_or_checkpoint: a `Potential`, a network, or the path of a checkpoint.
        skin: how much further than the cutoff the neighbour list reaches, so that it can be kept.

    Raises:
        TypeError: if the model is neither a potential nor a network.
        ValueError: if the model's card names units that are not those of ASE.

    Warns:
        UnknownUnits: if the model's card says that its units are unknown; eV and Å are assumed.
    """

    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]  # noqa: RUF012

    def __init__(
        self, model_or_checkpoint: nn.Module | str | os.PathLike, skin: float = 0.3
    ) -> None:
        super().__init__()
        self._driven = DrivenModel(model_or_checkpoint, skin)
        self.model, self.graph = self._driven.model, self._driven.graph

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Fill `results`; ASE calls this when something has changed since the last time.

        Raises:
            PropertyNotImplementedError: if the stress is asked for where no volume defines it.
            TypeError, ValueError: as the model and its graph, or for an element that the model has
                never seen.
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
        system = self._system_of(atoms)
        energy, forces, virial = self.model.energy_forces_virial(*system)
        results = {"energy": energy.item(), "forces": in_float64(forces)}
        results["free_energy"] = results["energy"]
        if "energies" in properties:
            with torch.no_grad():
                results["energies"] = in_float64(self.model.atomic_energies(*system)).ravel()
        if has_volume:
            stress = in_float64(virial[0]) / atoms.get_volume()
            results["stress"] = full_3x3_to_voigt_6_stress((stress + stress.T) / 2)
        self.results = results

    def expect_elements(self, atoms: Atoms) -> None:
        """Expect elements that the model was trained on, as far as that is known."""
        self._driven.expect_elements(atoms.numbers, "atoms")

    def _system_of(self, atoms: Atoms) -> tuple[Tensor | None, ...]:
        """Return z, pos, batch, cells and pbc as the model takes them."""
        self.expect_elements(atoms)
        return self._driven.system(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
