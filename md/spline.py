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
from functools import cache, partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from md.neighbors import PeriodicGraph
from md.potential import by_autograd
from md.spline_passes import Graph, Network, with_differences
from schnet_helpers import (
    RadiusInteractionGraph,
    SchNet,
    _expect_positions,
    get_batch_dimensions,
    spread_atomic_numbers,
)

try:
    from md import fused, kernels
except ImportError:  # no numba: the plain network does it all
    fused = kernels = None

MIN_INTERVALS, MAX_INTERVALS = 64, 2**15
TOLERANCES = {torch.float32: 4e-6, torch.float64: 1e-10}


class _Convolve(torch.autograd.Function):
    """y_i = Σ_e x_j ∘ W(e): (N, F), with derivatives of any order by x, w and the table."""

    @staticmethod
    def forward(ctx, x, w, table, edges):
        ctx.save_for_backward(x, w, table)
        ctx.edges, y = edges, torch.empty_like(x)
        x, w, table = (t.detach().contiguous().numpy() for t in (x, w, table))
        kernels.convolve(x, table, edges.knot, w, *edges.by_receiver, edges.sender, y.numpy())
        return y

    @staticmethod
    def backward(ctx, g):
        x, w, table = ctx.saved_tensors
        edges, (need_x, need_w, need_table, _) = ctx.edges, ctx.needs_input_grad
        return (
            _Convolve.apply(g, w, table, edges.reversed()) if need_x else None,
            _EdgeProducts.apply(g, x, table, edges) if need_w else None,
            _TableGradient.apply(g, x, w, edges, len(table)) if need_table else None,
            None,
        )


class _EdgeProducts(torch.autograd.Function):
    """The derivative of Σ_i g_i · y_i by w: (E, 4)."""

    @staticmethod
    def forward(ctx, g, x, table, edges):
        ctx.save_for_backward(g, x, table)
        ctx.edges, out = edges, x.new_empty(len(edges.knot), 4)
        g, x, table = (t.detach().contiguous().numpy() for t in (g, x, table))
        kernels.edge_products(g, x, table, edges.knot, edges.receiver, edges.sender, out.numpy())
        return out

    @staticmethod
    def backward(ctx, u):
        g, x, table = ctx.saved_tensors
        edges, (need_g, need_x, need_table, _) = ctx.edges, ctx.needs_input_grad
        return (
            _Convolve.apply(x, u, table, edges) if need_g else None,
            _Convolve.apply(g, u, table, edges.reversed()) if need_x else None,
            _TableGradient.apply(g, x, u, edges, len(table)) if need_table else None,
            None,
        )


class _TableGradient(torch.autograd.Function):
    """The derivative of Σ_i g_i · y_i by the table: (K + 1, 3 F)."""

    @staticmethod
    def forward(ctx, g, x, w, edges, num_knots):
        ctx.save_for_backward(g, x, w)
        ctx.edges = edges
        parts = x.new_empty(kernels.num_parts(len(edges.knot)), num_knots, 3 * x.shape[1])
        g, x, w = (t.detach().contiguous().numpy() for t in (g, x, w))
        kernels.table_gradient(g, x, edges.knot, w, edges.receiver, edges.sender, parts.numpy())
        return parts.sum(dim=0)

    @staticmethod
    def backward(ctx, table):
        g, x, w = ctx.saved_tensors
        edges, (need_g, need_x, need_w, *_) = ctx.edges, ctx.needs_input_grad
        return (
            _Convolve.apply(x, w, table, edges) if need_g else None,
            _Convolve.apply(g, w, table, edges.reversed()) if need_x else None,
            _EdgeProducts.apply(g, x, table, edges) if need_w else None,
            None,
            None,
        )


class SplineSchNet(SchNet):
    """A `SchNet` whose filters are read from tables; it shares the weights of the one it is given.

    It is called the same way and gives the same energies and forces, to the tables' tolerance. A
    table has so many intervals that the filters and their slopes deviate by less than `tolerance`
    times their largest value, and is built anew as soon as the weights differ. On a GPU, or without
    numba, it computes as the plain network does, and says so once.

    Args:
        model: the network.
        tolerance: of the tables; 0 for that of the dtype: 4e-6 in float32, 1e-10 in float64.

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
        self.tolerance = tolerance
        self._seen: list[Tensor] = []  # the weights that the following were made of
        self._tables: list[Tensor] = []
        self._compiled: tuple[object, ...] = ()  # the same for `fused`: weights, tables
        self.num_intervals = 0

    def atomic_energies(self, z: Tensor, edge_index: Tensor, d_ij: Tensor) -> Tensor:
        """Return the energy of each atom, (N, 1), from z (N, 1), edges (2, E), lengths (E,)."""
        if not self._applies(d_ij):
            return super().atomic_energies(z, edge_index, d_ij)
        fused.use_threads_of_torch()
        x, tables = self.embedding(z), self.tables()
        edges, w = _hermite(d_ij, edge_index, len(x), self.cutoff, self.num_intervals)
        for block, table in zip(self.interactions, tables, strict=True):
            y = _Convolve.apply(block.conv.lin1(x), w, table, edges)
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
        energy, forces, _ = self._evaluate(z, pos, batch)
        return energy, forces

    def energy_forces_virial(
        self, z: Tensor, pos: Tensor, batch: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return also ∂E/∂ε of a strain ε of positions and cell, (3, 3), summed over the samples.

        ∂E/∂ε = ½ Σ_e (dE/dd_e) r_e r_eᵀ / d_e over all directed edges r_e = d_e unit_e.
        """
        energy, forces, (d, unit, pull) = self._evaluate(z, pos, batch)
        return energy, forces, torch.from_numpy(0.5 * (unit.T * (pull * d)) @ unit)

    def _evaluate(self, z: Tensor, pos: Tensor, batch: Tensor) -> tuple[Tensor, Tensor, tuple]:
        batch_size, n_atoms = get_batch_dimensions(batch)
        self._expect_type_and_device(z, pos)
        _expect_positions(pos, batch)
        with torch.no_grad():
            x = self.embedding(spread_atomic_numbers(z, batch, batch_size).to(pos.dtype))
            self._refresh()
            order, edges = self._edges(pos.detach(), batch, n_atoms)
        fused.use_threads_of_torch()
        x = x.numpy()[order]  # a copy where atoms are sorted
        x = x if isinstance(order, np.ndarray) else x.copy()
        energy_i, force, pull = fused.energies_and_forces(x, edges, *self._compiled)
        forces = torch.empty_like(pos)
        forces.numpy()[order] = force
        energy_i = torch.from_numpy(energy_i).view(-1, 1)  # sorted atoms stay in their sample
        energy = energy_i.new_zeros(batch_size, 1).index_add(0, batch, energy_i)
        return energy, forces, (edges[2], edges[3], pull)

    def _edges(self, pos: Tensor, batch: Tensor, n_atoms: Tensor) -> tuple[object, tuple]:
        """Return an order of the atoms, and the edges between them in that order."""
        graph, K = self.interaction_graph, self.num_intervals
        if isinstance(graph, RadiusInteractionGraph) and graph.max_num_neighbors is None:
            start = F.pad(n_atoms.cumsum(0), (1, 0)).numpy()
            order, edges, distinct = fused.find_graph(
                pos.numpy(), batch.numpy(), start, graph.cutoff, self.cutoff / K, K
            )
            if not distinct:
                graph(pos, batch)  # raises the error that names the atoms
            return order, edges
        if isinstance(graph, PeriodicGraph):
            (sender, receiver), offset = graph.edges_and_offsets(pos, batch)
        else:
            (sender, receiver), _ = graph(pos, batch)
            offset = pos.new_zeros(1, 3).expand(len(sender), 3)
        edges, _ = fused.sort_graph(
            pos.numpy(), receiver.numpy(), sender.numpy(), offset.numpy(), self.cutoff / K, K
        )
        return slice(None), edges

    def _applies(self, like: Tensor) -> bool:
        return tables_apply(like.device, like.dtype)

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
        weights = _weights(self)
        if len(weights) == len(self._seen) and all(map(_same, weights, self._seen)):
            return
        with torch.no_grad():
            self._seen = [weight.detach().clone() for weight in weights]
            self._tables = self._tabulate()
            self.num_intervals = len(self._tables[0]) - 1
            stacked = torch.stack(self._tables).numpy()
            self._compiled = tuple(x.copy() for x in Network(self).weights()), stacked

    def _tabulate(self) -> list[Tensor]:
        """Return tables that keep the tolerance, made in float64."""
        dtype, K = self.radial_expansion.mu.dtype, MIN_INTERVALS
        tolerance = self.tolerance or TOLERANCES[dtype]
        while K <= MAX_INTERVALS:
            pairs = zip(filter_tables(self, K), filter_tables(self, 4 * K), strict=True)
            if max(_deviation(*pair, self.cutoff) for pair in pairs) <= tolerance:
                return [table.to(dtype).contiguous() for table in filter_tables(self, K)]
            K *= 2
        raise ValueError(
            f"tolerance: expected one that {MAX_INTERVALS} intervals can keep, got {tolerance}"
        )


def _weights(model: SchNet) -> list[Tensor]:
    """Return what tables are made of; `parameters()` takes as long as a small network."""
    layers = [*model.readout._modules.values()]
    for block in model.interactions._modules.values():
        parts = block._modules
        layers += [*parts["mlp"]._modules.values(), *parts["conv"]._modules.values(), parts["lin"]]
    weights = [weight for layer in layers for weight in layer._parameters.values()]
    weights += model.radial_expansion._buffers.values()
    return [weight for weight in weights if weight is not None]


def tabulated(model: nn.Module) -> nn.Module:
    """Return the model with a `SplineSchNet` for each `SchNet` in it; the weights are shared."""
    if type(model) is SchNet:  # a subclass may compute something else
        return SplineSchNet(model)
    result = copy.copy(model)
    result._modules = {name: tabulated(child) for name, child in model.named_children()}
    return result


def filter_tables(model: SchNet, num_intervals: int) -> list[Tensor]:
    """Return the tables of the filters of each block at K + 1 knots, each (K + 1, 3 F), float64.

    The slopes are forward-mode derivatives of the block's own network times the cutoff function.
    """
    expansion, cutoff = model.radial_expansion, model.cutoff
    gamma, mu = expansion.gamma.double(), expansion.mu.double()
    d = torch.linspace(0, cutoff, num_intervals + 1, dtype=torch.float64)
    inside = (d < cutoff).unsqueeze(1)  # the cosine's rounding must not be left at the cutoff

    def filters(mlp: nn.Module, d: Tensor) -> Tensor:
        e = torch.exp(-gamma * (d.unsqueeze(1) - mu) ** 2)
        weights = {name: weight.double() for name, weight in mlp.named_parameters()}
        fade = 0.5 * (torch.cos(math.pi / cutoff * d) + 1)
        return torch.func.functional_call(mlp, weights, (e,)) * fade.unsqueeze(1) * inside

    tables = []
    for block in model.interactions:
        W, dW = torch.func.jvp(partial(filters, block.mlp), (d,), (torch.ones_like(d),))
        tables.append(with_differences(W, dW, cutoff / num_intervals))
    return tables


def _deviation(table: Tensor, finer: Tensor, cutoff: float) -> float:
    """Return how far values and slopes of the spline are off those of a table 4 times finer.

    In units of the largest value and of the largest slope. The three points between two knots are
    close to where the errors are largest: t = 1/2 for values, t = 0.21 for slopes.
    """
    spacing, errors = cutoff / (len(table) - 1), []
    (V, S, D), (exact_W, exact_dW, _) = table.chunk(3, dim=1), finer.chunk(3, dim=1)
    knots = torch.stack([V[:-1], S[:-1], D[:-1], S[1:]])  # (4, K, F)
    for quarter in (1, 2, 3):
        w, dw = hermite_basis(torch.tensor(quarter / 4, dtype=V.dtype), spacing)
        value, slope = (torch.tensordot(basis, knots, dims=1) for basis in (w, dw))
        errors.append((value - exact_W[quarter::4]).abs().max() / exact_W.abs().max())
        errors.append((slope - exact_dW[quarter::4]).abs().max() / exact_dW.abs().max())
    return float(max(errors))


def hermite_basis(t: Tensor, spacing: float) -> tuple[Tensor, Tensor]:
    """Return the cubic Hermite basis at t in [0, 1] of an interval, (..., 4), and its slope.

    It goes with V_k, S_k, D_k and S_{k+1}; see `md.kernels`.
    """
    s = 1 - t
    w = torch.stack([t * s * s, t * t * (1 + 2 * s), -t * t * s], dim=-1)
    dw = torch.stack([s * (s - 2 * t), 6 * t * s, t * (t - 2 * s)], dim=-1)
    one = torch.ones_like(t).unsqueeze(-1)
    return torch.cat([one, spacing * w], dim=-1), torch.cat([0 * one, dw], dim=-1)


@cache
def tables_apply(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether the tables can be used; where they cannot, say so, once."""
    ok = kernels is not None and device.type == "cpu" and dtype in TOLERANCES
    if not ok:
        why = "numba is not installed" if kernels is None else f"{dtype} on {device}"
        print(f"No tables of filters ({why}): the plain network is used.", file=sys.stderr)
    return ok


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)


def _hermite(
    d: Tensor, edge_index: Tensor, num_atoms: int, cutoff: float, K: int
) -> tuple[Graph, Tensor]:
    """Return the edges for the kernels, and the Hermite basis (E, 4), differentiable in d."""
    spacing = cutoff / K
    knot = (d.detach() / spacing).long().clamp_(max=K - 1)
    t = (d.double() / spacing - knot).to(d.dtype)  # in float32, d / spacing has lost digits of t
    w = hermite_basis(t, spacing)[0] * (d < cutoff).unsqueeze(1)
    sender, receiver = edge_index.numpy()
    orders = (fused.sort_edges(atom, num_atoms) for atom in (receiver, sender))
    return Graph(receiver, sender, *orders, None, None, knot.numpy(), None, None), w
