"""Training data: frames with energies, forces and virials, their edges, and how they are split.

The edges of the frames are found once, since the frames do not move.

Axes:   T frames, N atoms of all frames one after the other, B samples of a batch, E edges.
Units:  any; `energy_unit` and `length_unit` say which, and forces are energy / length.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from ase.data import chemical_symbols
from torch import Tensor
from tqdm import tqdm

from molnets.checkpoint import UNKNOWN
from molnets.checks import expect, expect_not_negative
from molnets.edges import Edges, Graph, repeated
from molnets.potential import NUM_ELEMENTS, fit_element_energies, sum_over_atoms
from molnets.tables import Frames
from molnets.training.duplicates import without_duplicates

FRAMES_AT_ONCE = 256  # whose edges are searched in one call
MOST_AT_ONCE = 3000  # atoms, of whose pairs all distances are computed
PATIENCE = 2.0  # seconds without a progress bar
PARTS = {"train": 0, "test": 1, "validation": 2}  # what a file says of its frames
MOST_APART = 1e-3  # energies of isolated atoms of one element, or float32's digits
MOST_VALIDATION, MOST_TEST = 50, 100  # frames, unless a number is given


class Batch(NamedTuple):
    """Some frames, with what is known of them; what is not is 0."""

    z: Tensor  # (N, 1)
    pos: Tensor  # (N, 3)
    batch: Tensor  # the sample of each atom, (N,)
    energies: Tensor  # (B, 1)
    forces: Tensor  # (N, 3)
    virials: Tensor | None = None  # (B, 3, 3), where any frame has some


class Dataset:
    """Frames of any sizes, all in memory, float64.

    Args:
        z: atomic numbers of all atoms, (N,).
        pos: positions, (N, 3).
        energies: energies of the frames, (T,).
        forces: forces, (N, 3).
        n_atoms: number of atoms of each frame, (T,).
        cells: lattice vectors in rows, (T, 3, 3); zero rows where a frame is not periodic.
        split: 0 for a frame to train on, 1 for a test frame, 2 for validation, (T,), where the
            file says so.
        virials: ∂E/∂ε of a strain ε, the stress times the volume, (T, 3, 3).
        labels: whether a frame's energy, forces and virial are known, (T, 3); None for all that are
            given. What is not known is 0.
        weights: how much the frames count in the loss, (T,).
        alone: whether a frame is an isolated atom, whose energy is its element's, (T,); None for
            all single atoms that are not periodic.

    Attributes:
        notes: what was found and done when the data were read, line by line.
        numbers: of the frames as they were read, from 0 and through all files, (T,).
        num_read: how many there were.
        energy_unit: unit of the energies, if it is known; forces are energy / length.
        length_unit: unit of the positions, if it is known.

    Raises:
        ValueError: for shapes that do not fit together, values that are not finite, atomic numbers
            that are none, parts of the split that are none, or two atoms of a frame in one place.
    """

    def __init__(
        self, z: Tensor, pos: Tensor, energies: Tensor, forces: Tensor, n_atoms: Tensor,
        cells: Tensor | None = None, split: Tensor | None = None, virials: Tensor | None = None,
        labels: Tensor | None = None, weights: Tensor | None = None, alone: Tensor | None = None,
    ) -> None:  # fmt: skip
        num_frames = len(n_atoms)
        given = {"z": z, "pos": pos, "energies": energies, "forces": forces, "cells": cells,
                 "split": split, "virials": virials, "labels": labels,
                 "weights": weights, "alone": alone}  # fmt: skip
        _expect_arrays(n_atoms, {name: x for name, x in given.items() if x is not None})
        self.z, self.n_atoms = z.long(), n_atoms.long()
        self.split = None if split is None else split.long()
        self.pos, self.energies, self.forces = pos.double(), energies.double(), forces.double()
        self.cells = cells.double() if cells is not None and cells.any() else None
        self.virials = None if virials is None else virials.double()
        if labels is None:
            labels = torch.tensor([True, True, virials is not None]).expand(num_frames, 3)
        self.labels = labels.bool()
        self.weights = torch.ones(num_frames).double() if weights is None else weights.double()
        negative = (self.weights < 0).nonzero().flatten()
        expect(len(negative) == 0, "weights", "none below 0", f"frames {negative.tolist()}")
        if alone is None:
            alone = (self.n_atoms == 1) & self.labels[:, 0]
            alone &= ~self.cells.flatten(1).any(dim=1) if self.cells is not None else True
        self.alone = alone.bool() & self.labels[:, 0]
        self.notes: list[str] = []
        self.numbers, self.num_read = torch.arange(num_frames), num_frames
        self.first = self.n_atoms.cumsum(0) - self.n_atoms
        self.energy_unit = self.length_unit = UNKNOWN
        self._edges: dict[float, FrameEdges] = {}
        self._check_distances()

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.n_atoms)

    def isolated_energies(self) -> dict[int, float]:
        """Return the energies of the elements that are there as isolated atoms: their mean.

        Those of test and validation frames do not count.

        Raises:
            ValueError: if isolated atoms of one element have several energies.
        """
        alone = self.alone if self.split is None else self.alone & (self.split == PARTS["train"])
        z, energies = self.z[self.first[alone]], self.energies[alone]
        found = {int(n): energies[z == n] for n in z.unique()}
        for n, own in found.items():
            least, most = float(own.min()), float(own.max())
            ok = most - least <= max(MOST_APART, 3e-7 * max(-least, most))  # float32's digits
            expected = f"isolated atoms of element {chemical_symbols[n]} with one energy"
            expect(ok, "data", expected, f"energies from {least:.10g} to {most:.10g}")
        return {n: float(own.mean()) for n, own in found.items()}

    def subset(self, frames: Tensor) -> Dataset:
        """Return some frames as a data set."""
        atoms = self.atoms_of(frames)
        optional = {name: None if x is None else x[frames] for name, x in (
            ("cells", self.cells), ("split", self.split), ("virials", self.virials)
        )}  # fmt: skip
        data = Dataset(
            self.z[atoms], self.pos[atoms], self.energies[frames], self.forces[atoms],
            self.n_atoms[frames], **optional, labels=self.labels[frames],
            weights=self.weights[frames], alone=self.alone[frames],
        )  # fmt: skip
        data.energy_unit, data.length_unit = self.energy_unit, self.length_unit
        data.notes = [*self.notes]
        data.numbers, data.num_read = self.numbers[frames], self.num_read
        return data

    def without_duplicates(self) -> Dataset:
        """Return the frames without those that are there already, and say so in the notes.

        Raises:
            ValueError: if two frames are the same but for their labels, or their parts of the split
                are not the same: the test would know what it tests. See `duplicates`.
        """
        return without_duplicates(self)

    def atoms_of(self, frames: Tensor) -> Tensor:
        """Return the indices of the atoms of some frames, frame after frame."""
        first, at = repeated(self.first[frames], self.n_atoms[frames])
        return first + at

    def take(
        self, frames: Tensor, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> Batch:
        """Return some frames as a batch, in `dtype`, energies in float64."""
        atoms = self.atoms_of(frames)
        batch = torch.arange(len(frames)).repeat_interleave(self.n_atoms[frames])
        virials = None if self.virials is None else self.virials[frames].to(device, dtype)
        return Batch(
            self.z[atoms].view(-1, 1).to(device), self.pos[atoms].to(device, dtype),
            batch.to(device), self.energies[frames].view(-1, 1).to(device),
            self.forces[atoms].to(device, dtype), virials,
        )  # fmt: skip

    def frames(self, cutoff: float, factors: Tensor) -> Frames:
        """Return all frames as the compiled steps take them.

        Args:
            cutoff: of the edges.
            factors: what the errors of each frame count in the loss, (T, 3).
        """
        edges, virials = self.edges(cutoff), self.virials if factors[:, 2].any() else None
        return Frames(self.z, self.n_atoms, edges.index, edges.vector, edges.counts, self.energies,
                      self.forces, virials, factors.double())  # fmt: skip

    def edges(self, cutoff: float) -> FrameEdges:
        """Return the edges of all frames within a cutoff; they are found once."""
        if cutoff not in self._edges:
            self._edges[cutoff] = FrameEdges(self, cutoff)
        return self._edges[cutoff]

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that change when any number of any frame does."""
        digest = hashlib.sha256()
        for tensor in (self.n_atoms, self.z, self.pos, self.energies, self.forces, self.cells):
            digest.update(b"-" if tensor is None else tensor.contiguous().numpy().tobytes())
        more = self.virials, *(None if same else x for x, same in (
            (self.labels, self.labels[:, :2].all()), (self.weights, (self.weights == 1).all())
        ))  # fmt: skip
        for tensor in filter(lambda x: x is not None, more):
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def _check_distances(self) -> None:
        for frame, pos in enumerate(self.pos.split(self.n_atoms.tolist())):
            if len(pos) > MOST_AT_ONCE:  # whose distances would fill the memory
                distinct = len((pos + 0.0).unique(dim=0)) == len(pos)
            else:
                distinct = len(pos) == 1 or torch.pdist(pos).min() > 0
            expect(distinct, "pos", "distinct positions", f"two equal in frame {frame}")


def _expect_arrays(n_atoms: Tensor, given: dict[str, Tensor]) -> None:
    """Expect frames with atoms, arrays of their shapes, finite numbers, and known elements."""
    T, N = len(n_atoms), int(n_atoms.sum())
    shapes = {"z": (N,), "pos": (N, 3), "forces": (N, 3), "cells": (T, 3, 3),
              "virials": (T, 3, 3), "labels": (T, 3)}  # fmt: skip
    ok = T > 0 and int(n_atoms.min()) > 0
    expect(ok, "n_atoms", "at least one frame, and atoms in every frame", n_atoms.tolist())
    for name, tensor in given.items():
        shape, expected = tuple(tensor.shape), shapes.get(name, (T,))
        expect(shape == expected, name, str(expected), shape)
        if not tensor.isfinite().all():
            entry = int((~tensor.isfinite()).nonzero()[0, 0])
            raise ValueError(f"{name}: expected finite numbers, got others in entry {entry}")
    z = given["z"]
    known = (z.double() == z.long()) & (z >= 0) & (z < NUM_ELEMENTS)
    expected = f"whole atomic numbers below {NUM_ELEMENTS}"
    expect(known.all(), "z", expected, z[~known].unique().tolist())
    codes = given.get("split", torch.zeros(0)).double().unique().tolist()
    expected = ", ".join(f"{code} for {name}" for name, code in PARTS.items())
    expect({*codes} <= {*PARTS.values()}, "split", expected, [f"{code:g}" for code in codes[:20]])


class FrameEdges:
    """The edges of all frames of a dataset within a cutoff.

    Args:
        data: the frames.
        cutoff: r_c, in the data's length unit.
    """

    def __init__(self, data: Dataset, cutoff: float) -> None:
        parts, counts = [], []
        frames = torch.arange(len(data)).split(FRAMES_AT_ONCE)
        for part in tqdm(frames, desc="Edges", leave=False, delay=PATIENCE, disable=None):
            atoms, n_atoms = data.atoms_of(part), data.n_atoms[part]
            batch = torch.arange(len(part)).repeat_interleave(n_atoms)
            cells = None if data.cells is None else data.cells[part]
            pbc = None if cells is None else cells.any(dim=2)
            index, vector = Graph(cutoff).edges(data.pos[atoms], batch, cells, pbc)
            frame = batch[index[0]]
            order = frame.argsort(stable=True)
            first = (n_atoms.cumsum(0) - n_atoms)[frame]
            parts.append(((index - first)[:, order], vector[order]))  # atoms counted by frame
            counts.append(frame.bincount(minlength=len(part)))
        indices, vectors = zip(*parts, strict=True)
        self.index, self.vector = torch.cat(indices, dim=1), torch.cat(vectors)
        self.counts = torch.cat(counts)
        self.first = self.counts.cumsum(0) - self.counts
        self.n_atoms = data.n_atoms

    def take(
        self, frames: Tensor, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> Edges:
        """Return some frames' edges, atoms counted through, their vectors in `dtype`."""
        counts, n_atoms = self.counts[frames], self.n_atoms[frames]
        first, at = repeated(self.first[frames], counts)
        shift = (n_atoms.cumsum(0) - n_atoms).repeat_interleave(counts)
        index, vector = self.index[:, first + at] + shift, self.vector[first + at]
        return Edges(index.to(device), vector.to(device, dtype))


def joined(parts: Sequence[Dataset], codes: Sequence[int | None] = ()) -> Dataset:
    """Return several data sets as one.

    Args:
        parts: the data sets, in the same units.
        codes: which part of the split each one is, as in `PARTS`; None to keep its own.

    Raises:
        ValueError: if their units are not the same.
    """
    first = parts[0]
    codes = codes or [None] * len(parts)
    if len(parts) == 1 and codes[0] is None:
        return first
    for name in ("energy_unit", "length_unit"):
        units = [getattr(part, name) for part in parts]
        expect(len(set(units)) == 1, "data", f"files of one {name.replace('_', ' ')}", units)
    own = [part.split if code is None else torch.full((len(part),), code)
           for part, code in zip(parts, codes, strict=True)]  # fmt: skip
    given = [x for x in own if x is not None]
    split = [torch.zeros(len(part)).long() if x is None else x
             for part, x in zip(parts, own, strict=True)]  # fmt: skip
    optional = {}
    for name in ("cells", "virials"):
        there = [getattr(part, name) for part in parts]
        filled = [torch.zeros(len(part), 3, 3).double() if x is None else x
                  for part, x in zip(parts, there, strict=True)]  # fmt: skip
        optional[name] = torch.cat(filled) if any(x is not None for x in there) else None
    names = ("z", "pos", "energies", "forces", "n_atoms", "labels", "weights", "alone")
    whole = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
    data = Dataset(**whole, **optional, split=torch.cat(split) if given else None)
    data.energy_unit, data.length_unit = first.energy_unit, first.length_unit
    data.notes = [note for part in parts for note in part.notes]
    counts = [0, *(part.num_read for part in parts)]
    before = accumulate(counts)
    data.numbers = torch.cat([part.numbers + n for part, n in zip(parts, before, strict=False)])
    data.num_read = sum(counts)
    return data


def element_energies_of(data: Dataset, frames: Tensor) -> Tensor:
    """Return the energies of the elements, (119,): of isolated atoms, or fitted to frames, (T,)."""
    offsets = torch.zeros(NUM_ELEMENTS, dtype=torch.float64)
    for z, energy in data.isolated_energies().items():
        offsets[z] = energy
    target = data.take(frames[data.labels[frames, 0]], torch.float64)
    fitted = ~torch.isin(target.z[:, 0], torch.tensor([*data.isolated_energies()]))
    if len(target.energies) == 0 or not fitted.any():
        return offsets
    explained = offsets[target.z[:, 0]].view(-1, 1)
    rest = target.energies - sum_over_atoms(explained, target.batch, len(target.energies))
    return offsets + fit_element_energies(target.z, rest, target.batch, fitted)


def split(
    data: Dataset, num_train: int = 0, num_validation: int | None = None,
    num_test: int | None = None, seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the indices of training, validation and test frames, drawn with a seed.

    Isolated atoms are in none of them.

    Args:
        data: the frames; where the file says which are for testing, or for validation, these are.
        num_train: how many to train on; 0 for all that are left.
        num_validation: how many choose the best weights, where the file does not say; None for a
            tenth, at most 50.
        num_test: how many to test on, likewise; None for a fifth, at most 100.
        seed: of the drawing.

    Raises:
        ValueError: for a negative number, or if there are too few frames.
    """
    numbers = {"num_train": num_train, "num_validation": num_validation, "num_test": num_test}
    for name, number in numbers.items():
        expect_not_negative(name, number or 0)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    rest, parts = order[~data.alone[order]], {}
    total = len(rest)
    expect(total > 0, "data", "frames that are no isolated atoms", f"{len(data)} of these alone")
    for name, fraction, most in (("test", 5, MOST_TEST), ("validation", 10, MOST_VALIDATION)):
        number = numbers[f"num_{name}"]
        says = None if data.split is None else data.split[rest] == PARTS[name]
        if says is not None and says.any():
            parts[name], rest = rest[says], rest[~says]
            continue
        number = max(1, min(most, total // fraction)) if number is None else number
        free = rest if data.split is None else rest[data.split[rest] == PARTS["train"]]
        parts[name] = free[:number]
        rest = rest[~torch.isin(rest, parts[name])]
    train = rest[: num_train or None]
    least = {"test": 1, "validation": max(1, num_validation or 0), "train": max(1, num_train)}
    for name, part in (
        ("train", train),
        ("validation", parts["validation"]),
        ("test", parts["test"]),
    ):
        expected = f"{least[name]} or more frames of {len(data)}"
        expect(len(part) >= least[name], f"num_{name}", expected, len(part))
    return train, parts["validation"], parts["test"]
