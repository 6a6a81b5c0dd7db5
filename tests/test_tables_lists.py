"""Edges as the compiled loops take them: kept once, in parts, by any number of threads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from contract import assert_equal
from networks import schnet

from molnets.edges import Graph
from molnets.tables import SplineSchNet, lists


def edges_of(edges: lists.Edges, order: np.ndarray) -> list[tuple[int, int]]:
    """Return the edges (i, j) that the kept ones stand for, sorted."""
    found = []
    for i in range(len(order)):
        for e in range(edges.first[2 * i], edges.first[2 * i + 2]):
            ends = int(order[i]), int(order[edges.sender[e]])
            found += [ends, ends[::-1]] if e < edges.first[2 * i + 1] else [ends]
    return sorted(found)


@pytest.mark.parametrize("sizes", [(200,), (40, 40, 40, 40), (3, 130, 1, 70, 2)])
def test_edges_that_are_kept_stand_for_all(sizes):
    rng, start = np.random.default_rng(0), np.append(0, np.cumsum(sizes))
    batch, pos = np.repeat(np.arange(len(sizes)), sizes), 6.0 * rng.random((sum(sizes), 3))
    near = np.linalg.norm(pos[:, None] - pos[None], axis=-1) < 2.5
    near &= (batch[:, None] == batch[None]) & ~np.eye(len(pos), dtype=bool)
    expected, empty = list(zip(*map(list, np.nonzero(near)), strict=True)), np.empty(0)
    room, length = (empty.astype(np.uint32), empty), (2.5, 2.5 / 64, 64)
    far = np.triu((batch[:, None] == batch[None]) & (rng.random(near.shape) < 0.2), 1)
    i, j = np.nonzero(near | far | far.T)
    for threads in (1, 2, 3, 5):
        order, edges, _ = lists.find_graph(pos, batch, start, *length, threads, *room)
        assert edges_of(edges, order) == expected
        parts = lists.cut(start, threads)
        assert len(parts) == threads + 1 and parts[0] == 0 and parts[-1] == len(pos)
        assert (np.diff(parts) > 0).all()
        given = lists.sort_graph(i, j, np.zeros((len(i), 3)), parts)
        order = np.arange(len(pos))
        edges, _ = lists.narrow_graph(pos, order, parts, given, *length, *room)
        assert edges_of(edges, order) == expected
        assert len(edges.d) < len(expected)
        kept = (edges.sender, edges.first, edges.d)
        assert len(kept[0]) == kept[1][-1] == len(kept[2])


def test_parts_are_cut_between_samples():
    start = 13 * np.arange(65)
    assert (lists.cut(start, 3) % 13 == 0).all()
    assert list(lists.cut(start, 2)) == [0, 32 * 13, 64 * 13]
    assert list(lists.cut(np.array([0, 31]), 8)) == [0, 31]


def test_number_of_threads_stays_as_it_was():
    code = """
import torch
from molnets.potential import energy_and_forces
from molnets.tables import SplineSchNet
from schnet_helpers import SchNet
torch.set_num_threads(1)
pos = torch.rand(4, 3)
energy_and_forces(SplineSchNet(SchNet()), torch.ones(4, 1), pos, torch.zeros(4, dtype=torch.int64))
print(torch.get_num_threads())
"""
    root = Path(__file__).parent.parent
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert (run.stdout, run.returncode) == ("1\n", 0), run.stderr


@pytest.mark.parametrize("periodic", [False, True])
def test_parts_change_nothing_but_round_off(periodic, monkeypatch):
    torch.manual_seed(0)
    z, pos = torch.tensor([[1], [6], [8]]).repeat(40, 1), 5.0 * torch.rand(120, 3).double()
    batch, model = torch.zeros(120, dtype=torch.int64), SplineSchNet(schnet())
    graph = cells = None
    if periodic:  # the cutoff reaches an atom's own image
        pos[:, 0] *= 0.4
        cell = torch.diag(torch.tensor([2.0, 5.0, 5.0])).double().unsqueeze(0)
        graph, cells = Graph(2.5, skin=0.3), cell
    results = []
    for parts in (1, 2, 3):
        monkeypatch.setattr(lists, "use_threads_of_torch", lambda num_atoms, parts=parts: parts)
        results.append(model.evaluate(z, pos, batch, graph, cells, virial=True))
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert_equal(one, two, atol=1e-12 * float(one.abs().max()))
    assert not torch.equal(results[0][1], results[1][1])  # control: sums of another order
