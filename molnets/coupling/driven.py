"""A model as other programs drive it: made ready once, asked with arrays in eV and Å.

Axes:   N atoms of one sample.
Units:  eV and Å, which every coupling speaks on this side; a model whose card names others is
        refused, and of one whose card says that they are unknown, a warning says what is assumed.
        Programs with units of their own convert before and after.
Cells:  rows are lattice vectors.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from ase.cell import Cell
from ase.data import chemical_symbols
from numpy.typing import NDArray
from torch import Tensor, nn

from molnets import checkpoint
from molnets.checks import expect, expect_elements
from molnets.edges import Graph
from molnets.potential import as_potential
from molnets.tables import tabulated

FAR = 8  # cells from most of the atoms, from where on others are brought near
ENERGY_UNITS = ("eV", checkpoint.UNKNOWN)
LENGTH_UNITS = ("Å", "A", "Ang", "Angstrom", "angstrom", checkpoint.UNKNOWN)


class UnknownUnits(UserWarning):
    """A model whose card says that nobody named its units runs in eV and Å."""


class DrivenModel:
    """A copy of a model with a list that has a skin, and tables where there are filters.

    The caller's model stays as it is, and what happens to it later is not seen here.

    Args:
        model_or_checkpoint: a `Potential`, a network, or the path of a checkpoint.
        skin: how much further than the cutoff the neighbour list reaches, in Å.

    Attributes:
        model: the potential, without gradients of its weights.
        graph: its graph.

    Raises:
        TypeError: if the model is neither a potential nor a network.
        ValueError: if the model's card names units that are not eV and Å, or the skin is negative.

    Warns:
        UnknownUnits: if there is a card, and it says that the units are unknown.
    """

    def __init__(self, model_or_checkpoint: nn.Module | str | os.PathLike, skin: float) -> None:
        given = model_or_checkpoint
        is_model = isinstance(given, nn.Module)
        potential = as_potential(copy.deepcopy(given)) if is_model else checkpoint.load(given)
        if text := _assumed_for(potential.card):
            warnings.warn(text, UnknownUnits, stacklevel=3)  # where the engine's part is made
        self._known = _elements_in(potential.card)
        self.model = tabulated(potential)
        self.model.graph = self.graph = Graph(potential.cutoff, skin)
        self.model.eval().requires_grad_(False)  # no time for the gradients of the weights
        self._weight = next(self.model.parameters())  # the model's dtype and device are its own

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights, and so of positions and forces."""
        return self._weight.dtype

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self._weight.device

    def expect_elements(self, numbers: NDArray[np.integer], name: str) -> None:
        """Expect atomic numbers, (N,), that the model was trained on, as far as that is known."""
        if self._known is None:
            return
        inside = (numbers >= 0) & (numbers < len(self._known))
        if not (inside.all() and self._known[numbers].all()):
            expect_elements(self.model.card, numbers.tolist(), name)

    def system(
        self, numbers: NDArray[np.integer], positions: NDArray[np.float64],
        cell: NDArray[np.float64] | None = None, pbc: Sequence[bool] | bool = True,
    ) -> tuple[Tensor | None, ...]:  # fmt: skip
        """Return z, pos, batch, cells and pbc as the model takes them.

        Args:
            numbers: atomic numbers, (N,).
            positions: in Å, (N, 3), anywhere.
            cell: lattice vectors in rows, in Å, (3, 3); None for an isolated molecule.
            pbc: whether the system is periodic along each vector, (3,) or one for all.
        """
        pbc = np.zeros(3, bool) if cell is None else np.array(np.broadcast_to(pbc, 3), bool)
        z = torch.from_numpy(numbers).to(self.device).view(-1, 1)
        batch = torch.zeros(len(numbers), dtype=torch.int64, device=self.device)
        if pbc.any():
            positions = _brought_near(positions, cell, pbc)
        middle = positions.sum(axis=0) / max(1, len(positions))
        middle = middle if np.isfinite(middle).all() else 0.0  # an error that names the atom
        like = {"dtype": self.dtype, "device": self.device}
        pos = torch.tensor(positions - middle, **like)  # float32 has few digits far away
        if not pbc.any():
            return z, pos, batch, None, None
        return z, pos, batch, torch.tensor(cell, **like).unsqueeze(0), torch.from_numpy(pbc)

    def energy_and_forces(self, *system: object) -> tuple[float, NDArray[np.float64]]:
        """Return the energy in eV and finite forces in eV/Å, (N, 3); arguments as `system`.

        Raises:
            FloatingPointError: if the energy or a force is not finite.
            TypeError, ValueError: as the model and its graph.
        """
        energy, forces = self.model.energy_and_forces(*self.system(*system))
        energy, forces = in_float64(energy).ravel(), in_float64(forces)
        expect_finite(energy=energy, forces=forces)
        return float(energy[0]), forces


def expect_finite(**results: NDArray[np.float64]) -> None:
    """Expect results that are numbers, any shape; not every engine looks at them itself.

    Raises:
        FloatingPointError: if one of them is not finite.
    """
    for name, values in results.items():
        finite = np.isfinite(values)
        if not finite.all():
            at = int(np.argwhere(~finite)[0, 0])
            got = f"{values[at].tolist()} at {at}"
            raise FloatingPointError(f"{name}: expected finite numbers, got {got}")


def in_float64(x: Tensor) -> NDArray[np.float64]:
    """Return a tensor as an array in float64."""
    return x.detach().cpu().double().numpy()


def _brought_near(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """Return positions, (N, 3), those of atoms many cells from the others moved by whole cells.

    Those near by stay, so that no atom that goes from cell to cell makes the list of edges anew.
    """
    if not (len(positions) and np.isfinite(positions).all() and np.isfinite(cell).all()):
        return positions  # an error that names the atom or the cell
    cell = Cell(np.asarray(cell)).complete().array
    if not np.linalg.det(cell):
        return positions
    most = np.sort(positions, axis=0)[len(positions) // 2]  # where most of them are
    places = np.linalg.solve(cell.T, (positions - most).T).T  # in units of the cell's vectors
    cells = np.round(places) * (np.abs(places) > FAR) * pbc
    return positions - cells @ cell if cells.any() else positions


def _assumed_for(card: checkpoint.Card | None) -> str:
    """Return which units are assumed of a model, "" if none are; expect no others than eV and Å."""
    if card is None:
        return ""
    units = card.energy_unit, card.length_unit
    ok = units[0] in ENERGY_UNITS and units[1] in LENGTH_UNITS
    expect(ok, "model_or_checkpoint", "a model in eV and Å", "one in {} and {}".format(*units))
    taken = zip(units, ("energies in eV", "lengths in Å"), strict=True)
    assumed = [text for unit, text in taken if unit == checkpoint.UNKNOWN]
    if not assumed:
        return ""
    return (f"the model's units are unknown: {' and '.join(assumed)} are assumed; "
            "training with --energy-unit and --length-unit says which they are")  # fmt: skip


def _elements_in(card: checkpoint.Card | None) -> np.ndarray | None:
    """Return whether each element was seen in training, (119,); None if that is not known."""
    if card is None or not card.elements:
        return None
    known = np.zeros(len(chemical_symbols), dtype=bool)
    known[card.elements] = True
    return known
