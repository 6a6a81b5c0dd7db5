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
from ase.stress import voigt_6_to_full_3x3_stress
from torch import Tensor

from molnets.checks import expect
from molnets.training.data import Dataset
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
    alone = [_is_alone(atoms, own) for atoms, own in zip(frames, held, strict=True)]
    used = {what: name for what, name in names.items() if name is not None}
    labels = _labels_of(frames, held, names, path)
    notes = _left_out(labels, held, used, alone, path)
    split, unread = _split_of(held, alone, path)
    data = dataset(source, _raw(frames, labels), used, split=split, alone=torch.tensor(alone),
                   weights=_weights(held, "config_weight", path))  # fmt: skip
    data.notes += notes + unread + on_virials(set().union(*held), used)
    return data


def _frames_of(path: Path) -> list[Atoms]:
    """Return the frames of a file, all atoms of which are elements."""
    from ase.io import read

    try:
        frames = (
            _rows_of(path)
            if path.suffix == ".db"
            else read(path, ":", do_not_split_by_at_sign=True)
        )
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
    found = dict(atoms.info.get("data") or {}) | dict(atoms.info.get("key_value_pairs") or {})
    found |= dict(atoms.calc.results) if atoms.calc is not None else {}
    own = {name: x for name, x in atoms.arrays.items() if name not in ("numbers", "positions")}
    return (
        found | own | {k: x for k, x in atoms.info.items() if k not in ("data", "key_value_pairs")}
    )


def _name_in(held: Held, what: str, source: Source, path: Path) -> str | None:
    """Return the name under which frames hold energies, forces or stresses: one for all."""
    given, there = source.key(what), set().union(*held)
    if given and given not in there:
        raise KeyError(f"{OPTIONS[what]}: expected one of {sorted(there)} in {path}, got {given!r}")
    return given or next((name for name in LABELS[what] if name in there), None)


def _is_alone(atoms: Atoms, own: dict[str, Any]) -> bool:
    """Return whether a frame is an isolated atom: one that says so, or is not periodic."""
    kind = str(own.get("config_type", "")).lower().replace("_", "")
    return len(atoms) == 1 and (kind == "isolatedatom" or not atoms.pbc.any())


def _labels_of(
    frames: Sequence[Atoms], held: Held, names: dict[str, str | None], path: Path
) -> Labels:
    labels: Labels = {what: [] for what in LABELS}
    for number, (atoms, own) in enumerate(zip(frames, held, strict=True)):
        shapes = {"energies": (1,), "forces": (len(atoms), 3), "stresses": (3, 3)}
        for what, shape in shapes.items():
            value, name = own.get(names[what]), f"{names[what]} of frame {number} in {path}"
            labels[what].append(_as_shape(value, shape, name))
    return labels


def _as_shape(value: Any, shape: tuple[int, ...], name: str) -> np.ndarray:
    """Return a label as an array of a shape; NaN if there is none."""
    if value is None:
        return np.full(shape, np.nan)
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected numbers, got {value!r}") from error
    if shape == (3, 3) and array.size == 6:
        array = voigt_6_to_full_3x3_stress(array.ravel())
    expect(array.size == np.prod(shape), name, f"shape {shape}", array.shape)
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
