"""Trajectories on disk: extended XYZ, which ASE, OVITO and others read.

Axes:   R independent replicas, n atoms in each; an entry of the file is one replica of one frame.
Units:  those of the simulation; momenta are mass · velocity.
Cells:  lattice vectors in rows, as the file has them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from molnets.checks import as_cells, as_pbc, expect, expect_cells
from molnets.dynamics.integrators import State, kinetic_energy

if TYPE_CHECKING:
    from ase import Atoms

COLUMNS = "Properties=species:S:1:pos:R:3:momenta:R:3:forces:R:3:masses:R:1"


class ExtxyzWriter:
    """Write an extended XYZ file, frame by frame, so that a killed run keeps its frames.

    A frame of R replicas is R entries with `step` and `replica` in their info, and energy, forces,
    masses, momenta, cell and periodicity where ASE looks for them. Numbers are written in full:
    reading is exact.

    Args:
        path: the file; a new one, or FileExistsError is raised.
        symbols: chemical symbols of the n atoms; "X" for none.
        cells: lattice vectors in rows, (3, 3) for all replicas or (R, 3, 3), one for each; None for
            isolated molecules.
        pbc: whether each replica is periodic along each vector of its cell, (R, 3), or (3,) or one
            for all; plays no part without cells.
        append: continue a file of the same atoms and as many replicas; an entry that was cut off at
            its end is removed, and so are those of its step.

    Raises:
        ValueError: if the file to be continued holds other atoms.
    """

    def __init__(
        self, path: str | Path, symbols: Sequence[str], *, cells: Tensor | None = None,
        pbc: Tensor | Sequence[bool] | bool = True, append: bool = False,
    ) -> None:  # fmt: skip
        self.path, self.symbols, self.cells, self.pbc = Path(path), list(symbols), cells, pbc
        with open(path, "ab" if append else "xb") as file:
            whole = _whole_steps(path)
            expected = f"the atoms of {path}, {whole.symbols}"
            expect(whole.symbols in (None, self.symbols), "symbols", expected, self.symbols)
            file.truncate(whole.length)
        self._earlier = whole

    def write(self, step: int, state: State) -> None:
        """Append one entry per replica and hand them to the system: a killed process keeps them.

        Raises:
            TypeError, ValueError: for another number of atoms than symbols, or of replicas than
                cells, and for cells that are not finite or have dependent periodic vectors.
        """
        n, num_replicas = len(self.symbols), len(state.positions)
        expect(state.positions.shape[1] == n, "state", f"{n} atoms", state.positions.shape[1])
        self._expect_replicas(num_replicas)
        borders = _borders(self.cells, self.pbc, num_replicas)
        m = state.masses.view(1, n, 1).expand(num_replicas, n, 1)
        rows = torch.cat([state.positions, m * state.velocities, state.forces, m], dim=2).tolist()
        kinetic, text = kinetic_energy(state.velocities, state.masses).tolist(), []
        for r, energy in enumerate(state.energies.tolist()):
            info = f"step={step} replica={r} energy={energy!r} kinetic_energy={kinetic[r]!r}"
            text += [str(n), f"{info} {borders[r]} {COLUMNS}"]
            text += [f"{self.symbols[i]} {' '.join(map(repr, rows[r][i]))}" for i in range(n)]
        with open(self.path, "ab") as file:
            file.write("\n".join([*text, ""]).encode())

    def _expect_replicas(self, num_replicas: int) -> None:
        """Expect as many replicas as the file has; a single step with fewer of them was cut off."""
        whole, self._earlier = self._earlier, _Whole(0, 0, 0, None)
        if whole.num_steps == 1 and whole.num_replicas < num_replicas:
            with open(self.path, "ab") as file:
                file.truncate(0)
        elif whole.num_steps:
            expected = f"{whole.num_replicas} replicas as in {self.path}"
            expect(num_replicas == whole.num_replicas, "state", expected, num_replicas)


def _borders(
    cells: Tensor | None, pbc: Tensor | Sequence[bool] | bool, num_replicas: int
) -> list[str]:
    """Return the words for the cell and the periodicity of each replica."""
    if cells is None:
        return ['pbc="F F F"'] * num_replicas
    cells, pbc = as_cells(cells, num_replicas), as_pbc(pbc, num_replicas)
    expect_cells(cells, pbc, cells)
    borders = []
    for cell, periodic in zip(cells.flatten(1).tolist(), pbc.tolist(), strict=True):
        numbers, letters = map(repr, cell), ("FT"[along] for along in periodic)
        borders.append(f'Lattice="{" ".join(numbers)}" pbc="{" ".join(letters)}"')
    return borders


class _Whole(NamedTuple):
    """The steps that are whole: bytes, their number, the replicas in each, and the atoms."""

    length: int
    num_steps: int
    num_replicas: int
    symbols: list[str] | None


def _whole_steps(path: str | Path) -> _Whole:
    """Return what a file holds, without a last step whose replicas are not all there."""
    steps: list[list[int]] = []  # where each entry of each step ends
    symbols, length, last = None, 0, None
    with open(path, "rb") as file:
        while (count := file.readline()).endswith(b"\n"):
            ok = count.strip().isdigit()
            expect(ok, "path", "extended XYZ", f"{count!r} for a number of atoms in {path}")
            lines = list(islice(file, int(count) + 1))  # the comment and the atoms
            if len(lines) <= int(count) or not lines[-1].endswith(b"\n"):
                break
            length += len(count) + sum(map(len, lines))
            step = re.search(rb"\bstep=(\d+)", lines[0])
            if step is None or last is None or step[1] != last:
                steps.append([])
            last = None if step is None else step[1]
            steps[-1].append(length)
            symbols = symbols or [line.split()[0].decode() for line in lines[1:]]
    num_replicas = len(steps[0]) if steps else 0
    if len(steps) > 1 and len(steps[-1]) < num_replicas:
        steps.pop()
    return _Whole(steps[-1][-1] if steps else 0, len(steps), num_replicas, symbols)


def read_trajectory(path: str | Path) -> list[Atoms]:
    """Return the entries of an extended XYZ file as ASE reads them, but for a step cut off."""
    import ase.io  # here, so that dynamics does not need ASE

    with open(path, "rb") as file:
        whole = file.read(_whole_steps(path).length).decode()
    return ase.io.read(StringIO(whole), ":", format="extxyz") if whole else []
