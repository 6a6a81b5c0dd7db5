"""The engine's objects behind Python ones: networks, lists of edges, and the work on a batch.

Axes:   N atoms, B samples, E directed edges j -> i, F features, K intervals of a spline.
Arrays: torch tensors on the CPU, of the network's dtype where nothing else is said.
"""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from molnets.tables.library import library
from molnets.tables.splines import inverse, knots
from molnets.tables.structure import SCHNET, Structure

PRECISIONS = {torch.float32: "f", torch.float64: "d"}


class Native:
    """A pointer of the engine's, given back when nobody holds it any more."""

    def __init__(self, pointer: int, free: str) -> None:
        self.pointer, self._free = pointer, getattr(library(), free)

    def __del__(self) -> None:
        if getattr(self, "_free", None) is not None:
            self._free(self.pointer)


def pointers_of(tensors: Sequence[Tensor], dtype: torch.dtype) -> tuple[ctypes.Array, list[Tensor]]:
    """Return pointers to the numbers of tensors, and what must be kept as long as they are used."""
    kept = [w if w.dtype is dtype and w.is_contiguous() else w.detach().to(dtype).contiguous()
            for w in tensors]  # fmt: skip
    return (ctypes.c_void_p * len(kept))(*[w.data_ptr() for w in kept]), kept


class EdgeList(Native):
    """Directed edges, each with its reverse, sorted as the passes want them.

    Args:
        index: senders and receivers, (2, E), int64.
        offset: r_j + offset − r_i is the edge's vector, (E, 3), or (1, 3) for all.
        start: the first atom of each sample, and N, (B + 1,), int64.
        threads: how many will work on it.
        cutoff: how far atoms of a cell are apart at most; 0 to keep the order of the atoms.
        pos: the positions, (N, 3), by which they are sorted into cells, if the cutoff is not 0.

    Raises:
        ValueError: if an edge is there without its reverse.
    """

    def __init__(
        self, index: Tensor, offset: Tensor, start: Tensor, threads: int, cutoff: float = 0.0,
        pos: Tensor | None = None,
    ) -> None:  # fmt: skip
        j, i = index.contiguous()
        offset, pos = (
            offset.double().contiguous(),
            None if pos is None else pos.double().contiguous(),
        )
        lib = library()
        pointer = lib.list_of(
            None if pos is None else pos.data_ptr(), start.data_ptr(), len(start) - 1, cutoff,
            len(j), j.data_ptr(), i.data_ptr(), offset.data_ptr(), len(offset) == 1 < len(j),
            threads,
        )  # fmt: skip
        super().__init__(pointer, "free_list")
        if not lib.is_symmetric(pointer):
            raise ValueError("edges: expected with each edge j -> i its reverse, got others")


class Work(Native):
    """Memory for a call, and the edges that were found last."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.precision = PRECISIONS[dtype]
        super().__init__(
            getattr(library(), f"work_{self.precision}")(), f"free_work_{self.precision}"
        )


class SplineMaker(Native):
    """Makes coefficients of splines from the weights of filters.

    Args:
        structure: the network.
        num_intervals: K.
        dtype: of the coefficients.
    """

    def __init__(self, structure: Structure, num_intervals: int, dtype: torch.dtype) -> None:
        d, a = knots(num_intervals, structure.cutoff, dtype), inverse(dtype)
        self.radial = [x.to(dtype).contiguous() for x in structure.radial(d)]
        self.dtype, (L, _, M, _) = dtype, structure.sizes
        sizes = L, self.radial[0].shape[1], M, len(d), len(a) // 2, structure.kind == SCHNET
        arrays = [(ctypes.c_int64 * len(x))(*x) for x in (sizes, structure.channels)]
        name = f"filters_{PRECISIONS[dtype]}"
        e, fade = self.radial
        pointer = getattr(library(), name)(*arrays, e.data_ptr(), fade.data_ptr(), a.data_ptr())
        super().__init__(pointer, f"free_{name}")
        self._splines = getattr(library(), f"splines_{PRECISIONS[dtype]}")
        self._lock, self._state = threading.Lock(), []
        self.shapes = [(num_intervals + 5, rows * M) for rows in structure.channels]
        self.num = sum(rows * columns for rows, columns in self.shapes)

    def __call__(self, weights: Sequence[Tensor]) -> Tensor:
        """Return the coefficients of all blocks, one after the other.

        Args:
            weights: `Structure.filter_weights`, of any dtype.
        """
        c = torch.empty(self.num, dtype=self.dtype)
        with self._lock:
            self._forward(weights, c)
        return c

    def gradients(self, weights: Sequence[Tensor], of_splines: Tensor) -> list[Tensor]:
        """Return the gradients by the weights, given those by the coefficients."""
        of_splines, sizes = of_splines.contiguous(), [w.numel() for w in weights]
        out = torch.empty(sum(sizes), dtype=self.dtype)
        with self._lock:
            state = [(w.data_ptr(), w._version) for w in weights]
            if state != self._state:
                self._forward(weights, torch.empty(self.num, dtype=self.dtype))
            self._splines(self.pointer, None, torch.get_num_threads(), None,
                          of_splines.data_ptr(), out.data_ptr())  # fmt: skip
        return [g.view(w.shape) for g, w in zip(out.split(sizes), weights, strict=True)]

    def _forward(self, weights: Sequence[Tensor], c: Tensor) -> None:
        pointers, _kept = pointers_of(weights, self.dtype)
        self._splines(self.pointer, pointers, torch.get_num_threads(), c.data_ptr(), None, None)
        self._state = [(w.data_ptr(), w._version) for w in weights]  # of what is kept inside

    def by_block(self, splines: Tensor) -> list[Tensor]:
        """Return the coefficients of each block, (K + 5, channels M)."""
        parts = splines.split([rows * columns for rows, columns in self.shapes])
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]


class NativeNetwork(Native):
    """A network's weights and splines as the passes take them.

    Args:
        structure: the network.
        splines: coefficients of each block's filters, (K + 5, channels M), of the weights' dtype.
        num_intervals: K.
    """

    def __init__(self, structure: Structure, splines: Tensor, num_intervals: int) -> None:
        self.structure, self.num_intervals = structure, num_intervals
        self.dtype = splines.dtype
        self.precision = PRECISIONS[self.dtype]
        rows = num_intervals + 5
        sizes = (ctypes.c_int64 * 5)(*structure.sizes, rows)
        lib, self.num_splines = library(), splines.numel()
        pointer = self._with(structure, splines, lambda *given: getattr(
            lib, f"network_{self.precision}")(structure.kind, sizes, *given))  # fmt: skip
        super().__init__(pointer, f"free_network_{self.precision}")
        self._find, self._energies, self._gradients = (
            getattr(lib, f"{name}_{self.precision}") for name in ("find", "energies", "gradients")
        )

    @staticmethod
    def _with(structure: Structure, splines: Tensor, function: Callable) -> int | None:
        """Call a function with the weights' pointers and that of the splines."""
        pointers, _kept = pointers_of(structure.weights, splines.dtype)
        splines = splines.detach().contiguous()
        return function(pointers, splines.data_ptr(), torch.get_num_threads())

    def update(self, splines: Tensor) -> None:
        """Take the weights as they are now, and other splines."""
        update = getattr(library(), f"update_{self.precision}")
        self._with(self.structure, splines, lambda *given: update(self.pointer, *given))

    def find(
        self, work: Work, pos: Tensor | None, start: Tensor, edges: EdgeList | None, cutoff: float,
        threads: int,
    ) -> bool:  # fmt: skip
        """Find the edges shorter than the cutoff, between atoms, or of a list; pos None: all 0.

        Returns:
            Whether no two atoms are in one place.
        """
        return bool(self._find(
            work.pointer, None if pos is None else pos.data_ptr(),
            pos is not None and pos.dtype == torch.float64, start.data_ptr(), len(start) - 1,
            None if edges is None else edges.pointer, cutoff, self.structure.cutoff,
            self.num_intervals, threads,
        ))  # fmt: skip

    def energies(
        self, work: Work, x: Tensor, start: Tensor, threads: int, keep: bool = False,
        virial: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
        """Return the energies of the atoms, (N,), forces, (N, 3), and virials, (B, 3, 3), or None.

        Args:
            work: where the edges have been found.
            x: embeddings, (N, F).
            start: the first atom of each sample, and N, (B + 1,).
            threads: how many threads may work.
            keep: what `gradients` needs.
            virial: whether to compute the virials.
        """
        energy, forces = (
            torch.empty(len(x), dtype=self.dtype),
            torch.empty(len(x), 3, dtype=self.dtype),
        )
        virials = torch.empty(len(start) - 1, 3, 3, dtype=self.dtype) if virial else None
        self._energies(
            self.pointer, work.pointer, x.data_ptr(), start.data_ptr(), len(start) - 1, keep,
            threads, energy.data_ptr(), forces.data_ptr(), virials.data_ptr() if virial else None,
        )  # fmt: skip
        return energy, forces, virials

    def gradients(
        self, work: Work, seeds: Tensor, start: Tensor, threads: int, direction: Tensor | None,
        strain: Tensor | None = None,
    ) -> tuple[list[Tensor], Tensor, Tensor]:  # fmt: skip
        """Return the gradients of J = Σ_i seeds_i ε_i + dE/dε, after `energies` with `keep`.

        dE/dε: along r_i + ε direction_i, and a strain r (1 + ε strain) of each sample.

        Args:
            work: that of the energies.
            seeds: (N,).
            start: (B + 1,).
            threads: how many threads may work.
            direction: (N, 3); None for zeros.
            strain: (B, 3, 3); None for zeros.

        Returns:
            Those by the weights, as `Structure.weights`, by the splines, one after the other, and
            by the embeddings, (N, F).
        """
        shapes = [w.shape for w in self.structure.weights]
        sizes = [math.prod(shape) for shape in shapes]
        of_weights = torch.empty(sum(sizes), dtype=self.dtype)
        of_splines = torch.empty(self.num_splines, dtype=self.dtype)
        of_x = torch.empty(len(seeds), self.structure.sizes[1], dtype=self.dtype)
        direction = seeds.new_zeros(len(seeds), 3) if direction is None else direction.contiguous()
        strain = None if strain is None else strain.contiguous()
        seeds = seeds.contiguous()
        self._gradients(
            self.pointer, work.pointer, seeds.data_ptr(), direction.data_ptr(),
            None if strain is None else strain.data_ptr(), start.data_ptr(), len(start) - 1,
            threads, of_weights.data_ptr(), of_splines.data_ptr(), of_x.data_ptr(),
        )  # fmt: skip
        parts = zip(of_weights.split(sizes), shapes, strict=True)
        return [part.view(shape) for part, shape in parts], of_splines, of_x
