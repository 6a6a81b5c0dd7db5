"""TensorNet: an atom carries 3 x 3 matrices, and neighbours meet in products of them [1].

Axes:   N atoms, E directed edges j -> i, F features, K Gaussians; a tensor feature is (N, 3, 3, F).
Units:  the caller's length unit.

A matrix X is the sum of three parts that rotations do not mix: I = tr(X)/3 δ, antisymmetric A, and
S, symmetric without a trace. `Mix` is a dense layer of the features for each part, W(X).

| step of [1]                                                         | code            |
| ------------------------------------------------------------------- | --------------- |
| X_i = Σ_j (p(z_i) + q(z_j)) ∘ (W_I δ + W_A [u]ₓ + W_S (u uᵀ − δ/3)) | `Embedding`     |
| X ← c_I ∘ W(I) + c_A ∘ W(A) + c_S ∘ W(S),   c = φ(norm |X|²)        | `Embedding`     |
| X ← X / (|X|² + 1);   Y = W(X);   M_i = Σ_j (W_I, W_A, W_S) ∘ Y_j   | `Interaction`   |
| C = Y M + M Y;   D = W'(C / (|C|² + 1));   X ← X + D + D²           | `Interaction`   |
| ε_i = φ(norm (|I|², |A|², |S|²))                                    | `readout`       |

u = r_ij / d_ij with r_ij = r_j − r_i, [u]ₓ v = u × v, |X|² the sum of squares, norm a layer norm, φ
two dense layers. Products of matrices of even parity (I, S) and odd (A) keep parities, since
Y M + M Y has no cross product of two vectors: energies are equal for mirror images.

Not as in the code of [1], torchmd-net's: an atom is no neighbour of its own, so that the energy of
a lone one is no function of its element; filters are linear in Gaussians and a constant times the
cosine cutoff, W(d) = f(d) (w · e(d) + b), as in this project's PaiNN, where [1] has exponentials
and, in its blocks, a perceptron of three layers; φ of the embedding is F wide inside, not 2 F, and
ends without SiLU; the readout has two dense layers; layer norms have no weights. The first norm
hides how weak an only neighbour is, from d ≈ 0.8 r_c downwards; energy and force end smoothly at
r_c.

[1] Simeon & De Fabritiis, NeurIPS 2023, arXiv:2306.06482.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from molnets.edges import Edges
from molnets.networks.parts import AtomSizes, cosine_cutoff, gaussians, perceptron
from molnets.options import option
from schnet_helpers import ElementEmbedding, expect_sizes


def parts(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return I, A and S of matrices, each (N, 3, 3, F)."""
    turned = x.transpose(1, 2)
    trace = torch.diagonal(x, dim1=1, dim2=2).sum(dim=-1)  # (N, F)
    identity = torch.eye(3, dtype=x.dtype, device=x.device).view(1, 3, 3, 1)
    scalar = identity * spread(trace / 3)
    return scalar, (x - turned) / 2, (x + turned) / 2 - scalar


def spread(x: Tensor) -> Tensor:
    """Return numbers as factors of matrices: (N, F) -> (N, 1, 1, F)."""
    return x.unsqueeze(1).unsqueeze(1)


def square(x: Tensor) -> Tensor:
    """Return |X|², the sum of the squares: (N, 3, 3, F) -> (N, F)."""
    return x.square().sum(dim=(1, 2))


def times(x: Tensor, y: Tensor) -> Tensor:
    """Return the matrix products, (N, 3, 3, F)."""
    return torch.einsum("nabf,nbcf->nacf", x, y)


def bounded(x: Tensor) -> Tensor:
    """Return X / (|X|² + 1)."""
    return x / spread(square(x) + 1)


def directions(unit: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return δ, [u]ₓ and u uᵀ − δ/3 of unit vectors, (E, 3), each (E or 1, 3, 3, 1)."""
    identity = torch.eye(3, dtype=unit.dtype, device=unit.device)
    cross = torch.linalg.cross(unit.unsqueeze(2), identity.unsqueeze(0), dim=1)
    outer = unit.unsqueeze(1) * unit.unsqueeze(2) - identity / 3
    return identity.view(1, 3, 3, 1), cross.unsqueeze(3), outer.unsqueeze(3)


def layer_norm(width: int) -> nn.LayerNorm:
    """Return a layer norm without weights: a dense layer follows, whose weights do their work."""
    return nn.LayerNorm(width, elementwise_affine=False)


class Mix(nn.Module):
    """A dense layer of the features for each of I, A and S."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(dim, dim, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the three new parts."""
        scalar, cross, outer = (layer(y) for layer, y in zip(self.layers, parts(x), strict=True))
        return scalar, cross, outer


class Embedding(nn.Module):
    """An atom's first matrices: what lies around it, and of which elements."""

    def __init__(self, dim: int, num_gaussians: int) -> None:
        super().__init__()
        self.p, self.q = nn.Linear(dim, dim), nn.Linear(dim, dim, bias=False)
        self.filters = nn.Linear(num_gaussians + 1, 3 * dim, bias=False)
        self.norm, self.phi = layer_norm(dim), perceptron(dim, dim, 3 * dim)
        self.mix = Mix(dim)
        self.dim = dim

    def forward(self, z: Tensor, index: Tensor, unit: Tensor, e_ij: Tensor) -> Tensor:
        """Return matrices, (N, 3, 3, F), from embedded elements, (N, F)."""
        x = self.around(z, index, unit, e_ij)
        scale = spread(self.phi(self.norm(square(x))))
        return sum(c * y for c, y in zip(scale.split(self.dim, dim=3), self.mix(x), strict=True))

    def around(self, z: Tensor, index: Tensor, unit: Tensor, e_ij: Tensor) -> Tensor:
        """Return the sums over neighbours."""
        j, i = index
        pair = self.p(z).index_select(0, i) + self.q(z).index_select(0, j)  # (E, F)
        W_ij = self.filters(e_ij).split(self.dim, dim=1)  # (E, K + 1) -> 3 of (E, F)
        x_ij = sum(spread(pair * W) * T
                   for W, T in zip(W_ij, directions(unit), strict=True))  # fmt: skip
        return x_ij.new_zeros(len(z), 3, 3, self.dim).index_add(0, i, x_ij)


class Interaction(nn.Module):
    """An atom's matrices times what its neighbours' come to."""

    def __init__(self, dim: int, num_gaussians: int) -> None:
        super().__init__()
        self.filters = nn.Linear(num_gaussians + 1, 3 * dim, bias=False)
        self.before, self.after = Mix(dim), Mix(dim)
        self.dim = dim

    def forward(self, x: Tensor, index: Tensor, e_ij: Tensor) -> Tensor:
        """Return the new matrices, (N, 3, 3, F)."""
        x = bounded(x)
        y = self.before(x)
        message, own = self.message(y, index, e_ij), sum(y)
        product = times(own, message) + times(message, own)
        change = sum(self.after(bounded(product)))
        return x + change + times(change, change)

    def message(self, y: tuple[Tensor, ...], index: Tensor, e_ij: Tensor) -> Tensor:
        """Return the sums over neighbours of their three parts."""
        j, i = index
        W_ij = self.filters(e_ij).split(self.dim, dim=1)
        m_ij = sum(spread(W) * part.index_select(0, j)
                   for W, part in zip(W_ij, y, strict=True))  # fmt: skip
        return torch.zeros_like(y[0]).index_add(0, i, m_ij)


class TensorNet(nn.Module):
    """Predict the energies of atoms with features that are 3 x 3 matrices [1].

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
        self, dim_embedding: int = 64, num_interactions: int = 2, num_gaussians: int = 25,
        cutoff: float = 5.0, gamma: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        dim = dim_embedding
        expect_sizes(dim_embedding=dim, num_interactions=num_interactions)
        self.cutoff = float(cutoff)
        self.radial_expansion = gaussians(num_gaussians, cutoff, gamma)
        self.embedding = ElementEmbedding(dim)
        self.first = Embedding(dim, num_gaussians)
        self.blocks = nn.ModuleList(
            Interaction(dim, num_gaussians) for _ in range(num_interactions)
        )
        self.norm, self.readout = layer_norm(3 * dim), perceptron(3 * dim, dim, 1)

    def atomic_energies(self, z: Tensor, edges: Edges) -> Tensor:
        """Return the energies of the atoms, (N, 1), from atomic numbers (N, 1) and edges."""
        d_ij = torch.linalg.vector_norm(edges.vector, dim=1)  # (E,)
        unit, fade = edges.vector / d_ij.unsqueeze(1), cosine_cutoff(d_ij, self.cutoff)
        e_ij = torch.cat([fade * self.radial_expansion.expand(d_ij), fade], dim=1)  # (E, K + 1)
        x = self.first(self.embedding(z), edges.index, unit, e_ij)
        for block in self.blocks:
            x = block(x, edges.index, e_ij)
        squares = torch.cat([square(part) for part in parts(x)], dim=1)  # (N, 3 F)
        return self.readout(self.norm(squares))


@dataclass(frozen=True)
class Sizes(AtomSizes):
    """The sizes of a TensorNet."""

    num_interactions: int = option(2, "interaction blocks")

    def build(self) -> TensorNet:
        """Return a new TensorNet."""
        return TensorNet(**asdict(self))
