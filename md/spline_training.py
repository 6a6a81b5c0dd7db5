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

from md.potential import Standardized
from md.spline import Network
from md.tables import expand_knots

try:
    from md import fused, fused_graph, fused_training
    from md.fused_memory import no_room
except ImportError:  # no numba: the plain network does it all
    fused = fused_graph = fused_training = None


FEW_EDGES = 10_000  # that are not worth a second part of a table's gradient


class SplineForces(nn.Module):
    """Energies and forces of frames whose edges are known, as `FrameForces`, on tables.

    The gradient of a loss reaches the weights, not the positions. The tables are made anew in every
    call: they always belong to the weights.

    Args:
        model: the model; a `SchNet` is inside.
        num_intervals: K; 0 for six intervals to the width of a Gaussian, 1 / √(2γ): the slopes of
            the filters are then 1e-4 of their size off, far less than a training step moves them.
    """

    def __init__(self, model: Standardized, num_intervals: int = 0) -> None:
        super().__init__()
        self.model = model
        widths = model.cutoff * math.sqrt(2 * float(model.model.radial_expansion.gamma))
        self.num_intervals = num_intervals or max(64, math.ceil(6 * widths))
        self.spacing = model.cutoff / self.num_intervals
        self.network = Network(model.model)
        self.knots = expand_knots(model.model, self.num_intervals)

    def forward(
        self, z: Tensor, pos: Tensor, batch: Tensor, edge_index: Tensor, offset: Tensor, B: int
    ) -> tuple[Tensor, Tensor]:
        """Return energies (B, 1) and forces (N, 3); an edge leads from r_j + offset to r_i."""
        threads, (sender, receiver) = fused_graph.use_threads_of_torch(), edge_index.numpy()
        start = np.append(0, np.bincount(batch.numpy(), minlength=B).cumsum())
        parts = fused_graph.cut(start, threads)
        given = fused_graph.sort_graph(receiver, sender, offset.numpy(), parts)
        points, order, K = pos.detach().numpy(), np.arange(len(pos)), self.num_intervals
        edges, _ = fused_graph.narrow_graph(
            points, order, parts, given, self.model.cutoff, self.spacing, K, *no_room(points)[1:]
        )
        x = self.model.model.embedding(z.to(pos.dtype))
        weights = [weight for kind in self.network.layers() for weight in kind]
        energy_i, forces = _Forces.apply(self, edges, x, *weights)
        energy = energy_i.new_zeros(B, 1).index_add(0, batch, energy_i)
        return self.model.in_units(energy, z, batch), self.model.scale.to(pos.dtype) * forces


class _Forces(torch.autograd.Function):
    """Energies of the atoms and forces, differentiable once by the embeddings and weights."""

    @staticmethod
    def forward(ctx, engine, edges, x, *weights):
        network = engine.network
        network.read()
        weights, filters = network.weights(), network.filters(*engine.knots)
        tables, inner = fused.tabulate(filters, engine.spacing)
        x = x.detach().contiguous().numpy()
        energy, forces, _, kept = fused.energies_and_forces(
            x, np.arange(len(x)), edges, weights, tables, True, no_room(x)[0]
        )
        ctx.given = edges, weights, filters, tables, engine.spacing, kept, inner
        return torch.from_numpy(energy).view(-1, 1), torch.from_numpy(forces)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g_energy, g_forces):
        seed, direction = g_energy.contiguous().view(-1), -g_forces
        num_parts = 1 if len(ctx.given[0].sender) < FEW_EDGES else 8
        g_x, blocks, ends = fused_training.gradients(
            seed.numpy(), direction.numpy(), *ctx.given, num_parts
        )
        grads = [part for x in blocks for part in torch.from_numpy(x).unbind(0)]
        return None, None, torch.from_numpy(g_x), *grads, *map(torch.from_numpy, ends)
