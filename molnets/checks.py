"""What input must be: one copy of every check and of its message.

The checks of single tensors stand in `schnet_helpers`, which needs nothing of this package; here
are those of cells, replicas and arrays. Every error names the argument, what was expected and what
came.
"""

from __future__ import annotations

import numbers
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from schnet_helpers import (
    checked_atoms,
    expect,
    expect_like,
    expect_positions,
    expect_positive,
    expect_size,
    expect_sizes,
    expect_tensor,
    sample_sizes,
    spread_atomic_numbers,
)

__all__ = [
    "as_array",
    "as_cells",
    "as_pbc",
    "checked_atoms",
    "expect",
    "expect_cells",
    "expect_elements",
    "expect_like",
    "expect_masses",
    "expect_not_negative",
    "expect_positions",
    "expect_positive",
    "expect_replicas",
    "expect_size",
    "expect_sizes",
    "expect_tensor",
    "no_file",
    "sample_sizes",
    "spread_atomic_numbers",
]

FLATTEST = 1e-6  # a cell that is flatter than this, smallest to largest singular value, is singular


def no_file(path: str | os.PathLike) -> str:
    """Return what stands where a file was expected."""
    return f"{path}, which is a folder" if Path(path).is_dir() else f"{path}, where no file is"


def expect_not_negative(name: str, value: float) -> None:
    """Expect a finite number, zero or more."""
    ok = isinstance(value, numbers.Real) and 0 <= value < float("inf")
    expect(ok, name, "a finite number, not negative", value)


def as_cells(cells: Tensor, num_replicas: int) -> Tensor:
    """Return the cell of each replica, (R, 3, 3), from one for all, (3, 3), or one for each.

    Raises:
        TypeError, ValueError: for something else than a tensor, or another shape.
    """
    expect_tensor("cells", cells)
    shapes = (3, 3), (num_replicas, 3, 3)
    expect(cells.shape in shapes, "cells", f"shape {shapes[0]} or {shapes[1]}", tuple(cells.shape))
    return cells.expand(num_replicas, 3, 3)


def as_pbc(pbc: Tensor | bool | list[bool], num_samples: int) -> Tensor:
    """Return whether each sample is periodic along each vector, (B, 3), from (B, 3), (3,) or one.

    Raises:
        TypeError, ValueError: for something else than truth values, or another shape.
    """
    pbc = torch.as_tensor(pbc, device="cpu")
    expect(pbc.dtype == torch.bool, "pbc", "dtype torch.bool", pbc.dtype, TypeError)
    shapes = (), (3,), (num_samples, 3)
    expect(pbc.shape in shapes, "pbc", f"shape (), (3,) or {shapes[-1]}", tuple(pbc.shape))
    return pbc.expand(num_samples, 3)


def expect_cells(cells: Tensor, pbc: Tensor, pos: Tensor) -> None:
    """Expect finite cells, (B, 3, 3), like the positions, and independent periodic vectors.

    Args:
        cells: lattice vectors in rows, (B, 3, 3).
        pbc: whether each sample is periodic along each vector, (B, 3).
        pos: positions, whose dtype and device the cells must have.
    """
    expect(cells.isfinite().all(), "cells", "finite numbers", cells.tolist())
    expect(cells.dtype == pos.dtype, "cells", f"dtype {pos.dtype} as pos", cells.dtype, TypeError)
    expect(cells.device == pos.device, "cells", f"device {pos.device} as pos", cells.device)
    periodic = pbc.unsqueeze(2) * cells.detach().cpu().double()
    rank = torch.linalg.matrix_rank(periodic, rtol=FLATTEST)  # (B,)
    for sample in (rank < pbc.sum(dim=1)).nonzero().flatten().tolist():
        vectors = periodic[sample][pbc[sample]].tolist()
        expected = "independent vectors in periodic directions"
        raise ValueError(f"cells: expected {expected}, got {vectors} for sample {sample}")


def expect_elements(card: object | None, z: Iterable[int], name: str) -> None:
    """Expect elements that a model was trained on, if its card says which these are."""
    known = getattr(card, "elements", None)
    new = sorted(set(z) - set(known)) if known else []
    if new:
        from ase.data import chemical_symbols  # here, so that dynamics does not need ASE

        symbols = dict(enumerate(chemical_symbols))
        expected = f"elements of the training, {[symbols[n] for n in known]}"
        expect(False, name, expected, [symbols.get(n, n) for n in new])


def expect_replicas(pos: Tensor) -> None:
    """Expect positions of replicas, floating-point (R, n, 3)."""
    ok = pos.ndim == 3 and pos.shape[2] == 3 and pos.is_floating_point() and pos.numel() > 0
    got = f"{pos.dtype} {tuple(pos.shape)}"
    expect(ok, "positions", "a floating-point (R, n, 3) with R, n > 0", got)


def expect_masses(masses: Tensor, n: int) -> None:
    """Expect positive, finite masses, (n,)."""
    expect(masses.shape == (n,), "masses", f"shape ({n},)", tuple(masses.shape))
    ok = bool((masses > 0).all() and masses.isfinite().all())
    expect(ok, "masses", "positive, finite masses", masses.tolist())


def as_array(name: str, values: ArrayLike) -> NDArray[np.float64]:
    """Return finite numbers as an array, from a tensor or whatever numpy takes.

    Raises:
        ValueError: if there are none, or not all of them are finite.
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu()
    array = np.asarray(values, dtype=np.float64)
    expect(array.size > 0, name, "at least one number", f"shape {array.shape}")
    expect(bool(np.isfinite(array).all()), name, "finite numbers", "NaN or infinity")
    return array
