"""Frames are known again by their signatures, and no others are."""

from __future__ import annotations

import pytest
import torch
from frames import dataset, of_sizes

from molnets.training import Dataset
from molnets.training.signatures import are_among, signatures

CELL = torch.tensor([[9.0, 0.0, 0.0], [1.0, 8.5, 0.0], [-0.5, 0.7, 9.5]], dtype=torch.float64)


def moved(data: Dataset, pos: torch.Tensor, cells: torch.Tensor | None = None) -> Dataset:
    """Return the frames with other positions, (N, 3), and cells."""
    return Dataset(data.z, pos, data.energies, data.forces, data.n_atoms, cells=cells)


def among(some: Dataset, others: Dataset) -> list[bool]:
    """Return which of some frames are among others."""
    return are_among(signatures(some), signatures(others)).tolist()


def test_signature_is_of_the_frame_alone():
    """Whatever frames, larger or periodic ones, are beside it."""
    data = of_sizes()
    for frame in range(len(data)):
        alone = data.subset(torch.tensor([frame]))
        torch.testing.assert_close(signatures(alone)[0], signatures(data)[frame])


def test_signatures_are_those_of_every_version():
    """Checkpoints hold them; the numbers are those of today."""
    found = signatures(dataset())[0, :3]
    assert found.tolist() == pytest.approx([12533895992407, -0.4728075644, -0.0170222202], rel=1e-6)


def test_frames_in_another_order_are_found():
    data = of_sizes()
    some = data.subset(torch.tensor([4, 0, 2]))
    assert among(data, some) == [True, False, True, False, True]
    assert among(some, data) == 3 * [True]
    assert are_among(signatures(data), signatures(data)[:0]).tolist() == 5 * [False]


@pytest.mark.parametrize("cell", [None, CELL])
def test_frames_are_known_after_rounding_and_in_other_images(cell):
    data = dataset(cell)
    if cell is None:
        pos = data.pos + torch.tensor([3.0, -20.0, 0.5])
    else:
        steps = torch.randint(-2, 3, data.pos.shape, generator=torch.Generator().manual_seed(0))
        pos = data.pos + steps.double() @ cell
    for digits in (8, 4):
        assert all(among(moved(data, pos.round(decimals=digits), data.cells), data))
    assert all(among(moved(data, pos.float(), data.cells), data))


@pytest.mark.parametrize("cell", [None, CELL])
def test_another_frame_is_none_of_these(cell):
    """One atom by 0.005 Å, as for phonons; another element; two atoms in each other's place."""
    data = dataset(cell)
    pos = data.pos.clone()
    pos[::7, 0] += 0.005
    assert not any(among(moved(data, pos, data.cells), data))
    swapped = data.pos.view(24, 7, 3)[:, [2, 1, 0, 3, 4, 5, 6]].reshape(-1, 3)
    assert not any(among(moved(data, swapped, data.cells), data))
    other = moved(data, data.pos, data.cells)
    other.z = other.z.clone()
    other.z[::7] = 8
    assert not any(among(other, data))
    if cell is not None:
        assert not any(among(moved(data, data.pos, 1.001 * data.cells), data))
