"""Filters as splines: their tolerance, their smoothness, and where they end."""

from __future__ import annotations

import pytest
import torch
from contract import assert_equal
from networks import cluster, painn, schnet

from molnets.potential import Potential, by_autograd, energy_and_forces
from molnets.tables import SplineSchNet, splines, tabulated
from molnets.tables.structure import describe


def at(c: torch.Tensor, d: torch.Tensor, h: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return values and slopes of a spline at distances, each by itself."""
    values, slopes = [], []
    for distance in d.tolist():
        k = min(int(distance / h), len(c) - 6)
        w, dw = splines.basis(distance / h - k)
        values.append(w @ c[k : k + 6])
        slopes.append(dw @ c[k : k + 6] / h)
    return torch.stack(values), torch.stack(slopes)


def test_a_spline_goes_through_its_values_and_is_exact_for_polynomials():
    K, cutoff = 40, 2.0
    d = splines.knots(K, cutoff, torch.float64)
    values = torch.stack([d**n for n in range(6)], dim=1)
    c = splines.coefficients(values)
    assert c.shape == (K + 5, 6)
    places = torch.rand(50, dtype=torch.float64) * cutoff
    found, slopes = at(c, places, cutoff / K)
    assert_equal(found, torch.stack([places**n for n in range(6)], dim=1), atol=1e-10)
    expected = torch.stack([n * places ** max(0, n - 1) for n in range(6)], dim=1)
    assert_equal(slopes, expected, atol=1e-8)


def test_long_tables_are_computed_in_pieces_that_agree(monkeypatch):
    values = torch.randn(1000, 3, dtype=torch.float64).cumsum(0)
    expected = splines.coefficients(values)
    monkeypatch.setattr(splines, "BLOCK", 10_000)
    assert_equal(splines.coefficients(values), expected, atol=1e-11)


@pytest.mark.parametrize("make", [schnet, painn])
@pytest.mark.parametrize("gamma", [1.0, 4.0, 100.0])
def test_tolerance_bounds_filters_and_slopes(make, gamma):
    network = make(gamma=gamma)
    structure = describe(network)
    found, K = splines.fitted(structure.values, 2.5, 1e-6, 32, 2**15)
    torch.manual_seed(0)
    d = (2.5 * torch.rand(300, dtype=torch.float64)).requires_grad_()
    worst = 0.0
    for n, c in enumerate(found):
        value, slope = at(c.detach(), d.detach(), 2.5 / K)
        exact = structure.values(d)[n]
        columns = range(0, exact.shape[1], 5)
        dW = [torch.autograd.grad(exact[:, f].sum(), d, retain_graph=True)[0] for f in columns]
        errors = value - exact.detach(), slope[:, ::5] - torch.stack(dW, dim=1)
        for error, of in zip(errors, (value, slope), strict=True):
            worst = max(worst, float(error.abs().max() / of.abs().max()))
    assert 1e-11 < worst < 1.1e-6  # a spline, and a good one


def test_narrow_gaussians_in_float64_keep_the_tolerance():
    plain = schnet(cutoff=2.5, gamma=250.0)
    exact = by_autograd(plain, *cluster())[1]
    forces = energy_and_forces(SplineSchNet(plain), *cluster())[1]
    assert_equal(forces, exact, atol=1e-8 * float(exact.square().mean().sqrt()))


@pytest.mark.parametrize("make", [schnet, painn])
def test_energy_ends_smoothly_at_the_cutoff(make):
    model = tabulated(Potential(make()))
    z, batch = torch.tensor([[1], [6]]), torch.zeros(2, dtype=torch.int64)

    def at_distance(d: float) -> tuple[float, float]:
        pos = torch.tensor([[0.0, 0, 0], [d, 0, 0]], dtype=torch.float64)
        energy, forces = energy_and_forces(model, z, pos, batch)
        return energy.item(), forces[1, 0].item()

    (inside, force), (outside, none) = at_distance(2.5 - 1e-9), at_distance(2.5)
    assert none == 0 and abs(inside - outside) < 1e-12 and abs(force) < 1e-7
    assert abs(at_distance(2.0)[1]) > 1e-4


def test_filters_that_are_all_zero_or_not_finite():
    plain = schnet()
    with torch.no_grad():
        for block in plain.interactions:
            block.mlp[2].weight.zero_()
            block.mlp[2].bias.zero_()
    assert_equal(SplineSchNet(plain)(*cluster()), plain(*cluster()), atol=1e-10)
    plain.interactions[1].mlp[0].weight.data[0, 0] = torch.nan
    energy, forces = energy_and_forces(SplineSchNet(plain), *cluster())
    assert energy.isnan().all() and forces.isnan().any()
