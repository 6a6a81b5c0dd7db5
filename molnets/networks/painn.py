"""PaiNN: messages of scalars and vectors [1].

Axes:   N atoms, E directed edges j -> i, F features, K Gaussians; a vector feature is (N, 3, F).
Units:  the caller's length unit.

An atom carries F scalars s and F vectors v. A block is a message and an update:

| equation of [1]                                         | code                                 |
| ------------------------------------------------------- | ------------------------------------ |
| (7)  Δs_i = Σ_j φ_s(s_j) ∘ W_s(d_ij)                    | `Message`: `to_s`                    |
| (8)  Δv_i = Σ_j v_j ∘ φ_vv(s_j) ∘ W_vv(d_ij)            | `Message`: `keep`                    |
|            + Σ_j φ_vs(s_j) ∘ W_vs(d_ij) r_ij / d_ij     | `Message`: `along`                   |
| (9)  Δs_i = a_ss(s_i, |V v_i|) + a_sv ⟨U v_i, V v_i⟩    | `Update`: `shift`, `product`         |
| (10) Δv_i = a_vv(s_i, |V v_i|) U v_i                    | `Update`: `scale`                    |

Here the direction is r_ij = r_j − r_i. No weight is idle: vectors are zero before the first block,
which has no W_vv, and the last one, after which only scalars are read, no a_vv. The radial
functions are SchNet's Gaussians where [1] has sin(nπ d / r_c) / d; the cosine cutoff f multiplies
them, and the constant beside them that is the filters' bias: W(d) = f(d) (w · e(d) + b).

[1] Schütt, Unke & Gastegger, ICML 2021, arXiv:2102.03150.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from molnets.edges import Edges
from molnets.networks.parts import AtomSizes, cosine_cutoff, gaussians, perceptron
from schnet_helpers import ElementEmbedding, expect_sizes

TINY = 1e-8  # under the root of |V v|², whose slope at 0 is none


class Message(nn.Module):
    """What an atom hears from its neighbours: scalars, and vectors along the edges and theirs."""

    def __init__(self, dim: int, num_gaussians: int, first: bool) -> None:
        super().__init__()
        width = (2 if first else 3) * dim
        self.phi = perceptron(dim, dim, width)
        self.filters = nn.Linear(num_gaussians + 1, width, bias=False)
        self.dim = dim

    def forward(
        self, s: Tensor, v: Tensor | None, index: Tensor, unit: Tensor, e_ij: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the new scalars, (N, F), and vectors, (N, 3, F)."""
        j, i = index
        W_ij = self.filters(e_ij)  # (E, K + 1) -> (E, 3 F)
        to_s, along, *keep = (self.phi(s).index_select(0, j) * W_ij).split(self.dim, dim=1)
        v_ij = along.unsqueeze(1) * unit.unsqueeze(2)  # (E, 3, F)
        if v is None:
            v = v_ij.new_zeros(len(s), 3, self.dim)
        else:
            v_ij = v_ij.addcmul(keep[0].unsqueeze(1), v.index_select(0, j))
        return s.index_add(0, i, to_s), v.index_add(0, i, v_ij)


class Update(nn.Module):
    """What an atom makes of its own scalars and vectors."""

    def __init__(self, dim: int, last: bool) -> None:
        super().__init__()
        self.U, self.V = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)
        width = (2 if last else 3) * dim
        self.a = perceptron(2 * dim, dim, width)
        self.dim = dim

    def forward(self, s: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return the new scalars, (N, F), and vectors, (N, 3, F)."""
        Uv, Vv = self.U(v), self.V(v)
        norm = (Vv.square().sum(dim=1) + TINY).sqrt()  # (N, F)
        a = self.a(torch.cat([s, norm], dim=1))
        shift, product, *scale = a.split(self.dim, dim=1)
        s = s + shift + product * (Uv * Vv).sum(dim=1)
        return s, v + scale[0].unsqueeze(1) * Uv if scale else v


class PaiNN(nn.Module):
    """Predict the energies of atoms with scalar and vector features [1].

    Args:
        dim_embedding: number of features F.
        num_interactions: number of blocks L.
        num_gaussians: number of Gaussians K, their centres spread evenly over [0, r_c].
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
        self.messages = nn.ModuleList(Message(dim, num_gaussians, n == 0) for n in range(last + 1))
        self.updates = nn.ModuleList(Update(dim, n == last) for n in range(last + 1))
        self.readout = perceptron(dim, max(1, dim // 2), 1)

    def atomic_energies(self, z: Tensor, edges: Edges) -> Tensor:
        """Return the energies of the atoms, (N, 1), from atomic numbers (N, 1) and edges."""
        d_ij = torch.linalg.vector_norm(edges.vector, dim=1)  # (E,)
        unit, fade = edges.vector / d_ij.unsqueeze(1), cosine_cutoff(d_ij, self.cutoff)
        e_ij = torch.cat([fade * self.radial_expansion.expand(d_ij), fade], dim=1)  # (E, K + 1)
        s, v = self.embedding(z), None
        for message, update in zip(self.messages, self.updates, strict=True):
            s, v = update(*message(s, v, edges.index, unit, e_ij))
        return self.readout(s)


@dataclass(frozen=True)
class Sizes(AtomSizes):
    """The sizes of a PaiNN."""

    def build(self) -> PaiNN:
        """Return a new PaiNN."""
        return PaiNN(**asdict(self))
