"""Files of other programs: nothing in them is lost in silence or taken for something else."""

from __future__ import annotations

import ase
import ase.io
import numpy as np
import pytest
import torch
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from frames import arrays, npz

from molnets.command.train import summary
from molnets.training import joined, load


def calculated(symbols: str = "OH2", number: int = 0, **results: object) -> ase.Atoms:
    """Return a frame with the results of a calculator, energy and forces unless they are given."""
    rng = np.random.default_rng(number)
    n = len(ase.Atoms(symbols))
    atoms = ase.Atoms(
        symbols, 1.5 * np.arange(3 * n).reshape(n, 3) % 4 + rng.normal(0, 0.2, (n, 3))
    )
    found = {"energy": -7.0 - number, "forces": rng.normal(size=(n, 3))} | results
    atoms.calc = SinglePointCalculator(atoms, **{k: x for k, x in found.items() if x is not None})
    return atoms


def some(count: int = 4, **results: object) -> list[ase.Atoms]:
    """Return frames with a calculator's results."""
    return [calculated(number=number, **results) for number in range(count)]


def alone(symbol: str, energy: float, box: float = 0.0) -> ase.Atoms:
    """Return one atom, in a periodic cube if it has edges."""
    atoms = calculated(symbol, energy=energy, forces=np.zeros((1, 3)))
    calc = atoms.calc
    atoms.set_cell(3 * [box])
    atoms.pbc = box > 0
    calc.atoms = atoms.copy()
    atoms.calc = calc
    return atoms


def written(path, frames):
    """Write frames as ASE does; return the path."""
    ase.io.write(path, frames)
    return path


# Arrays


@pytest.mark.parametrize("kind", [list, np.asarray, torch.as_tensor])
def test_lists_in_a_torch_file_are_read_as_tensors_are(tmp_path, kind):
    source = arrays()
    plain = {"z": source["z"].tolist(), "R": source["R"].tolist(), "E": source["E"].tolist(),
             "F": source["F"].tolist(), "split": [0] * 20 + [1] * 4,
             "weights": [0.5] * 24}  # fmt: skip
    name = tmp_path / ("data.npz" if kind is np.asarray else "data.pt")
    found = {key: kind(x) for key, x in plain.items()}
    np.savez(name, **found) if kind is np.asarray else torch.save(found, name)
    data = load(name)
    assert data.split.tolist() == plain["split"]
    assert data.weights.tolist() == plain["weights"]
    assert torch.allclose(data.energies, torch.from_numpy(source["E"]), atol=1e-4)


def test_what_a_torch_file_holds_beside_arrays(tmp_path):
    """Parts of the split in words; None and what is nested are nothing."""
    tensors = {key: torch.from_numpy(x) for key, x in arrays().items()}
    more = {"cell": None, "stress": None, "weights": None, "names": {"of": "atoms"}}
    torch.save(tensors | more | {"split": ["train"] * 22 + ["test"] * 2}, tmp_path / "a.pt")
    assert load(tmp_path / "a.pt").split.tolist() == [0] * 22 + [1] * 2
    torch.save(tensors | {"E": [torch.ones(1, requires_grad=True)] * 24}, tmp_path / "b.pt")
    with pytest.raises(ValueError, match="E: expected an array of numbers"):
        load(tmp_path / "b.pt")


def test_names_of_elements_beside_their_numbers(tmp_path):
    source = arrays()
    names = {"z": np.array(["C"] * 7), "nuclear_charges": source["z"]}
    np.savez(tmp_path / "a.npz", **(source | names))
    assert load(tmp_path / "a.npz").z[:7].tolist() == source["z"].tolist()


@pytest.mark.parametrize("shape", [(1, 3), (24, 1), (1, 1), (3,), (24, 3)])
def test_shapes_of_what_is_periodic(tmp_path, shape):
    data = load(npz(tmp_path / "a.npz", cell=9 * np.eye(3), pbc=np.ones(shape)))
    assert torch.equal(data.cells, 9 * torch.eye(3).double().expand(24, 3, 3))


@pytest.mark.parametrize(
    ("name", "value"),
    [("E", np.array(["-1.0"] * 24)), ("F", np.zeros((24, 7, 3), complex)),
     ("z", np.array(["H"] * 7)), ("weights", np.array(["1"] * 24)),
     ("pbc", np.array(["T", "T", "F"]))],
)  # fmt: skip
def test_arrays_of_no_numbers_are_refused_by_name(tmp_path, name, value):
    path = npz(tmp_path / "data.npz", **{"cell": 9 * np.eye(3), name: value})
    with pytest.raises(ValueError, match=f"^{name}: expected an array of numbers, got dtype"):
        load(path)
    npz(path, **{"units": "eV", "e_unit": np.array(["eV"])})
    assert len(load(path)) == 24


@pytest.mark.parametrize(
    "change", [{"F": lambda x: x.to_sparse()}, {"E": lambda x: x.to(torch.complex128)}]
)
def test_tensors_that_are_no_plain_numbers_are_refused(tmp_path, change):
    tensors = {key: torch.from_numpy(x) for key, x in arrays().items()}
    (name, to), *_ = change.items()
    torch.save(tensors | {"z": tensors["z"].to(torch.uint16)}, tmp_path / "data.pt")
    assert len(load(tmp_path / "data.pt")) == 24
    torch.save(tensors | {name: to(tensors[name])}, tmp_path / "data.pt")
    with pytest.raises(ValueError, match=f"^{name}: expected a dense array of numbers"):
        load(tmp_path / "data.pt")


@pytest.mark.parametrize(
    ("name", "shape"), [("stress", (3, 3, 24)), ("stress", (9, 24)), ("pbc", (3, 24))]
)
def test_axes_in_another_order_are_refused(tmp_path, name, shape):
    path = npz(tmp_path / "data.npz", cell=9 * np.eye(3), **{name: np.ones(shape)})
    with pytest.raises(ValueError, match=rf"^{name}: expected \(24, 3"):
        load(path)


def test_parts_of_the_split_as_bytes_and_as_a_column(tmp_path):
    words = np.array([b"train"] * 20 + [b"test"] * 4)
    for split in (words, np.array([0] * 20 + [1] * 4)[:, None]):
        data = load(npz(tmp_path / "data.npz", split=split))
        assert data.split.tolist() == [0] * 20 + [1] * 4


# What ASE reads


@pytest.mark.parametrize("name", ["data.db", "data.json"])
def test_databases_keep_split_and_weights(tmp_path, name):
    with connect(tmp_path / name) as database:
        for number, atoms in enumerate(some(5)):
            database.write(atoms, config_weight=0.5, split="test" if number > 3 else "train")
    data = load(tmp_path / name)
    assert data.split.tolist() == [0, 0, 0, 0, 1]
    assert data.weights.tolist() == [0.5] * 5


def test_forces_in_the_other_order_of_axes_are_refused(tmp_path):
    with connect(tmp_path / "data.db") as database:
        for number in range(3):
            atoms = calculated("CH4", number)
            labels = {"REF_energy": -1.0, "REF_forces": atoms.calc.results["forces"].T}
            database.write(ase.Atoms("CH4", atoms.positions), data=labels)
    with pytest.raises(ValueError, match=r"REF_forces of frame 0 .*expected shape \(5, 3\), got"):
        load(tmp_path / "data.db")


@pytest.mark.parametrize("name", ["a.extxyz@new.extxyz", "a@300K.extxyz"])
def test_an_at_sign_belongs_to_the_name(tmp_path, name):
    """ASE reads `a.extxyz@0` as the first frame of a file `a.extxyz`."""
    written(tmp_path / "a.extxyz", some(2))
    written(tmp_path / "other.extxyz", some(5)).rename(tmp_path / name)
    assert len(load(tmp_path / name)) == 5


def test_a_calculator_s_label_and_another_of_its_name(tmp_path):
    frames = some()
    for atoms in frames:
        atoms.info["energy"] = atoms.calc.results["energy"]
    assert len(load(written(tmp_path / "same.traj", frames))) == 4
    for atoms in frames:
        atoms.calc.results["stress"] = np.arange(6.0)
        atoms.info["stress"] = np.array([[0, 5, 4], [5, 1, 3], [4, 3, 2.0]])
    frames[0].info["energy"] = frames[0].calc.results["energy"] = np.nan
    assert len(load(written(tmp_path / "others.traj", frames))) == 4
    frames[2].info["energy"] = -1.5
    expected = r"energy of frame 2 in .*expected one value.*got -9 of its calculator and -1.5"
    with pytest.raises(ValueError, match=expected):
        load(written(tmp_path / "other.traj", frames))


def test_keys_that_are_no_words_and_columns_called_data(tmp_path):
    frames = some()
    frames[0].info[1] = "one"
    assert len(load(written(tmp_path / "a.traj", frames))) == 4
    for atoms in frames:
        atoms.info = {"data": "QM9", "key_value_pairs": 3}
    assert len(load(written(tmp_path / "a.extxyz", frames))) == 4


def notes_of(path) -> str:
    """Return the notes of a file's data, in one string."""
    return "\n".join(load(path).notes)


def test_labels_under_other_names_are_said(tmp_path):
    frames = some()
    assert "holds for all" not in notes_of(written(tmp_path / "a.traj", frames))
    frames[1] = calculated(number=1, energy=None, free_energy=-8.0)
    said = notes_of(written(tmp_path / "b.traj", frames))
    assert "1 frames have 'free_energy' and no 'energy': not read" in said
    for atoms in frames:
        atoms.info["REF_energy"] = -3.0
    assert "REF_energy and forces: are they of one calculation?" in notes_of(
        written(tmp_path / "c.traj", frames)
    )


@pytest.mark.parametrize("value", [None, "n/a", np.ones(3)])
def test_an_energy_that_is_not_used_may_be_anything(tmp_path, value):
    frames = some(3, energy=None, free_energy=-1.0)
    for atoms in frames:
        atoms.info |= {"REF_energy": -3.0, "energy": value}
        atoms.arrays["REF_forces"] = atoms.calc.results["forces"]
    assert load(written(tmp_path / "a.traj", frames)).energies.tolist() == [-3.0] * 3


def test_forces_of_three_atoms_are_no_stress(tmp_path):
    frames = some(3)
    for atoms in frames:
        atoms.info["REF_forces"] = atoms.calc.results["forces"].ravel()
    with pytest.raises(ValueError, match=r"REF_forces of frame 0 .*shape \(3, 3\), got \(9,\)"):
        load(written(tmp_path / "a.traj", frames))


@pytest.mark.parametrize(("apart", "said"), [(0.5, True), (0.0, False)])
def test_energies_of_smeared_electrons_are_said(tmp_path, apart, said):
    frames = [calculated(number=k, free_energy=-7.0 - k - apart) for k in range(3)]
    note = "energy and free_energy differ by up to 0.5"
    assert (note in notes_of(written(tmp_path / "a.traj", frames))) == said


def test_periodic_directions_without_a_lattice_vector_are_said(tmp_path):
    frames = some(3)
    for atoms in frames:
        calc, atoms.calc = atoms.calc, None
        atoms.info["energy"], atoms.arrays["forces"] = -1.0, calc.results["forces"]
    frames[1].pbc = True
    path = written(tmp_path / "a.traj", frames)
    assert "1 frames are periodic along directions without a lattice vector" in notes_of(path)
    assert load(path).cells is None


# Isolated atoms


@pytest.mark.parametrize(("box", "isolated"), [(12.0, True), (3.0, False)])
def test_an_atom_far_from_its_images_is_isolated(tmp_path, box, isolated):
    path = written(tmp_path / "a.extxyz", [alone("H", -13.6, box), *some()])
    data = load(path)
    assert data.alone.tolist() == [isolated] + [False] * 4
    assert ("1 frames of one atom in a large cell" in "\n".join(data.notes)) == isolated
    assert data.isolated_energies() == ({1: -13.6} if isolated else {})


def test_a_curve_of_cells_of_one_atom_is_no_set_of_isolated_atoms(tmp_path):
    frames = [alone("Al", -3.7 / k, 3.0 + 2 * k) for k in range(1, 6)]
    data = load(written(tmp_path / "a.extxyz", frames))
    assert not data.alone.any()
    assert data.isolated_energies() == {}


def test_vectors_of_no_cell_are_no_isolated_atom_s(tmp_path):
    atoms = alone("Al", -3.7, 20.0)
    atoms.cell[2] = atoms.cell[1]
    atoms.calc.atoms.cell[:] = atoms.cell
    with pytest.raises(ValueError, match="cell"):
        load(written(tmp_path / "a.traj", [atoms])).edges(3.0)


def test_an_isolated_atom_of_the_test_is_not_that_of_training(tmp_path):
    atoms = [alone("H", -13.6), alone("H", -13.6)]
    for one, split in zip(atoms, ("test", "train"), strict=True):
        one.info["split"] = split
    frames = some()
    for one in frames:
        one.info["split"] = "train"
    for order in (atoms, atoms[::-1]):
        data = load(written(tmp_path / "a.extxyz", [*order, *frames]))
        assert data.isolated_energies() == {1: -13.6}


def test_isolated_atoms_of_test_frames_are_not_used(tmp_path):
    """A label of the test must not shape the model."""
    frames = [[alone("O", -430.0), *some(4)], [alone("H", -500.0), *some(6)[4:]]]
    parts = [load(written(tmp_path / f"{k}.extxyz", x)) for k, x in enumerate(frames)]
    data = joined(parts, [None, 1])
    assert data.isolated_energies() == {8: -430.0}
    assert joined(parts).isolated_energies() == {1: -500.0, 8: -430.0}
    assert "1 isolated atoms among test or validation frames: not used" in summary(data)
    assert not any("among test" in line for line in summary(joined(parts)))


def test_stresses_that_nobody_checks_are_said(tmp_path):
    path = npz(tmp_path / "data.npz", cell=9 * np.eye(3), stress=np.ones((24, 6)))
    assert any(line.startswith("stresses are not checked") for line in summary(load(path)))
    assert not any("stresses" in line for line in summary(load(npz(path))))


# Copies


@pytest.mark.parametrize("change", [(1.0, 2.0, 3.0), (0.0, 0.0, 0.0)])
def test_copies_of_molecules_that_were_moved_are_found(tmp_path, change):
    frames, moved = some(), some()
    for atoms in moved:
        atoms.positions += change
        atoms.calc.atoms.positions += change
    data = [load(written(tmp_path / f"{k}.extxyz", x)) for k, x in enumerate((frames, moved))]
    assert len(joined(data).without_duplicates()) == 4
    with pytest.raises(ValueError, match="split: expected no frame in two parts"):
        joined(data, [0, 1]).without_duplicates()


def test_moved_molecules_with_slightly_other_labels_are_no_contradiction(tmp_path):
    """A program's grid may give them; in the same place it would be one."""
    frames, moved = some(), some()
    for atoms in moved:
        atoms.calc.results["forces"] = atoms.calc.results["forces"] + 0.01
    same = [load(written(tmp_path / f"{k}.extxyz", x)) for k, x in enumerate((frames, moved))]
    with pytest.raises(ValueError, match="data: expected frames that are there once"):
        joined(same).without_duplicates()
    for atoms in moved:
        atoms.positions += 1.0
        atoms.calc.atoms.positions += 1.0
    other = [load(written(tmp_path / f"{k}.extxyz", x)) for k, x in enumerate((frames, moved))]
    assert len(joined(other).without_duplicates()) == 8
