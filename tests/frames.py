"""What the tests of training share: frames of a small cluster, a small network, and trainings."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from fake_data import fake_trajectory
from molnets.dynamics import lennard_jones
from molnets.networks.schnet import Sizes
from molnets.training import Dataset, Settings, Trainer, standardized

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("SCHNET_DATA", ROOT.parent / "shared" / "data"))
SIZES = Sizes(8, 8, 2, 10, cutoff=2.0)
CELL = 2.9 * torch.eye(3, dtype=torch.float64)  # each atom sees images of others, none of itself

# the same for the command, with one block
FLAGS = ["--batch-size=4", "--num-validation=4", "--num-test=4", "--cutoff=2.0"]
FLAGS += ["--dim-embedding=8", "--num-filters=8", "--num-interactions=1", "--num-gaussians=8"]


def arrays(num_frames: int = 24) -> dict[str, np.ndarray]:
    """Return frames of a Lennard-Jones cluster in MD17's names; two elements that are equal."""
    positions = fake_trajectory(num_frames).positions.double()
    energies, forces = lennard_jones()(positions)
    z = np.array([1, 6, 1, 6, 1, 6, 1])
    return {"R": positions.numpy(), "E": energies.numpy() - 100.0, "F": forces.numpy(), "z": z}


def npz(path: Path, **changes: np.ndarray) -> Path:
    """Write the frames, some arrays changed or added."""
    np.savez(path, **(arrays() | changes))
    return path


def dataset(cells: torch.Tensor | None = None) -> Dataset:
    """Return the frames as a dataset, in one cell each if there is one, (3, 3)."""
    source = {name: torch.from_numpy(x) for name, x in arrays().items()}
    num_frames, n = source["R"].shape[:2]
    return Dataset(
        source["z"].repeat(num_frames), source["R"].reshape(-1, 3), source["E"],
        source["F"].reshape(-1, 3), torch.full((num_frames,), n),
        cells=None if cells is None else cells.expand(num_frames, 3, 3),
    )  # fmt: skip


def of_sizes() -> Dataset:
    """Return five frames of 3, 1, 5, 2 and 4 atoms; the third is periodic, the last a slab."""
    n_atoms = torch.tensor([3, 1, 5, 2, 4])
    generator = torch.Generator().manual_seed(0)
    pos, forces = torch.randn(2, 15, 3, generator=generator, dtype=torch.float64)
    energies = torch.randn(5, generator=generator, dtype=torch.float64)
    z = torch.tensor([8, 1, 1, 6, 8, 6, 1, 1, 7, 6, 8, 1, 7, 7, 6])
    cells = torch.zeros(5, 3, 3, dtype=torch.float64)
    cells[2] = torch.tensor([[3.0, 0.2, 0], [0, 2.8, -0.3], [0.4, 0, 3.1]])
    cells[4, :2] = torch.tensor([[0.1, 0, 2.4], [0, 2.6, 0.2]])  # along y and z
    return Dataset(z, pos, energies, forces, n_atoms, cells)


def trainer_for(data: Dataset, out: Path, sizes: Sizes = SIZES, **settings) -> Trainer:
    """Return a trainer on the first 16 frames, with the next 4 to choose the best weights."""
    torch.manual_seed(0)
    train, validation = torch.arange(16), torch.arange(16, 20)
    potential = standardized(sizes, data, train)
    return Trainer(potential, data, train, validation, Settings(**settings), out)
