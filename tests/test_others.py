"""What compares other networks with ours is right on networks whose errors are known."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks import others_measures as measures
from benchmarks.others import OURS
from benchmarks.others_page import LABELS, RECIPES, page

ROOT = Path(__file__).parent.parent
NUMBERS = json.loads((ROOT / "benchmarks" / "others.json").read_text())
Z = np.array([6, 1, 8, 1])
CUTOFF = 5.0


def frames(count: int = 12) -> np.ndarray:
    """Return frames of a bent chain of four atoms, in Å, off the origin."""
    chain = np.array([[3.0, -1, 2], [4.1, -0.8, 2], [4.6, 0.4, 2.3], [3.7, 1.1, 3.2]])
    return chain + 0.1 * np.random.default_rng(0).normal(size=(count, 4, 3))


def pair_calculator(jump: float = 0.0, bias: float = 0.0) -> measures.Calculator:
    """Return Σ (1 − d²/r_c²)³ over pairs within r_c, and what is wrong on purpose.

    Args:
        jump: what each pair adds inside the cutoff, in eV.
        bias: slope of a field along x, which does not turn with the molecule.
    """

    def calculate(z: np.ndarray, R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        R = R.astype(float)
        apart = R[:, :, None] - R[:, None]
        inside = 1 - (apart**2).sum(axis=-1) / CUTOFF**2
        inside = np.where(inside > 0, inside, 0.0) * (1 - np.eye(len(z)))
        energy = (0.5 * inside**3 + 0.5 * jump * (inside > 0)).sum(axis=(1, 2))
        forces = (6 / CUTOFF**2 * inside**2)[..., None] * apart
        return energy + bias * R[..., 0].sum(axis=1), forces.sum(axis=2) - bias * np.eye(3)[0]

    return calculate


def measured(calculator: measures.Calculator, shift: float = 0.0) -> dict:
    """Return the measures of a calculator where the truth is the faultless one, shifted."""
    R = frames()
    asked = measures.questions(R, CUTOFF)
    E, F = pair_calculator()(Z, R)
    answers = measures.answers_of(calculator, Z, asked)
    return measures.measure(asked, answers, E + shift, F - 2 * shift)


def test_faultless_calculator_has_no_errors():
    found = measured(pair_calculator())
    assert found["rotation_energy"] < 1e-13
    assert found["rotation_forces"] < 1e-13
    assert found["jump"] < 1e-13
    assert found["crossings"] > 5
    assert found["force_mae"] < 1e-6  # the test frames are asked in float32


def test_errors_are_those_that_were_planted():
    found = measured(pair_calculator(), shift=0.25)
    assert found["energy_mae"] == pytest.approx(0.25, abs=1e-5)
    assert found["force_mae"] == pytest.approx(0.5, abs=1e-5)


def test_field_that_does_not_turn_is_seen():
    R = frames()
    E, F = pair_calculator()(Z, R)
    found = measured(pair_calculator(bias=1e-6))
    Q, x = measures.orthogonal_matrices(measures.NUM_MATRICES), R[: measures.NUM_TURNED].sum(1)
    moved = 1e-6 * np.abs(np.einsum("ta,mab->tmb", x, Q)[..., 0] - x[:, None, 0]).max()
    assert found["rotation_energy"] == pytest.approx(moved / E.std(), rel=1e-6)
    turned = 1e-6 * np.abs(np.eye(3)[0] - Q[:, 0]).max()
    assert found["rotation_forces"] == pytest.approx(turned / math.sqrt((F**2).mean()), rel=1e-6)
    assert found["jump"] < 1e-13  # a field is smooth


def test_planted_jump_is_seen_once_a_crossing():
    asked = measures.questions(frames(), CUTOFF)
    E, F = pair_calculator(jump=1e-3)(np.tile(Z, 2), asked.near)
    jumps = measures.jumps(E, F, asked.near)
    np.testing.assert_allclose(jumps, -1e-3, rtol=1e-6)  # one pair leaves at each
    assert measured(pair_calculator(jump=1e-3))["jump"] == pytest.approx(1e-3, rel=1e-6)


def test_matrices_are_orthogonal_and_half_of_them_reflect():
    Q = measures.orthogonal_matrices(30)
    np.testing.assert_allclose(Q @ Q.transpose(0, 2, 1), np.broadcast_to(np.eye(3), Q.shape),
                               atol=1e-12)  # fmt: skip
    np.testing.assert_allclose(np.sort(np.linalg.det(Q)), [-1.0] * 15 + [1.0] * 15)


def test_crossings_hold_a_pair_at_the_cutoff_and_none_too_close():
    near = measures.crossings(frames()[0], CUTOFF)
    d = np.linalg.norm(near[:, :4, None] - near[:, None, 4:], axis=-1).reshape(len(near), -1)
    assert d.min() > measures.CLOSEST - 1e-5
    assert ((d[::2] < CUTOFF).sum(axis=1) - (d[1::2] < CUTOFF).sum(axis=1) == 1).all()


def test_every_network_stands_on_the_page():
    text = (ROOT / "benchmarks" / "others.md").read_text()
    assert text == page(NUMBERS)
    absent = set(LABELS) - set(NUMBERS["networks"])
    assert all(f"\n- {LABELS[name]}: " in text.partition("## Not run")[2] for name in absent)
    assert absent <= set(RECIPES)  # ours are there
    for name, row in NUMBERS["networks"].items():
        line = next(x for x in text.splitlines() if x.startswith(f"| {LABELS[name]} |"))
        assert f"{row['parameters']:,}" in line
        assert f"{1000 * row['force_mae']:.2f}" in line
        assert ("†" in line) != (name in RECIPES)
    for absent in ("SphereNet", "Tensor field networks"):
        assert absent in text.partition("## Not run")[2]


def test_ours_are_the_numbers_of_their_own_file():
    ours = json.loads((ROOT / "benchmarks" / "networks.json").read_text())
    assert set(OURS.values()) == set(ours)
    for key, name in OURS.items():
        row, shown = ours[name], NUMBERS["networks"][key]
        assert shown["force_mae"] == row["ethanol_force_mae"]
        assert shown["ms_64"] == row["ms_64"]
        assert shown["epochs"] == row["ethanol_epochs"]
