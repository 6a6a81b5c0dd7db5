"""Frames whose labels no trained model fits are named, and no others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from frames import DATA, ROOT, arrays, dataset, npz

from molnets import checkpoint
from molnets.dynamics import lennard_jones
from molnets.training import Dataset, Evaluation, evaluate, joined, load
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
    energies = data.energies.mean().expand(24, 1)
    nothing = found._replace(forces=torch.zeros_like(found.forces), energies=energies)
    assert doubtful(nothing, data, EVERY) == {"energies": [], "forces": []}


def test_labels_that_are_not_there_are_not_doubted():
    data = dataset()
    data.labels = data.labels.clone()
    data.labels[3] = False
    data.forces[data.atoms_of(torch.tensor([3]))] = 0.0
    data.energies[3] = 0.0
    assert doubtful(found_by(data, 0.03), data, EVERY) == {"energies": [], "forces": []}
    data.labels[:, 1] = False  # energies alone
    data.energies[5] *= 27.2
    assert doubtful(found_by(data, 0.03), data, EVERY) == {"energies": [], "forces": []}
    data.labels[4:16, 1] = True  # enough to know that the forces of frame 5 fit
    assert doubtful(found_by(data, 0.03), data, EVERY) == {"energies": [5], "forces": []}


def test_few_frames_say_nothing():
    data = dataset()
    data.forces[data.atoms_of(torch.tensor([3]))] *= -1
    for count in (9, 10):
        some = torch.arange(count)
        found = doubtful(found_by(data, 0.03, some), data, some)
        assert found["forces"] == ([3] if count == 10 else [])


def test_frames_at_rest_do_not_make_the_others_doubtful():
    """Of symmetric cells, whose forces are 0 for the model, too."""
    data = dataset()
    found = found_by(data, 0.5)
    rest = data.atoms_of(torch.arange(16))
    data.forces[rest] = 0.0
    found.forces[rest] = 0.0
    assert doubtful(found, data, EVERY)["forces"] == []


def test_energies_of_rare_molecules_are_not_doubted():
    """An element that is fitted worse is no mistake in the labels."""
    data = dataset()
    data.z = data.z.clone()
    data.z[data.atoms_of(torch.arange(18, 24))] = 8
    found = found_by(data, 0.03)
    found.energies[18:] += 3.0
    assert doubtful(found, data, EVERY)["energies"] == []
    found.energies[2] += 3.0  # control: one of many
    assert doubtful(found, data, EVERY)["energies"] == [2]


def test_numbers_are_those_of_the_files(tmp_path):
    """Frames that are there twice count, and so do those of files before."""
    source = arrays()
    twice = np.concatenate([[0, 0, 0], np.arange(1, 24)])
    paths = [npz(tmp_path / "a.npz", **{key: source[key][:5] * 1.01 for key in "REF"}),
             npz(tmp_path / "b.npz", **{key: source[key][twice] for key in "REF"})]  # fmt: skip
    data = load(*paths)
    assert (len(data), data.num_read) == (29, 31)
    assert data.numbers.tolist() == [*range(6), *range(8, 31)]
    whole = joined([load(paths[1]), data])
    assert whole.numbers.tolist() == [0, *range(3, 26), *(data.numbers + 26).tolist()]
    assert whole.subset(torch.tensor([30, 1])).numbers.tolist() == [34, 3]
    data = load(paths[1])
    data.forces[data.atoms_of(torch.tensor([4]))] *= -1
    assert doubtful(found_by(data, 0.03), data, EVERY)["forces"] == [6]


@pytest.mark.skipif(
    not (DATA / "rmd17_ethanol.npz").exists(), reason=f"no rmd17_ethanol.npz in {DATA}"
)
def test_flipped_frames_of_ethanol_are_named_by_a_trained_network():
    data, wrong = load(DATA / "rmd17_ethanol.npz"), [5, 77, 150]
    model, some = checkpoint.load(ROOT / "benchmarks" / "ethanol.pt"), torch.arange(200)
    found = evaluate(model, data, some)
    assert doubtful(found, data, some) == {"energies": [], "forces": []}
    data.forces[data.atoms_of(torch.tensor(wrong))] *= -1
    assert doubtful(found, data, some) == {"energies": [], "forces": wrong}


def test_words_name_the_first_ones():
    assert in_words([]) == in_words([{"energies": [], "forces": []}]) == ""
    many = {"energies": [], "forces": [*range(5, 30)]}
    text = in_words([many, {"energies": [7], "forces": [*range(5)]}])
    assert text.count("\n") == 2
    assert "energies of frames 7 (1, counted from 0" in text
    assert "forces of frames 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, … (30, counted" in text
