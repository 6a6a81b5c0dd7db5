"""Errors against minutes: what is trained, kept and said follows the processor and the numbers."""

from __future__ import annotations

import argparse
import copy
import json
import math
import time

import numpy as np
import pytest
import torch
from frames import CELL, DATA, ROOT, dataset, npz, of_sizes, trainer_for
from networks import painn

from benchmarks import kernels_worker, minutes, minutes_figure, minutes_page
from benchmarks.minutes_data import Source, errors, parts_of
from benchmarks.minutes_figure import draw
from benchmarks.minutes_page import (
    best_within,
    curve_rows,
    not_measured,
    once,
    page,
    rows_of,
    said,
    silicon_section,
)
from molnets import Potential, checkpoint
from molnets.training import Dataset, Settings, evaluate, load, recipes

EARLIER = {"minutes": 28.5, "networks": {"tensornet": {"force_mae": 0.006, "energy_mae": 0.001,
           "epochs": 9, "parameters": 5, "cutoff": 4.5, "ms_1": 16.0, "ms_64": 300.0}}}  # fmt: skip


def row(case: str, budget: float, force: float, seed: int = 0, frames: int = 1000, **more) -> dict:
    """Return a row of a training whose force error is given in meV/Å."""
    return {"case": case, "minutes": budget, "seed": seed, "frames": frames, "cutoff": 5.0,
            "force_mae": force / 1000, "energy_mae": force / 7000, "num_train": frames - 30,
            "parameters": 1000, "epochs": 7, "machine": "one", "date": "today", "versions": {},
            **more}  # fmt: skip


def kernel(force: float, seconds: float, frames: int = 230) -> dict:
    """Return a row of a kernel model that took some seconds."""
    return row("fchl19", 0, force, frames=frames, processor_seconds=seconds, width=2.0,
               choosing_seconds=1.0, ms_1=0.5, ms_64=9.0)  # fmt: skip


def numbers_of(*rows: dict) -> dict:
    """Return numbers with some rows, of two machines."""
    return {"machines": ["one", "two"], "rows": list(rows),
            "speed": {"painn": {"ms_1": 0.321, "ms_64": 8.0}}}  # fmt: skip


@pytest.fixture
def data(tmp_path):
    """Return 16 frames to train on, the first and last 4 to test."""
    split = np.zeros(24, dtype=int)
    split[:4] = split[-4:] = 1
    return load(npz(tmp_path / "frames.npz", split=split))


# Training


def test_trainer_goes_by_the_processor(data, tmp_path, monkeypatch):
    """A clock that ticks ten times a second of the budget ends it, whatever the wall's says."""
    ticks = iter(range(10**6))
    monkeypatch.setattr(minutes.time, "process_time", lambda: 0.1 * next(ticks))
    settings = Settings(minutes=0.1, batch_size=4, engine="plain")
    made = trainer_for(data, tmp_path / "a")
    timed = minutes.Timed(made.potential, data, made.train, made.validation, settings, tmp_path)
    timed.run(progress=False)
    assert 5 <= timed.epoch <= 15  # 60 ticks: one a step, two or more an epoch
    monkeypatch.setattr(minutes.time, "process_time", lambda: timed._begun + 3.0)
    assert timed._progress(0) == pytest.approx(0.5)


@pytest.mark.parametrize("name", ["ethanol", "silicon"])
def test_network_is_trained_and_tested(data, tmp_path, monkeypatch, name):
    monkeypatch.setattr(minutes, "values_of", lambda *_: {"cutoff": 2.0, "batch_size": 4,
                        "engine": "plain", "dim_embedding": 8, "num_interactions": 1})  # fmt: skip
    monkeypatch.setattr(minutes, "data_of", {name: data}.get)
    monkeypatch.setitem(minutes.SOURCES, name, Source("", 16, 30))
    found = minutes.train_ours("schnet", 0.01, 3, 16, tmp_path, name)
    assert (found["num_train"], found["num_validation"], found["num_test"]) == (15, 1, 8)
    assert 0.6 <= found["processor_seconds"] < 3
    assert found["cutoff"] == found["sizes"]["cutoff"] == 2.0
    best = tmp_path / ("silicon" if name == "silicon" else "") / "schnet_0.01_3_16" / "best.pt"
    again = evaluate(checkpoint.load(best), data, (data.split == 1).nonzero().flatten()).errors
    assert found["force_mae"] == pytest.approx(again.force_mae)
    assert found["energy_mae"] == pytest.approx(again.energy_mae)


def test_frames_are_those_of_the_others(data):
    """All frames: one split for every seed. Fewer: drawn with the seed, never test frames."""
    source = Source("", 16, 30)
    every = [parts_of(data, 16, seed, source) for seed in (0, 1)]
    assert all(torch.equal(a, b) for a, b in zip(*every, strict=True))
    fewer = [parts_of(data, 10, seed, source) for seed in (0, 1)]
    assert not torch.equal(fewer[0][0].sort().values, fewer[1][0].sort().values)
    for train, validation, test in (*every, *fewer):
        assert set(test.tolist()) == {*range(4), *range(20, 24)}
        assert not set(test.tolist()) & {*train.tolist(), *validation.tolist()}
        assert len(validation) == max(1, (len(train) + len(validation)) // 10)


@pytest.mark.parametrize(("name", "counts"), [("ethanol", (970, 30, 1000)),
                                              ("silicon", (200, 14, 25))])  # fmt: skip
def test_frames_of_the_files(name, counts):
    """The test frames are those that the file says; all frames are used."""
    if not (DATA / minutes.SOURCES[name].file).exists():
        pytest.skip(f"needs {minutes.SOURCES[name].file} in {DATA}")
    data = minutes.data_of(name)
    parts = parts_of(data, minutes.SOURCES[name].frames, 7, minutes.SOURCES[name])
    assert tuple(map(len, parts)) == counts
    assert torch.cat(parts).unique().numel() == len(data)
    assert torch.equal(parts[2].sort().values, (data.split == 1).nonzero().flatten())
    assert recipes.choose(data) == {"ethanol": "molecule", "silicon": "bulk"}[name]


def test_errors_are_those_of_each_atom():
    """Frames of 2 and 4 atoms whose energies are off by 1 and −8: 0.5 and 2 for each atom."""
    pos = torch.arange(18.0).view(6, 3)
    data = Dataset(torch.full((6,), 14), pos, torch.tensor([-3.0, 5.0]), torch.zeros(6, 3),
                   torch.tensor([2, 4]))  # fmt: skip
    forces = torch.zeros(6, 3)
    forces[0, 0] = 9.0
    found = errors(torch.tensor([[-2.0], [-3.0]]), forces, data, torch.tensor([0, 1]))
    assert found["energy_mae"] == pytest.approx(4.5)
    assert found["energy_per_atom_mae"] == pytest.approx(1.25)
    assert found["energy_per_atom_rmse"] == pytest.approx(math.sqrt(4.25 / 2))
    assert found["force_mae"] == pytest.approx(0.5)
    assert found["force_rmse"] == pytest.approx(math.sqrt(81 / 18))
    turned = errors(torch.tensor([[-3.0], [-2.0]]), forces[[2, 3, 4, 5, 0, 1]], data,
                    torch.tensor([1, 0]))  # fmt: skip
    assert turned == pytest.approx(found)


def test_crystal_of_eight_cells_has_eight_energies():
    data, model, found = of_sizes(), Potential(painn(torch.float32, cutoff=3.0)), []
    for k in (1, 2):
        found.append(model.energy_and_forces(*minutes.crystal(data, torch.tensor([2]), k)))
    (energy, forces), (energies, every) = found
    assert energy.abs() > 1e-3
    assert forces.abs().max() > 1e-3
    assert torch.allclose(energies, 8 * energy, rtol=1e-4, atol=0)
    assert torch.allclose(every.view(8, -1, 3), forces.expand(8, -1, -1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["ethanol", "silicon"])
def test_plain_network_has_the_settings_of_the_tables(data, name):
    fast, plain = (minutes.values_of(case, data, name) for case in ("painn", "painn-plain"))
    assert fast | {"engine": "plain"} == plain
    assert fast != plain


def test_settings_are_those_of_the_data(data):
    """The recipes' where there are some, and every network of ours has settings."""
    bulk = dataset(CELL)
    for case, network in (("painn", "painn"), ("tensornet-tables", "tensornet")):
        recipe = recipes.MOLECULE[network]
        assert minutes.values_of(case, data) == {**recipe, "engine": "spline"}
    assert minutes.values_of("painn", bulk, "silicon") == {**recipes.BULK["painn"],
                                                           "engine": "spline"}  # fmt: skip
    for case, what in minutes_page.CASES.items():
        if what.kind == "ours":
            for name, frames, size in (("ethanol", data, 5), ("silicon", bulk, 2)):
                assert minutes.values_of(case, frames, name)["batch_size"] == size
                assert name in minutes_page.DATA_OF_CASES[case]


def asked(case: str = "painn", **changes) -> argparse.Namespace:
    """Return options of the command."""
    given = {"what": "train", "case": case, "minutes": 3.0, "seed": 0, "frames": None,
             "data": "ethanol"}  # fmt: skip
    return argparse.Namespace(**given | {"runs": None, "environments": None} | changes)


def test_row_that_is_there_is_not_trained_again(tmp_path, monkeypatch):
    """A row that says nothing of its data is one of ethanol; another machine trains anew."""
    monkeypatch.setattr(minutes, "NUMBERS", tmp_path / "minutes.json")
    monkeypatch.setattr(minutes.others, "machine", lambda: "one")
    (tmp_path / "minutes.json").write_text(json.dumps(numbers_of(row("painn", 3.0, 9.0))))
    calls = []

    def train_ours(*args) -> dict:
        calls.append(args)
        return {"force_mae": 0.01, "energy_mae": 0.002}

    monkeypatch.setattr(minutes, "train_ours", train_ours)
    asks = [{}, {"seed": 1}, {"data": "silicon"}, {"seed": 1, "frames": 1000},
            {"data": "silicon", "frames": 214}, {"data": "silicon", "frames": 100}]  # fmt: skip
    for changes in asks:
        minutes.train(asked(**changes))
    found = [("ethanol", 1, 1000), ("silicon", 0, 214), ("silicon", 0, 100)]
    assert [(x[5], x[2], x[3]) for x in calls] == found
    rows = minutes.numbers()["rows"]
    assert {minutes.key_of(x)[0] for x in rows} == {"ethanol", "silicon"}
    assert len(rows) == 4
    assert {x["frames"] for x in rows if x.get("data") == "silicon"} == {214, 100}
    monkeypatch.setattr(minutes.others, "machine", lambda: "two")
    for _ in range(2):
        minutes.train(asked())
    assert len(calls) == 4
    assert len(minutes.numbers()["rows"]) == 5
    assert minutes.numbers()["machines"] == ["one", "two"]


@pytest.mark.parametrize(
    ("case", "changes"),
    [("sgdml", {"data": "silicon"}), ("mace", {"seed": 1}), ("mace", {"frames": 100}), (None, {})],
)
def test_what_cannot_be_trained_is_refused(case, changes, capsys):
    with pytest.raises(SystemExit):
        minutes.check(asked(case, **changes), argparse.ArgumentParser())
    assert "expected" in capsys.readouterr().err
    minutes.check(asked("painn", **changes | {"data": "silicon"}), argparse.ArgumentParser())


def test_times_of_silicon_leave_those_of_ethanol():
    found = minutes.add_speed(numbers_of(), "silicon", "painn", {"ms_64": 5.0})
    assert found["speed"] == numbers_of()["speed"]
    assert found["speed_silicon"] == {"painn": {"ms_64": 5.0}}
    found = minutes.add_speed(found, "ethanol", "painn", {"ms_1": 1.0})
    assert found["speed"] == {"painn": {"ms_1": 1.0}}
    assert found["speed_silicon"] == {"painn": {"ms_64": 5.0}}


def test_row_takes_the_place_of_one_of_its_key():
    found = numbers_of(row("painn", 3.0, 9.0), row("painn", 3.0, 8.0, seed=1))
    rows = minutes.add(found, row("painn", 3.0, 5.0))["rows"]
    assert sorted(1000 * x["force_mae"] for x in rows) == pytest.approx([5.0, 8.0])
    assert len(minutes.add(found, row("painn", 10.0, 5.0))["rows"]) == 3


def test_width_of_a_kernel_is_that_of_the_frames_that_validate(monkeypatch):
    """The model errs by how far its width is from 10, on forces; test frames are not there."""
    fitted = []

    def fit(z, R, E, F, width):
        fitted.append((len(R), width))
        return lambda R: (np.zeros(len(R)), np.full(R.shape, abs(width - 10.0)))

    monkeypatch.setitem(kernels_worker.FITS, "fchl19", lambda: fit)
    given = {"z": np.array([1, 6]), "train_R": np.zeros((300, 2, 3)), "train_E": np.zeros(300),
             "train_F": np.zeros((300, 2, 3)), "valid_R": np.zeros((3, 2, 3)),
             "valid_F": np.zeros((3, 2, 3))}  # fmt: skip
    _, record = kernels_worker.train("fchl19", given)
    assert record["width"] == 10.0
    assert fitted[-1] == (300, 10.0)
    assert {count for count, _ in fitted[:-1]} == {kernels_worker.CHOSEN_ON}
    assert record["processor_seconds"] >= record["choosing_seconds"]


def test_time_of_a_kernel_is_that_of_the_processor():
    def model(R):
        begun = time.process_time()
        while time.process_time() - begun < 0.02:
            pass
        time.sleep(0.02)  # which does not count

    assert kernels_worker.ms(model, np.zeros((1, 2, 3)), rounds=1) == pytest.approx(20, abs=6)


def test_times_of_theirs_are_asked_where_they_were_trained(tmp_path, monkeypatch):
    """The runs of a budget have a folder; whichever answered questions can be timed."""
    for minutes_of_run in ("3", "10"):
        (tmp_path / minutes_of_run / "mace").mkdir(parents=True)
    (tmp_path / "3" / "mace" / "questions.npz").touch()

    def speed(name: str, placed: argparse.Namespace) -> dict:
        assert (name, placed.runs) == ("mace", tmp_path / "3")
        return {"ms_1": 2.0, "ms_64": 90.0, "range_1": [1.0, 3.0]}

    monkeypatch.setattr(minutes.others, "speed", speed)
    assert minutes.speed("mace", asked("mace", runs=tmp_path)) == {"ms_1": 2.0, "ms_64": 90.0}


@pytest.mark.parametrize(("case", "data"), [("sgdml", "ethanol"), ("mace", "silicon")])
def test_times_that_cannot_be_taken_are_refused(case, data, capsys):
    with pytest.raises(SystemExit):
        minutes.check(asked(case, what="speed", data=data), argparse.ArgumentParser())
    assert "expected" in capsys.readouterr().err


# The page


def test_page_is_that_of_the_numbers():
    earlier = json.loads((ROOT / "benchmarks" / "others.json").read_text())
    assert (ROOT / "benchmarks" / "minutes.md").read_text() == page(minutes.numbers(), earlier)


def test_tables_are_whole():
    """Every line of a table has the cells of its head."""
    blocks = page(numbers_of(row("painn", 3.0, 8.0), kernel(7.0, 60.0)), EARLIER).split("\n\n")
    tables = [block.splitlines() for block in blocks if block.startswith("|")]
    assert len(tables) == 5
    for lines in tables:
        assert {line.count("|") for line in lines} == {lines[0].count("|")}, lines


def test_page_follows_the_numbers():
    found = numbers_of(row("painn", 3.0, 8.25), kernel(7.0, 60.0))
    assert "8.25" in page(found, EARLIER)
    changed = copy.deepcopy(found)
    changed["rows"][0]["force_mae"] = 0.01234
    assert "12.34" in page(changed, EARLIER)
    assert "8.25" not in page(changed, EARLIER)
    assert "0.321" in page(found, EARLIER)


def test_rows_of_silicon_are_not_among_those_of_ethanol():
    silicon = [row("painn", 3.0, 77.77, frames=n, data="silicon") for n in (1000, 214, 100)]
    alone, both = numbers_of(row("painn", 3.0, 8.0)), numbers_of(row("painn", 3.0, 8.0), *silicon)
    assert rows_of(both, EARLIER) == rows_of(alone, EARLIER)
    assert curve_rows(both) == {}


NETWORKS = [case for case, what in minutes_page.CASES.items() if what.kind != "kernel"]


def crystal_row(case: str, budget: float, force: float, **more) -> dict:
    """Return a row of silicon; errors of an atom's energy are a fiftieth of those of forces."""
    errors = {"force_rmse": force / 500, "energy_per_atom_mae": force / 50000,
              "energy_per_atom_rmse": force / 25000}  # fmt: skip
    return row(case, budget, force, frames=214, data="silicon", **errors | more)


def test_section_on_silicon_is_that_of_its_rows():
    rows = [crystal_row("painn", 3.0, 77.0), crystal_row("mace", 3.0, 55.0),
            crystal_row("schnet", 3.0, 11.0) | {"frames": 100}]  # fmt: skip
    assert silicon_section(numbers_of(row("painn", 3.0, 8.0))) == []
    found = numbers_of(row("painn", 3.0, 8.0), *rows) | {"speed_silicon": {"painn": {"ms_64": 4.5}}}
    text = "\n".join(silicon_section(found))
    for part in ("| 77.00 |", "| 154.00 |", "| 1.54 |", "| 3.08 |", "**MACE 55.0**", "| 4.5 | – |"):
        assert part in text
    assert "11.00" not in text
    assert "8.00" not in text.replace("308.00", "")
    assert text in page(found, EARLIER)
    missing = "\n".join(not_measured(found, EARLIER))
    assert "- silicon with 28.5 minutes;" in missing
    line = next(line for line in missing.splitlines() if line.startswith("- on silicon"))
    assert "SchNet, tables" in line
    assert "PaiNN, tables" not in line
    done = not_measured(
        found | {"rows": [crystal_row(case, 28.5, 9.0) for case in NETWORKS]}, EARLIER
    )
    assert "silicon" not in "".join(done)


def test_what_was_not_measured_is_what_has_no_row():
    text = "\n".join(not_measured(numbers_of(row("painn", 3.0, 8.0)), EARLIER))
    assert "bulk silicon" in text
    never, long_only = (line for line in text.splitlines() if "TensorNet" in line)
    assert "PaiNN, tables" not in text
    assert "PaiNN (SchNetPack)" in never
    assert "TensorNet, tables" in never
    assert long_only == "- with less than 28.5 minutes: TensorNet (torchmd-net);"


def test_seeds_are_said_with_their_range():
    rows = [row("painn", 3.0, x, seed) for seed, x in enumerate((6.0, 7.0, 11.0))]
    assert said(rows, "force_mae") == "8.00 (6.00 to 11.00; 3 seeds)"
    assert said(rows[:1], "force_mae") == "6.00"
    assert said([], "force_mae") == "–"


def test_first_machine_is_shown_and_others_are_marked():
    """What two of them trained is told of both, and counts once, whichever has more rows."""
    rows = [row("painn", 3.0, 8.0), row("schnet", 3.0, 9.0),
            row("painn", 3.0, 4.0, machine="two", epochs=14),
            row("painn", 10.0, 3.0, machine="two"), kernel(5.0, 60.0),
            kernel(4.0, 60.0) | {"machine": "two"}]  # fmt: skip
    for order in (rows, rows[::-1]):
        kept = once(numbers_of(*order))["rows"]
        errors = sorted((round(1000 * x["force_mae"], 6), x["elsewhere"]) for x in kept)
        assert errors == [(3.0, True), (5.0, False), (8.0, False), (9.0, False)]
        text = page(numbers_of(*order), EARLIER)
        assert "one, today.\n‡ two, today.\n" in text
        assert "| 8.00 | 3.00 ‡ |" in text
        assert "| PaiNN, tables †, ethanol, 3 min | 7 | 14 | 2.00 | 8.00 | 4.00 |" in text
    alone = numbers_of(*rows[:2])
    assert "‡" not in page(alone, EARLIER)
    with pytest.raises(
        ValueError, match=r"rows: expected those of \['one', 'two'\], got \['new'\]"
    ):
        page(numbers_of(row("painn", 3.0, 8.0, machine="new")), EARLIER)
    alone["speed"]["painn"]["machine"] = "two"
    assert "| 0.321 ‡ | 8 ‡ |" in page(alone, EARLIER)


def test_who_is_ahead_may_be_others():
    rows = [row("painn", 3.0, 8.0), row("mace", 3.0, 6.0), row("nequip", 10.0, 1.0)]
    assert [label for _, label in best_within(rows, 3.0)] == ["MACE", "PaiNN, tables †"]
    rows[0]["force_mae"] = 0.002
    assert best_within(rows, 3.0)[0] == (pytest.approx(2.0), "PaiNN, tables †")


def test_kernel_counts_once_it_is_trained():
    rows = [row("painn", 3.0, 8.0), kernel(5.0, 600.0), kernel(9.0, 10.0, frames=130)]
    assert [error for error, _ in best_within(rows, 3.0)] == pytest.approx([8.0, 9.0])
    assert [error for error, _ in best_within(rows, 30.0)] == pytest.approx([5.0])


def test_earlier_rows_are_marked_where_they_are_ours():
    earlier = copy.deepcopy(EARLIER)
    earlier["networks"]["egnn"] = {**earlier["networks"]["tensornet"], "ours": True}
    rows = {x["case"]: x for x in rows_of(numbers_of(), earlier)}
    assert said([rows["egnn"]], "force_mae") == "6.00 *"
    assert said([rows["tensornet"]], "force_mae") == "6.00"


def test_learning_curves_are_of_one_budget():
    few = [row("painn", 1.5, 30.0, frames=100), row("painn", 1.5, 12.0)]
    curves = curve_rows(numbers_of(*few, row("painn", 3.0, 8.0), kernel(7.0, 60.0)))
    assert list(curves) == [("painn", 1.5)]
    assert {n: len(rows) for n, rows in curves["painn", 1.5].items()} == {100: 1, 1000: 1}
    text = page(numbers_of(*few), EARLIER).split("## Learning curves")[1]
    assert "30.00" in text
    assert "12.00" in text


def test_figure_shows_every_case_that_was_measured(tmp_path):
    found = numbers_of(row("painn", 3.0, 8.0), row("painn", 3.0, 30.0, frames=100), kernel(7, 60.0),
                       crystal_row("schnet", 3.0, 90.0))  # fmt: skip
    texts = {}
    for name, numbers in (("all", found), ("none", numbers_of())):
        with minutes_figure.plt.rc_context({"svg.fonttype": "none"}):
            draw(numbers, EARLIER, tmp_path / f"{name}.svg")
        texts[name] = (tmp_path / f"{name}.svg").read_text()
    for label in ("PaiNN, tables", "FCHL19", "SchNet, tables", "of silicon"):
        assert label in texts["all"]
        assert label not in texts["none"]
    assert "TensorNet" in texts["none"]
