"""PaiNN beside SchNetPack's, and beside its equations, one edge at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from contract import assert_equal, forces, molecules
from networks import filled

from molnets.edges import Graph
from molnets.networks.painn import TINY, PaiNN
from molnets.potential import Potential

DATA = Path(__file__).parent / "data"


def test_energies_and_forces_are_schnetpack_s():
    reference = np.load(DATA / "painn_schnetpack.npz")
    potential = Potential(filled(PaiNN(6, 3, 7, 3.0)))
    z, pos = torch.tensor(reference["z"]).view(-1, 1), torch.tensor(reference["pos"])
    batch = torch.zeros(len(z), dtype=torch.int64)
    energy_i = potential.atomic_energies(z, pos, batch)
    assert_equal(energy_i.flatten(), torch.tensor(reference["energy"]), atol=1e-12)
    assert_equal(forces(potential, z, pos, batch), torch.tensor(reference["forces"]), atol=1e-12)
    assert energy_i.std() > 1e-2  # control: atoms differ, and so do forces
    assert abs(reference["forces"]).max() > 5e-3


def one_by_one(model: PaiNN, z, edges) -> torch.Tensor:
    """Return the energies of the atoms by equations (7) to (10), one edge after the other."""
    dim = model.embedding.embedding_dim
    s = [model.embedding.weight[int(number)] for number in z]
    v = [torch.zeros(3, dim, dtype=torch.float64) for _ in s]
    for message, update in zip(model.messages, model.updates, strict=True):
        ds, dv = [torch.zeros_like(x) for x in s], [torch.zeros_like(x) for x in v]
        for j, i, r in zip(*edges.index.tolist(), edges.vector, strict=True):
            d = r.norm()
            if d >= model.cutoff:
                continue
            f = 0.5 * (torch.cos(torch.pi * d / model.cutoff) + 1)
            gaussians = torch.exp(
                -model.radial_expansion.gamma * (d - model.radial_expansion.mu) ** 2
            )
            weight, bias = message.filters.weight[:, :-1], message.filters.weight[:, -1]
            product = message.phi(s[j]) * f * (weight @ gaussians + bias)
            ds[i] = ds[i] + product[:dim]
            dv[i] = dv[i] + torch.outer(r / d, product[dim : 2 * dim])
            if len(product) > 2 * dim:
                dv[i] = dv[i] + product[2 * dim :] * v[j]
        for i in range(len(s)):
            s[i], v[i] = s[i] + ds[i], v[i] + dv[i]
            u, w = v[i] @ update.U.weight.T, v[i] @ update.V.weight.T
            a = update.a(torch.cat([s[i], (w.square().sum(0) + TINY).sqrt()]))
            s[i] = s[i] + a[:dim] + a[dim : 2 * dim] * (u * w).sum(0)
            if len(a) > 2 * dim:
                v[i] = v[i] + a[2 * dim :] * u
    return torch.stack([model.readout(x) for x in s])


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_energies_are_those_of_the_equations(blocks):
    model = filled(PaiNN(4, blocks, 6, 3.0))
    z, pos, batch = molecules()
    edges = Graph(4.0).edges(pos, batch)
    energy_i = model.atomic_energies(z, edges)
    assert_equal(energy_i, one_by_one(model, z, edges), atol=1e-13)
    assert energy_i.std() > 1e-3
