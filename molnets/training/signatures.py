"""A few numbers that tell a frame from all others, wherever its atoms' images or the molecule are.

They are random sums over atoms: of positions, and in cells of sines and cosines, which no lattice
vector changes. The weights are the same for all data, so that a checkpoint can hold the signatures
of the frames that a network was trained on.

Axes:   T frames, N atoms of all frames, P pairs of frames.
Units:  those of the data.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from molnets.training.data import Dataset

NUM_SUMS = 12
PARTS = 4  # of a sum: positions, cosines, sines, the cell
LARGEST_CODE = 2**40  # so that float64 holds the sum of many
ROUNDED = 6e-5  # what sums differ by, RMS, of one frame with four decimals: 3e-5, and of no others
REACH = 3e-4  # what each of them may differ by


def centred(data: Dataset) -> Tensor:
    """Return positions, (N, 3), those of molecules in no cell about the mean of their atoms."""
    frame = torch.arange(len(data)).repeat_interleave(data.n_atoms)
    means = torch.zeros(len(data), 3).double().index_add(0, frame, data.pos)
    means /= data.n_atoms.view(-1, 1)
    means[data.alone] = 0.0
    if data.cells is not None:
        means[data.cells.flatten(1).any(dim=1)] = 0.0
    return data.pos - means[frame]


def signatures(data: Dataset) -> Tensor:
    """Return a code of the elements and sums that are close for close frames, (T, 1 + NUM_SUMS).

    With random weights u, v, w of atom i of a frame, the sums are
    Σ_i (w_i·r⊥_i + Σ_a |c_a|/2π (u_ia cos 2πs_ia + v_ia sin 2πs_ia)) / √(3n), and the cell's.
    s_ia is the coordinate along c_a, a periodic lattice vector; r⊥_i is what is left.
    """
    T, n, pos = len(data), data.n_atoms, centred(data)
    frame = torch.arange(T).repeat_interleave(n)
    atom = torch.arange(len(frame)) - data.first[frame]  # counted from 0 in every frame
    most = int(n.max())
    codes = np.random.RandomState(0).randint(LARGEST_CODE, size=most, dtype=np.int64)
    coded = (data.z + 1) * torch.from_numpy(codes)[atom]
    code = torch.zeros(T).long().index_add(0, frame, coded)
    parts, cells = [pos], torch.zeros(T, 9).double()
    if data.cells is not None:
        cells = data.cells.view(T, 9)
        s = torch.einsum("ni,nij->nj", pos, torch.linalg.pinv(data.cells)[frame])
        rest = pos - torch.einsum("nj,nji->ni", s, data.cells[frame])
        length = data.cells.norm(dim=2)[frame] / (2 * math.pi)
        turn = 2 * math.pi * s
        parts = [rest, length * turn.cos(), length * turn.sin()]
    sums = [(code % 2**52).double()]
    for number in range(NUM_SUMS):
        each = torch.zeros(len(frame)).double()
        for place, part in enumerate(parts):
            each += (_weights(number, place, most)[atom] * part).sum(dim=1)
        total = torch.zeros(T).double().index_add(0, frame, each) / (3 * n).sqrt()
        sums.append(total + cells @ _weights(number, PARTS - 1, 3).flatten() / 3)
    return torch.stack(sums, dim=1)


def _weights(number: int, place: int, rows: int) -> Tensor:
    """Return the weights of a part of a sum, (rows, 3): the first ones for however many rows."""
    draw = np.random.RandomState(PARTS * number + place)  # whose numbers no version changes
    return torch.from_numpy(draw.standard_normal((rows, 3)))


def close_pairs(found: Tensor, reach: float) -> Tensor:
    """Return pairs of frames, (P, 2), of the same elements whose sums differ by less than reach."""
    code, x = found[:, 0], found[:, 1:].clone()
    apart = x[:, 0].max() - x[:, 0].min() + 2 * reach
    x[:, 0] += apart * code.unique(return_inverse=True)[1]
    order = x[:, 0].argsort()
    x, found = x[order], [torch.zeros(0, 2).long()]
    rows = torch.arange(len(x))
    for step in range(1, len(x)):
        rows = rows[rows < len(x) - step]
        rows = rows[x[rows + step, 0] - x[rows, 0] < reach]  # sorted: what is too far stays so
        if len(rows) == 0:
            break
        near = rows[((x[rows + step] - x[rows]).abs() < reach).all(dim=1)]
        found.append(order[torch.stack([near, near + step], dim=1)])
    return torch.cat(found)


def are_among(some: Tensor, others: Tensor) -> Tensor:
    """Return whether frames are among others up to rounding, (T,), both by their signatures.

    Atoms in another order, a rotation, or a crystal that was moved as a whole make another frame.
    Of n atoms, one that moved by 2e-4 √n of the unit of length or less is not noticed.
    """
    both = torch.cat([some, others])
    pairs = close_pairs(both, REACH).sort(dim=1).values
    pairs = pairs[(pairs[:, 0] < len(some)) & (pairs[:, 1] >= len(some))]
    apart = (both[pairs[:, 0], 1:] - both[pairs[:, 1], 1:]).square().mean(dim=1).sqrt()
    found = torch.zeros(len(some), dtype=torch.bool)
    found[pairs[apart < ROUNDED, 0]] = True
    return found
