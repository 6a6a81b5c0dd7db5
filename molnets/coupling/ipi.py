"""A model as a client of i-PI: path integrals, replica exchange and other dynamics run on it.

Axes:   N atoms, in the order of i-PI's own.
Units:  eV and Å; the protocol's are Hartree and Bohr, which ASE's client converts.
Cells:  rows are lattice vectors here; i-PI keeps columns, and a along x, b in the plane of x and y.

i-PI sends positions and a cell and takes energy, forces and the virial −∂E/∂ε; it says neither what
the atoms are nor whether they are periodic. Many clients may serve one i-PI, which gives each bead
or replica to one that is free, and asks the others if one is lost.
"""

from __future__ import annotations

import os

import numpy as np
from ase import Atoms
from ase.calculators.socketio import IPIProtocol, SocketClient, actualunixsocketname
from numpy.typing import NDArray
from torch import nn

from molnets.checks import expect
from molnets.coupling.ase import ModelCalculator
from molnets.coupling.driven import expect_finite

PORT = 31415  # i-PI's own, where none is given


def serve(
    model_or_checkpoint: nn.Module | str | os.PathLike, atoms: Atoms, *,
    unix: str | None = None, host: str = "localhost", port: int = PORT, skin: float = 0.3,
) -> int:  # fmt: skip
    """Answer i-PI until it ends; return how many times energy and forces were asked for.

    Args:
        model_or_checkpoint: a `Potential`, a network, or the path of a checkpoint.
        atoms: elements in i-PI's order, and whether they are periodic; then the virial is sent too.
            Positions and cell are i-PI's.
        unix: the name of a socket on this machine, i-PI's `address` with the mode unix; if there is
            none, host and port.
        host: where i-PI runs.
        port: where it listens.
        skin: how much further than the cutoff the neighbour list reaches, in Å.

    Raises:
        ConnectionError: if i-PI does not listen there, or goes away in the middle of a message.
        FloatingPointError: if the energy or a force is not finite.
        TypeError, ValueError: as `ModelCalculator`; for another number of atoms than i-PI's, for
            constraints, which are i-PI's business, or for positions that are not finite.
    """
    expect(len(atoms) > 0, "atoms", "at least one atom", atoms)
    expect(not atoms.constraints, "atoms", "no constraints, which i-PI has", atoms.constraints)
    atoms = atoms.copy()
    atoms.calc = ModelCalculator(model_or_checkpoint, skin)
    atoms.calc.expect_elements(atoms)
    where = {"unixsocket": unix} if unix is not None else {"host": host, "port": port}
    try:
        client = _Client(len(atoms), **where)
    except OSError as error:
        place = f"{host}:{port}" if unix is None else actualunixsocketname(unix)
        text = f"expected an i-PI that listens at {place}, got {error}"
        raise ConnectionError(f"{'host, port' if unix is None else 'unix'}: {text}") from error
    return sum(1 for _ in client.irun(atoms, use_stress=bool(atoms.pbc.any())))


class _Client(SocketClient):
    """ASE's client, which sends nothing but numbers."""

    def __init__(self, num_atoms: int, **where: object) -> None:
        super().__init__(**where)
        self.protocol = _Protocol(num_atoms, self.protocol.socket)

    def calculate(self, atoms: Atoms, use_stress: bool) -> tuple[float, NDArray, NDArray]:
        """Return the energy, forces (N, 3) and the virial, (3, 3)."""
        energy, forces, virial = super().calculate(atoms, use_stress)
        expect_finite(energy=np.array([energy]), forces=forces, virial=virial)
        return energy, forces, virial


class _Protocol(IPIProtocol):
    """ASE's side of the protocol; positions of another system would be spread over the atoms."""

    def __init__(self, num_atoms: int, socket: object) -> None:
        super().__init__(socket)
        self.num_atoms = num_atoms

    def recvposdata(self) -> tuple[NDArray, NDArray, NDArray]:
        """Return the cell and its inverse, (3, 3), and positions, (N, 3)."""
        try:
            cell, inverse, positions = super().recvposdata()
        except AssertionError as error:  # ASE's word for numbers that are not finite
            raise ValueError("positions, cell: expected finite numbers from i-PI") from error
        except OSError as error:
            raise ConnectionError("i-PI went away in the middle of a message") from error
        expect(len(positions) == self.num_atoms, "atoms", f"i-PI's {len(positions)} atoms",
               self.num_atoms)  # fmt: skip
        return cell, inverse, positions
