"""Laplacians of graphs, and graph convolutions as what is left of a filter of their spectrum.

Axes:   N nodes, F features, K the order of a filter.
Here A is a symmetric matrix of zeros and ones with an empty diagonal, D = diag(Σ_j A_ij).

| equation                                                     | code                    |
| ------------------------------------------------------------ | ----------------------- |
| L = D − A                                                    | `laplacian`             |
| L_sym = I − D^{−1/2} A D^{−1/2} = U Λ Uᵀ, 0 ≤ Λ ≤ 2          | `normalized_laplacian`  |
| U g(Λ) Uᵀ x ≈ Σ_k θ_k T_k(L̃) x, L̃ = 2 L_sym / λ − I [1]      | `chebyshev_convolution` |
| T_{k+1} = 2 x T_k − T_{k−1}, T_0 = 1, T_1 = x                | `chebyshev_polynomials` |
| (D + I)^{−1/2} (A + I) (D + I)^{−1/2} x W [2]                | `graph_convolution`     |

The last one is [1] with K = 1, λ = 2 and θ_0 = −θ_1, whose I + D^{−1/2} A D^{−1/2} has eigenvalues
up to 2 and is exchanged for a matrix with loops, whose own are at most 1.

[1] Defferrard, Bresson & Vandergheynst, NeurIPS 2016, arXiv:1606.09375.
[2] Kipf & Welling, ICLR 2017, arXiv:1609.02907.
"""

from __future__ import annotations

import torch
from torch import Tensor

from molnets.checks import expect


def adjacency(index: Tensor, num_nodes: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return A, (N, N), of edges, (2, E), which must come in both directions.

    Raises:
        ValueError: for an edge without its reverse, or from a node to itself.
    """
    A = torch.zeros(num_nodes, num_nodes, dtype=dtype, device=index.device)
    A[index[1], index[0]] = 1
    expect_undirected(A, "index")
    return A


def expect_undirected(A: Tensor, name: str = "A") -> None:
    """Expect a symmetric matrix, (N, N), with an empty diagonal."""
    expect(A.ndim == 2 and A.shape[0] == A.shape[1], name, "shape (N, N)", tuple(A.shape))
    one_way = (A != A.T).nonzero()[:1].tolist()
    expect(not one_way, name, "edges in both directions", f"one way only: {one_way}")
    loops = A.diagonal().nonzero().flatten().tolist()
    expect(not loops, name, "no edge from a node to itself", f"loops of {loops}")


def laplacian(A: Tensor) -> Tensor:
    """Return L = D − A: its rows sum to zero, and xᵀ L x = Σ_edges (x_i − x_j)²."""
    expect_undirected(A)
    return torch.diag(A.sum(dim=1)) - A


def normalized_laplacian(A: Tensor) -> Tensor:
    """Return I − D^{−1/2} A D^{−1/2}; the row of a node without edges is zero."""
    expect_undirected(A)
    degree = A.sum(dim=1)
    scale = torch.where(degree > 0, degree, 1.0).rsqrt()
    return torch.diag((degree > 0).to(A.dtype)) - scale.view(-1, 1) * A * scale


def chebyshev_polynomials(x: Tensor, order: int) -> list[Tensor]:
    """Return T_0 … T_K of a square matrix, by their recurrence."""
    T = [torch.eye(len(x)).to(x), x]
    for _ in range(order - 1):
        T.append(2 * x @ T[-1] - T[-2])
    return T[: order + 1]


def chebyshev_convolution(A: Tensor, x: Tensor, theta: Tensor, largest: float = 2.0) -> Tensor:
    """Return Σ_k θ_k T_k(2 L_sym / λ − I) x [1].

    Args:
        A: the adjacency, (N, N).
        x: features, (N, F).
        theta: θ, (K + 1,).
        largest: λ, the largest eigenvalue of L_sym or a bound.
    """
    shifted = 2 / largest * normalized_laplacian(A) - torch.eye(len(A)).to(A)
    T = chebyshev_polynomials(shifted, len(theta) - 1)
    return sum(weight * matrix @ x for weight, matrix in zip(theta, T, strict=True))


def graph_convolution(A: Tensor, x: Tensor, W: Tensor) -> Tensor:
    """Return (D + I)^{−1/2} (A + I) (D + I)^{−1/2} x W [2], (N, F) -> (N, F')."""
    expect_undirected(A)
    loops = A + torch.eye(len(A)).to(A)
    scale = loops.sum(dim=1).rsqrt()
    return (scale.view(-1, 1) * loops * scale) @ x @ W
