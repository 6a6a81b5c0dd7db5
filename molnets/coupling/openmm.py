"""A model as a force of OpenMM: its integrators, barostats and constraints run on it.

    system.addForce(force("best.pt", topology))

Axes:   N particles that the model sees: all of a system, or some of them.
Units:  nm, kJ/mol and kJ/mol/nm, which OpenMM takes for granted; the model's own are eV and Å. The
        factors are those of ASE's constants.
Cells:  rows are box vectors, of any shape that OpenMM takes; periodic along all three, or none.

OpenMM calls Python at every step, by its `PythonForce`, and hands an error on as an
`OpenMMException` with the same text. Only the energy of the particles among themselves is computed:
terms of other force fields between them have to be left out by whoever builds the system.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import openmm
from ase import units
from numpy.typing import NDArray
from openmm.unit import nanometer
from torch import nn

from molnets.checks import expect
from molnets.coupling.driven import DrivenModel

if TYPE_CHECKING:
    from openmm.app import Topology

ANGSTROM_PER_NM = units.nm
KJ_PER_MOL = units.mol / units.kJ  # of one eV


def force(
    model_or_checkpoint: nn.Module | str | os.PathLike,
    topology_or_numbers: Topology | Sequence[int],
    particles: Sequence[int] | None = None,
    periodic: bool | None = None,
    skin: float = 0.3,
) -> openmm.PythonForce:
    """Return a force to be added to a `System`: E of the model in kJ/mol, F_i = −∂E/∂r_i.

    It can be saved with `XmlSerializer`: the file holds the weights, pickled, so that reading it
    runs what it says, and only files that can be trusted should be read. Several contexts can use
    it, in threads too, one after the other; each that moves other atoms is better off with a force
    of its own, and so with a neighbour list of its own.

    Args:
        model_or_checkpoint: a `Potential`, a network, or the path of a checkpoint.
        topology_or_numbers: the topology of the system, all of whose particles that the model sees
            have elements; or atomic numbers of those that the model sees, (N,).
        particles: the indices of these particles, (N,), in any order; all if not given. Virtual
            sites, which have no element, are left out by it. It needs a topology.
        periodic: whether they are periodic along all box vectors; with a topology, if it has some.
        skin: how much further than the cutoff the neighbour list reaches, in Å.

    Raises:
        TypeError: if the model is neither a potential nor a network.
        ValueError: if the card of the model names other units or not all of the elements; for
            particles without an element, twice the same, none, or others than the topology's; or
            if `periodic` is not known.
    """
    numbers, periodic = _seen(topology_or_numbers, particles, periodic)
    model = _Computation(DrivenModel(model_or_checkpoint, skin), numbers, periodic)
    made = openmm.PythonForce(model)
    made.setName("molnets")
    made.setUsesPeriodicBoundaryConditions(periodic)
    if particles is not None:
        made.setParticles([int(i) for i in particles])
    return made


class _Computation:
    """What OpenMM calls; a class of the module, so that it can be pickled."""

    def __init__(self, driven: DrivenModel, numbers: NDArray[np.int64], periodic: bool) -> None:
        driven.expect_elements(numbers, "topology_or_numbers")
        self.driven, self.numbers, self.periodic = driven, numbers, periodic
        self._alone = threading.Lock()  # OpenMM's steps of several threads may meet here

    def __call__(self, state: openmm.State) -> tuple[float, NDArray[np.float64]]:
        """Return the energy in kJ/mol and the forces in kJ/mol/nm, (N, 3)."""
        positions = _angstrom(state.getPositions(asNumpy=True))
        expected = f"{len(self.numbers)} particles as atomic numbers"
        expect(len(positions) == len(self.numbers), "particles", expected, len(positions))
        box = _angstrom(state.getPeriodicBoxVectors(asNumpy=True)) if self.periodic else None
        with self._alone:
            energy, forces = self.driven.energy_and_forces(self.numbers, positions, box)
        return energy * KJ_PER_MOL, forces * (KJ_PER_MOL * ANGSTROM_PER_NM)

    def __getstate__(self) -> dict[str, Any]:
        return {name: x for name, x in self.__dict__.items() if name != "_alone"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _alone=threading.Lock())


def _angstrom(quantity: Any) -> NDArray[np.float64]:
    return quantity.value_in_unit(nanometer) * ANGSTROM_PER_NM


def _seen(
    given: Topology | Sequence[int], particles: Sequence[int] | None, periodic: bool | None
) -> tuple[NDArray[np.int64], bool]:
    """Return the atomic numbers that the model sees, (N,), and whether they are periodic."""
    if callable(getattr(given, "atoms", None)):
        numbers = _numbers_of(given, particles)
        periodic = given.getPeriodicBoxVectors() is not None if periodic is None else periodic
    else:
        expected = "a topology with it, since OpenMM reads whatever is behind the last particle"
        expect(particles is None, "particles", expected, "atomic numbers")
        numbers = _whole("topology_or_numbers", "a topology, or atomic numbers, (N,)", given)
    ok = isinstance(periodic, bool)
    expect(ok, "periodic", "True or False, which atomic numbers do not say", periodic)
    return numbers, periodic


def _numbers_of(topology: Topology, particles: Sequence[int] | None) -> NDArray[np.int64]:
    """Return the atomic numbers of a topology's particles, or of some of them."""
    elements = [atom.element for atom in topology.atoms()]
    indices = range(len(elements)) if particles is None else particles
    expected = f"different indices from 0 to {len(elements) - 1}, (N,)"
    indices = _whole("particles", expected, indices).tolist()
    ok = len(set(indices)) == len(indices) and 0 <= min(indices) <= max(indices) < len(elements)
    expect(ok, "particles", expected, indices)
    without = [i for i in indices if elements[i] is None]
    expected = "an element for each particle that the model sees"
    expect(not without, "topology_or_numbers", expected, f"none for particles {without}")
    return np.array([elements[i].atomic_number for i in indices])


def _whole(name: str, expected: str, given: Sequence[int]) -> NDArray[np.int64]:
    """Return whole numbers, (N,), at least one."""
    array = np.asarray(given)
    ok = array.ndim == 1 and array.size > 0 and np.issubdtype(array.dtype, np.integer)
    got = f"{type(given).__name__} of {array.dtype} {array.shape}"
    expect(ok, name, expected, got)
    return array.astype(np.int64)
