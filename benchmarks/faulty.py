"""SchNets that are wrong on purpose, and the faults that no test of errors sees.

Each function takes a SchNet and breaks it in one way; the weights stay. `schnet_md.ipynb` measures
which test sees which fault. Never put these on tables: those assume a sound network.

Axes:   as in `schnet_helpers`; R replicas of n atoms in dynamics.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch_geometric.nn.models.schnet import CFConv

from molnets.dynamics import ForceFn
from molnets.edges import Edges, Graph
from molnets.potential import Potential
from schnet_helpers import SchNet


class OwnFeatures(CFConv):
    """A convolution in which an atom receives its own features: Σ_j x_i ∘ W(d_ij)."""

    def message(self, x_i: Tensor, W: Tensor) -> Tensor:  # noqa: D102
        return x_i * W


class BareDistance(nn.Module):
    """No expansion: the filter network gets the distance itself, (E,) -> (E, 1)."""

    def __init__(self, like: nn.Module) -> None:
        super().__init__()
        self.register_buffer("gamma", like.gamma)
        self.register_buffer("mu", like.mu)

    def expand(self, d: Tensor) -> Tensor:  # noqa: D102
        return d.unsqueeze(-1)


def hard_cutoff(network: SchNet) -> SchNet:
    """Take the cosine away: a neighbour is switched off at the cutoff, not faded out."""
    for block in network.interactions:
        block.conv.cutoff = 1e9  # ½ (cos(π d / 1e9) + 1) = 1
    return network


def own_features(network: SchNet) -> SchNet:
    """Let each atom receive its own features instead of its neighbours'."""
    for block in network.interactions:
        conv = block.conv
        wrong = OwnFeatures(
            conv.lin1.in_features, conv.lin2.out_features, conv.lin1.out_features, conv.nn,
            conv.cutoff,
        )  # fmt: skip
        wrong = wrong.to(conv.lin1.weight)
        wrong.load_state_dict(conv.state_dict())
        block.conv = wrong
    return network


def no_expansion(network: SchNet) -> SchNet:
    """Feed the filters with the distance itself; for a network of one Gaussian."""
    network.radial_expansion = BareDistance(network.radial_expansion)
    return network


FAULTS: dict[str, Callable[[SchNet], SchNet]] = {
    "sound": lambda network: network,
    "hard cutoff": hard_cutoff,
    "own features": own_features,
    "no expansion": no_expansion,
}


def no_gradient(force_fn: ForceFn, share: float = 0.01) -> ForceFn:
    """Return forces that are no gradient, as those of a network that predicts them directly.

    F_i (1 + share · sin(6 |r_i − r̄|²)), r̄ the centre: turning and renumbering the atoms turns and
    renumbers them, and no component is off by more than the share; the energy is the original one.
    """

    def wrong(pos: Tensor) -> tuple[Tensor, Tensor]:
        energy, forces = force_fn(pos)
        x = pos - pos.mean(dim=1, keepdim=True)  # (R, n, 3)
        return energy, forces * (1 + share * torch.sin(6 * x.square().sum(dim=2, keepdim=True)))

    return wrong


class FewNeighbors(nn.Module):
    """A graph that keeps only the first neighbours of each atom, in the order of the atoms."""

    def __init__(self, graph: nn.Module, most: int = 32) -> None:
        super().__init__()
        self.graph, self.most = graph, most

    def forward(self, pos: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Return the edges that are kept, (2, E), and their lengths, (E,)."""
        edge_index, d_ij = self.graph(pos, batch)
        order = (edge_index[1] * len(pos) + edge_index[0]).argsort()
        degree = edge_index[1].bincount(minlength=len(pos))
        rank = torch.arange(len(d_ij)) - (degree.cumsum(0) - degree)[edge_index[1, order]]
        kept = order[rank < self.most]
        return edge_index[:, kept], d_ij[kept]


def stale_list(potential: Potential, z: Tensor, every: int) -> ForceFn:
    """Return forces from a list without a skin that is made anew every so many calls; 0: never."""
    calls, index = 0, None

    def force_fn(pos: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal calls, index
        flat, batch = pos.reshape(-1, 3), torch.arange(len(pos)).repeat_interleave(pos.shape[1])
        if index is None or (every and calls % every == 0):
            index = Graph(potential.cutoff).edges(flat, batch).index
        calls += 1
        edges = Edges(index, flat[index[0]] - flat[index[1]])
        energy, forces = potential.energy_and_forces_of(z.repeat(len(pos), 1), batch, edges)
        return energy.flatten(), forces.view_as(pos)

    return force_fn
