"""TensorNet beside its equations, one edge and one feature at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from contract import assert_equal, molecules
from networks import filled

from molnets.edges import Graph
from molnets.networks.tensornet import TensorNet, directions, parts


def three_parts(x: np.ndarray) -> list[np.ndarray]:
    """Return I, A and S of one matrix, written out by rows."""
    mean = (x[0, 0] + x[1, 1] + x[2, 2]) / 3
    a = np.array([[0.5 * (x[m, n] - x[n, m]) for n in range(3)] for m in range(3)])
    s = np.array([[0.5 * (x[m, n] + x[n, m]) for n in range(3)] for m in range(3)])
    return [mean * np.eye(3), a, s - mean * np.eye(3)]


def normed(x: np.ndarray) -> torch.Tensor:
    """Return numbers less their mean over their standard deviation."""
    return torch.from_numpy((x - x.mean()) / np.sqrt(((x - x.mean()) ** 2).mean() + 1e-5))


def mixed(mix, x: np.ndarray) -> np.ndarray:
    """Return the dense layers' parts of an atom's matrices, (F, 3, 3) -> (3, F, 3, 3)."""
    apart = np.array([three_parts(matrix) for matrix in x])  # (F, 3, 3, 3)
    out = np.zeros((3, *x.shape))
    for p, layer in enumerate(mix.layers):
        for row, weights in enumerate(layer.weight.detach().numpy()):
            for weight, of_feature in zip(weights, apart, strict=True):
                out[p, row] += weight * of_feature[p]
    return out


def shrunk(x: np.ndarray) -> np.ndarray:
    """Return each matrix over the sum of its squares and 1."""
    return np.array([matrix / (1 + np.trace(matrix @ matrix.T)) for matrix in x])


@torch.no_grad()
def one_by_one(model: TensorNet, z, edges) -> torch.Tensor:
    """Return the energies of the atoms by the table of equations."""
    F, N = model.embedding.embedding_dim, len(z)
    elements = [model.embedding.weight[int(number)] for number in z]
    pairs = [(j, i, r.numpy()) for j, i, r in zip(*edges.index.tolist(), edges.vector, strict=True)]
    pairs = [(j, i, r) for j, i, r in pairs if np.linalg.norm(r) < model.cutoff]
    mu, gamma = model.radial_expansion.mu.numpy(), float(model.radial_expansion.gamma)

    def filters(layer, r: np.ndarray) -> np.ndarray:
        d = np.linalg.norm(r)
        fade = 0.5 * (np.cos(np.pi * d / model.cutoff) + 1)
        e = np.append(np.exp(-gamma * (d - mu) ** 2), 1.0)
        return (fade * (layer.weight.numpy() @ e)).reshape(3, F)

    first, x = model.first, np.zeros((N, F, 3, 3))
    for j, i, r in pairs:
        u, W = r / np.linalg.norm(r), filters(first.filters, r)
        pair = (first.p(elements[i]) + first.q(elements[j])).numpy()
        turn = np.array([[0, -u[2], u[1]], [u[2], 0, -u[0]], [-u[1], u[0], 0]])
        shapes = [np.eye(3), turn, np.outer(u, u) - np.eye(3) / 3]
        for f in range(F):
            x[i, f] += pair[f] * sum(W[p, f] * shapes[p] for p in range(3))
    for i in range(N):
        scale = first.phi(normed((x[i] ** 2).sum(axis=(1, 2)))).numpy().reshape(3, F)
        x[i] = np.einsum("pf,pfab->fab", scale, mixed(first.mix, x[i]))
    for block in model.blocks:
        x = np.array([shrunk(own) for own in x])
        y = np.array([mixed(block.before, own) for own in x])  # (N, 3, F, 3, 3)
        m = np.zeros((N, F, 3, 3))
        for j, i, r in pairs:
            m[i] += np.einsum("pf,pfab->fab", filters(block.filters, r), y[j])
        for i in range(N):
            own = y[i].sum(axis=0)
            product = np.array([own[f] @ m[i, f] + m[i, f] @ own[f] for f in range(F)])
            d = mixed(block.after, shrunk(product)).sum(axis=0)
            x[i] = x[i] + d + np.array([d[f] @ d[f] for f in range(F)])
    energies = []
    for own in x:
        squares = np.array([[(part**2).sum() for part in three_parts(matrix)] for matrix in own])
        energies.append(model.readout(normed(squares.T.flatten())))
    return torch.stack(energies)


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_energies_are_those_of_the_equations(blocks):
    model = filled(TensorNet(4, blocks, 6, 3.0))
    z, pos, batch = molecules()
    edges = Graph(4.0).edges(pos, batch)
    energy_i = model.atomic_energies(z, edges).detach()
    assert_equal(energy_i, one_by_one(model, z, edges), atol=1e-13)
    assert energy_i.std() > 1e-3


def test_parts_are_orthogonal_and_add_up():
    torch.manual_seed(0)
    x = torch.randn(5, 3, 3, 2, dtype=torch.float64)
    found = parts(x)
    assert_equal(sum(found), x, atol=1e-14)
    for a in range(3):
        assert found[a].square().sum() > 1
        for b in range(a):
            assert abs((found[a] * found[b]).sum(dim=(1, 2))).max() < 1e-14


def test_directions_turn_vectors():
    """[u]ₓ v is u × v, and u uᵀ − δ/3 has no trace."""
    torch.manual_seed(0)
    u = torch.nn.functional.normalize(torch.randn(4, 3, dtype=torch.float64), dim=1)
    v = torch.randn(4, 3, dtype=torch.float64)
    _, cross, outer = directions(u)
    turned = torch.einsum("eab,eb->ea", cross.squeeze(3), v)
    assert_equal(turned, torch.linalg.cross(u, v), atol=1e-14)
    assert abs(outer.squeeze(3).diagonal(dim1=1, dim2=2).sum(dim=1)).max() < 1e-14
