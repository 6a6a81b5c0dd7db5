"""The command `molnets`: train, test, md, info; new networks; and what is said of wrong input."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
import torch
from ase import units
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.md.verlet import VelocityVerlet
from frames import FLAGS, ROOT, arrays, npz

import molnets
from molnets import ModelCalculator, checkpoint
from molnets.command import main, run
from molnets.command.md import Protocol
from molnets.command.table import table
from molnets.command.train import by_heart
from molnets.dynamics import lennard_jones
from molnets.networks import NETWORKS, schnet
from molnets.training import Dataset, Settings, Source, Trainer, evaluate, load, recipes, split

BRIEF = [*FLAGS, "--epochs=2"]
UNITS = ["--energy-unit=eV", "--length-unit=Å"]


def mixed(path: Path) -> Path:
    """Write frames of 3 to 7 atoms of a Lennard-Jones cluster, every third of them for testing."""
    source, parts, counts = arrays(), [], []
    for frame, pos in enumerate(torch.from_numpy(source["R"])):
        n = 3 + frame % 5
        energy, forces = lennard_jones()(pos[None, :n])
        parts.append((source["z"][:n], pos[:n].numpy(), forces[0].numpy(), float(energy) - 14 * n))
        counts.append(n)
    z, pos, forces, energies = zip(*parts, strict=True)
    np.savez(path, z=np.concatenate(z), R=np.concatenate(pos), F=np.concatenate(forces),
             E=energies, n_atoms=counts, split=np.arange(24) % 3 == 0)  # fmt: skip
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Return the folder of a run in float64, the frames beside its results."""
    out = tmp_path_factory.mktemp("trained")
    data = mixed(out / "data.npz")
    run(["train", str(data), "--out", str(out), *BRIEF, *UNITS, "--float64"])
    return out


@pytest.fixture
def start(tmp_path) -> Path:
    """Return a file of the atoms of the cluster, at rest."""
    source = arrays()
    ase.io.write(tmp_path / "start.extxyz", ase.Atoms(source["z"], source["R"][0]))
    return tmp_path / "start.extxyz"


def with_card(model: Path, path: Path, **changes: object) -> Path:
    """Write a checkpoint with another card."""
    potential = checkpoint.load(model)
    potential.card = replace(potential.card, **changes)
    checkpoint.save(potential, path)
    return path


def write(path: Path, frames: list[int], move: float) -> None:
    """Write frames of the cluster with the eight decimals of a text, moved by a vector."""
    source = arrays()
    every = [ase.Atoms(source["z"], source["R"][frame] + move) for frame in frames]
    for atoms, frame in zip(every, frames, strict=True):
        labels = {"energy": source["E"][frame], "forces": source["F"][frame]}
        atoms.calc = SinglePointCalculator(atoms, **labels)
    ase.io.write(path, every)


def frames_of(results: dict[str, dict]) -> dict[str, int]:
    """Return the number of frames of each row."""
    return {name: row["frames"] for name, row in results.items()}


# Train


@pytest.mark.parametrize(
    ("changes", "said"),
    [({}, True), ({"validation": 1.05}, False), ({"loss": 3.0}, False), ({"epoch": 19}, False),
     ({"epoch": 21}, False), ({"loss": math.nan}, False)],
)  # fmt: skip
def test_what_was_learned_by_heart_is_said(changes, said):
    """At its end, a training that went on for longer than its frames have to say."""
    rows = [
        {"epoch": 5, "validation": 2.0, "loss": 3.0},
        {"epoch": 11, "validation": 1.0, "loss": 2.0},
        {"epoch": 22, "validation": 1.2, "loss": 0.1} | changes,
    ]
    assert bool(by_heart(rows)) == said
    if said:
        assert "after epoch 11 of 22" in by_heart(rows)


def test_command_writes_what_it_promises(tmp_path, capsys):
    data, out = npz(tmp_path / "data.npz"), tmp_path / "run"
    metrics = run(["train", str(data), "--out", str(out), *BRIEF])
    assert json.loads((out / "metrics.json").read_text()) == metrics
    assert {"test_energy_mae", "test_force_mae", "num_parameters", "seconds"} <= metrics.keys()
    names = {path.name for path in out.iterdir()}
    figures = {"energy_parity.svg", "force_parity.svg", "learning_curve.svg"}
    assert names == {"best.pt", "last.pt", "history.csv", "metrics.json"} | figures
    assert "force MAE" in capsys.readouterr().out
    assert (metrics["epochs"], metrics["num_train"]) == (2, 16)
    assert (metrics["num_validation"], metrics["num_test"]) == (4, 4)
    settings = Settings(epochs=2, batch_size=4, recipe="molecule")
    values = recipes.values_of("molecule", "schnet")
    given = {name[2:].replace("-", "_") for name in re.findall(r"--[a-z-]+", " ".join(BRIEF))}
    assert metrics["settings"] == asdict(recipes.with_values(settings, values, given))
    assert metrics["network"] == "schnet"
    sizes = schnet.Sizes(8, 8, 1, 8, 2.0)
    assert metrics["sizes"] == asdict(recipes.with_values(sizes, values, given))
    assert metrics["energy_unit"] == "unknown"


def test_test_errors_are_those_of_the_best_weights_on_the_test_frames(trained):
    potential, metrics = (
        checkpoint.load(trained / "best.pt"), json.loads((trained / "metrics.json").read_text()),
    )  # fmt: skip
    data = load(trained / "data.npz")
    e, f = residuals(trained, potential, range(0, 24, 3))
    expected = {"energy_mae": np.abs(e).mean(), "energy_rmse": np.sqrt((e**2).mean()),
                "force_mae": np.abs(f).mean(), "force_rmse": np.sqrt((f**2).mean()),
                "energy_per_atom_mae": np.abs(e / data.n_atoms[::3].numpy()).mean()}  # fmt: skip
    assert potential.card.errors == pytest.approx(expected)
    for name, value in expected.items():
        assert metrics[f"test_{name}"] == pytest.approx(value)
    assert checkpoint.load(trained / "last.pt").card.errors == {}
    card = potential.card
    assert (card.energy_unit, card.length_unit) == ("eV", "Å")
    assert card.num_frames == 16 - 4 and card.elements == [1, 6]
    assert card.fingerprint == data.fingerprint()
    assert next(potential.parameters()).dtype == torch.float64


def test_weights_that_are_tested_are_the_best_not_the_last(tmp_path, monkeypatch):
    def worse_in_the_end(trainer: Trainer) -> None:
        trainer.run_epoch()
        with torch.no_grad():
            for weight in (*trainer.weights, *trainer.averages):
                weight += torch.randn_like(weight)
        trainer.run_epoch()

    monkeypatch.setattr(Trainer, "run", worse_in_the_end)
    data = npz(tmp_path / "data.npz")
    metrics = run(["train", str(data), "--out", str(tmp_path), *BRIEF])
    frames, test = load(data), split(load(data), 0, 4, 4, 0)[2]
    best, last = (
        evaluate(checkpoint.load(tmp_path / name), frames, test).errors.force_mae
        for name in ("best.pt", "last.pt")
    )
    assert metrics["test_force_mae"] == best != last


def residuals(folder: Path, potential, frames) -> tuple[np.ndarray, np.ndarray]:
    """Return energies, (T,), and forces, (N, 3), less those of the file, frame by frame."""
    with np.load(folder / "data.npz") as file:
        content = dict(file)
    first = np.append(0, content["n_atoms"].cumsum())
    e, f = [], []
    for frame in frames:
        own = slice(first[frame], first[frame + 1])
        z, pos = (torch.from_numpy(content[name][own]) for name in "zR")
        batch = torch.zeros(len(z), dtype=torch.int64)
        energy, forces = potential.energy_and_forces(z.view(-1, 1), pos, batch)
        e.append(float(energy) - content["E"][frame])
        f.append(forces.numpy() - content["F"][own])
    return np.array(e), np.concatenate(f)


def test_seed_decides_split_and_weights(tmp_path):
    data, models = npz(tmp_path / "data.npz"), []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(["train", str(data), "--out", str(tmp_path / name), *BRIEF, f"--seed={seed}"])
        state = checkpoint.read(tmp_path / name / "last.pt")
        train, validation, _ = split(load(data), 0, 4, 4, seed)
        assert torch.equal(state["train"], train) and torch.equal(state["validation"], validation)
        models.append(state["model"])
    first, same, other = models
    assert all(torch.equal(first[name], same[name]) for name in first)
    name = "network.readout.0.weight"
    assert (first[name] - other[name]).abs().max() > 1e-2


def interrupt_after(num_steps: int, monkeypatch) -> None:
    step, calls = Trainer._step, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) > num_steps:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(Trainer, "_step", interrupted)


def test_interrupted_command_is_tested_and_can_be_resumed(tmp_path, monkeypatch):
    data = npz(tmp_path / "data.npz")
    command = ["train", str(data), *FLAGS, "--epochs=3", "--out"]
    run([*command, str(tmp_path / "whole")])
    with monkeypatch.context() as patch:
        interrupt_after(6, patch)
        metrics = run([*command, str(tmp_path / "broken")])
    assert metrics["epochs"] == 1 and metrics["test_force_mae"] > 0
    metrics = run([*command, str(tmp_path / "broken"), "--resume"])
    assert metrics["epochs"] == 3
    one, two = (checkpoint.read(tmp_path / name / "last.pt") for name in ("whole", "broken"))
    for name, tensor in one["raw"].items():
        assert torch.equal(tensor, two["raw"][name]), name
    assert [row["epoch"] for row in two["history"]] == [1, 2, 3]


def test_run_that_goes_on_keeps_its_data_and_its_split(tmp_path):
    data, out = npz(tmp_path / "data.npz"), tmp_path / "run"
    other = npz(tmp_path / "other.npz", R=arrays()["R"] + 1.0)
    flags = ["--out", str(out), *BRIEF, "--num-train=14"]
    run(["train", str(data), *flags])
    split = r"num_train, num_validation, num_test: expected 14 frames to train on and 4 for valid"
    for path, more, message in (
        (data, ["--num-train=13"], f"{split}.* got 13 and 4$"),
        (data, ["--num-test=3"], f"{split}.* got as many, but others$"),
        (other, [], "data: expected the frames of .*, got others$"),
        (other, ["--num-train=13"], "data: expected the frames of .*, got others$"),
        (data, ["--seed=1"], "seed: expected that of .*, 0, got 1"),
    ):
        with pytest.raises(ValueError, match=message):
            run(["train", str(path), *flags, *more, "--resume"])
    assert run(["train", str(data), *flags, "--resume"])["epochs"] == 2  # control


def test_command_interrupted_at_once_is_tested_all_the_same(tmp_path, monkeypatch):
    data, out = npz(tmp_path / "data.npz"), tmp_path / "run"
    interrupt_after(0, monkeypatch)
    metrics = run(["train", str(data), "--out", str(out), *BRIEF])
    assert metrics["epochs"] == 0 and math.isfinite(metrics["test_force_mae"])
    assert (out / "best.pt").exists() and not (out / "learning_curve.svg").exists()


def run_two_processes(*command: str) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([*torchrun, "-m", "molnets", "train", *command],
                   check=True, env=environment, capture_output=True, timeout=600)  # fmt: skip


@pytest.mark.slow
def test_two_processes_keep_to_one_clock(tmp_path):
    data = npz(tmp_path / "data.npz")
    flags = [*FLAGS, "--epochs=100000", "--minutes=0.02", "--out", str(tmp_path / "run")]
    run_two_processes(str(data), *flags)
    assert checkpoint.read(tmp_path / "run" / "last.pt")["epoch"] >= 1


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(tmp_path):
    data = npz(tmp_path / "data.npz")
    command = [str(data), *FLAGS, "--epochs=3", "--float64", "--out"]
    run(["train", *command, str(tmp_path / "one")])
    run_two_processes(*command, str(tmp_path / "two"))
    one, two = (checkpoint.read(tmp_path / name / "last.pt")["model"] for name in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], rtol=1e-5, atol=1e-7)
    one, two = (checkpoint.read(tmp_path / name / "last.pt")["history"] for name in ("one", "two"))
    for a, b in zip(one, two, strict=True):
        for name in ("epoch", "loss", "energy_mae", "force_mae"):
            assert a[name] == pytest.approx(b[name], rel=1e-6), name


# Test


def rows_of(text: str) -> dict[str, list[float]]:
    """Return the numbers of the tables by what stands in the first column."""
    lines = (re.split(r"\s{2,}", line) for line in text.splitlines())
    return {line[0]: line[1:] for line in lines if len(line) > 1}


def test_errors_of_each_split_and_element_are_those_of_numpy(trained, tmp_path, capsys):
    path = tmp_path / "errors.json"
    results = run(["test", str(trained / "best.pt"), str(trained / "data.npz"),
                   "--json", str(path)])  # fmt: skip
    text = capsys.readouterr().out
    assert "energies in eV, forces in eV/Å" in text
    assert re.search(r"^train: [0-9]+ of its 16 frames trained this network$", text, re.MULTILINE)
    assert json.loads(path.read_text()) == results
    rows, potential = rows_of(text), checkpoint.load(trained / "best.pt")
    with np.load(trained / "data.npz") as file:
        z, n_atoms = file["z"], file["n_atoms"]
    atom_frames = np.repeat(np.arange(24), n_atoms)
    expected = {"split": ["frames", "energy MAE", "RMSE", "per atom MAE", "force MAE", "RMSE"],
                "split, element": ["atoms", "force MAE", "RMSE"]}  # fmt: skip
    for name, frames in (("train", np.flatnonzero(np.arange(24) % 3)), ("test", range(0, 24, 3))):
        e, f = residuals(trained, potential, frames)
        numbers = (np.abs(e).mean(), np.sqrt((e**2).mean()), np.abs(e / n_atoms[frames]).mean(),
                   np.abs(f).mean(), np.sqrt((f**2).mean()))  # fmt: skip
        expected[name] = [str(len(frames)), *(f"{x:.4g}" for x in numbers)]
        own_z = np.concatenate([z[atom_frames == frame] for frame in frames])
        for element, symbol in ((1, "H"), (6, "C")):
            own = f[own_z == element]
            errors = np.abs(own).mean(), np.sqrt((own**2).mean())
            expected[f"{name}, {symbol}"] = [str(len(own)), *(f"{x:.4g}" for x in errors)]
            assert results[name]["elements"][symbol]["force_mae"] == pytest.approx(errors[0])
    assert rows == expected
    assert expected["train, H"][1] != expected["train, C"][1]  # control: they can be told apart


def test_file_without_splits_is_tested_as_a_whole(trained, tmp_path, capsys):
    data = npz(tmp_path / "data.npz", R=1.001 * arrays()["R"])  # other frames
    results = run(["test", str(trained / "best.pt"), str(data)])
    text = capsys.readouterr().out
    assert list(results) == ["all"] and results["all"]["frames"] == 24
    assert [name for name in rows_of(text) if name.startswith("all")] == ["all", "all, H", "all, C"]
    assert "trained" not in text


def test_frames_that_the_network_has_seen_have_rows_of_their_own(tmp_path, capsys):
    """In the file of the run, and in others that hold some of its frames, rounded and moved."""
    data, out = npz(tmp_path / "data.npz"), tmp_path / "run"
    metrics = run(["train", str(data), "--out", str(out), *BRIEF, *UNITS])
    parts = checkpoint.read(out / "last.pt")
    some = [*parts["train"][:5].tolist(), *parts["validation"][:1].tolist()]
    some += sorted(set(range(24)) - {*parts["train"].tolist(), *parts["validation"].tolist()})
    write(tmp_path / "some.extxyz", some[::-1], move=3.0)
    write(tmp_path / "train.extxyz", some[:5], move=0.0)
    capsys.readouterr()
    for path in (out / "best.pt", out / "last.pt"):
        results = run(["test", str(path), str(data), *UNITS])
        said = capsys.readouterr().out
        assert "train: frames that trained this network\nvalidation: frames that chose its" in said
        assert "\nunseen: frames that did neither\n" in said
        assert frames_of(results) == {"train": 16, "validation": 4, "unseen": 4}
    assert results["train"]["force_mae"] != results["unseen"]["force_mae"]  # control
    results = run(["test", str(out / "best.pt"), str(tmp_path / "some.extxyz"), *UNITS])
    assert frames_of(results) == {"train": 5, "validation": 1, "unseen": 4}
    assert results["unseen"]["force_mae"] == pytest.approx(metrics["test_force_mae"], rel=1e-4)
    results = run(["test", str(out / "best.pt"), str(tmp_path / "train.extxyz"), *UNITS])
    assert frames_of(results) == {"train": 5}


def test_frames_of_a_files_own_split_that_the_network_has_seen_are_counted(tmp_path, capsys):
    data, out = npz(tmp_path / "data.npz"), tmp_path / "run"
    run(["train", str(data), "--out", str(out), *BRIEF, *UNITS])
    parts = checkpoint.read(out / "last.pt")
    codes = np.ones(24, dtype=int)  # all for testing
    codes[parts["train"][:5]] = 0
    capsys.readouterr()
    results = run(["test", str(out / "best.pt"), str(npz(tmp_path / "b.npz", split=codes)), *UNITS])
    assert frames_of(results) == {"train": 5, "test": 19}
    text = capsys.readouterr().out
    assert "train: 5 of its 5 frames trained this network\n" in text
    assert "test: 11 of its 19 frames trained this network\n" in text
    assert "test: 4 of its 19 frames chose its weights\n" in text
    assert "train: 0 of" not in text


def test_checkpoint_that_does_not_say_what_it_has_seen_is_told(trained, tmp_path, capsys):
    path = with_card(trained / "best.pt", tmp_path / "lone.pt")
    assert list(run(["test", str(path), str(npz(tmp_path / "data.npz"))])) == ["all"]
    assert "not known which frames trained the network" in capsys.readouterr().out
    assert list(run(["test", str(path), str(trained / "data.npz"), *UNITS])) == ["train", "test"]
    assert "the network was trained on frames of this file\n" in capsys.readouterr().out


def test_frames_of_no_weight_are_unseen(tmp_path):
    weights = np.ones(24)
    weights[::2] = 0.0
    data, out = npz(tmp_path / "data.npz", weights=weights), tmp_path / "run"
    run(["train", str(data), "--out", str(out), *BRIEF, *UNITS])
    results = run(["test", str(out / "best.pt"), str(data), *UNITS])
    train = checkpoint.read(out / "last.pt")["train"]
    counted = int((train % 2 == 1).sum())
    assert 0 < counted < 16
    assert frames_of(results) == {"train": counted, "validation": 4, "unseen": 20 - counted}


def test_doubtful_frames_of_each_part_are_named(tmp_path, capsys, monkeypatch):
    def first(found, data: Dataset, frames: torch.Tensor) -> dict[str, list[int]]:
        assert len(found.energies) == len(frames)
        return {"energies": [], "forces": frames[:1].tolist()}

    for name in ("train", "test"):
        monkeypatch.setattr(sys.modules[f"molnets.command.{name}"], "doubtful", first)
    data, out = npz(tmp_path / "data.npz"), tmp_path / "run"
    found = run(["train", str(data), "--out", str(out), *BRIEF])["doubtful"]
    state = checkpoint.read(out / "last.pt")
    used = torch.cat([state["train"], state["validation"]]).tolist()
    assert len(found["forces"]) == 3 and found["energies"] == []
    assert {int(state["train"][0]), int(state["validation"][0])} < {*found["forces"]}
    assert len({*found["forces"]} - {*used}) == 1  # and one of the test
    said = re.compile(r"^forces of frames ([0-9, ]+) \(", re.MULTILINE)
    assert said.findall(capsys.readouterr().out) == [", ".join(map(str, found["forces"]))]
    assert json.loads((out / "metrics.json").read_text())["doubtful"] == found
    run(["test", str(out / "best.pt"), str(data)])
    assert len(said.findall(capsys.readouterr().out)[0].split(", ")) == 3


def test_data_in_other_units_is_refused(trained, tmp_path):
    source = arrays()
    atoms = ase.Atoms(source["z"], source["R"][0])
    atoms.calc = SinglePointCalculator(atoms, energy=source["E"][0], forces=source["F"][0])
    ase.io.write(tmp_path / "data.extxyz", atoms)
    data = str(tmp_path / "data.extxyz")
    assert run(["test", str(trained / "best.pt"), data])["all"]["frames"] == 1
    path = with_card(trained / "best.pt", tmp_path / "kcal.pt", energy_unit="kcal/mol")
    with pytest.raises(ValueError, match="data: expected energies in kcal/mol, got eV"):
        run(["test", str(path), data])
    path = with_card(trained / "best.pt", tmp_path / "bohr.pt", length_unit="Bohr")
    with pytest.raises(ValueError, match="data: expected lengths in Bohr, got Å"):
        run(["test", str(path), data])
    path = with_card(trained / "best.pt", tmp_path / "any.pt", energy_unit="unknown")
    assert run(["test", str(path), data])["all"]["frames"] == 1


def test_units_that_one_side_alone_knows_are_said_to_be_assumed(trained, tmp_path, capsys):
    data, model = str(npz(tmp_path / "data.npz")), str(trained / "best.pt")
    nothing = {"energy_unit": "unknown", "length_unit": "unknown"}
    blank = str(with_card(trained / "best.pt", tmp_path / "blank.pt", **nothing))
    half = str(with_card(trained / "best.pt", tmp_path / "half.pt", length_unit="unknown"))
    both = "energies in eV and lengths in Å"
    for path, flags, said in (
        (model, [], [f"the file's units are unknown: {both}, the model's, are assumed; --energy"]),
        (blank, UNITS, [f"the model's units are unknown: {both}, the file's, are assumed; train"]),
        (half, [], ["the file's units are unknown: energies in eV, the model's, are assumed; --"]),
        (half, UNITS, ["the model's units are unknown: lengths in Å, the file's, are assumed; t"]),
        (model, UNITS, []),
        (blank, [], []),
    ):
        run(["test", path, data, *flags])
        lines = [line for line in capsys.readouterr().out.splitlines() if "unknown" in line]
        assert [line[: len(text)] for line, text in zip(lines, said, strict=True)] == said
        assert all("--energy-unit and --length-unit say" in line for line in lines)


def test_table():
    text = table(("name", "count", "x"), [("one", "1", "0.25"), ("twenty", "20", "3")])
    lines = ["name    count     x", "one         1  0.25", "twenty     20     3"]
    assert text.splitlines() == lines


# Info


def test_info_prints_the_card(trained, capsys):
    run(["info", str(trained / "best.pt")])
    lines = capsys.readouterr().out.splitlines()
    rows = {line[:26].rstrip(): line[26:] for line in lines}
    assert rows["network"] == "schnet"
    assert rows["  cutoff"] == "2"
    assert rows["elements"] == "H C"
    assert rows["frames trained on"] == "12"
    errors = checkpoint.load(trained / "best.pt").card.errors
    assert rows["test force mae"] == f"{errors['force_mae']:.4g} eV/Å"


# Dynamics


def simulate(trained: Path, start: Path, out: Path, *flags: str) -> list[ase.Atoms]:
    """Run dynamics of short steps; return the frames that were written."""
    last = run(["md", str(trained / "best.pt"), str(start), "--out", str(out),
                "--timestep=0.1", *flags])  # fmt: skip
    frames = ase.io.read(out, index=":")
    np.testing.assert_allclose(frames[-1].positions, last.positions, atol=1e-7)
    return frames


def test_trajectory_is_read_by_ase_with_all_that_belongs_to_it(trained, start, tmp_path, capsys):
    frames = simulate(trained, start, tmp_path / "a.extxyz", "--steps=25", "--every=10")
    assert len(frames) == 3  # after 10, 20 and 25 steps
    text = capsys.readouterr().out
    assert "25 steps of 0.1 fs, langevin" in text and f"3 frames in {tmp_path}" in text
    temperatures = [atoms.get_temperature() for atoms in frames]
    assert f"mean temperature {np.mean(temperatures):.1f} K" in text
    calculator = ModelCalculator(trained / "best.pt")
    for atoms in frames:
        assert atoms.numbers.tolist() == [1, 6, 1, 6, 1, 6, 1]
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        assert energy == pytest.approx(calculator.get_potential_energy(atoms), abs=1e-5)
        np.testing.assert_allclose(forces, calculator.get_forces(atoms), atol=1e-5)
        assert np.abs(atoms.get_momenta()).max() > 1e-2
    assert np.abs(frames[0].positions - frames[1].positions).max() > 1e-3


@pytest.mark.filterwarnings("default::UserWarning")
def test_units_that_are_assumed_are_said_in_one_line(trained, start, tmp_path, capsys, monkeypatch):
    model = with_card(trained / "best.pt", tmp_path / "any.pt", energy_unit="unknown")
    said = []
    for path in (model, trained / "best.pt"):
        command = ["md", str(path), str(start), "--steps=1", "--out", str(tmp_path / path.stem)]
        monkeypatch.setattr(sys, "argv", ["molnets", *command])
        main()
        said.append([x for x in capsys.readouterr().err.splitlines() if x.startswith("molnets: ")])
    assert [len(lines) for lines in said] == [1, 0]
    assert "units are unknown: energies in eV are assumed" in said[0][0]
    assert "--energy-unit" in said[0][0]


def test_frames_are_those_of_their_steps(trained, start, tmp_path):
    each = simulate(trained, start, tmp_path / "a.extxyz", "--steps=9", "--every=1")
    some = simulate(trained, start, tmp_path / "b.extxyz", "--steps=9", "--every=4")
    assert (len(each), len(some)) == (9, 3)
    for atoms, step in zip(some, (4, 8, 9), strict=True):
        np.testing.assert_array_equal(atoms.positions, each[step - 1].positions)
        np.testing.assert_array_equal(atoms.get_momenta(), each[step - 1].get_momenta())
    atoms = ase.io.read(tmp_path / "a.extxyz")  # the last one, with its velocities
    atoms.calc = ModelCalculator(trained / "best.pt")
    frames = simulate(trained, tmp_path / "a.extxyz", tmp_path / "c.extxyz", "--ensemble=nve",
                      "--steps=5", "--every=3")  # fmt: skip
    dynamics = VelocityVerlet(atoms, timestep=0.1 * units.fs)
    for frame, steps in zip(frames, (3, 2), strict=True):  # ASE by hand
        dynamics.run(steps)
        np.testing.assert_allclose(frame.positions, atoms.positions, atol=1e-6)


def test_same_seed_is_identical_and_another_is_not(trained, start, tmp_path):
    texts = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        simulate(trained, start, tmp_path / f"{name}.extxyz", "--steps=10", f"--seed={seed}")
        texts.append((tmp_path / f"{name}.extxyz").read_bytes())
    assert texts[0] == texts[1] != texts[2]
    first, second = (
        simulate(trained, start, tmp_path / f"{seed}.extxyz", "--ensemble=nve", f"--seed={seed}",
                 "--steps=1", "--timestep=0.001")[0].get_velocities()
        for seed in (0, 1)
    )  # fmt: skip
    assert np.abs(first - second).max() > 1e-2  # it decides velocities, too


def test_noise_of_langevin_has_the_temperature(trained, start, tmp_path):
    """All 21 freedoms have 300 K: the centre of mass is not held, which would leave 18."""
    frames = simulate(trained, start, tmp_path / "a.extxyz", "--steps=2500", "--timestep=0.5",
                      "--friction=0.3", "--every=10")  # fmt: skip
    temperatures = [frame.get_temperature() for frame in frames[30:]]
    assert np.mean(temperatures) == pytest.approx(300, rel=0.06)
    momenta = np.array([frame.get_momenta().sum(axis=0) for frame in frames[30:]])
    mass = frames[0].get_masses().sum()
    assert (momenta**2).mean() / mass == pytest.approx(300 * units.kB, rel=0.3)


def test_energy_is_conserved_and_its_error_is_of_second_order(trained, start, tmp_path):
    worst = []
    for name, dt, every in (("a", 0.2, 1), ("b", 0.1, 2)):
        frames = simulate(trained, start, tmp_path / f"{name}.extxyz", "--ensemble=nve",
                          f"--timestep={dt}", f"--steps={100 * every}", f"--every={every}",
                          "--temperature=3000")  # fmt: skip
        kinetic = np.array([atoms.get_kinetic_energy() for atoms in frames])
        total = kinetic + [atoms.get_potential_energy() for atoms in frames]
        worst.append(np.ptp(total))
    assert np.ptp(kinetic) > 0.05 and worst[1] < 0.02 * np.ptp(kinetic)
    assert 3 < worst[0] / worst[1] < 5


def test_units_of_time_are_femtoseconds(trained, tmp_path):
    """An atom without neighbours flies straight: 20 steps of 2 fs at 0.01 Å/fs are 0.4 Å."""
    atoms = ase.Atoms("H", [[0.0, 0.0, 0.0]])
    atoms.set_velocities([[0.01 / units.fs, 0, 0]])
    ase.io.write(tmp_path / "atom.extxyz", atoms)
    frames = simulate(trained, tmp_path / "atom.extxyz", tmp_path / "a.extxyz", "--ensemble=nve",
                      "--timestep=2", "--steps=20")  # fmt: skip
    np.testing.assert_allclose(frames[-1].positions, [[0.4, 0, 0]], atol=1e-6)


def test_velocities_of_the_start_are_kept(trained, start, tmp_path):
    atoms = ase.io.read(start)
    velocities = 0.01 * np.random.default_rng(0).normal(size=(7, 3))
    atoms.set_velocities(velocities)
    ase.io.write(tmp_path / "moving.extxyz", atoms)
    brief = ["--ensemble=nve", "--steps=1", "--timestep=0.001"]
    kept = simulate(trained, tmp_path / "moving.extxyz", tmp_path / "a.extxyz", *brief)[-1]
    np.testing.assert_allclose(kept.get_velocities(), velocities, atol=1e-3)
    assert np.abs(velocities).max() > 1e-2
    drawn = simulate(trained, start, tmp_path / "b.extxyz", *brief)[-1]
    assert np.abs(drawn.get_velocities() - velocities).max() > 1e-2
    assert np.abs(drawn.get_momenta().sum(axis=0)).max() < 1e-6  # it does not drift away


@pytest.mark.parametrize("name", ["velocities", "vel", "Velocity"])
def test_velocities_whose_unit_is_not_known_are_refused(trained, start, tmp_path, name):
    atoms, out = ase.io.read(start), tmp_path / "a.extxyz"
    atoms.set_array(name, np.full((7, 3), 0.01))
    ase.io.write(tmp_path / "moving.extxyz", atoms)
    with pytest.raises(ValueError, match=f"start: expected .*`momenta`.* got a column {name}, wh"):
        run(["md", str(trained / "best.pt"), str(tmp_path / "moving.extxyz"), "--out", str(out)])
    assert not out.exists()
    atoms.arrays[name][:] = 0  # in any unit
    ase.io.write(tmp_path / "resting.extxyz", atoms)
    simulate(trained, tmp_path / "resting.extxyz", out, "--steps=1")


def test_velocities_beside_momenta_are_those_of_the_momenta(trained, start, tmp_path):
    atoms = ase.io.read(start)
    atoms.set_array("velocities", np.ones((7, 3)))
    velocities = 0.01 * np.random.default_rng(0).normal(size=(7, 3))
    atoms.set_velocities(velocities)
    ase.io.write(tmp_path / "both.extxyz", atoms)
    flags = ["--ensemble=nve", "--steps=1", "--timestep=0.001"]
    kept = simulate(trained, tmp_path / "both.extxyz", tmp_path / "a.extxyz", *flags)[-1]
    np.testing.assert_allclose(kept.get_velocities(), velocities, atol=1e-3)


def test_drawn_velocities_have_the_temperature(trained, tmp_path):
    sites = 2.2 * np.stack(np.meshgrid(*3 * [np.arange(7.0)]), axis=-1).reshape(-1, 3)
    ase.io.write(tmp_path / "far.extxyz", ase.Atoms("H172C171", sites))  # none sees another
    flags = ["--ensemble=nve", "--steps=1", "--timestep=0.001", "--temperature=500"]
    frames = simulate(trained, tmp_path / "far.extxyz", tmp_path / "a.extxyz", *flags)
    assert frames[0].get_temperature() == pytest.approx(500, rel=0.1)
    kinetic = frames[0].get_momenta() ** 2 / frames[0].get_masses()[:, None]
    for element in (1, 6):  # whatever their mass
        own = kinetic[frames[0].numbers == element]
        assert own.mean() / units.kB == pytest.approx(500, rel=0.15)


def in_a_cell(start: Path, path: Path) -> Path:
    atoms = ase.io.read(start)
    atoms.set_cell([[4.0, 0.3, 0.0], [-0.2, 3.8, 0.4], [0.1, 0.0, 4.2]])
    atoms.pbc = True
    ase.io.write(path, atoms)
    return path


def test_npt_changes_the_volume_and_keeps_the_shape(trained, start, tmp_path):
    periodic, flags = in_a_cell(start, tmp_path / "cell.extxyz"), ["--ensemble=npt", "--steps=60"]
    volumes = {}
    for pressure in (-20, 20):
        out = tmp_path / f"{pressure}.extxyz"
        frames = simulate(trained, periodic, out, *flags, f"--pressure={pressure}",
                          "--relaxation=5")  # fmt: skip
        assert len(frames) == 6 and all(atoms.pbc.all() for atoms in frames)
        for atoms in frames:
            edge, first = (np.cbrt(x.get_volume()) for x in (atoms, ase.io.read(periodic)))
            shape = ase.io.read(periodic).cell.array / first
            np.testing.assert_allclose(atoms.cell.array / edge, shape, atol=1e-6)
        volumes[pressure] = frames[-1].get_volume()
    before = ase.io.read(periodic).get_volume()
    assert volumes[20] < 0.99 * volumes[-20]
    assert min(abs(volume - before) for volume in volumes.values()) > 1e-3


def test_npt_needs_a_cell_that_can_change(trained, start, tmp_path):
    flags = [str(tmp_path / "a.extxyz"), "--ensemble=npt"]
    model = str(trained / "best.pt")
    with pytest.raises(ValueError, match="start: expected a cell that is periodic along three"):
        run(["md", model, str(start), "--out", *flags])
    atoms = ase.io.read(in_a_cell(start, tmp_path / "cell.extxyz"))
    atoms.pbc = (True, True, False)
    ase.io.write(tmp_path / "slab.extxyz", atoms)
    with pytest.raises(ValueError, match=r"start: .*, got pbc \[True, True, False\]"):
        run(["md", model, str(tmp_path / "slab.extxyz"), "--out", *flags])
    atoms.pbc = True
    atoms.set_constraint(FixAtoms([0]))
    ase.io.write(tmp_path / "fixed.traj", atoms)
    with pytest.raises(ValueError, match="start: expected no constraints, for npt"):
        run(["md", model, str(tmp_path / "fixed.traj"), "--out", *flags])
    with pytest.raises(ValueError, match="temperature: expected a positive"):
        run(["md", model, str(tmp_path / "cell.extxyz"), "--out", *flags, "--temperature=0"])
    assert not (tmp_path / "a.extxyz").exists()


def test_last_frame_of_the_start_is_where_it_starts(trained, start, tmp_path):
    moved = ase.io.read(start)
    moved.positions += 1.0
    ase.io.write(tmp_path / "two.extxyz", [ase.io.read(start), moved])
    flags = ["--ensemble=nve", "--steps=1", "--timestep=0.001"]
    frames = simulate(trained, tmp_path / "two.extxyz", tmp_path / "a.extxyz", *flags)
    np.testing.assert_allclose(frames[0].positions, moved.positions, atol=1e-3)


def test_at_sign_in_the_name_of_the_start_is_part_of_it(trained, start, tmp_path):
    moved, name = ase.io.read(start), tmp_path / "start.extxyz@moved.extxyz"
    moved.positions += 1.0
    with open(name, "w") as file:
        ase.io.write(file, moved, format="extxyz")
    flags = ["--ensemble=nve", "--steps=1", "--timestep=0.001"]
    frames = simulate(trained, name, tmp_path / "a.extxyz", *flags)
    np.testing.assert_allclose(frames[0].positions, moved.positions, atol=1e-3)


def test_explosion_ends_in_an_error_that_names_the_step(trained, start, tmp_path, monkeypatch):
    calculate, calls = ModelCalculator.calculate, []

    def poisoned(self, *arguments):
        calculate(self, *arguments)
        calls.append(1)
        if len(calls) > 8:
            self.results["energy"] = math.nan

    monkeypatch.setattr(ModelCalculator, "calculate", poisoned)
    out = tmp_path / "a.extxyz"
    message = r"steps: .*got nan eV .* between steps 6 and 9; the frames before are in .*a\.extxyz"
    with pytest.raises(FloatingPointError, match=message):
        run(["md", str(trained / "best.pt"), str(start), "--out", str(out), "--every=3"])
    assert len(ase.io.read(out, index=":")) == 2


def test_existing_trajectory_is_refused_and_stays(trained, start, tmp_path):
    out = tmp_path / "a.extxyz"
    out.write_text("mine")
    with pytest.raises(FileExistsError, match=r"out: expected a new file, got .*a\.extxyz"):
        run(["md", str(trained / "best.pt"), str(start), "--out", str(out)])
    assert out.read_text() == "mine"


# A new network is one file and one line

TOY = '''
"""Toy: each atom counts its neighbours."""

from dataclasses import dataclass

import torch
from torch import nn

from molnets.options import option


class Toy(nn.Module):
    """E_i = w Z_i sum_j (1 - d_ij**2 / r_c**2)**3"""

    def __init__(self, cutoff: float, strength: float) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.weight = nn.Parameter(torch.tensor(strength))

    def atomic_energies(self, z, edges):
        closeness = (1 - edges.vector.square().sum(dim=1, keepdim=True) / self.cutoff**2) ** 3
        seen = closeness.new_zeros(len(z), 1).index_add(0, edges.index[1], closeness)
        return self.weight * z.to(seen) * seen


@dataclass(frozen=True)
class Sizes:
    cutoff: float = option(2.5, "how far the toy sees")
    strength: float = option(0.25, "how much the toy pushes")

    def build(self):
        return Toy(self.cutoff, self.strength)
'''


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Add a network: one file, and one line in the registry."""
    (tmp_path / "networks").mkdir()
    (tmp_path / "networks" / "toy.py").write_text(TOY)
    folders = [*molnets.networks.__path__, str(tmp_path / "networks")]
    monkeypatch.setattr(molnets.networks, "__path__", folders)
    monkeypatch.setitem(NETWORKS, "toy", "Toy: counts neighbours")
    yield
    sys.modules.pop("molnets.networks.toy", None)


def help_of(arguments: list[str], capsys, monkeypatch) -> str:
    monkeypatch.setenv("COLUMNS", "500")
    with pytest.raises(SystemExit, match="0"):
        run([*arguments, "--help"])
    return " ".join(capsys.readouterr().out.split())


def test_options_are_those_of_the_network(toy, capsys, monkeypatch):
    text = help_of(["train", "--network", "toy"], capsys, monkeypatch)
    assert "--strength X how much the toy pushes (default: 0.25)" in text
    assert "--cutoff X how far the toy sees (default: 2.5)" in text
    assert "network toy: Toy: counts neighbours" in text and "--num-gaussians" not in text
    text = help_of(["train"], capsys, monkeypatch)
    assert "--num-gaussians N" in text and "--strength" not in text
    assert "--network {dimenet,egnn,painn,schnet,tensornet,toy} which network" in text


def test_new_network_is_trained_tested_moved_and_loaded(toy, start, tmp_path, capsys):
    data, out = npz(tmp_path / "data.npz"), tmp_path / "run"
    metrics = run(["train", str(data), "--out", str(out), "--network=toy", "--strength=0.5",
                   "--epochs=2", "--num-validation=4", "--num-test=4", *UNITS])  # fmt: skip
    assert metrics["network"] == "toy"
    assert metrics["sizes"] == {"cutoff": 2.5, "strength": 0.5}
    assert "the network is a Toy" in capsys.readouterr().err
    potential = checkpoint.load(out / "best.pt")
    assert type(potential.network).__name__ == "Toy" and potential.cutoff == 2.5
    raw = checkpoint.read(out / "last.pt")["raw"]["network.weight"]
    assert 0 < abs(float(raw) - 0.5) < 0.1  # it was trained
    results = run(["test", str(out / "best.pt"), str(data), *UNITS])
    assert {name: own["frames"] for name, own in results.items()} == {
        "train": 16, "validation": 4, "unseen": 4,
    }  # fmt: skip
    run(["info", str(out / "best.pt")])
    assert re.search("strength +0.5", capsys.readouterr().out)
    assert len(simulate(out, start, tmp_path / "a.extxyz", "--steps=3", "--every=1")) == 3
    with pytest.raises(ValueError, match=r"network: expected that of .*, toy, got schnet"):
        run(["train", str(data), "--out", str(out), "--resume", *BRIEF, *UNITS])


def test_network_that_is_not_known(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(["train", "data.npz", "--out", str(tmp_path), "--network=toy"])
    assert "invalid choice: 'toy'" in capsys.readouterr().err


# Help


def own_options(kind: type) -> list[tuple[str, str]]:
    return [("--" + f.name.replace("_", "-"), f.metadata["help"]) for f in fields(kind)]


@pytest.mark.parametrize(
    "subcommand, arguments, options",
    [
        ("train", ["data"], ["--out", "--resume", "--overwrite", "--seeds", "--device", "--float64",
                             "--validation-data", "--test-data", "--num-train",
                             "--num-validation", "--num-test", *own_options(Source),
                             "--network", *own_options(Settings), *own_options(schnet.Sizes)]),
        ("test", ["checkpoint", "data"], ["--json", *own_options(Source)]),
        ("md", ["checkpoint", "start"], ["--out", *own_options(Protocol)]),
        ("info", ["checkpoint"], []),
    ],
)  # fmt: skip
def test_help_mentions_every_option(subcommand, arguments, options, capsys, monkeypatch):
    text = help_of([subcommand], capsys, monkeypatch)
    for name in (*arguments, "--help"):
        assert re.search(rf"{name} \w", text), name
    for item in options:
        name, about = (item, "") if isinstance(item, str) else item
        assert re.search(rf"{name} .*{re.escape(about)}", text), name
    assert not re.search(r"default: (None|False)", text)
    given = {name if isinstance(name, str) else name[0] for name in options} | {"--help"}
    assert set(re.findall(r"(?<=\[)--[\w-]+|(?<=, )--help", text)) <= given  # none was forgotten


def test_command_alone(capsys, monkeypatch):
    text = help_of([], capsys, monkeypatch)
    for name in ("train", "test", "md", "info"):
        assert re.search(rf"{name} \w+", text)
    with pytest.raises(SystemExit, match="0"):
        run(["--version"])
    assert capsys.readouterr().out == f"molnets {molnets.__version__}\n"
    with pytest.raises(SystemExit, match="2"):
        run([])
    assert "SUBCOMMAND" in capsys.readouterr().err


def test_options_are_not_abbreviated(tmp_path, capsys):
    """`--net toy` would take the options of another network."""
    with pytest.raises(SystemExit, match="2"):
        run(["train", "data.npz", "--out", str(tmp_path), "--net=schnet"])
    assert "unrecognized arguments: --net=schnet" in capsys.readouterr().err


# Wrong input, said in one line


def spoil(trained: Path, tmp_path: Path) -> dict[str, Path]:
    """Write all kinds of wrong files."""
    source = arrays()
    files = {name: tmp_path / name for name in ("text.pt", "nothing.pt", "a.txt", "lone.xyz")}
    files["text.pt"].write_text("no checkpoint")
    files["a.txt"].write_text("no atoms")
    files["lone.xyz"].write_text("1\n\nXe 0 0 0\n")
    files["best"] = trained / "best.pt"
    files["last"] = trained / "last.pt"
    files["data"] = trained / "data.npz"
    files["unit"] = npz(tmp_path / "unit.npz", E=23 * source["E"])
    files["no F"] = tmp_path / "f.npz"
    np.savez(files["no F"], R=source["R"], E=source["E"], z=source["z"])
    files["idle"] = npz(tmp_path / "idle.npz", weights=np.zeros(24))
    files["oxygen"] = npz(tmp_path / "oxygen.npz", z=np.array([8, 6, 1, 6, 1, 9, 1]))
    for unit in ("kcal/mol", "hartree", "ε"):
        path = tmp_path / f"{unit[:2]}.pt"
        files[unit] = with_card(files["best"], path, energy_unit=unit)
    files["nm"] = with_card(files["best"], tmp_path / "nm.pt", length_unit="nm")
    files["sizes"] = tmp_path / "sizes.pt"
    state = checkpoint.read(files["best"])
    state["card"]["sizes"]["num_filters"] = 9
    torch.save(state, files["sizes"])
    files["start"] = tmp_path / "start.xyz"
    ase.io.write(files["start"], ase.Atoms(source["z"], source["R"][0]))
    files["out"] = tmp_path / "out"
    files["folder"] = tmp_path / "folder.extxyz"
    files["folder"].mkdir()
    return files


TRAIN = ["train", "{data}", "--out", "{out}", *BRIEF]
MD = ["md", "{best}", "{start}", "--out", "{out}"]
WRONG = [
    (["train", "{nothing.pt}", "--out", "{out}"], r"path: expected a data file, got .*nothing\.pt"),
    (["train", "{folder}", "--out", "{out}"], r"path: .* a data file, got .*, which is a folder$"),
    (["test", "{folder}", "{data}"], r"path: expected a checkpoint, got .*, which is a folder$"),
    (["md", "{best}", "{folder}", "--out", "{out}"], r"start: .* got .*, which is a folder$"),
    (["train", "{idle}", "--out", "{out}", *BRIEF], r"weights: .*above 0, .*, got 16 of weight 0$"),
    (["train", "{a.txt}", "--out", "{out}"], r"path: expected a file that ASE reads, .*a\.txt"),
    (["train", "{text.pt}", "--out", "{out}"], r"path: expected plain tensors in .*text\.pt"),
    (["train", "{no F}", "--out={out}", "--forces-key=F"], r"--forces-key: .*of \['E', .*got 'F'"),
    (["train", "{unit}", "--out", "{out}", *BRIEF], r"energies, forces: expected .* change 2\d"),
    (["train", "md17:caffeine", "--out", "{out}"], r"path: expected md17: and one of .*'caffeine'"),
    ([*TRAIN, "--num-train=99"], r"num_train: expected 99 or more frames of 24, got 12"),
    ([*TRAIN, "--num-train=-1"], r"num_train: expected .*not negative, got -1"),
    ([*TRAIN, "--num-validation=24"], r"num_train: expected 1 or more frames of 24, got 0"),
    ([*TRAIN, "--num-validation=0"], r"num_validation: expected 1 or more frames of 24, got 0"),
    ([*TRAIN, "--epochs=0"], r"epochs: expected a positive integer, got 0"),
    ([*TRAIN, "--batch-size=99"], r"batch_size: expected 1 to 12, the number of training frames"),
    ([*TRAIN, "--cutoff=0"], r"cutoff: expected a positive finite number, got 0\.0"),
    ([*TRAIN, "--cutoff=nan"], r"cutoff: expected a positive finite number, got nan"),
    ([*TRAIN, "--num-gaussians=0"], r"num_gaussians: expected a positive integer, got 0"),
    ([*TRAIN, "--gamma=-1"], r"gamma: expected a positive finite number, got -1"),
    ([*TRAIN, "--device=toaster"], r"device: expected cpu, or a device .*here, got toaster"),
    ([*TRAIN, "--resume"], r"out: expected the folder of a run to go on with, got .*last\.pt is"),
    ([*TRAIN, "--out", "{a.txt}"], r"out: expected a folder, got .*a\.txt, which is a file"),
    ([*TRAIN, "--lr=1e15"], r"lr: expected a positive finite number"),
    (["test", "{nothing.pt}", "{data}"], r"path: expected a checkpoint, got .*nothing\.pt, where"),
    (["test", "{best}", "{nothing.pt}"], r"path: expected a data file, got .*nothing\.pt"),
    (["test", "{nothing.pt}", "{data}", "--json=no/a.json"], r"json: .*there, got no/a\.json"),
    (["test", "{nothing.pt}", "{data}", "--json=."], r"json: expected a file in a folder .*, got "),
    (["test", "{best}", "{oxygen}"], r"data: .*training, \['H', 'C'\], got \['O', 'F'\]$"),
    (["info", "{nothing.pt}"], r"path: expected a checkpoint, got .*nothing\.pt, where no file is"),
    (["info", "{text.pt}"], r"path: expected a checkpoint of plain tensors, got .*text\.pt"),
    (["info", "{data}"], r"path: expected a checkpoint of plain tensors, got .*data\.npz"),
    (["test", "{sizes}", "{data}"], r"path: expected weights that fit the card in .*sizes\.pt, "),
    (["md", "{text.pt}", "{start}", "--out", "{out}"], r"path: .*of plain tensors, got .*text\.pt"),
    (["md", "{best}", "{nothing.pt}", "--out", "{out}"], r"start: .*nothing\.pt, where no file is"),
    (["md", "{best}", "{a.txt}", "--out", "{out}"], r"start: expected a file that ASE reads, "),
    (["md", "{best}", "{lone.xyz}", "--out", "{out}"], r"atoms: .*\['H', 'C'\], got \['Xe'\]$"),
    ([*MD, "--out", "{a.txt}"], r"out: expected a new file, got .*a\.txt, which exists"),
    ([*MD, "--timestep=0"], r"timestep: expected a positive finite number, got 0\.0"),
    ([*MD, "--steps=0"], r"steps: expected a positive integer, got 0"),
    ([*MD, "--every=-1"], r"every: expected a positive integer, got -1"),
    ([*MD, "--temperature=-1"], r"temperature: expected a finite number, not negative, got -1"),
    ([*MD, "--friction=nan"], r"friction: expected a finite number, not negative, got nan"),
    ([*MD, "--pressure=inf"], r"pressure: expected a finite number, got inf"),
    ([*MD, "--skin=-1"], r"skin: expected a finite number, not negative, got -1"),
    ([*MD, "--ensemble=npt"], r"start: expected a cell that is periodic along three"),
    (["md", "{kcal/mol}", "{start}", "--out", "{out}"], r"model\w+: .*eV and Å, got .*kcal/mol"),
    (["md", "{hartree}", "{start}", "--out", "{out}"], r"model\w+: .*eV and Å, got .*hartree"),
    (["md", "{ε}", "{start}", "--out", "{out}"], r"model\w+: .*eV and Å, got .*ε"),
    (["md", "{nm}", "{start}", "--out", "{out}"], r"model\w+: .*eV and Å, got .*nm"),
]


@pytest.mark.parametrize(
    "arguments, message", WRONG, ids=[f"{a[0]}-{m[:25]}" for a, m in WRONG]
)  # fmt: skip
def test_wrong_input_is_said_in_one_line(trained, tmp_path, monkeypatch, arguments, message):
    files = {name: str(path) for name, path in spoil(trained, tmp_path).items()}
    arguments = [re.sub(r"^\{(.+)\}$", lambda m: files[m[1]], text) for text in arguments]
    monkeypatch.setattr(sys, "argv", ["molnets", *arguments])
    with pytest.raises(SystemExit) as exit:
        main()
    assert re.match(f"molnets: {message}", exit.value.code), exit.value.code
    assert "\n" not in exit.value.code and "\x1b" not in exit.value.code
    out = Path(files["out"])
    assert not out.exists() or list(out.iterdir()) == []  # nothing was written


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_that_is_not_there(trained, tmp_path):
    command = ["train", str(trained / "data.npz"), "--out", str(tmp_path / "run"), *BRIEF]
    with pytest.raises(ValueError, match=r"device: expected cpu, or a device .* got cuda"):
        run([*command, "--device=cuda"])


@pytest.mark.parametrize(
    "error, text",
    [
        (KeyError("path: expected\n\ttwo  lines"), "molnets: path: expected two lines"),
        (ZeroDivisionError("division by zero"), "molnets: division by zero"),
        (FloatingPointError("the loss is nan"), "molnets: the loss is nan"),
        (ConnectionError("no network"), "molnets: no network"),
        (TypeError("z: expected a tensor"), "molnets: z: expected a tensor"),
        (KeyboardInterrupt(), "molnets: interrupted"),
    ],
)
def test_errors_of_each_kind_end_in_one_line(monkeypatch, error, text):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(checkpoint, "describe", fail)
    monkeypatch.setattr(sys, "argv", ["molnets", "info", "best.pt"])
    with pytest.raises(SystemExit, match=f"^{re.escape(text)}$"):
        main()


def test_mistakes_of_the_program_keep_their_traceback(monkeypatch):
    def fail(*_: object) -> None:
        raise AttributeError("a bug")

    monkeypatch.setattr(checkpoint, "describe", fail)
    monkeypatch.setattr(sys, "argv", ["molnets", "info", "best.pt"])
    with pytest.raises(AttributeError):
        main()


def test_exit_status_and_standard_error(tmp_path):
    command = [sys.executable, "-m", "molnets", "info", "nothing.pt"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 1
    assert done.stdout == ""
    expected = "molnets: path: expected a checkpoint, got nothing.pt, where no file is"
    assert done.stderr.splitlines() == [expected]


@pytest.mark.skipif(os.name != "posix", reason="pipes are others")
@pytest.mark.parametrize(
    "last, unbuffered", [("{best}", ""), ("{best}", "1"), ("{data}", ""), ("--help", "")]
)
def test_output_that_nobody_reads_ends_without_a_word(trained, last, unbuffered):
    """Other errors are said all the same."""
    last = last.format(best=trained / "best.pt", data=trained / "data.npz")
    command = [sys.executable, "-m", "molnets", "info", last]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered}
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env=environment)
    os.close(writer)
    if last.endswith(".npz"):
        assert done.returncode == 1 and b"path: expected a checkpoint" in done.stderr
    else:
        assert (done.returncode, done.stderr) == (141, b"")


def test_an_earlier_run_is_not_overwritten(tmp_path):
    data, out = tmp_path / "data.npz", tmp_path / "run"
    np.savez(data, **arrays())
    run(["train", str(data), "--out", str(out), *BRIEF])
    before = (out / "last.pt").read_bytes()
    with pytest.raises(FileExistsError, match=r"out: .*, --resume to go on or --overwrite"):
        run(["train", str(data), "--out", str(out), *BRIEF])
    assert (out / "last.pt").read_bytes() == before


def test_frames_that_cannot_be_tested_on(trained, tmp_path):
    np.savez(tmp_path / "atom.npz", R=np.zeros((2, 1, 3)), E=np.zeros(2), F=np.zeros((2, 1, 3)),
             z=np.array([6]))  # fmt: skip
    with pytest.raises(
        ValueError, match="data: expected frames that are no isolated atoms, got 1 of"
    ):
        run(["test", str(trained / "best.pt"), str(tmp_path / "atom.npz"), *UNITS])
    state = checkpoint.read(trained / "best.pt")
    next(iter(state["model"].values())).fill_(math.nan)
    checkpoint.write(state, tmp_path / "nan.pt")
    with pytest.raises(ValueError, match="checkpoint: expected finite energies and forces"):
        run(["test", str(tmp_path / "nan.pt"), str(trained / "data.npz")])


def test_atoms_that_are_all_held_do_not_move(trained, tmp_path):
    atoms = ase.Atoms("HCH", np.eye(3) * 1.2, constraint=FixAtoms([0, 1, 2]))
    ase.io.write(tmp_path / "held.extxyz", atoms)
    with pytest.raises(ValueError, match="start: expected atoms that can move, got 3"):
        run(["md", str(trained / "best.pt"), str(tmp_path / "held.extxyz"), "--out",
             str(tmp_path / "md.extxyz")])  # fmt: skip
    assert not (tmp_path / "md.extxyz").exists()
