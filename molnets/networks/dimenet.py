"""DimeNet++: messages between edges that see the angle between them [1, 2], of PyG's blocks.

Axes:   N atoms, E directed edges j -> i, T pairs of edges k -> j -> i, F features of an edge,
        n = 1 … num_radial, l = 0 … num_spherical − 1.
Units:  the caller's length unit; x = d / r_c.

| equation                                                          | code                         |
| ----------------------------------------------------------------- | ---------------------------- |
| e_n(d_ji) = u(x) sin(nπ x), [1] (7), u(x) the envelope (8) over x | PyG's `BesselBasisLayer`     |
| a_ln(d_kj, α) = u(x) N_ln j_l(z_ln x) Y_l0(α), as [1] (6)         | `AngularBasis`               |
| m_ji = σ(W [h_j, h_i, e_ji])                                      | PyG's `EmbeddingBlock`       |
| m_ji' = f(m_ji, Σ_k m_kj ∘ e_kj ∘ a_kj,ji), as figure 2 of [2]    | PyG's `InteractionPPBlock`   |
| E_i = Σ_blocks dense(Σ_j (W e_ji) ∘ m_ji)                         | PyG's `OutputPPBlock`        |

As in the public code, u divides (6) by x as well, and m_kj is multiplied by its own e_kj where the
papers write e_ji. The angle is the one at atom j, between k -> j and j -> i: 0 straight on. Its
cosine is enough, Y_l0 being a polynomial of it. Pairs that turn back by the same edge, k = i in the
same image, are left out. What leaves or enters an edge is multiplied by its e or a, zero at the
cutoff with two derivatives: the energy is smooth though messages have biases.

[1] Gasteiger, Groß & Günnemann, ICLR 2020, arXiv:2003.03123.
[2] Gasteiger, Giri, Margraf & Günnemann, NeurIPS workshop 2020, arXiv:2011.14115.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch_geometric.nn.models.dimenet import (
    BesselBasisLayer,
    EmbeddingBlock,
    Envelope,
    InteractionPPBlock,
    OutputPPBlock,
)
from torch_geometric.nn.models.dimenet_utils import Jn_zeros

from molnets.edges import Edges, repeated
from molnets.options import option
from schnet_helpers import ElementEmbedding, expect, expect_positive, expect_sizes

EXPONENT = 5  # of the envelope, as in [1]
SAME = 1e-3  # of an edge's length: two images are further apart


def pairs_of_edges(edges: Edges, num_atoms: int) -> tuple[Tensor, Tensor]:
    """Return the edges k -> j and j -> i of all pairs that meet in an atom and do not turn back.

    Returns:
        Numbers of edges kj and ji, (T,) each.
    """
    j, i = edges.index
    order = i.argsort(stable=True)  # edges, sorted by where they end
    ends_in = i.bincount(minlength=num_atoms)  # (N,)
    first = ends_in.cumsum(0) - ends_in
    ji, at = repeated(torch.arange(len(j), device=j.device), ends_in[j])
    kj = order[first[j[ji]] + at]
    r = edges.vector.detach()  # k -> j -> i turns back: k = i, and the two vectors cancel
    apart = (r[kj] + r[ji]).abs().amax(dim=1) > SAME * r[ji].abs().amax(dim=1)
    onward = (j[kj] != i[ji]) | apart
    return kj[onward], ji[onward]


class AngularBasis(nn.Module):
    """The two-dimensional Fourier-Bessel basis of a distance and the cosine of an angle, [1] (6).

    a_ln(d, α) = u(x) √2 j_l(z_ln x) / |j_{l+1}(z_ln)| · √((2l + 1) / 4π) P_l(cos α)

    with z_ln the n-th zero of the spherical Bessel function j_l. Both come from the recurrences of
    j_l and P_l, in float64 and up to l = 7, where they lose few digits: all at once, not one by one
    as PyG's, whose z_ln and norms have seven digits. No buffers: `.float()` would round them.

    Args:
        num_spherical: how many l.
        num_radial: how many n.
        cutoff: r_c.
    """

    def __init__(self, num_spherical: int, num_radial: int, cutoff: float) -> None:
        super().__init__()
        self.cutoff, self.envelope = float(cutoff), Envelope(EXPONENT)
        zeros = torch.tensor(Jn_zeros(num_spherical, num_radial), dtype=torch.float64)  # to 1e-7
        for _ in range(3):  # Newton's method, with j_l' = l / x j_l − j_{l+1}
            j = torch.stack(spherical_bessel(zeros))  # (L + 1, L, n)
            value, above = j[:-1].diagonal().T, j[1:].diagonal().T  # (L, n)
            order = torch.arange(num_spherical).view(-1, 1)
            zeros = zeros - value / (order / zeros * value - above)
        ends = torch.stack(spherical_bessel(zeros))[1:].diagonal().T  # (L, n)
        self.zeros, self.norms = zeros.tolist(), (math.sqrt(2) / ends.abs()).tolist()

    def forward(self, d_ij: Tensor, cos_angle: Tensor, kj: Tensor) -> Tensor:
        """Return the functions of all pairs, (E,), (T,), (T,) -> (T, L n)."""
        radial, x = self.radial(d_ij.double() / self.cutoff), cos_angle.double()  # (E, L, n)
        P = [torch.ones_like(x), x]
        for m in range(1, len(self.zeros) - 1):
            P.append(((2 * m + 1) * x * P[m] - m * P[m - 1]) / (m + 1))
        Y = [math.sqrt((2 * m + 1) / (4 * math.pi)) * p for m, p in enumerate(P)]
        Y = torch.stack(Y, dim=1).to(d_ij.dtype)  # (T, L)
        radial = radial.to(d_ij.dtype).index_select(0, kj)
        return (radial * Y.unsqueeze(2)).flatten(1)

    def radial(self, x: Tensor) -> Tensor:
        """Return u(x) N_ln j_l(z_ln x), (E,) -> (E, L, n)."""
        zeros, norms = x.new_tensor([self.zeros, self.norms])  # (L, n) each
        values = spherical_bessel(x.view(-1, 1, 1) * zeros)[:-1]
        values = torch.stack([order[:, m] for m, order in enumerate(values)], dim=1)
        return self.envelope(x).view(-1, 1, 1) * values * norms


def spherical_bessel(x: Tensor) -> list[Tensor]:
    """Return j_0 … j_L of x, (…, L, n), L + 1 tensors of its shape, by their recurrence."""
    j = [torch.sin(x) / x]
    j.append(j[0] / x - torch.cos(x) / x)
    for m in range(1, x.shape[-2]):
        j.append((2 * m + 1) * j[m] / x - j[m - 1])
    return j


class DimeNet(nn.Module):
    """Predict the energies of atoms from distances and angles [2].

    Args:
        dim_embedding: number of features F of an edge.
        num_interactions: number of interaction blocks.
        num_spherical: number of angular functions, 2 to 8.
        num_radial: number of radial functions.
        dim_pair: features of a pair of edges.
        dim_basis: features of the bases.
        dim_output: features of the output blocks.
        cutoff: r_c, in the unit of the positions.

    Raises:
        ValueError: if a size is not a positive integer, or `cutoff` not positive.
    """

    def __init__(
        self, dim_embedding: int = 64, num_interactions: int = 3, num_spherical: int = 7,
        num_radial: int = 6, dim_pair: int = 32, dim_basis: int = 8, dim_output: int = 64,
        cutoff: float = 5.0,
    ) -> None:  # fmt: skip
        super().__init__()
        expect_sizes(
            dim_embedding=dim_embedding, num_interactions=num_interactions,
            num_spherical=num_spherical, num_radial=num_radial, dim_pair=dim_pair,
            dim_basis=dim_basis, dim_output=dim_output,
        )  # fmt: skip
        expect(2 <= num_spherical <= 8, "num_spherical", "2 to 8", num_spherical)
        expect_positive("cutoff", cutoff)
        self.cutoff, act = float(cutoff), nn.functional.silu
        self.rbf = BesselBasisLayer(num_radial, cutoff, EXPONENT)
        self.sbf = AngularBasis(num_spherical, num_radial, cutoff)
        self.emb = EmbeddingBlock(num_radial, dim_embedding, act)
        self.emb.emb = ElementEmbedding(dim_embedding)  # PyG's ends at element 94
        nn.init.uniform_(self.emb.emb.weight, -math.sqrt(3), math.sqrt(3))
        self.interaction_blocks = nn.ModuleList(
            InteractionPPBlock(dim_embedding, dim_pair, dim_basis, num_spherical, num_radial,
                               num_before_skip=1, num_after_skip=2, act=act)
            for _ in range(num_interactions)
        )  # fmt: skip
        self.output_blocks = nn.ModuleList(
            OutputPPBlock(num_radial, dim_embedding, dim_output, out_channels=1, num_layers=3,
                          act=act, output_initializer="glorot_orthogonal")
            for _ in range(num_interactions + 1)
        )  # fmt: skip

    def atomic_energies(self, z: Tensor, edges: Edges) -> Tensor:
        """Return the energies of the atoms, (N, 1), from atomic numbers (N, 1) and edges."""
        edges, d_ij = within(edges, self.cutoff)
        j, i = edges.index
        kj, ji = pairs_of_edges(edges, len(z))
        unit = edges.vector / d_ij.unsqueeze(1)
        cos_angle = (unit.index_select(0, kj) * unit.index_select(0, ji)).sum(dim=1)  # (T,)
        rbf, sbf = self.rbf(d_ij), self.sbf(d_ij, cos_angle, kj)
        m_ji = self.emb(z, rbf, i, j)  # (E, F)
        energy_i = self.output_blocks[0](m_ji, rbf, i, num_nodes=len(z))
        for block, output in zip(self.interaction_blocks, self.output_blocks[1:], strict=True):
            m_ji = block(m_ji, rbf, sbf, kj, ji)
            energy_i = energy_i + output(m_ji, rbf, i, num_nodes=len(z))
        return energy_i


def within(edges: Edges, cutoff: float) -> tuple[Edges, Tensor]:
    """Return the edges shorter than the cutoff and their lengths: others would cost pairs."""
    d_ij = torch.linalg.vector_norm(edges.vector, dim=1)
    near = (d_ij.detach() < cutoff).nonzero().squeeze(1)
    index, vector = edges.index.index_select(1, near), edges.vector.index_select(0, near)
    return Edges(index, vector), d_ij.index_select(0, near)


@dataclass(frozen=True)
class Sizes:
    """The sizes of a DimeNet++."""

    dim_embedding: int = option(64, "features of an edge")
    num_interactions: int = option(3, "interaction blocks")
    num_spherical: int = option(7, "angular functions, 2 to 8")
    num_radial: int = option(6, "radial functions")
    dim_pair: int = option(32, "features of a pair of edges")
    dim_basis: int = option(8, "features of the bases")
    dim_output: int = option(64, "features of the output blocks")
    cutoff: float = option(5.0, "cutoff, in the data's length unit")

    def build(self) -> DimeNet:
        """Return a new DimeNet++."""
        return DimeNet(**asdict(self))
