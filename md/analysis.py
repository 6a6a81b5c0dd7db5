"""What a simulation says: distributions with error bars, drift, errors, and their figures.

Axes:   T frames, R independent replicas, n atoms, P = n (n − 1) / 2 pairs, K bins.
Units:  the caller's; figures take their names as arguments.
Input:  tensors or arrays; output: arrays and figures. Replicas are the independent samples: frames
        of one replica are correlated, so error bars come from the spread over replicas alone.

[1] Phipson & Smyth, Stat. Appl. Genet. Mol. Biol. 2010, 9, 39 (p-values of permutation tests).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

MANY_POINTS = 2000  # more than these are drawn as pixels, so that a vector figure stays small


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


def _array(name: str, values: ArrayLike) -> Array:
    if hasattr(values, "detach"):
        values = values.detach().cpu()
    array = np.asarray(values, dtype=np.float64)
    _expect(array.size > 0, name, "at least one number", f"shape {array.shape}")
    _expect(bool(np.isfinite(array).all()), name, "finite numbers", "NaN or infinity")
    return array


def _expect(ok: bool, name: str, expected: str, got: object) -> None:
    if not ok:
        raise ValueError(f"{name}: expected {expected}, got {got}")


def pair_distances(positions: ArrayLike) -> Array:
    """Return the distances of all pairs of atoms: (..., n, 3) -> (..., P)."""
    x = _array("positions", positions)
    ok = x.ndim >= 2 and x.shape[-1] == 3 and x.shape[-2] > 1
    _expect(ok, "positions", "shape (..., n, 3) with two atoms or more", x.shape)
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
    values = _array("values", values)
    _expect(values.ndim >= 2, "values", "shape (T, R, ...)", values.shape)
    _expect(bins > 0, "bins", "a positive number of bins", bins)
    _expect(lower < upper, "lower, upper", "lower < upper", (lower, upper))
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
    x = _array("positions", positions)
    _expect(x.ndim == 4, "positions", "shape (T, R, n, 3)", x.shape)
    return distribution(pair_distances(x), bins, 0.0, r_max)


def distribution_distance(p: ArrayLike, q: ArrayLike, bin_width: float) -> float:
    """Return the total variation distance of two densities, (K,): 0 if equal, 1 if disjoint.

    D(p, q) = ½ Σ_k |p_k − q_k| · width, the largest difference in the probability of any event.
    """
    p, q = _array("p", p), _array("q", q)
    _expect(p.shape == q.shape, "q", f"shape {p.shape} as p", q.shape)
    _expect(bin_width > 0, "bin_width", "a positive width", bin_width)
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
    _expect(same, "b", "the bins of a", "other edges")
    sizes = len(a.replicas), len(b.replicas)
    _expect(min(sizes) > 1, "a, b", "two replicas or more in each", sizes)
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
    energy, t = _array("total_energy", total_energy), _array("times", times)
    _expect(energy.ndim in (1, 2), "total_energy", "shape (T,) or (T, R)", energy.shape)
    _expect(t.shape == energy.shape[:1], "times", f"shape {energy.shape[:1]}", t.shape)
    _expect(len(t) > 2, "times", "three frames or more", len(t))
    _expect(num_atoms > 0, "num_atoms", "a positive number of atoms", num_atoms)
    e = energy.reshape(len(t), -1) / num_atoms  # (T, R)
    t, e = t - t.mean(), e - e.mean(axis=0)
    spread = (t**2).sum()
    _expect(spread > 0, "times", "different times", "one time only")
    slope = t @ e / spread  # (T,) (T, R) -> (R,)
    residual = e - np.outer(t, slope)
    return Drift(slope, np.sqrt((residual**2).sum(axis=0) / (len(t) - 2) / spread))


def mean_absolute_error(reference: ArrayLike, prediction: ArrayLike) -> float:
    """Return the mean of |prediction − reference| over all components."""
    return float(np.abs(_residuals(reference, prediction)).mean())


def root_mean_square_error(reference: ArrayLike, prediction: ArrayLike) -> float:
    """Return the root of the mean of (prediction − reference)² over all components."""
    return math.sqrt((_residuals(reference, prediction) ** 2).mean())


def _residuals(reference: ArrayLike, prediction: ArrayLike) -> Array:
    reference, prediction = _array("reference", reference), _array("prediction", prediction)
    ok = prediction.shape == reference.shape
    _expect(ok, "prediction", f"shape {reference.shape} as reference", prediction.shape)
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
    energy = _array("energy", energy)
    _expect(bool((energy > 0).all()), "energy", "positive energies", energy.min())
    _expect(dof > 0, "dof", "a positive number of degrees of freedom", dof)
    _expect(temperature > 0, "temperature", "a positive number", temperature)
    kT, half = k_B * temperature, 0.5 * dof
    return np.exp((half - 1) * np.log(energy / kT) - energy / kT - math.lgamma(half)) / kT


def _panels(rows: int, columns: int, width: float, height: float) -> tuple[Figure, Array]:
    fig = Figure(figsize=(width, height), layout="constrained")  # outside pyplot: shown only once
    return fig, fig.subplots(rows, columns, squeeze=False).flatten()


def _legend_above(ax: Axes) -> None:
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, columnspacing=1)


def parity_figure(reference: ArrayLike, prediction: ArrayLike, label: str, unit: str) -> Figure:
    """Draw predictions over the reference, with the diagonal, and the residuals beside them.

    Args:
        reference: any shape.
        prediction: the same shape.
        label: what they are, e.g. "force".
        unit: their unit, e.g. "eV/Å".
    """
    residual = _residuals(reference, prediction).flatten()
    x = _array("reference", reference).flatten()
    fig, (parity, rest) = _panels(1, 2, 6.4, 3.0)
    for ax, y in ((parity, x + residual), (rest, residual)):
        ax.plot(x, y, ".", markersize=2, rasterized=len(x) > MANY_POINTS)
        ax.set_xlabel(f"reference {label} ({unit})")
    parity.axline((x[0], x[0]), slope=1, color="black", linewidth=0.8, zorder=0)
    parity.set(ylabel=f"predicted {label} ({unit})", aspect="equal", adjustable="datalim")
    rest.axhline(0, color="black", linewidth=0.8, zorder=0)
    mae, rmse = np.abs(residual).mean(), math.sqrt((residual**2).mean())
    rest.set(ylabel=f"residual ({unit})", title=f"MAE {mae:.3g}, RMSE {rmse:.3g} {unit}")
    return fig


def energy_trace_figure(
    times: ArrayLike, potential: ArrayLike, kinetic: ArrayLike, time_unit: str, energy_unit: str
) -> Figure:
    """Draw potential, kinetic and total energy from their means, and the total on its own scale.

    Args:
        times: (T,).
        potential: (T,).
        kinetic: (T,).
        time_unit: e.g. "fs".
        energy_unit: e.g. "eV".
    """
    t, potential = _array("times", times), _array("potential", potential)
    kinetic = _array("kinetic", kinetic)
    for name, energy in (("potential", potential), ("kinetic", kinetic)):
        _expect(energy.shape == t.shape, name, f"shape {t.shape} as times", energy.shape)
    total = potential + kinetic
    fig, (all_three, alone) = _panels(2, 1, 6.4, 4.0)
    for label, y in (("potential", potential), ("kinetic", kinetic), ("total", total)):
        all_three.plot(t, y - y.mean(), label=label)
    all_three.set_ylabel(f"energy − mean ({energy_unit})")
    _legend_above(all_three)
    alone.plot(t, total - total[0], color="C2")
    alone.set(xlabel=f"time ({time_unit})", ylabel=f"total − first ({energy_unit})")
    return fig


def _draw(ax: Axes, shown: Distribution, label: str) -> None:
    (line,) = ax.plot(shown.centers, shown.density, label=label)
    low, high = shown.density - 2 * shown.error, shown.density + 2 * shown.error
    ax.fill_between(shown.centers, low, high, color=line.get_color(), alpha=0.3, linewidth=0)


def g_of_r_figure(distributions: Mapping[str, Distribution], unit: str) -> Figure:
    """Draw some g(r), each with a band of two standard errors to either side.

    Args:
        distributions: each with its label.
        unit: unit of length.
    """
    fig, (ax,) = _panels(1, 1, 5.0, 3.0)
    for label, shown in distributions.items():
        _draw(ax, shown, label)
    ax.set(xlabel=f"pair distance $r$ ({unit})", ylabel=f"$g(r)$ (1/{unit})", ylim=(0, None))
    _legend_above(ax)
    return fig


def velocity_figure(
    velocities: ArrayLike, masses: ArrayLike, temperature: float, energy_unit: str,
    *, at_rest: bool = False, bins: int = 50, k_B: float = 1.0,
) -> Figure:  # fmt: skip
    """Draw velocity components and kinetic energies beside what Maxwell and Boltzmann expect.

    A component of v_i is normal with the variance k_B T / m_i, or (1 − m_i / Σ m) k_B T / m_i if
    the centre of mass is at rest; it is drawn in units of its standard deviation.

    Args:
        velocities: (T, R, n, 3).
        masses: (n,).
        temperature: T.
        energy_unit: unit of the kinetic energy.
        at_rest: the centre of mass is at rest: 3n − 3 degrees of freedom instead of 3n.
        bins: number of bins.
        k_B: Boltzmann's constant.
    """
    v, m = _array("velocities", velocities), _array("masses", masses)
    _expect(v.ndim == 4 and v.shape[3] == 3, "velocities", "shape (T, R, n, 3)", v.shape)
    _expect(m.shape == v.shape[2:3], "masses", f"shape {v.shape[2:3]}", m.shape)
    _expect(temperature > 0, "temperature", "a positive number", temperature)
    _expect(not (at_rest and len(m) == 1), "at_rest", "False for one atom", at_rest)
    dof = 3 * len(m) - (3 if at_rest else 0)
    deviation = np.sqrt(k_B * temperature / m * (1 - m / m.sum() if at_rest else 1))
    fig, (left, right) = _panels(1, 2, 6.4, 3.0)
    reduced = v / deviation[:, None]
    reach = np.abs(reduced).max()
    _draw(left, distribution(reduced, bins, -reach, reach), "simulation")
    x = np.linspace(-reach, reach, 200)
    left.plot(x, np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi), "k--", label="Gaussian")
    left.set(xlabel="velocity component / its standard deviation", ylabel="density")
    kinetic = 0.5 * (m[:, None] * v**2).sum(axis=(2, 3))  # (T, R, n, 3) -> (T, R)
    _draw(right, distribution(kinetic, bins, 0.0, kinetic.max()), "simulation")
    energy = np.linspace(0, kinetic.max(), 201)[1:]
    expected = kinetic_energy_density(energy, temperature, dof, k_B=k_B)
    right.plot(energy, expected, "k--", label=f"$\\chi^2$, {dof} degrees of freedom")
    right.set(xlabel=f"kinetic energy ({energy_unit})", ylabel=f"density (1/{energy_unit})")
    for ax in (left, right):
        _legend_above(ax)
    return fig


def learning_curve_figure(history: Mapping[str, ArrayLike], energy_unit: str = "") -> Figure:
    """Draw the loss of the training frames and the errors of the validation frames by epoch.

    Args:
        history: the columns `epoch`, `loss`, `energy_mae`, `force_mae`, each (T,).
        energy_unit: for the labels; forces are per length.
    """
    fig, axes = _panels(1, 3, 6.4, 2.2)
    labels = {"loss": "training loss", "energy_mae": "energy MAE", "force_mae": "force MAE"}
    for ax, (name, label) in zip(axes, labels.items(), strict=True):
        ax.semilogy(_array("epoch", history["epoch"]), _array(name, history[name]), linewidth=1)
        unit = f" ({energy_unit})" if energy_unit and name == "energy_mae" else ""
        ax.set(xlabel="epoch", ylabel=f"{label}{unit}")
    return fig
