"""Frames whose labels are far from what a trained model says, where it fits all others.

A wrong sign, other units or a constraint in a few frames of many change no check of the whole file,
but hardly any network fits them: on 1000 frames of ethanol with 30 whose forces were flipped, these
were off by 50 to 120 times the median of all, and the others by 4 at most.

Axes:   T frames, N atoms of all frames.
Units:  those of the data.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import torch
from torch import Tensor

from molnets.training.data import Dataset
from molnets.training.errors import Evaluation

FORCES_OFF = 4.0  # times the median of the frames, and of what is left where forces are divided out
OF_FORCES = 0.4  # of a frame's forces: an error below is no mistake, but what is hard
ENERGIES_OFF = 30.0  # times the median of frames of the same atoms, where the forces fit
FEWEST = 10  # frames whose median says anything
SHOWN = 10


def doubtful(found: Evaluation, data: Dataset, frames: Tensor) -> dict[str, list[int]]:
    """Return the numbers, as they were read, of frames with doubtful energies or forces, by name.

    Errors of forces are those of the frame, RMS, and their ratios to its forces, RMS. A model that
    has learned nothing doubts nothing: all its ratios are near 1. An energy is doubtful where the
    forces are known and fit: where neither does, the frame may be unlike all others. Stresses are
    not judged.

    Args:
        found: what the model says of the frames.
        data: all frames.
        frames: those that were evaluated, (T,): only ones that trained it, or none of them, as it
            fits the former better.
    """
    n, (with_energy, with_forces, _) = data.n_atoms[frames], data.labels[frames].T
    target = data.take(frames, torch.float64)
    frame = torch.arange(len(frames)).repeat_interleave(n)
    size, off = (_rms(x, frame, n) for x in (target.forces, found.forces - target.forces))
    ratio = torch.where(off > 0, off / size, 0.0)
    usual = with_forces & (size > 0)  # not those at rest, which are too easy
    hard = _far(off, usual, FORCES_OFF)
    forces = with_forces & hard & _far(ratio, usual, FORCES_OFF) & (ratio > OF_FORCES)
    energies = torch.zeros(len(frames), dtype=torch.bool)
    if int(usual.sum()) >= FEWEST:
        off = (found.energies - target.energies).flatten().abs()
        for same in _of_same_atoms(target.z, frame, len(frames)):
            energies |= same & _far(off, same & with_energy, ENERGIES_OFF)
        energies &= with_energy & with_forces & ~hard
    named = {"energies": energies, "forces": forces}
    return {name: data.numbers[frames[own]].tolist() for name, own in named.items()}


def _of_same_atoms(z: Tensor, frame: Tensor, num_frames: int) -> list[Tensor]:
    """Return which frames hold the same atoms, (T,) each, where these are many."""
    elements, place = z.flatten().unique(return_inverse=True)
    counts = torch.zeros(num_frames, len(elements)).long()
    counts.index_put_((frame, place), torch.ones_like(frame), accumulate=True)
    _, kind, many = counts.unique(dim=0, return_inverse=True, return_counts=True)
    return [kind == k for k in (many >= FEWEST).nonzero().flatten()]


def _rms(x: Tensor, frame: Tensor, n: Tensor) -> Tensor:
    """Return the RMS of the components of vectors, (N, 3), in each frame, (T,)."""
    squares = torch.zeros(len(n)).double().index_add(0, frame, x.double().square().sum(dim=1))
    return (squares / (3 * n)).sqrt()


def _far(x: Tensor, usual: Tensor, times: float) -> Tensor:
    """Return which values, (T,), are above so many times the median of usual ones."""
    few = int(usual.sum()) < FEWEST
    return torch.zeros(len(x)).bool() if few else x > times * x[usual].median()


def in_words(found: Iterable[dict[str, list[int]]]) -> str:
    """Return lines that name doubtful frames of several parts; nothing where there are none."""
    text, found = "", [*found]
    for name in ("energies", "forces"):
        frames = sorted(chain(*(each[name] for each in found)))
        shown = ", ".join(map(str, frames[:SHOWN])) + ", …" * (len(frames) > SHOWN)
        if frames:
            count = f"{len(frames)}, counted from 0 through all files"
            text += f"{name} of frames {shown} ({count}) are far from what the network says, "
            text += "unlike the others': are they right?\n"
    return text
