"""Analysis against counts by hand, typed numbers and random numbers of a known distribution.

Tolerances of random quantities are five standard errors, σ / √M for a mean of M samples.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from systems import normal, random

from molnets.dynamics import (
    compare,
    distribution,
    distribution_distance,
    energy_drift,
    kinetic_energy_density,
    mean_absolute_error,
    pair_distance_distribution,
    pair_distances,
    root_mean_square_error,
)

SQUARE = [[0.0, 0, 0], [3, 0, 0], [3, 4, 0], [0, 4, 0]]


def test_pair_distances_of_a_rectangle():
    expected = [3, 5, 4, 4, 5, 3]  # pairs 01 02 03 12 13 23
    assert pair_distances(SQUARE).tolist() == expected
    square = torch.tensor(SQUARE, requires_grad=True)
    both = pair_distances(torch.stack([square, 2 * square]).unsqueeze(0))
    assert both.tolist() == [[expected, [2 * d for d in expected]]]


def test_distribution_is_a_count_by_hand():
    values = random(0).normal(size=(50, 4, 3))
    found = distribution(values, 12, -1.5, 2.1)
    for replica in range(4):
        for k, low in enumerate(found.edges[:-1]):
            inside = (values[:, replica] >= low) & (values[:, replica] < found.edges[k + 1])
            expected = inside.mean() / 0.3
            assert found.replicas[replica, k] == pytest.approx(expected, abs=1e-12)
    assert found.centers[:2] == pytest.approx([-1.35, -1.05])
    assert found.bin_width == pytest.approx(0.3)
    assert found.density == pytest.approx(found.replicas.sum(axis=0) / 4)
    middle = [r[5] for r in found.replicas]
    spread = sum((x - sum(middle) / 4) ** 2 for x in middle) / 3
    assert found.error[5] == pytest.approx(math.sqrt(spread / 4))
    assert found.replicas.std(axis=0).max() > 0.01


def test_error_bar_is_the_spread_of_repeated_means():
    repeats = [distribution(random(s).normal(size=(30, 20)), 6, -2, 2) for s in range(400)]
    true_error = np.std([r.density for r in repeats], axis=0)
    claimed = np.sqrt(np.mean([r.error**2 for r in repeats], axis=0))
    assert claimed == pytest.approx(true_error, rel=5 / math.sqrt(2 * 400))
    single = distribution(random(0).normal(size=(30, 1)), 6, -2, 2)
    assert np.isnan(single.error).all()  # one replica knows no error


def test_g_of_r_integrates_to_one():
    positions = torch.as_tensor(random(0).normal(size=(20, 5, 7, 3)))
    g = pair_distance_distribution(positions, 40, 12.0)
    assert (g.replicas.sum(axis=1) * g.bin_width).tolist() == pytest.approx([1.0] * 5)
    distances = pair_distances(positions)
    short = pair_distance_distribution(positions, 10, 2.0)
    share = (distances < 2).mean(axis=(0, 2))
    assert (share < 0.7).all()
    assert short.replicas.sum(axis=1) * short.bin_width == pytest.approx(share)
    assert short.density == pytest.approx(
        np.histogram(distances, 10, (0, 2))[0] / distances.size / 0.2
    )


def test_g_of_r_of_a_rectangle():
    g = pair_distance_distribution(np.array(SQUARE)[None, None], 6, 6.0)
    assert g.density == pytest.approx([0, 0, 0, 1 / 3, 1 / 3, 1 / 3])


def test_distribution_distance():
    p, q = [0.0, 2.0, 2.0, 0.0], [0.0, 0.0, 2.0, 2.0]
    assert distribution_distance(p, p, 0.25) == 0
    assert distribution_distance(p, q, 0.25) == pytest.approx(0.5)
    assert distribution_distance(p, [2, 0, 0, 2], 0.25) == pytest.approx(1)
    assert distribution_distance(q, p, 0.25) == distribution_distance(p, q, 0.25)


def test_noise_level_is_calibrated():
    """Of equal distributions 5 % reach p ≤ 0.05, and half p ≤ 0.5.

    39 splits, as 99, can give just these two p; what is seen depends on the 300 repeats: a share of
    5 % that is 11 % in truth, and one of 50 % that is off by 14 %.
    """
    p = np.array([compare(normal(2 * s), normal(2 * s + 1), s, 39).p_value for s in range(300)])
    for level in (0.05, 0.5):
        assert abs((p <= level).mean() - level) < 5 * math.sqrt(level * (1 - level) / 300)


def test_noise_is_the_distance_of_repeated_runs():
    noise = compare(normal(0), normal(1), 0).noise.mean()
    pairs = [(normal(2 * s).density, normal(2 * s + 1).density) for s in range(200)]
    repeated = [distribution_distance(p, q, 0.6) for p, q in pairs]
    assert noise == pytest.approx(np.mean(repeated), rel=0.3)  # 16 replicas know it to 1 / √(2·16)


def test_different_distributions_are_told_apart():
    result = compare(normal(0), normal(1, shift=1.0), seed=0)
    assert result.p_value < 0.005
    assert result.distance > np.quantile(result.noise, 0.99)
    a, b = normal(0), normal(1, shift=1.0)
    assert result.distance == distribution_distance(a.density, b.density, a.bin_width)
    again, other = (compare(a, b, seed=s) for s in (0, 1))
    assert np.array_equal(again.noise, result.noise)
    assert not np.array_equal(other.noise, result.noise)


def test_drift_of_a_known_line():
    t = np.linspace(3, 5, 11)
    energy = np.stack([7 + 0.6 * t, 1 - 0.3 * t], axis=1)
    drift = energy_drift(energy, t, num_atoms=3)
    assert drift.slope == pytest.approx([0.2, -0.1])
    assert drift.error == pytest.approx([0, 0], abs=1e-12)
    assert energy_drift(torch.tensor(energy[:, 0]), t, 3).slope == pytest.approx([0.2])


def test_error_of_the_drift_covers_the_truth():
    t, noise = np.linspace(0, 1, 50), random(0).normal(size=(50, 2000))
    drift = energy_drift(4 * (0.2 * t[:, None] + noise), t, num_atoms=4)
    slope, error = np.polyfit(t, noise[:, 0], 1, cov=True)
    assert drift.slope[0] - 0.2 == pytest.approx(slope[0])
    assert drift.error[0] == pytest.approx(math.sqrt(error[0, 0]))
    scaled = (drift.slope - 0.2) / drift.error  # Student's t, 48 degrees of freedom
    assert abs(scaled.mean()) < 5 / math.sqrt(2000)
    assert abs(scaled.var() - 48 / 46) < 5 * math.sqrt(2.2 / 2000)


def test_errors_of_predictions():
    reference, prediction = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), [[1.0, 5.0], [-1.0, 4.0]]
    assert mean_absolute_error(reference, prediction) == pytest.approx(7 / 4)
    assert root_mean_square_error(reference, prediction) == pytest.approx(5 / 2)


@pytest.mark.parametrize("dof", [3, 18, 21])
def test_kinetic_energy_density(dof):
    kT = 0.7 * 0.5
    energy = np.linspace(1e-6, 40, 400_001)
    p, width = kinetic_energy_density(energy, 0.7, dof, k_B=0.5), 1e-4
    assert p.sum() * width == pytest.approx(1, abs=1e-4)
    assert (energy * p).sum() * width == pytest.approx(dof / 2 * kT, rel=1e-4)
    samples = 0.5 * kT * (random(0).normal(size=(100_000, dof)) ** 2).sum(axis=1)
    middle = dof / 2 * kT
    share = p[energy < middle].sum() * width
    assert abs((samples < middle).mean() - share) < 5 * 0.5 / math.sqrt(100_000) + 1e-4


def test_kinetic_energy_density_of_two_degrees_of_freedom_is_boltzmanns():
    assert kinetic_energy_density([0.5, 3.0], 2.0, 2) == pytest.approx(
        [0.5 * math.exp(-0.25), 0.5 * math.exp(-1.5)]
    )


V = np.ones((2, 2, 3, 3))
ERRORS = [
    (lambda: pair_distances(np.zeros((4, 2))), r"positions: expected shape .*\(4, 2\)"),
    (lambda: pair_distances(np.zeros((1, 3))), "positions: expected .* two atoms or more"),
    (lambda: pair_distances([[0, 0, math.nan]] * 2), "positions: expected finite numbers"),
    (lambda: pair_distance_distribution(V[0], 4, 1.0), r"positions: expected shape \(T, R, n, 3\)"),
    (lambda: distribution([1.0], 4, 0, 1), r"values: expected shape \(T, R, ...\), got \(1,\)"),
    (lambda: distribution(np.zeros((0, 3)), 4, 0, 1), "values: expected at least one number"),
    (lambda: distribution(V, 0, 0, 1), "bins: expected a positive integer, got 0"),
    (lambda: distribution(V, 4, 1, 1), r"lower, upper: expected lower < upper, got \(1, 1\)"),
    (lambda: distribution_distance([1, 2], [1], 1.0), r"q: expected shape \(2,\) as p, got \(1,\)"),
    (lambda: distribution_distance([1], [1], 0.0), "bin_width: expected a positive width, got 0"),
    (lambda: compare(normal(0), distribution(V, 4, 0, 1), 0), "b: expected the bins of a"),
    (lambda: compare(normal(0), normal(1, num_replicas=1), 0), r"a, b: .* got \(8, 1\)"),
    (lambda: energy_drift(V, [1, 2], 3), "total_energy: expected shape"),
    (lambda: energy_drift([1, 2, 3], [1, 2], 3), r"times: expected shape \(3,\), got \(2,\)"),
    (lambda: energy_drift([1, 2], [1, 2], 3), "times: expected three frames or more, got 2"),
    (lambda: energy_drift([1, 2, 3], [1, 1, 1], 3), "times: expected different times"),
    (lambda: energy_drift([1, 2, 3], [1, 2, 3], 0), "num_atoms: expected a positive .* got 0"),
    (lambda: mean_absolute_error([1, 2], [[1], [2]]), r"prediction: expected shape \(2,\)"),
    (lambda: kinetic_energy_density([0.0], 1.0, 3), "energy: expected positive energies, got 0"),
    (lambda: kinetic_energy_density([1.0], 0.0, 3), "temperature: expected a positive number"),
    (lambda: kinetic_energy_density([1.0], 1.0, 0), "dof: expected a positive integer, got 0"),
]


@pytest.mark.parametrize(("attempt", "message"), ERRORS)
def test_errors_name_the_argument(attempt, message):
    with pytest.raises(ValueError, match=message):
        attempt()
