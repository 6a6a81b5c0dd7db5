"""The cluster expansion beside sums over pairs and triples of neighbours, written out."""

from __future__ import annotations

import math

import pytest
import torch
from contract import assert_equal, molecules, random_orthogonal
from e3nn.o3 import spherical_harmonics, wigner_3j

from molnets.edges import Edges, Graph
from molnets.expansion import ClusterExpansion, Order, invariant

ORDERS = [Order(3, 0), Order(2, 2), Order(2, 2)]


def neighbourhood(num_neighbors: int) -> tuple[torch.Tensor, Edges]:
    """Return atomic numbers and edges of one atom that hears others, which hear nothing."""
    torch.manual_seed(num_neighbors)
    index = torch.stack([torch.arange(1, num_neighbors + 1), torch.zeros(num_neighbors).long()])
    z = torch.tensor([6, 1, 8, 6, 1, 8][: num_neighbors + 1]).view(-1, 1)
    return z, Edges(index, 0.7 * torch.randn(num_neighbors, 3, dtype=torch.float64))


def test_invariants_do_not_turn():
    model = ClusterExpansion([1, 6, 8], ORDERS, 3.0).double()
    z, pos, batch = molecules()
    expected = model(z, Graph(3.0).edges(pos, batch))
    for determinant in (1, -1):
        turned = pos @ random_orthogonal(determinant).T
        assert_equal(model(z, Graph(3.0).edges(turned, batch)), expected, atol=1e-13)
    assert expected.std(dim=0).max() > 1e-2


def test_counts_are_those_of_a_list():
    model = ClusterExpansion([1, 8], ORDERS, 3.0)
    one, two, three = model.counts()
    assert one == 6
    assert two == 3 * 4 * 5 // 2
    # (0 0 0), (2 2 2): multisets of 3 of 4; (0 1 1), (0 2 2), (1 1 2): 4 times pairs
    assert three == 2 * (4 * 5 * 6 // 6) + 3 * 4 * (4 * 5 // 2)
    z, edges = neighbourhood(3)
    z[z == 6] = 8
    assert model.double()(z, edges).shape == (4, one + two + three)


@pytest.mark.parametrize("nu", [1, 2, 3])
def test_a_product_is_a_sum_over_as_many_neighbours(nu):
    """E of ν + 1 bodies: what more neighbours add is what fewer of them did, and no more."""
    model = ClusterExpansion([1, 6, 8], ORDERS, 3.0).double()
    z, edges = neighbourhood(nu + 1)
    first, end = sum(model.counts()[: nu - 1]), sum(model.counts()[:nu])

    def of(chosen: list[int]) -> torch.Tensor:
        kept = torch.tensor(chosen, dtype=torch.int64)
        part = Edges(edges.index[:, kept], edges.vector[kept])
        return model(z, part)[0, first:end]

    def mixed(neighbours: list[int]) -> torch.Tensor:  # what no smaller set of them explains
        total = torch.zeros(end - first, dtype=torch.float64)
        for subset in range(2 ** len(neighbours)):
            chosen = [n for k, n in enumerate(neighbours) if subset >> k & 1]
            total = total + (-1) ** (len(neighbours) - len(chosen)) * of(chosen)
        return total

    assert_equal(mixed(list(range(nu + 1))), torch.zeros(end - first).double(), atol=1e-13)
    assert mixed(list(range(nu))).abs().max() > 1e-3


def test_products_are_sums_over_neighbours_written_out():
    model = ClusterExpansion([1], [Order(1, 0), Order(1, 2), Order(1, 2)], 3.0).double()
    _, edges = neighbourhood(3)
    z = torch.ones(4, 1, dtype=torch.int64)
    d = edges.vector.norm(dim=1)
    R = torch.sin(math.pi * d / 3) / d * 0.5 * (torch.cos(math.pi * d / 3) + 1) * (d < 3)
    Y = [spherical_harmonics(l, edges.vector, True, "component") for l in range(3)]
    cos = (edges.vector / d.view(-1, 1)) @ (edges.vector / d.view(-1, 1)).T
    legendre = [torch.ones_like(cos), cos, 1.5 * cos**2 - 0.5]
    expected = [R.sum()]
    expected += [math.sqrt(2 * l + 1) * (R @ legendre[l] @ R) for l in range(3)]
    for l in ((0, 0, 0), (0, 1, 1), (0, 2, 2), (1, 1, 2), (2, 2, 2)):
        C = wigner_3j(*l, dtype=torch.float64)
        expected.append(sum(
            R[a] * R[b] * R[c] * torch.einsum("i,j,k,ijk", Y[l[0]][a], Y[l[1]][b], Y[l[2]][c], C)
            for a in range(3) for b in range(3) for c in range(3)
        ))  # fmt: skip
    assert_equal(model(z, edges)[0], torch.stack(expected), atol=1e-12)


def test_what_couples_to_a_number():
    assert [l for l in range(3) if invariant((l,))] == [0]
    assert invariant((2, 2)) and not invariant((1, 2))
    assert invariant((1, 1, 2)) and not invariant((0, 1, 2)) and not invariant((1, 1, 1))


@pytest.mark.parametrize(
    "elements, orders, message",
    [
        ([1], [], "orders: expected one to three, got 0"),
        ([1], [Order(1, 0)] * 4, "orders: expected one to three, got 4"),
        ([1], [Order(0, 0)], "num_radial: expected a positive integer, got 0"),
        ([1], [Order(1, -1)], "l_max: expected a number, 0 or more, got -1"),
        ([1, 6, 1], [Order(1, 0)], "elements: expected different atomic numbers"),
        ([], [Order(1, 0)], "elements: expected different atomic numbers"),
    ],
)
def test_wrong_orders_are_errors(elements, orders, message):
    with pytest.raises(ValueError, match=message):
        ClusterExpansion(elements, orders, 3.0)


def test_other_elements_are_an_error():
    z, pos, batch = molecules()
    model = ClusterExpansion([1, 6], [Order(1, 0)], 3.0).double()
    with pytest.raises(
        ValueError, match=r"z: expected atomic numbers among \[1, 6\], got \[1, 6, 8\]"
    ):
        model(z, Graph(3.0).edges(pos, batch))
