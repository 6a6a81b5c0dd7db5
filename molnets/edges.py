"""Edges with vectors, and the one graph that finds them: open and periodic, many samples at once.

Axes:   N atoms in the batch, B samples, E directed edges j -> i.
Units:  the caller's length unit.
Edges:  index[0] = j sends, index[1] = i receives. Every periodic image within the cutoff has an
        edge of its own: a pair can have several, and an atom can have edges to itself.
Cells:  rows are lattice vectors. An edge with the shift S, three whole numbers, has the vector
        r_j + S C − r_i; positions may lie outside the cell.

Small samples are compared atom by atom, all samples at once; large ones are given one by one to
`vesin`, whose cell list takes time O(N). Both work in float64. torch computes the vectors again,
from positions, shifts and cells, so that they can be differentiated by both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from vesin import NeighborList

from molnets.checks import (
    as_pbc,
    expect,
    expect_cells,
    expect_not_negative,
    expect_positions,
    expect_positive,
    expect_tensor,
    sample_sizes,
)
from schnet_helpers import SEARCH_MARGIN

FEW_PAIRS = 20_000  # pairs of a sample, images counted, that are compared without a cell list
MANY_PAIRS = 2**19  # pairs in memory at once
MOST_IMAGES = 10**6  # of a sample that are searched; a cell in another unit can have any number


class Edges(NamedTuple):
    """The edges of a batch: atoms j and i, (2, E), and the vectors r_j + S C − r_i, (E, 3)."""

    index: Tensor
    vector: Tensor


class _List(NamedTuple):
    """All edges up to cutoff + skin, and the state of the atoms that they were found in."""

    index: Tensor  # (2, E)
    shifts: Tensor | None  # (E, 3), whole numbers S in the dtype of the positions; None for zeros
    pos: Tensor
    batch: Tensor
    cells: Tensor | None
    pbc: Tensor | None


class Graph:
    """Connect all atoms and periodic images of a sample that are closer than the cutoff.

    N(i) = {(j, S) ≠ (i, 0) : ‖r_j + S C − r_i‖ < r_c, batch_j = batch_i}

    The list is built to r_c + skin and kept while it is certain to hold every edge: no atom moved
    by more than half the skin. When a cell changes by C = C_0 F, a distance shrinks by the smallest
    singular value σ of F at the most, and what counts is the movement that F does not explain:

    the list is kept  ⇔  2 max_i ‖r_i − r_i^0 F‖ ≤ σ (r_c + skin) − r_c        (F = 1, σ = 1: skin)

    Only edges shorter than r_c are returned, so that no network has to know of the skin.

    Args:
        cutoff: r_c.
        skin: how much further the list reaches; results do not depend on it.

    Attributes:
        num_builds: how many times a list was built.

    Raises:
        ValueError: if `cutoff` is not positive and finite, or `skin` negative or not finite.
    """

    def __init__(self, cutoff: float, skin: float = 0.0) -> None:
        expect_positive("cutoff", cutoff)
        expect_not_negative("skin", skin)
        self.cutoff, self.skin = float(cutoff), float(skin)
        self.num_builds = 0
        self._list: _List | None = None
        self._offsets: tuple[Tensor, Tensor] | None = None  # S C, and these cells C

    @torch.compiler.disable  # the search looks at values
    def edges(
        self, pos: Tensor, batch: Tensor, cells: Tensor | None = None,
        pbc: Tensor | Sequence[bool] | bool | None = None,
    ) -> Edges:  # fmt: skip
        """Return the edges; their vectors are differentiable in the positions and the cells.

        Args:
            pos: positions, (N, 3), floating point.
            batch: the sample that each atom belongs to, (N,), int64, ascending.
            cells: lattice vectors in rows, (B, 3, 3); None for isolated molecules. A vector along
                which a sample is not periodic plays no part.
            pbc: whether each sample is periodic along each vector, (B, 3), or (3,) or one for all;
                with cells, periodic along all of them if not given.

        Raises:
            TypeError, ValueError: for a wrong dtype, shape, device or order, for numbers that are
                not finite, for vectors of periodic directions that are linearly dependent or far
                shorter than the cutoff, and for an atom in the place of another one or its image.
        """
        kept, cells = self._update(pos, batch, cells, pbc)
        j, i = kept.index
        vector = pos.index_select(0, j) - pos.index_select(0, i)  # three times as fast as pos[j]
        if kept.shifts is not None:
            vector = vector + _offsets(kept, cells)
        d_ij = torch.linalg.vector_norm(vector.detach(), dim=1)  # (E,), up to cutoff + skin
        if len(d_ij) > 0 and float(d_ij.min()) == 0:
            pair = kept.index[:, d_ij == 0][:, 0].tolist()
            raise ValueError(f"pos: expected distinct positions, got atoms {pair} in one place")
        near = (d_ij < self.cutoff).nonzero().squeeze(1)  # twice as fast as a mask
        if len(near) == len(d_ij):
            return Edges(kept.index, vector)
        return Edges(kept.index.index_select(1, near), vector.index_select(0, near))

    def candidates(
        self, pos: Tensor, batch: Tensor, cells: Tensor | None = None,
        pbc: Tensor | Sequence[bool] | bool | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Return the whole list, (2, E), and the offsets S C, (E, 3), or zeros (1, 3) for all.

        Arguments and errors are those of `edges`. As long as the list and the cells stay, so do the
        tensors.
        """
        kept, cells = self._update(pos, batch, cells, pbc)
        cells = None if cells is None else cells.detach()
        if self._offsets is None or not _equal(cells, self._offsets[1]):
            offsets = pos.new_zeros(1, 3) if kept.shifts is None else _offsets(kept, cells)
            self._offsets = offsets, None if cells is None else cells.clone()
        return kept.index, self._offsets[0]

    def _update(
        self, pos: Tensor, batch: Tensor, cells: Tensor | None, pbc: object
    ) -> tuple[_List, Tensor | None]:
        """Build the list if it has to be; return it, and the cells of the samples that have any."""
        n_atoms = sample_sizes(batch)
        expect_positions(pos, batch)
        if cells is None:
            ok = pbc is None or not torch.as_tensor(pbc).any()
            expect(ok, "cells", "cells for periodic samples", None)
            pbc = None
        else:
            expect_tensor("cells", cells)
            expected = f"shape ({len(n_atoms)}, 3, 3) as samples in batch"
            expect(cells.shape == (len(n_atoms), 3, 3), "cells", expected, tuple(cells.shape))
            pbc = as_pbc(True if pbc is None else pbc, len(n_atoms))
        x, fixed = pos.detach(), None if cells is None else cells.detach()
        if not self._holds_every_edge(x, batch, fixed, pbc):
            if fixed is not None:
                expect_cells(fixed, pbc, x)
            with torch.inference_mode(False):  # a kept list may be differentiated later
                index, shifts = _search(x, batch, n_atoms, fixed, pbc, self.cutoff + self.skin)
                copies = [None if y is None else y.clone() for y in (x, batch, fixed, pbc)]
            self._list, self._offsets = _List(index, shifts, *copies), None
            self.num_builds += 1
        return self._list, cells

    def _holds_every_edge(
        self, pos: Tensor, batch: Tensor, cells: Tensor | None, pbc: Tensor | None
    ) -> bool:
        old = self._list
        if old is None or (pos.dtype, pos.device) != (old.pos.dtype, old.pos.device):
            return False
        if not (torch.equal(batch, old.batch) and _equal(pbc, old.pbc)):
            return False
        if _equal(cells, old.cells):
            return bool(2 * torch.linalg.vector_norm(pos - old.pos, dim=1).max() <= self.skin)
        expect_cells(cells, pbc, pos)
        deformation = _deformation(old.cells.double(), cells.double(), pbc)  # F, (B, 3, 3)
        explained = (old.pos.double().unsqueeze(1) @ deformation[batch]).squeeze(1)  # (N, 3)
        moved = torch.linalg.vector_norm(pos - explained, dim=1)  # (N,)
        shrinks = torch.linalg.svdvals(deformation)[:, -1]  # σ, (B,)
        slack = shrinks * (self.cutoff + self.skin) - self.cutoff  # (B,)
        return bool((2 * moved <= slack[batch]).all())


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)


def _offsets(kept: _List, cells: Tensor) -> Tensor:
    """Return S C of each edge, (E, 3)."""
    if len(cells) == 1:
        return kept.shifts @ cells[0]
    sample = kept.batch.index_select(0, kept.index[1])
    return torch.einsum("es,esc->ec", kept.shifts, cells.index_select(0, sample))


def _deformation(old: Tensor, new: Tensor, pbc: Tensor) -> Tensor:
    """Return F, (B, 3, 3), with C = C_0 F in periodic directions and F = 1 across them."""
    periodic = pbc.unsqueeze(2).to(old)  # (B, 3, 1)
    change = periodic * (new - old)
    identity = torch.eye(3, dtype=old.dtype, device=old.device)
    return identity + torch.linalg.pinv(periodic * old) @ change


def _search(
    pos: Tensor, batch: Tensor, n_atoms: Tensor, cells: Tensor | None, pbc: Tensor | None,
    reach: float,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Return all edges up to `reach`, (2, E), and their shifts, (E, 3), if any is not zero."""
    reach = reach * (1 + SEARCH_MARGIN)  # rounding must not decide
    x, first = pos.double(), n_atoms.cumsum(0) - n_atoms
    if cells is None:
        periodic = x.new_zeros(len(n_atoms), 3, 3)
        pbc = torch.zeros(len(n_atoms), 3, dtype=torch.bool)
    else:
        periodic = pbc.unsqueeze(2).to(x) * cells.double()
    dual = torch.linalg.pinv(periodic)  # (B, 3, 3): fractional coordinates are r @ dual
    images = _images_around(dual, reach)  # (B, 3)
    num_images = (2 * images + 1).prod(dim=1)  # (B,)
    small = n_atoms.square() * num_images <= FEW_PAIRS
    boxes = {}  # what vesin is given
    for b in (~small).nonzero().flatten().tolist():
        own = slice(int(first[b]), int(first[b] + n_atoms[b]))
        boxes[b] = _in_a_box(x[own].cpu(), periodic[b].cpu(), pbc[b], reach)
        small[b] = _is_too_flat(boxes[b][1], reach)
        most = int(n_atoms[b] * num_images[b]) if small[b] else 0
        expected = f"at most {MOST_IMAGES} images of atoms within the cutoff of one"
        expect(most <= MOST_IMAGES, "cells", expected, most)
    receivers = small[batch].nonzero().squeeze(1)
    parts: list[tuple[Tensor, Tensor]] = []
    pairs_of_atom = (n_atoms * num_images)[batch[receivers]]
    chunk = (pairs_of_atom.cumsum(0) - 1) // MANY_PAIRS  # how the atoms are split
    for i in receivers.split(chunk.bincount().tolist() if len(chunk) else 0):
        parts.append(_compare(i, x, batch, (first, n_atoms), (periodic, dual, images), reach))
    search = NeighborList(cutoff=reach, full_list=True, n_threads=torch.get_num_threads())
    for b in (~small).nonzero().flatten().tolist():
        points, cell = boxes[b]
        ij, S = search.compute(points.numpy(), cell.numpy(), True, "PS")
        index = torch.from_numpy(ij.astype("int64")).T.flip(0).to(x.device) + first[b]
        parts.append((index, torch.from_numpy(S).to(x)))
    indices, shifts = zip(*parts, strict=True)
    return torch.cat(indices, dim=1), None if cells is None else torch.cat(shifts).to(pos)


def _images_around(dual: Tensor, reach: float) -> Tensor:
    """Return how far images are to be looked for along each vector, (B, 3), from the nearest one.

    With fractional coordinates f of a pair in [−½, ½], an image S closer than `reach` keeps
    |f + S| < reach ‖dual vector‖ = q, hence |S| < q + ½.

    Raises:
        ValueError: if there are more than `MOST_IMAGES`.
    """
    q = reach * torch.linalg.vector_norm(dual, dim=1)  # (B, 3); 0 where a sample is not periodic
    images = ((q + 0.5).ceil() - 1).clamp(min=0)
    most = float((2 * images + 1).prod(dim=1).max())  # as whole numbers they could overflow
    expected = f"at most {MOST_IMAGES} images within the cutoff"
    expect(most <= MOST_IMAGES, "cells", expected, f"{most:.3g}")
    return images.long()


def _in_a_box(x: Tensor, periodic: Tensor, pbc: Tensor, reach: float) -> tuple[Tensor, Tensor]:
    """Return positions, (n, 3), and a cell, (3, 3), all periodic, with the same edges.

    Across the periodic vectors, the cell is so wide that no image is within reach, and gaps between
    the atoms are closed up to twice that. vesin is slow where a direction does not repeat, and one
    atom that has left for good costs it minutes, or ends the process.
    """
    across = torch.linalg.svd(periodic)[2][int(pbc.sum()) :]  # (k, 3), orthonormal
    t, order = (x @ across.T).sort(dim=0)  # (n, k)
    closer = t.diff(dim=0, prepend=t[:1]).clamp(max=2 * reach).cumsum(dim=0)
    moved = torch.empty_like(t).scatter_(0, order, closer - t)
    cell = periodic.clone()
    cell[~pbc] = (closer[-1] + 2 * reach).unsqueeze(1) * across
    return x + moved @ across, cell


def _is_too_flat(cell: Tensor, reach: float) -> bool:
    """Return whether vesin would divide by zero: 1e5 boxes of its list leave none for a side."""
    heights = 1 / torch.linalg.vector_norm(torch.linalg.inv(cell), dim=0)  # (3,)
    boxes = (heights / reach).trunc().clamp(min=1)
    return bool(boxes.prod() > 2**16 * boxes.min() ** 3)


def repeated(items: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return each item as often as counted, and a number for each that counts from 0: (sum,) each.

    Args:
        items: whole numbers, (n,).
        counts: how often each is repeated, (n,).
    """
    starts = (counts.cumsum(0) - counts).repeat_interleave(counts)
    return items.repeat_interleave(counts), torch.arange(len(starts), device=items.device) - starts


def _compare(
    i: Tensor, x: Tensor, batch: Tensor, atoms: tuple[Tensor, Tensor],
    lattice: tuple[Tensor, Tensor, Tensor], reach: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Compare atoms with all atoms of their samples and their images near by.

    Args:
        i: the receivers, (n,).
        x: positions, (N, 3), float64.
        batch: the sample of each atom, (N,).
        atoms: the first atom of each sample and how many it has, (B,) each.
        lattice: periodic vectors and their dual ones, (B, 3, 3), and images each way, (B, 3).
        reach: how far edges are looked for.

    Returns:
        The edges, (2, E), and their shifts, (E, 3).
    """
    (first, n_atoms), (periodic, dual, images) = atoms, lattice
    i, at = repeated(i, n_atoms[batch[i]])  # pairs
    b = batch[i]
    j = first[b] + at
    r_ij, S = x[j] - x[i], None
    if periodic.any():
        S = -torch.einsum("ec,ecs->es", r_ij, dual[b]).round()  # of the nearest image
        if images.any():
            (i, j, b, r_ij, S), T = _with_images((i, j, b, r_ij, S), images)
            S = S + T
        r_ij = r_ij + torch.einsum("es,esc->ec", S, periodic[b])
    S = torch.zeros_like(r_ij) if S is None else S
    near = torch.linalg.vector_norm(r_ij, dim=1) < reach
    near &= (i != j) | S.any(dim=1)
    return torch.stack([j, i])[:, near], S[near]


def _with_images(pairs: tuple[Tensor, ...], images: Tensor) -> tuple[list[Tensor], Tensor]:
    """Repeat what describes the pairs for all images, and return the shifts of these, (pairs, 3).

    The third of what describes a pair is its sample; `images` (B, 3) each way as many.
    """
    b = pairs[2]
    sizes = 2 * images + 1  # (B, 3)
    pair, at = repeated(torch.arange(len(b), device=b.device), sizes.prod(dim=1)[b])
    pairs = [x[pair] for x in pairs]
    _, ny, nz = sizes[pairs[2]].unbind(dim=1)
    T = torch.stack([at // nz // ny, at // nz % ny, at % nz], dim=1)
    return pairs, T - images[pairs[2]]
