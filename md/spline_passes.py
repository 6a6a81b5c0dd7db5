"""The passes through a SchNet whose filters are read from tables, written out: fast.

Axes:   N atoms, B samples, E directed edges j -> i, F features, K intervals of a table. An axis of
        2 in front of others holds numbers and their tangents.
Units:  those of the model.
Graphs: symmetric, as a cutoff makes them: with every edge its reverse.

One pass forward and one back give energies and forces. The gradient of a loss of both needs no
second derivative of the graph of operations: with the gradients ē of the energies and u of the
forces held fixed,

∇_θ L = ∇_θ (Σ_b ē_b E_b − D_u E),   D_u E = d/dε E(r + ε u),

so tangents are carried forward through the network, and one pass goes back through both.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn.models.schnet import ShiftedSoftplus

from md.potential import Standardized
from schnet_helpers import SchNet

try:
    from md import fused, kernels
except ImportError:  # no numba: the plain network does it all
    fused = kernels = None

LOG_2 = ShiftedSoftplus().shift  # PyG's, which is rounded to float32

Gradients = dict[nn.Parameter, Tensor]


class Graph(NamedTuple):
    """The edges of a batch as the kernels take them; the last five as far as they are needed."""

    receiver: np.ndarray  # (E,)
    sender: np.ndarray  # (E,)
    by_receiver: tuple[np.ndarray, np.ndarray]  # first (N + 1,) and order (E,)
    by_sender: tuple[np.ndarray, np.ndarray]
    d: np.ndarray  # (E,)
    unit: np.ndarray  # (E, 3), from i to j
    knot: np.ndarray  # (E,)
    w: np.ndarray  # (E, 4)
    dw: np.ndarray  # (E, 4), by d

    def reversed(self) -> Graph:
        """Return the graph whose edges lead the other way."""
        return self._replace(receiver=self.sender, sender=self.receiver,
                             by_receiver=self.by_sender, by_sender=self.by_receiver)  # fmt: skip


def make_graph(pos: Tensor, edge_index: Tensor, offset: Tensor, cutoff: float, K: int) -> Graph:
    """Return the graph for the kernels; an edge leads from r_j + offset to r_i."""
    sender, receiver = edge_index.numpy()
    (first, sender, d, *rest), receiver = fused.sort_graph(
        pos.detach().numpy(), receiver, sender, offset.numpy(), cutoff / K, K
    )
    by_sender = fused.sort_edges(sender, len(pos))
    return Graph(receiver, sender, (first, np.arange(len(sender))), by_sender, d, *rest)


class Perceptron:
    """Dense, shifted softplus, dense: a filter network, an atom-wise update, or the readout."""

    def __init__(self, first: nn.Linear, second: nn.Linear) -> None:
        self.first, self.second = first, second

    def parameters(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return weight and bias of the first layer, then those of the second."""
        return self.first.weight, self.first.bias, self.second.weight, self.second.bias

    def push(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Return y and its tangent, (2, N, out), for those of x, and what `back` needs."""
        s = x @ self.first.weight.T
        s[0] += self.first.bias
        a = torch.empty_like(s)
        torch.sub(F.softplus(s[0]), LOG_2, out=a[0])
        torch.mul(s[0].sigmoid(), s[1], out=a[1])
        y = a @ self.second.weight.T
        y[0] += self.second.bias
        return y, (x, s, a)

    def back(self, saved: tuple[Tensor, Tensor, Tensor], g: Tensor, grads: Gradients) -> Tensor:
        """Return the gradients of s and its tangent from those of y; fill those of the weights."""
        x, s, a = saved
        grads[self.second.weight] = g.flatten(0, 1).T @ a.flatten(0, 1)
        grads[self.second.bias] = g[0].sum(0)
        h, sigma = g @ self.second.weight, s[0].sigmoid()
        h *= sigma
        h[0].addcmul_(h[1] * s[1], 1 - sigma)
        grads[self.first.weight] = h.flatten(0, 1).T @ x.flatten(0, 1)
        grads[self.first.bias] = h[0].sum(0)
        return h


class Block:
    """An interaction block: x + update(Σ_j (A x_j) ∘ W(d_ij))."""

    def __init__(self, block: nn.Module) -> None:
        self.A = block.conv.lin1.weight
        self.filters = Perceptron(block.mlp[0], block.mlp[2])
        self.update = Perceptron(block.conv.lin2, block.lin)


class Network:
    """The weights of a SchNet, and the gradients of a loss of energies and forces by them.

    Args:
        model: the network whose weights it uses.
    """

    def __init__(self, model: SchNet) -> None:
        self.blocks = [Block(block) for block in model.interactions]
        self.readout = Perceptron(model.readout[0], model.readout[2])

    def weights(self) -> tuple[np.ndarray, ...]:
        """Return the weights as `fused.energies_and_forces` takes them; blocks are stacked."""
        layers = [[block.A, *block.update.parameters()] for block in self.blocks]
        stacked = map(torch.stack, zip(*layers, strict=True))
        return tuple(x.detach().numpy() for x in (*stacked, *self.readout.parameters()))

    def gradients(
        self, x: Tensor, graph: Graph, tables: TrainingTables, seed: Tensor, direction: Tensor
    ) -> tuple[Gradients, Tensor]:
        """Return the gradients of Σ_i seed_i E_i + D_direction E by the weights, and by x, (N, F).

        Args:
            x: embeddings, (N, F).
            graph: the edges.
            tables: those of the blocks.
            seed: (N, 1).
            direction: (N, 3).
        """
        grads, all_tables = {}, tables.tables
        dw = np.empty_like(graph.dw)
        kernels.stretch(graph.unit, direction.numpy(), graph.receiver, graph.sender, graph.dw, dw)
        x, kept = torch.stack([x, torch.zeros_like(x)]), []
        for block, table in zip(self.blocks, all_tables, strict=True):
            h = x @ block.A.T
            y = torch.empty_like(h)
            kernels.convolve_both(
                *h.numpy(), table.numpy(), graph.knot, graph.w, dw, *graph.by_receiver,
                graph.sender, *y.numpy(),
            )  # fmt: skip
            update, inner = block.update.push(y)
            kept.append((x, h, inner))
            x = x + update
        _, inner = self.readout.push(x)
        g = self.readout.back(inner, torch.stack([seed, torch.ones_like(seed)]), grads)
        g = g @ self.readout.first.weight
        parts = np.empty((kernels.num_parts(len(dw)), *all_tables[0].shape), dw.dtype)
        for number in reversed(range(len(self.blocks))):
            block, table = self.blocks[number], all_tables[number]
            x, h, inner = kept.pop()
            g_y = block.update.back(inner, g, grads) @ block.update.first.weight
            kernels.table_gradient_both(*g_y.numpy(), *h.numpy(), graph.knot, graph.w, dw,
                                        graph.receiver, graph.sender, parts)  # fmt: skip
            tables.back(number, torch.from_numpy(parts.sum(axis=0)), grads)
            g_h = torch.empty_like(h)
            kernels.convolve_both(
                *g_y.flip(0).numpy(), table.numpy(), graph.knot, graph.w, dw, *graph.by_sender,
                graph.receiver, g_h[1].numpy(), g_h[0].numpy(),
            )  # fmt: skip
            grads[block.A] = g_h.flatten(0, 1).T @ x.flatten(0, 1)
            g = g + g_h @ block.A
        return grads, g[0]


class TrainingTables:
    """The tables of the blocks of a network as its weights are now, and the way back to them.

    Args:
        network: the network.
        expansion: e_k and de_k/dd at the K + 1 knots, (2, K + 1, G).
        fade: C and dC/dd there, twice (K + 1, 1).
        spacing: from knot to knot.
    """

    def __init__(
        self, network: Network, expansion: Tensor, fade: tuple[Tensor, Tensor], spacing: float
    ) -> None:
        self.blocks, (self.C, self.dC), self.spacing = network.blocks, fade, spacing
        self.tables, self.saved = [], []
        for block in network.blocks:
            (W, dW), saved = block.filters.push(expansion)
            value, slope = W * self.C, (dW * self.C).addcmul_(W, self.dC)
            self.tables.append(with_differences(value, slope, self.spacing))
            self.saved.append(saved)

    def back(self, number: int, g: Tensor, grads: Gradients) -> None:
        """Fill the gradients of the filter network of a block, from that of its table."""
        value, slope, difference = g.chunk(3, dim=1)
        value[1:] += difference[:-1] / self.spacing
        value[:-1] -= difference[:-1] / self.spacing
        g = torch.stack([(value * self.C).addcmul_(slope, self.dC), slope * self.C])
        self.blocks[number].filters.back(self.saved[number], g, grads)


def with_differences(value: Tensor, slope: Tensor, spacing: float) -> Tensor:
    """Return the table of values and slopes at the knots: (K + 1, F) twice -> (K + 1, 3 F)."""
    difference = F.pad((value[1:] - value[:-1]) / spacing, (0, 0, 0, 1))
    return torch.cat([value, slope, difference], dim=1)


def expand_knots(model: SchNet, num_intervals: int) -> tuple[Tensor, tuple[Tensor, Tensor], float]:
    """Return what `TrainingTables` take: the expansion of the knots, and the cutoff function."""
    mu, gamma = model.radial_expansion.mu.double(), model.radial_expansion.gamma.double()
    d = torch.linspace(0, model.cutoff, num_intervals + 1, dtype=torch.float64).unsqueeze(1)
    e = torch.exp(-gamma * (d - mu) ** 2)
    C = 0.5 * (torch.cos(math.pi / model.cutoff * d) + 1)
    dC = -0.5 * math.pi / model.cutoff * torch.sin(math.pi / model.cutoff * d)
    C[-1] = dC[-1] = 0
    like = model.radial_expansion.mu.dtype
    expansion = torch.stack([e, -2 * gamma * (d - mu) * e])
    return expansion.to(like), (C.to(like), dC.to(like)), model.cutoff / num_intervals


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
        num_intervals = num_intervals or max(64, math.ceil(6 * widths))
        self.network, self.num_intervals = Network(model.model), num_intervals
        self.knots = expand_knots(model.model, num_intervals)
        self.weights = list(model.model.parameters())

    def forward(
        self, z: Tensor, pos: Tensor, batch: Tensor, edge_index: Tensor, offset: Tensor, B: int
    ) -> tuple[Tensor, Tensor]:
        """Return energies (B, 1) and forces (N, 3); an edge leads from r_j + offset to r_i."""
        fused.use_threads_of_torch()
        x = self.model.model.embedding(z.to(pos.dtype))
        graph = make_graph(pos, edge_index, offset, self.model.cutoff, self.num_intervals)
        energy_i, forces = _Forces.apply(self.network, self.knots, graph, x, *self.weights)
        energy = energy_i.new_zeros(B, 1).index_add(0, batch, energy_i)
        return self.model.in_units(energy, z, batch), self.model.scale.to(pos.dtype) * forces


class _Forces(torch.autograd.Function):
    """Energies of the atoms and forces, differentiable once by the embeddings and weights."""

    @staticmethod
    def forward(ctx, network, knots, graph, x, *weights):
        tables = TrainingTables(network, *knots)
        edges = graph.by_receiver[0], graph.sender, *graph[4:]
        ctx.inputs, ctx.network, ctx.weights = (x, graph, tables), network, weights
        energy, forces, _ = fused.energies_and_forces(
            x.detach().numpy().copy(), edges, network.weights(), torch.stack(tables.tables).numpy()
        )
        return torch.from_numpy(energy).view(-1, 1), torch.from_numpy(forces)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g_energy, g_forces):
        grads, g_x = ctx.network.gradients(*ctx.inputs, g_energy, -g_forces)
        return None, None, None, g_x, *(grads.get(weight) for weight in ctx.weights)
