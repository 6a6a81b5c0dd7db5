"""Figures of a simulation: each takes arrays and returns a figure.

Axes:   T frames, R independent replicas, n atoms.
Units:  the caller's; their names, for the labels, are arguments.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from molnets.checks import as_array, expect
from molnets.dynamics.analysis import (
    Array,
    Distribution,
    distribution,
    kinetic_energy_density,
    residuals,
)

MANY_POINTS = 2000  # more than these are drawn as pixels, so that a vector figure stays small


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
    residual = residuals(reference, prediction).flatten()
    x = as_array("reference", reference).flatten()
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
    t, potential = as_array("times", times), as_array("potential", potential)
    kinetic = as_array("kinetic", kinetic)
    for name, energy in (("potential", potential), ("kinetic", kinetic)):
        expect(energy.shape == t.shape, name, f"shape {t.shape} as times", energy.shape)
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
    v, m = as_array("velocities", velocities), as_array("masses", masses)
    expect(v.ndim == 4 and v.shape[3] == 3, "velocities", "shape (T, R, n, 3)", v.shape)
    expect(m.shape == v.shape[2:3], "masses", f"shape {v.shape[2:3]}", m.shape)
    expect(temperature > 0, "temperature", "a positive number", temperature)
    expect(not (at_rest and len(m) == 1), "at_rest", "False for one atom", at_rest)
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
        history: the columns `epoch`, `loss`, and `energy_mae`, `force_mae` if known, each (T,).
        energy_unit: for the labels; forces are per length.
    """
    labels = {"loss": "training loss", "energy_mae": "energy MAE", "force_mae": "force MAE"}
    labels = {name: label for name, label in labels.items() if name in history}
    fig, axes = _panels(1, len(labels), 6.4, 2.2)
    for ax, (name, label) in zip(axes, labels.items(), strict=True):
        ax.semilogy(as_array("epoch", history["epoch"]), as_array(name, history[name]), linewidth=1)
        unit = f" ({energy_unit})" if energy_unit and name == "energy_mae" else ""
        ax.set(xlabel="epoch", ylabel=f"{label}{unit}")
    return fig
