"""Frames whose labels no trained model fits are named, and no others."""

from __future__ import annotations

import pytest
import torch
from frames import dataset

from molnets.dynamics import lennard_jones
from molnets.training import Dataset, Evaluation
from molnets.training.doubtful import doubtful, in_words
from molnets.training.errors import errors_of

EVERY = torch.arange(24)


def found_by(data: Dataset, noise: float, frames: torch.Tensor = EVERY) -> Evaluation:
    """Return what a good model says of frames: the truth, and noise of a part of the forces."""
    pos = data.pos.view(24, 7, 3)[frames]
    energies, forces = lennard_jones()(pos)
    draw = torch.Generator().manual_seed(0)
    size = forces.square().mean(dim=(1, 2), keepdim=True).sqrt()
    forces = forces + noise * size * torch.randn(forces.shape, generator=draw).double()
    energies = energies - 100.0 + noise * torch.randn(len(frames), generator=draw).double()
    return Evaluation(errors_of(energies, forces), energies.view(-1, 1), forces.view(-1, 3), None)


@pytest.mark.parametrize("factor", [-1.0, 0.0, 1 / 23.06, 23.06, 1 / 0.529, 0.529])
def test_wrong_forces_of_a_few_frames_are_named(factor):
    data = dataset()
    atoms = data.atoms_of(torch.tensor([3, 20]))
    data.forces[atoms] *= factor
    assert doubtful(found_by(data, 0.03), data, EVERY) == {"energies": [], "forces": [3, 20]}
    some = torch.arange(5, 24)
    found = doubtful(found_by(data, 0.03, some), data, some)
    assert found["forces"] == [20]


def test_wrong_energies_of_a_few_frames_are_named():
    data = dataset()
    data.energies[5] *= 27.2
    assert doubtful(found_by(data, 0.03), data, EVERY) == {"energies": [5], "forces": []}


@pytest.mark.parametrize("noise", [0.01, 0.1, 0.5, 2.0])
def test_sound_frames_are_not_doubted(noise):
    """However good the model is; nor by one that says nothing."""
    data = dataset()
    found = found_by(data, noise)
    assert doubtful(found, data, EVERY) == {"energies": [], "forces": []}
    nothing = found._replace(forces=torch.zeros_like(found.forces))
    assert doubtful(nothing, data, EVERY)["forces"] == []


def test_labels_that_are_not_there_are_not_doubted():
    data = dataset()
    data.labels = data.labels.clone()
    data.labels[3] = False
    data.forces[data.atoms_of(torch.tensor([3]))] = 0.0
    data.energies[3] = 0.0
    assert doubtful(found_by(data, 0.03), data, EVERY) == {"energies": [], "forces": []}
    data.labels[:] = False
    data.forces[data.atoms_of(torch.tensor([4]))] = 0.0
    assert doubtful(found_by(data, 0.03), data, EVERY)["forces"] == []


def test_few_frames_say_nothing():
    data = dataset()
    data.forces[data.atoms_of(torch.tensor([3]))] *= -1
    some = torch.arange(9)
    assert doubtful(found_by(data, 0.03, some), data, some)["forces"] == []


def test_words_name_the_first_ones():
    assert in_words({"energies": [], "forces": []}) == ""
    text = in_words({"energies": [7], "forces": [*range(30)]})
    assert text.count("\n") == 2
    assert "energies of frames 7 (1, counted from 0" in text
    assert "forces of frames 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, … (30, counted" in text
