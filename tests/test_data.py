"""Datasets: what files hold, how frames are taken, split and told apart, and their edges."""

from __future__ import annotations

from pathlib import Path

import ase
import numpy as np
import pytest
import torch
from ase import units
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.io import write
from contract import assert_equal
from frames import CELL, arrays, dataset, npz, of_sizes

from fake_data import fake_trajectory
from molnets.edges import Graph
from molnets.training import Dataset, load, split
from schnet_helpers import RadiusInteractionGraph


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    return load(npz(tmp_path / "data.npz"))


# Files


def test_npz_with_the_names_of_md17(data):
    source = arrays()
    assert len(data) == 24
    frames = torch.tensor([5, 2])
    z, pos, batch, energies, forces, _ = data.take(frames, torch.float64)
    assert_equal(pos.view(2, 7, 3), torch.from_numpy(source["R"][[5, 2]]))
    assert_equal(forces.view(2, 7, 3), torch.from_numpy(source["F"][[5, 2]]))
    assert_equal(energies.flatten(), torch.from_numpy(source["E"][[5, 2]]))
    assert z.flatten().tolist() == [1, 6, 1, 6, 1, 6, 1] * 2
    assert batch.tolist() == [0] * 7 + [1] * 7
    assert energies.dtype == torch.float64 and data.take(frames).pos.dtype == torch.float32


@pytest.mark.parametrize("suffix", [".npz", ".pt"])
def test_names_of_the_follow_up_sheet(tmp_path, suffix):
    positions, energies, forces = fake_trajectory(12)
    content = {"positions": positions, "e_pot": energies, "forces": forces}
    if suffix == ".pt":
        torch.save(content, tmp_path / "data.pt")
    else:
        np.savez(tmp_path / "data.npz", **{k: x.numpy() for k, x in content.items()})
    data = load(tmp_path / f"data{suffix}")
    assert len(data) == 12
    assert data.z.tolist() == [1] * 84
    assert_equal(data.energies, energies.flatten().double())


def test_md17_is_read_from_what_pyg_downloads_without_loss_of_digits(tmp_path, monkeypatch):
    source, raw = arrays(), tmp_path / "md17" / "raw" / "rmd17" / "npz_data"
    raw.mkdir(parents=True)  # what is there already is not downloaded
    np.savez(raw / "rmd17_ethanol.npz", nuclear_charges=source["z"], coords=source["R"],
             energies=source["E"] - 97_000, forces=source["F"])  # fmt: skip
    monkeypatch.chdir(tmp_path)
    data = load("md17:revised ethanol")
    assert data.z[:7].tolist() == source["z"].tolist()
    kcal = units.kcal / units.mol
    assert_equal(data.energies, kcal * (torch.from_numpy(source["E"]) - 97_000), atol=1e-9)
    assert_equal(data.forces.view(-1, 7, 3), kcal * torch.from_numpy(source["F"]))
    assert (data.energy_unit, data.length_unit) == ("eV", "Å")


def test_md17_that_does_not_exist_or_cannot_be_downloaded(tmp_path, monkeypatch):
    def no_network(*_: object) -> None:
        raise OSError("there is no network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch_geometric.datasets.md17.download_url", no_network)
    with pytest.raises(ConnectionError, match=r"path: .* got there is no network"):
        load("md17:revised ethanol")
    with pytest.raises(ValueError, match=r"path: .*one of \['benzene', .*got 'caffeine'"):
        load("md17:caffeine")


def with_results(symbols: str, seed: int, energy: float = -1.0) -> ase.Atoms:
    """Return atoms with an energy and forces."""
    rng = np.random.default_rng(seed)
    atoms = ase.Atoms(symbols, positions=rng.normal(size=(len(ase.Atoms(symbols)), 3)))
    forces = rng.normal(size=(len(atoms), 3))
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    return atoms


def test_extxyz_with_frames_of_different_sizes(tmp_path):
    frames = [with_results("OH2", 0), with_results("CO", 1)]
    write(tmp_path / "frames.extxyz", frames)
    data = load(tmp_path / "frames.extxyz")
    assert data.n_atoms.tolist() == [3, 2]
    assert data.z.tolist() == [8, 1, 1, 6, 8]
    np.testing.assert_allclose(data.forces[3:], frames[1].get_forces(), atol=1e-7)
    assert data.cells is None
    assert (data.energy_unit, data.length_unit) == ("eV", "Å")
    frames[0].calc = frames[1].calc = None
    write(tmp_path / "bare.extxyz", frames)
    with pytest.raises(KeyError, match="path: expected energies or forces"):
        load(tmp_path / "bare.extxyz")


@pytest.mark.parametrize("name", ["frames.extxyz", "frames.json", "frames.traj"])
def test_energies_keep_their_digits_whichever_way_ase_reads_them(tmp_path, name):
    energy = -4209.123456789
    write(tmp_path / name, with_results("OH2", 0, energy))
    assert_equal(load(tmp_path / name).energies, torch.tensor([energy], dtype=torch.float64), 1e-8)


def test_forces_on_atoms_that_were_held_fixed_are_kept(tmp_path):
    atoms = with_results("OH2", 0)
    expected = atoms.get_forces()
    atoms.set_constraint(FixAtoms([0]))
    write(tmp_path / "frames.traj", atoms)
    np.testing.assert_allclose(load(tmp_path / "frames.traj").forces, expected, atol=1e-12)
    assert np.abs(expected[0]).max() > 0.1


def test_periodic_frames_that_ase_reads(tmp_path):
    molecule, slab = with_results("OH2", 0), with_results("CO", 1)
    slab.set_cell(CELL.numpy() + 0.1)
    slab.pbc = (True, True, False)
    molecule.set_cell([9, 9, 9])  # a box that does not repeat
    write(tmp_path / "frames.extxyz", [molecule, slab])
    cells = load(tmp_path / "frames.extxyz").cells
    assert not cells[0].any()
    np.testing.assert_allclose(cells[1, :2], slab.cell.array[:2])
    assert not cells[1, 2].any()


def test_frames_one_after_the_other(tmp_path):
    source = of_sizes()
    split = np.array([0, 1, 0, 1, 1])
    np.savez(
        tmp_path / "data.npz", R=source.pos, E=source.energies.view(5, 1), F=source.forces,
        z=source.z, n_atoms=source.n_atoms, cell=source.cells, split=split,
    )  # fmt: skip
    data = load(tmp_path / "data.npz")
    assert data.fingerprint() == source.fingerprint()
    assert data.split.tolist() == split.tolist()
    assert_equal(data.cells, source.cells)


BAD_DATA = [
    ("no labels", lambda a: (a.pop("F"), a.pop("E")), KeyError, r"data: expected energies or fo"),
    ("no positions", lambda a: a.pop("R"), KeyError, r"data: expected positions under one of"),
    ("no atomic numbers", lambda a: a.pop("z"), KeyError, r"data: expected z under one of"),
    ("NaN", lambda a: a["F"].__setitem__((3, 2, 1), np.nan), ValueError, "forces: .*entry 23"),
    (
        "flat positions",
        lambda a: a.update(R=a["R"].reshape(24, 21)),
        ValueError,
        r"R: .*\(24, 21\)",
    ),
    ("other forces", lambda a: a.update(F=a["F"][:, :5]), ValueError, r"F: .*got \(24, 5, 3\)"),
    ("too few energies", lambda a: a.update(E=a["E"][:9]), ValueError, r"energies: .*got \(9,\)"),
    ("two in one place", lambda a: a["R"].__setitem__((4, 1), a["R"][4, 2]), ValueError, "frame 4"),
    (
        "no frames",
        lambda a: a.update({k: a[k][:0] for k in "REF"}),
        ValueError,
        "n_atoms: expected at",
    ),
    ("no element", lambda a: a["z"].__setitem__(2, 119), ValueError, r"z: .*below 119, got \[119"),
    ("negative", lambda a: a["z"].__setitem__(2, -1), ValueError, r"z: expected .*got \[-1\]"),
    ("half", lambda a: a.update(z=a["z"] + 0.5), ValueError, r"z: .*got \[1\.5, 6\.5\]"),
    (
        "cells",
        lambda a: a.update(cell=np.eye(4)),
        ValueError,
        r"cells: .*\(24, 3, 3\).*, got \(4, ",
    ),
    ("split", lambda a: a.update(split=np.ones(9)), ValueError, r"split: .*\(24,\), got \(9,\)"),
]


@pytest.mark.parametrize("what, spoil, error, message", BAD_DATA, ids=[b[0] for b in BAD_DATA])
def test_bad_data_is_named(tmp_path, what, spoil, error, message):
    content = arrays()
    spoil(content)
    np.savez(tmp_path / "data.npz", **content)
    with pytest.raises(error, match=message):
        load(tmp_path / "data.npz")


def test_data_that_would_run_code_is_refused(tmp_path):
    np.savez(tmp_path / "data.npz", **arrays(), extra=np.array([Path("x")], dtype=object))
    with pytest.raises(ValueError, match="path: expected plain arrays"):
        load(tmp_path / "data.npz")
    torch.save({"R": Path("x")}, tmp_path / "data.pt")
    with pytest.raises(ValueError, match="path: expected plain tensors"):
        load(tmp_path / "data.pt")
    with pytest.raises(FileNotFoundError, match=r"nothing\.npz"):
        load(tmp_path / "nothing.npz")


@pytest.mark.parametrize("name", ["data.npz", "data.pt", "data.extxyz", "data.of_no_kind"])
@pytest.mark.parametrize("content", [b"", b"no data", "half"])
def test_files_that_hold_no_data_are_refused(tmp_path, name, content):
    if content == "half":
        whole = npz(tmp_path / "whole.npz").read_bytes()
        content = whole[: len(whole) // 2]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"^path: expected .*{name}"):
        load(tmp_path / name)


def test_one_array_is_no_data(tmp_path):
    with (tmp_path / "data.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(ValueError, match="path: expected plain arrays"):
        load(tmp_path / "data.npz")
    torch.save(torch.zeros(3), tmp_path / "data.pt")
    with pytest.raises(ValueError, match=r"path: expected tensors by name in .*got Tensor"):
        load(tmp_path / "data.pt")


def test_what_is_no_number_is_left_alone(tmp_path, data):
    tensors = {name: torch.from_numpy(x) for name, x in arrays().items()}
    torch.save(tensors | {"unit": "eV"}, tmp_path / "data.pt")
    assert load(tmp_path / "data.pt").fingerprint() == data.fingerprint()
    npz(tmp_path / "named.npz", unit=np.array("eV"))
    assert load(tmp_path / "named.npz").fingerprint() == data.fingerprint()


def test_frames_of_different_sizes_are_taken_in_the_order_asked_for():
    source = of_sizes()
    z, pos, batch, energies, forces, _ = source.take(torch.tensor([3, 0]), torch.float64)
    assert z.flatten().tolist() == [6, 8, 8, 1, 1]
    assert batch.tolist() == [0, 0, 1, 1, 1]
    assert_equal(energies.flatten(), source.energies[[3, 0]])
    assert_equal(pos, source.pos[[9, 10, 0, 1, 2]])
    assert_equal(forces, source.forces[[9, 10, 0, 1, 2]])


# Fingerprint


def test_fingerprint_changes_with_every_array():
    data = of_sizes()
    names = ("z", "pos", "energies", "forces", "n_atoms", "cells")
    fields = {name: getattr(data, name) for name in names}
    prints = {"": data.fingerprint()}
    for name, tensor in fields.items():
        changed = tensor.clone()
        if name == "n_atoms":
            changed[:2] = tensor[:2].flip(0)  # 1, 3 in place of 3, 1: as many in all
        elif name == "z":
            changed[-1] += 1
        else:
            index = 2 if name == "cells" else -1
            changed.view(len(tensor), -1)[index, -1] += 1e-12
        prints[name] = Dataset(**(fields | {name: changed})).fingerprint()
    prints["no cells"] = Dataset(**(fields | {"cells": None})).fingerprint()
    order = torch.tensor([0, 1, 2, 4, 3])
    atoms = data.atoms_of(order)
    prints["order"] = Dataset(
        data.z[atoms], data.pos[atoms], data.energies[order], data.forces[atoms],
        data.n_atoms[order], data.cells[order],
    ).fingerprint()  # fmt: skip
    assert len(set(prints.values())) == len(prints), prints
    assert all(len(bytes.fromhex(text)) == 8 for text in prints.values())


def test_fingerprint_is_that_of_the_numbers_not_of_the_file(tmp_path):
    source = arrays() | {"R": arrays()["R"].astype("float32"), "E": arrays()["E"].round()}
    source["F"] = source["F"].astype("float32")
    types = [
        {"R": "float32", "E": "float32", "F": "float32", "z": "int8"},
        {"R": "float64", "E": "int64", "F": "float64", "z": "uint16"},
        {"R": ">f8", "E": ">f4", "F": "float64", "z": "float64"},
    ]
    prints = []
    for number, dtypes in enumerate(types):
        path = tmp_path / f"{number}.npz"
        np.savez(path, **{name: x.astype(dtypes[name]) for name, x in source.items()})
        prints.append(load(path).fingerprint())
    tensors = {name: torch.from_numpy(x) for name, x in source.items()}
    torch.save({**tensors, "E": tensors["E"].view(-1, 1)}, tmp_path / "data.pt")
    prints.append(load(tmp_path / "data.pt").fingerprint())
    assert len(set(prints)) == 1
    assert load(npz(tmp_path / "other.npz")).fingerprint() not in prints


# Edges


def test_edges_of_frames_equal_the_graph_s(data):
    frames = torch.tensor([3, 9, 0])
    edges = data.edges(1.7).take(frames, torch.float64)
    _, pos, batch, *_ = data.take(frames, torch.float64)
    expected, _ = RadiusInteractionGraph(1.7)(pos, batch)
    pairs = sorted(map(tuple, edges.index.T.tolist()))
    assert pairs == sorted(map(tuple, expected.T.tolist())) and len(pairs) > 30
    j, i = edges.index
    assert_equal(edges.vector, pos[j] - pos[i])
    assert data.edges(1.7).take(frames).vector.dtype == torch.float32


@pytest.mark.parametrize("frames", [[2], [4], [4, 2, 0, 1], [1], [3, 2, 2]])
def test_edges_of_frames_of_all_sizes_are_those_of_each(frames):
    """Every frame's own graph, atoms counted through; two frames see their images."""
    data, cutoff = of_sizes(), 2.5
    edges, first, expected = data.edges(cutoff).take(torch.tensor(frames), torch.float64), 0, []
    for frame in frames:
        _, pos, batch, *_ = data.take(torch.tensor([frame]), torch.float64)
        cells = data.cells[[frame]]
        index, vector = Graph(cutoff).edges(pos, batch, cells, cells.any(dim=2))
        both = zip((index + first).T.tolist(), vector.tolist(), strict=True)
        expected += [(*pair, *(round(x, 9) for x in r)) for pair, r in both]
        first += len(pos)
    both = zip(edges.index.T.tolist(), edges.vector.tolist(), strict=True)
    found = [(*pair, *(round(x, 9) for x in r)) for pair, r in both]
    assert sorted(found) == sorted(expected)
    periodic = not {2, 4}.isdisjoint(frames)
    assert (len(found) > len({row[:2] for row in found})) == periodic  # control: images count


def test_edges_of_many_frames_are_found_in_parts(monkeypatch, data):
    whole = data.edges(1.7).take(torch.arange(24))
    monkeypatch.setattr("molnets.training.data.FRAMES_AT_ONCE", 5)
    parts = dataset().edges(1.7).take(torch.arange(24))
    assert torch.equal(parts.index, whole.index) and torch.equal(parts.vector, whole.vector)
    assert data.edges(1.7) is data.edges(1.7) is not data.edges(1.8)


# Splits


def test_split_is_seeded_disjoint_and_complete(data):
    first, again, other = (split(data, 0, 4, 5, seed) for seed in (1, 1, 2))
    assert [part.tolist() for part in first] == [part.tolist() for part in again]
    assert [part.tolist() for part in first] != [part.tolist() for part in other]
    assert sorted(torch.cat(first).tolist()) == list(range(24))
    assert [len(part) for part in first] == [15, 4, 5]
    with pytest.raises(ValueError, match="num_train: expected 20 or more frames of 24, got 15"):
        split(data, 20, 4, 5, 0)
    with pytest.raises(ValueError, match="num_validation: expected 1 or more"):
        split(data, 0, 0, 5, 0)


@pytest.mark.parametrize("numbers", [(-1, 4, 5), (3, -4, 5), (3, 4, -5)])
def test_split_of_a_negative_number_is_refused(data, numbers):
    with pytest.raises(ValueError, match=r"num_\w+: expected .*not negative, got -"):
        split(data, *numbers, 0)


@pytest.mark.parametrize("kind", ["int64", "uint8", "bool", "float32"])
@pytest.mark.parametrize("suffix", [".npz", ".pt"])
def test_split_of_the_file_is_kept(tmp_path, kind, suffix):
    """Whatever its type: were it left out, training would see the test frames."""
    content = arrays() | {"split": (np.arange(24) >= 18).astype(kind)}
    if suffix == ".npz":
        np.savez(tmp_path / "data.npz", **content)
    else:
        tensors = {name: torch.from_numpy(x) for name, x in content.items()}
        torch.save(tensors, tmp_path / "data.pt")
    data = load(tmp_path / f"data{suffix}")
    train, validation, test = split(data, 0, 4, 1, 0)
    assert sorted(test.tolist()) == list(range(18, 24))
    assert sorted(torch.cat([train, validation]).tolist()) == list(range(18))
    assert data.split.dtype == torch.int64
    fewer = split(data, 5, 4, 1, 0)
    assert len(fewer[0]) == 5 and set(fewer[0].tolist()) <= set(train.tolist())


# Frames that are there twice, written otherwise


def changed(data: Dataset, **changes: torch.Tensor) -> Dataset:
    """Return a data set with other arrays."""
    names = ("z", "pos", "energies", "forces", "n_atoms", "cells", "split")
    return Dataset(**({name: getattr(data, name) for name in names} | changes))


def with_copy(change, num: int = 6, cell: torch.Tensor | None = None) -> Dataset:
    """Return frames of which the last is the first, changed, (n, 3), and in the test's part."""
    g = torch.Generator().manual_seed(0)
    pos = torch.rand(num, 7, 3, generator=g).double() * 5
    pos[:, 0] = 0
    pos[-1] = change(pos[0].clone())
    energies, forces = torch.randn(num, 22, generator=g).double().split([1, 21], dim=1)
    energies[-1], forces[-1] = energies[0], forces[0]
    parts = torch.arange(num) == num - 1
    return Dataset(
        torch.arange(1, 8).repeat(num), pos.view(-1, 3), energies[:, 0], forces.reshape(-1, 3),
        torch.full((num,), 7), None if cell is None else cell.expand(num, 3, 3), split=parts,
    )  # fmt: skip


SKEWED = torch.tensor([[8.0, 0.3, 0], [-2.0, 7.0, 0.1], [0.5, 1.0, 9.0]]).double()
SLAB = SKEWED * torch.tensor([[1.0], [1.0], [0.0]])


def moved(*shift: int):
    """Return a change that moves the fourth atom by lattice vectors of `SKEWED`."""
    by = torch.tensor(shift).double() @ SKEWED
    return lambda pos: pos.index_add(0, torch.tensor([3]), by.view(1, 3))


@pytest.mark.parametrize(
    "change, cell, same",
    [
        (lambda pos: (pos * 1e4).round() / 1e4, None, True),
        (lambda pos: pos.float().double(), None, True),
        (lambda pos: torch.where(pos == 0, -0.0, pos), None, True),
        (moved(1, 0, -2), SKEWED, True),
        (lambda pos: (moved(0, 3, 1)(pos) * 1e5).round() / 1e5, SKEWED, True),
        (moved(-1, 1, 0), SLAB, True),
        (moved(0, 0, 1), SLAB, False),  # where it is not periodic
        (moved(1, 0, 0), None, False),
        (lambda pos: pos + 1e-3, None, True),
        (lambda pos: pos + 20, None, True),
        (lambda pos: pos + 1e-3, SKEWED, False),
        (lambda pos: 1.001 * pos, None, False),
        (lambda pos: pos.roll(1, dims=0), None, False),
    ],
)
def test_frames_that_are_the_same_but_for_how_they_are_written(change, cell, same):
    data = with_copy(change, cell=cell)
    if not same:
        assert data.without_duplicates() is data
        return
    with pytest.raises(ValueError, match=r"split: .* in two parts .*, got frames 0 and 5, which"):
        data.without_duplicates()
    once = changed(data, split=None).without_duplicates()
    assert len(once) == 5 and once.notes[-1].startswith("1 frames are there twice")


def test_frames_that_are_near_but_have_other_labels_are_two():
    """Fine scans are data; the same positions with other labels are a contradiction."""
    near = with_copy(lambda pos: pos + 5e-5)
    other = near.energies.clone()
    other[-1] += 2e-3
    assert changed(near, energies=other).without_duplicates().energies.tolist() == other.tolist()
    same = with_copy(lambda pos: pos + 1e-8)
    with pytest.raises(ValueError, match="labels and weights, got frames 0 and 5"):
        changed(same, energies=other, split=None).without_duplicates()


def test_a_trajectory_s_neighbours_are_no_duplicates():
    """A thousand frames 0.001 apart; and a chain of near ones does not go for those that go."""
    data = with_copy(lambda pos: pos, num=2)
    for step, kept in ((1e-3, 1000), (6e-5, 500)):
        apart = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 0.0]).view(1, 7, 1)
        pos = data.pos[:7] + step * torch.arange(1000).view(-1, 1, 1) * apart
        many = Dataset(
            data.z[:7].repeat(1000), pos.view(-1, 3), torch.ones(1000),
            data.forces[:7].repeat(1000, 1), torch.full((1000,), 7),
        )  # fmt: skip
        assert len(many.without_duplicates()) == kept


def test_two_atoms_in_one_place_are_seen_in_a_frame_of_many():
    pos = torch.rand(60_000, 3, generator=torch.Generator().manual_seed(0)).double()
    pos[7] = 0.0
    one = torch.tensor([len(pos)])
    z = torch.full((len(pos),), 14)
    Dataset(z, pos, torch.zeros(1), torch.zeros_like(pos), one)
    pos[59_000] = -0.0
    with pytest.raises(ValueError, match="pos: expected distinct positions, got two equal in fra"):
        Dataset(z, pos, torch.zeros(1), torch.zeros_like(pos), one)
