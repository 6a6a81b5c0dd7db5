"""A training step on tables: energies and forces of frames, and the gradient of their loss.

The tables are made of the weights in every step, and the gradient goes back through them.

Axes:   N atoms, B samples, E directed edges j -> i, F features, K intervals of a table.
Units:  those of the model.
Graphs: symmetric, as a cutoff makes them: with every edge its reverse.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from molnets.edges import Edges
from molnets.potential import Potential, sum_over_atoms
from molnets.tables.filters import expand_knots

try:
    from molnets.tables import gradients, lists, passes
    from molnets.tables.memory import no_room
    from molnets.tables.weights import WeightReader
except ImportError:  # no numba: the plain network does it all
    gradients = lists = passes = None


FEW_EDGES = 10_000  # that are not worth a second part of a table's gradient


class SplineForces(nn.Module):
    """Energies and forces of frames whose edges are known, on tables.

    The gradient of a loss reaches the weights, not the positions. The tables are made anew in every
    call: they always belong to the weights.

    Args:
        potential: the potential; a `SchNet` is inside.
        num_intervals: K; 0 for six intervals to the width of a Gaussian, 1 / √(2γ): the slopes of
            the filters are then 1e-4 of their size off, far less than a training step moves them.
    """

    def __init__(self, potential: Potential, num_intervals: int = 0) -> None:
        super().__init__()
        self.potential, network = potential, potential.network
        widths = network.cutoff * math.sqrt(2 * float(network.radial_expansion.gamma))
        self.num_intervals = num_intervals or max(64, math.ceil(6 * widths))
        self.spacing = network.cutoff / self.num_intervals
        self.reader = WeightReader(network)
        self.knots = expand_knots(network, self.num_intervals)

    def forward(self, z: Tensor, batch: Tensor, edges: Edges) -> tuple[Tensor, Tensor]:
        """Return energies (B, 1) and forces (N, 3) from z (N, 1), batch (N,) and the edges."""
        threads, (sender, receiver) = lists.use_threads_of_torch(len(z)), edges.index.numpy()
        start = np.append(0, np.bincount(batch.numpy()).cumsum())
        parts = lists.cut(start, threads)
        first, senders, vectors = lists.sort_graph(receiver, sender, edges.vector.numpy(), parts)
        sorted_edges = lists.describe_graph(
            first, senders, vectors, parts, self.spacing, self.num_intervals
        )
        dtype, scale = edges.vector.dtype, self.potential.scale
        x = self.potential.network.embedding(z.to(dtype))
        weights = [weight for kind in self.reader.layers() for weight in kind]
        energy_i, forces = _Forces.apply(self, sorted_edges, x, *weights)
        energy = sum_over_atoms(energy_i, batch, len(start) - 1)
        return self.potential.in_units(energy, z, batch), scale.to(dtype) * forces


class _Forces(torch.autograd.Function):
    """Energies of the atoms and forces, differentiable once by the embeddings and weights."""

    @staticmethod
    def forward(ctx, engine, edges, x, *weights):
        reader = engine.reader
        reader.read()
        weights, filters = reader.weights(), reader.filters(*engine.knots)
        tables, inner = passes.tabulate(filters, engine.spacing)
        x = x.detach().contiguous().numpy()
        energy, forces, _, kept = passes.energies_and_forces(
            x, np.arange(len(x)), edges, weights, tables, True, no_room(x)[0]
        )
        ctx.given = edges, weights, filters, tables, engine.spacing, kept, inner
        return torch.from_numpy(energy).view(-1, 1), torch.from_numpy(forces)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g_energy, g_forces):
        seed, direction = g_energy.contiguous().view(-1), -g_forces
        num_parts = 1 if len(ctx.given[0].sender) < FEW_EDGES else 8
        g_x, blocks, ends = gradients.gradients(
            seed.numpy(), direction.numpy(), *ctx.given, num_parts
        )
        grads = [part for x in blocks for part in torch.from_numpy(x).unbind(0)]
        return None, None, torch.from_numpy(g_x), *grads, *map(torch.from_numpy, ends)
