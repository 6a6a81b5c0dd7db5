"""Files that an outsider might bring: keys, shapes, units, labels; each is read as it is."""

from __future__ import annotations

import json
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
import torch
from ase import units
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from contract import assert_equal
from frames import CELL, arrays, npz

from molnets import checkpoint
from molnets.command import run
from molnets.training import Source, joined, load, split
from molnets.training.data import element_energies_of

KCAL = units.kcal / units.mol


def molecules(num: int = 8, symbols: str = "OH2", **key_names: str) -> list[ase.Atoms]:
    """Return frames whose labels stand under names of one's own, in info and arrays."""
    rng = np.random.default_rng(len(symbols))
    frames = []
    for _ in range(num):
        n = len(ase.Atoms(symbols))
        atoms = ase.Atoms(symbols, positions=1.5 * np.arange(3 * n).reshape(n, 3) % 4)
        atoms.positions += rng.normal(0, 0.2, (n, 3))
        if "energy" in key_names:
            atoms.info[key_names["energy"]] = float(rng.normal()) - 7
        if "forces" in key_names:
            atoms.arrays[key_names["forces"]] = rng.normal(size=(n, 3))
        if "stress" in key_names:
            stress = rng.normal(size=(3, 3))
            atoms.info[key_names["stress"]] = (stress + stress.T).ravel()
            atoms.set_cell(5 * np.eye(3) + 0.1)
            atoms.pbc = True
        frames.append(atoms)
    return frames


# Arrays


@pytest.mark.parametrize(
    "names",
    [
        {"R": "R", "E": "E", "F": "F", "z": "z"},
        {"R": "coords", "E": "energies", "F": "forces", "z": "nuclear_charges"},
        {"R": "positions", "E": "energy", "F": "force", "z": "Z"},
        {"R": "pos", "E": "REF_energy", "F": "REF_forces", "z": "atomic_numbers"},
    ],
)
@pytest.mark.parametrize("shape", ["(n,)", "(T, n)", "(T, n, 1)", "one"])
def test_names_and_shapes_of_arrays(tmp_path, names, shape):
    source = arrays()
    if shape == "one":
        source["z"] = np.array(6)
    elif shape != "(n,)":
        source["z"] = np.tile(source["z"], (24, 1)).reshape(24, 7, *([1] if "1" in shape else []))
    np.savez(tmp_path / "data.npz", **{names[key]: x for key, x in source.items()})
    data = load(tmp_path / "data.npz")
    assert_equal(data.energies, torch.from_numpy(source["E"]))
    assert_equal(data.forces, torch.from_numpy(source["F"]).view(-1, 3))
    assert data.z.view(24, 7)[5].tolist() == ([6] * 7 if shape == "one" else [1, 6, 1, 6, 1, 6, 1])
    assert data.labels[:, :2].all() and not data.labels[:, 2].any()
    assert f"energies '{names['E']}'" in data.notes[0] and f"'{names['F']}'" in data.notes[0]


def test_frames_that_are_filled_up_with_zeros(tmp_path):
    source = arrays()
    z = np.tile(source["z"], (24, 1))
    z[3, 4:] = z[7, 6:] = 0
    np.savez(tmp_path / "data.npz", **(source | {"z": z}))
    data = load(tmp_path / "data.npz")
    assert data.n_atoms[[2, 3, 7]].tolist() == [7, 4, 6]
    own = data.atoms_of(torch.tensor([3]))
    assert_equal(data.pos[own], torch.from_numpy(source["R"][3, :4]))
    assert_equal(data.forces[own], torch.from_numpy(source["F"][3, :4]))


@pytest.mark.parametrize(
    "without, labels", [("F", [True, False, False]), ("E", [False, True, False])]
)
def test_energies_or_forces_alone(tmp_path, without, labels):
    source = arrays()
    del source[without]
    np.savez(tmp_path / "data.npz", **source)
    data = load(tmp_path / "data.npz")
    assert data.labels.tolist() == [labels] * 24
    metrics = run(["train", str(tmp_path / "data.npz"), "--out", str(tmp_path / "out"),
                   "--epochs=2", "--cutoff=2.0", "--dim-embedding=8",
                   "--num-filters=8"])  # fmt: skip
    assert ("test_force_mae" in metrics, "test_energy_mae" in metrics) == (labels[1], labels[0])


def test_keys_that_are_chosen_and_keys_that_are_not_there(tmp_path):
    source = arrays()
    names = {"my_e": source.pop("E"), "my_f": source.pop("F")}
    np.savez(tmp_path / "data.npz", **source, **names)
    with pytest.raises(KeyError, match=r"got only \['R', 'my_e', 'my_f', 'z'\]; --energy-key and"):
        load(tmp_path / "data.npz")
    data = load(tmp_path / "data.npz", source=Source(energy_key="my_e", forces_key="my_f"))
    assert_equal(data.energies, torch.from_numpy(names["my_e"]))
    with pytest.raises(KeyError, match=r"--forces-key: expected one of \['R', .*, got 'F'"):
        load(tmp_path / "data.npz", source=Source(energy_key="my_e", forces_key="F"))


def test_stresses_and_weights_of_arrays(tmp_path):
    stress = np.random.default_rng(0).normal(size=(24, 6))
    cell = np.tile(CELL.numpy(), (24, 1, 1))
    npz(tmp_path / "data.npz", stress=stress, cell=cell, weights=np.arange(24.0))
    known = Source(energy_unit="eV", length_unit="Å", stress_unit="GPa")
    data = load(tmp_path / "data.npz", source=known)
    a = stress[3] * units.GPa * 2.9**3
    expected = [[a[0], a[5], a[4]], [a[5], a[1], a[3]], [a[4], a[3], a[2]]]
    assert_equal(data.virials[3], torch.tensor(expected, dtype=torch.float64))
    assert data.labels.all() and data.weights.tolist() == [*range(24)]
    npz(tmp_path / "bad.npz", weights=-np.ones(24))
    with pytest.raises(ValueError, match=r"weights: expected none below 0, got frames \[0, 1,"):
        load(tmp_path / "bad.npz")


# What ASE reads


@pytest.mark.parametrize("energy", ["REF_energy", "energy", "Energy"])
@pytest.mark.parametrize("forces", ["REF_forces", "forces", "force"])
@pytest.mark.parametrize("stress", ["REF_stress", "stress", None])
def test_keys_of_extended_xyz(tmp_path, energy, forces, stress):
    names = {"energy": energy, "forces": forces} | ({"stress": stress} if stress else {})
    frames = molecules(**names)
    ase.io.write(tmp_path / "data.extxyz", frames, format="extxyz")
    data = load(tmp_path / "data.extxyz")
    assert_equal(
        data.energies, torch.tensor([a.info[energy] for a in frames], dtype=torch.float64), 1e-7
    )
    assert_equal(data.forces[:3], torch.from_numpy(frames[0].arrays[forces]), 1e-7)
    if stress:
        volume = frames[1].get_volume()
        expected = torch.from_numpy(frames[1].info[stress].reshape(3, 3)) * volume
        assert_equal(data.virials[1], expected, 1e-5)
    assert data.labels.tolist() == [[True, True, stress is not None]] * 8


def test_a_reference_goes_before_a_calculator_s_results(tmp_path):
    frames = molecules(energy="REF_energy", forces="REF_forces")
    for atoms in frames:
        atoms.calc = SinglePointCalculator(atoms, energy=1.0, forces=np.zeros((3, 3)))
    ase.io.write(tmp_path / "data.extxyz", frames, format="extxyz")
    data = load(tmp_path / "data.extxyz")
    assert (data.energies < 0).all() and data.forces.abs().min() > 0
    chosen = load(tmp_path / "data.extxyz", source=Source(energy_key="energy", forces_key="forces"))
    assert chosen.energies.tolist() == [1.0] * 8 and not chosen.forces.any()


@pytest.mark.parametrize("name", ["data.traj", "data.db", "data.json", "data.extxyz"])
def test_raw_forces_of_held_atoms_in_every_format(tmp_path, name):
    atoms, forces = molecules(1)[0], np.arange(9.0).reshape(3, 3) + 1
    atoms.calc = SinglePointCalculator(atoms, energy=-3.25, forces=forces)
    atoms.set_constraint(FixAtoms([0, 2]))
    ase.io.write(tmp_path / name, atoms)
    data = load(tmp_path / name)
    assert_equal(data.forces, torch.from_numpy(forces), 1e-7)
    assert data.energies.tolist() == [-3.25] and data.energy_unit == "eV"


def test_database_with_labels_in_its_data(tmp_path):
    from ase.db import connect

    with connect(tmp_path / "data.db") as database:
        for n in range(3):
            forces = np.full((3, 3), n + 1.0)
            database.write(molecules(1)[0], data={"my_energy": [n - 4.0], "my_forces": forces})
    source = Source(energy_key="my_energy", forces_key="my_forces")
    with pytest.raises(ValueError, match="frames 0 and 1, which have others"):
        load(tmp_path / "data.db", source=source)  # the same molecule three times
    with connect(tmp_path / "more.db") as database:
        for n, atoms in enumerate(molecules(3)):
            forces = np.full((3, 3), n + 1.0)
            database.write(atoms, data={"my_energy": [n - 4.0], "my_forces": forces})
    data = load(tmp_path / "more.db", source=source)
    assert data.energies.tolist() == [-4, -3, -2] and data.forces[:, 0].tolist() == [1] * 3 + [
        2] * 3 + [3] * 3  # fmt: skip


def test_several_files_and_frames_without_some_labels(tmp_path):
    first = molecules(4, energy="REF_energy", forces="REF_forces")
    del first[1].arrays["REF_forces"], first[2].info["REF_energy"]
    ase.io.write(tmp_path / "a.extxyz", first, format="extxyz")
    ase.io.write(tmp_path / "b.extxyz", molecules(3, "CO", energy="energy", forces="force"),
                 format="extxyz")  # fmt: skip
    data = load(tmp_path / "a.extxyz", tmp_path / "b.extxyz")
    assert data.n_atoms.tolist() == [3] * 4 + [2] * 3
    assert data.labels[:, 0].tolist() == [True, True, False, True, True, True, True]
    assert data.labels[:, 1].tolist() == [True, False, True, True, True, True, True]
    assert (
        "1 of 4 frames have no energies" in data.notes
        and "1 of 4 frames have no forces" in data.notes
    )
    assert not data.forces[3:6].any() and data.energies[2] == 0


def test_at_sign_in_a_name_is_part_of_it(tmp_path):
    ase.io.write(tmp_path / "a.extxyz", molecules(3, energy="energy"), format="extxyz")
    with open(tmp_path / "a.extxyz@b.extxyz", "w") as file:
        ase.io.write(file, molecules(5, energy="energy"), format="extxyz")
    assert len(load(tmp_path / "a.extxyz@b.extxyz")) == 5
    assert len(load(tmp_path / "a.extxyz")) == 3  # control


def test_no_labels_at_all(tmp_path):
    ase.io.write(tmp_path / "a.extxyz", molecules(2, forces="gradient"), format="extxyz")
    with pytest.raises(KeyError, match=r"got frames with \['gradient'.*--energy-key and --forces"):
        load(tmp_path / "a.extxyz")
    with pytest.raises(
        KeyError, match=r"--forces-key: expected one of .*'gradient'.*got 'nothing'"
    ):
        load(tmp_path / "a.extxyz", source=Source(forces_key="nothing"))


def test_isolated_atoms_are_the_energies_of_the_elements(tmp_path):
    frames = molecules(12, energy="energy", forces="forces")
    alone = []
    for symbol, energy in (("H", -10.71), ("O", -430.5)):
        atom = ase.Atoms(symbol, info={"energy": energy, "config_type": "IsolatedAtom"})
        atom.arrays["forces"] = np.zeros((1, 3))
        alone.append(atom)
    alone[0].set_cell([9, 9, 9])
    alone[0].pbc = True
    ase.io.write(tmp_path / "a.extxyz", [*frames, *alone], format="extxyz")
    data = load(tmp_path / "a.extxyz")
    assert data.alone.tolist() == [False] * 12 + [True] * 2
    assert data.isolated_energies() == {1: -10.71, 8: -430.5}
    parts = split(data)
    assert sorted(torch.cat(parts).tolist()) == [*range(12)]
    assert element_energies_of(data, parts[0])[[1, 8]].tolist() == [-10.71, -430.5]


def test_elements_without_an_isolated_atom_are_fitted(tmp_path):
    frames = molecules(6, energy="energy", forces="forces")
    frames += molecules(6, "O2H", energy="energy", forces="forces")
    frames.append(ase.Atoms("H", info={"energy": -10.0}))
    ase.io.write(tmp_path / "a.extxyz", frames, format="extxyz")
    data = load(tmp_path / "a.extxyz")
    found = element_energies_of(data, torch.arange(12))
    counts = torch.tensor([1.0] * 6 + [2.0] * 6).double()
    rest = data.energies[:12] + 10.0 * torch.tensor([2.0] * 6 + [1.0] * 6).double()
    assert found[1] == -10 and float(found[8]) == pytest.approx(
        float(counts @ rest / (counts @ counts))
    )


# Units


@pytest.mark.parametrize(
    "energy_unit, length_unit, force_unit, factors",
    [
        ("kcal/mol", "Å", "", (KCAL, 1.0, KCAL)),
        ("Hartree", "Bohr", "", (units.Hartree, units.Bohr, units.Hartree / units.Bohr)),
        ("Hartree", "Å", "Hartree/Bohr", (units.Hartree, 1.0, units.Hartree / units.Bohr)),
        ("kJ/mol", "nm", "", (units.kJ / units.mol, 10.0, 0.1 * units.kJ / units.mol)),
        ("eV", "Å", "kcal/mol/Å", (1.0, 1.0, KCAL)),
    ],
)
def test_units_are_converted_to_those_of_ase(
    tmp_path, energy_unit, length_unit, force_unit, factors
):
    source = arrays()
    cell = np.tile(CELL.numpy(), (24, 1, 1))
    stress = np.random.default_rng(0).normal(size=(24, 3, 3))
    np.savez(tmp_path / "data.npz", **source, cell=cell, stress=stress)
    how = Source(energy_unit=energy_unit, length_unit=length_unit, force_unit=force_unit)
    data, (E, L, F) = load(tmp_path / "data.npz", source=how), factors
    assert (data.energy_unit, data.length_unit) == ("eV", "Å")
    assert_equal(data.energies, torch.from_numpy(source["E"]) * E)
    assert_equal(data.pos, torch.from_numpy(source["R"]).view(-1, 3) * L)
    assert_equal(data.forces, torch.from_numpy(source["F"]).view(-1, 3) * F)
    assert_equal(data.cells, torch.from_numpy(cell) * L)
    assert_equal(data.virials, torch.from_numpy(stress) * E * 2.9**3)
    assert any(note.startswith("converted to eV and Å from") for note in data.notes)


def test_units_that_nobody_names_are_left_alone(tmp_path):
    data = load(npz(tmp_path / "data.npz"))
    assert (data.energy_unit, data.length_unit) == ("unknown", "unknown")
    reduced = load(tmp_path / "data.npz", source=Source(energy_unit="ε", length_unit="σ"))
    assert (reduced.energy_unit, reduced.length_unit) == ("ε", "σ")
    assert reduced.fingerprint() == data.fingerprint()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"energy_unit": "kcal"}, "energy_unit: expected one of eV, .*got 'kcal'"),
        ({"length_unit": "eV"}, "length_unit: expected one of Å, .*got 'eV'"),
        ({"force_unit": "Hartree"}, "force_unit: expected an energy / a length, .*got Hartree"),
        ({"stress_unit": "Pa"}, "stress_unit: expected one of GPa, .*got 'Pa'"),
    ],
)
def test_units_that_do_not_exist(options, message):
    with pytest.raises(ValueError, match=message):
        Source(**options)


# Frames that are there twice


def test_duplicates_are_left_out_and_said(tmp_path):
    source = arrays()
    twice = {key: np.concatenate([x, x[[3, 5]]]) for key, x in source.items() if key != "z"}
    np.savez(tmp_path / "data.npz", **twice, z=source["z"])
    data = load(tmp_path / "data.npz")
    assert (
        len(data) == 24 and "2 frames are there twice: the second ones are left out" in data.notes
    )
    assert data.fingerprint() == load(npz(tmp_path / "once.npz")).fingerprint()
    np.savez(tmp_path / "split.npz", **twice, z=source["z"], split=np.arange(26) >= 24)
    with pytest.raises(ValueError, match=r"split: .*in two parts .*, got frames 3 and 24"):
        load(tmp_path / "split.npz")
    twice["E"][25] += 0.1
    np.savez(tmp_path / "other.npz", **twice, z=source["z"])
    with pytest.raises(ValueError, match=r"data: .*with the same labels .*, got frames 5"):
        load(tmp_path / "other.npz")


@pytest.mark.parametrize("unit", ["eV", None])
def test_files_of_other_units_are_not_joined(tmp_path, unit):
    ase.io.write(tmp_path / "a.extxyz", molecules(2, energy="energy", forces="forces"))
    npz(tmp_path / "b.npz")
    with pytest.raises(ValueError, match=r"data: expected files of one energy unit, got \['eV', '"):
        load(tmp_path / "a.extxyz", tmp_path / "b.npz")


# The command


def test_separate_files_of_validation_and_test_frames(tmp_path, capsys):
    source, paths = arrays(), {}
    for name, own in (("train", slice(0, 12)), ("valid", slice(12, 18)), ("test", slice(18, 24))):
        paths[name] = str(tmp_path / f"{name}.npz")
        np.savez(paths[name], z=source["z"], **{k: source[k][own] for k in "REF"})
    metrics = run(["train", paths["train"], "--validation-data", paths["valid"], "--test-data",
                   paths["test"], "--out", str(tmp_path / "run"), "--epochs=1", "--cutoff=2.0",
                   "--batch-size=4", "--dim-embedding=8", "--num-filters=8"])  # fmt: skip
    assert [metrics[f"num_{name}"] for name in ("train", "validation", "test")] == [12, 6, 6]
    text = capsys.readouterr().out
    assert "24 frames of 7 to 7 atoms, 0 periodic; elements H C; energies in unknown" in text
    assert "taken: positions 'R', energies 'E', forces 'F', z 'z'" in text
    assert "energies change as forces say" in text
    with pytest.raises(ValueError, match="in two parts of the split"):
        run(["train", paths["train"], "--test-data", paths["train"], "--out", str(tmp_path / "b")])


def test_small_files_train_as_they_are(tmp_path):
    for num in (5, 12):
        source = arrays(num)
        path = tmp_path / f"{num}.npz"
        np.savez(path, **source)
        train, validation, test = split(load(path))
        assert len(train) + len(validation) + len(test) == num
        assert min(len(validation), len(test)) >= 1 and len(train) >= 0.6 * num
    with pytest.raises(ValueError, match="num_train: expected 1 or more frames of 2, got 0"):
        np.savez(tmp_path / "2.npz", **arrays(2))
        split(load(tmp_path / "2.npz"))


def test_a_committee_reports_its_spread(tmp_path, capsys):
    out = tmp_path / "run"
    arguments = ["train", str(npz(tmp_path / "data.npz")), "--out", str(out), "--epochs=1",
                 "--cutoff=2.0", "--batch-size=4", "--dim-embedding=8", "--num-filters=8",
                 "--seeds=3", "--seed=5"]  # fmt: skip
    metrics = run(arguments)
    assert sorted(path.name for path in out.iterdir()) == [
        "metrics.json",
        "seed-5",
        "seed-6",
        "seed-7",
    ]
    each = [json.loads((out / f"seed-{n}" / "metrics.json").read_text())["test_force_mae"]
            for n in (5, 6, 7)]  # fmt: skip
    assert metrics["seeds"] == [5, 6, 7] and len(set(each)) == 3
    assert metrics["test_force_mae"] == pytest.approx(np.mean(each))
    assert metrics["test_force_mae_std"] == pytest.approx(np.std(each, ddof=1))
    assert "test, 3 seeds, mean ± standard deviation: energy_mae" in capsys.readouterr().out
    with pytest.raises(FileExistsError, match=r"out: .*--overwrite to begin anew, got .*seed-5"):
        run(arguments)
    assert run([*arguments, "--overwrite"])["test_force_mae"] == metrics["test_force_mae"]


def test_stresses_are_trained_on_and_reported(tmp_path):
    """Only the stresses are told apart by the volume: a network learns them if they count."""
    source = arrays(24)
    cell = np.tile(CELL.numpy(), (24, 1, 1))
    stress = np.tile(0.3 * np.eye(3), (24, 1, 1))
    source["F"] = source["F"] * 0
    np.savez(tmp_path / "data.npz", **source, cell=cell, stress=stress)
    maes = []
    for rho in (0.0, 1.0):
        metrics = run(["train", str(tmp_path / "data.npz"), "--out", str(tmp_path / f"{rho}"),
                       "--epochs=40", "--cutoff=2.0", "--batch-size=4", "--dim-embedding=8",
                       "--num-filters=8", "--rho-energy=0.0", f"--rho-stress={rho}",
                       "--rho-forces=0.01",
                       "--lr=0.01"])  # fmt: skip
        maes.append(metrics["test_virial_per_atom_mae"])
    assert maes[1] < 0.3 * maes[0]


def test_nothing_is_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"path: expected a data file, got .*nothing"):
        load(tmp_path / "nothing.npz")
    with pytest.raises(ValueError, match="path: expected at least one data file, got none"):
        load()
    Path(tmp_path / "empty.extxyz").write_text("")
    with pytest.raises(ValueError, match=r"^path: expected .*empty"):
        load(tmp_path / "empty.extxyz")


# What outsiders brought


def written(path: Path, frames: list[ase.Atoms]) -> str:
    ase.io.write(path, frames, format="extxyz")
    return str(path)


def test_isolated_atoms_without_an_energy_say_nothing(tmp_path):
    frames = molecules(12, energy="REF_energy", forces="REF_forces")
    alone = [ase.Atoms(symbol, info={"energy": -5.0, "config_type": "IsolatedAtom"})
             for symbol in "HO"]  # fmt: skip
    data = load(written(tmp_path / "a.extxyz", frames + alone))
    assert data.isolated_energies() == {} and not data.alone.any()
    assert element_energies_of(data, torch.arange(12))[[1, 8]].abs().min() > 0.1


def test_isolated_atoms_may_stand_in_training_and_test_files(tmp_path):
    frames = molecules(30, energy="energy", forces="forces")
    alone = [ase.Atoms(symbol, info={"energy": -5.0}) for symbol in "HO"]
    paths = [written(tmp_path / "a.extxyz", alone + frames[:20]),
             written(tmp_path / "b.extxyz", alone + frames[20:])]  # fmt: skip
    metrics = run(["train", paths[0], "--test-data", paths[1], "--out", str(tmp_path / "run"),
                   "--epochs=1", "--batch-size=4"])  # fmt: skip
    assert (metrics["num_test"], metrics["num_train"] + metrics["num_validation"]) == (10, 20)


def test_nothing_is_removed_before_the_data_are_read(tmp_path):
    arguments = ["--out", str(tmp_path / "run"), "--epochs=1", "--cutoff=2.0", "--batch-size=4"]
    run(["train", str(npz(tmp_path / "data.npz")), *arguments])
    before = (tmp_path / "run" / "best.pt").read_bytes()
    with pytest.raises(FileNotFoundError):
        run(["train", str(tmp_path / "typo.npz"), *arguments, "--overwrite"])
    assert (tmp_path / "run" / "best.pt").read_bytes() == before


def test_validation_frames_without_the_stresses_of_training(tmp_path):
    source, cell = arrays(), np.tile(CELL.numpy(), (24, 1, 1))
    np.savez(tmp_path / "a.npz", **source, cell=cell, stress=np.ones((24, 6)))
    other = {k: x + 0.01 if k == "R" else x for k, x in source.items()}
    np.savez(tmp_path / "b.npz", **other, cell=cell)
    metrics = run(["train", str(tmp_path / "a.npz"), "--validation-data", str(tmp_path / "b.npz"),
                   "--out", str(tmp_path / "run"), "--epochs=2", "--cutoff=2.0",
                   "--batch-size=4"])  # fmt: skip
    assert metrics["num_validation"] == 24 and "test_virial_per_atom_mae" in metrics


def test_a_committee_goes_on_and_grows(tmp_path, monkeypatch):
    arguments = ["train", str(npz(tmp_path / "data.npz")), "--out", str(tmp_path / "run"),
                 "--epochs=2", "--cutoff=2.0", "--batch-size=4"]  # fmt: skip
    run([*arguments, "--seeds=2"])
    first = (tmp_path / "run" / "seed-0" / "best.pt").read_bytes()
    metrics = run([*arguments, "--seeds=3", "--resume"])
    assert metrics["seeds"] == [0, 1, 2] and len(first) > 0

    def interrupt(trainer, *_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("molnets.training.trainer.Trainer._step", interrupt)
    run([*arguments, "--seeds=3", "--overwrite"])
    left = {path.name for path in (tmp_path / "run").iterdir() if path.is_dir()}
    assert left == {"seed-0"}  # which was cut short: no old ones stand beside it


def test_a_committee_has_one_split_and_small_batches(tmp_path, capsys):
    """Rare elements and few frames would else end a member that comes late."""
    np.savez(tmp_path / "data.npz", **arrays(6))
    out = tmp_path / "run"
    run(["train", str(tmp_path / "data.npz"), "--out", str(out), "--epochs=1", "--seeds=3"])
    states = [checkpoint.read(out / f"seed-{n}" / "last.pt") for n in range(3)]
    for name in ("train", "validation"):
        assert all(torch.equal(state[name], states[0][name]) for state in states)
    assert "batches of 4" in capsys.readouterr().out
    raw = [torch.cat([x.flatten() for x in state["raw"].values()]) for state in states]
    assert not torch.equal(raw[0], raw[1])


@pytest.mark.parametrize(
    "pbc, periodic", [(False, 0), ([True, True, False], 2), (True, 3), (np.zeros(24), 0)]
)
def test_arrays_that_say_what_is_periodic(tmp_path, pbc, periodic):
    npz(tmp_path / "a.npz", cell=CELL.numpy(), pbc=np.array(pbc))
    data = load(tmp_path / "a.npz")
    found = 0 if data.cells is None else int(data.cells[5].any(dim=1).sum())
    assert found == periodic


def test_numbers_of_atoms_beside_arrays_of_frames(tmp_path):
    n_atoms = np.full(24, 7)
    n_atoms[4] = 5
    assert load(npz(tmp_path / "a.npz", n_atoms=n_atoms)).n_atoms.tolist() == n_atoms.tolist()
    assert load(npz(tmp_path / "b.npz", n_atoms=np.array(7))).n_atoms.tolist() == [7] * 24
    with pytest.raises(ValueError, match=r"n_atoms: expected \(24,\) numbers from 1 to 7, got"):
        load(npz(tmp_path / "c.npz", n_atoms=n_atoms + 1))
    source = arrays()
    flat = {"R": source["R"].reshape(-1, 3), "F": source["F"].reshape(-1, 3), "E": source["E"]}
    np.savez(tmp_path / "d.npz", **flat, z=np.ones(168), n_atoms=n_atoms)
    with pytest.raises(ValueError, match="n_atoms: expected numbers above 0, 168 in all"):
        load(tmp_path / "d.npz")


@pytest.mark.parametrize("names", [("train", "test"), ("Train", "val")])
def test_a_split_in_words(tmp_path, names):
    split_of = np.array([names[n >= 18] for n in range(24)])
    data = load(npz(tmp_path / "a.npz", split=split_of))
    assert data.split.tolist() == [0] * 18 + [1 if names[1] == "test" else 2] * 6
    with pytest.raises(ValueError, match=r"split: expected one of \['train', .*got 'some'"):
        load(npz(tmp_path / "b.npz", split=np.array(["some"] * 24)))


def test_tensors_of_a_graph_and_long_doubles(tmp_path):
    tensors = {name: torch.from_numpy(x) for name, x in arrays().items()}
    torch.save(tensors | {"R": tensors["R"].requires_grad_()}, tmp_path / "a.pt")
    assert not load(tmp_path / "a.pt").pos.requires_grad
    long = {name: x.astype(np.longdouble) for name, x in arrays().items() if name != "z"}
    same = load(npz(tmp_path / "b.npz", **long))
    assert same.fingerprint() == load(npz(tmp_path / "c.npz")).fingerprint()


def test_a_database_s_weights_and_types(tmp_path):
    from ase.db import connect

    with connect(tmp_path / "a.db") as database:
        for n, atoms in enumerate(molecules(3)):
            atoms.calc = SinglePointCalculator(atoms, energy=n - 4.0, forces=np.ones((3, 3)))
            database.write(atoms, config_weight=2.0 + n)
    assert load(tmp_path / "a.db").weights.tolist() == [2, 3, 4]


@pytest.mark.parametrize("unit", [{"stress_unit": "GPa"}, {"force_unit": "Hartree/Bohr"}])
def test_a_unit_beside_units_that_are_not_known(tmp_path, unit):
    with pytest.raises(ValueError, match="energy_unit, length_unit: expected both, where another"):
        load(npz(tmp_path / "a.npz"), source=Source(**unit))


def test_duplicates_that_differ_in_stress_or_weight(tmp_path):
    frames = molecules(4, energy="energy", forces="forces", stress="stress")
    for change in ({"config_weight": 50.0}, {"stress": 9 * frames[0].info["stress"]}):
        twin = frames[0].copy()
        twin.info.update(change)
        with pytest.raises(ValueError, match="labels and weights, got frames 0 and 4"):
            load(written(tmp_path / "a.extxyz", [*frames, twin]))


def test_virials_are_not_taken_for_stresses(tmp_path):
    frames = molecules(4, energy="energy", forces="forces")
    for atoms in frames:
        atoms.info["virial"] = np.ones(9)
    data = load(written(tmp_path / "a.extxyz", frames))
    assert "virial not read: stresses are, in energy / length³" in data.notes


def test_nothing_but_isolated_atoms(tmp_path):
    alone = [ase.Atoms(symbol, info={"energy": -5.0}) for symbol in "HO"]
    with pytest.raises(ValueError, match="data: expected frames that are no isolated atoms, got 2"):
        split(load(written(tmp_path / "a.extxyz", alone)))


# Splits


def frames_in_parts(parts: list[str | int | None], **keys: str) -> list[ase.Atoms]:
    """Return frames that say which part of the split they are in; None for no word."""
    frames = molecules(len(parts), energy="energy", forces="forces", **keys)
    for atoms, part in zip(frames, parts, strict=True):
        if part is not None:
            atoms.info["split"] = part
    return frames


@pytest.mark.parametrize("codes", [[0, 1, 3], [0, -1, 1], [0.0, 0.5, 1.0]])
def test_codes_of_no_part_of_the_split_are_refused(tmp_path, codes):
    npz(tmp_path / "a.npz", split=np.array(codes * 8))
    expected = r"split: expected 0 for train, 1 for test, 2 for validation, got \["
    found = ", ".join(f"'{code:g}'" for code in sorted(codes))
    with pytest.raises(ValueError, match=f"{expected}{found}"):
        load(tmp_path / "a.npz")


@pytest.mark.parametrize("names", [("train", "test", "val"), (0, 1, 2)])
def test_the_split_of_what_ase_reads(tmp_path, names):
    parts = [names[0]] * 5 + [names[1]] * 3 + [names[2]] * 2
    alone = ase.Atoms("H", info={"energy": -1.0})
    data = load(written(tmp_path / "a.extxyz", [*frames_in_parts(parts), alone]))
    assert data.split.tolist() == [0] * 5 + [1] * 3 + [2] * 2 + [0]
    assert "split of the file: 5 train, 3 test, 2 validation" in data.notes
    assert sorted(split(data)[2].tolist()) == [5, 6, 7]


def test_a_split_that_is_not_whole_or_not_known(tmp_path):
    data = load(written(tmp_path / "a.extxyz", frames_in_parts(["train", None, "test", None])))
    assert data.split is None and "split not read: 2 of 4 frames have none" in data.notes
    path = written(tmp_path / "b.extxyz", frames_in_parts(["train", "some"]))
    with pytest.raises(ValueError, match=r"split of frame 1 in .*b.extxyz: expected one of .*some"):
        load(path)
    path = written(tmp_path / "c.extxyz", frames_in_parts([0, 7]))
    with pytest.raises(ValueError, match=r"split: expected 0 for train, .*got \['0', '7'\]"):
        load(path)


def test_the_frames_of_each_part_are_counted(tmp_path):
    data = load(npz(tmp_path / "a.npz", split=np.repeat([0, 1, 2], [18, 4, 2])))
    assert "split of the file: 18 train, 4 test, 2 validation" in data.notes
    assert not any("split" in note for note in load(npz(tmp_path / "b.npz")).notes)


# Stresses


@pytest.mark.parametrize("pbc, kept", [("TTT", 4), ("TTF", 0), ("FFF", 0)])
def test_stresses_without_a_volume_are_said(tmp_path, pbc, kept):
    frames = molecules(4, energy="energy", forces="forces", stress="stress")
    for atoms in frames:
        atoms.pbc = [each == "T" for each in pbc]
    data = load(written(tmp_path / "a.extxyz", frames))
    assert int(data.labels[:, 2].sum()) == kept
    why = "in 4 there is one, but no volume, for want of three periodic directions"
    assert (f"4 of 4 frames have no stresses: {why}" in data.notes) == (kept == 0)


def test_frames_without_a_stress_among_others(tmp_path):
    frames = molecules(4, energy="energy", forces="forces", stress="stress")
    del frames[1].info["stress"]
    data = load(written(tmp_path / "a.extxyz", frames))
    assert "1 of 4 frames have no stresses" in data.notes
    data = load(npz(tmp_path / "b.npz", stress=np.ones((24, 6))))
    assert any("24 of 24 frames have no stresses: in 24 there is" in note for note in data.notes)
    assert not any("no stresses" in note for note in load(npz(tmp_path / "c.npz")).notes)


def test_virials_are_no_stresses_whoever_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"stress_key: expected stresses, .* got REF_virials"):
        Source(stress_key="REF_virials")
    data = load(npz(tmp_path / "a.npz", virial=np.ones((24, 3, 3)), cell=CELL.numpy()))
    assert "virial not read: stresses are, in energy / length³" in data.notes


def test_the_unit_of_stresses_is_said(tmp_path):
    frames = molecules(4, energy="energy", forces="forces", stress="stress")
    data = load(written(tmp_path / "a.extxyz", frames), source=Source(stress_unit="GPa"))
    assert "converted to eV and Å from eV, Å, forces eV/Å, stresses GPa" in data.notes


# Isolated atoms


@pytest.mark.parametrize("kind", ["isolated_atom", "IsolatedAtom", "ISOLATED_ATOM", "isolatedatom"])
def test_isolated_atoms_are_what_they_say_in_any_cell(tmp_path, kind):
    alone = ase.Atoms("H", cell=[9, 9, 9], pbc=True)
    alone.info.update(energy=-13.5, config_type=kind)
    bulk = ase.Atoms("H", cell=[2, 2, 2], pbc=True, info={"energy": -14.0, "config_type": "bulk"})
    data = load(written(tmp_path / "a.extxyz", [alone, bulk]))
    assert data.alone.tolist() == [True, False] and data.isolated_energies() == {1: -13.5}


@pytest.mark.parametrize("scale, apart, ok", [(13, 9e-4, True), (13, 2e-3, False),
                                              (5e5, 0.1, True), (5e5, 0.3, False)])  # fmt: skip
def test_isolated_atoms_of_an_element_have_one_energy(tmp_path, scale, apart, ok):
    energies = {"H": -scale, "He": -scale - apart}
    frames = [ase.Atoms("He", [[x, 0, 0]], info={"energy": energies[name]})
              for x, name in enumerate(energies)]  # fmt: skip
    data = load(written(tmp_path / "a.extxyz", frames))
    if ok:
        assert data.isolated_energies()[2] == pytest.approx(-scale - apart / 2, abs=1e-7)
        return
    with pytest.raises(
        ValueError, match=r"isolated atoms of element He with .*, got energies from"
    ):
        data.isolated_energies()


# Weights


def test_labels_whose_own_weight_is_zero_are_none(tmp_path):
    frames = molecules(6, energy="energy", forces="forces", stress="stress")
    frames[1].info["config_energy_weight"] = 0.0
    for atoms in frames[2:4]:
        atoms.info["config_forces_weight"] = 0
    frames[4].info["config_stress_weight"] = 0.0
    data = load(written(tmp_path / "a.extxyz", frames))
    assert (~data.labels).nonzero().tolist() == [[1, 0], [2, 1], [3, 1], [4, 2]]
    said = "config_forces_weight is 0 in 2 of 6 frames: their forces are left out"
    assert said in data.notes and not any("honoured" in note for note in data.notes)


def test_weights_of_labels_that_cannot_be_honoured_are_named(tmp_path):
    frames = molecules(6, energy="energy", forces="forces")
    for atoms in frames:
        atoms.info.update(config_forces_weight=100.0, config_energy_weight=1.0)
    alone = ase.Atoms("H", info={"energy": -1.0})
    data = load(written(tmp_path / "a.extxyz", [*frames, alone]))
    assert data.labels[:6, :2].all() and not any("honoured" in note for note in data.notes)
    frames[0].info["config_forces_weight"] = 0.5
    data = load(written(tmp_path / "b.extxyz", frames))
    said = "config_forces_weight of 0.5 to 100 not honoured: only 0 and config_weight are"
    assert said in data.notes


@pytest.mark.parametrize("name", ["weights", "weight", "config_weight"])
def test_names_of_weights_of_arrays(tmp_path, name):
    data = load(npz(tmp_path / "a.npz", **{name: np.arange(24.0).reshape(24, 1)}))
    assert data.weights.tolist() == [*range(24)] and f"weights {name!r} taken" in data.notes
    both = {"weights": np.ones(24), "config_weight": np.zeros(24)}
    data = load(npz(tmp_path / "b.npz", **both))
    assert data.weights.all() and "config_weight not read: weights is" in data.notes


# Values


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("energy", "abc", "expected numbers, got 'abc'"),
        ("config_weight", "high", "expected numbers, got 'high'"),
        ("config_weight", np.array([1.0, 2.0]), r"expected shape \(1,\), got \(2,\)"),
        ("config_weight", -1.0, "expected a finite number, none below 0, got -1.0"),
        ("config_forces_weight", "low", "expected numbers, got 'low'"),
    ],
)
def test_values_of_another_kind_are_named_with_file_frame_and_key(tmp_path, key, value, message):
    frames = molecules(3, energy="energy", forces="forces")
    frames[1].info[key] = value
    path = written(tmp_path / "a.extxyz", frames)
    with pytest.raises(ValueError, match=rf"^{key} of frame 1 in .*a.extxyz: {message}"):
        load(path)


def test_dummy_atoms_are_refused(tmp_path):
    frames = molecules(3, energy="energy", forces="forces")
    frames[2].numbers[1] = 0
    path = written(tmp_path / "a.extxyz", frames)
    with pytest.raises(ValueError, match=r"z: expected elements in .*, got dummy .* in frame 2"):
        load(path)


@pytest.mark.parametrize("offset, spacing", [(-97_000, "0.0078"), (-100, None)])
def test_energies_of_few_digits_are_said(tmp_path, offset, spacing):
    exact = arrays()["E"] + offset
    coarse = exact.astype("float32")
    known = Source(energy_unit="eV", length_unit="Å")
    for number, energies in enumerate((exact, coarse, coarse.astype("float64"))):
        data = load(npz(tmp_path / f"{number}.npz", E=energies), source=known)
        said = [note for note in data.notes if "no more digits than float32" in note]
        assert len(said) == (number > 0 and spacing is not None)
        assert all(f"these lie {spacing} eV apart" in note for note in said)


def test_rounded_copies_in_other_files_are_found(tmp_path):
    frames = molecules(20, energy="energy", forces="forces")
    data = load(written(tmp_path / "a.extxyz", frames))
    copies = [atoms.copy() for atoms in frames[:5]]
    for atoms in copies:
        atoms.positions = atoms.positions.round(4)
        atoms.arrays["forces"] = atoms.arrays["forces"].round(4)
    paths = tmp_path / "a.extxyz", written(tmp_path / "b.extxyz", copies)
    once = load(*paths)
    assert once.fingerprint() == data.fingerprint()
    said = "5 frames are there twice, 5 of them but for rounding or a shift: the second"
    assert once.notes[-1].startswith(said)
    with pytest.raises(ValueError, match=r"split: expected no frame in two parts"):
        joined([load(path) for path in paths], [0, 1]).without_duplicates()
