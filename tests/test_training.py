"""Datasets, loss, loop and checkpoints: small, on a CPU, in seconds."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from contract import assert_equal

from fake_data import fake_trajectory
from md.command import main, split
from md.data import Dataset, check_units, load
from md.dynamics import lennard_jones
from md.neighbors import PeriodicGraph
from md.potential import energy_and_forces
from md.training import (
    FrameForces,
    Settings,
    Sizes,
    Trainer,
    evaluate,
    load_model,
    loss_of,
    read_checkpoint,
    standardized,
)
from schnet_helpers import RadiusInteractionGraph

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("SCHNET_DATA", ROOT.parent / "shared" / "data"))
SIZES = Sizes(8, 8, 2, 10, cutoff=2.0)


def arrays(num_frames: int = 24) -> dict[str, np.ndarray]:
    """Return frames of a Lennard-Jones cluster in MD17's names; two elements that are equal."""
    positions = fake_trajectory(num_frames).positions.double()
    energies, forces = lennard_jones()(positions)
    z = np.array([1, 6, 1, 6, 1, 6, 1])
    return {"R": positions.numpy(), "E": energies.numpy() - 100.0, "F": forces.numpy(), "z": z}


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    np.savez(tmp_path / "data.npz", **arrays())
    return load(tmp_path / "data.npz")


def trainer_for(data: Dataset, out: Path, **settings) -> Trainer:
    torch.manual_seed(0)
    train, validation = torch.arange(16), torch.arange(16, 20)
    model = standardized(SIZES, data, train)
    return Trainer(model, data, train, validation, Settings(**settings), out, SIZES)


# Data


def test_npz_with_the_names_of_md17(data):
    source = arrays()
    assert len(data) == 24
    frames = torch.tensor([5, 2])
    z, pos, batch, energies, forces = data.take(frames, torch.float64)
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
    assert_equal(data.energies, torch.from_numpy(source["E"]) - 97_000, atol=1e-9)
    assert_equal(data.forces.view(-1, 7, 3), torch.from_numpy(source["F"]))


def test_md17_that_does_not_exist_or_cannot_be_downloaded(tmp_path, monkeypatch):
    def no_network(*_: object) -> None:
        raise OSError("there is no network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch_geometric.datasets.md17.download_url", no_network)
    with pytest.raises(ConnectionError, match=r"path: .* got there is no network"):
        load("md17:revised ethanol")
    with pytest.raises(ValueError, match=r"path: .*one of \['benzene', .*got 'caffeine'"):
        load("md17:caffeine")


def test_extxyz_with_frames_of_different_sizes(tmp_path):
    ase = pytest.importorskip("ase")
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.io import write

    frames, rng = [], np.random.default_rng(0)
    for symbols in ("OH2", "CO"):
        atoms = ase.Atoms(symbols, positions=rng.normal(size=(len(ase.Atoms(symbols)), 3)))
        atoms.calc = SinglePointCalculator(
            atoms, energy=-1.0, forces=rng.normal(size=(len(atoms), 3))
        )
        frames.append(atoms)
    write(tmp_path / "frames.extxyz", frames)
    data = load(tmp_path / "frames.extxyz")
    assert data.n_atoms.tolist() == [3, 2]
    assert data.z.tolist() == [8, 1, 1, 6, 8]
    np.testing.assert_allclose(data.forces[3:], frames[1].get_forces(), atol=1e-7)
    assert data.cells is None
    frames[0].calc = None
    write(tmp_path / "bare.extxyz", frames)
    with pytest.raises(KeyError, match="path: expected energies and forces"):
        load(tmp_path / "bare.extxyz")


def test_edges_of_frames_equal_the_graph_s(data):
    frames = torch.tensor([3, 9, 0])
    edges, offsets = data.edges(1.7).take(frames)
    _, pos, batch, *_ = data.take(frames, torch.float64)
    expected, _ = RadiusInteractionGraph(1.7)(pos, batch)
    assert sorted(map(tuple, edges.T.tolist())) == sorted(map(tuple, expected.T.tolist()))
    assert not offsets.any()


@pytest.mark.parametrize("num_frames", [1, 3])
def test_known_edges_give_the_model_s_energies_and_forces(data, num_frames):
    torch.manual_seed(0)
    model = standardized(SIZES, data, torch.arange(16)).double()
    frames = torch.tensor([3, 9, 0])[:num_frames]
    z, pos, batch, *_ = data.take(frames, torch.float64)
    expected = energy_and_forces(model, z, pos, batch)
    edges = data.edges(model.cutoff).take(frames, torch.float64)
    energy, forces = FrameForces(model)(z, pos, batch, *edges, num_frames)
    assert_equal(energy.detach(), expected[0])
    assert_equal(forces.detach(), expected[1])
    assert forces.abs().max() > 1e-3


def test_periodic_frames_see_their_images(data):
    torch.manual_seed(0)
    cells = (2.9 * torch.eye(3, dtype=torch.float64)).expand(24, 3, 3)
    fields = data.z, data.pos, data.energies, data.forces, data.n_atoms
    periodic = Dataset(*fields, cells=cells)
    model = standardized(SIZES, data, torch.arange(16)).double()
    frames = torch.tensor([3, 9])
    z, pos, batch, *_ = data.take(frames, torch.float64)
    energy, forces = FrameForces(model)(
        z, pos, batch, *periodic.edges(model.cutoff).take(frames, torch.float64), 2
    )
    model.model.interaction_graph = PeriodicGraph(model.cutoff).set_cells(cells[:2])
    expected = energy_and_forces(model, z, pos, batch)
    assert_equal(energy.detach(), expected[0])
    assert_equal(forces.detach(), expected[1])
    isolated = evaluate(model, data, frames)[1]
    assert (energy - isolated).abs().min() > 1e-3


def test_tables_give_the_same_weights(data, tmp_path):
    settings = {"epochs": 3, "batch_size": 4}
    plain = trainer_for(data, tmp_path / "plain", **settings, engine="plain")
    tables = trainer_for(data, tmp_path / "tables", **settings)
    before = [weight.detach().clone() for weight in plain.weights]
    for trainer in (plain, tables):
        trainer.run(progress=False)
    for a, b, start in zip(plain.weights, tables.weights, before, strict=True):
        assert (a - b).norm() < 0.02 * (a - start).norm()


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore")
def test_compiled_step_gives_the_same_weights(data, tmp_path):
    settings = {"epochs": 2, "batch_size": 4}
    plain = trainer_for(data, tmp_path / "plain", **settings, engine="plain")
    compiled = trainer_for(data, tmp_path / "compiled", **settings, engine="compiled")
    for trainer in (plain, compiled):
        trainer.run(progress=False)
    for a, b in zip(plain.weights, compiled.weights, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


BAD_DATA = [
    ("missing key", lambda a: a.pop("F"), KeyError, r"data: expected the arrays \['F'\]"),
    ("no atomic numbers", lambda a: a.pop("z"), KeyError, r"data: expected the arrays \['z'\]"),
    ("NaN", lambda a: a["F"].__setitem__((3, 2, 1), np.nan), ValueError, "forces: .*entry 23"),
    (
        "flat positions",
        lambda a: a.update(R=a["R"].reshape(24, 21)),
        ValueError,
        r"R: .*\(24, 21\)",
    ),
    ("other forces", lambda a: a.update(F=a["F"][:, :5]), ValueError, r"F, z: .*got \(24, 5, 3\)"),
    ("too few energies", lambda a: a.update(E=a["E"][:9]), ValueError, r"energies: .*got \(9,\)"),
    ("two in one place", lambda a: a["R"].__setitem__((4, 1), a["R"][4, 2]), ValueError, "frame 4"),
    (
        "no frames",
        lambda a: a.update({k: a[k][:0] for k in "REF"}),
        ValueError,
        "n_atoms: expected at",
    ),
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


def test_units_that_do_not_fit_are_seen(data):
    assert check_units(data) == pytest.approx(1.0, abs=0.05)
    data.energies = data.energies * 23.06
    with pytest.raises(ValueError, match=r"energies, forces: .* change 2[23]"):
        check_units(data)


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


def test_split_of_the_file_is_kept(data):
    data.split = torch.tensor([0] * 18 + [1] * 6)
    train, validation, test = split(data, 0, 4, 1, 0)
    assert sorted(test.tolist()) == list(range(18, 24))
    assert sorted(torch.cat([train, validation]).tolist()) == list(range(18))


# Loss and loop


def test_loss_equals_loops(data):
    target = data.take(torch.tensor([0, 1, 2]), torch.float64)
    energy, forces = target.energies + 0.3, target.forces + 0.1 * torch.arange(63).view(21, 3)
    settings = Settings(rho_energy=0.5, rho_forces=2.0)
    force_terms = []
    for sample in range(3):
        error = (forces - target.forces)[target.batch == sample]
        force_terms.append(sum(float(row @ row) for row in error) / 7)
    expected = 0.5 * 0.3**2 + 2.0 * sum(force_terms) / 3
    assert float(loss_of(energy, forces, target, settings)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("rho_energy, rho_forces", [(1.0, 0.0), (0.0, 1.0), (0.01, 1.0)])
def test_training_lowers_the_loss(data, tmp_path, rho_energy, rho_forces):
    trainer = trainer_for(
        data, tmp_path, epochs=40, batch_size=4, lr=5e-3, ema_decay=0.9,
        rho_energy=rho_energy, rho_forces=rho_forces,
    )  # fmt: skip
    trainer.run(progress=False)
    losses = [row["loss"] for row in trainer.history]
    assert losses[-1] < 0.3 * losses[0]
    assert trainer.history[-1]["epoch"] == 40
    rows = list(csv.DictReader((tmp_path / "history.csv").read_text().splitlines()))
    assert [float(row["loss"]) for row in rows] == losses


def test_errors_are_those_of_numpy(data):
    torch.manual_seed(0)
    model = standardized(SIZES, data, torch.arange(16))
    errors, energy, forces = evaluate(model, data, torch.arange(20, 24), batch_size=3)
    target = arrays()
    e, f = energy.numpy()[:, 0] - target["E"][20:], forces.numpy() - target["F"][20:].reshape(-1, 3)
    assert errors.energy_mae == pytest.approx(np.abs(e).mean())
    assert errors.force_mae == pytest.approx(np.abs(f).mean())
    assert errors.energy_rmse == pytest.approx(np.sqrt((e**2).mean()))
    assert errors.force_rmse == pytest.approx(np.sqrt((f**2).mean()))


def test_standardization_starts_near_the_data(data):
    torch.manual_seed(0)
    model = standardized(SIZES, data, torch.arange(16))
    assert float(model.scale) == pytest.approx(float(data.forces[: 16 * 7].square().mean().sqrt()))
    errors, *_ = evaluate(model, data, torch.arange(16))
    assert errors.energy_mae < 20  # the offset of −100 is taken care of


def test_resume_is_bit_identical(data, tmp_path):
    settings = {"epochs": 6, "batch_size": 4, "seed": 3}
    whole = trainer_for(data, tmp_path / "whole", **settings)
    whole.run(progress=False)
    broken = trainer_for(data, tmp_path / "broken", **settings)
    for _ in range(3):
        broken.run_epoch()
    resumed = trainer_for(data, tmp_path / "broken", **settings)
    resumed.resume(tmp_path / "broken" / "last.pt")
    resumed.run(progress=False)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name
    for name, tensor in whole.ema.state_dict().items():
        assert torch.equal(tensor, resumed.ema.state_dict()[name]), name
    strip = [{k: v for k, v in row.items() if k != "seconds"} for row in whole.history]
    assert strip == [{k: v for k, v in r.items() if k != "seconds"} for r in resumed.history]
    other = trainer_for(data, tmp_path / "other", **(settings | {"seed": 4}))
    other.run(progress=False)
    assert any((a != b).any() for a, b in zip(whole.weights, other.weights, strict=True))


def test_resume_with_other_settings_is_refused(data, tmp_path):
    trainer_for(data, tmp_path, epochs=2, batch_size=4).run_epoch()
    with pytest.raises(ValueError, match=r"settings: expected .*'lr': 0.001"):
        trainer_for(data, tmp_path, epochs=2, batch_size=4, lr=1.0).resume(tmp_path / "last.pt")


def test_checkpoint_gives_the_energies_of_the_data(data, tmp_path):
    trainer = trainer_for(data, tmp_path, epochs=3, batch_size=4)
    trainer.run(progress=False)
    model = load_model(tmp_path / "last.pt")
    _, energy, _ = evaluate(trainer.ema, data, torch.arange(4))
    assert_equal(evaluate(model, data, torch.arange(4))[1], energy, atol=0)
    assert (energy + 100).abs().max() < 20


def test_interrupted_run_leaves_a_checkpoint(data, tmp_path, monkeypatch):
    trainer = trainer_for(data, tmp_path, epochs=9, batch_size=4)
    step, calls = trainer._step, []

    def interrupt_in_the_third_epoch(*arguments):
        calls.append(1)
        if len(calls) > 9:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(trainer, "_step", interrupt_in_the_third_epoch)
    trainer.run(progress=False)
    assert read_checkpoint(tmp_path / "last.pt")["epoch"] == 2


def test_run_interrupted_at_once_leaves_a_checkpoint_too(data, tmp_path, monkeypatch):
    trainer = trainer_for(data, tmp_path, epochs=9, batch_size=4)

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "_step", interrupt)
    trainer.run(progress=False)
    assert load_model(tmp_path / "best.pt").cutoff == SIZES.cutoff


def test_nan_stops_with_the_batch_named(data, tmp_path):
    trainer = trainer_for(data, tmp_path, epochs=9, batch_size=4)
    with torch.no_grad():
        trainer.weights[0][:] = torch.nan
    with pytest.raises(FloatingPointError, match=r"the loss is nan in epoch 0, step 0, frames \["):
        trainer.run(progress=False)


def test_early_stopping(data, tmp_path):
    trainer = trainer_for(data, tmp_path, epochs=50, batch_size=4, patience=2)
    trainer.best = 0.0  # nothing can be better
    trainer.run(progress=False)
    assert trainer.epoch == 2


def test_minutes_are_a_budget_that_also_pays_for_saving(data, tmp_path, monkeypatch):
    now = [0.0]

    def read_the_clock() -> float:
        now[0] += 0.01  # every look at the clock takes ten milliseconds
        return now[0]

    monkeypatch.setattr("md.training.time.perf_counter", read_the_clock)
    trainer = trainer_for(data, tmp_path, epochs=100_000, minutes=2 / 60, batch_size=4)
    save = trainer.save

    def slow_save(path: Path) -> None:
        save(path)
        now[0] += 0.03

    monkeypatch.setattr(trainer, "save", slow_save)
    trainer.run(progress=False)
    assert 2 <= trainer.seconds <= now[0] < 2.4
    assert trainer.optimizer.param_groups[0]["lr"] < 1e-4  # the schedule ends with the budget


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"batch_size": 17}, "batch_size: expected 1 to 16, the number of training frames, got 17"),
        ({"batch_size": 0}, "batch_size: .* got 0"),
    ],
)
def test_bad_settings_are_named(data, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        trainer_for(data, tmp_path, **settings)


def test_files_that_are_no_checkpoints_are_refused(tmp_path):
    torch.save({"model": Path("x")}, tmp_path / "code.pt")
    with pytest.raises(ValueError, match="path: expected a checkpoint of plain tensors"):
        load_model(tmp_path / "code.pt")
    torch.save({"model": {}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="path: expected a checkpoint with sizes"):
        load_model(tmp_path / "other.pt")
    with pytest.raises(FileNotFoundError, match="path: expected a checkpoint"):
        load_model(tmp_path / "nothing.pt")


# The command

FLAGS = ["--epochs=3", "--batch-size=4", "--num-validation=4", "--num-test=4", "--cutoff=2.0"]
FLAGS += ["--dim-embedding=8", "--num-filters=8", "--num-interactions=1", "--num-gaussians=8"]


def test_command_writes_what_it_promises(tmp_path, capsys):
    np.savez(tmp_path / "data.npz", **arrays())
    out = tmp_path / "run"
    metrics = main([str(tmp_path / "data.npz"), "--out", str(out), *FLAGS])
    assert json.loads((out / "metrics.json").read_text()) == metrics
    assert {"test_energy_mae", "test_force_mae", "num_parameters", "seconds"} <= metrics.keys()
    names = {path.name for path in out.iterdir()}
    figures = {"energy_parity.svg", "force_parity.svg", "learning_curve.svg"}
    assert names == {"best.pt", "last.pt", "history.csv", "metrics.json"} | figures
    assert "force MAE" in capsys.readouterr().out


def run_two_processes(*command: str) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([*torchrun, "-m", "md.training", *command],
                   check=True, env=environment, capture_output=True, timeout=600)  # fmt: skip


def test_two_processes_keep_to_one_clock(tmp_path):
    np.savez(tmp_path / "data.npz", **arrays())
    flags = [*FLAGS, "--epochs=100000", "--minutes=0.02", "--out", str(tmp_path / "run")]
    run_two_processes(str(tmp_path / "data.npz"), *flags)
    assert read_checkpoint(tmp_path / "run" / "last.pt")["epoch"] >= 1


def test_two_processes_give_the_result_of_one(tmp_path):
    np.savez(tmp_path / "data.npz", **arrays())
    command = [str(tmp_path / "data.npz"), *FLAGS, "--float64", "--out"]
    main([*command, str(tmp_path / "one")])
    run_two_processes(*command, str(tmp_path / "two"))
    one, two = (read_checkpoint(tmp_path / name / "last.pt")["model"] for name in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], rtol=1e-5, atol=1e-7)
