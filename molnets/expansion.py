"""The atomic cluster expansion: a linear model of energies, ordered by bodies [1].

Axes:   N atoms, E directed edges j -> i, n radial functions, l = 0 … l_max, m = −l … l,
        c channels (n, element of the neighbour), P products of each order ν.
Units:  the caller's length unit.

| equation                                                            | code                       |
| ------------------------------------------------------------------- | -------------------------- |
| A_{i,clm} = Σ_j R_n(d_ij) Y_lm(r_ij / d_ij) δ(Z_j, z_c)             | `ClusterExpansion.A`       |
| ν = 1: A_{i,c00};  ν = 2: Σ_m A_{clm} A_{c'lm} / √(2l + 1)          | `ClusterExpansion.forward` |
| ν = 3: Σ_{m m' m''} (l l' l''; m m' m'') A_{clm} A_{c'l'm'} A_{c''…} | likewise                  |
| E_i = Σ_ν Σ_P w_{Z_i,P} B_{i,P}                                     | the caller's least squares |

A is a sum over single neighbours: two bodies, an atom and one other. A product of ν of them is a
sum over ν neighbours, some of them equal: bodies up to ν + 1, at the cost of a product. The 3j
symbols, e3nn's for real spherical harmonics, couple it to a number that no rotation changes, and
no mirror where the sum of the degrees is even.

[1] Drautz, Phys. Rev. B 99, 014104 (2019).
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from molnets.checks import expect, expect_sizes
from molnets.edges import Edges
from molnets.networks.parts import cosine_cutoff


class Order(NamedTuple):
    """How many radial functions, and up to which l, the products of an order are made of."""

    num_radial: int
    l_max: int


class Coupling(NamedTuple):
    """The products for given degrees l: the symbol, (2l + 1, …), and which channels."""

    degrees: tuple[int, ...]
    symbol: Tensor
    channels: tuple[Tensor, ...]


class ClusterExpansion(nn.Module):
    """Describe neighbourhoods by products of ν = 1, 2, 3 sums over neighbours [1].

    Args:
        elements: the atomic numbers that occur.
        orders: for ν = 1, 2, … at most 3.
        cutoff: r_c.

    Attributes:
        couplings: the products, order by order.

    Raises:
        ValueError: for more orders, sizes that are not positive, or elements that repeat.
    """

    def __init__(self, elements: list[int], orders: list[Order], cutoff: float) -> None:
        super().__init__()
        expect(1 <= len(orders) <= 3, "orders", "one to three", len(orders))
        for order in orders:
            expect_sizes(num_radial=order.num_radial)
            expect(order.l_max >= 0, "l_max", "a number, 0 or more", order.l_max)
        different = len(elements) == len({*elements}) > 0
        expect(different, "elements", "different atomic numbers", elements)
        self.cutoff, self.orders = float(cutoff), list(orders)
        self.register_buffer("elements", torch.tensor(elements))
        self.num_radial = max(order.num_radial for order in orders)
        self.l_max = max(order.l_max for order in orders)
        self.couplings = [
            couplings(nu + 1, order, len(elements)) for nu, order in enumerate(orders)
        ]

    def counts(self) -> list[int]:
        """Return how many products of each order describe an atom."""
        return [sum(len(part.channels[0]) for part in parts) for parts in self.couplings]

    def A(self, z: Tensor, edges: Edges) -> list[Tensor]:
        """Return the sums over neighbours, for each l: (N, num_radial, elements, 2l + 1)."""
        from e3nn.o3 import spherical_harmonics

        (j, i), r_ij = edges
        d_ij = torch.linalg.vector_norm(r_ij, dim=1)
        n = torch.arange(1, self.num_radial + 1).to(d_ij)
        R = torch.sin(math.pi / self.cutoff * d_ij.unsqueeze(1) * n) / d_ij.unsqueeze(1)
        R = R * cosine_cutoff(d_ij, self.cutoff)  # (E, n)
        of_element = (z == self.elements).to(d_ij.dtype)  # (N, elements)
        expected = f"atomic numbers among {self.elements.tolist()}"
        expect(of_element.any(dim=1).all(), "z", expected, z.unique().tolist())
        Rz = R.unsqueeze(2) * of_element[j].unsqueeze(1)  # (E, n, elements)
        degrees = list(range(self.l_max + 1))
        Y = spherical_harmonics(degrees, r_ij, normalize=True, normalization="component")
        phi = (Rz.unsqueeze(3) * Y[:, None, None]).flatten(1)  # (E, n · elements · (l_max + 1)²)
        A = phi.new_zeros(len(z), phi.shape[1]).index_add(0, i, phi)
        shape = len(z), self.num_radial, len(self.elements), -1
        return list(A.view(shape).split([2 * k + 1 for k in degrees], dim=3))

    def forward(self, z: Tensor, edges: Edges) -> Tensor:
        """Return the products of all orders, (N, P), from atomic numbers (N, 1) and edges."""
        A, parts = self.A(z, edges), []
        for order, found in zip(self.orders, self.couplings, strict=True):
            of_l = [a[:, : order.num_radial].flatten(1, 2) for a in A]  # (N, c, 2l + 1)
            for degrees, symbol, channels in found:
                chosen = [of_l[degree] for degree in degrees]
                parts.append(_product(chosen, symbol.to(A[0]), channels))
        return torch.cat(parts, dim=1)


def _product(A: list[Tensor], symbol: Tensor, channels: tuple[Tensor, ...]) -> Tensor:
    """Return Σ_m symbol A A …, (N, P)."""
    if len(A) == 1:
        return A[0][:, channels[0], 0]
    *left, last = A
    if len(A) == 2:
        coupled = left[0]  # the symbol is δ / √(2l + 1)
        return symbol[0, 0] * (coupled[:, channels[0]] * last[:, channels[1]]).sum(dim=2)
    first, second = (a[:, c] for a, c in zip(left, channels, strict=False))  # (N, P, 2l + 1)
    coupled = torch.einsum("npa,npb,abc->npc", first, second, symbol)
    return (coupled * last[:, channels[2]]).sum(dim=2)


def couplings(nu: int, order: Order, num_elements: int) -> list[Coupling]:
    """Return all different products of ν sums over neighbours that rotations do not change."""
    from e3nn.o3 import wigner_3j

    c = range(order.num_radial * num_elements)
    found = []
    for degrees in itertools.combinations_with_replacement(range(order.l_max + 1), nu):
        if not invariant(degrees):
            continue
        if nu == 1:
            symbol = torch.ones(1)
        elif nu == 2:
            symbol = torch.eye(2 * degrees[0] + 1).double() / math.sqrt(2 * degrees[0] + 1)
        else:
            symbol = wigner_3j(*degrees, dtype=torch.float64)
        chosen = [
            each
            for each in itertools.product(c, repeat=nu)
            if all(
                a <= b
                for a, b, m, k in zip(each, each[1:], degrees, degrees[1:], strict=False)
                if m == k
            )
        ]  # where two l are equal, the order of their channels is no difference
        found.append(Coupling(degrees, symbol, tuple(torch.tensor(chosen).T.unbind())))
    return found


def invariant(degrees: tuple[int, ...]) -> bool:
    """Return whether degrees l, ascending, couple to a number that rotation and mirror keep."""
    if len(degrees) == 1:
        return degrees[0] == 0
    if len(degrees) == 2:
        return degrees[0] == degrees[1]
    return degrees[2] <= degrees[0] + degrees[1] and sum(degrees) % 2 == 0
