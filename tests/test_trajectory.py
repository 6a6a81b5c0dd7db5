"""Trajectories as ASE reads them, exactly, and files of a process that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.io import read
from systems import CELLS, PBC, cluster, langevin

from molnets.dynamics import ExtxyzWriter, lennard_jones, read_trajectory, run

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.usefixtures("float64")


def test_ase_reads_the_trajectory(tmp_path):
    path, state = tmp_path / "run.xyz", cluster(3)
    writer = ExtxyzWriter(path, ["Ar", "C", "O", "H", "H", "H", "X"])
    _, frames = run(langevin(0), state, 6, every=3, trajectory=writer, progress=False)
    entries = read(path, ":")
    assert [(a.info["step"], a.info["replica"]) for a in entries] == [
        (3, 0), (3, 1), (3, 2), (6, 0), (6, 1), (6, 2)
    ]  # fmt: skip
    for i, atoms in enumerate(entries):
        t, r = divmod(i, 3)
        assert np.array_equal(atoms.positions, frames.positions[t, r].numpy())
        assert np.allclose(atoms.get_velocities(), frames.velocities[t, r].numpy(), rtol=1e-14)
        assert atoms.get_potential_energy() == frames.energies[t, r].item()
        assert atoms.get_kinetic_energy() == pytest.approx(frames.kinetic_energies[t, r].item())
        forces = lennard_jones()(frames.positions[t, r].unsqueeze(0))[1]
        assert np.allclose(atoms.get_forces(), forces[0].numpy(), rtol=1e-9, atol=1e-11)
        assert atoms.get_chemical_symbols() == ["Ar", "C", "O", "H", "H", "H", "X"]
        assert not atoms.pbc.any()


def test_a_box_is_written_as_the_lattice(tmp_path):
    cell = torch.diag(torch.tensor([8, 9.5, 10]))
    ExtxyzWriter(tmp_path / "box.xyz", ["X"] * 7, cells=cell).write(1, cluster(1))
    atoms = read(tmp_path / "box.xyz")
    assert atoms.pbc.all()
    assert atoms.cell.lengths().tolist() == [8, 9.5, 10]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pbc", [True, [True, True, False], PBC])
def test_cells_are_read_back_exactly(tmp_path, pbc, dtype):
    cells, path = (np.pi * CELLS).to(dtype), tmp_path / "run.xyz"
    writer = ExtxyzWriter(path, ["X"] * 7, cells=cells, pbc=pbc)
    writer.write(1, cluster(3))
    writer.write(2, cluster(3, seed=1))
    entries = read(path, ":")
    assert len(entries) == 6
    for i, atoms in enumerate(entries):
        assert atoms.cell.array.tolist() == cells[i % 3].tolist()
        assert atoms.pbc.tolist() == torch.as_tensor(pbc).expand(3, 3)[i % 3].tolist()
    ExtxyzWriter(path, ["X"] * 7, cells=cells[1], pbc=pbc, append=True).write(3, cluster(3))
    for atoms in read_trajectory(path)[6:]:
        assert atoms.cell.array.tolist() == cells[1].tolist()


def test_every_cut_loses_at_most_the_entry_that_it_hits(tmp_path):
    path, state = tmp_path / "run.xyz", cluster(2)
    writer = ExtxyzWriter(path, ["X"] * 7)
    writer.write(1, state)
    one = path.stat().st_size // 2  # near the border of the two entries
    text = path.read_bytes()
    border = text.index(b"\n7\n") + 1
    assert abs(border - one) < 100
    for length in [0, 1, 2, 50, *range(border - 20, border + 20), len(text) - 1, len(text)]:
        path.write_bytes(text[:length])
        entries = read_trajectory(path)
        assert len(entries) == (length >= border) + (length == len(text))
        ExtxyzWriter(path, ["X"] * 7, append=True).write(2, state)
        steps = [a.info["step"] for a in read(path, ":")]
        assert steps == ([1, 1] if len(entries) == 2 else []) + [2, 2]


def test_a_step_that_was_cut_off_leaves_nothing_ragged(tmp_path):
    path, state = tmp_path / "run.xyz", cluster(3)
    writer = ExtxyzWriter(path, ["X"] * 7)
    for step in (1, 2, 3):
        writer.write(step, state)
    text = path.read_bytes()
    step = len(text) // 3
    for length in range(step + 40, len(text), 97):
        path.write_bytes(text[:length])
        whole = [n + 1 for n in range(length // step)]
        found = [atoms.info["step"] for atoms in read_trajectory(path)]
        assert found == [n for n in whole for _ in range(3)]
        ExtxyzWriter(path, ["X"] * 7, append=True).write(9, state)
        found = [atoms.info["step"] for atoms in read(path, ":")]
        assert found == [n for n in (*whole, 9) for _ in range(3)]


def test_a_file_is_continued_with_what_it_holds(tmp_path):
    path = tmp_path / "run.xyz"
    writer = ExtxyzWriter(path, ["Ar"] * 7)
    writer.write(1, cluster(2))
    writer.write(2, cluster(2))
    before = path.read_bytes()
    for symbols in (["Ar"] * 6 + ["Ne"], ["Ar"] * 8):
        with pytest.raises(ValueError, match=r"symbols: expected the atoms of .*run.xyz, \['Ar'"):
            ExtxyzWriter(path, symbols, append=True)
    for number in (1, 3):
        with pytest.raises(ValueError, match=f"state: expected 2 replicas as in .*, got {number}"):
            ExtxyzWriter(path, ["Ar"] * 7, append=True).write(3, cluster(number))
    assert path.read_bytes() == before


KILLED = """
import sys, torch
from molnets.dynamics import ExtxyzWriter, State
n = 4_000
x = torch.rand(1, n, 3, dtype=torch.float64)
writer = ExtxyzWriter(sys.argv[1], ["X"] * n)
for step in range(1, 1000):
    writer.write(step, State(x, x, x.new_zeros(1), x, x.new_ones(n)))
    print(step, flush=True)
"""


def test_a_killed_run_loses_at_most_the_last_frame(tmp_path):
    path = tmp_path / "run.xyz"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, path], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    written = 0
    while written < 3:
        written = int(process.stdout.readline())
    one = path.stat().st_size / 3
    while path.stat().st_size < 3.02 * one:  # the next frame has begun
        pass
    os.kill(process.pid, signal.SIGKILL)
    rest = process.stdout.read().split()
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    written = int(rest[-1]) if rest else written
    steps = [atoms.info["step"] for atoms in read_trajectory(path)]
    assert steps in (list(range(1, written + 1)), list(range(1, written + 2)))


def test_an_existing_file_is_not_overwritten(tmp_path):
    path = tmp_path / "run.xyz"
    path.write_text("precious")
    with pytest.raises(FileExistsError, match="run"):
        ExtxyzWriter(path, ["X"] * 7)
    with pytest.raises(FileNotFoundError):
        read_trajectory(tmp_path / "none.xyz")
    assert path.read_text() == "precious"


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("precious\nnotes\n")
    for attempt in (lambda: read_trajectory(path), lambda: ExtxyzWriter(path, ["X"], append=True)):
        with pytest.raises(ValueError, match="path: expected extended XYZ, got b'precious"):
            attempt()
    assert path.read_text() == "precious\nnotes\n"


def test_a_trajectory_of_other_atoms_is_refused(tmp_path):
    with pytest.raises(ValueError, match="state: expected 3 atoms, got 7"):
        ExtxyzWriter(tmp_path / "run.xyz", ["X"] * 3).write(1, cluster(1))


def write(path, cells, pbc=True):
    ExtxyzWriter(path, ["X"] * 7, cells=cells, pbc=pbc).write(1, cluster(3))


@pytest.mark.parametrize(
    ("cells", "pbc", "message"),
    [
        (CELLS[:2], True, r"cells: expected shape \(3, 3\) or \(3, 3, 3\), got \(2, 3, 3\)"),
        (CELLS[0, 0], True, r"cells: expected shape \(3, 3\) or \(3, 3, 3\), got \(3,\)"),
        (CELLS, [True] * 2, r"pbc: expected shape .*\(3, 3\), got \(2,\)"),
        (torch.diag(torch.tensor([8.0, 0, 9])), True, "cells: expected independent vectors"),
        (CELLS / 0, True, "cells: expected finite numbers"),
    ],
)
def test_other_cells_are_refused(tmp_path, cells, pbc, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "run.xyz", cells, pbc)
    assert (tmp_path / "run.xyz").read_text() == ""


def test_a_vector_that_is_not_periodic_may_be_zero(tmp_path):
    write(tmp_path / "run.xyz", torch.diag(torch.tensor([8.0, 0, 9])), [True, False, True])
    assert read(tmp_path / "run.xyz").cell.lengths().tolist() == [8, 0, 9]
