"""What a simulation says: distributions with error bars, drift, and errors.

Axes:   T frames, R independent replicas, n atoms, P = n (n − 1) / 2 pairs, K bins.
Units:  the caller's.
Input:  tensors or arrays; output: arrays. Replicas are the independent samples: frames
        of one replica are correlated, so error bars come from the spread over replicas alone.

[1] Phipson & Smyth, Stat. Appl. Genet. Mol. Biol. 2010, 9, 39 (p-values of permutation tests).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from molnets.checks import as_array, expect, expect_size

Array = NDArray[np.float64]


class Distribution(NamedTuple):
    """Bin edges (K + 1,) and the probability density that each replica has there, (R, K)."""

    edges: Array
    replicas: Array

    @property
    def centers(self) -> Array:
        """The middle of each bin, (K,)."""
        return 0.5 * (self.edges[1:] + self.edges[:-1])

    @property
    def bin_width(self) -> float:
        """The width of a bin."""
        return float(self.edges[1] - self.edges[0])

    @property
    def density(self) -> Array:
        """The mean over the replicas, (K,)."""
        return self.replicas.mean(axis=0)

    @property
    def error(self) -> Array:
        """The standard error of the mean, (K,); NaN for one replica, which has no spread."""
        num_replicas = len(self.replicas)
        if num_replicas == 1:
            return np.full(self.replicas.shape[1], np.nan)
        return self.replicas.std(axis=0, ddof=1) / math.sqrt(num_replicas)


class Comparison(NamedTuple):
    """A distance, the distances that noise alone gives, and the probability of so large a one."""

    distance: float
    noise: Array
    p_value: float


class Drift(NamedTuple):
    """Slopes of the total energy per atom, (R,), energy / time, and their standard errors."""

    slope: Array
    error: Array


def pair_distances(positions: ArrayLike) -> Array:
    """Return the distances of all pairs of atoms: (..., n, 3) -> (..., P)."""
    x = as_array("positions", positions)
    ok = x.ndim >= 2 and x.shape[-1] == 3 and x.shape[-2] > 1
    expect(ok, "positions", "shape (..., n, 3) with two atoms or more", x.shape)
    i, j = np.triu_indices(x.shape[-2], k=1)
    return np.linalg.norm(x[..., i, :] - x[..., j, :], axis=-1)


def distribution(values: ArrayLike, bins: int, lower: float, upper: float) -> Distribution:
    """Count values in equal bins, each replica by itself; the density is over all its values.

    p_k = (values in bin k) / (all values · bin width), so Σ p_k · width is the share inside.

    Args:
        values: what to count, (T, R) or (T, R, ...).
        bins: number of bins K.
        lower: the lower edge of the first bin.
        upper: the upper edge of the last bin; a value there counts.

    Raises:
        ValueError: for a wrong shape, no bins, or edges in the wrong order.
    """
    values = as_array("values", values)
    expect(values.ndim >= 2, "values", "shape (T, R, ...)", values.shape)
    expect_size("bins", bins)
    expect(lower < upper, "lower, upper", "lower < upper", (lower, upper))
    edges = np.linspace(lower, upper, bins + 1)
    of_replica = np.moveaxis(values, 1, 0).reshape(values.shape[1], -1)  # (T, R, ...) -> (R, M)
    counts = np.stack([np.histogram(own, edges)[0] for own in of_replica])  # (R, K)
    return Distribution(edges, counts / (of_replica.shape[1] * (edges[1] - edges[0])))


def pair_distance_distribution(positions: ArrayLike, bins: int, r_max: float) -> Distribution:
    """Return g(r) of a cluster: the probability density of the distances of its pairs.

    ∫_0^∞ g(r) dr = 1: a finite cluster has no bulk density to be compared with, so there is no
    division by 4π r². Pairs beyond r_max count in the normalisation but lie in no bin.

    Args:
        positions: (T, R, n, 3).
        bins: number of bins K between 0 and r_max.
        r_max: the largest distance that is shown.
    """
    x = as_array("positions", positions)
    expect(x.ndim == 4, "positions", "shape (T, R, n, 3)", x.shape)
    return distribution(pair_distances(x), bins, 0.0, r_max)


def distribution_distance(p: ArrayLike, q: ArrayLike, bin_width: float) -> float:
    """Return the total variation distance of two densities, (K,): 0 if equal, 1 if disjoint.

    D(p, q) = ½ Σ_k |p_k − q_k| · width, the largest difference in the probability of any event.
    """
    p, q = as_array("p", p), as_array("q", q)
    expect(p.shape == q.shape, "q", f"shape {p.shape} as p", q.shape)
    expect(bin_width > 0, "bin_width", "a positive width", bin_width)
    return float(0.5 * np.abs(p - q).sum() * bin_width)


def compare(a: Distribution, b: Distribution, seed: int, num_splits: int = 1000) -> Comparison:
    """Compare two distributions with what noise alone would give, a permutation test.

    If both have one origin, it does not matter which replica is in which: the replicas of both are
    shuffled and split again, and D is the noise. p = (1 + #{D_noise ≥ D}) / (1 + splits) [1]: small
    if they differ; above 0.05 they are indistinguishable at this number of replicas.

    Args:
        a: one distribution.
        b: the other, with the same bins.
        seed: seed of the splits.
        num_splits: how many there are.

    Raises:
        ValueError: if the bins differ, or either has one replica only.
    """
    same = a.edges.shape == b.edges.shape and np.allclose(a.edges, b.edges)
    expect(same, "b", "the bins of a", "other edges")
    sizes = len(a.replicas), len(b.replicas)
    expect(min(sizes) > 1, "a, b", "two replicas or more in each", sizes)
    pool, rng = np.concatenate([a.replicas, b.replicas]), np.random.default_rng(seed)

    def split(order: NDArray[np.intp]) -> float:
        first, second = pool[order[: sizes[0]]], pool[order[sizes[0] :]]
        return distribution_distance(first.mean(0), second.mean(0), a.bin_width)

    distance = split(np.arange(len(pool)))
    noise = np.array([split(rng.permutation(len(pool))) for _ in range(num_splits)])
    reached = (noise >= distance * (1 - 1e-12)).sum()  # the split itself, in another order, counts
    return Comparison(distance, noise, float((1 + reached) / (1 + num_splits)))


def energy_drift(total_energy: ArrayLike, times: ArrayLike, num_atoms: int) -> Drift:
    """Fit a straight line to the total energy per atom of each replica.

    slope = Σ (t − t̄) e / Σ (t − t̄)²;  its variance is Σ residual² / (T − 2) / Σ (t − t̄)²

    The error takes the residuals as independent of one another: frames should lie further apart
    than the energy's own oscillation.

    Args:
        total_energy: (T,) or (T, R).
        times: (T,).
        num_atoms: n.
    """
    energy, t = as_array("total_energy", total_energy), as_array("times", times)
    expect(energy.ndim in (1, 2), "total_energy", "shape (T,) or (T, R)", energy.shape)
    expect(t.shape == energy.shape[:1], "times", f"shape {energy.shape[:1]}", t.shape)
    expect(len(t) > 2, "times", "three frames or more", len(t))
    expect_size("num_atoms", num_atoms)
    e = energy.reshape(len(t), -1) / num_atoms  # (T, R)
    t, e = t - t.mean(), e - e.mean(axis=0)
    spread = (t**2).sum()
    expect(spread > 0, "times", "different times", "one time only")
    slope = t @ e / spread  # (T,) (T, R) -> (R,)
    residual = e - np.outer(t, slope)
    return Drift(slope, np.sqrt((residual**2).sum(axis=0) / (len(t) - 2) / spread))


def mean_absolute_error(reference: ArrayLike, prediction: ArrayLike) -> float:
    """Return the mean of |prediction − reference| over all components."""
    return float(np.abs(residuals(reference, prediction)).mean())


def root_mean_square_error(reference: ArrayLike, prediction: ArrayLike) -> float:
    """Return the root of the mean of (prediction − reference)² over all components."""
    return math.sqrt((residuals(reference, prediction) ** 2).mean())


def residuals(reference: ArrayLike, prediction: ArrayLike) -> Array:
    """Return prediction − reference, of one shape."""
    reference, prediction = as_array("reference", reference), as_array("prediction", prediction)
    ok = prediction.shape == reference.shape
    expect(ok, "prediction", f"shape {reference.shape} as reference", prediction.shape)
    return prediction - reference


def kinetic_energy_density(
    energy: ArrayLike, temperature: float, dof: int, *, k_B: float = 1.0
) -> Array:
    """Return the probability density of the kinetic energy at a temperature.

    p(K) = K^(f/2 − 1) exp(−K / k_B T) / (Γ(f/2) (k_B T)^(f/2)), the Gamma distribution: 2 K / k_B T
    is χ² with f degrees of freedom.

    Args:
        energy: K > 0, any shape.
        temperature: T.
        dof: f: 3n, or 3n − 3 if the centre of mass is at rest.
        k_B: Boltzmann's constant.
    """
    energy = as_array("energy", energy)
    expect(bool((energy > 0).all()), "energy", "positive energies", energy.min())
    expect_size("dof", dof)
    expect(temperature > 0, "temperature", "a positive number", temperature)
    kT, half = k_B * temperature, 0.5 * dof
    return np.exp((half - 1) * np.log(energy / kT) - energy / kT - math.lgamma(half)) / kT
