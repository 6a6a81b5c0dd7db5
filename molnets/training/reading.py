"""Data files: arrays in .npz and .pt; what ASE reads stands in `atoms.py`.

Axes:   T frames, N atoms of all frames, n atoms of one.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.stress import voigt_6_to_full_3x3_stress
from torch import Tensor

from molnets.checks import expect, no_file
from molnets.training.atoms import from_ase
from molnets.training.data import Dataset, joined
from molnets.training.labels import Raw, dataset, on_virials, part_of
from molnets.training.source import OPTIONS, Source

MD17 = "md17:"  # what a data set that is downloaded begins with
ARRAYS = {  # names of arrays, the first that is there is taken
    "positions": ("R", "coords", "positions", "pos", "coordinates", "xyz"),
    "energies": ("E", "energies", "energy", "e_pot", "REF_energy", "Energy", "energy_ref"),
    "forces": ("F", "forces", "force", "REF_forces", "forces_ref"),
    "stresses": ("stress", "stresses", "REF_stress"),
    "z": ("z", "Z", "nuclear_charges", "atomic_numbers", "numbers", "charges"),
    "cells": ("cell", "cells", "lattice"),
}
WEIGHTS = ("weights", "weight", "config_weight")
AS_IT_IS = Source()

Arrays = dict[str, Any]  # what a file holds by name


def load(*paths: str | Path, source: Source = AS_IT_IS) -> Dataset:
    """Read a data set from one file or several.

    `.npz` and `.pt` hold arrays: positions (T, n, 3), energies (T,) or (T, 1), forces (T, n, 3),
    and atomic numbers (n,), (T, n), 0 where a frame has fewer atoms, or one for all; or `n_atoms`
    (T,) and positions, forces and atomic numbers of all frames one after the other. Names are
    MD17's, revised MD17's and others of `ARRAYS`; `cell` (T, 3, 3) with `pbc` (T, 3), `stress`
    (T, 3, 3) or (T, 6), `weights` (T,) and `split` (T,), of names or numbers in `PARTS`, are taken
    where they are.
    Everything else is read by ASE, raw labels whatever is held fixed, with `config_weight` and
    `split`; a label whose weight (`config_forces_weight`) is 0 is none. `md17:revised ethanol`, or
    another of the names in PyG's `MD17`, is downloaded to the folder `md17` once.

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
        raise FileNotFoundError(f"path: expected a data file, got {no_file(path)}")
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
    return from_ase(path, known)


def _read_md17(name: str, root: str = "md17") -> Arrays:
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


def _read_npz(path: Path) -> Arrays:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except Exception as error:  # of many kinds, for what is no archive or cut off
        raise ValueError(f"path: expected plain arrays in {path}, got {error}") from error


def _read_pt(path: Path) -> Arrays:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whose text is long, and says how to run the code all the same
        got = type(error).__name__
        raise ValueError(f"path: expected plain tensors in {path}, got {got}") from error
    expected = f"tensors by name in {path}"
    expect(isinstance(content, dict), "path", expected, type(content).__name__)
    return {str(key): x for key, x in content.items() if not (x is None or isinstance(x, dict))}


def _tensor(name: str, x: Any) -> Tensor:
    """Return an array, tensor or list of a file in a dtype that torch can compute with.

    Raises:
        ValueError: for what holds no numbers; the message names it.
    """
    if isinstance(x, Tensor):
        ok = x.layout == torch.strided and not x.is_complex()
        expect(ok, name, "a dense array of numbers", f"{x.layout}, {x.dtype}")
        return x.detach() if x.is_floating_point() else x.detach().long()
    try:
        x = np.asarray(x)
    except (ValueError, RuntimeError) as error:  # lists of several lengths, or of tensors
        raise ValueError(f"{name}: expected an array of numbers, got {error}") from error
    if name == "split" and x.dtype.kind in "US":
        return torch.tensor([part_of(part) for part in x.astype(str).ravel().tolist()])
    expect(x.dtype.kind in "fiub", name, "an array of numbers", f"dtype {x.dtype}")
    dtype = x.dtype.newbyteorder("=") if x.dtype.kind == "f" else np.int64
    dtype = np.float64 if x.dtype.kind == "f" and x.itemsize > 8 else dtype
    return torch.from_numpy(np.asarray(x, dtype))


def _found(what: str, arrays: Arrays, source: Source) -> str | None:
    """Return the name of an array, None if it is not there.

    Raises:
        KeyError: if the name that was given is not there.
    """
    given = source.key(what)
    if given and given not in arrays:
        raise KeyError(f"{OPTIONS[what]}: expected one of {sorted(arrays)}, got {given!r}")
    there = [name for name in ARRAYS[what] if name in arrays]
    numbers = [name for name in there if not _is_text(arrays[name])]
    return given or next(iter(numbers or there), None)


def _is_text(x: Any) -> bool:
    return isinstance(x, str) or (isinstance(x, np.ndarray) and x.dtype.kind in "US")


def _names_of(found: Arrays, source: Source) -> dict[str, str]:
    """Return the names of arrays, by what stands under them.

    Raises:
        KeyError: if what is needed is not there.
    """
    names = {what: _found(what, found, source) for what in ARRAYS}
    names = {what: name for what, name in names.items() if name is not None}
    if "positions" not in names:
        expected = f"positions under one of {ARRAYS['positions']}"
        raise KeyError(f"data: expected {expected}, got only {sorted(found)}")
    if not {"energies", "forces"} & names.keys():
        raise KeyError(
            f"data: expected energies or forces, got only {sorted(found)}; --energy-key and "
            f"--forces-key choose"
        )
    if "z" not in names and names.get("energies") != "e_pot":  # that of the follow-up sheet
        raise KeyError(f"data: expected z under one of {ARRAYS['z']}, got only {sorted(found)}")
    return names


def _from_arrays(found: Arrays, source: Source) -> Dataset:
    names = _names_of(found, source)
    more = [name for name in ("n_atoms", "pbc", "split", *WEIGHTS) if name in found]
    arrays = {name: _tensor(name, found[name]) for name in (*names.values(), *more)}
    own = {what: arrays[name] for what, name in names.items()}
    positions, z = own["positions"], own.get("z", torch.ones(1))
    pos, z, n_atoms, kept = _laid_out(names["positions"], positions, z, arrays.get("n_atoms"))
    T, forces, cells, stresses = len(n_atoms), own.get("forces"), None, None
    if forces is not None:
        expected = f"{tuple(positions.shape)} as {names['positions']}"
        expect(forces.shape == positions.shape, names["forces"], expected, tuple(forces.shape))
        forces = forces.reshape(-1, 3)[kept]
    energies = own["energies"].flatten() if "energies" in own else None
    if "cells" in own:
        cells = _cells_of(own["cells"], T, arrays.get("pbc"))
    if "stresses" in own:
        stresses = _stresses_of(own["stresses"].double(), T)
    split = arrays.get("split")
    split = split.flatten() if split is not None and split.shape == (T, 1) else split
    raw = Raw(z, pos, n_atoms, cells, energies, forces, stresses)
    weights, notes = _weights_of(arrays, T)
    data = dataset(source, raw, names, split=split, weights=weights)
    data.notes += notes + on_virials(found, names)
    return data


def _weights_of(arrays: dict[str, Tensor], num_frames: int) -> tuple[Tensor | None, list[str]]:
    """Return weights (T,), None if there are none, and which arrays are taken for them."""
    there = [name for name in WEIGHTS if name in arrays]
    if not there:
        return None, []
    weights = arrays[there[0]]
    weights = weights.flatten() if weights.shape == (num_frames, 1) else weights
    notes = [f"weights {there[0]!r} taken"]
    return weights, notes + [f"{name} not read: {there[0]} is" for name in there[1:]]


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
    pbc = pbc.flatten() if pbc.shape in ((1, 1), (1, 3), (num_frames, 1)) else pbc
    ok = tuple(pbc.shape) in ((), (1,), (3,), (num_frames,), (num_frames, 3))
    expect(ok, "pbc", f"({num_frames}, 3), ({num_frames},), (3,) or one", tuple(pbc.shape))
    pbc = pbc.bool().view(-1, 1) if pbc.shape == (num_frames,) != (3,) else pbc.bool()
    return cells * pbc.expand(num_frames, 3).unsqueeze(2)


def _stresses_of(stresses: Tensor, num_frames: int) -> Tensor:
    """Return stresses (T, 3, 3) from these, (T, 9), or (T, 6) in the order xx yy zz yz xz xy."""
    if stresses.shape == (num_frames, 6):
        return torch.from_numpy(np.stack([voigt_6_to_full_3x3_stress(s) for s in stresses.numpy()]))
    one = num_frames == 1 and stresses.shape == (3, 3)
    ok = one or stresses.shape in ((num_frames, 3, 3), (num_frames, 1, 3, 3), (num_frames, 9))
    expect(ok, "stress", f"({num_frames}, 3, 3) or ({num_frames}, 6)", tuple(stresses.shape))
    return stresses.reshape(num_frames, 3, 3)
