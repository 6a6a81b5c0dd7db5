"""Filters as splines: their tolerance, their smoothness, and where they end."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from contract import assert_equal
from networks import ON_SPLINES, cluster, schnet
from torch import Tensor, nn

from molnets.networks.painn import PaiNN
from molnets.networks.parts import cosine_cutoff
from molnets.potential import Potential, by_autograd, energy_and_forces
from molnets.tables import SplineSchNet, tabulated
from molnets.tables.native import SplineMaker
from molnets.tables.splines import basis, evaluate, fitted
from molnets.tables.state import _splines
from molnets.tables.structure import describe
from schnet_helpers import SchNet


def at(c: Tensor, d: Tensor, h: float) -> tuple[Tensor, Tensor]:
    """Return values and slopes of a spline at distances, each by itself."""
    values, slopes = [], []
    for distance in d.tolist():
        k = min(int(distance / h), len(c) - 6)
        w, dw = basis(distance / h - k)
        values.append(w @ c[k : k + 6])
        slopes.append(dw @ c[k : k + 6] / h)
    return torch.stack(values), torch.stack(slopes)


def exact(network: nn.Module, d: Tensor) -> list[Tensor]:
    """Return the filters of each block, by the network's own modules."""
    e, fade = network.radial_expansion.expand(d), cosine_cutoff(d, network.cutoff)
    if isinstance(network, SchNet):
        return [block.mlp(e) * fade for block in network.interactions]
    is_painn, inputs = isinstance(network, PaiNN), torch.cat([fade * e, fade], dim=1)
    blocks = network.messages if is_painn else [network.first, *network.blocks]
    return [block.filters(inputs) for block in blocks]


@pytest.mark.parametrize("make", ON_SPLINES.values())
def test_splines_go_through_the_filters_at_the_knots(make):
    network, K = make(), 40
    splines = _splines(describe(network), K)
    d = torch.arange(K, dtype=torch.float64) * (network.cutoff / K)  # the cutoff has no interval
    for c, values in zip(splines, exact(network, d), strict=True):
        assert c.shape == (K + 5, values.shape[1])
        assert_equal(evaluate(c, 0.0)[0], values.detach(), atol=1e-12)


def test_basis_is_exact_for_polynomials():
    """A spline of degree 5 whose coefficients are those of d^n is d^n."""
    j = torch.arange(-2, 9, dtype=torch.float64)
    moments = [1, 0, 1 / 2, 0, 3 / 5]  # of the B-spline of degree 5: mean of x^n
    for t in (0.0, 0.3, 0.999):
        w, slopes = basis(t)
        assert_equal(w.sum(), torch.ones(()).double(), atol=1e-14)
        assert_equal(slopes.sum(), torch.zeros(()).double(), atol=1e-14)
        assert_equal(w @ j[:6], torch.tensor(t, dtype=torch.float64), atol=1e-13)
        assert_equal(slopes @ j[:6], torch.ones(()).double(), atol=1e-13)
        assert_equal(
            w @ j[:6] ** 2, torch.tensor(t**2 + moments[2], dtype=torch.float64), atol=1e-12
        )


@pytest.mark.parametrize("make", ON_SPLINES.values())
@pytest.mark.parametrize("gamma", [1.0, 4.0, 100.0])
def test_tolerance_bounds_filters_and_slopes(make, gamma):
    network = make(gamma=gamma)
    found, K = fitted(partial(_splines, describe(network)), 1e-6, 32, 2**15)
    torch.manual_seed(0)
    d = (2.5 * torch.rand(300, dtype=torch.float64)).requires_grad_()
    worst = 0.0
    for c, values in zip(found, exact(network, d), strict=True):
        value, slope = at(c, d.detach(), 2.5 / K)
        columns = range(0, values.shape[1], 5)
        dW = [torch.autograd.grad(values[:, f].sum(), d, retain_graph=True)[0] for f in columns]
        errors = value - values.detach(), slope[:, ::5] - torch.stack(dW, dim=1)
        for error, of in zip(errors, (value, slope), strict=True):
            worst = max(worst, float(error.abs().max() / of.abs().max()))
    assert 1e-11 < worst < 1.1e-6  # a spline, and a good one


@pytest.mark.parametrize("make", ON_SPLINES.values())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_by_the_weights_of_filters_are_those_of_autograd(make, dtype):
    network, K = make(dtype), 50
    structure, maker = describe(network), SplineMaker(describe(network), K, dtype)
    splines = maker(structure.filter_weights)
    torch.manual_seed(0)
    g = torch.randn(len(splines), dtype=dtype)
    found = maker.gradients(structure.filter_weights, g)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-9
    rng = torch.Generator().manual_seed(1)
    for weight, grad in zip(structure.filter_weights, found, strict=True):
        direction = torch.randn(weight.shape, generator=rng, dtype=torch.float64)
        double = [w.detach().double() for w in structure.filter_weights]
        shift = SplineMaker(structure, K, torch.float64)
        ends = []
        for sign in (1, -1):  # the difference of both ends, along a direction
            moved = [w + sign * 1e-4 * direction if v is weight else w
                     for w, v in zip(double, structure.filter_weights, strict=True)]  # fmt: skip
            ends.append((shift(moved) * g.double()).sum())
        expected = (ends[0] - ends[1]) / 2e-4
        scale = float(grad.double().norm() * direction.norm())
        error = abs(float((grad.double() * direction).sum() - expected))
        assert error < (tolerance + 1e-7) * scale
        assert scale > 0.1


def test_narrow_gaussians_in_float64_keep_the_tolerance():
    plain = schnet(cutoff=2.5, gamma=250.0)
    exact = by_autograd(plain, *cluster())[1]
    forces = energy_and_forces(SplineSchNet(plain), *cluster())[1]
    assert_equal(forces, exact, atol=1e-8 * float(exact.square().mean().sqrt()))


@pytest.mark.parametrize("make", ON_SPLINES.values())
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
