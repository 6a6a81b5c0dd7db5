"""Recipes: which one data choose, what it sets, and that what is given wins."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import fields, replace

import pytest
import torch
from frames import CELL, FLAGS, ROOT, dataset, npz, of_sizes

from benchmarks.minutes_page import CASES
from benchmarks.recipes import SEARCHES, numbers
from benchmarks.recipes_page import page
from molnets import checkpoint
from molnets.checkpoint import UNKNOWN
from molnets.command import main, run
from molnets.networks import NETWORKS, sizes_of
from molnets.networks.painn import Sizes
from molnets.training import Dataset, Settings, joined, recipes

FEW = ["--epochs=1", "--num-validation=4", "--num-test=4", "--cutoff=2.0", "--dim-embedding=8"]


def alone(data: Dataset) -> Dataset:
    """Return data with an isolated oxygen behind them."""
    one = torch.zeros(1, 3)
    return joined([data, Dataset(torch.tensor([8]), one, torch.zeros(1), one, torch.tensor([1]))])


def test_data_choose_their_recipe():
    assert recipes.choose(dataset()) == "molecule"
    assert recipes.choose(dataset(CELL)) == "bulk"
    sizes = of_sizes()  # two of five frames are periodic
    assert recipes.choose(sizes) == "bulk"
    assert recipes.choose(sizes.subset(torch.tensor([0, 3]))) == "molecules"


def test_order_of_atoms_makes_no_other_molecule():
    data = dataset()
    turned = data.z.view(24, 7).clone()
    turned[0] = turned[0].roll(1)
    assert not torch.equal(turned[0], turned[1])
    data.z = turned.flatten()
    assert recipes.choose(data) == "molecule"
    data.z[0] = 8
    assert recipes.choose(data) == "molecules"


def test_isolated_atoms_do_not_count():
    data = alone(dataset())
    assert data.alone.sum() == 1 and recipes.choose(data) == "molecule"
    data.alone[-1] = False
    assert recipes.choose(data) == "molecules"


@pytest.mark.parametrize("unit, name", [("Å", "molecule"), (UNKNOWN, "molecule"), ("σ", "none")])
def test_lengths_in_other_units_have_no_recipe(unit, name):
    data = dataset()
    data.length_unit = unit
    assert recipes.choose(data) == name


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_every_value_is_a_setting_or_a_size(name):
    for network, values in recipes.RECIPES[name].values.items():
        assert network in NETWORKS
        defaults = {item.name: item.default
                    for kind in (Settings, sizes_of(network)) for item in fields(kind)}  # fmt: skip
        for key, value in values.items():
            assert key in defaults, key
            assert type(value) is type(defaults[key]), key
        sizes = recipes.with_values(sizes_of(network)(), values)
        settings = recipes.with_values(Settings(), values)
        sizes.build()
        for key, value in values.items():
            assert getattr(settings if hasattr(settings, key) else sizes, key) == value


def test_what_is_given_stays():
    values = {"lr": 0.5, "cutoff": 3.0, "gamma": 2.0}
    assert recipes.with_values(Settings(), values) == replace(Settings(), lr=0.5)
    assert recipes.with_values(Settings(lr=0.1), values, {"lr"}) == Settings(lr=0.1)
    assert recipes.with_values(Sizes(), values, {"cutoff"}) == replace(Sizes(), gamma=2.0)


def test_no_recipe_and_networks_without_one_have_no_values():
    assert recipes.values_of("none", "painn") == {} == recipes.values_of("molecule", "dimenet")
    with pytest.raises(ValueError, match=r"^recipe: expected one of \('molecule', .*got 'soup'"):
        recipes.values_of("soup", "painn")


@pytest.fixture
def values(monkeypatch) -> dict[str, float]:
    """Make a recipe of other numbers than any that is there."""
    made = {"batch_size": 3, "lr": 0.002, "num_gaussians": 7, "gamma": 2.5}
    for name in ("molecule", "bulk"):
        monkeypatch.setitem(recipes.RECIPES, name, recipes.Recipe(f"a {name}", {"painn": made}))
    return made


def trained(tmp_path, capsys, *arguments: str, network: str = "painn") -> tuple[dict, str]:
    """Train by the command; return the metrics and the line about the recipe."""
    path = tmp_path / "data.npz"
    path = path if path.exists() else npz(path)
    metrics = run(["train", str(path), "--out", str(tmp_path / "out"), f"--network={network}",
                   *FEW, *arguments])  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if line.startswith("recipe ")]
    return metrics, line


def test_command_takes_the_recipe_of_the_data_and_says_so(tmp_path, capsys, values):
    metrics, line = trained(tmp_path, capsys)
    settings, sizes = metrics["settings"], metrics["sizes"]
    assert (settings["recipe"], settings["batch_size"], settings["lr"]) == ("molecule", 3, 0.002)
    assert (sizes["num_gaussians"], sizes["gamma"], sizes["cutoff"]) == (7, 2.5, 2.0)
    expected = "batch_size 3, lr 0.002, num_gaussians 7, gamma 2.5"
    assert line == f"recipe molecule (a molecule) for painn: {expected}"
    for name in ("best.pt", "last.pt"):
        assert checkpoint.read(tmp_path / "out" / name)["settings"]["recipe"] == "molecule"


def test_what_is_given_wins_even_if_it_is_the_default(tmp_path, capsys, values):
    given = ["--lr", "0.001", "--num-gaussians=25", "--recipe=bulk"]
    assert (Settings().lr, Sizes().num_gaussians) == (0.001, 25)
    metrics, line = trained(tmp_path, capsys, *given)
    assert metrics["settings"]["lr"] == 0.001 and metrics["settings"]["batch_size"] == 3
    assert metrics["sizes"]["num_gaussians"] == 25 and metrics["sizes"]["gamma"] == 2.5
    assert line == ("recipe bulk (a bulk) for painn: batch_size 3, gamma 2.5; "
                    "as given: lr, num_gaussians")  # fmt: skip


def test_no_recipe(tmp_path, capsys, values):
    metrics, line = trained(tmp_path, capsys, "--recipe=none")
    assert metrics["settings"] == vars(Settings(epochs=1, recipe="none"))
    assert line == "recipe none: defaults, and what is given"


def test_network_that_was_not_searched(tmp_path, capsys, values):
    metrics, line = trained(tmp_path, capsys, network="egnn")
    assert metrics["settings"] == vars(Settings(epochs=1, recipe="molecule"))
    assert line == "recipe molecule (a molecule) for egnn: nothing of its own"


def test_a_run_that_goes_on_keeps_its_recipe(tmp_path, capsys, values):
    trained(tmp_path, capsys, "--recipe=none", "--epochs=2")
    metrics, line = trained(tmp_path, capsys, "--resume", "--epochs=3")
    assert line.startswith("recipe none") and metrics["epochs"] == 3
    with pytest.raises(ValueError, match=r"recipe: expected that of .*last\.pt, none, got mol"):
        same = "--batch-size=10", "--lr=0.001", "--num-gaussians=25", "--gamma=0"
        trained(tmp_path, capsys, "--resume", "--epochs=3", "--recipe=molecule", *same)


def test_a_run_from_before_recipes_goes_on(tmp_path, capsys, values):
    trained(tmp_path, capsys, "--recipe=none", "--epochs=2")
    path = tmp_path / "out" / "last.pt"
    state = checkpoint.read(path)
    del state["settings"]["recipe"]
    checkpoint.write(state, path)
    metrics, line = trained(tmp_path, capsys, "--resume", "--epochs=3")
    assert line.startswith("recipe none") and metrics["epochs"] == 3


def test_processes_share_the_batches_of_a_recipe(tmp_path, capsys, values, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    metrics, line = trained(tmp_path, capsys)
    assert metrics["settings"]["batch_size"] == 4
    assert "batch_size 4, " in line


def test_recipe_that_is_not_known(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(["train", "data.npz", "--out", str(tmp_path), "--recipe=soup"])
    assert "invalid choice: 'soup'" in capsys.readouterr().err


def test_wrong_value_that_is_given_is_named(tmp_path, monkeypatch):
    path = npz(tmp_path / "data.npz")
    monkeypatch.setattr("sys.argv", ["molnets", "train", str(path), "--out", str(tmp_path / "o"),
                                     *FLAGS, "--batch-size=0"])  # fmt: skip
    with pytest.raises(SystemExit, match=r"batch_size: expected 1 to 16, .*, got 0"):
        main()


# The page


def test_page_is_that_of_the_numbers():
    assert (ROOT / "benchmarks" / "recipes.md").read_text() == page(numbers(), SEARCHES)


def test_page_follows_the_numbers():
    found = copy.deepcopy(numbers())
    best = min(found["trials"], key=lambda row: row["judged"]["force_mae"])
    best["judged"]["force_mae"] = 0.00123
    assert re.search(r" 1\.23 ", page(found, SEARCHES))
    assert not re.search(r" 1\.23 ", page(numbers(), SEARCHES))


def test_recipes_were_tested_as_they_are():
    """What `minutes.md` says of a recipe was trained with the values that it has now."""
    rows = json.loads((ROOT / "benchmarks" / "minutes.json").read_text())["rows"]
    tested = set()
    for row in (row for row in rows if row.get("data", "ethanol") == "ethanol"):
        case = CASES[row["case"]]
        if case.kind != "ours" or case.network not in recipes.MOLECULE:
            continue
        values = {**recipes.values_of("molecule", case.network), "engine": case.engine}
        assert {k: v for k, v in row["changed"].items() if k != "seed"} == values, row["case"]
        tested.add(case.network)
    assert tested == set(recipes.MOLECULE)
