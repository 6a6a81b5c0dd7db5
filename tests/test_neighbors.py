"""Periodic neighbour lists against loops over images, ASE, and fresh lists along trajectories."""

from __future__ import annotations

import copy
import itertools
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.neighborlist import neighbor_list
from contract import random_orthogonal
from torch import Tensor

from fake_data import fake_batch, lattice_sites
from md.neighbors import PeriodicGraph
from schnet_helpers import RadiusInteractionGraph

SHAPES = ("triclinic", "thin", "left-handed", "tiny")
ALL_PBC = list(itertools.product([False, True], repeat=3))


@pytest.fixture(autouse=True)
def one_thread():
    """Compute on one thread: on a busy machine, tiny systems wait for a second one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random_cell(shape: str) -> Tensor:
    """Return three lattice vectors, (3, 3), of a volume that is not tiny."""
    while True:
        cell = 3 * torch.eye(3).double() + torch.randn(3, 3).double()
        cell[2] *= 0.25 if shape == "thin" else 1
        cell *= 0.4 if shape == "tiny" else 1
        cell[0] *= -1 if shape == "left-handed" else 1
        flatness = torch.linalg.svdvals(cell)[-1] / torch.linalg.svdvals(cell)[0]
        if flatness > 0.08:
            return cell


def random_atoms(n: int, cell: Tensor) -> Tensor:
    """Return n positions, some of them outside the cell."""
    return (3 * torch.rand(n, 3).double() - 1) @ cell


def one_sample(pos: Tensor) -> Tensor:
    return torch.zeros(len(pos), dtype=torch.int64)


def edges(graph: PeriodicGraph, pos: Tensor, batch: Tensor | None = None) -> np.ndarray:
    """Return the edges as sorted rows j, i, d_ij."""
    edge_index, d_ij = graph(pos, one_sample(pos) if batch is None else batch)
    return sort_edges(*edge_index.cpu().numpy(), d_ij.detach().cpu().numpy())


def sort_edges(j: np.ndarray, i: np.ndarray, d_ij: np.ndarray) -> np.ndarray:
    order = np.lexsort([d_ij, i, j])
    return np.stack([j, i, d_ij], axis=1)[order]


def edges_by_loops(pos: Tensor, cell: Tensor, pbc: tuple[bool, ...], cutoff: float) -> np.ndarray:
    """Return all edges, image after image, over more images than can be in range."""
    points, cell = pos.numpy(), cell.numpy()
    spread = np.ptp(points @ np.linalg.inv(cell), axis=0)
    heights = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0)  # between opposite faces
    reach = [int(cutoff / h + s) + 1 if p else 0 for h, s, p in zip(heights, spread, pbc)]  # noqa: B905
    found = []
    for image in itertools.product(*(range(-r, r + 1) for r in reach)):
        vectors = points[None] + np.array(image) @ cell - points[:, None]  # [i, j]
        d = np.sqrt((vectors**2).sum(axis=2))
        if image == (0, 0, 0):
            np.fill_diagonal(d, np.inf)
        found += [(j, i, d[i, j]) for i, j in np.argwhere(d < cutoff)]
    return sort_edges(*np.array(found).reshape(-1, 3).T)


def assert_same_edges(actual: np.ndarray, expected: np.ndarray, atol: float = 1e-12) -> None:
    assert len(actual) == len(expected)
    np.testing.assert_array_equal(actual[:, :2], expected[:, :2])
    np.testing.assert_allclose(actual[:, 2], expected[:, 2], rtol=0, atol=atol)


def silicon_frames() -> list[Atoms]:
    """Return every 20th periodic silicon frame of the data folder, of 2 to 64 atoms."""
    default = Path(__file__).parents[1] / "../shared/data"
    path = Path(os.environ.get("SCHNET_DATA", default)) / "mlearn_Si.npz"
    if not path.exists():
        pytest.skip(f"{path} is not there: it comes with the data folder, see SCHNET_DATA")
    data = np.load(path, allow_pickle=False)
    positions = np.split(data["R"], data["n_atoms"].cumsum()[:-1])
    frames = list(zip(positions, data["cell"], strict=True))[::20]
    return [Atoms(f"Si{len(R)}", R, cell=cell, pbc=True) for R, cell in frames]


def of_atoms(atoms: Atoms) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(map(torch.tensor, (atoms.positions, atoms.cell.array[None], atoms.pbc)))


# The edges


@pytest.mark.parametrize("pbc", ALL_PBC)
@pytest.mark.parametrize("shape", SHAPES)
def test_edges_equal_loops_over_images(shape, pbc):
    torch.manual_seed(0)
    self_images = several = 0
    for cutoff in (0.7, 1.9, 2.6):
        for n in (1, 2, 6):
            cell = random_cell(shape)
            pos = random_atoms(n, cell)
            expected = edges_by_loops(pos, cell, pbc, cutoff)
            graph = PeriodicGraph(cutoff).set_cells(cell.unsqueeze(0), pbc)
            assert_same_edges(edges(graph, pos), expected)
            self_images += (expected[:, 0] == expected[:, 1]).sum()
            several += len(expected) - len(np.unique(expected[:, :2], axis=0))
    if shape == "tiny" and any(pbc):  # control: the cutoff does reach beyond the box
        assert self_images > 10
        assert several > 10


def test_edges_equal_those_of_ase():
    primitive = bulk("Si")
    crystal = bulk("Si", cubic=True).repeat((2, 1, 1))
    shear = np.array([[0, 0.7, 0], [0, 0, 0.4], [1.1, 0, 0]])
    crystal.set_cell(crystal.cell.array + shear, scale_atoms=True)
    crystal.rattle(0.2, seed=0)
    slab = crystal.copy()
    slab.pbc = (True, False, True)
    for atoms in (primitive, crystal, slab):
        assert_edges_equal_those_of_ase(atoms, cutoff=6.0)


def test_edges_of_real_frames_equal_those_of_ase():
    for atoms in silicon_frames():
        assert_edges_equal_those_of_ase(atoms, cutoff=5.0)


def assert_edges_equal_those_of_ase(atoms: Atoms, cutoff: float) -> None:
    i, j, d = neighbor_list("ijd", atoms, cutoff)
    pos, cells, pbc = of_atoms(atoms)
    graph = PeriodicGraph(cutoff).set_cells(cells, pbc)
    assert len(i) > 10
    assert_same_edges(edges(graph, pos), sort_edges(j, i, d), atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_only_edges_shorter_than_the_cutoff(dtype):
    pos, cells = torch.full((1, 3), 0.3, dtype=dtype), torch.eye(3, dtype=dtype).unsqueeze(0)
    just_over = float(np.nextafter(np.float32(1), np.float32(2)))
    assert len(edges(PeriodicGraph(1.0).set_cells(cells), pos)) == 0
    assert len(edges(PeriodicGraph(just_over).set_cells(cells), pos)) == 6


def test_without_cells_it_is_the_graph_of_isolated_molecules():
    _, pos, batch = fake_batch(3, 60)
    graph = PeriodicGraph(2.5)
    edge_index, d_ij = RadiusInteractionGraph(2.5)(pos, batch)
    expected = sort_edges(*edge_index.numpy(), d_ij.numpy())
    assert_same_edges(edges(graph, pos, batch), expected, atol=0)
    graph.set_cells(4 * torch.eye(3).expand(3, 3, 3), False)
    assert_same_edges(edges(graph, pos, batch), expected, atol=0)
    graph.set_cells(4 * torch.eye(3).expand(3, 3, 3), True)  # control: images add edges
    assert len(edges(graph, pos, batch)) > len(expected)
    graph.set_cells(None)
    assert_same_edges(edges(graph, pos, batch), expected, atol=0)


@pytest.mark.parametrize("squared", [1, 2, 3, 4])
def test_rounding_does_not_decide_about_atoms_at_the_cutoff(squared):
    pos = lattice_sites(300) + 0.1  # a lattice: many distances equal the cutoff up to rounding
    cutoff = 1.1 * math.sqrt(squared)
    edge_index, d_ij = RadiusInteractionGraph(cutoff)(pos, one_sample(pos))
    expected = sort_edges(*edge_index.numpy(), d_ij.numpy())
    assert (np.abs(expected[:, 2] - cutoff) < 1e-5).any()  # control: some were rounded down
    for skin in (0.0, 1.1 * math.sqrt(squared + 1) - cutoff):
        assert_same_edges(edges(PeriodicGraph(cutoff, skin), pos), expected, atol=0)


def test_atom_without_neighbours():
    edge_index, d_ij = PeriodicGraph(1.0)(torch.zeros(1, 3), torch.tensor([0]))
    assert edge_index.shape == (2, 0)
    assert edge_index.dtype == torch.int64
    assert d_ij.shape == (0,)


def random_batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return pos, batch, cells and pbc of four samples of different size, cell and periodicity."""
    torch.manual_seed(1)
    sizes = (3, 1, 5, 4)
    cells = torch.stack([random_cell(shape) for shape in SHAPES])
    pos = torch.cat([0.5 * random_atoms(n, cell) for n, cell in zip(sizes, cells, strict=True)])
    batch = torch.arange(4).repeat_interleave(torch.tensor(sizes))
    pbc = torch.tensor([[True, True, True], [True, False, True], [False] * 3, [False, True, False]])
    return pos, batch, cells, pbc


def test_batch_equals_one_by_one():
    pos, batch, cells, pbc = random_batch()
    edge_index, d_ij = PeriodicGraph(4.0).set_cells(cells, pbc)(pos, batch)
    first = 0
    for sample in range(4):
        own = batch == sample
        alone = PeriodicGraph(4.0).set_cells(cells[sample, None], pbc[sample])
        here = batch[edge_index[1]] == sample
        j, i = edge_index[:, here].numpy() - first
        assert here.any()
        assert_same_edges(edges(alone, pos[own]), sort_edges(j, i, d_ij[here].numpy()), atol=1e-14)
        first += int(own.sum())


def test_edges_do_not_depend_on_the_image_that_an_atom_is_in():
    torch.manual_seed(2)
    cell = random_cell("triclinic")
    pos = random_atoms(6, cell)
    moved = pos + torch.randint(-3, 4, (6, 3)).double() @ cell
    graph = PeriodicGraph(3.0).set_cells(cell.unsqueeze(0))
    assert_same_edges(edges(graph, moved), edges(graph, pos), atol=1e-11)
    assert (moved - pos).abs().max() > 1


def test_distances_are_differentiable_in_positions_and_cells():
    pos, batch, cells, pbc = random_batch()
    pos.requires_grad_(), cells.requires_grad_()
    for skin in (0.0, 0.5):
        graph = PeriodicGraph(4.0, skin)

        def lengths(pos: Tensor, cells: Tensor, graph: PeriodicGraph = graph) -> Tensor:
            return graph.set_cells(cells, pbc)(pos, batch)[1]

        assert torch.autograd.gradcheck(lengths, (pos, cells))
    edge_index, d_ij = graph(pos, batch)
    by_pos, by_cell = torch.autograd.grad(d_ij.square().sum(), (pos, cells))
    assert by_pos.abs().max() > 0.1
    assert (by_cell[pbc].abs().amax(dim=1) > 0.1).all()
    assert not by_cell[~pbc].any()
    assert (edge_index[0] == edge_index[1]).any()  # control: images of the atom itself are there


# The skin


def crystal(shape: str = "triclinic", n: int = 12) -> tuple[Tensor, Tensor]:
    """Return positions (n, 3) and a cell (1, 3, 3) that is smaller than the cutoffs used."""
    torch.manual_seed(3)
    cell = random_cell(shape)
    return random_atoms(n, cell), cell.unsqueeze(0)


def assert_equal_to_fresh_list(graph: PeriodicGraph, pos: Tensor, cells: Tensor, pbc) -> None:
    fresh = PeriodicGraph(graph.cutoff).set_cells(cells, pbc)
    assert_same_edges(edges(graph.set_cells(cells, pbc), pos), edges(fresh, pos), atol=0)


@pytest.mark.parametrize("moving_cell", [False, True])
@pytest.mark.parametrize("pbc", [True, (True, True, False)])
def test_kept_list_equals_a_fresh_one_along_a_trajectory(pbc, moving_cell):
    pos, cells = crystal()
    graph = PeriodicGraph(2.6, skin=0.4)
    sizes = set()
    for _ in range(100):
        pos = pos + 0.02 * torch.randn(12, 3).double()
        if moving_cell:
            strain = torch.eye(3) + 0.004 * torch.randn(3, 3).double()
            pos, cells = pos @ strain, cells @ strain
        assert_equal_to_fresh_list(graph, pos, cells, pbc)
        sizes.add(len(edges(graph, pos)))
    assert 5 < graph.num_builds < 50
    assert len(sizes) > 5  # control: edges come and go


def test_list_is_rebuilt_when_an_atom_has_moved_more_than_half_the_skin():
    start, cells = crystal()
    graph = PeriodicGraph(2.6, skin=0.4).set_cells(cells)
    edges(graph, start)
    direction = torch.tensor([2.0, -1.0, 2.0]).double() / 3
    for fraction, builds in [(0.3, 1), (-0.49, 1), (0.499, 1), (0.501, 2), (0.1, 2), (0.0, 3)]:
        pos = start.clone()
        pos[5] += fraction * 0.4 * direction  # from the start, or from the place of the last build
        edges(graph, pos)
        assert graph.num_builds == builds


def test_what_half_the_skin_must_cover():
    """Two atoms just outside the list come as close as they can before it is rebuilt."""
    pos = torch.tensor([[0.0, 0.0, 0.0], [3.01, 0.0, 0.0]]).double()
    graph = PeriodicGraph(2.6, skin=0.4)
    assert len(edges(graph, pos)) == 0
    closer = pos + torch.tensor([[0.199, 0.0, 0.0], [-0.199, 0.0, 0.0]])
    assert len(edges(graph, closer)) == 0
    assert graph.num_builds == 1
    closest = pos + torch.tensor([[0.21, 0.0, 0.0], [-0.21, 0.0, 0.0]])
    assert len(edges(graph, closest)) == 2
    assert graph.num_builds == 2


def test_list_is_rebuilt_when_the_cell_has_shrunk_by_the_skin():
    pos, cells = crystal()
    limit = 2.6 / 3.0  # shrunk so far, an atom outside the list can be at the cutoff
    rotation = random_orthogonal(1)
    for x, yz, builds in [
        (1.02, 1.02, 1),
        (limit + 1e-3, limit + 1e-3, 1),
        (limit - 1e-3, limit - 1e-3, 2),
        (limit + 1e-3, 1.1, 1),
        (limit - 1e-3, 1.1, 2),  # along one direction is enough
    ]:
        graph = PeriodicGraph(2.6, skin=0.4).set_cells(cells)
        edges(graph, pos)
        for turn in (torch.eye(3).double(), rotation):
            strain = torch.diag(torch.tensor([x, yz, yz]).double()) @ turn
            assert_equal_to_fresh_list_up_to_rounding(graph, pos @ strain, cells @ strain)
        assert graph.num_builds == builds


def assert_equal_to_fresh_list_up_to_rounding(
    graph: PeriodicGraph, pos: Tensor, cells: Tensor
) -> None:
    fresh = PeriodicGraph(graph.cutoff).set_cells(cells)
    assert_same_edges(edges(graph.set_cells(cells), pos), edges(fresh, pos))


def test_cell_that_changes_around_atoms_at_rest_rebuilds_the_list():
    pos, cells = crystal()
    graph = PeriodicGraph(2.6, skin=0.1)
    assert_equal_to_fresh_list(graph, pos, cells, True)
    assert_equal_to_fresh_list(graph, pos, 1.2 * cells, True)
    assert graph.num_builds == 2


def test_without_skin_any_movement_rebuilds_the_list():
    pos, cells = crystal()
    graph = PeriodicGraph(2.6).set_cells(cells)
    for displacement, builds in [(0.0, 1), (0.0, 1), (1e-9, 2), (1e-9, 2), (0.0, 3)]:
        edges(graph, pos + displacement)
        assert graph.num_builds == builds


def test_another_system_rebuilds_the_list():
    pos, cells = crystal(n=4)
    graph = PeriodicGraph(2.6, skin=0.4)
    both = cells.expand(2, 3, 3)
    builds = [
        (pos, [0, 0, 0, 0], cells, True, 1),
        (pos[:3], [0, 0, 0], cells, True, 2),
        (pos, [0, 0, 1, 1], both, True, 3),
        (pos, [0, 1, 1, 1], both, True, 4),
        (pos, [0, 1, 1, 1], both, (True, True, False), 5),
        (pos.float(), [0, 1, 1, 1], both.float(), (True, True, False), 6),
        (pos.float(), [0, 1, 1, 1], None, True, 7),
        (pos.float(), [0, 1, 1, 1], None, True, 7),
    ]
    for pos, batch, cells, pbc, expected in builds:
        graph.set_cells(cells, pbc)(pos, torch.tensor(batch))
        assert graph.num_builds == expected


def test_positions_changed_in_place_are_seen():
    pos, cells = crystal()
    graph = PeriodicGraph(2.6, skin=0.1).set_cells(cells)
    edges(graph, pos)
    pos[0] += 0.3
    cells *= 0.9
    assert_equal_to_fresh_list(graph, pos, cells, True)
    assert graph.num_builds == 2


def test_copy_of_a_graph_whose_cells_have_a_gradient():
    pos, cells = crystal()
    graph = PeriodicGraph(2.6).set_cells(1.1 * cells.requires_grad_())
    assert_same_edges(edges(copy.deepcopy(graph), pos), edges(graph, pos))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_edges_on_a_cuda_device():
    pos, batch, cells, pbc = random_batch()
    expected = edges(PeriodicGraph(2.5).set_cells(cells, pbc), pos, batch)
    graph = PeriodicGraph(2.5, skin=0.3)
    for strain in (1.001, 1.0):  # the second time on a list that is kept
        graph.set_cells(strain * cells.cuda(), pbc)
        edge_index, d_ij = graph(strain * pos.cuda(), batch.cuda())
        assert edge_index.is_cuda
        assert d_ij.is_cuda
    assert graph.num_builds == 1
    assert_same_edges(sort_edges(*edge_index.cpu().numpy(), d_ij.cpu().numpy()), expected)


# Errors


def test_atoms_in_one_place_are_an_error():
    cells = 2 * torch.eye(3).unsqueeze(0)
    batch = torch.tensor([0, 0])
    for second in ([0.5, 0.0, 0.0], [2.5, 0.0, -2.0]):  # the other atom, and an image of it
        pos = torch.tensor([[0.5, 0.0, 0.0], second])
        with pytest.raises(
            ValueError, match=r"pos: expected distinct positions, got atoms \[[01],"
        ):
            PeriodicGraph(1.0).set_cells(cells)(pos, batch)
    PeriodicGraph(1.0)(pos, batch)  # control: apart if there are no images


EYE = torch.eye(3).unsqueeze(0)
FLAT = torch.tensor([[[1.0, 0, 0], [0, 1, 0], [1, 1, 0]]])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"cutoff": 0.0}, "cutoff: expected a positive finite number, got 0.0"),
        ({"cutoff": float("nan")}, "cutoff: expected a positive"),
        ({"cutoff": 1.0, "skin": -0.1}, "skin: expected a finite number, not negative, got -0.1"),
        ({"cutoff": 1.0, "skin": float("inf")}, "skin: expected a finite"),
    ],
)
def test_wrong_lengths_are_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        PeriodicGraph(**arguments)


@pytest.mark.parametrize(
    "cells, pbc, error, message",
    [
        (torch.eye(3), True, ValueError, r"cells: expected shape \(B, 3, 3\), got \(3, 3\)"),
        (EYE.long(), True, TypeError, "cells: expected a floating dtype, got torch.int64"),
        (EYE * float("nan"), True, ValueError, "cells: expected finite numbers, got .*nan"),
        (FLAT, True, ValueError, "cells: expected independent vectors .* for sample 0"),
        (0 * EYE, (False, True, False), ValueError, "cells: expected independent vectors"),
        (EYE, (1, 1, 1), TypeError, "pbc: expected dtype torch.bool, got torch.int64"),
        (EYE, (True, True), ValueError, r"pbc: expected shape \(\), \(3,\) or \(1, 3\), got"),
    ],
)
def test_wrong_cells_are_errors(cells, pbc, error, message):
    with pytest.raises(error, match=message):
        PeriodicGraph(1.0).set_cells(cells, pbc)


def test_vectors_of_directions_that_are_not_periodic_play_no_part():
    pos = torch.tensor([[0.1, 0.2, 0.3], [0.2, 0.9, 5.0]])
    for third in ([1.0, 1, 0], [0.0, 0, 0], [0.0, 0, 7]):
        cells = torch.tensor([[[1.0, 0, 0], [0, 1, 0], third]])
        graph = PeriodicGraph(1.1, skin=0.1).set_cells(cells, (True, True, False))
        found = edges(graph, pos)
        assert len(found) == 8
        edges(graph.set_cells(cells + FLAT.flip(1) * 1e-3, (True, True, False)), pos)


@pytest.mark.parametrize(
    "pos, batch, error, message",
    [
        (torch.zeros(2, 2), [0, 0], ValueError, r"pos: expected shape \(2, 3\), got \(2, 2\)"),
        (torch.zeros(3, 3), [0, 0], ValueError, r"pos: expected shape \(2, 3\), got \(3, 3\)"),
        (torch.zeros(2, 3).long(), [0, 0], TypeError, "pos: expected a floating-point dtype"),
        (torch.full((2, 3), np.nan), [0, 0], ValueError, "pos: expected finite .* for atom 0"),
        (torch.rand(2, 3), [0, 1], ValueError, "cells: expected 2 as in batch, got 1"),
        (torch.rand(2, 3), [1, 0], ValueError, "batch: expected sample numbers in ascending order"),
        (
            torch.rand(2, 3).double(),
            [0, 0],
            TypeError,
            "cells: expected dtype torch.float64 as pos",
        ),
    ],
)
def test_wrong_positions_are_errors(pos, batch, error, message):
    with pytest.raises(error, match=message):
        PeriodicGraph(1.0).set_cells(EYE)(pos, torch.tensor(batch))


def test_edges_and_offsets_give_the_lengths():
    pos = 3 * torch.rand(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    batch = torch.zeros(5, dtype=torch.int64)
    graph = PeriodicGraph(4.0).set_cells(2.5 * torch.eye(3, dtype=torch.float64).unsqueeze(0))
    edge_index, d_ij = graph(pos, batch)
    j, i = edge_index
    edges, offset = graph.edges_and_offsets(pos, batch)
    assert torch.equal(edges, edge_index)
    torch.testing.assert_close((pos[j] + offset - pos[i]).norm(dim=1), d_ij)
    assert offset.abs().max() >= 2.5
