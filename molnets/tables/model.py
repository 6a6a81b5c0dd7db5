"""The same SchNet with its filters tabulated: fast, for inference and for training.

W(d) C(d), the filter of an interaction block times the cutoff function, depends on one number, the
distance. A cubic Hermite table of it takes the place of the filter network, built from the very
weights of the block; compiled loops join it with the sum over neighbours.

Axes:   N atoms, B samples, E directed edges j -> i, F features, K intervals of a table.
Units:  those of the model.
"""

from __future__ import annotations

import copy
import sys
from functools import cache
from itertools import pairwise
from operator import is_
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from molnets.checks import (
    checked_atoms,
    expect,
    expect_positions,
    sample_sizes,
    spread_atomic_numbers,
)
from molnets.edges import Graph
from molnets.potential import by_autograd, sum_over_atoms
from molnets.tables.filters import deviation, expand_knots, filter_tables, hermite_basis
from schnet_helpers import ElementEmbedding, RadiusInteractionGraph, SchNet

try:
    from molnets.tables import gradients, kernels, lists, passes
    from molnets.tables.energy import Call, EnergyOfCall, bundle_of
    from molnets.tables.memory import grown, in_large_pages, no_room
    from molnets.tables.progress import show_compilation
    from molnets.tables.weights import WeightReader

    show_compilation()
except ImportError:  # no numba: the plain network does it all
    gradients = kernels = lists = passes = None

MIN_INTERVALS, MAX_INTERVALS = 64, 2**15
TOLERANCES = {torch.float32: 5e-7, torch.float64: 1e-10}


class _Atoms(NamedTuple):
    """The atoms of a batch, and what follows from them alone."""

    z: Tensor
    batch: Tensor
    dtype: torch.dtype
    x: np.ndarray  # embeddings, (N, F)
    start: np.ndarray  # the first atom of each sample, and N, (B + 1,)


class _Bundled(NamedTuple):
    """What stands for all weights in the graph, and what it was made of."""

    weights: list[Tensor]
    state: list[bool]
    shapes: list[object]
    tensor: Tensor | None


class System(NamedTuple):
    """What energies are asked of: atoms, the graph that finds their edges, and their cells."""

    z: Tensor
    pos: Tensor
    batch: Tensor
    graph: Graph | None = None  # None: the model's own search for isolated molecules
    cells: Tensor | None = None
    pbc: Tensor | bool | None = None


class SplineSchNet(SchNet):
    """A `SchNet` whose filters are read from tables; it shares the weights of the one it is given.

    It is called the same way and gives the same energies and forces, to the tables' tolerance. A
    table has so many intervals that the filters and their slopes deviate by less than `tolerance`
    times their largest value, and is built anew as soon as the weights differ. On a GPU, or without
    numba, it computes as the plain network does, and says so once.

    The energy of a call has compiled derivatives by positions and weights. Only derivatives that
    are to be differentiated again, under `create_graph=True`, take the general way.

    Args:
        model: the network.
        tolerance: of the tables; 0 for that of the dtype: 5e-7 in float32, 1e-10 in float64 (1e-9
            where Gaussians are so narrow that `MAX_INTERVALS` cannot do better).

    Raises:
        TypeError: if `model` is no `SchNet`.
        ValueError: if `tolerance` is negative, or cannot be kept with `MAX_INTERVALS`.
    """

    def __init__(self, model: SchNet, tolerance: float = 0.0) -> None:
        expect(isinstance(model, SchNet), "model", "a SchNet", type(model).__name__, TypeError)
        expect(0 <= tolerance < 1, "tolerance", "a number >= 0, below 1", tolerance)
        self.__dict__.update(model.__dict__)  # the same modules: the weights are shared
        self._modules = dict(model._modules)
        self.tolerance, self.num_intervals = tolerance, 0
        self._reader = None if kernels is None else WeightReader(self)
        self._tables: list[Tensor] = []
        self._compiled: tuple[object, ...] = ()  # the same for the passes: weights, tables
        self._atoms: _Atoms | None = None
        self._room: tuple[np.ndarray, ...] | None = None
        self._bundled: _Bundled | None = None
        self._list: tuple[object, ...] = ()  # a sorted neighbour list, and what it was made of

    def forward(self, z: Tensor, pos: Tensor, batch: Tensor) -> Tensor:
        """Return the energy of each sample, (B, 1); arguments and errors are those of `SchNet`."""
        if isinstance(pos, Tensor) and self._searches() and self.applies(pos):
            return self.energy(z, pos, batch)
        return super().forward(z, pos, batch)

    def energy_per_atom(self, z: Tensor, edge_index: Tensor, d_ij: Tensor) -> Tensor:
        """Return the energy of each atom, (N, 1), from z (N, 1), edges (2, E), lengths (E,)."""
        if not self.applies(d_ij):
            return super().energy_per_atom(z, edge_index, d_ij)
        lists.use_threads_of_torch(len(z))
        x, tables = self.embedding(z.to(d_ij.dtype)), self.tables()
        edges, w = _hermite(d_ij, edge_index, len(x), self.cutoff, self.num_intervals)
        for block, table in zip(self.interactions, tables, strict=True):
            y = kernels.convolution(block.conv.lin1(x), w, table, edges)
            x = x + block.lin(block.act(block.conv.lin2(y)))
        return self.readout(x)

    def energy_and_forces(self, z: Tensor, pos: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Return energies (B, 1) and forces (N, 3), without the graph of either: the fast way.

        Arguments and errors are those of the call.
        """
        if not (self._searches() and self.applies(pos)):
            return by_autograd(self, z, pos, batch)
        return self.evaluate(z, pos, batch)[:2]

    def energy(
        self, z: Tensor, pos: Tensor, batch: Tensor, graph: Graph | None = None,
        cells: Tensor | None = None, pbc: Tensor | bool | None = None,
    ) -> Tensor:  # fmt: skip
        """Return the energies, (B, 1), whose derivatives are compiled; arguments as `evaluate`."""
        if not torch.is_grad_enabled():
            return self.evaluate(z, pos, batch, graph, cells, pbc)[0]
        system = System(z, pos, batch, graph, cells, pbc)
        if not self._is_known_embedding() or (cells is not None and cells.requires_grad):
            return self.general_energy(system)
        energy, forces, _ = self.evaluate(z, pos, batch, graph, cells, pbc)
        bundle = self._bundle_of_weights()
        if bundle is None and not pos.requires_grad:
            return energy
        call = Call(self, system, forces, pos._version, self._compiled, bundle)
        return EnergyOfCall.apply(pos, bundle, call, [energy])

    def general_energy(self, system: System) -> Tensor:
        """Return the energies, (B, 1), differentiable any number of times."""
        z, pos, batch, graph, cells, pbc = system
        if graph is None:
            return SchNet.forward(self, z, pos, batch)
        batch_size = len(sample_sizes(batch))
        z = spread_atomic_numbers(z, batch, batch_size)
        energy_i = self.atomic_energies(z, graph.edges(pos, batch, cells, pbc))
        return sum_over_atoms(energy_i, batch, batch_size)

    def evaluate(
        self, z: Tensor, pos: Tensor, batch: Tensor, graph: Graph | None = None,
        cells: Tensor | None = None, pbc: Tensor | bool | None = None, virial: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
        """Return energies (B, 1), forces (N, 3) and, if asked for, virials ∂E/∂ε, (B, 3, 3).

        ∂E/∂ε = Σ (dE/dd) r rᵀ / d over all pairs, r = d unit. Arguments and errors are those of a
        `Potential`; without a graph, isolated molecules are searched for edges in compiled code.
        """
        system = System(z, pos.detach().contiguous(), batch, graph, cells, pbc)
        atoms, order, edges, room = self._begin(system)
        weights, tables = self._compiled
        energy_i, force, pull, _ = passes.energies_and_forces(
            atoms.x, order, edges, weights, tables, False, room[0]
        )
        forces = np.empty_like(force)
        forces[order] = force
        energy = np.add.reduceat(energy_i, atoms.start[:-1])  # sorted atoms stay in their sample
        virials = torch.from_numpy(_virials(edges, pull, atoms.start)) if virial else None
        self._room = grown(room, passes.room_for(len(order), weights, False), len(pull))
        return torch.from_numpy(energy).view(-1, 1), torch.from_numpy(forces), virials

    def weights_read(self) -> list[Tensor]:
        """Return the weights of the last call, those of `weight_gradients` and the embedding's."""
        return self._reader.tensors[:-2]  # two buffers of the expansion come last

    def state_of_weights(self) -> object:
        """Return an object that stays the same as long as the weights do."""
        self._refresh()
        return self._compiled

    def _bundle_of_weights(self) -> Tensor | None:
        """Return what stands for all weights in the graph, if any of them is to be trained."""
        weights, old = self.weights_read(), self._bundled
        state = [weight.requires_grad for weight in weights]
        same = old and state == old.state and self._reader.shapes is old.shapes
        if not (same and all(map(is_, weights, old.weights))):
            tensor = bundle_of(weights) if any(state) else None
            self._bundled = _Bundled(weights, state, self._reader.shapes, tensor)
        return self._bundled.tensor

    def weight_gradients(self, system: System, g: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the gradients of Σ_b g_b E_b by the embeddings, (N, F), and by the weights.

        The weights are those of `WeightReader.layers`, kind after kind. Of the filters only values
        count, whose error falls with the fourth power of the spacing, that of slopes with the
        third: a quarter of the intervals is as exact.
        """
        self._refresh()
        K = max(MIN_INTERVALS, self.num_intervals // 4)
        fixed = system._replace(pos=system.pos.detach().contiguous())
        atoms, order, edges, _ = self._begin(fixed, K)
        weights, spacing = self._compiled[0], self.cutoff / K
        filters = self._reader.filters(*expand_knots(self, K))
        tables, inner = passes.tabulate(filters, spacing)
        *_, kept = passes.energies_and_forces(
            atoms.x, order, edges, weights, tables, True, no_room(atoms.x)[0]
        )
        seed = g.detach().numpy().ravel()[atoms.batch.numpy()[order]]
        still = np.zeros((len(order), 3), seed.dtype)
        g_sorted, blocks, ends = gradients.gradients(
            seed, still, edges, weights, filters, tables, spacing, kept, inner, 1
        )
        g_x = np.empty_like(g_sorted)
        g_x[order] = g_sorted
        parts = [part for x in blocks for part in torch.from_numpy(x).unbind(0)]
        return torch.from_numpy(g_x), [*parts, *map(torch.from_numpy, ends)]

    def _begin(
        self, system: System, num_intervals: int = 0
    ) -> tuple[_Atoms, np.ndarray, lists.Edges, tuple[np.ndarray, ...]]:
        """Return the checked atoms, an order of them, the edges in that order, and room."""
        threads = lists.use_threads_of_torch(len(system.pos))
        self._refresh()
        atoms = self._atoms_of(system.z, system.pos, system.batch)
        room, self._room = self._room, None  # a call from another thread makes its own
        if room is None or room[0].dtype != atoms.x.dtype:
            room = no_room(atoms.x)
        K = num_intervals or self.num_intervals
        order, edges = self._edges(system, atoms.start, threads, room, K)
        return atoms, order, edges, room

    def _atoms_of(self, z: Tensor, pos: Tensor, batch: Tensor) -> _Atoms:
        """Check the input; return what depends on it but not on where the atoms are."""
        atoms = self._atoms
        if not (atoms and _same(z, atoms.z) and _same(batch, atoms.batch)
                and pos.dtype == atoms.dtype and pos.shape == (len(batch), 3)
                and lists.all_finite(pos.numpy())):  # fmt: skip
            per_atom, n_atoms = checked_atoms(z, pos, batch, self.readout[0].weight)
            expect_positions(pos, batch)
            with torch.no_grad():
                x = self.embedding(per_atom.to(pos.dtype))
            start = F.pad(n_atoms.cumsum(0), (1, 0)).numpy()
            atoms = _Atoms(z.clone(), batch.clone(), pos.dtype, x.contiguous().numpy(), start)
            if self._is_known_embedding():  # others may be random
                self._atoms = atoms
        return atoms

    def _edges(
        self, system: System, start: np.ndarray, threads: int, room: tuple[np.ndarray, ...], K: int
    ) -> tuple[np.ndarray, lists.Edges]:
        """Return an order of the atoms, and the edges between them in that order."""
        _, pos, batch, graph, cells, pbc = system
        spacing = self.cutoff / K
        is_open = cells is None and (pbc is None or not torch.as_tensor(pbc).any())
        if graph is None or (is_open and graph.skin == 0):
            cutoff = (self.interaction_graph if graph is None else graph).cutoff
            order, edges, distinct = lists.find_graph(
                pos.numpy(), batch.numpy(), start, min(cutoff, self.cutoff), spacing, K, threads,
                *room[1:],
            )  # fmt: skip
        else:
            given = self._sorted(pos, start, threads, *graph.candidates(pos, batch, cells, pbc))
            order, cutoff = given[0], min(graph.cutoff, self.cutoff)
            edges, distinct = lists.narrow_graph(pos.numpy(), *given, cutoff, spacing, K, *room[1:])
        if not distinct:  # raises the error that names the atoms
            (Graph(self.cutoff) if graph is None else graph).edges(pos, batch, cells, pbc)
        return order, edges

    def _sorted(
        self, pos: Tensor, start: np.ndarray, threads: int, edge_index: Tensor, offset: Tensor
    ) -> tuple[np.ndarray, np.ndarray, tuple]:
        """Return an order of the atoms along cells, parts, and the edges by receiver."""
        given, parts = self._list, lists.cut(start, threads)
        if given and given[0] is edge_index and given[1] is offset and len(given[3]) == len(parts):
            return given[2:]
        order = lists.sort_into_cells(pos.numpy(), start, self.cutoff)[0]
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        sender, receiver = place[edge_index.numpy()]
        offsets = np.broadcast_to(offset.numpy(), (len(sender), 3))
        edges = lists.sort_graph(receiver, sender, offsets, parts)
        self._list = edge_index, offset, order, parts, edges
        return self._list[2:]

    def _searches(self) -> bool:
        """Return whether the model's own graph is the one that the compiled search equals."""
        graph = self.interaction_graph
        return type(graph) is RadiusInteractionGraph and graph.max_num_neighbors is None

    def _is_known_embedding(self) -> bool:
        return type(self.embedding) in (nn.Linear, ElementEmbedding)

    def applies(self, like: Tensor) -> bool:
        """Return whether the tables can be used for numbers of this dtype and device."""
        return not torch.compiler.is_compiling() and tables_apply(like.device, like.dtype)

    def __getstate__(self) -> dict[str, object]:
        """Return what is copied or pickled: all but the room and the bundle."""
        return {**super().__getstate__(), "_room": None, "_bundled": None}

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
        if self._reader.read() or not self._compiled:
            self._compiled, self._atoms = (), None  # nothing old is left if the next line fails
            with torch.no_grad():
                self._tables = self._tabulate()
            self.num_intervals = len(self._tables[0]) - 1
            tables = in_large_pages([table.numpy() for table in self._tables])
            self._compiled = self._reader.weights(), tables

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
        expected = f"one that {MAX_INTERVALS} intervals can keep"
        raise ValueError(f"tolerance: expected {expected}, got {tolerance}")


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


def _virials(edges: lists.Edges, pull: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Return Σ (dE/dd) r rᵀ / d over the pairs of each sample, (B, 3, 3)."""
    both_or_one_way = np.array([1, 0.5], pull.dtype)  # what an edge is of a pair
    share = np.tile(both_or_one_way, start[-1])
    each = np.repeat(share, np.diff(edges.first)) * pull * edges.d
    ends = edges.first[2 * start]
    samples = [slice(*both) for both in pairwise(ends)]
    return np.stack([(edges.unit[:, own] * each[own]) @ edges.unit[:, own].T for own in samples])


def _hermite(
    d: Tensor, edge_index: Tensor, num_atoms: int, cutoff: float, K: int
) -> tuple[kernels.Edges, Tensor]:
    """Return the edges for the kernels, and the Hermite basis (E, 4), differentiable in d."""
    spacing = cutoff / K
    knot = (d.detach() / spacing).long().clamp_(max=K - 1)
    t = (d.double() / spacing - knot).to(d.dtype)  # in float32, d / spacing has lost digits of t
    w = hermite_basis(t, spacing)[0] * (d < cutoff).unsqueeze(1)
    sender, receiver = edge_index.numpy()
    orders = (lists.sort_edges(atom, num_atoms) for atom in (receiver, sender))
    return kernels.Edges(receiver, sender, *orders, knot.numpy()), w
