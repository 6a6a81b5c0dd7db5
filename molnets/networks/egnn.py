"""EGNN: messages of distances between points that move as they go [1], two networks made of it.

Axes:   N atoms, E directed edges j -> i, F features, K edge features.
Units:  the caller's length unit.

| equation of [1]                                            | code                              |
| ---------------------------------------------------------- | --------------------------------- |
| (3) m_ij = φ_e(h_i, h_j, ‖x_i − x_j‖², a_ij)               | `Layer.forward`: `m_ij`           |
| (4) x_i' = x_i + C Σ_j (x_i − x_j) φ_x(m_ij)               | `Layer.forward`: `push`           |
| (5) m_i = Σ_j m_ij                                         | `Layer.forward`: `m_i`            |
| (6) h_i' = h_i + φ_h(h_i, m_i)                             | `Layer.forward`                   |
| (7) v_i' = φ_v(h_i) v_i + C Σ_j (…);  x_i' = x_i + v_i'    | `EGNNSimulator.forward`           |

`EGNN` is an energy: the points that move are copies of the atoms, and the energy is read from h. It
sees edges, so what moves is their vectors, r_ij' = r_ij + Δ_j − Δ_i, which is right for periodic
images as well. Here a_ij are Gaussians of the true distance; m_ij and φ_x(m_ij) fade out at the
cutoff, and C = 1 / (1 + Σ_j fade_ij), since a count of neighbours would jump when one leaves. The
last layer moves nothing: no energy would see it.

`EGNNSimulator` moves particles over edges that are given, with C = 1 / |N(i)| and v_i of the layer
before, where (7) of [1] has the velocity that came in. (6) is taken in its residual form.

[1] Satorras, Hoogeboom & Welling, ICML 2021, arXiv:2102.09844.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from molnets.edges import Edges
from molnets.networks.parts import AtomSizes, cosine_cutoff, gaussians, perceptron
from schnet_helpers import ElementEmbedding, expect_sizes


def velocity_gate(dim: int) -> nn.Sequential:
    """Return φ_v, near 1 to begin with: what nothing pushes goes on."""
    gate = perceptron(dim, dim, 1)
    nn.init.ones_(gate[2].bias)
    return gate


class Layer(nn.Module):
    """One E(n) equivariant layer: new features, and how far each point is pushed.

    Args:
        dim: number of features F.
        num_edge_features: number K of features a_ij of an edge.
        moves: whether points move; if not, there is no φ_x.
    """

    def __init__(self, dim: int, num_edge_features: int, moves: bool = True) -> None:
        super().__init__()
        self.phi_e = nn.Sequential(perceptron(2 * dim + 1 + num_edge_features, dim, dim), nn.SiLU())
        self.phi_h = perceptron(2 * dim, dim, dim)
        self.phi_x = perceptron(dim, dim, 1) if moves else None

    def forward(
        self, h: Tensor, r_ij: Tensor, index: Tensor, a_ij: Tensor, fade: Tensor, d2: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return the new features, (N, F), and Σ_j (x_i − x_j) φ_x(m_ij), (N, 3).

        Args:
            h: features, (N, F).
            r_ij: vectors x_j − x_i, (E, 3).
            index: atoms j and i of the edges, (2, E).
            a_ij: features of the edges, (E, K).
            fade: what messages are multiplied by, (E, 1).
            d2: ‖r_ij‖² in a unit in which it is of order 1, (E, 1).
        """
        j, i = index
        pair = [h.index_select(0, i), h.index_select(0, j), d2, a_ij]
        m_ij = self.phi_e(torch.cat(pair, dim=1))  # (E, F)
        m_i = torch.zeros_like(h).index_add(0, i, m_ij * fade)
        push = None
        if self.phi_x is not None:
            push = h.new_zeros(len(h), 3).index_add(0, i, -r_ij * (self.phi_x(m_ij) * fade))
        return h + self.phi_h(torch.cat([h, m_i], dim=1)), push


class EGNN(nn.Module):
    """Predict the energies of atoms by E(n) equivariant layers [1].

    Args:
        dim_embedding: number of features F.
        num_interactions: number of layers L; all but the last one move the points.
        num_gaussians: number of Gaussians K of the distance that are features of an edge.
        cutoff: r_c, in the unit of the positions.
        gamma: γ of the Gaussians, 1 / length²; 0 stands for as wide as they are apart.

    Raises:
        ValueError: if a size is not a positive integer, or `cutoff` or `gamma` not positive.
    """

    def __init__(
        self, dim_embedding: int = 64, num_interactions: int = 3, num_gaussians: int = 25,
        cutoff: float = 5.0, gamma: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        dim, last = dim_embedding, num_interactions - 1
        expect_sizes(dim_embedding=dim, num_interactions=num_interactions)
        self.cutoff = float(cutoff)
        self.radial_expansion = gaussians(num_gaussians, cutoff, gamma)
        self.embedding = ElementEmbedding(dim)
        self.layers = nn.ModuleList(Layer(dim, num_gaussians, n < last) for n in range(last + 1))
        self.readout = perceptron(dim, max(1, dim // 2), 1)

    def atomic_energies(self, z: Tensor, edges: Edges) -> Tensor:
        """Return the energies of the atoms, (N, 1), from atomic numbers (N, 1) and edges."""
        (j, i), r_ij = edges
        d_ij = torch.linalg.vector_norm(r_ij, dim=1)  # (E,)
        a_ij, fade = self.radial_expansion.expand(d_ij), cosine_cutoff(d_ij, self.cutoff)
        h = self.embedding(z)
        C = 1 / (1 + h.new_zeros(len(h), 1).index_add(0, i, fade))  # (N, 1)
        for layer in self.layers:
            d2 = r_ij.square().sum(dim=1, keepdim=True) / self.cutoff**2
            h, push = layer(h, r_ij, edges.index, a_ij, fade, d2)
            if push is not None:
                moved = C * push  # (N, 3)
                r_ij = r_ij + moved.index_select(0, j) - moved.index_select(0, i)
        return self.readout(h)


class EGNNSimulator(nn.Module):
    """Move particles: (h, x, v) -> (h, x, v) after a while that training decides [1].

    Args:
        dim: number of features F.
        num_layers: number of layers.
        num_edge_features: number K of features of an edge.
    """

    def __init__(self, dim: int = 64, num_layers: int = 4, num_edge_features: int = 0) -> None:
        super().__init__()
        expect_sizes(dim=dim, num_layers=num_layers)
        self.layers = nn.ModuleList(Layer(dim, num_edge_features) for _ in range(num_layers))
        self.phi_v = nn.ModuleList(velocity_gate(dim) for _ in range(num_layers))

    def forward(
        self, h: Tensor, x: Tensor, v: Tensor, index: Tensor, a_ij: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return new features (N, F), positions (N, 3) and velocities (N, 3); inputs stay.

        Args:
            h: features, (N, F).
            x: positions, (N, 3).
            v: velocities, (N, 3), lengths per time that the network covers.
            index: particles j and i of the edges, (2, E).
            a_ij: features of the edges, (E, K), if there are any.
        """
        j, i = index
        a_ij = x.new_zeros(len(j), 0) if a_ij is None else a_ij
        one = x.new_ones(len(j), 1)
        C = 1 / x.new_zeros(len(x), 1).index_add(0, i, one).clamp(min=1)  # (N, 1)
        for layer, phi_v in zip(self.layers, self.phi_v, strict=True):
            r_ij = x.index_select(0, j) - x.index_select(0, i)
            d2 = r_ij.square().sum(dim=1, keepdim=True)
            keep = phi_v(h)
            h, push = layer(h, r_ij, index, a_ij, one, d2)
            v = keep * v + C * push
            x = x + v
        return h, x, v


@dataclass(frozen=True)
class Sizes(AtomSizes):
    """The sizes of an EGNN."""

    def build(self) -> EGNN:
        """Return a new EGNN."""
        return EGNN(**asdict(self))
