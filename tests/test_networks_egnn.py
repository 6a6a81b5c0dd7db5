"""EGNN beside its equations, one edge at a time: the energy, and the simulator."""

from __future__ import annotations

import pytest
import torch
from contract import assert_equal, crystals, molecules, random_orthogonal
from networks import shaken

from molnets.edges import Edges, Graph
from molnets.networks.egnn import EGNN, EGNNSimulator


def positions_moved(model: EGNN, z, pos, index) -> torch.Tensor:
    """Return the energies of atoms of open molecules by equations (3) to (6), on positions."""
    true = (pos[index[0]] - pos[index[1]]).norm(dim=1)
    fade = 0.5 * (torch.cos(torch.pi * true / model.cutoff) + 1) * (true < model.cutoff)
    basis = model.radial_expansion
    a = torch.exp(-basis.gamma * (true.view(-1, 1) - basis.mu) ** 2)
    h, x = list(model.embedding.weight[z.flatten()]), list(pos)
    n = range(len(h))
    for layer in model.layers:
        m_i, push, seen = ([torch.zeros_like(h[0]) for _ in n], [pos.new_zeros(3) for _ in n],
                           [1.0 for _ in n])  # fmt: skip
        for e, (j, i) in enumerate(index.T.tolist()):
            d2 = ((x[i] - x[j]) ** 2).sum().view(1) / model.cutoff**2
            m = layer.phi_e(torch.cat([h[i], h[j], d2, a[e]]))
            m_i[i] = m_i[i] + fade[e] * m
            seen[i] = seen[i] + fade[e]
            if layer.phi_x is not None:
                push[i] = push[i] + (x[i] - x[j]) * layer.phi_x(m) * fade[e]
        h = [h[i] + layer.phi_h(torch.cat([h[i], m_i[i]])) for i in n]
        x = [x[i] + push[i] / seen[i] for i in n]
    return torch.stack([model.readout(each) for each in h])


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_energies_are_those_of_the_equations_on_positions(layers):
    model = shaken(EGNN(4, layers, 5, 3.0))
    z, pos, batch = molecules()
    edges = Graph(4.0).edges(pos, batch)
    expected = positions_moved(model, z, pos, edges.index)
    assert_equal(model.atomic_energies(z, edges), expected, atol=1e-13)
    assert expected.std() > 1e-4


def test_only_the_last_layer_moves_nothing():
    model = EGNN(4, 3, 5, 3.0)
    assert [layer.phi_x is None for layer in model.layers] == [False, False, True]


def test_the_moved_points_count():
    model = shaken(EGNN(4, 2, 5, 3.0))
    z, pos, batch, cells, pbc = crystals()
    edges = Graph(3.0).edges(pos, batch, cells, pbc)
    before = model.atomic_energies(z, edges)
    with torch.no_grad():
        model.layers[0].phi_x[2].weight.zero_()
        model.layers[0].phi_x[2].bias.zero_()
    assert (model.atomic_energies(z, edges) - before).abs().max() > 1e-4


def particles(n: int = 5):
    """Return h, x, v of n particles, edges of all pairs and a feature of each, in float64."""
    torch.manual_seed(1)
    h, x, v = (torch.randn(n, k, dtype=torch.float64) for k in (4, 3, 3))
    i, j = torch.where(~torch.eye(n, dtype=torch.bool))
    return h, x, v, torch.stack([j, i]), torch.randn(len(i), 2, dtype=torch.float64)


@pytest.mark.parametrize("determinant", [1, -1])
def test_simulator_turns_with_its_particles(determinant):
    model = shaken(EGNNSimulator(4, 3, 2))
    h, x, v, index, a = particles()
    Q, t = random_orthogonal(determinant), torch.randn(3, dtype=torch.float64)
    copies = [y.clone() for y in (h, x, v)]
    new_h, new_x, new_v = model(h, x, v, index, a)
    turned = model(h, x @ Q.T + t, v @ Q.T, index, a)
    expected = new_h, new_x @ Q.T + t, new_v @ Q.T
    for actual, wanted in zip(turned, expected, strict=True):
        assert_equal(actual, wanted)
    for now, before in zip((h, x, v), copies, strict=True):
        assert torch.equal(now, before)  # inputs stay
    assert (new_x - x).abs().min() > 1e-3  # control: all move
    assert (new_v - v).abs().min() > 1e-3
    assert (new_h - h).abs().max() > 1e-3
    assert (turned[1] - new_x - t).abs().max() > 1e-2


def test_simulator_is_its_equations():
    model = shaken(EGNNSimulator(4, 2))
    h, x, v, index, _ = particles(4)
    expected_h, expected_x, expected_v = list(h), list(x), list(v)
    for layer, phi_v in zip(model.layers, model.phi_v, strict=True):
        h0, x0 = list(expected_h), list(expected_x)
        for i in range(4):
            m_i, push = torch.zeros(4).double(), torch.zeros(3).double()
            for j in range(4):
                if j != i:
                    r = x0[i] - x0[j]
                    m = layer.phi_e(torch.cat([h0[i], h0[j], (r * r).sum().view(1)]))
                    m_i, push = m_i + m, push + r * layer.phi_x(m) / 3
            expected_v[i] = phi_v(h0[i]) * expected_v[i] + push
            expected_x[i] = x0[i] + expected_v[i]
            expected_h[i] = h0[i] + layer.phi_h(torch.cat([h0[i], m_i]))
    expected = (torch.stack(y) for y in (expected_h, expected_x, expected_v))
    for actual, wanted in zip(model(h, x, v, index), expected, strict=True):
        assert_equal(actual, wanted, atol=1e-13)


def test_simulator_needs_no_edges():
    model = shaken(EGNNSimulator(4, 2))
    h, x, v, index, _ = particles(3)
    _, new_x, new_v = model(h, x, v, index[:, :0])
    assert_equal(torch.linalg.cross(new_v, v), torch.zeros(3, 3).double(), atol=1e-14)
    assert (new_x - x).abs().min() > 1e-4


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: EGNN(dim_embedding=0), "dim_embedding: expected a positive integer, got 0"),
        (lambda: EGNN(num_interactions=0), "num_interactions: expected a positive integer"),
        (lambda: EGNN(cutoff=-1.0), "cutoff: expected a positive finite number, got -1.0"),
        (lambda: EGNNSimulator(dim=0), "dim: expected a positive integer, got 0"),
    ],
)
def test_wrong_sizes_are_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_edges_may_come_from_anywhere():
    model = shaken(EGNN(4, 2, 5, 3.0))
    z, pos, batch = molecules()
    edges = Graph(3.0).edges(pos, batch)
    bonds = edges.vector.norm(dim=1) < 1.3  # fewer edges than the cutoff holds
    few = model.atomic_energies(z, Edges(edges.index[:, bonds], edges.vector[bonds]))
    assert (few - model.atomic_energies(z, edges)).abs().max() > 1e-3
