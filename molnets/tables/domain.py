"""One process's part of a system that several processes share, on splines.

The passes are those of a whole system. Between two of them the rows of atoms that others have are
fetched: what they send in each block but the first, whose rows follow from their elements, and the
gradients of what they received in each block on the way back. Forces on own atoms are complete
then: what an atom of another process does to them is computed here, and there too.

Axes:   N own atoms, C copies of atoms near by, U atoms of other processes whose rows are fetched.
Rows:   own atoms in the order of `Domain.order`, then those that are fetched: (N + U, width).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from molnets.checks import expect
from molnets.tables.library import library
from molnets.tables.native import Native, NativeNetwork, Work

Fetch = Callable[[np.ndarray], None]  # fills rows N to N + U
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)


class Domain(Native):
    """The edges between own atoms and all within reach, own ones and copies.

    Args:
        pos: positions, own atoms first, (N + C, 3), float64, finite.
        tags: a number for each atom, which its copies have too, (N + C,).
        image: the own atom that each copy is one of, (C,), or -1 for those of other processes.
        reach: how far edges are looked for; complete where copies reach as far beyond own atoms.

    Attributes:
        order: the own atom that each of the first N rows belongs to, (N,).
        needed: whether own atoms have edges to a copy that is not of their own, (C,).
        one_sided: a number, whose sum over all processes, modulo 2^64, is 0 if each edge j -> i has
            its reverse i -> j where j is at home: else copies are missing.
    """

    def __init__(self, pos: np.ndarray, tags: np.ndarray, image: np.ndarray, reach: float) -> None:
        self.num_own, num_points = len(pos) - len(image), len(pos)
        pos = np.ascontiguousarray(pos)
        tags, image = (np.ascontiguousarray(x, dtype=np.int64) for x in (tags, image))
        self.one_sided = np.zeros((), dtype=np.uint64)
        super().__init__(library().domain(
            pos.ctypes.data, tags.ctypes.data, self.num_own, num_points, image.ctypes.data, reach,
            torch.get_num_threads(), self.one_sided.ctypes.data), "free_list")  # fmt: skip
        self.order = np.empty(self.num_own, dtype=np.int64)
        self.needed = np.empty(len(image), dtype=bool)
        library().describe_domain(self.pointer, self.order.ctypes.data, self.needed.ctypes.data)
        self.start = torch.tensor([0, self.num_own])
        self.num_rows = self.num_own

    def give_rows(self, rows: np.ndarray, num_fetched: int) -> None:
        """Say which fetched row, from 0, each copy of another's atom has, (C,); -1 for none."""
        rows = np.ascontiguousarray(rows, dtype=np.int64)
        library().give_rows(self.pointer, rows.ctypes.data, num_fetched)
        self.num_rows = self.num_own + num_fetched


class DomainPasses:
    """The passes of a tabulated network on a domain.

    Args:
        model: a tabulated network that splines apply to.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.model, self.network = model, model.state_of_weights()
        self.work = Work(self.network.dtype)
        self._z: np.ndarray | None = None  # of the rows that `_x` belongs to
        self._x: Tensor | None = None

    def __call__(
        self, domain: Domain, z: np.ndarray, pos: np.ndarray, fetch: Fetch | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return energies, (N,), forces, (N, 3), and virials of own atoms, (N, 3, 3).

        A pair's virial r ⊗ ∂E/∂r belongs to both of its atoms, by halves. Sums over all processes
        give the whole system's.

        Args:
            domain: the edges; rows have been given to copies.
            z: atomic numbers of own atoms and of those that are fetched, (N + U,).
            pos: positions as the domain's, (N + C, 3), float64.
            fetch: called with matrices of rows, of which those from N on are to be filled; None
                where nothing is fetched here and by no other process from here.

        Raises:
            ValueError: if two atoms are in one place.
            Exception: what `fetch` raises.
        """
        network, threads = self.network, torch.get_num_threads()
        x, pos = self._embedded(z), torch.from_numpy(np.ascontiguousarray(pos))
        cutoff = self.model.cutoff
        distinct = network.find(self.work, pos, domain.start, domain, cutoff, threads)
        expect(distinct, "pos", "distinct positions", "two atoms in one place")
        with _Exchange(network, self.work, domain.num_rows, fetch):
            energy, forces, _ = network.energies(self.work, x, domain.start, threads)
        virials = torch.empty(domain.num_own, 3, 3, dtype=network.dtype)
        getattr(library(), f"virials_of_atoms_{network.precision}")(
            network.pointer, self.work.pointer, threads, virials.data_ptr()
        )
        return energy[: domain.num_own], forces[: domain.num_own], virials

    def _embedded(self, z: np.ndarray) -> Tensor:
        if self._z is None or not np.array_equal(z, self._z):
            with torch.no_grad():
                column = torch.from_numpy(z).view(-1, 1).to(self.network.dtype)
                self._z, self._x = z.copy(), self.model.embedding(column).contiguous()
        return self._x


class _Exchange:
    """Lets the passes of one call fetch rows; what goes wrong there is raised here."""

    def __init__(
        self, network: NativeNetwork, work: Work, num_rows: int, fetch: Fetch | None
    ) -> None:
        self.set = getattr(library(), f"set_exchange_{network.precision}")
        self.pointer, self.num_rows, self.fetch = work.pointer, num_rows, fetch
        self.number = ctypes.c_float if network.precision == "f" else ctypes.c_double
        self.callback = _CALLBACK(self._fill)
        self.error: BaseException | None = None

    def _fill(self, at: int, stride: int, width: int) -> int:
        try:
            flat = (self.number * (self.num_rows * stride)).from_address(at)
            rows = np.frombuffer(flat, dtype=self.number).reshape(self.num_rows, stride)
            self.fetch(rows[:, :width])
        except BaseException as error:
            self.error = error
        return self.error is not None

    def __enter__(self) -> None:
        if self.fetch is not None:
            self.set(self.pointer, ctypes.cast(self.callback, ctypes.c_void_p))

    def __exit__(self, *_: object) -> None:
        self.set(self.pointer, None)
        if self.error is not None:
            raise self.error
