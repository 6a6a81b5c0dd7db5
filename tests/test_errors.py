"""The loss and the errors, against loops and numpy."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
import torch
from contract import assert_equal
from frames import CELL, SIZES, arrays, dataset, of_sizes

from molnets.potential import energy_and_forces
from molnets.training import (
    evaluate,
    factors_of,
    force_errors_by_element,
    loss_of,
    standardized,
)


@pytest.fixture
def potential():
    torch.manual_seed(0)
    return standardized(SIZES, dataset(), torch.arange(16))


def test_loss_equals_loops():
    target = dataset().take(torch.tensor([0, 1, 2]), torch.float64)
    energy, forces = target.energies + 0.3, target.forces + 0.1 * torch.arange(63).view(21, 3)
    force_terms = []
    for sample in range(3):
        error = (forces - target.forces)[target.batch == sample]
        force_terms.append(sum(float(row @ row) for row in error) / 7)
    expected = 0.5 * 0.3**2 + 2.0 * sum(force_terms) / 3
    factors = factors_of(dataset(), 0.5, 2.0, 0.0)[:3]
    assert float(loss_of((energy, forces), target, factors)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("labelled", [False, True])
def test_loss_of_samples_of_all_sizes_equals_loops(labelled):
    """Forces count by atom, energies by atom of the mean size, virials by atom, frames by weight.

    What is not labelled counts nothing, whatever it is; the second frame is an isolated atom, which
    does not count in the mean size of 3.5 atoms.
    """
    data, generator = of_sizes(), torch.Generator().manual_seed(2)
    if labelled:
        data.virials = torch.randn(5, 3, 3, generator=generator).double()
        data.labels = torch.tensor([[1, 1, 1], [0, 1, 0], [1, 0, 1], [1, 1, 0], [1, 1, 1]]).bool()
        data.weights = torch.tensor([1.0, 2.0, 0.5, 0.0, 3.0]).double()
    target = data.take(torch.arange(5), torch.float64)
    energy = target.energies + torch.tensor([0.1, -0.2, 0.3, 0.5, -0.7]).double().view(5, 1)
    forces = target.forces + torch.linspace(-1, 2, 45, dtype=torch.float64).view(15, 3)
    virial = torch.randn(5, 3, 3, generator=generator).double()
    e, f, start = energy.numpy(), forces.numpy(), 0
    expected = 0.0
    for sample, n in enumerate([3, 1, 5, 2, 4]):
        own, (a, c, s) = slice(start, start + n), data.labels[sample].double().tolist()
        w = float(data.weights[sample]) / 5
        squares = ((f[own] - target.forces.numpy()[own]) ** 2).sum()
        expected += a * w * 0.3 * ((e[sample, 0] - float(target.energies[sample])) / n * 3.5) ** 2
        expected += c * w * 1.7 * squares / n
        if labelled:
            difference = (virial - data.virials)[sample].numpy() / n
            expected += s * w * 0.4 * (difference**2).sum()
        start += n
    loss = loss_of((energy, forces, virial), target, factors_of(data, 0.3, 1.7, 0.4))
    assert float(loss) == pytest.approx(expected, rel=1e-12)


def test_errors_are_those_of_numpy(potential):
    errors, energy, forces, virials = evaluate(potential, dataset(), torch.arange(20, 24), 3)
    target = arrays()
    e, f = energy.numpy()[:, 0] - target["E"][20:], forces.numpy() - target["F"][20:].reshape(-1, 3)
    assert errors.energy_mae == pytest.approx(np.abs(e).mean())
    assert errors.force_mae == pytest.approx(np.abs(f).mean())
    assert errors.energy_rmse == pytest.approx(np.sqrt((e**2).mean()))
    assert errors.force_rmse == pytest.approx(np.sqrt((f**2).mean()))
    assert errors.energy_per_atom_mae == pytest.approx(np.abs(e).mean() / 7)
    assert virials is None and set(errors.known()) == {*asdict(errors)} - {"virial_per_atom_mae"}


def test_errors_are_of_what_is_labelled(potential):
    data, frames = dataset(CELL), torch.tensor([20, 3, 22])
    data.virials = torch.randn(24, 3, 3, generator=torch.Generator().manual_seed(0)).double()
    data.labels = torch.ones(24, 3, dtype=torch.bool)
    data.labels[20, 0] = data.labels[3, 1] = data.labels[22, 2] = False
    errors, energy, forces, virials = evaluate(potential, data, frames)
    e = (energy.flatten() - data.energies[frames])[1:]
    assert errors.energy_mae == pytest.approx(float(e.abs().mean()))
    f = (forces - data.forces[data.atoms_of(frames)]).view(3, 7, 3)[[0, 2]]
    assert errors.force_mae == pytest.approx(float(f.abs().mean()))
    v = (virials - data.virials[frames])[:2] / 7
    assert errors.virial_per_atom_mae == pytest.approx(float(v.abs().mean()))
    z, pos, batch, *_ = data.take(frames, torch.float32)
    expected = potential.energy_forces_virial(z, pos, batch, CELL.float().expand(3, 3, 3))[2]
    torch.testing.assert_close(virials, expected.double(), rtol=1e-4, atol=1e-5)
    data.labels[:] = False
    assert evaluate(potential, data, frames).errors.known() == {}


@pytest.mark.parametrize("cells", [None, CELL])
def test_what_a_model_says_of_frames_is_what_it_says_of_their_positions(potential, cells):
    potential.double()
    data, frames = dataset(cells), torch.tensor([21, 3, 17])
    errors, energy, forces, _ = evaluate(potential, data, frames, batch_size=2)
    z, pos, batch, *_ = data.take(frames, torch.float64)
    own = None if cells is None else cells.expand(3, 3, 3)
    expected = energy_and_forces(potential, z, pos, batch, own)
    assert_equal(energy, expected[0])
    assert_equal(forces, expected[1])
    assert forces.abs().max() > 1e-3
    assert errors.energy_mae == pytest.approx(
        float((energy.flatten() - data.energies[frames]).abs().mean())
    )


def test_errors_by_element_are_those_of_each_atom_alone():
    source = of_sizes()
    predicted = source.forces + torch.linspace(-1, 2, 45, dtype=torch.float64).view(15, 3)
    z = source.z.view(-1, 1)
    errors = force_errors_by_element(z, source.forces, predicted)
    assert list(errors) == [1, 6, 7, 8]
    residuals: dict[int, list[float]] = {}
    for element, right, wrong in zip(z, source.forces, predicted, strict=True):
        residuals.setdefault(int(element), []).extend((wrong - right).tolist())
    for element, (count, mae, rmse) in errors.items():
        own = np.array(residuals[element])
        assert count == len(own) / 3
        assert mae == pytest.approx(np.abs(own).mean())
        assert rmse == pytest.approx(np.sqrt((own**2).mean()))
    assert len({mae for _, mae, _ in errors.values()}) == 4  # control: no two are equal
