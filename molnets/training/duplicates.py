"""Frames that are there twice: to the bit, rounded, moved, or with atoms in other cells.

Candidates are frames whose `signatures` are close. They are then compared atom by atom. Molecules,
in no cell, are compared about their centres.

Axes:   T frames, N atoms of all frames, P pairs of frames.
Units:  those of the data.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from molnets.checks import expect
from molnets.training.signatures import centred, close_pairs, signatures

if TYPE_CHECKING:
    from molnets.training.data import Dataset

ROUNDED = 1e-4  # what positions of one frame may differ by; of a trajectory's neighbours it is more
EQUAL = 1e-6  # closer than this, other labels are a contradiction
STRICT, LOOSE = 1e-6, 1e-3  # what labels may differ by, of frames that are equal to the bit, or not
REACH = 5 * ROUNDED  # of a sum: its standard deviation is below ROUNDED
PAIRS_AT_ONCE = 1000


def without_duplicates(data: Dataset) -> Dataset:
    """Return the frames without those that are there already, and say so in the notes.

    A frame is there already if positions and cell are the same, or if they and the labels are up to
    rounding, a molecule wherever it is. Moved copies whose labels differ are kept.

    Raises:
        ValueError: if such frames are in two parts of the split, where the test would know what it
            tests; or if they are the same but for their labels or weights.
    """
    first = _first_copies(data)
    copies = (first != torch.arange(len(data))).nonzero().flatten()
    exact = torch.stack([first[copies], copies], dim=1)
    exact = exact[~_isolated_twice(data, exact)]
    near, apart = _near_pairs(data, (first == torch.arange(len(data))).nonzero().flatten())
    pairs = torch.cat([exact, near])
    if len(pairs) == 0:
        return data
    apart = torch.cat([torch.zeros(len(exact)).double(), apart])
    agree = _labels_agree(data, pairs, apart)
    twins = agree | (apart < EQUAL)
    _expect_no_contradiction(data, pairs[twins], agree[twins])
    left_out = _second_ones(exact, near[twins[len(exact) :]])
    if not left_out:
        return data
    kept = torch.ones(len(data), dtype=torch.bool)
    kept[left_out] = False
    once = data.subset(kept.nonzero().flatten())
    rounded = len(left_out) - len(exact)
    how = f", {rounded} of them but for rounding or a shift" if rounded else ""
    once.notes.append(f"{len(left_out)} frames are there twice{how}: the second ones are left out")
    return once


def _first_copies(data: Dataset) -> Tensor:
    """Return the first frame that each one equals to the bit, (T,)."""
    seen: dict[bytes, int] = {}
    n_atoms, first = data.n_atoms.tolist(), []
    for frame, (z, pos) in enumerate(
        zip(data.z.split(n_atoms), data.pos.split(n_atoms), strict=True)
    ):
        cell = b"" if data.cells is None else data.cells[frame].numpy().tobytes()
        first.append(seen.setdefault(z.numpy().tobytes() + pos.numpy().tobytes() + cell, frame))
    return torch.tensor(first)


def _near_pairs(data: Dataset, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Return pairs of some frames that are the same up to rounding, (P, 2), and how far apart.

    Molecules may have been moved.
    """
    pos = centred(data)
    pairs = frames[close_pairs(signatures(data)[frames], REACH)].sort(dim=1).values
    apart = [_apart(data, pos, some) for some in pairs.split(PAIRS_AT_ONCE)]
    apart = torch.cat(apart) if apart else torch.zeros(0).double()
    near = (apart < ROUNDED) & ~_isolated_twice(data, pairs)
    return pairs[near], apart[near]


def _isolated_twice(data: Dataset, pairs: Tensor) -> Tensor:
    """Return which pairs are one isolated atom in two parts of the split, which both need it."""
    first, second = pairs.T
    if data.split is None:
        return torch.zeros(len(pairs), dtype=torch.bool)
    return data.alone[first] & (data.split[first] != data.split[second])


def _apart(data: Dataset, pos: Tensor, pairs: Tensor) -> Tensor:
    """Return the largest difference of positions or cells of pairs of frames, (P,).

    Positions differ by what no lattice vector mends; frames of other elements are infinitely far.
    Frames that were moved are EQUAL apart at least: on another grid, labels may be a little others.
    """
    first, second = pairs.T
    a, b = data.atoms_of(first), data.atoms_of(second)
    pair = torch.arange(len(pairs)).repeat_interleave(data.n_atoms[first])
    d = pos[a] - pos[b]
    moved = (data.pos[a] - data.pos[b] - d).abs().amax(dim=1) > EQUAL
    apart = torch.zeros(len(pairs)).double()
    if data.cells is not None:
        cells = data.cells[first]
        s = torch.einsum("ni,nij->nj", d, torch.linalg.pinv(cells)[pair])
        d -= torch.einsum("nj,nji->ni", s.round(), cells[pair])
        apart = (cells - data.cells[second]).abs().amax(dim=(1, 2))
    far = d.abs().amax(dim=1).masked_fill(data.z[a] != data.z[b], math.inf)
    return apart.scatter_reduce(0, pair, torch.where(moved, far.clamp(min=EQUAL), far), "amax")


def _labels_agree(data: Dataset, pairs: Tensor, apart: Tensor) -> Tensor:
    """Return whether pairs of frames agree in all labels that both have, (P,)."""
    first, second = pairs.T
    allowed = torch.where(apart == 0, STRICT, LOOSE).double().view(-1, 1)
    pair = torch.arange(len(pairs)).repeat_interleave(data.n_atoms[first])
    forces = [data.forces[data.atoms_of(frames)] for frames in (first, second)]
    rows = _close(*forces, allowed[pair]).long()
    agree = [_close(data.energies[first, None], data.energies[second, None], allowed)]
    agree.append(torch.ones(len(pairs)).long().scatter_reduce(0, pair, rows, "amin").bool())
    if data.virials is not None:
        virials = data.virials.flatten(1)
        agree.append(_close(virials[first], virials[second], allowed))
    both = (data.labels[first] & data.labels[second])[:, : len(agree)]
    return (torch.stack(agree, dim=1) | ~both).all(dim=1)


def _close(a: Tensor, b: Tensor, allowed: Tensor) -> Tensor:
    """Return whether rows of two arrays are the same but for rounding, in digits or in float32."""
    return ((a - b).abs() <= allowed * (1 + 1e-4 * a.abs())).all(dim=1)


def _expect_no_contradiction(data: Dataset, twins: Tensor, agree: Tensor) -> None:
    """Expect frames that are the same in one part of the split, with the same labels."""
    first, second = twins.T
    if data.split is not None:
        other = data.split[first] != data.split[second]
        for i, j in twins[other].tolist():
            got = f"frames {i} and {j}, which are the same"
            expect(False, "split", "no frame in two parts of the split", got)
    same = agree & (data.labels[first] == data.labels[second]).all(dim=1)
    same &= data.weights[first] == data.weights[second]
    for i, j in twins[~same].tolist():
        expected = "frames that are there once, or with the same labels and weights"
        expect(False, "data", expected, f"frames {i} and {j}, which have others")


def _second_ones(exact: Tensor, near: Tensor) -> list[int]:
    """Return the frames to leave out, so that no frame goes for the sake of one that goes too."""
    gone: set[int] = set()
    for first, second in sorted(near.tolist()):
        if first not in gone:
            gone.add(second)
    return sorted(gone.union(exact[:, 1].tolist()))
