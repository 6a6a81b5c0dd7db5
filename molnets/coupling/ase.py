"""An ASE calculator for any network: optimisers and dynamics of ASE run on it.

Axes:   N atoms; an `Atoms` object is one sample.
Units:  eV and Å, which ASE takes for granted; a model whose card names others is refused. Stress is
        energy / length**3, in ASE's order xx, yy, zz, yz, xz, xy and sign: positive under tension,
        where the energy rises as the cell grows.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.data import chemical_symbols
from ase.stress import full_3x3_to_voigt_6_stress
from torch import Tensor, nn

from molnets import checkpoint
from molnets.checks import expect, expect_elements
from molnets.edges import Graph
from molnets.potential import as_potential
from molnets.tables import tabulated

FAR = 8  # cells from most of the atoms, from where on others are brought near
ENERGY_UNITS = ("eV", checkpoint.UNKNOWN)
LENGTH_UNITS = ("Å", "A", "Ang", "Angstrom", "angstrom", checkpoint.UNKNOWN)


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
    """

    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]  # noqa: RUF012

    def __init__(
        self, model_or_checkpoint: nn.Module | str | os.PathLike, skin: float = 0.3
    ) -> None:
        super().__init__()
        given = model_or_checkpoint
        is_model = isinstance(given, nn.Module)
        potential = as_potential(copy.deepcopy(given)) if is_model else checkpoint.load(given)
        self._known = _elements_in(potential.card)
        self.model = tabulated(potential)
        self.model.graph = self.graph = Graph(potential.cutoff, skin)
        self.model.eval().requires_grad_(False)  # no time for the gradients of the weights
        self._weight = next(self.model.parameters())  # the model's dtype and device are its own

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
        results = {"energy": energy.item(), "free_energy": energy.item(), "forces": _array(forces)}
        if "energies" in properties:
            with torch.no_grad():
                results["energies"] = _array(self.model.atomic_energies(*system)).ravel()
        if has_volume:
            stress = _array(virial[0]) / atoms.get_volume()
            results["stress"] = full_3x3_to_voigt_6_stress((stress + stress.T) / 2)
        self.results = results

    def _system_of(self, atoms: Atoms) -> tuple[Tensor | None, ...]:
        """Return z, pos, batch, cells and pbc as the model takes them."""
        if self._known is not None and not self._known[atoms.numbers].all():
            expect_elements(self.model.card, atoms.numbers.tolist(), "atoms")
        like = {"dtype": self._weight.dtype, "device": self._weight.device}
        z = torch.from_numpy(atoms.numbers).to(self._weight.device).view(-1, 1)
        batch = torch.zeros(len(atoms), dtype=torch.int64, device=self._weight.device)
        positions = _brought_near(atoms)
        middle = positions.sum(axis=0) / max(1, len(atoms))
        middle = middle if np.isfinite(middle).all() else 0.0  # an error that names the atom
        pos = torch.tensor(positions - middle, **like)  # float32 has few digits far away
        if not atoms.pbc.any():
            return z, pos, batch, None, None
        cells = torch.tensor(atoms.cell.array, **like).unsqueeze(0)
        return z, pos, batch, cells, torch.from_numpy(atoms.pbc)


def _brought_near(atoms: Atoms) -> np.ndarray:
    """Return positions, (N, 3), those of atoms many cells from the others moved by whole cells.

    Those near by stay, so that no atom that goes from cell to cell makes the list of edges anew.
    """
    positions, cell = atoms.positions, atoms.cell.complete().array
    known = np.isfinite(positions).all() and np.isfinite(cell).all()
    if not (len(positions) and atoms.pbc.any() and known and np.linalg.det(cell)):
        return positions  # an error that names the atom or the cell
    most = np.sort(positions, axis=0)[len(positions) // 2]  # where most of them are
    places = np.linalg.solve(cell.T, (positions - most).T).T  # in units of the cell's vectors
    cells = np.round(places) * (np.abs(places) > FAR) * atoms.pbc
    return positions - cells @ cell if cells.any() else positions


def _array(x: Tensor) -> np.ndarray:
    return x.cpu().double().numpy()


def _elements_in(card: checkpoint.Card | None) -> np.ndarray | None:
    """Return whether each element was seen in training, (119,); None if that is not known."""
    if card is None:
        return None
    units = card.energy_unit, card.length_unit
    ok = units[0] in ENERGY_UNITS and units[1] in LENGTH_UNITS
    expect(ok, "model_or_checkpoint", "a model in eV and Å", "one in {} and {}".format(*units))
    if not card.elements:
        return None
    known = np.zeros(len(chemical_symbols), dtype=bool)
    known[card.elements] = True
    return known
