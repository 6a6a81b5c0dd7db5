"""Laplacians and graph convolutions beside PyG's, and the errors of other ways to write them."""

from __future__ import annotations

import math

import pytest
import torch
from contract import assert_equal
from torch_geometric.data import Data
from torch_geometric.nn import ChebConv, GCNConv
from torch_geometric.transforms import AddLaplacianEigenvectorPE
from torch_geometric.utils import get_laplacian, to_dense_adj

from molnets.graphs import (
    adjacency,
    chebyshev_convolution,
    chebyshev_polynomials,
    graph_convolution,
    laplacian,
    normalized_laplacian,
)


def tree() -> torch.Tensor:
    """Return edges of a path of four nodes with a branch, and one node on its own (node 5)."""
    one_way = torch.tensor([[0, 1, 2, 1], [1, 2, 3, 4]])
    return torch.cat([one_way, one_way.flip(0)], dim=1)


def ring(n: int = 6) -> torch.Tensor:
    i = torch.arange(n)
    return torch.stack([torch.cat([i, (i + 1) % n]), torch.cat([(i + 1) % n, i])])


def test_laplacians_are_pyg_s():
    index = tree()
    A = adjacency(index, 5)
    for ours, kind in ((laplacian(A), None), (normalized_laplacian(A), "sym")):
        edges, weight = get_laplacian(index, normalization=kind, dtype=torch.float64, num_nodes=5)
        assert_equal(ours, to_dense_adj(edges, edge_attr=weight, max_num_nodes=5)[0])


def test_laplacian_is_what_it_is_for():
    A = adjacency(tree(), 6)
    x = torch.randn(6, dtype=torch.float64)
    difference = sum((x[j] - x[i]) ** 2 for j, i in tree().T.tolist()) / 2
    assert_equal(x @ laplacian(A) @ x, difference)
    assert_equal(laplacian(A) @ torch.ones(6).double(), torch.zeros(6).double())
    values = torch.linalg.eigvalsh(laplacian(A))
    assert int((values.abs() < 1e-12).sum()) == 2  # two parts: the tree, and the node on its own
    values = torch.linalg.eigvalsh(normalized_laplacian(A))
    assert values.min() > -1e-12 and values.max() < 2 + 1e-12
    wrong = torch.eye(6).double() - A  # the identity in place of the degrees
    assert (wrong @ torch.ones(6).double()).abs().max() > 0.5
    assert torch.linalg.eigvalsh(wrong).min() < -0.5


def test_chebyshev_polynomials_are_cosines():
    angle = torch.tensor([0.3, 1.1, 2.5], dtype=torch.float64)
    for n, T in enumerate(chebyshev_polynomials(torch.diag(torch.cos(angle)), 6)):
        assert_equal(T.diagonal(), torch.cos(n * angle))
    assert len(chebyshev_polynomials(torch.eye(2), 0)) == 1


def test_chebyshev_convolution_is_a_filter_of_the_spectrum():
    A, theta = adjacency(tree(), 5), torch.tensor([0.5, -1.0, 0.25, 2.0]).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    values, U = torch.linalg.eigh(normalized_laplacian(A))
    g = sum(t * torch.cos(n * torch.acos((values - 1).clamp(-1, 1))) for n, t in enumerate(theta))
    assert_equal(chebyshev_convolution(A, x, theta), U @ torch.diag(g) @ U.T @ x)


def test_chebyshev_convolution_is_pyg_s():
    x = torch.randn(5, 3, dtype=torch.float64)
    layer = ChebConv(3, 3, K=4, bias=False).double()
    theta = torch.tensor([0.5, -1.0, 0.25, 2.0]).double()
    with torch.no_grad():
        for weight, lin in zip(theta, layer.lins, strict=True):
            lin.weight.copy_(weight * torch.eye(3))
    expected = layer(x, tree(), lambda_max=torch.tensor(2.0).double())
    assert_equal(chebyshev_convolution(adjacency(tree(), 5), x, theta), expected)


def test_graph_convolution_is_pyg_s():
    x = torch.randn(5, 3, dtype=torch.float64)
    layer = GCNConv(3, 2, bias=False).double()
    expected = layer(x, tree())
    assert_equal(graph_convolution(adjacency(tree(), 5), x, layer.lin.weight.T), expected)
    A = adjacency(tree(), 5)
    chebyshev = chebyshev_convolution(A, x, torch.tensor([1.0, -1.0]).double())
    assert (chebyshev @ layer.lin.weight.T - expected).abs().max() > 1e-2  # loops are a change


def test_eigenvectors_of_pyg_have_any_sign_and_any_turn_where_values_are_equal():
    A = adjacency(ring(), 6)
    values, U = torch.linalg.eigh(normalized_laplacian(A))
    assert_equal(values[1], values[2], atol=1e-12)  # two waves of the same length
    assert_equal(values[1], torch.tensor(1 - math.cos(math.pi / 3)).double())
    encode = AddLaplacianEigenvectorPE(k=2, attr_name="pe", is_undirected=True)
    pe = encode(Data(edge_index=ring(), num_nodes=6)).pe.double()
    plane = U[:, 1:3] @ U[:, 1:3].T
    assert_equal(pe @ pe.T, plane, atol=1e-5)  # the same plane, in some basis of it


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: adjacency(torch.tensor([[0], [1]]), 2), "index: expected edges in both"),
        (lambda: adjacency(torch.tensor([[0], [0]]), 1), "index: expected no edge from a node to"),
        (lambda: laplacian(torch.ones(2, 3)), r"A: expected shape \(N, N\), got \(2, 3\)"),
        (lambda: normalized_laplacian(torch.tensor([[0.0, 1], [0, 0]])), "A: expected edges in"),
        (lambda: graph_convolution(torch.eye(2), torch.eye(2), torch.eye(2)), "A: .* no edge"),
    ],
)  # fmt: skip
def test_wrong_graphs_are_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
