"""Neighbour lists for periodic and large systems, kept from step to step with a Verlet skin.

Axes:   N atoms in the batch, B samples, E directed edges j -> i.
Units:  the caller's length unit.
Edges:  edge_index[0] = j sends, edge_index[1] = i receives. Every periodic image within the cutoff
        has an edge of its own: a pair can have several, and an atom can have edges to itself.
Cells:  rows are lattice vectors. An edge with the shift S, three whole numbers, has the length
        d_ij = ‖r_j + S C − r_i‖; positions may lie outside the cell.

`vesin` finds the edges on the CPU, in float64 and time O(N). torch computes the lengths again, from
positions, shifts and cells, so that they can be differentiated by both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from vesin import NeighborList

from schnet_helpers import SEARCH_MARGIN, get_batch_dimensions

FLATTEST = 1e-6  # a cell that is flatter than this, smallest to largest singular value, is singular


class _EdgeList(NamedTuple):
    """All edges up to cutoff + skin, and the state of the atoms that they were found in."""

    edge_index: Tensor  # (2, E), sample after sample
    shifts: Tensor  # (E, 3), whole numbers S in the dtype of the positions
    num_edges: list[int]  # how many of the E belong to each sample
    pos: Tensor
    batch: Tensor
    cells: Tensor
    pbc: Tensor


class PeriodicGraph(nn.Module):
    """Connect all atoms and periodic images of a sample that are closer than the cutoff.

    N(i) = {(j, S) ≠ (i, 0) : ‖r_j + S C − r_i‖ < r_c, batch_j = batch_i}

    It takes the place of a model's `interaction_graph`. `set_cells` tells it the cells of the next
    calls; until then, samples are isolated molecules. The list is built to r_c + skin and kept
    while it is certain to hold every edge: no atom moved by more than half the skin. When a cell
    changes by C = C_0 F, a distance shrinks by the smallest singular value σ of F at the most, and
    what counts is the movement that F does not explain:

    the list is kept  ⇔  2 max_i ‖r_i − r_i^0 F‖ ≤ σ (r_c + skin) − r_c        (F = 1, σ = 1: skin)

    Only edges with d_ij < r_c are returned, so that no model has to know of the skin.

    Args:
        cutoff: r_c.
        skin: how much further the list reaches; results do not depend on it.

    Attributes:
        num_builds: how many times a list was built.

    Raises:
        ValueError: if `cutoff` is not positive and finite, or `skin` negative or not finite.
    """

    def __init__(self, cutoff: float, skin: float = 0.0) -> None:
        super().__init__()
        _expect(0 < cutoff < math.inf, "cutoff", "a positive finite number", cutoff)
        _expect(0 <= skin < math.inf, "skin", "a finite number, not negative", skin)
        self.cutoff = float(cutoff)
        self.skin = float(skin)
        self.num_builds = 0
        self._cells: Tensor | None = None
        self._pbc: Tensor | None = None
        self._list: _EdgeList | None = None
        self._offsets: Tensor | None = None  # of the list, for the cells that follow
        self._offsets_of: Tensor | None = None

    def set_cells(
        self, cells: Tensor | None, pbc: Tensor | Sequence[bool] | bool = True
    ) -> PeriodicGraph:
        """Set the cells of the next calls, and return the graph.

        Args:
            cells: lattice vectors in rows, (B, 3, 3), which may require a gradient; None for
                isolated molecules. A vector along which a sample is not periodic plays no part.
            pbc: whether each sample is periodic along each vector, (B, 3), or (3,) or one for all.

        Raises:
            TypeError, ValueError: for a wrong dtype or shape, for cells that are not finite, and
                for vectors of periodic directions that are linearly dependent.
        """
        if cells is None:
            self._cells = self._pbc = None
            return self
        _expect(cells.is_floating_point(), "cells", "a floating dtype", cells.dtype, TypeError)
        _expect(cells.shape[1:] == (3, 3), "cells", "shape (B, 3, 3)", tuple(cells.shape))
        pbc = torch.as_tensor(pbc, device="cpu")
        _expect(pbc.dtype == torch.bool, "pbc", "dtype torch.bool", pbc.dtype, TypeError)
        shapes = (), (3,), (len(cells), 3)
        _expect(pbc.shape in shapes, "pbc", f"shape (), (3,) or {shapes[-1]}", tuple(pbc.shape))
        pbc = pbc.expand(len(cells), 3)
        _expect(cells.isfinite().all(), "cells", "finite numbers", cells.tolist())
        periodic = pbc.unsqueeze(2) * cells.detach().cpu().double()
        rank = torch.linalg.matrix_rank(periodic, rtol=FLATTEST)  # (B,)
        for sample in (rank < pbc.sum(dim=1)).nonzero().flatten().tolist():
            vectors = periodic[sample][pbc[sample]].tolist()
            expected = "independent vectors in periodic directions"
            raise ValueError(f"cells: expected {expected}, got {vectors} for sample {sample}")
        self._cells, self._pbc = cells, pbc
        return self

    def forward(self, pos: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Return the edges, (2, E), and their lengths d_ij, (E,), differentiable in pos and cells.

        Args:
            pos: positions, (N, 3), floating point.
            batch: the sample that each atom belongs to, (N,), int64, ascending.

        Raises:
            TypeError, ValueError: for a wrong dtype, shape, device or order, for positions that are
                not finite, a number of samples that is not that of the cells, or an atom in the
                place of another one or of its image.
        """
        in_range, d_ij, _ = self._search(pos, batch)
        return self._list.edge_index.index_select(1, in_range), d_ij.index_select(0, in_range)

    def edges_and_offsets(self, pos: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Return the edges, (2, E), and the lattice vectors S C that lead to r_j's image, (E, 3).

        d_ij = ‖r_j + S C − r_i‖. Arguments and errors are those of `forward`.
        """
        in_range, _, offset = self._search(pos, batch)
        return self._list.edge_index.index_select(1, in_range), offset.index_select(0, in_range)

    def candidates(self, pos: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Return the whole list, which reaches as far as the skin, as `edges_and_offsets` does.

        As long as the list and the cells stay, so do the tensors.
        """
        cells = self._update(pos, batch).detach()
        if self._offsets is None or not torch.equal(cells, self._offsets_of):
            self._offsets, self._offsets_of = _offsets(cells, self._list), cells.clone()
        return self._list.edge_index, self._offsets

    def _update(self, pos: Tensor, batch: Tensor) -> Tensor:
        """Build the list if it has to be; return the cells of the samples."""
        batch_size, n_atoms = get_batch_dimensions(batch)
        _expect_positions(pos, batch)
        cells, pbc = self._cells_of(pos, batch_size)
        if not self._holds_every_edge(pos.detach(), batch, cells.detach(), pbc):
            self._build(pos.detach(), batch, n_atoms, cells.detach(), pbc)
        return cells

    def _search(self, pos: Tensor, batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return which of the list's edges are in range, and the lengths and offsets of all."""
        cells = self._update(pos, batch)
        offset = _offsets(cells, self._list)  # (E, 3)
        d_ij = _distances(pos, self._list.edge_index, offset)  # (E,), up to cutoff + skin
        if (d_ij == 0).any():
            pair = self._list.edge_index[:, d_ij == 0][:, 0].tolist()
            raise ValueError(f"pos: expected distinct positions, got atoms {pair} in one place")
        return (d_ij < self.cutoff).nonzero().squeeze(1), d_ij, offset  # twice as fast as a mask

    def __getstate__(self) -> dict[str, object]:
        """Return what is copied or pickled: the cells without the history of their gradient."""
        cells = self._cells
        return {**self.__dict__, "_cells": cells if cells is None else cells.detach()}

    def _cells_of(self, pos: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
        if self._cells is None:
            return pos.new_zeros(batch_size, 3, 3), torch.zeros(batch_size, 3, dtype=torch.bool)
        cells = self._cells
        _expect(len(cells) == batch_size, "cells", f"{batch_size} as in batch", len(cells))
        _expect(
            cells.dtype == pos.dtype, "cells", f"dtype {pos.dtype} as pos", cells.dtype, TypeError
        )
        _expect(cells.device == pos.device, "cells", f"device {pos.device} as pos", cells.device)
        return cells, self._pbc

    def _holds_every_edge(self, pos: Tensor, batch: Tensor, cells: Tensor, pbc: Tensor) -> bool:
        old = self._list
        if old is None or (pos.dtype, pos.device) != (old.pos.dtype, old.pos.device):
            return False
        if not (torch.equal(batch, old.batch) and torch.equal(pbc, old.pbc)):
            return False
        if torch.equal(cells, old.cells):
            return bool(2 * torch.linalg.vector_norm(pos - old.pos, dim=1).max() <= self.skin)
        deformation = _deformation(old.cells, cells, pbc)  # F, (B, 3, 3)
        explained = (old.pos.unsqueeze(1) @ deformation[batch]).squeeze(1)  # (N, 3)
        moved = torch.linalg.vector_norm(pos - explained, dim=1)  # (N,)
        shrinks = torch.linalg.svdvals(deformation)[:, -1]  # σ, (B,)
        slack = shrinks * (self.cutoff + self.skin) - self.cutoff  # (B,)
        return bool((2 * moved <= slack[batch]).all())

    def _build(
        self, pos: Tensor, batch: Tensor, n_atoms: Tensor, cells: Tensor, pbc: Tensor
    ) -> None:
        reach = (self.cutoff + self.skin) * (1 + SEARCH_MARGIN)  # rounding must not decide
        search = NeighborList(cutoff=reach, full_list=True, n_threads=torch.get_num_threads())
        edges, shifts, first = [], [], 0
        samples = pos.cpu().double().split(n_atoms.tolist())
        for points, cell, periodic in zip(samples, cells.cpu().double(), pbc, strict=True):
            ij, S = search.compute(points.numpy(), cell.numpy(), periodic.numpy(), "PS")
            edges.append(torch.from_numpy(ij.astype("int64")).T.flip(0) + first)  # rows j and i
            shifts.append(torch.from_numpy(S))
            first += len(points)
        self._list = _EdgeList(
            torch.cat(edges, dim=1).to(pos.device),
            torch.cat(shifts).to(pos),
            [len(shift) for shift in shifts],
            *(x.clone() for x in (pos, batch, cells, pbc)),
        )
        self._offsets = None
        self.num_builds += 1


def _offsets(cells: Tensor, edges: _EdgeList) -> Tensor:
    shifts = edges.shifts.split(edges.num_edges)
    return torch.cat([S @ cell for S, cell in zip(shifts, cells, strict=True)])  # (E, 3)


def _distances(pos: Tensor, edge_index: Tensor, offset: Tensor) -> Tensor:
    j, i = edge_index
    r_ij = pos.index_select(0, j) - pos.index_select(0, i) + offset  # three times as fast as pos[j]
    return torch.linalg.vector_norm(r_ij, dim=1)  # (E,)


def _deformation(old: Tensor, new: Tensor, pbc: Tensor) -> Tensor:
    """Return F, (B, 3, 3), with C = C_0 F in periodic directions and F = 1 across them."""
    periodic = pbc.unsqueeze(2).to(old)  # (B, 3, 1)
    change = periodic * (new - old)
    identity = torch.eye(3, dtype=old.dtype, device=old.device)
    return identity + torch.linalg.pinv(periodic * old) @ change


def _expect_positions(pos: Tensor, batch: Tensor) -> None:
    _expect(pos.is_floating_point(), "pos", "a floating-point dtype", pos.dtype, TypeError)
    _expect(pos.shape == (len(batch), 3), "pos", f"shape ({len(batch)}, 3)", tuple(pos.shape))
    _expect(batch.device == pos.device, "batch", f"device {pos.device} as pos", batch.device)
    if not pos.isfinite().all():
        atom = int((~pos.isfinite()).any(dim=1).nonzero()[0])
        raise ValueError(f"pos: expected finite numbers, got {pos[atom].tolist()} for atom {atom}")


def _expect(
    ok: bool | Tensor, name: str, expected: str, got: object, error: type[Exception] = ValueError
) -> None:
    if not ok:
        raise error(f"{name}: expected {expected}, got {got}")
