"""DimeNet++ beside PyG's with the same weights; its pairs of edges and bases beside slow ones."""

from __future__ import annotations

import math

import pytest
import scipy.special
import torch
import torch_geometric.nn.models.dimenet as pyg
from contract import assert_equal, crystals, forces, molecules
from torch import Tensor

from molnets.edges import Edges, Graph
from molnets.networks.dimenet import AngularBasis, DimeNet, pairs_of_edges, spherical_bessel
from molnets.potential import Potential

CUTOFF = 3.0


def by_loops(edge_index: Tensor, num_nodes: int) -> tuple[Tensor, ...]:
    """Return what PyG's `triplets` does, which needs torch_sparse, by three loops."""
    edges = edge_index.T.tolist()
    found = [(i, j, k, b, a) for a, (j, i) in enumerate(edges) for b, (k, j2) in enumerate(edges)
             if j2 == j and k != i]  # fmt: skip
    i, j, k, kj, ji = torch.tensor(found).T
    return edge_index[1], edge_index[0], i, j, k, kj, ji


def both(monkeypatch) -> tuple[DimeNet, pyg.DimeNetPlusPlus]:
    """Return ours and PyG's, with the same weights, in float64."""
    torch.manual_seed(0)
    ours = DimeNet(12, 2, 4, 3, 8, 5, 10, CUTOFF).double()
    theirs = pyg.DimeNetPlusPlus(12, 1, 2, 8, 5, 10, 4, 3, CUTOFF).double()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    weights = ours.state_dict()
    theirs.load_state_dict(weights | {"emb.emb.weight": weights["emb.emb.weight"][:95]})
    monkeypatch.setattr(pyg, "triplets", by_loops)
    monkeypatch.setattr(pyg, "radius_graph", lambda pos, r, batch, max_num_neighbors:
                        Graph(r).edges(pos.detach(), batch).index)  # fmt: skip
    return ours, theirs


def test_energies_and_forces_are_pyg_s(monkeypatch):
    ours, theirs = both(monkeypatch)
    z, pos, batch = molecules()

    def radial(x: Tensor) -> Tensor:  # PyG knows zeros and norms of j_l to seven digits
        values = torch.stack([f(x) for f in theirs.sbf.bessel_funcs], dim=1)
        return theirs.sbf.envelope(x).view(-1, 1, 1) * values.view(-1, 4, 3)

    x = torch.linspace(0.2, 1.1, 50, dtype=torch.float64)
    assert_equal(ours.sbf.radial(x), radial(x), atol=1e-6 * float(radial(x).abs().max()))
    monkeypatch.setattr(ours.sbf, "radial", radial)

    def other(z: Tensor, pos: Tensor, batch: Tensor) -> Tensor:
        return theirs(z.flatten(), pos, batch)

    energy, force = other(z, pos, batch), forces(other, z, pos, batch)
    potential = Potential(ours)
    energy = energy.detach()
    scale = float(energy.abs().max())
    assert_equal(potential(z, pos, batch), energy, atol=1e-12 * scale)
    assert_equal(forces(potential, z, pos, batch), force, atol=1e-12 * float(force.abs().max()))
    assert (energy[0] - energy[1]).abs() > 1e-2 * scale
    assert force.abs().max() > 1e-1


def test_pairs_of_edges_are_those_of_loops():
    _, pos, batch = molecules()
    edges = Graph(CUTOFF).edges(pos, batch)
    expected = {*zip(*(x.tolist() for x in by_loops(edges.index, 7)[-2:]), strict=True)}
    kj, ji = pairs_of_edges(edges, 7)
    assert {*zip(kj.tolist(), ji.tolist(), strict=True)} == expected
    assert len(kj) == len(expected) == 3 * 2 * 1 + 4 * 3 * 2


def test_pairs_of_edges_turn_back_by_other_images():
    _, pos, batch, cells, pbc = crystals()
    edges = Graph(CUTOFF).edges(pos, batch, cells, pbc)
    kj, ji = pairs_of_edges(edges, 10)
    (j, i), r = edges
    expected = [(b, a) for a in range(len(r)) for b in range(len(r)) if i[b] == j[a]
                and not (j[b] == i[a] and (r[a] + r[b]).norm() < 1e-6)]  # fmt: skip
    assert {*zip(kj.tolist(), ji.tolist(), strict=True)} == {*expected}
    own = j[kj] == i[ji]
    assert own.any()  # k is another image of i
    assert (r[kj] + r[ji])[own].norm(dim=1).min() > 1


def test_no_edges_have_no_pairs():
    none = Edges(torch.empty(2, 0, dtype=torch.int64), torch.empty(0, 3))
    assert [len(x) for x in pairs_of_edges(none, 3)] == [0, 0]


def test_spherical_bessel_functions_are_scipy_s():
    x = torch.linspace(0.5, 30, 200, dtype=torch.float64).view(-1, 1, 1).expand(-1, 7, 1)
    for order, values in enumerate(spherical_bessel(x)):
        expected = scipy.special.spherical_jn(order, x[:, 0, 0].numpy())
        assert_equal(values[:, 0, 0], torch.tensor(expected), atol=1e-9)  # worst at 0.5, order 7


def test_angular_basis_is_the_formula():
    basis = AngularBasis(4, 3, CUTOFF)
    d = torch.tensor([0.8, 1.7, 2.9], dtype=torch.float64)
    angle = torch.tensor([0.0, 1.0, math.pi], dtype=torch.float64)
    values = basis(d, torch.cos(angle), torch.tensor([0, 1, 2])).view(3, 4, 3)
    x, p = d / CUTOFF, 6
    u = (1 / x - (p + 1) * (p + 2) / 2 * x ** (p - 1) + p * (p + 2) * x**p
         - p * (p + 1) / 2 * x ** (p + 1))  # fmt: skip
    for order in range(4):
        legendre = scipy.special.eval_legendre(order, torch.cos(angle).numpy())
        harmonic = math.sqrt((2 * order + 1) / (4 * math.pi)) * torch.tensor(legendre)
        for n in range(3):
            zero = basis.zeros[order][n]
            assert abs(scipy.special.spherical_jn(order, zero)) < 1e-14  # it is a zero
            norm = math.sqrt(2) / abs(scipy.special.spherical_jn(order + 1, zero))
            radial = norm * torch.tensor(scipy.special.spherical_jn(order, zero * x.numpy()))
            assert_equal(values[:, order, n], u * radial * harmonic, atol=1e-11)


def test_atoms_on_a_line_can_be_trained_on():
    torch.manual_seed(0)
    potential = Potential(DimeNet(8, 1, 4, 3, 8, 5, 10, CUTOFF).double())
    z = torch.tensor([[8], [6], [8]])
    pos = torch.tensor([[-1.2, 0, 0], [0, 0, 0], [1.2, 0, 0]], dtype=torch.float64)
    batch = torch.zeros(3, dtype=torch.int64)
    energy, force = potential.energy_and_forces(z, pos, batch, create_graph=True)
    (energy.sum() + force.square().sum()).backward()
    assert all(weight.grad.isfinite().all() for weight in potential.parameters())
    # the carbon atom off the line: the energy is a parabola, whose curvature the forces show
    step = 1e-3
    bent = pos.clone()
    bent[1, 1] = step
    rise = (potential(z, bent, batch) - energy).detach().item()
    slope = -potential.energy_and_forces(z, bent, batch)[1][1, 1].item()
    assert abs(rise) > 1e-9
    assert rise == pytest.approx(0.5 * step * slope, rel=1e-3)


@pytest.mark.parametrize(
    "sizes, message",
    [
        ({"dim_embedding": 0}, "dim_embedding: expected a positive integer, got 0"),
        ({"num_spherical": -1}, "num_spherical: expected a positive integer, got -1"),
        ({"num_spherical": 1}, "num_spherical: expected 2 to 8, got 1"),
        ({"num_spherical": 9}, "num_spherical: expected 2 to 8, got 9"),
        ({"dim_pair": 0}, "dim_pair: expected a positive integer, got 0"),
        ({"cutoff": -1.0}, "cutoff: expected a positive finite number, got -1.0"),
    ],
)
def test_wrong_sizes_are_errors(sizes, message):
    with pytest.raises(ValueError, match=message):
        DimeNet(**sizes)
