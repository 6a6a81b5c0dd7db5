"""Training data: frames with energies and forces, from .npz, .pt or any file that ASE reads.

The edges of the frames are found once, since the frames do not move.

Axes:   T frames, N atoms of all frames one after the other, B samples of a batch, E edges.
Units:  those of the file; nothing is converted.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from molnets.checkpoint import UNKNOWN
from molnets.checks import expect, expect_not_negative
from molnets.edges import Edges, Graph, repeated
from molnets.potential import NUM_ELEMENTS
from molnets.tables import Frames

NAMES = ({"pos": "R", "energies": "E", "forces": "F", "z": "z"},
         {"pos": "coords", "energies": "energies", "forces": "forces", "z": "nuclear_charges"},
         {"pos": "positions", "energies": "e_pot", "forces": "forces"})  # fmt: skip
MD17 = "md17:"  # what a data set that is downloaded begins with
FRAMES_AT_ONCE = 256  # whose edges are searched in one call
PATIENCE = 2.0  # seconds without a progress bar
UNIT_FACTOR = 3.0  # eV and kcal/mol differ by 23, eV and Hartree by 27


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
        split: 0 for a frame to train on, 1 for a test frame, (T,), where the file says so.
        virials: ∂E/∂ε of a strain ε, the stress times the volume, (T, 3, 3).
        labels: whether a frame's energy, forces and virial are known, (T, 3); None for all that are
            given. What is not known is 0.
        weights: how much the frames count in the loss, (T,).

    Attributes:
        energy_unit: unit of the energies, if it is known; forces are energy / length.
        length_unit: unit of the positions, if it is known.

    Raises:
        ValueError: for shapes that do not fit together, values that are not finite, atomic numbers
            that are none, or two atoms of a frame in one place.
    """

    def __init__(
        self, z: Tensor, pos: Tensor, energies: Tensor, forces: Tensor, n_atoms: Tensor,
        cells: Tensor | None = None, split: Tensor | None = None, virials: Tensor | None = None,
        labels: Tensor | None = None, weights: Tensor | None = None,
    ) -> None:  # fmt: skip
        num_frames, num_atoms = len(n_atoms), int(n_atoms.sum())
        expected = {
            "z": (num_atoms,),
            "pos": (num_atoms, 3),
            "energies": (num_frames,),
            "forces": (num_atoms, 3),
            "cells": (num_frames, 3, 3),
            "split": (num_frames,),
            "virials": (num_frames, 3, 3),
            "labels": (num_frames, 3),
            "weights": (num_frames,),
        }
        given = {"z": z, "pos": pos, "energies": energies, "forces": forces, "cells": cells,
                 "split": split, "virials": virials, "labels": labels,
                 "weights": weights}  # fmt: skip
        given = {name: x for name, x in given.items() if x is not None}
        ok = num_frames > 0 and int(n_atoms.min()) > 0
        expect(ok, "n_atoms", "at least one frame, and atoms in every frame", n_atoms.tolist())
        for name, tensor in given.items():
            shape = tuple(tensor.shape)
            expect(shape == expected[name], name, str(expected[name]), shape)
            if not tensor.isfinite().all():
                entry = int((~tensor.isfinite()).nonzero()[0, 0])
                raise ValueError(f"{name}: expected finite numbers, got others in entry {entry}")
        known = (z.double() == z.long()) & (z >= 0) & (z < NUM_ELEMENTS)
        expected = f"whole atomic numbers below {NUM_ELEMENTS}"
        expect(known.all(), "z", expected, z[~known].unique().tolist())
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
        self.first = self.n_atoms.cumsum(0) - self.n_atoms
        self.energy_unit = self.length_unit = UNKNOWN
        self._edges: dict[float, FrameEdges] = {}
        self._check_distances()

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.n_atoms)

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
            if len(pos) > 1 and torch.pdist(pos).min() == 0:
                raise ValueError(
                    f"pos: expected distinct positions, got two equal in frame {frame}"
                )


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


def load(path: str | Path) -> Dataset:
    """Read a dataset; the file's ending decides how.

    `.npz` and `.pt` hold `R, E, F, z` (MD17's names), `coords, energies, forces, nuclear_charges`
    (revised MD17's), or `positions, e_pot, forces` (one atom type, Z = 1), of shape (T, n, 3), (T,)
    or (T, 1), (T, n, 3) and (n,); or `n_atoms` (T,) and `R, F, z` of all frames one after the
    other. `cell` (T, 3, 3) and `split` (T,) are taken where they are. Everything else is read by
    ASE, with the energies and forces that the file holds. `md17:revised ethanol`, or another of
    the names in PyG's `MD17`, is downloaded to the folder `md17` once; it is in kcal/mol and Å.

    Raises:
        FileNotFoundError: if there is no such file.
        ConnectionError: if a data set can't be downloaded.
        KeyError: if an array is missing; the message names it.
        ValueError: if the file holds something else than plain arrays, or bad values.
    """
    if str(path).startswith(MD17):
        return _from_md17(str(path).removeprefix(MD17))
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path: expected a data file, got {path}, where no file is")
    if path.suffix == ".npz":
        return _from_arrays(_read_npz(path))
    if path.suffix in (".pt", ".pth"):
        return _from_arrays(_read_pt(path))
    return _from_ase(path)


def _from_md17(name: str, root: str = "md17") -> Dataset:
    """Let PyG download, and read the file itself: PyG rounds energies to float32, 0.3 meV off."""
    from torch_geometric import datasets

    names = [name for name in datasets.MD17.file_names if "CCSD" not in name]  # one file each
    if name not in names:
        raise ValueError(f"path: expected {MD17} and one of {names}, got {name!r}")
    try:
        raw = datasets.MD17(root, name).raw_paths[0]
    except OSError as error:
        raise ConnectionError(f"path: expected to download {name!r}, got {error}") from error
    data = _from_arrays(_read_npz(Path(raw)))
    data.energy_unit, data.length_unit = "kcal/mol", "Å"
    return data


def _read_npz(path: Path) -> dict[str, Tensor]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except Exception as error:  # of many kinds, for what is no archive or cut off
        raise ValueError(f"path: expected plain arrays in {path}, got {error}") from error
    numbers = {key: x for key, x in arrays.items() if x.dtype.kind in "fiub"}
    return {key: _as_tensor(x) for key, x in numbers.items()}


def _as_tensor(x: np.ndarray) -> Tensor:
    """Return an array in a dtype that torch can compute with, and in this machine's byte order."""
    dtype = x.dtype.newbyteorder("=") if x.dtype.kind == "f" else np.int64
    return torch.from_numpy(np.asarray(x, dtype))


def _read_pt(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whose text is long, and says how to run the code all the same
        got = type(error).__name__
        raise ValueError(f"path: expected plain tensors in {path}, got {got}") from error
    expected = f"tensors by name in {path}"
    expect(isinstance(content, dict), "path", expected, type(content).__name__)
    return {key: x for key, x in content.items() if isinstance(x, Tensor)}


def _from_arrays(arrays: dict[str, Tensor]) -> Dataset:
    names = next((names for names in NAMES if names["pos"] in arrays), NAMES[0])
    missing = [key for key in names.values() if key not in arrays]
    if missing:
        raise KeyError(f"data: expected the arrays {missing}, got only {sorted(arrays)}")
    pos, energies, forces = (arrays[names[key]] for key in ("pos", "energies", "forces"))
    if "n_atoms" in arrays:
        n_atoms, z = arrays["n_atoms"], arrays[names["z"]]
    elif pos.ndim != 3 or pos.shape[2] != 3:
        raise ValueError(f"{names['pos']}: expected shape (T, n, 3), got {tuple(pos.shape)}")
    else:
        n_atoms = torch.full((pos.shape[0],), pos.shape[1])
        z = arrays.get(names.get("z", "z"), torch.ones(pos.shape[1])).flatten()
        if forces.shape != pos.shape or len(z) != pos.shape[1]:
            raise ValueError(
                f"{names['forces']}, z: expected {tuple(pos.shape)} and ({pos.shape[1]},) as "
                f"{names['pos']}, got {tuple(forces.shape)} and ({len(z)},)"
            )
        pos, forces, z = pos.reshape(-1, 3), forces.reshape(-1, 3), z.repeat(len(n_atoms))
    return Dataset(
        z, pos, energies.flatten(), forces, n_atoms, arrays.get("cell"), arrays.get("split")
    )


def _from_ase(path: Path) -> Dataset:
    from ase.calculators.calculator import PropertyNotImplementedError
    from ase.io import read

    try:
        frames = read(path, index=":")
    except Exception as error:  # each format has its own
        got = f"{type(error).__name__} {error}"
        raise ValueError(f"path: expected a file that ASE reads, {path}, got {got}") from error
    if not frames:
        raise ValueError(f"path: expected frames in {path}, got none")
    bare = {"apply_constraint": False}  # atoms that were held fixed have forces all the same
    try:
        energies = [atoms.get_potential_energy(**bare) for atoms in frames]
        forces = np.concatenate([atoms.get_forces(**bare) for atoms in frames])
    except (PropertyNotImplementedError, RuntimeError) as error:
        raise KeyError(f"path: expected energies and forces in {path}, got {error}") from error
    cells = np.stack([atoms.cell.array * atoms.pbc[:, None] for atoms in frames])
    data = Dataset(
        torch.as_tensor(np.concatenate([atoms.numbers for atoms in frames])),
        torch.as_tensor(np.concatenate([atoms.positions for atoms in frames])),
        torch.tensor(energies, dtype=torch.float64), torch.as_tensor(forces),
        torch.tensor([len(atoms) for atoms in frames]), torch.as_tensor(cells),
    )  # fmt: skip
    data.energy_unit, data.length_unit = "eV", "Å"  # ASE's
    return data


def check_units(data: Dataset, max_frames: int = 300) -> float | None:
    """Compare energies and forces: return the slope of ΔE against −½ (F + F') · Δr, about 1.

    Each frame is compared with the one of the same shape that is nearest to it. Where the two
    correlate well but the slope is far from 1, energies and forces are in different units.

    Raises:
        ValueError: if the slope is off by more than a factor of 3.
    """
    num = min(len(data), max_frames)
    if data.cells is not None or num < 3 or (data.n_atoms != data.n_atoms[0]).any():
        return None
    pos, forces = (x.view(len(data), -1)[:num] for x in (data.pos, data.forces))
    nearest = (torch.cdist(pos, pos) + torch.eye(num) * 1e12).argmin(dim=1)
    work = -(0.5 * (forces + forces[nearest]) * (pos[nearest] - pos)).sum(dim=1)
    change = data.energies[nearest] - data.energies[:num]
    if not torch.corrcoef(torch.stack([work, change]))[0, 1] >= 0.7:  # NaN where one is constant
        return None
    slope = float((work * change).sum() / work.square().sum())
    if not 1 / UNIT_FACTOR < slope < UNIT_FACTOR:
        raise ValueError(
            f"energies, forces: expected forces in the energy unit per length unit, got energies "
            f"that change {slope:.3g} times as much as the forces say"
        )
    return slope


def split(
    data: Dataset, num_train: int, num_validation: int, num_test: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the indices of training, validation and test frames, drawn with a seed.

    Args:
        data: the frames; where the file says which are for testing, these are the test frames.
        num_train: how many to train on; 0 for all that are left.
        num_validation: how many choose the best weights.
        num_test: how many to test on, where the file does not say.
        seed: of the drawing.

    Raises:
        ValueError: for a negative number, or if there are too few frames.
    """
    numbers = {"num_train": num_train, "num_validation": num_validation, "num_test": num_test}
    for name, number in numbers.items():
        expect_not_negative(name, number)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    if data.split is None:
        test, rest = order[:num_test], order[num_test:]
    else:
        test, rest = order[data.split[order] == 1], order[data.split[order] == 0]
    validation, train = rest[:num_validation], rest[num_validation:]
    train = train[: num_train or None]
    for name, part, least in (("num_train", train, max(1, num_train)),
                              ("num_validation", validation, max(1, num_validation)),
                              ("num_test", test, 1)):  # fmt: skip
        expected = f"{least} or more frames of {len(data)}"
        expect(len(part) >= least, name, expected, len(part))
    return train, validation, test
