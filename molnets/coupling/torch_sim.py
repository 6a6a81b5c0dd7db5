"""A model as one of torch-sim's: many systems in one call, by its integrators and optimisers.

    torch_sim.static(system=list_of_atoms, model=TorchSimModel("best.pt"))

Axes:   N atoms of all systems, B systems.
Units:  eV, Å, eV/Å³, torch-sim's own. Stress is ∂E/∂ε / V, positive under tension.
Cells:  torch-sim keeps lattice vectors in columns, `state.cell`; the model takes them in rows.

Version 0.3 of torch-sim puts atoms back into their cells at every step. Here each goes on where it
was, so that the neighbour list is not made anew whenever one of them crosses a face. It also has
one periodicity for all: what ASE calls periodic along two vectors it hands over as a molecule.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch_sim.models.interface import ModelInterface
from torch_sim.state import SimState

from molnets.checks import as_pbc, expect
from molnets.coupling.driven import FAR, DrivenModel, expect_finite, in_float64


class TorchSimModel(ModelInterface):
    """Energies, forces and stresses of a model for the systems of a state.

    E_b;  F_i = −∂E/∂r_i;  σ_b = (1/V_b) ∂E_b/∂ε at ε = 0, where r → r (1 + ε), C → C (1 + ε)

    The model is copied: the caller's stays as it is. Its dtype and device are those of the weights,
    and states have to come with the same ones.

    Args:
        model_or_checkpoint: a `Potential`, a network, or the path of a checkpoint.
        compute_stress: whether stresses are computed, of systems that have a volume.
        skin: how much further than the cutoff the neighbour list reaches, in Å.

    Raises:
        TypeError: if the model is neither a potential nor a network.
        ValueError: if the model's card names units that are not eV and Å, or the skin is negative.
    """

    def __init__(
        self,
        model_or_checkpoint: nn.Module | str | os.PathLike,
        *,
        compute_stress: bool = True,
        skin: float = 0.3,
    ) -> None:
        super().__init__()
        self._driven = DrivenModel(model_or_checkpoint, skin)
        self.potential, self.graph = self._driven.model, self._driven.graph
        self._compute_stress, self._compute_forces = bool(compute_stress), True
        self._memory_scales_with = "n_atoms_x_density"
        self._last: _Placed | None = None

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self._driven.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self._driven.dtype

    @property
    def compute_stress(self) -> bool:
        """Whether stresses are computed."""
        return self._compute_stress

    @compute_stress.setter
    def compute_stress(self, compute_stress: bool) -> None:
        self._compute_stress = bool(compute_stress)

    def forward(self, state: SimState, **_: object) -> dict[str, Tensor]:
        """Return energy (B,), float64, forces (N, 3) and, where it is defined, stress (B, 3, 3).

        Args:
            state: the systems, of which nothing is changed.

        Raises:
            FloatingPointError: if one of the results is not finite.
            TypeError, ValueError: as the model and its graph; for a state of another dtype or
                device, or for elements that the model has never seen.
        """
        expect(isinstance(state, SimState), "state", "a SimState", type(state).__name__, TypeError)
        for name, ours in (("dtype", self.dtype), ("device", self.device)):
            theirs = getattr(state, name)
            expect(theirs == ours, "state", f"{name} {ours} as the model", theirs, TypeError)
        self._driven.expect_elements(state.atomic_numbers.cpu().numpy(), "state")
        z = state.atomic_numbers.to(torch.int64).view(-1, 1)
        placed, cells = self._placed(state)
        system = z, placed.pos, placed.batch, cells, None if cells is None else placed.pbc
        energy, forces, virial = self.potential.energy_forces_virial(*system)
        results = Results(energy=energy.flatten(), forces=forces)
        volumes = None if cells is None else torch.linalg.det(cells.double()).abs()  # (B,)
        if self.compute_stress and volumes is not None and volumes.all():
            stress = (virial + virial.mT).double() / (2 * volumes.view(-1, 1, 1))
            results["stress"] = stress.to(forces.dtype)
        expect_finite(**{name: in_float64(x) for name, x in results.items()})
        self._last = placed  # an error leaves nothing behind
        return results

    def _placed(self, state: SimState) -> tuple[_Placed, Tensor | None]:
        """Return where the atoms are, and cells in rows, (B, 3, 3), or None for molecules."""
        pbc = as_pbc(state.pbc, len(state.cell))
        placed = _Placed(state.positions.detach(), state.system_idx.clone(), pbc)
        if not pbc.any():
            return placed, None
        cells = state.row_vector_cell.detach().contiguous()
        if self._last is not None and self._last.is_of(placed) and cells.isfinite().all():
            placed = placed._replace(pos=_going_on(placed, self._last.pos, cells))
        return placed, cells


class Results(dict[str, Tensor]):
    """What a model says of a state; what is missing is said by name."""

    def __missing__(self, name: str) -> Tensor:
        """Say why there is no stress."""
        why = (
            "expected systems with a volume, and compute_stress" if name == "stress" else "unknown"
        )
        raise KeyError(f"{name}: {why}, got results {sorted(self)}")


class _Placed(NamedTuple):
    """Where the atoms of which systems are."""

    pos: Tensor
    batch: Tensor
    pbc: Tensor

    def is_of(self, other: _Placed) -> bool:
        """Return whether these can be the same atoms."""
        alike = (self.pos.dtype, self.pos.device) == (other.pos.dtype, other.pos.device)
        return alike and torch.equal(self.batch, other.batch) and torch.equal(self.pbc, other.pbc)


def _going_on(new: _Placed, last: Tensor, cells: Tensor) -> Tensor:
    """Return the images of the atoms, (N, 3), that are nearest to where these were last.

    r − round((r − r_last) C⁻¹) C, along periodic vectors; as they are given, if one is far away.
    """
    periodic = new.pbc.unsqueeze(2).to(cells) * cells  # (B, 3, 3)
    dual = torch.linalg.pinv(periodic)
    each = dual.index_select(0, new.batch), periodic.index_select(0, new.batch)  # (N, 3, 3)
    crossed = torch.einsum("nc,ncs->ns", new.pos - last, each[0]).round()
    if not crossed.any() or crossed.abs().max() > FAR:
        return new.pos
    return new.pos - torch.einsum("ns,nsc->nc", crossed, each[1])
