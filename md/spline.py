"""The same SchNet with its filters tabulated: fast, for inference and for training.

W(d) C(d), the filter of an interaction block times the cutoff function, depends on one number, the
distance. A cubic Hermite table of it takes the place of the filter network, built from the very
weights of the block; the loops of `md.kernels` join it with the sum over neighbours.

Axes:   N atoms, B samples, E directed edges j -> i, F features, K intervals of a table.
Units:  those of the model.
"""

from __future__ import annotations

import copy
import math
import sys
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from md.neighbors import PeriodicGraph
from md.potential import by_autograd
from md.tables import deviation, filter_tables, hermite_basis
from schnet_helpers import (
    ElementEmbedding,
    RadiusInteractionGraph,
    SchNet,
    _expect_positions,
    get_batch_dimensions,
    spread_atomic_numbers,
)

try:
    from md import fused, fused_graph, kernels
    from md.fused_memory import grown, in_large_pages, no_room, same_bits
except ImportError:  # no numba: the plain network does it all
    fused = fused_graph = kernels = None

MIN_INTERVALS, MAX_INTERVALS = 64, 2**15
TOLERANCES = {torch.float32: 5e-7, torch.float64: 1e-10}


class Network:
    """The weights of a SchNet, copied to where the compiled passes take them from.

    Args:
        model: the network.
    """

    def __init__(self, model: SchNet) -> None:
        self.model = model
        self._seen, self._begins = torch.empty(0), np.empty(0, np.int64)
        self._shapes: list[object] = []

    def layers(self) -> list[tuple[Tensor, ...]]:
        """Return the weights by kind, those of all blocks together; `parameters()` is slow."""
        model, layers = self.model, []
        for block in model.interactions._modules.values():
            parts = block._modules
            mlp, conv = parts["mlp"]._modules, parts["conv"]._modules
            dense = conv["lin1"], conv["lin2"], parts["lin"], mlp["0"], mlp["2"]
            layers.append([w for layer in dense for w in layer._parameters.values()])
        kinds = [kind for kind in zip(*layers, strict=True) if kind[0] is not None]
        first, _, second = model.readout._modules.values()
        ends = (*first._parameters.values(), *second._parameters.values())
        return kinds + [(w,) for w in ends]

    @torch.no_grad()
    def read(self) -> bool:
        """Copy the weights if they are others than the last time, bit by bit; return whether."""
        tensors = [w for kind in self.layers() for w in kind]
        tensors += self.model.radial_expansion._buffers.values()
        tensors += self.model.embedding._parameters.values()
        tensors = [x.contiguous() for x in tensors if x is not None]
        shapes = [(x.shape, x.dtype) for x in tensors]
        if shapes == self._shapes:
            addresses = np.array([x.data_ptr() for x in tensors])
            if same_bits(addresses, self._begins, self._seen.view(torch.int32).numpy()):
                return False
        elif len({dtype for _, dtype in shapes}) > 1:
            raise TypeError(f"model: expected weights of one dtype, got {shapes}")
        self._seen, self._shapes = torch.cat([x.flatten() for x in tensors]), shapes
        words = [x.numel() * x.element_size() // 4 for x in tensors]  # of 32 bits
        self._begins = np.append(0, np.cumsum(words))
        return True

    def stacked(self) -> list[np.ndarray]:
        """Return what was read the last time, by kind: (L, ...) of the blocks, then the readout."""
        arrays, at, flat = [], 0, self._seen.numpy()
        for number, kind in enumerate(self.layers()):
            shape = kind[0].shape if number >= 9 else (len(kind), *kind[0].shape)
            arrays.append(flat[at : at + math.prod(shape)].reshape(shape))
            at += arrays[-1].size
        return arrays

    def weights(self) -> fused.Weights:
        """Return the weights of the blocks and of the readout as they were read."""
        A, U1, b1, U2, b2, _, _, _, _, R1, c1, R2, c2 = self.stacked()
        transposed = (np.ascontiguousarray(x.swapaxes(-1, -2)) for x in (A, U1, U2, R1))
        At, U1t, U2t, R1t = transposed
        return fused.Weights(A, At, U1, U1t, b1, U2, U2t, b2, R1, R1t, c1, R2, c2)

    def filters(self, e: np.ndarray, C: np.ndarray) -> fused.Filters:
        """Return the weights of the filter networks, for `fused.tabulate`."""
        W1, b1, W2, b2 = self.stacked()[5:9]
        W1t, W2t = (np.ascontiguousarray(x.swapaxes(1, 2)) for x in (W1, W2))
        return fused.Filters(W1, W1t, b1, W2, W2t, b2, e, C)


class _Atoms(NamedTuple):
    """The atoms of a batch, and what follows from them alone."""

    z: Tensor
    batch: Tensor
    dtype: torch.dtype
    x: np.ndarray  # embeddings, (N, F)
    start: np.ndarray  # the first atom of each sample, and N, (B + 1,)


class SplineSchNet(SchNet):
    """A `SchNet` whose filters are read from tables; it shares the weights of the one it is given.

    It is called the same way and gives the same energies and forces, to the tables' tolerance. A
    table has so many intervals that the filters and their slopes deviate by less than `tolerance`
    times their largest value, and is built anew as soon as the weights differ. On a GPU, or without
    numba, it computes as the plain network does, and says so once.

    Args:
        model: the network.
        tolerance: of the tables; 0 for that of the dtype: 5e-7 in float32, 1e-10 in float64 (1e-9
            where Gaussians are so narrow that `MAX_INTERVALS` cannot do better).

    Raises:
        TypeError: if `model` is no `SchNet`.
        ValueError: if `tolerance` is negative, or cannot be kept with `MAX_INTERVALS`.
    """

    def __init__(self, model: SchNet, tolerance: float = 0.0) -> None:
        if not isinstance(model, SchNet):
            raise TypeError(f"model: expected a SchNet, got {type(model).__name__}")
        if not 0 <= tolerance < 1:
            raise ValueError(f"tolerance: expected a number >= 0, below 1, got {tolerance}")
        self.__dict__.update(model.__dict__)  # the same modules: the weights are shared
        self._modules = dict(model._modules)
        self.tolerance, self.num_intervals = tolerance, 0
        self._network = Network(self)
        self._tables: list[Tensor] = []
        self._compiled: tuple[object, ...] = ()  # the same for `fused`: weights, tables
        self._atoms: _Atoms | None = None
        self._room: tuple[np.ndarray, ...] | None = None
        self._list: tuple[object, ...] = ()  # a sorted neighbour list, and what it was made of

    def atomic_energies(self, z: Tensor, edge_index: Tensor, d_ij: Tensor) -> Tensor:
        """Return the energy of each atom, (N, 1), from z (N, 1), edges (2, E), lengths (E,)."""
        if not self._applies(d_ij):
            return super().atomic_energies(z, edge_index, d_ij)
        fused_graph.use_threads_of_torch()
        x, tables = self.embedding(z), self.tables()
        edges, w = _hermite(d_ij, edge_index, len(x), self.cutoff, self.num_intervals)
        for block, table in zip(self.interactions, tables, strict=True):
            y = kernels.convolution(block.conv.lin1(x), w, table, edges)
            x = x + block.lin(block.act(block.conv.lin2(y)))
        return self.readout(x)

    def energy_and_forces(self, z: Tensor, pos: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Return energies (B, 1) and forces (N, 3), without the graph of either: the fast way.

        Arguments and errors are those of the call.
        """
        graph = self.interaction_graph
        known = type(graph) in (RadiusInteractionGraph, PeriodicGraph)  # and so symmetric
        if not (known and self._applies(pos)):
            return by_autograd(self, z, pos, batch)
        return self._evaluate(z, pos, batch)[:2]

    def energy_forces_virial(
        self, z: Tensor, pos: Tensor, batch: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return also ∂E/∂ε of a strain ε of positions and cell, (3, 3), summed over the samples.

        ∂E/∂ε = Σ (dE/dd) r rᵀ / d over all pairs, r = d unit.
        """
        return self._evaluate(z, pos, batch, virial=True)

    def _evaluate(
        self, z: Tensor, pos: Tensor, batch: Tensor, virial: bool = False
    ) -> tuple[Tensor, ...]:
        threads = fused_graph.use_threads_of_torch()
        self._refresh()
        pos = pos.detach().contiguous()
        atoms = self._atoms_of(z, pos, batch)
        room, self._room = self._room, None  # a call from another thread makes its own
        if room is None or room[0].dtype != atoms.x.dtype:
            room = no_room(atoms.x)
        order, edges = self._edges(pos, atoms.batch, atoms.start, threads, room)
        weights, tables = self._compiled
        energy_i, force, pull, _ = fused.energies_and_forces(
            atoms.x, order, edges, weights, tables, False, room[0]
        )
        forces = np.empty_like(force)
        forces[order] = force
        energy = np.add.reduceat(energy_i, atoms.start[:-1])  # sorted atoms stay in their sample
        results = [torch.from_numpy(energy).view(-1, 1), torch.from_numpy(forces)]
        if virial:
            share = np.tile(
                np.array([1, 0.5], pull.dtype), len(order)
            )  # of a pair: both ways or one
            each = np.repeat(share, np.diff(edges.first)) * pull * edges.d
            results.append(torch.from_numpy((edges.unit * each) @ edges.unit.T))
        self._room = grown(room, fused.room_for(len(order), weights, False), len(pull))
        return tuple(results)

    def _atoms_of(self, z: Tensor, pos: Tensor, batch: Tensor) -> _Atoms:
        """Check the input; return what depends on it but not on where the atoms are."""
        atoms = self._atoms
        if not (atoms and _same(z, atoms.z) and _same(batch, atoms.batch)
                and pos.dtype == atoms.dtype and pos.shape == (len(batch), 3)
                and fused_graph.all_finite(pos.numpy())):  # fmt: skip
            batch_size, n_atoms = get_batch_dimensions(batch)
            self._expect_type_and_device(z, pos)
            _expect_positions(pos, batch)
            with torch.no_grad():
                x = self.embedding(spread_atomic_numbers(z, batch, batch_size).to(pos.dtype))
            start = F.pad(n_atoms.cumsum(0), (1, 0)).numpy()
            atoms = _Atoms(z.clone(), batch.clone(), pos.dtype, x.contiguous().numpy(), start)
            if type(self.embedding) in (nn.Linear, ElementEmbedding):  # others may be random
                self._atoms = atoms
        return atoms

    def _edges(
        self,
        pos: Tensor,
        batch: Tensor,
        start: np.ndarray,
        threads: int,
        room: tuple[np.ndarray, ...],
    ) -> tuple[np.ndarray, fused_graph.Edges]:
        """Return an order of the atoms, and the edges between them in that order."""
        graph, K = self.interaction_graph, self.num_intervals
        cutoff, spacing = min(graph.cutoff, self.cutoff), self.cutoff / K
        if isinstance(graph, RadiusInteractionGraph) and graph.max_num_neighbors is None:
            order, edges, distinct = fused_graph.find_graph(
                pos.numpy(), batch.numpy(), start, cutoff, spacing, K, threads, *room[1:]
            )
        else:
            if isinstance(graph, PeriodicGraph):
                edge_index, offset = graph.candidates(pos, batch)
            else:
                edge_index, offset = graph(pos, batch)[0], pos.new_zeros(1, 3)
            given = self._sorted(pos, start, threads, edge_index, offset)
            order = given[0]
            edges, distinct = fused_graph.narrow_graph(
                pos.numpy(), *given, cutoff, spacing, K, *room[1:]
            )
        if not distinct:
            graph(pos, batch)  # raises the error that names the atoms
        return order, edges

    def _sorted(
        self, pos: Tensor, start: np.ndarray, threads: int, edge_index: Tensor, offset: Tensor
    ) -> tuple[np.ndarray, np.ndarray, tuple]:
        """Return an order of the atoms along cells, parts, and the edges by receiver."""
        given, parts = self._list, fused_graph.cut(start, threads)
        if given and given[0] is edge_index and given[1] is offset and len(given[3]) == len(parts):
            return given[2:]
        order = fused_graph.sort_into_cells(pos.numpy(), start, self.cutoff)[0]
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        sender, receiver = place[edge_index.numpy()]
        offsets = np.broadcast_to(offset.numpy(), (len(sender), 3))
        edges = fused_graph.sort_graph(receiver, sender, offsets, parts)
        self._list = edge_index, offset, order, parts, edges
        return self._list[2:]

    def _applies(self, like: Tensor) -> bool:
        return tables_apply(like.device, like.dtype)

    def __getstate__(self) -> dict[str, object]:
        """Return what is copied or pickled: all but the room."""
        return {**super().__getstate__(), "_room": None}

    def tables(self) -> list[Tensor]:
        """Return the tables of all blocks, (K + 1, 3 F), that belong to the weights as they are."""
        self._refresh()
        weights = list(self.interactions.parameters())
        if torch.is_grad_enabled() and any(weight.requires_grad for weight in weights):
            tables = filter_tables(self, self.num_intervals)  # the same, and differentiable
            return [table.to(weights[0].dtype) for table in tables]
        return self._tables

    def _refresh(self) -> None:
        """Make everything anew that was made of weights that are not those of now."""
        if self._network.read() or not self._compiled:
            self._compiled, self._atoms = (), None  # nothing old is left if the next line fails
            with torch.no_grad():
                self._tables = self._tabulate()
            self.num_intervals = len(self._tables[0]) - 1
            tables = in_large_pages([table.numpy() for table in self._tables])
            self._compiled = self._network.weights(), tables

    def _tabulate(self) -> list[Tensor]:
        """Return tables that keep the tolerance, made in float64."""
        dtype, K = self.radial_expansion.mu.dtype, MIN_INTERVALS
        tolerance = self.tolerance or TOLERANCES[dtype]
        while K <= MAX_INTERVALS:
            if K == MAX_INTERVALS and not self.tolerance:
                tolerance *= 10  # narrow Gaussians in float64
            pairs = zip(filter_tables(self, K), filter_tables(self, 4 * K), strict=True)
            if max(deviation(*pair, self.cutoff) for pair in pairs) <= tolerance:
                return [table.to(dtype).contiguous() for table in filter_tables(self, K)]
            K *= 2
        raise ValueError(
            f"tolerance: expected one that {MAX_INTERVALS} intervals can keep, got {tolerance}"
        )


def tabulated(model: nn.Module) -> nn.Module:
    """Return the model with a `SplineSchNet` for each `SchNet` in it; the weights are shared."""
    if type(model) is SchNet:  # a subclass may compute something else
        return SplineSchNet(model)
    result = copy.copy(model)
    result._modules = {name: tabulated(child) for name, child in model.named_children()}
    return result


def _same(a: Tensor, b: Tensor) -> bool:
    return isinstance(a, Tensor) and a.dtype == b.dtype and a.is_cpu and torch.equal(a, b)


@cache
def tables_apply(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether the tables can be used; where they cannot, say so, once."""
    ok = kernels is not None and device.type == "cpu" and dtype in TOLERANCES
    if not ok:
        why = "numba is not installed" if kernels is None else f"{dtype} on {device}"
        print(f"No tables of filters ({why}): the plain network is used.", file=sys.stderr)
    return ok


def _hermite(
    d: Tensor, edge_index: Tensor, num_atoms: int, cutoff: float, K: int
) -> tuple[kernels.Edges, Tensor]:
    """Return the edges for the kernels, and the Hermite basis (E, 4), differentiable in d."""
    spacing = cutoff / K
    knot = (d.detach() / spacing).long().clamp_(max=K - 1)
    t = (d.double() / spacing - knot).to(d.dtype)  # in float32, d / spacing has lost digits of t
    w = hermite_basis(t, spacing)[0] * (d < cutoff).unsqueeze(1)
    sender, receiver = edge_index.numpy()
    orders = (fused_graph.sort_edges(atom, num_atoms) for atom in (receiver, sender))
    return kernels.Edges(receiver, sender, *orders, knot.numpy()), w
