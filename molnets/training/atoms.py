"""Data files that ASE reads: what their frames hold by name.

Axes:   T frames, n atoms of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.geometry import minkowski_reduce
from ase.stress import voigt_6_to_full_3x3_stress
from torch import Tensor

from molnets.checks import expect
from molnets.training.data import MOST_APART, Dataset
from molnets.training.labels import Raw, dataset, on_virials, part_of
from molnets.training.source import OPTIONS, Source

LABELS = {  # names, the first that is there is taken; a reference's goes before a calculator's
    "energies": ("REF_energy", "energy", "Energy", "energies", "free_energy"),
    "forces": ("REF_forces", "forces", "force", "Forces"),
    "stresses": ("REF_stress", "stress", "stresses"),
}
WEIGHTS = {  # MACE's, of the labels of one frame
    "energies": "config_energy_weight",
    "forces": "config_forces_weight",
    "stresses": "config_stress_weight",
}

FAR = 8.0  # Å from an atom to its image, beyond which it is an isolated one
SMEARED = 1e-3  # eV between an energy and its free energy
DATABASES = (".db", ".json")  # of `ase.db`

Held = Sequence[dict[str, Any]]  # what frames hold by name
Labels = dict[str, list[np.ndarray]]  # of each frame, NaN where there is none


def from_ase(path: Path, source: Source) -> Dataset:
    """Read a data set from a file that ASE reads, in eV and Å but for what `source` says.

    Raises:
        KeyError: if labels are missing; the message names those that are there.
        ValueError: if ASE does not read the file, for atoms without an element, and for values of
            other shapes or kinds; the message names file, frame and key.
    """
    frames = _frames_of(path)
    held = [_held_by(atoms) for atoms in frames]
    names = {what: _name_in(held, what, source, path) for what in LABELS}
    if names["energies"] is names["forces"] is None:
        raise KeyError(
            f"path: expected energies or forces in {path}, got frames with "
            f"{sorted(set().union(*held))}; --energy-key and --forces-key choose"
        )
    used = {what: name for what, name in names.items() if name is not None}
    labels = _labels_of(frames, held, names, path)
    alone = _alone(frames, held, labels["energies"], source.factors()[1])
    notes = _left_out(labels, held, used, alone, path)
    split, unread = _split_of(held, alone, path)
    data = dataset(source, _raw(frames, labels), used, split=split, alone=torch.tensor(alone),
                   weights=_weights(held, "config_weight", path))  # fmt: skip
    data.notes += notes + unread + on_virials(set().union(*held), used)
    data.notes += _on_other_names(held, used) + _on_smearing(held, used, labels["energies"])
    data.notes += _on_cells(frames, alone)
    return data


def _frames_of(path: Path) -> list[Atoms]:
    """Return the frames of a file, all atoms of which are elements."""
    from ase.io import read

    try:
        if path.suffix in DATABASES:
            frames = _rows_of(path)
        else:
            frames = read(path, index=":", do_not_split_by_at_sign=True)
    except Exception as error:  # each format has its own
        got = f"{type(error).__name__} {error}"
        raise ValueError(f"path: expected a file that ASE reads, {path}, got {got}") from error
    expect(len(frames) > 0, "path", f"frames in {path}", "none")
    for number, atoms in enumerate(frames):
        got = f"dummy atoms X, of atomic number 0, in frame {number}"
        expect(atoms.numbers.all(), "z", f"elements in {path}", got)
    return frames


def _rows_of(path: Path) -> list[Atoms]:
    """Return the rows of a database with all that they hold, which ASE's `read` leaves out."""
    from ase.db import connect

    with connect(path) as database:
        return [row.toatoms(add_additional_information=True) for row in database.select()]


def _held_by(atoms: Atoms) -> dict[str, Any]:
    """Return all that a frame holds by name; results of a calculator as they are stored."""
    found: dict[Any, Any] = {}
    for name in ("data", "key_value_pairs"):  # of a row of a database
        value = atoms.info.get(name)
        found |= value if isinstance(value, dict) else {}
    found |= atoms.calc.results if atoms.calc is not None else {}
    found |= {name: x for name, x in atoms.arrays.items() if name not in ("numbers", "positions")}
    found |= {name: x for name, x in atoms.info.items() if not isinstance(x, dict)}
    return {str(name): x for name, x in found.items()}


def _name_in(held: Held, what: str, source: Source, path: Path) -> str | None:
    """Return the name under which frames hold energies, forces or stresses: one for all."""
    given, there = source.key(what), set().union(*held)
    if given and given not in there:
        raise KeyError(f"{OPTIONS[what]}: expected one of {sorted(there)} in {path}, got {given!r}")
    return given or next((name for name in LABELS[what] if name in there), None)


def _alone(
    frames: Sequence[Atoms], held: Held, energies: Sequence[np.ndarray], length: float
) -> list[bool]:
    """Return which frames are isolated atoms: that say so, open ones, and those far from images.

    Atoms in large cells are not, if an element has several energies: along a curve, say.

    Args:
        frames: the frames.
        held: what they hold by name.
        energies: their energies.
        length: of a unit of their positions in Å.
    """
    kinds = [str(own.get("config_type", "")).lower().replace("_", "") for own in held]
    sure = [len(atoms) == 1 and (kind == "isolatedatom" or not atoms.pbc.any())
            for atoms, kind in zip(frames, kinds, strict=True)]  # fmt: skip
    alone = [one or _is_far(atoms, length) for atoms, one in zip(frames, sure, strict=True)]
    for z in {int(atoms.numbers[0]) for atoms, one in zip(frames, alone, strict=True) if one}:
        own = [k for k, one in enumerate(alone) if one and frames[k].numbers[0] == z]
        if np.ptp([energies[k][0] for k in own]) > MOST_APART:
            for k in own:
                alone[k] = sure[k]
    return alone


def _is_far(atoms: Atoms, length: float) -> bool:
    """Return whether one atom is far from its images."""
    periodic = atoms.pbc & atoms.cell.any(axis=1)
    if len(atoms) != 1 or np.linalg.matrix_rank(atoms.cell[periodic]) < periodic.sum():
        return False
    lattice = minkowski_reduce(atoms.cell, periodic)[0][periodic]
    return bool((np.linalg.norm(lattice, axis=1) * length > FAR).all())


def _expect_same(stored: np.ndarray, taken: np.ndarray, where: str) -> None:
    """Expect the label of a frame's calculator and what stands beside it to be one."""
    same = np.isclose(stored, taken, rtol=1e-6, atol=1e-6, equal_nan=True)
    k = same.argmin()
    got = f"{stored.flat[k]:.8g} of its calculator and {taken.flat[k]:.8g} beside it"
    expect(same.all(), where, "one value, or the same twice", got)


def _labels_of(
    frames: Sequence[Atoms], held: Held, names: dict[str, str | None], path: Path
) -> Labels:
    labels: Labels = {what: [] for what in LABELS}
    for number, (atoms, own) in enumerate(zip(frames, held, strict=True)):
        for what, key in names.items():
            where = f"{key} of frame {number} in {path}"
            label = _label(what, own.get(key), len(atoms), where)
            stored = None if atoms.calc is None else atoms.calc.results.get(key)
            if stored is not None:
                _expect_same(_label(what, stored, len(atoms), where), label, where)
            labels[what].append(label)
    return labels


def _label(what: str, value: Any, n: int, where: str) -> np.ndarray:
    """Return a label of a frame of n atoms as an array; NaN if there is none."""
    if what == "stresses" and np.shape(value) == (6,):
        value = voigt_6_to_full_3x3_stress(_as_shape(value, (6,), where))
    if what == "stresses" and np.shape(value) == (9,):
        value = _as_shape(value, (9,), where).reshape(3, 3)
    return _as_shape(value, {"energies": (1,), "forces": (n, 3), "stresses": (3, 3)}[what], where)


def _as_shape(value: Any, shape: tuple[int, ...], name: str) -> np.ndarray:
    """Return a label as an array of a shape; NaN if there is none."""
    if value is None:
        return np.full(shape, np.nan)
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected numbers, got {value!r}") from error
    ok = array.shape == shape or (1 in shape and array.size == np.prod(shape))
    expect(ok, name, f"shape {shape}", array.shape)
    return array.reshape(shape)


def _raw(frames: Sequence[Atoms], labels: Labels) -> Raw:
    cells = np.stack([atoms.cell.array * atoms.pbc[:, None] for atoms in frames])
    return Raw(
        torch.as_tensor(np.concatenate([atoms.numbers for atoms in frames])),
        torch.as_tensor(np.concatenate([atoms.positions for atoms in frames])),
        torch.tensor([len(atoms) for atoms in frames]), torch.as_tensor(cells),
        torch.from_numpy(np.concatenate(labels["energies"])),
        torch.from_numpy(np.concatenate(labels["forces"])),
        torch.from_numpy(np.stack(labels["stresses"])),
    )  # fmt: skip


def _weights(held: Held, name: str, path: Path) -> Tensor:
    """Return a weight of each frame, (T,), 1 where there is none."""
    found = []
    for number, own in enumerate(held):
        where = f"{name} of frame {number} in {path}"
        weight = float(_as_shape(own.get(name, 1.0), (1,), where)[0])
        expect(0 <= weight < float("inf"), where, "a finite number, none below 0", weight)
        found.append(weight)
    return torch.tensor(found, dtype=torch.float64)


def _left_out(
    labels: Labels, held: Held, used: dict[str, str], alone: Sequence[bool], path: Path
) -> list[str]:
    """Leave out labels whose own weight is 0, and return what there is to say of weights."""
    notes, several = [], ~torch.tensor(alone)
    for what in used:
        weights = _weights(held, WEIGHTS[what], path)
        zero = (weights == 0).nonzero().flatten().tolist()
        for frame in zero:
            labels[what][frame][:] = np.nan
        if zero:
            notes.append(f"{WEIGHTS[what]} is 0 in {len(zero)} of {len(held)} frames: their {what} "
                         f"are left out")  # fmt: skip
        others = weights[several & (weights != 0)].unique().tolist()
        if len(others) > 1:
            values = f"{others[0]:g} to {others[-1]:g}"
            notes.append(f"{WEIGHTS[what]} of {values} not honoured: only 0 and config_weight are")
    return notes


def _on_other_names(held: Held, used: dict[str, str]) -> list[str]:
    """Say where labels stand under other names than those that are used, or mean another thing."""
    notes = []
    for what, name in used.items():
        lacking = [own for own in held if own.get(name) is None]
        for other in LABELS[what]:
            count = sum(own.get(other) is not None for own in lacking)
            if count:
                notes.append(f"{count} frames have {other!r} and no {name!r}: not read, one name "
                             f"holds for all; {OPTIONS[what]} chooses")  # fmt: skip
    references = [name.startswith("REF_") for name in used.values()]
    if any(references) and not all(references):
        notes.append(f"{' and '.join(used.values())}: are they of one calculation? "
                     "--energy-key and --forces-key choose")  # fmt: skip
    return notes


def _on_smearing(held: Held, used: dict[str, str], energies: Sequence[np.ndarray]) -> list[str]:
    """Say where the energies that are used are not those that forces belong to."""
    if used.get("energies") != "energy":
        return []
    free = [own.get("free_energy") for own in held]
    pairs = [(energy[0], x) for energy, x in zip(energies, free, strict=True)
             if isinstance(x, (int, float))]  # fmt: skip
    apart = np.nanmax([0.0, *(abs(energy - x) for energy, x in pairs)])
    if apart <= SMEARED:
        return []
    return [f"energy and free_energy differ by up to {apart:.3g}: with smeared electrons, forces "
            "are of free_energy; --energy-key chooses"]  # fmt: skip


def _on_cells(frames: Sequence[Atoms], alone: Sequence[bool]) -> list[str]:
    """Say which frames are periodic without a lattice vector, and which isolated atoms in cells."""
    flat = sum(bool((atoms.pbc & ~atoms.cell.any(axis=1)).any()) for atoms in frames)
    boxed = sum(one and bool(atoms.pbc.any()) for atoms, one in zip(frames, alone, strict=True))
    notes = [f"{flat} frames are periodic along directions without a lattice vector: taken as not "
             "periodic there"] if flat else []  # fmt: skip
    return notes + ([f"{boxed} frames of one atom in a large cell are taken as isolated atoms"]
                    if boxed else [])  # fmt: skip


def _split_of(held: Held, alone: Sequence[bool], path: Path) -> tuple[Tensor | None, list[str]]:
    """Return the part of the split of each frame, (T,), if all but isolated atoms have one."""
    lacking = sum("split" not in own and not one for own, one in zip(held, alone, strict=True))
    if not any("split" in own for own in held):
        return None, []
    if lacking:
        return None, [f"split not read: {lacking} of {len(held)} frames have none"]
    codes = []
    for number, own in enumerate(held):
        value, where = own.get("split", 0), f"split of frame {number} in {path}"
        named = isinstance(value, str)
        codes.append(part_of(value, where) if named else float(_as_shape(value, (1,), where)[0]))
    return torch.tensor(codes, dtype=torch.float64), []
