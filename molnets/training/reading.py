"""Data files: arrays in .npz and .pt, and whatever ASE reads.

Axes:   T frames, N atoms of all frames, n atoms of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ase import Atoms
from ase.stress import voigt_6_to_full_3x3_stress
from torch import Tensor

from molnets.checkpoint import UNKNOWN
from molnets.checks import expect
from molnets.training.data import PARTS, Dataset, joined
from molnets.training.source import OPTIONS, REDUCED_UNITS, Source

MD17 = "md17:"  # what a data set that is downloaded begins with
ARRAYS = {  # names of arrays, the first that is there is taken
    "positions": ("R", "coords", "positions", "pos", "coordinates", "xyz"),
    "energies": ("E", "energies", "energy", "e_pot", "REF_energy", "Energy", "energy_ref"),
    "forces": ("F", "forces", "force", "REF_forces", "forces_ref"),
    "stresses": ("stress", "stresses", "REF_stress"),
    "z": ("z", "Z", "nuclear_charges", "atomic_numbers", "numbers", "charges"),
    "cells": ("cell", "cells", "lattice"),
}
LABELS = {  # the same in what ASE reads; a reference's name goes before a calculator's
    "energies": ("REF_energy", "energy", "Energy", "energies", "free_energy"),
    "forces": ("REF_forces", "forces", "force", "Forces"),
    "stresses": ("REF_stress", "stress", "stresses"),
}


AS_IT_IS = Source()


def load(*paths: str | Path, source: Source = AS_IT_IS) -> Dataset:
    """Read a data set from one file or several.

    `.npz` and `.pt` hold arrays: positions (T, n, 3), energies (T,) or (T, 1), forces (T, n, 3),
    and atomic numbers (n,), (T, n), 0 where a frame has fewer atoms, or one for all; or `n_atoms`
    (T,) and positions, forces and atomic numbers of all frames one after the other. Names are
    MD17's, revised MD17's and others of `ARRAYS`; `cell` (T, 3, 3), `stress` (T, 3, 3) or (T, 6),
    `weights` (T,) and `split` (T,) are taken where they are. Everything else is read by ASE, raw
    labels whatever is held fixed, with `config_weight`. `md17:revised ethanol`, or another of the
    names in PyG's `MD17`, is downloaded to the folder `md17` once.

    What was found and done stands in the data's `notes`.

    Raises:
        FileNotFoundError: if there is no such file.
        ConnectionError: if a data set can't be downloaded.
        KeyError: if labels are missing; the message names those that are there.
        ValueError: if a file holds something else than plain arrays, or bad values.
    """
    expect(len(paths) > 0, "path", "at least one data file", "none")
    parts = [_load_one(path, source) for path in paths]
    return joined(parts).without_duplicates()


def _load_one(path: str | Path, source: Source) -> Dataset:
    if str(path).startswith(MD17):
        source = replace(source, energy_unit="kcal/mol", length_unit="Å")
        return _from_arrays(_read_md17(str(path).removeprefix(MD17)), source)
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path: expected a data file, got {path}, where no file is")
    if path.suffix in (".npz", ".pt", ".pth"):
        ok = not (source.force_unit or source.stress_unit)
        ok = ok or bool(source.energy_unit and source.length_unit)
        named = source.energy_unit, source.length_unit
        expect(ok, "energy_unit, length_unit", "both, where another unit is given", named)
    if path.suffix == ".npz":
        return _from_arrays(_read_npz(path), source)
    if path.suffix in (".pt", ".pth"):
        return _from_arrays(_read_pt(path), source)
    known = replace(source, energy_unit=source.energy_unit or "eV",
                    length_unit=source.length_unit or "Å")  # fmt: skip
    return _from_ase(path, known)


def _read_md17(name: str, root: str = "md17") -> dict[str, Tensor]:
    """Let PyG download, and read the file itself: PyG rounds energies to float32, 0.3 meV off."""
    from torch_geometric import datasets

    names = [name for name in datasets.MD17.file_names if "CCSD" not in name]  # one file each
    if name not in names:
        raise ValueError(f"path: expected {MD17} and one of {names}, got {name!r}")
    try:
        raw = datasets.MD17(root, name).raw_paths[0]
    except OSError as error:
        raise ConnectionError(f"path: expected to download {name!r}, got {error}") from error
    return _read_npz(Path(raw))


def _read_npz(path: Path) -> dict[str, Tensor]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except Exception as error:  # of many kinds, for what is no archive or cut off
        raise ValueError(f"path: expected plain arrays in {path}, got {error}") from error
    if "split" in arrays and arrays["split"].dtype.kind in "US":
        arrays["split"] = np.array([_part_of(str(name)) for name in arrays["split"].ravel()])
    numbers = {key: x for key, x in arrays.items() if x.dtype.kind in "fiub"}
    return {key: _as_tensor(x) for key, x in numbers.items()}


def _part_of(name: str) -> int:
    """Return the number of a part of the split that has a name."""
    found = [number for part, number in PARTS.items() if name and part.startswith(name.lower())]
    expect(len(found) == 1, "split", f"one of {list(PARTS)}", repr(name))
    return found[0]


def _as_tensor(x: np.ndarray) -> Tensor:
    """Return an array in a dtype that torch can compute with, and in this machine's byte order."""
    dtype = x.dtype.newbyteorder("=") if x.dtype.kind == "f" else np.int64
    dtype = np.float64 if x.dtype.kind == "f" and x.itemsize > 8 else dtype
    return torch.from_numpy(np.asarray(x, dtype))


def _read_pt(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whose text is long, and says how to run the code all the same
        got = type(error).__name__
        raise ValueError(f"path: expected plain tensors in {path}, got {got}") from error
    expected = f"tensors by name in {path}"
    expect(isinstance(content, dict), "path", expected, type(content).__name__)
    return {key: x.detach() for key, x in content.items() if isinstance(x, Tensor)}


def _found(what: str, arrays: dict[str, Tensor], source: Source) -> str | None:
    """Return the name of an array, None if it is not there.

    Raises:
        KeyError: if the name that was given is not there.
    """
    given = source.key(what)
    if given and given not in arrays:
        raise KeyError(f"{OPTIONS[what]}: expected one of {sorted(arrays)}, got {given!r}")
    return given or next((name for name in ARRAYS[what] if name in arrays), None)


def _from_arrays(arrays: dict[str, Tensor], source: Source) -> Dataset:
    names = {what: _found(what, arrays, source) for what in ARRAYS}
    if names["positions"] is None:
        expected = f"positions under one of {ARRAYS['positions']}"
        raise KeyError(f"data: expected {expected}, got only {sorted(arrays)}")
    if names["energies"] is names["forces"] is None:
        raise KeyError(
            f"data: expected energies or forces, got only {sorted(arrays)}; --energy-key and "
            f"--forces-key choose"
        )
    positions = arrays[names["positions"]]
    if names["z"] is None and names["energies"] != "e_pot":  # that of the follow-up sheet
        raise KeyError(f"data: expected z under one of {ARRAYS['z']}, got only {sorted(arrays)}")
    z = arrays[names["z"]] if names["z"] else torch.ones(1)
    pos, z, n_atoms, kept = _laid_out(names["positions"], positions, z, arrays.get("n_atoms"))
    T = len(n_atoms)
    forces = None if names["forces"] is None else arrays[names["forces"]]
    if forces is not None:
        ok = forces.shape == positions.shape
        got = tuple(forces.shape)
        expect(ok, f"{names['forces']}", f"{tuple(positions.shape)} as {names['positions']}", got)
        forces = forces.reshape(-1, 3)[kept]
    energies = None if names["energies"] is None else arrays[names["energies"]].flatten()
    cells = (
        None if names["cells"] is None else _cells_of(arrays[names["cells"]], T, arrays.get("pbc"))
    )
    stresses = None
    if names["stresses"] is not None:
        stresses = _stresses_of(arrays[names["stresses"]].double(), T)
    used = {what: name for what, name in names.items() if name is not None}
    more = {name: arrays[name] for name in ("split", "weights") if name in arrays}
    given = _Frames(z, pos, n_atoms, cells, energies, forces, stresses)
    return _dataset(source, given, used, **more)


def _laid_out(
    name: str, positions: Tensor, z: Tensor, n_atoms: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return positions (N, 3), atomic numbers (N,) and sizes (T,), and which rows are kept."""
    one, n_atoms = z.numel() == 1, None if n_atoms is None else n_atoms.flatten().long()
    if n_atoms is not None and positions.ndim == 2:
        z = z.flatten().expand(len(positions)) if one else z.flatten()
        expected = f"numbers above 0, {len(positions)} in all, as {name} has rows"
        ok = len(n_atoms) > 0 and n_atoms.min() > 0 and int(n_atoms.sum()) == len(positions)
        expect(ok, "n_atoms", expected, n_atoms.tolist())
        return positions, z, n_atoms, torch.ones(len(positions), dtype=torch.bool)
    if positions.ndim != 3 or positions.shape[2] != 3:
        raise ValueError(f"{name}: expected shape (T, n, 3), got {tuple(positions.shape)}")
    T, n, _ = positions.shape
    shapes = f"({n},), ({T}, {n}) or one number"
    z = z.flatten() if z.shape not in ((T, n), (T, n, 1)) else z.reshape(T, n)
    expect(one or z.shape in ((n,), (T, n)), "z", shapes, tuple(z.shape))
    z = z.expand(T, n)
    kept = z != 0  # where a frame has fewer atoms than others
    if n_atoms is not None:
        ok = len(n_atoms) in (1, T) and n_atoms.min() > 0 and n_atoms.max() <= n
        expect(ok, "n_atoms", f"({T},) numbers from 1 to {n}", n_atoms.tolist())
        kept = torch.arange(n).expand(T, n) < n_atoms.view(-1, 1)
    n_atoms = kept.sum(dim=1) if T else torch.zeros(0, dtype=torch.int64)
    return positions[kept], z[kept], n_atoms, kept.flatten()


def _cells_of(cells: Tensor, num_frames: int, pbc: Tensor | None) -> Tensor:
    """Return cells (T, 3, 3) from these or one for all, (3, 3), 0 along what is not periodic.

    Args:
        cells: lattice vectors in rows.
        num_frames: T.
        pbc: truth values, (T, 3), (T,), (3,) or one; None for all.
    """
    cells = cells.expand(num_frames, 3, 3) if cells.shape == (3, 3) else cells
    shape = (num_frames, 3, 3)
    expect(cells.shape == shape, "cells", f"{shape} or (3, 3)", tuple(cells.shape))
    if pbc is None:
        return cells
    pbc = pbc.bool().view(-1, 1) if pbc.shape == (num_frames,) != (3,) else pbc.bool()
    ok = pbc.numel() in (1, 3, num_frames, 3 * num_frames)
    expect(ok, "pbc", f"({num_frames}, 3), ({num_frames},), (3,) or one", tuple(pbc.shape))
    return cells * pbc.expand(num_frames, 3).unsqueeze(2)


def _stresses_of(stresses: Tensor, num_frames: int) -> Tensor:
    """Return stresses (T, 3, 3) from these, (T, 9), or (T, 6) in the order xx yy zz yz xz xy."""
    if stresses.shape == (num_frames, 6):
        return torch.from_numpy(np.stack([voigt_6_to_full_3x3_stress(s) for s in stresses.numpy()]))
    ok = stresses.numel() == 9 * num_frames
    expect(ok, "stress", f"({num_frames}, 3, 3) or ({num_frames}, 6)", tuple(stresses.shape))
    return stresses.reshape(num_frames, 3, 3)


class _Frames(NamedTuple):
    """What a file holds of its frames, in its units; None and NaN are no labels."""

    z: Tensor  # (N,)
    pos: Tensor  # (N, 3)
    n_atoms: Tensor  # (T,)
    cells: Tensor | None  # (T, 3, 3)
    energies: Tensor | None  # (T,)
    forces: Tensor | None  # (N, 3)
    stresses: Tensor | None  # (T, 3, 3)


def _dataset(
    source: Source, given: _Frames, used: dict[str, str], **more: Tensor | None
) -> Dataset:
    """Return a data set in eV and Å, if the units are known."""
    z, pos, n_atoms, cells, energies, forces, stresses = given
    T, N = len(n_atoms), len(pos)
    energies = torch.full((T,), torch.nan).double() if energies is None else energies.double()
    forces = torch.full((N, 3), torch.nan).double() if forces is None else forces.double()
    expect(energies.shape == (T,), "energies", f"({T},)", tuple(energies.shape))
    expect(forces.shape == pos.shape, "forces", f"{tuple(pos.shape)}", tuple(forces.shape))
    E, L, F, S = source.factors()
    virials = None
    if stresses is not None and cells is not None:
        volume = torch.linalg.det(cells.double() * L).abs().view(-1, 1, 1)
        virials = S * stresses.double() * volume
        virials[volume.flatten() == 0] = torch.nan
    labels, filled = _labels(n_atoms, energies, forces, virials)
    energies, forces, virials = filled
    data = Dataset(
        z, pos.double() * L, energies * E, forces * F, n_atoms,
        None if cells is None else cells.double() * L, virials=virials, labels=labels,
        **more,
    )  # fmt: skip
    E, L = source.energy_unit, source.length_unit
    data.energy_unit = E if E in REDUCED_UNITS else "eV" if E else UNKNOWN
    data.length_unit = L if L in REDUCED_UNITS else "Å" if L else UNKNOWN
    data.notes = _notes(source, data, used)
    return data


def _labels(
    n_atoms: Tensor, energies: Tensor, forces: Tensor, virials: Tensor | None
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor | None]]:
    """Return which labels are there, (T, 3), and all of them with 0 in place of those that are not.

    A frame's label is not there if all of its numbers are NaN.
    """
    frame = torch.arange(len(n_atoms)).repeat_interleave(n_atoms)
    missing = torch.ones(len(n_atoms), dtype=torch.int64)
    missing = missing.scatter_reduce(0, frame, forces.isnan().all(dim=1).long(), "amin")
    known = [~energies.isnan(), missing == 0]
    known.append(
        torch.zeros_like(known[0]) if virials is None else ~virials.isnan().all(dim=2).all(dim=1)
    )
    labels = torch.stack(known, dim=1)
    energies = torch.where(labels[:, 0], energies, 0.0)
    forces = torch.where(labels[frame, 1].unsqueeze(1), forces, 0.0)
    virials = virials if virials is None else torch.where(labels[:, 2, None, None], virials, 0.0)
    return labels, (energies, forces, virials if labels[:, 2].any() else None)


def _notes(source: Source, data: Dataset, used: dict[str, str]) -> list[str]:
    names = ", ".join(f"{what} {name!r}" for what, name in used.items())
    notes = [f"taken: {names}"]
    if any(x != 1.0 for x in source.factors()):
        energy, length = source.energy_unit or "energies", source.length_unit or "lengths"
        forces = source.force_unit or f"{energy}/{length}"
        notes.append(f"converted to eV and Å from {energy}, {length}, forces {forces}")
    for what, known in zip(LABELS, data.labels.T, strict=True):
        if what != "stresses" or known.any():
            missing = int((~known).sum())
            if missing:
                notes.append(f"{missing} of {len(data)} frames have no {what}")
    return notes


def _from_ase(path: Path, source: Source) -> Dataset:
    from ase.io import read

    try:
        frames = _rows_of(path) if path.suffix == ".db" else read(path, index=":")
    except Exception as error:  # each format has its own
        got = f"{type(error).__name__} {error}"
        raise ValueError(f"path: expected a file that ASE reads, {path}, got {got}") from error
    if not frames:
        raise ValueError(f"path: expected frames in {path}, got none")
    held = [_held_by(atoms) for atoms in frames]
    names = {what: _name_in(held, what, source, path) for what in LABELS}
    if names["energies"] is names["forces"] is None:
        raise KeyError(
            f"path: expected energies or forces in {path}, got frames with "
            f"{sorted(set().union(*held))}; --energy-key and --forces-key choose"
        )
    parts: dict[str, list[np.ndarray]] = {what: [] for what in LABELS}
    for number, (atoms, own) in enumerate(zip(frames, held, strict=True)):
        shapes = {"energies": (1,), "forces": (len(atoms), 3), "stresses": (3, 3)}
        for what, shape in shapes.items():
            value = own.get(names[what])
            parts[what].append(_as_shape(value, shape, f"{names[what]} of frame {number}"))
    used = {what: name for what, name in names.items() if name is not None}
    cells = np.stack([atoms.cell.array * atoms.pbc[:, None] for atoms in frames])
    weights = [float(own.get("config_weight", 1.0)) for own in held]
    types = [str(own.get("config_type", "")).lower() for own in held]
    single = [len(atoms) == 1 for atoms in frames]
    alone = [one and (kind == "isolatedatom" or not atoms.pbc.any())
             for one, kind, atoms in zip(single, types, frames, strict=True)]  # fmt: skip
    given = _Frames(
        torch.as_tensor(np.concatenate([atoms.numbers for atoms in frames])),
        torch.as_tensor(np.concatenate([atoms.positions for atoms in frames])),
        torch.tensor([len(atoms) for atoms in frames]), torch.as_tensor(cells),
        torch.from_numpy(np.concatenate(parts["energies"])),
        torch.from_numpy(np.concatenate(parts["forces"])),
        torch.from_numpy(np.stack(parts["stresses"])),
    )  # fmt: skip
    data = _dataset(source, given, used, weights=torch.tensor(weights, dtype=torch.float64),
                    alone=torch.tensor(alone))  # fmt: skip
    unread = sorted(name for name in set().union(*held) if "virial" in name.lower())
    if unread and names["stresses"] is None:
        data.notes.append(f"{', '.join(unread)} not read: stresses are, in energy / length³")
    return data


def _rows_of(path: Path) -> list[Atoms]:
    """Return the rows of a database with all that they hold, which ASE's `read` leaves out."""
    from ase.db import connect

    with connect(path) as database:
        return [row.toatoms(add_additional_information=True) for row in database.select()]


def _held_by(atoms: Atoms) -> dict[str, Any]:
    """Return all that a frame holds by name; results of a calculator as they are stored."""
    found = dict(atoms.info.get("data") or {}) | dict(atoms.info.get("key_value_pairs") or {})
    found |= dict(atoms.calc.results) if atoms.calc is not None else {}
    own = {name: x for name, x in atoms.arrays.items() if name not in ("numbers", "positions")}
    return (
        found | own | {k: x for k, x in atoms.info.items() if k not in ("data", "key_value_pairs")}
    )


def _name_in(held: Sequence[dict[str, Any]], what: str, source: Source, path: Path) -> str | None:
    """Return the name under which frames hold energies, forces or stresses: one for all."""
    given, there = source.key(what), set().union(*held)
    if given and given not in there:
        raise KeyError(f"{OPTIONS[what]}: expected one of {sorted(there)} in {path}, got {given!r}")
    return given or next((name for name in LABELS[what] if name in there), None)


def _as_shape(value: Any, shape: tuple[int, ...], name: str) -> np.ndarray:
    """Return a label as an array of a shape; NaN if there is none."""
    if value is None:
        return np.full(shape, np.nan)
    array = np.asarray(value, dtype=np.float64)
    if shape == (3, 3) and array.size == 6:
        array = voigt_6_to_full_3x3_stress(array.ravel())
    expect(array.size == np.prod(shape), name, f"shape {shape}", array.shape)
    return array.reshape(shape)
