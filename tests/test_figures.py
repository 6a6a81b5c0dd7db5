"""Figures show the numbers that they were given, beside the curves that theory gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from systems import normal, random

from molnets.dynamics import mean_absolute_error, root_mean_square_error
from molnets.dynamics.figures import (
    energy_trace_figure,
    g_of_r_figure,
    learning_curve_figure,
    parity_figure,
    velocity_figure,
)


def x_and_y(ax, number: int) -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.asarray(data, dtype=float) for data in ax.lines[number].get_data())


def test_parity_figure_shows_the_data():
    x, y = random(0).normal(size=(2, 5, 3))
    fig = parity_figure(x, torch.tensor(y), "force", "eV/Å")
    parity, rest = fig.axes
    assert np.array_equal(x_and_y(parity, 0)[0], x.flatten())
    assert x_and_y(parity, 0)[1] == pytest.approx(y.flatten())
    assert x_and_y(rest, 0)[1] == pytest.approx((y - x).flatten())
    assert parity.get_xlabel() == "reference force (eV/Å)"
    assert rest.get_ylabel() == "residual (eV/Å)"
    assert f"MAE {mean_absolute_error(x, y):.3g}" in rest.get_title()
    assert f"RMSE {root_mean_square_error(x, y):.3g}" in rest.get_title()


def test_energy_trace_figure_shows_the_data():
    t, kinetic = np.arange(5.0), np.array([1.0, 2, 4, 2, 1])
    potential = 10.0 - kinetic + 0.1 * t
    fig = energy_trace_figure(t, potential, kinetic, "fs", "eV")
    all_three, alone = fig.axes
    assert x_and_y(all_three, 0)[1] == pytest.approx(potential - potential.mean())
    assert x_and_y(all_three, 1)[1] == pytest.approx(kinetic - 2)
    assert x_and_y(alone, 0)[0] == pytest.approx(t)
    assert x_and_y(alone, 0)[1] == pytest.approx(0.1 * t)
    assert "(fs)" in alone.get_xlabel() and "(eV)" in alone.get_ylabel()


def test_g_of_r_figure_shows_the_data():
    shown = {"reference": normal(0), "model": normal(1)}
    (ax,) = g_of_r_figure(shown, "σ").axes
    for number, found in enumerate(shown.values()):
        x, y = x_and_y(ax, number)
        assert x == pytest.approx(found.centers)
        assert y == pytest.approx(found.density)
        band = ax.collections[number].get_paths()[0].vertices[:, 1]
        assert band.max() == pytest.approx((found.density + 2 * found.error).max())
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["reference", "model"]
    assert "(σ)" in ax.get_xlabel()


@pytest.mark.parametrize("at_rest", [False, True])
def test_velocity_figure_fits_maxwell_and_boltzmann(at_rest):
    """Both histograms agree with their curves, also for heavy atoms and a resting centre."""
    masses = np.array([1.0, 12.0, 16.0])
    v = random(0).normal(size=(2500, 20, 3, 3)) * np.sqrt(0.5 * 0.8 / masses)[:, None]
    if at_rest:
        v -= (masses[:, None] * v).sum(axis=2, keepdims=True) / masses.sum()
    fig = velocity_figure(v, masses, 0.8, "eV", at_rest=at_rest, bins=60, k_B=0.5)
    for ax in fig.axes:
        (x, measured), (fine, expected) = x_and_y(ax, 0), x_and_y(ax, 1)
        expected = np.interp(x, fine, expected)
        width = x[1] - x[0]
        samples = 50_000 * (9 if ax is fig.axes[0] else 1)
        error = np.sqrt(expected / samples / width)  # of a count that is Poisson's
        correlated = 3 if at_rest else 1  # components that share a centre of mass
        assert (np.abs(measured - expected) < 5 * correlated * error + 0.02 * expected.max()).all()
        assert expected.sum() * width == pytest.approx(1, abs=0.01)
    assert f"{6 if at_rest else 9} degrees" in fig.axes[1].get_legend().get_texts()[1].get_text()
    assert "(eV)" in fig.axes[1].get_xlabel()


@pytest.mark.parametrize("form", ["svg", "pdf"])
def test_figures_can_be_saved(tmp_path, form):
    t = np.arange(5.0)
    figures = [
        parity_figure(random(0).normal(size=3000), random(1).normal(size=3000), "energy", "eV"),
        energy_trace_figure(t, t, -t, "fs", "eV"),
        g_of_r_figure({"one": normal(0)}, "Å"),
        velocity_figure(random(0).normal(size=(9, 2, 3, 3)), [1, 1, 1], 1.0, "ε"),
    ]
    for fig in figures:
        assert isinstance(fig, Figure)
        fig.savefig(tmp_path / f"figure.{form}")
        assert (tmp_path / f"figure.{form}").stat().st_size > 1000


def test_learning_curve_figure_shows_the_history():
    history = {"epoch": [1, 2, 3], "loss": [4.0, 2.0, 1.0], "energy_mae": [3.0, 2.0, 1.0],
               "force_mae": [9.0, 6.0, 3.0]}  # fmt: skip
    axes = learning_curve_figure(history, "eV").axes
    for ax, name in zip(axes, ("loss", "energy_mae", "force_mae"), strict=True):
        np.testing.assert_array_equal(ax.lines[0].get_ydata(), history[name])
    assert axes[1].get_ylabel() == "energy MAE (eV)"


V = np.ones((2, 2, 3, 3))
ERRORS = [
    (lambda: energy_trace_figure([1, 2], [1], [1, 2], "fs", "eV"), r"potential: expected shape"),
    (lambda: velocity_figure(V, [1, 1], 1.0, "eV"), r"masses: expected shape \(3,\), got \(2,\)"),
    (lambda: velocity_figure(V[0], [1, 1, 1], 1.0, "eV"), "velocities: expected shape"),
    (
        lambda: velocity_figure(V[:, :, :1], [1], 1.0, "eV", at_rest=True),
        "at_rest: expected False for one atom, got True",
    ),
]


@pytest.mark.parametrize(("attempt", "message"), ERRORS)
def test_errors_name_the_argument(attempt, message):
    with pytest.raises(ValueError, match=message):
        attempt()
