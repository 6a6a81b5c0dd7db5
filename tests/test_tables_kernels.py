"""The differentiable convolution against double loops and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from contract import assert_equal, molecules
from networks import schnet
from torch import Tensor

from molnets.tables import SplineSchNet, lists
from molnets.tables.kernels import Edges, convolution, edge_products_of, table_gradient_of


def random_graph(num_atoms: int = 5, num_edges: int = 12, K: int = 3) -> Edges:
    """Return a graph that is not symmetric, with an atom without edges and a double edge."""
    rng = np.random.default_rng(0)
    receiver, sender = rng.integers(0, num_atoms - 1, (2, num_edges))
    receiver[1], sender[1] = receiver[0], sender[0]
    orders = [lists.sort_edges(atom, num_atoms) for atom in (receiver, sender)]
    return Edges(receiver, sender, *orders, rng.integers(0, K, num_edges))


def inputs(*shapes: tuple[int, int]) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def test_convolution_is_the_double_loop():
    edges, (x, w, table) = random_graph(), inputs((5, 3), (12, 4), (4, 9))
    expected = torch.zeros(5, 3, dtype=torch.float64)
    for e, (i, j, k) in enumerate(zip(edges.receiver, edges.sender, edges.knot, strict=True)):
        rows = [table[k, 0:3], table[k, 3:6], table[k, 6:9], table[k + 1, 0:3]]
        expected[i] += x[j] * sum(w[e, c] * rows[c] for c in range(4))
    assert_equal(convolution(x, w, table, edges), expected, atol=1e-12)


@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
@pytest.mark.parametrize(
    ("function", "shapes", "more"),
    [
        (convolution, [(5, 3), (12, 4), (4, 9)], []),
        (edge_products_of, [(5, 3), (5, 3), (4, 9)], []),
        (table_gradient_of, [(5, 3), (5, 3), (12, 4)], [4]),
    ],
)
def test_derivatives_of_the_kernels(check, function, shapes, more):
    edges = random_graph()
    assert check(lambda *tensors: function(*tensors, edges, *more), inputs(*shapes))


def test_second_derivatives_by_positions():
    z, pos, batch = molecules()
    model = SplineSchNet(schnet()).requires_grad_(False)

    def energy(pos: Tensor) -> Tensor:
        return model(z, pos, batch)

    assert torch.autograd.gradgradcheck(energy, pos.requires_grad_(), atol=1e-4)


def test_directed_edges_beyond_the_cutoff_and_none_at_all():
    plain = schnet()
    model, z = SplineSchNet(plain), torch.tensor([[1], [6], [8], [1]])
    edge_index, d = torch.tensor([[0, 1, 1, 3], [2, 2, 0, 1]]), torch.tensor([0.9, 2.4, 1.3, 2.0])
    d = d.double()
    assert_equal(model.energy_per_atom(z, edge_index, d), plain.energy_per_atom(z, edge_index, d))
    further = torch.cat([edge_index, torch.tensor([[2, 2], [3, 0]])], dim=1)
    beyond = torch.cat([d, torch.tensor([2.5, 9.0]).double()])
    assert_equal(model.energy_per_atom(z, further, beyond), model.energy_per_atom(z, edge_index, d))
    none = torch.zeros(2, 0, dtype=torch.int64), torch.zeros(0).double()
    assert_equal(model.energy_per_atom(z, *none), plain.energy_per_atom(z, *none))
