"""The graph, by all its searches: against loops over images, ASE, and fresh lists."""

from __future__ import annotations

import copy
import itertools
import math
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.neighborlist import neighbor_list
from contract import random_orthogonal
from torch import Tensor
from vesin import NeighborList

import molnets.edges
from fake_data import fake_batch, lattice_sites
from molnets.edges import MOST_IMAGES, Graph, repeated
from schnet_helpers import SEARCH_MARGIN, RadiusInteractionGraph

SHAPES = ("triclinic", "thin", "left-handed", "tiny", "flat")
FLATTEST = {"thin": 0.08, "flat": 0.01}
ALL_PBC = list(itertools.product([False, True], repeat=3))

every_search = pytest.mark.usefixtures("edge_search")


def random_cell(shape: str) -> Tensor:
    """Return three lattice vectors, (3, 3), of a volume that is not tiny."""
    while True:
        cell = 3 * torch.eye(3).double() + torch.randn(3, 3).double()
        cell[2] *= {"thin": 0.25, "flat": 0.05}.get(shape, 1)
        cell *= 0.4 if shape == "tiny" else 1
        cell[0] *= -1 if shape == "left-handed" else 1
        flatness = torch.linalg.svdvals(cell)[-1] / torch.linalg.svdvals(cell)[0]
        if flatness > FLATTEST.get(shape, 0.08):
            return cell


def random_atoms(n: int, cell: Tensor) -> Tensor:
    """Return n positions, some of them outside the cell."""
    return (3 * torch.rand(n, 3).double() - 1) @ cell


def one_sample(pos: Tensor) -> Tensor:
    return torch.zeros(len(pos), dtype=torch.int64, device=pos.device)


def edges(
    graph: Graph, pos: Tensor, cells: Tensor | None = None, pbc=None, batch: Tensor | None = None
) -> np.ndarray:
    """Return the edges as sorted rows j, i, d_ij, vector."""
    index, vector = graph.edges(pos, one_sample(pos) if batch is None else batch, cells, pbc)
    assert index.dtype == torch.int64 and vector.dtype == pos.dtype
    return sort_edges(index, vector, torch.linalg.vector_norm(vector, dim=1))


def sort_edges(index: Tensor, vector: Tensor, d_ij: Tensor) -> np.ndarray:
    (j, i), vector, d_ij = (x.detach().cpu().numpy() for x in (index, vector, d_ij))
    rounded = vector.round(5 if vector.dtype == np.float64 else 3) + 0.0
    order = np.lexsort([*rounded.T, i, j])
    return np.column_stack([j, i, d_ij, vector])[order]


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
        found += [(j, i, d[i, j], *vectors[i, j]) for i, j in np.argwhere(d < cutoff)]
    rows = torch.tensor(np.array(found).reshape(-1, 6))
    return sort_edges(rows[:, :2].T, rows[:, 3:], rows[:, 2])


def edges_of_molecules(pos: Tensor, batch: Tensor, cutoff: float) -> np.ndarray:
    """Return the edges that the helpers' own graph finds."""
    edge_index, d_ij = RadiusInteractionGraph(cutoff)(pos, batch)
    j, i = edge_index
    return sort_edges(edge_index, pos[j] - pos[i], d_ij)


def assert_same_edges(actual: np.ndarray, expected: np.ndarray, atol: float = 1e-12) -> None:
    assert len(actual) == len(expected)
    np.testing.assert_array_equal(actual[:, :2], expected[:, :2])
    np.testing.assert_allclose(actual[:, 2:], expected[:, 2:], rtol=0, atol=atol)


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


@every_search
@pytest.mark.parametrize("axes", list(itertools.permutations((5.0, 1.4, 0.5))))
def test_cells_that_are_wider_one_way_than_the_other(axes):
    """As many images each way as it takes: another number along each vector."""
    torch.manual_seed(0)
    cell = torch.diag(torch.tensor(axes)).double() + 0.05 * torch.rand(3, 3).double()
    pos = torch.rand(4, 3).double() @ cell
    expected = edges_by_loops(pos, cell, (True, True, True), 2.0)
    assert_same_edges(edges(Graph(2.0), pos, cell.unsqueeze(0), True), expected)
    assert len(expected) > 100


@every_search
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
            assert_same_edges(edges(Graph(cutoff), pos, cell.unsqueeze(0), pbc), expected)
            self_images += (expected[:, 0] == expected[:, 1]).sum()
            several += len(expected) - len(np.unique(expected[:, :2], axis=0))
    if shape == "tiny" and any(pbc):  # control: the cutoff does reach beyond the box
        assert self_images > 10
        assert several > 10


def sheared_silicon() -> Atoms:
    crystal = bulk("Si", cubic=True).repeat((2, 1, 1))
    shear = np.array([[0, 0.7, 0], [0, 0, 0.4], [1.1, 0, 0]])
    crystal.set_cell(crystal.cell.array + shear, scale_atoms=True)
    crystal.rattle(0.2, seed=0)
    return crystal


@every_search
@pytest.mark.parametrize("pbc", ALL_PBC)
def test_edges_equal_those_of_ase(pbc):
    crystal = sheared_silicon()
    crystal.pbc = pbc
    assert_edges_equal_those_of_ase(crystal, cutoff=6.0)
    if all(pbc):
        assert_edges_equal_those_of_ase(bulk("Si"), cutoff=6.0)


@every_search
def test_edges_of_real_frames_equal_those_of_ase():
    for atoms in silicon_frames():
        assert_edges_equal_those_of_ase(atoms, cutoff=5.0)


@pytest.mark.parametrize("pbc", [True, (True, False, True), False])
def test_edges_of_a_large_sample_equal_those_of_ase(pbc):
    atoms = sheared_silicon().repeat((2, 3, 3))
    atoms.pbc = pbc
    assert len(atoms) ** 2 > molnets.edges.FEW_PAIRS  # control: this is no small sample
    assert_edges_equal_those_of_ase(atoms, cutoff=4.0)


def assert_edges_equal_those_of_ase(atoms: Atoms, cutoff: float) -> None:
    i, j, d, D = (torch.from_numpy(x) for x in neighbor_list("ijdD", atoms, cutoff))
    pos, cells, pbc = of_atoms(atoms)
    assert len(i) > 10
    expected = sort_edges(torch.stack([j, i]), D, d)
    assert_same_edges(edges(Graph(cutoff), pos, cells, pbc), expected, atol=1e-11)


@every_search
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_only_edges_shorter_than_the_cutoff(dtype):
    pos, cells = torch.full((1, 3), 0.3, dtype=dtype), torch.eye(3, dtype=dtype).unsqueeze(0)
    just_over = float(np.nextafter(np.float32(1), np.float32(2)))
    for skin in (0.0, 0.2):
        assert len(edges(Graph(1.0, skin), pos, cells)) == 0
        assert len(edges(Graph(just_over, skin), pos, cells)) == 6


@every_search
def test_without_cells_it_is_the_graph_of_isolated_molecules():
    _, pos, batch = fake_batch(3, 60)
    graph, cells = Graph(2.5), 4 * torch.eye(3).expand(3, 3, 3)
    expected = edges_of_molecules(pos, batch, 2.5)
    assert_same_edges(edges(graph, pos, batch=batch), expected, atol=0)
    assert_same_edges(edges(graph, pos, cells, False, batch), expected, atol=0)
    assert_same_edges(edges(graph, pos, 0 * cells, False, batch), expected, atol=0)
    periodic = edges(graph, pos, cells, True, batch)  # control: images add edges
    assert len(periodic) > len(expected)
    assert_same_edges(edges(graph, pos, cells, None, batch), periodic, atol=0)
    assert_same_edges(edges(graph, pos, None, False, batch), expected, atol=0)


@every_search
@pytest.mark.parametrize("squared", [1, 2, 3, 4])
def test_rounding_does_not_decide_about_atoms_at_the_cutoff(squared):
    pos = lattice_sites(300) + 0.1  # a lattice: many distances equal the cutoff up to rounding
    cutoff = 1.1 * math.sqrt(squared)
    expected = edges_of_molecules(pos, one_sample(pos), cutoff)
    assert (np.abs(expected[:, 2] - cutoff) < 1e-5).any()  # control: some were rounded down
    for skin in (0.0, 1.1 * math.sqrt(squared + 1) - cutoff):
        assert_same_edges(edges(Graph(cutoff, skin), pos), expected, atol=0)


@every_search
def test_atom_without_neighbours():
    index, vector = Graph(1.0).edges(torch.zeros(1, 3), torch.tensor([0]))
    assert index.shape == (2, 0)
    assert index.dtype == torch.int64
    assert vector.shape == (0, 3)


SIZES = (3, 1, 5, 4, 2, 1, 7)


def random_batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return pos, batch, cells and pbc of samples of different size, cell and periodicity."""
    torch.manual_seed(1)
    cells = torch.stack([random_cell(shape) for shape in (*SHAPES, "tiny", "triclinic")])
    pos = [0.5 * random_atoms(n, cell) for n, cell in zip(SIZES, cells, strict=True)]
    batch = torch.arange(len(SIZES)).repeat_interleave(torch.tensor(SIZES))
    pbc = torch.tensor(
        [
            [True, True, True],
            [True, False, True],
            [False, False, False],
            [False, True, False],
            [False, False, True],
            [True, True, True],
            [False, False, False],
        ]
    )
    cells[6] = 0
    return torch.cat(pos), batch, cells, pbc


@every_search
def test_batch_equals_one_by_one():
    pos, batch, cells, pbc = random_batch()
    index, vector = Graph(4.0).edges(pos, batch, cells, pbc)
    assert torch.equal(batch[index[0]], batch[index[1]])
    first = 0
    for sample in range(len(SIZES)):
        own, here = batch == sample, batch[index[1]] == sample
        alone = edges(Graph(4.0), pos[own], cells[sample, None], pbc[sample])
        d_ij = torch.linalg.vector_norm(vector[here], dim=1)
        together = sort_edges(index[:, here] - first, vector[here], d_ij)
        assert here.any()
        assert_same_edges(alone, together, atol=1e-14)
        first += int(own.sum())


def batch_by_loops(pos: Tensor, batch: Tensor, cells: Tensor, pbc: Tensor, cutoff: float):
    """Return the edges of a batch, sample after sample."""
    rows = []
    for sample in range(len(cells)):
        own = (batch == sample).nonzero().squeeze(1)
        cell = cells[sample] if pbc[sample].any() else torch.eye(3).double()
        found = edges_by_loops(pos[own], cell, pbc[sample].tolist(), cutoff)
        found[:, :2] += int(own[0])
        rows.append(found)
    return np.concatenate(rows)


@pytest.mark.parametrize("many_pairs", [1, 100, 2**19])
@pytest.mark.parametrize("few_pairs", [0, 10, 100, 1000, 10_000, 10**12])
def test_batches_of_small_and_large_samples_in_pieces_of_any_size(
    few_pairs, many_pairs, monkeypatch
):
    monkeypatch.setattr(molnets.edges, "FEW_PAIRS", few_pairs)
    monkeypatch.setattr(molnets.edges, "MANY_PAIRS", many_pairs)
    pos, batch, cells, pbc = random_batch()
    expected = batch_by_loops(pos, batch, cells, pbc, cutoff=3.0)
    assert_same_edges(edges(Graph(3.0), pos, cells, pbc, batch), expected)
    open_ones = edges(Graph(3.0), pos, batch=batch)
    assert_same_edges(open_ones, edges_of_molecules(pos, batch, 3.0), atol=0)


class NoSearch:
    def __init__(self, *args, **kwargs):
        pass

    def compute(self, *args):
        raise AssertionError("vesin was called")


def test_small_samples_are_compared_and_large_ones_are_not(monkeypatch):
    monkeypatch.setattr(molnets.edges, "NeighborList", NoSearch)
    pos, batch, cells, pbc = random_batch()
    assert len(edges(Graph(3.0), pos, cells, pbc, batch)) > 100
    monkeypatch.setattr(molnets.edges, "FEW_PAIRS", 2)
    with pytest.raises(AssertionError, match="vesin was called"):
        Graph(3.0).edges(pos, batch, cells, pbc)


def test_pairs_in_memory_are_about_as_many_as_said(monkeypatch):
    sizes = []

    def counted(items: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        sizes.append(int(counts.sum()))
        return repeated(items, counts)

    def largest(many_pairs: int) -> int:
        monkeypatch.setattr(molnets.edges, "MANY_PAIRS", many_pairs)
        sizes.clear()
        Graph(3.0).edges(*system)
        return max(sizes)

    monkeypatch.setattr(molnets.edges, "repeated", counted)
    monkeypatch.setattr(molnets.edges, "FEW_PAIRS", 10**12)
    pos, cells = crystal(n=40)
    system = pos, one_sample(pos), cells
    whole = largest(10**9)
    assert whole > 7 * 10**4
    for many_pairs in (10**4, 3 * 10**4):
        of_one_atom = whole / 40
        assert many_pairs / 2 < largest(many_pairs) <= many_pairs + of_one_atom


@every_search
def test_float32_finds_the_edges_of_its_own_positions():
    pos, batch, cells, pbc = random_batch()
    pos, cells = pos.float(), cells.float()
    expected = batch_by_loops(pos.double(), batch, cells.double(), pbc, cutoff=3.0)
    assert np.abs(expected[:, 2] - 3.0).min() > 1e-5  # control: no edge is in doubt
    assert_same_edges(edges(Graph(3.0), pos, cells, pbc, batch), expected, atol=2e-6)


@every_search
def test_edges_do_not_depend_on_the_image_that_an_atom_is_in():
    torch.manual_seed(2)
    cell = random_cell("triclinic")
    pos = random_atoms(6, cell)
    for far in (3, 1000):
        moved = pos + torch.randint(-far, far + 1, (6, 3)).double() @ cell
        expected = edges(Graph(3.0), pos, cell.unsqueeze(0))
        assert_same_edges(edges(Graph(3.0), moved, cell.unsqueeze(0)), expected, atol=1e-11 * far)
        assert (moved - pos).abs().max() > 1


@every_search
def test_edges_go_both_ways():
    pos, batch, cells, pbc = random_batch()
    index, vector = Graph(4.0).edges(pos, batch, cells, pbc)
    forward = sort_edges(index, vector, torch.linalg.vector_norm(vector, dim=1))
    back = sort_edges(index.flip(0), -vector, torch.linalg.vector_norm(vector, dim=1))
    assert_same_edges(back, forward)


@every_search
def test_vectors_are_differentiable_in_positions_and_cells():
    pos, batch, cells, pbc = random_batch()
    pos.requires_grad_(), cells.requires_grad_()
    for skin in (0.0, 0.5):
        graph = Graph(2.5, skin)

        def lengths(pos: Tensor, cells: Tensor, graph: Graph = graph) -> Tensor:
            index, vector = graph.edges(pos, batch, cells, pbc)
            d_ij = torch.linalg.vector_norm(vector, dim=1)
            shift = vector.detach() - (pos[index[0]] - pos[index[1]]).detach()
            order = np.lexsort([*shift.numpy().round(3).T, *index.numpy()])
            return d_ij[torch.from_numpy(order)]  # a step may change the order of the search

        assert torch.autograd.gradcheck(lengths, (pos, cells))
    index, vector = Graph(4.0).edges(pos, batch, cells, pbc)
    by_pos, by_cell = torch.autograd.grad(vector.square().sum(), (pos, cells))
    assert by_pos.abs().max() > 0.1
    assert (by_cell[pbc].abs().amax(dim=1) > 0.1).all()
    assert not by_cell[~pbc].any()
    assert (index[0] == index[1]).any()  # control: images of the atom itself are there


def test_periodicity_is_given_for_all_for_each_vector_or_for_each_sample():
    pos, batch, cells, _ = random_batch()
    cells = cells + torch.eye(3).double()
    all_of_them = edges(Graph(3.0), pos, cells, True, batch)
    for pbc in (None, [True] * 3, np.array([True] * 3), torch.ones(len(SIZES), 3).bool()):
        assert_same_edges(edges(Graph(3.0), pos, cells, pbc, batch), all_of_them, atol=0)
    some = edges(Graph(3.0), pos, cells, (True, False, True), batch)
    each = torch.tensor([[True, False, True]] * len(SIZES))
    assert_same_edges(edges(Graph(3.0), pos, cells, each, batch), some, atol=0)
    assert len(some) < len(all_of_them)


# Far away and close by


def gas(n: int, widths: tuple[float, float, float]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(n, 3, generator=generator).double() * torch.tensor(widths).double()


@every_search
@pytest.mark.parametrize("pbc", [(False, False, False), (True, True, False), (False, True, False)])
def test_an_atom_that_has_left_changes_nothing_for_the_others(pbc):
    """vesin alone would take minutes for this, or end the process."""
    pos, cells = gas(150, (12, 12, 12)), 12 * torch.eye(3).double().unsqueeze(0)
    turn = random_orthogonal(1)
    expected = edges(Graph(4.0), (pos @ turn)[1:], cells @ turn, pbc)
    expected[:, :2] += 1
    for far in (-1e3, 1e5, 1e8):
        gone = pos.clone()
        gone[0, 2] += far
        found = edges(Graph(4.0), gone @ turn, cells @ turn, pbc)
        assert len(expected) > 1000
        assert_same_edges(found, expected)


@every_search
@pytest.mark.parametrize(
    "widths, cell, pbc",
    [
        ((1e6, 1e6, 1e6), (0, 0, 0), (False, False, False)),
        ((20, 20, 1e6), (20, 20, 0), (True, True, False)),
        ((1e6, 1e6, 5), (0, 0, 5), (False, False, True)),  # vesin alone would divide by zero
        ((1e5, 1e5, 5), (1e5, 1e5, 5), (True, True, True)),  # so it would here
        ((5e3, 30, 30), (0, 0, 0), (False, False, False)),
    ],
)
def test_thin_gases(widths, cell, pbc):
    pos, cells = gas(180, widths), torch.diag(torch.tensor(cell).double()).unsqueeze(0)
    pos[1] = pos[0] + 1.0
    if max(widths) < 1e5:
        pos[90:, 0] += 1e4
    lattice = torch.where(cells[0].any(dim=1, keepdim=True), cells[0], torch.eye(3).double())
    expected = edges_by_loops(pos, lattice, pbc, 5.0)
    assert len(expected) >= 2
    assert_same_edges(edges(Graph(5.0), pos, cells, pbc), expected)


@every_search
def test_very_many_images_of_one_atom():
    n = np.arange(-15, 16)
    lattice = np.stack(np.meshgrid(n, n, n), axis=-1).reshape(-1, 3)
    d = 0.25 * np.sqrt((lattice**2).sum(axis=1))
    found = edges(Graph(3.001), torch.zeros(1, 3).double(), 0.25 * EYE.double())
    assert len(found) == ((d < 3.001) & (d > 0)).sum() > 7000


@every_search
@pytest.mark.parametrize("size", [1e-2, 1e-9, 1e-14, 1e-200])
def test_cells_far_smaller_than_the_cutoff_are_an_error(size):
    """As those in metres are: their images can't be counted, and an overflow once lost them."""
    pos, batch, cells = torch.zeros(1, 3).double(), torch.tensor([0]), size * EYE.double()
    with pytest.raises(ValueError, match=f"cells: expected at most {MOST_IMAGES} images .*, got"):
        Graph(5.0).edges(pos, batch, cells)
    index, _ = Graph(4.999).edges(pos, batch, 0.01 * EYE.double(), (True, False, False))
    assert index.shape[1] == 998  # control: one direction alone is not too much


@every_search
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_from_the_origin(dtype):
    pos, cells = crystal()
    digits = 2**3 if dtype == torch.float32 else 2**20  # that are left at 2**20
    pos, cells = ((x * digits).round().to(dtype) / digits for x in (pos, cells))
    for pbc in (True, (True, False, False), False):
        expected = edges(Graph(3.2), pos, cells, pbc)
        for skin in (0.0, 0.3):
            found = edges(Graph(3.2, skin), pos + 2.0**20, cells, pbc)
            assert len(expected) > 20
            assert_same_edges(found, expected, atol=0)


def test_an_atom_that_has_left_does_not_take_the_cell_list_from_the_others(monkeypatch):
    """A comparison of all pairs would find the same, in time N²."""
    calls = []

    class Counted(NeighborList):
        def compute(self, *args):
            calls.append(len(args[0]))
            return super().compute(*args)

    monkeypatch.setattr(molnets.edges, "NeighborList", Counted)
    pos, cells = gas(300, (12, 12, 12)), 12 * torch.eye(3).double().unsqueeze(0)
    pos[7] += torch.tensor([1e7, -2e7, 3e7])
    for pbc in (False, (True, True, False), (False, True, False)):
        assert len(edges(Graph(4.0), pos, cells, pbc)) > 1000
    assert calls == [300] * 3


# The skin


def crystal(shape: str = "triclinic", n: int = 12) -> tuple[Tensor, Tensor]:
    """Return positions (n, 3) and a cell (1, 3, 3) that is smaller than the cutoffs used."""
    torch.manual_seed(3)
    cell = random_cell(shape)
    return random_atoms(n, cell), cell.unsqueeze(0)


def assert_equal_to_fresh_list(
    graph: Graph, pos: Tensor, cells: Tensor | None, pbc=None, atol: float = 0.0
) -> None:
    fresh = edges(Graph(graph.cutoff), pos, cells, pbc)
    assert_same_edges(edges(graph, pos, cells, pbc), fresh, atol=atol)


@every_search
@pytest.mark.parametrize("moving_cell", [False, True])
@pytest.mark.parametrize("pbc", [True, (True, True, False)])
def test_kept_list_equals_a_fresh_one_along_a_trajectory(pbc, moving_cell):
    pos, cells = crystal()
    graph = Graph(2.6, skin=0.4)
    sizes = set()
    for _ in range(100):
        pos = pos + 0.02 * torch.randn(12, 3).double()
        if moving_cell:
            strain = torch.eye(3) + 0.004 * torch.randn(3, 3).double()
            pos, cells = pos @ strain, cells @ strain
        assert_equal_to_fresh_list(graph, pos, cells, pbc)
        sizes.add(len(edges(graph, pos, cells, pbc)))
    assert 5 < graph.num_builds < 50
    assert len(sizes) > 5  # control: edges come and go


def test_kept_list_of_a_batch_whose_cells_move_in_their_own_ways():
    pos, batch, cells, pbc = random_batch()
    graph = Graph(2.6, skin=0.5)
    for _ in range(60):
        strain = torch.eye(3) + 0.005 * torch.randn(len(cells), 3, 3).double()
        pos = pos + 0.01 * torch.randn_like(pos)
        pos, cells = (pos.unsqueeze(1) @ strain[batch]).squeeze(1), cells @ strain
        expected = edges(Graph(2.6), pos, cells, pbc, batch)
        assert_same_edges(edges(graph, pos, cells, pbc, batch), expected, atol=0)
    assert 2 < graph.num_builds < 50


def test_one_sample_of_a_batch_is_enough_to_rebuild_the_list():
    pos, batch, cells, pbc = random_batch()
    for sample in (0, 1, 3, 4, 5):
        for change, builds in ((0.99, 1), (0.8, 2)):
            graph = Graph(2.6, skin=0.4)
            edges(graph, pos, cells, pbc, batch)
            own, changed = batch == sample, cells.clone()
            changed[sample] *= change
            moved = torch.where(own.unsqueeze(1), change * pos, pos)
            expected = edges(Graph(2.6), moved, changed, pbc, batch)
            assert_same_edges(edges(graph, moved, changed, pbc, batch), expected)
            assert graph.num_builds == builds


def test_list_is_rebuilt_when_an_atom_has_moved_more_than_half_the_skin():
    start, cells = crystal()
    graph = Graph(2.6, skin=0.4)
    edges(graph, start, cells)
    direction = torch.tensor([2.0, -1.0, 2.0]).double() / 3
    for fraction, builds in [(0.3, 1), (-0.49, 1), (0.499, 1), (0.501, 2), (0.1, 2), (0.0, 3)]:
        pos = start.clone()
        pos[5] += fraction * 0.4 * direction  # from the start, or from the place of the last build
        edges(graph, pos, cells)
        assert graph.num_builds == builds


def test_what_half_the_skin_must_cover():
    """Two atoms just outside the list come as close as they can before it is rebuilt."""
    pos = torch.tensor([[0.0, 0.0, 0.0], [3.01, 0.0, 0.0]]).double()
    graph = Graph(2.6, skin=0.4)
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
        graph = Graph(2.6, skin=0.4)
        edges(graph, pos, cells)
        for turn in (torch.eye(3).double(), rotation):
            strain = torch.diag(torch.tensor([x, yz, yz]).double()) @ turn
            assert_equal_to_fresh_list(graph, pos @ strain, cells @ strain, atol=1e-12)
        assert graph.num_builds == builds


@every_search
def test_cell_that_changes_around_atoms_at_rest_rebuilds_the_list():
    pos, cells = crystal()
    graph = Graph(2.6, skin=0.1)
    assert_equal_to_fresh_list(graph, pos, cells)
    assert_equal_to_fresh_list(graph, pos, 1.2 * cells)
    assert graph.num_builds == 2


def test_a_strain_of_the_cell_and_a_movement_are_both_counted():
    """Two atoms across the boundary: what a strain leaves of the skin, movement may use up."""
    cells = torch.diag(torch.tensor([4.02, 9.0, 9.0])).double().unsqueeze(0)
    pos = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]).double()  # 3.02 across
    for shrinks, closer, builds in [(0.9, 0.0, 1), (0.9, 0.04, 1), (0.9, 0.06, 2), (1.0, 0.19, 1)]:
        graph = Graph(2.6, skin=0.4)
        assert len(edges(graph, pos, cells)) == 2
        strain = torch.diag(torch.tensor([shrinks, 1.0, 1.0])).double()
        moved = pos @ strain + torch.tensor([[-closer, 0.0, 0.0], [closer, 0.0, 0.0]])
        assert_equal_to_fresh_list(graph, moved, cells @ strain + 1e-9 * torch.eye(3).double())
        assert graph.num_builds == builds


def test_half_precision_keeps_a_list_while_the_cell_moves():
    pos, cells = crystal()
    graph = Graph(2.6, skin=0.6)
    for strain in (1.0, 1.01, 0.99):
        system = (strain * pos).half(), (strain * cells).half()
        found, fresh = edges(graph, *system), edges(Graph(2.6), *system)
        assert len(found) == len(fresh) > 100
    assert graph.num_builds == 1


def test_without_skin_any_movement_rebuilds_the_list():
    pos, cells = crystal()
    graph = Graph(2.6)
    for displacement, builds in [(0.0, 1), (0.0, 1), (1e-9, 2), (1e-9, 2), (0.0, 3)]:
        edges(graph, pos + displacement, cells)
        assert graph.num_builds == builds


def test_another_system_rebuilds_the_list():
    pos, cells = crystal(n=4)
    graph = Graph(2.6, skin=0.4)
    both = cells.expand(2, 3, 3)
    builds = [
        (pos, [0, 0, 0, 0], cells, True, 1),
        (pos[:3], [0, 0, 0], cells, True, 2),
        (pos, [0, 0, 1, 1], both, True, 3),
        (pos, [0, 1, 1, 1], both, True, 4),
        (pos, [0, 1, 1, 1], both, (True, True, False), 5),
        (pos.float(), [0, 1, 1, 1], both.float(), (True, True, False), 6),
        (pos.float(), [0, 1, 1, 1], None, None, 7),
        (pos.float(), [0, 1, 1, 1], None, None, 7),
        (pos.float(), [0, 1, 1, 1], both.float(), False, 8),
    ]
    for pos, batch, cells, pbc, expected in builds:
        found = edges(graph, pos, cells, pbc, torch.tensor(batch))
        fresh = edges(Graph(2.6), pos, cells, pbc, torch.tensor(batch))
        assert_same_edges(found, fresh, atol=0)
        assert graph.num_builds == expected


def test_vectors_across_that_change_rebuild_nothing():
    pos, cells = crystal()
    graph, pbc = Graph(2.6), (True, False, True)
    expected = edges(graph, pos, cells, pbc)
    changed = cells.clone()
    changed[0, 1] = torch.tensor([7.0, -5.0, 0.1])
    assert_same_edges(edges(graph, pos, changed, pbc), expected, atol=0)
    assert graph.num_builds == 1


def test_positions_and_cells_changed_in_place_are_seen():
    pos, cells = crystal()
    graph = Graph(2.6, skin=0.1)
    edges(graph, pos, cells)
    pos[0] += 0.3
    cells *= 0.9
    assert_equal_to_fresh_list(graph, pos, cells)
    assert graph.num_builds == 2


def test_copy_of_a_graph_that_was_asked_for_gradients_by_cells():
    pos, cells = crystal()
    graph, strained = Graph(2.6, skin=0.2), 1.1 * cells.requires_grad_()
    expected = edges(graph, pos, strained)
    graph.candidates(pos, one_sample(pos), strained)
    for other in (copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))):
        assert_same_edges(edges(other, pos, strained), expected, atol=0)
        assert other.num_builds == 1


@every_search
def test_candidates_are_the_list_with_offsets():
    pos, cells = crystal()
    graph, batch = Graph(2.6, skin=0.4), one_sample(pos)
    (j, i), offset = index, _ = graph.candidates(pos, batch, cells)
    vector = pos[j] + offset - pos[i]
    all_of_them = sort_edges(index, vector, torch.linalg.vector_norm(vector, dim=1))
    assert_same_edges(all_of_them, edges(Graph(3.0 * (1 + SEARCH_MARGIN)), pos, cells))
    near = all_of_them[all_of_them[:, 2] < 2.6]
    assert_same_edges(near, edges(graph, pos, cells))
    assert offset.abs().max() >= 1.0
    same = graph.candidates(pos + 1e-3, batch, cells.clone())
    assert same[0] is index and same[1] is offset
    other = graph.candidates(pos * 1.01, batch, cells * 1.01)
    assert other[0] is index
    torch.testing.assert_close(other[1], 1.01 * offset)
    graph.candidates(pos + 5.0, batch, cells)
    assert graph.num_builds == 2


@every_search
def test_candidates_of_molecules_have_no_offsets():
    _, pos, batch = fake_batch(2, 20)
    graph = Graph(2.0, skin=0.3)
    index, offset = graph.candidates(pos, batch)
    assert torch.equal(offset, torch.zeros(1, 3))
    assert graph.candidates(pos, batch)[1] is offset
    j, i = index
    found = sort_edges(index, pos[j] - pos[i], torch.linalg.vector_norm(pos[j] - pos[i], dim=1))
    further = 2.3 * (1 + SEARCH_MARGIN)
    assert_same_edges(found, edges_of_molecules(pos, batch, further), atol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("few_pairs", [0, 100, 10**12])
def test_edges_on_a_cuda_device(few_pairs, monkeypatch):
    monkeypatch.setattr(molnets.edges, "FEW_PAIRS", few_pairs)
    pos, batch, cells, pbc = random_batch()
    expected = edges(Graph(2.5), pos, cells, pbc, batch)
    graph = Graph(2.5, skin=0.3)
    for strain in (1.001, 1.0):  # the second time on a list that is kept
        found = graph.edges(strain * pos.cuda(), batch.cuda(), strain * cells.cuda(), pbc)
        assert found.index.is_cuda
        assert found.vector.is_cuda
    assert graph.num_builds == 1
    d_ij = torch.linalg.vector_norm(found.vector, dim=1)
    assert_same_edges(sort_edges(*found, d_ij), expected)
    with pytest.raises(ValueError, match="cells: expected device cuda"):
        graph.edges(pos.cuda(), batch.cuda(), cells, pbc)


# Errors


@every_search
def test_atoms_in_one_place_are_an_error():
    cells = 2 * torch.eye(3).unsqueeze(0)
    batch = torch.tensor([0, 0])
    for second in ([0.5, 0.0, 0.0], [2.5, 0.0, -2.0]):  # the other atom, and an image of it
        pos = torch.tensor([[0.5, 0.0, 0.0], second])
        for skin in (0.0, 0.3):
            with pytest.raises(
                ValueError, match=r"pos: expected distinct positions, got atoms \[[01],"
            ):
                Graph(1.0, skin).edges(pos, batch, cells)
    Graph(1.0).edges(pos, batch)  # control: apart if there are no images
    Graph(1.0).edges(pos[[0, 0]], torch.tensor([0, 1]))  # or in two samples


def test_atoms_that_come_to_one_place_on_a_kept_list_are_an_error():
    graph, batch = Graph(1.0, skin=0.5), torch.tensor([0, 0])
    graph.edges(torch.tensor([[0.0, 0, 0], [0.2, 0, 0]]), batch)
    with pytest.raises(ValueError, match="pos: expected distinct positions"):
        graph.edges(torch.tensor([[0.1, 0, 0], [0.1, 0, 0]]), batch)
    assert graph.num_builds == 1


EYE = torch.eye(3).unsqueeze(0)
FLAT = torch.tensor([[[1.0, 0, 0], [0, 1, 0], [1, 1, 0]]])


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"cutoff": 0.0}, ValueError, "cutoff: expected a positive finite number, got 0.0"),
        ({"cutoff": -2.0}, ValueError, "cutoff: expected a positive finite number, got -2.0"),
        ({"cutoff": float("nan")}, ValueError, "cutoff: expected a positive"),
        ({"cutoff": float("inf")}, ValueError, "cutoff: expected a positive"),
        ({"cutoff": "5"}, ValueError, "cutoff: expected a positive"),
        (
            {"cutoff": 1.0, "skin": -0.1},
            ValueError,
            "skin: expected a finite number, not negative, got -0.1",
        ),
        ({"cutoff": 1.0, "skin": float("inf")}, ValueError, "skin: expected a finite"),
        ({"cutoff": 1.0, "skin": float("nan")}, ValueError, "skin: expected a finite"),
        ({"cutoff": 1.0, "skin": "1"}, ValueError, "skin: expected a finite"),
    ],
)
def test_wrong_lengths_are_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        Graph(**arguments)


WRONG_CELLS = [
    (torch.eye(3), True, ValueError, r"cells: expected shape \(1, 3, 3\) .*, got \(3, 3\)"),
    (EYE.expand(2, 3, 3), True, ValueError, r"cells: expected shape \(1, 3, 3\) .*, got \(2, 3, 3"),
    (EYE.tolist(), True, TypeError, "cells: expected a tensor, got <class 'list'>"),
    (EYE.long(), True, TypeError, "cells: expected dtype torch.float32 as pos, got torch.int64"),
    (EYE.double(), True, TypeError, "cells: expected dtype torch.float32 as pos, got .*64"),
    (EYE * float("nan"), True, ValueError, "cells: expected finite numbers, got .*nan"),
    (EYE / 0, (True, False, False), ValueError, "cells: expected finite numbers, got .*inf"),
    (FLAT, True, ValueError, "cells: expected independent vectors .* for sample 0"),
    (0 * EYE, (False, True, False), ValueError, "cells: expected independent vectors"),
    (EYE, (1, 1, 1), TypeError, "pbc: expected dtype torch.bool, got torch.int64"),
    (EYE, (True, True), ValueError, r"pbc: expected shape \(\), \(3,\) or \(1, 3\), got"),
    (None, True, ValueError, "cells: expected cells for periodic samples, got None"),
    (None, (False, False, True), ValueError, "cells: expected cells for periodic samples"),
]


@pytest.mark.parametrize("cells, pbc, error, message", WRONG_CELLS)
def test_wrong_cells_are_errors(cells, pbc, error, message):
    pos, batch = torch.tensor([[0.1, 0.2, 0.3]]), torch.tensor([0])
    with pytest.raises(error, match=message):
        Graph(1.0).edges(pos, batch, cells, pbc)
    graph = Graph(1.0, skin=0.5)  # nor does a list that is kept let them pass
    expected = edges(graph, pos, EYE)
    with pytest.raises(error, match=message):
        graph.edges(pos, batch, cells, pbc)
    with pytest.raises(error, match=message):
        graph.candidates(pos, batch, cells, pbc)
    assert_same_edges(edges(graph, pos, EYE), expected, atol=0)
    assert graph.num_builds == 1


def test_the_sample_whose_cell_is_wrong_is_named():
    with pytest.raises(ValueError, match=r"independent vectors .* for sample 1"):
        Graph(1.0).edges(torch.rand(2, 3), torch.tensor([0, 1]), torch.cat([EYE, FLAT]))


@every_search
def test_vectors_of_directions_that_are_not_periodic_play_no_part():
    pos = torch.tensor([[0.1, 0.2, 0.3], [0.2, 0.9, 5.0]])
    for third in ([1.0, 1, 0], [0.0, 0, 0], [0.0, 0, 7]):
        cells = torch.tensor([[[1.0, 0, 0], [0, 1, 0], third]])
        graph = Graph(1.1, skin=0.1)
        found = edges(graph, pos, cells, (True, True, False))
        assert len(found) == 8
        edges(graph, pos, cells + FLAT.flip(1) * 1e-3, (True, True, False))


@pytest.mark.parametrize(
    "pos, batch, error, message",
    [
        (torch.zeros(2, 2), [0, 0], ValueError, r"pos: expected shape \(2, 3\), got \(2, 2\)"),
        (torch.zeros(3, 3), [0, 0], ValueError, r"pos: expected shape \(2, 3\), got \(3, 3\)"),
        (torch.zeros(2, 3).long(), [0, 0], TypeError, "pos: expected a floating-point dtype"),
        (torch.full((2, 3), np.nan), [0, 0], ValueError, "pos: expected finite .* for atom 0"),
        (torch.rand(2, 3), [0, 1], ValueError, r"cells: expected shape \(2, 3, 3\) as samples"),
        (torch.rand(2, 3), [1, 0], ValueError, "batch: expected sample numbers in ascending order"),
        (torch.rand(0, 3), [], ValueError, "batch: expected at least one atom"),
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
        Graph(1.0).edges(pos, torch.tensor(batch, dtype=torch.int64), EYE)


@every_search
def test_edges_of_a_list_that_was_made_for_inference_can_be_differentiated():
    pos, cells = crystal()
    graph = Graph(2.6, skin=0.3)
    with torch.inference_mode():
        expected = edges(graph, pos, cells)
    pos.requires_grad_()
    vector = graph.edges(pos, one_sample(pos), cells).vector
    assert len(vector) == len(expected)
    assert torch.autograd.grad(vector.square().sum(), pos)[0].abs().max() > 0.1


def test_repeated_items_and_their_numbers():
    items, at = repeated(torch.tensor([7, 5, 9]), torch.tensor([2, 0, 3]))
    assert items.tolist() == [7, 7, 9, 9, 9]
    assert at.tolist() == [0, 1, 0, 1, 2]
