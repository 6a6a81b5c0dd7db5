"""Labels of frames, in eV and Å where units are known, and what there is to say of them.

Axes:   T frames, N atoms of all frames.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from molnets.checkpoint import UNKNOWN
from molnets.checks import expect
from molnets.training.data import PARTS, Dataset
from molnets.training.source import OPTIONS, REDUCED_UNITS, Source

COARSE = 1e-4  # eV that energies may lie apart because of their digits


class Raw(NamedTuple):
    """What a file holds of its frames, in its units; None and NaN are no labels."""

    z: Tensor  # (N,)
    pos: Tensor  # (N, 3)
    n_atoms: Tensor  # (T,)
    cells: Tensor | None  # (T, 3, 3)
    energies: Tensor | None  # (T,)
    forces: Tensor | None  # (N, 3)
    stresses: Tensor | None  # (T, 3, 3)


def dataset(source: Source, raw: Raw, used: dict[str, str], **more: Tensor | None) -> Dataset:
    """Return a data set in eV and Å, if the units are known, with notes on what was found.

    Args:
        source: how the file is to be read.
        raw: what it holds.
        used: names in the file, by what stands under them.
        more: split, weights and isolated atoms, as `Dataset` takes them.

    Raises:
        ValueError: for shapes that do not fit together, and what `Dataset` does not take.
    """
    z, pos, n_atoms, cells, energies, forces, _ = raw
    T, N = len(n_atoms), len(pos)
    energies = torch.full((T,), torch.nan).double() if energies is None else energies.double()
    forces = torch.full((N, 3), torch.nan).double() if forces is None else forces.double()
    expect(energies.shape == (T,), "energies", f"({T},)", tuple(energies.shape))
    expect(forces.shape == pos.shape, "forces", f"{tuple(pos.shape)}", tuple(forces.shape))
    E, L, F, _ = source.factors()
    labels, filled = _labels(n_atoms, energies, forces, _virials(source, raw))
    energies, forces, virials = filled
    data = Dataset(
        z, pos.double() * L, energies * E, forces * F, n_atoms,
        None if cells is None else cells.double() * L, virials=virials, labels=labels,
        **more,
    )  # fmt: skip
    E, L = source.energy_unit, source.length_unit
    data.energy_unit = E if E in REDUCED_UNITS else "eV" if E else UNKNOWN
    data.length_unit = L if L in REDUCED_UNITS else "Å" if L else UNKNOWN
    data.notes = [*_on_names(source, used), *_on_missing(data, raw, used),
                  *_on_digits(source, raw, data.energy_unit), *_on_split(data)]  # fmt: skip
    return data


def part_of(name: str, what: str = "split") -> int:
    """Return the number of a part of the split that has a name, or the beginning of one.

    Args:
        name: such as train, test or val.
        what: what the name is, in the error.

    Raises:
        ValueError: for another name.
    """
    found = [number for part, number in PARTS.items() if name and part.startswith(name.lower())]
    expect(len(found) == 1, what, f"one of {list(PARTS)}", repr(name))
    return found[0]


def on_virials(names: Iterable[str], used: dict[str, str]) -> list[str]:
    """Return a note on virials among the names in a file, unless stresses are used."""
    virials = sorted(name for name in names if "virial" in name.lower())
    if not virials or "stresses" in used:
        return []
    return [f"{', '.join(virials)} not read: stresses are, in energy / length³"]


def _virials(source: Source, raw: Raw) -> Tensor | None:
    """Return stresses times volumes, (T, 3, 3), NaN where there is no stress or no volume."""
    if raw.stresses is None or raw.cells is None:
        return None
    _, L, _, S = source.factors()
    volume = torch.linalg.det(raw.cells.double() * L).abs().view(-1, 1, 1)
    virials = S * raw.stresses.double() * volume
    virials[volume.flatten() == 0] = torch.nan
    return virials


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
    known.append(torch.zeros_like(known[0]) if virials is None else _there(virials))
    labels = torch.stack(known, dim=1)
    energies = torch.where(labels[:, 0], energies, 0.0)
    forces = torch.where(labels[frame, 1].unsqueeze(1), forces, 0.0)
    virials = virials if virials is None else torch.where(labels[:, 2, None, None], virials, 0.0)
    return labels, (energies, forces, virials if labels[:, 2].any() else None)


def _there(tensors: Tensor) -> Tensor:
    """Return where not all numbers are NaN, (T,), from (T, 3, 3)."""
    return ~tensors.isnan().flatten(1).all(dim=1)


def _on_names(source: Source, used: dict[str, str]) -> list[str]:
    notes = [f"taken: {', '.join(f'{what} {name!r}' for what, name in used.items())}"]
    if any(x != 1.0 for x in source.factors()):
        energy, length = source.energy_unit or "energies", source.length_unit or "lengths"
        forces = source.force_unit or f"{energy}/{length}"
        stresses = f", stresses {source.stress_unit or f'{energy}/{length}³'}"
        stresses = stresses if "stresses" in used else ""
        notes.append(f"converted to eV and Å from {energy}, {length}, forces {forces}{stresses}")
    return notes


def _on_missing(data: Dataset, raw: Raw, used: dict[str, str]) -> list[str]:
    notes = []
    for what, known in zip(OPTIONS, data.labels.T, strict=True):
        missing, why = int((~known).sum()), ""
        if what == "stresses" and what in used:
            flat = int((_there(raw.stresses) & ~known).sum())
            why = f": in {flat} there is one, but no volume, for want of three periodic directions"
            why = why if flat else ""
        if missing and (what != "stresses" or what in used):
            notes.append(f"{missing} of {len(data)} frames have no {what}{why}")
    return notes


def _on_digits(source: Source, raw: Raw, unit: str) -> list[str]:
    """Say how far apart energies of few digits lie, whatever dtype they have come in since."""
    energies = raw.energies
    if energies is None or not energies.is_floating_point() or energies.isnan().all():
        return []
    energies = energies[~energies.isnan()]
    dtype = energies.dtype
    if dtype == torch.float64 and (energies == energies.float()).all():
        dtype = torch.float32
    largest = float(energies.abs().max())
    if largest == 0 or math.isinf(largest):
        return []
    spacing = torch.finfo(dtype).eps * 2 ** math.floor(math.log2(largest)) * source.factors()[0]
    if dtype == torch.float64 or spacing <= COARSE:
        return []
    name = str(dtype).removeprefix("torch.")
    unit = "" if unit == UNKNOWN else f" {unit}"
    return [f"energies have no more digits than {name}: as large as they are, these lie "
            f"{spacing:.2g}{unit} apart"]  # fmt: skip


def _on_split(data: Dataset) -> list[str]:
    if data.split is None:
        return []
    own = data.split[~data.alone]
    counts = ", ".join(f"{int((own == code).sum())} {name}" for name, code in PARTS.items())
    return [f"split of the file: {counts}"]
