"""Tables of filters: their tolerance, and where they end."""

from __future__ import annotations

import pytest
import torch
from contract import assert_equal
from networks import cluster, schnet
from torch import Tensor, nn

from molnets.potential import by_autograd, energy_and_forces
from molnets.tables import SplineSchNet
from molnets.tables import model as table_model
from molnets.tables.filters import hermite_basis


@pytest.mark.parametrize("gamma", [1.0, 4.0, 100.0])
def test_tolerance_bounds_filters_and_slopes(gamma):
    model = SplineSchNet(schnet(gamma=gamma), tolerance=1e-5)
    with torch.no_grad():
        tables = model.tables()
    h = model.cutoff / model.num_intervals
    for block, table in zip(model.interactions, tables, strict=True):
        d = torch.linspace(0, model.cutoff - 1e-9, 20_001, dtype=torch.float64)

        def exact(d: Tensor, mlp: nn.Module = block.mlp) -> Tensor:
            fade = 0.5 * (torch.cos(torch.pi * d / model.cutoff) + 1)
            return mlp(model.radial_expansion.expand(d)) * fade.unsqueeze(1)

        W, slope = torch.func.jvp(exact, (d,), (torch.ones_like(d),))
        knot = (d / h).long()
        basis = hermite_basis(d / h - knot, h)
        S, V, D = table.chunk(3, dim=1)
        rows = torch.stack([S[knot], V[knot], D[knot], S[knot + 1]], dim=1)  # (E, 4, F)
        for w, expected in zip(basis, (W, slope), strict=True):
            error = (w.unsqueeze(2) * rows).sum(1) - expected
            assert error.abs().max() < 1.05e-5 * expected.abs().max()
            assert error.abs().max() > 1e-9 * expected.abs().max()  # control: it is a spline


def test_narrow_gaussians_in_float64_get_the_finest_tables():
    plain = schnet(cutoff=2.5, gamma=250.0)
    model = SplineSchNet(plain)
    z, pos, batch = cluster()
    exact = by_autograd(plain, z, pos, batch)[1]
    forces = energy_and_forces(model, z, pos, batch)[1]
    assert model.num_intervals == table_model.MAX_INTERVALS
    assert_equal(forces, exact, atol=1e-8 * float(exact.square().mean().sqrt()))
    with pytest.raises(ValueError, match="tolerance: expected one that 32768 intervals can keep"):
        energy_and_forces(SplineSchNet(plain, tolerance=1e-10), z, pos, batch)


def test_filters_end_at_the_cutoff_with_value_and_slope_zero():
    for table in SplineSchNet(schnet()).tables():
        S, V, _ = table.chunk(3, dim=1)
        assert not V[-1].any() and not S[-1].any()
        assert V[-2].abs().max() > 0
