"""The fake trajectory looks like molecular dynamics and has the sheet's shapes."""

from __future__ import annotations

import pytest
import torch

from fake_data import MIN_DISTANCE, fake_batch, fake_trajectory, lattice_sites


def test_default_is_the_seven_atom_cluster():
    positions, energies, forces = fake_trajectory()
    assert positions.shape == forces.shape == (10, 7, 3)
    assert energies.shape == (10, 1)
    distances = torch.cdist(lattice_sites(7)[:1], lattice_sites(7)).flatten()
    torch.testing.assert_close(distances, torch.tensor([0.0] + [1.1] * 6))


def test_seed_decides():
    first, again, other = fake_trajectory(seed=3), fake_trajectory(seed=3), fake_trajectory(seed=4)
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


@pytest.mark.parametrize("n_atoms", [2, 7, 100])
def test_no_two_atoms_come_too_close(n_atoms):
    for seed in range(5):
        positions = fake_trajectory(300, n_atoms, seed).positions
        distances = torch.cdist(positions, positions) + 9 * torch.eye(n_atoms)
        assert distances.min() > MIN_DISTANCE


def test_consecutive_frames_are_correlated_and_distant_ones_differ():
    moves = fake_trajectory(400).positions - lattice_sites(7)
    spread = moves.square().mean()
    one_step = (moves[1:] * moves[:-1]).mean() / spread
    assert one_step > 0.9
    assert (moves[200:] * moves[:-200]).mean() / spread < 0.5
    assert (moves[1:] - moves[:-1]).abs().max() > 1e-3


def test_forces_drive_the_motion():
    positions, _, forces = fake_trajectory(200)
    acceleration = positions[2:] - 2 * positions[1:-1] + positions[:-2]  # mass 1, time step 1
    error = (acceleration - forces[1:-1]).abs().max()
    assert error < 0.02 * forces.abs().max()


def test_forces_are_minus_the_gradient_of_the_energy():
    positions, energies, forces = fake_trajectory(2000)
    steps = positions.diff(dim=0)
    work = (0.5 * (forces[1:] + forces[:-1]) * steps).sum(dim=(1, 2))  # exact for a harmonic force
    torch.testing.assert_close(-energies.diff(dim=0).flatten(), work, rtol=0, atol=1e-6)
    assert work.abs().max() > 1e-4


def test_batch_has_the_shapes_of_the_sheet():
    z, pos, batch = fake_batch(4, 7)
    assert z.tolist() == [[1.0]] * 4
    assert torch.equal(pos.view(4, 7, 3), fake_trajectory(4, 7).positions)
    assert batch.tolist() == [0] * 7 + [1] * 7 + [2] * 7 + [3] * 7


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: fake_trajectory(0), "n_frames: expected a positive integer, got 0"),
        (lambda: fake_trajectory(5, -1), "n_atoms: expected a positive integer, got -1"),
        (lambda: fake_batch(2.0), "batch_size: expected a positive integer, got 2.0"),
        (lambda: fake_batch(2, 0), "n_atoms: expected a positive integer, got 0"),
    ],
)
def test_bad_sizes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
