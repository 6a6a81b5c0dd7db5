"""What other packages are given of periodic frames, and how they are trained on them."""

from __future__ import annotations

import argparse
import importlib
import json

import numpy as np
import pytest
import torch
from frames import ROOT, of_sizes
from torch import nn

from benchmarks import minutes, minutes_data, others
from benchmarks.minutes_page import CASES

PARTS = torch.tensor([2, 2, 4]), torch.tensor([4, 2]), torch.tensor([4, 2])


@pytest.fixture
def theirs(monkeypatch):
    """Return the modules that run in the packages' environments."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    names = "others_worker", "others_networks", "others_crystals"
    return argparse.Namespace(**{x.removeprefix("others_"): importlib.import_module(x)
                                 for x in names})  # fmt: skip


@pytest.fixture
def data(monkeypatch):
    """Return frames of which two are periodic, of 5 and of 4 atoms, as the data of silicon."""
    data = of_sizes()
    data.length_unit, data.energy_unit = "Å", "eV"
    for module in (minutes, minutes_data):
        monkeypatch.setattr(module, "data_of", {"silicon": data}.get)
        monkeypatch.setattr(module, "parts_of", lambda *_: PARTS)
    return data


@pytest.fixture
def file(data, tmp_path):
    """Return a file of these frames."""
    np.savez(tmp_path / "frames.npz", **minutes_data.crystals("silicon"))
    return tmp_path / "frames.npz"


def test_edges_are_those_of_our_trainings(theirs, data, file):
    """Vectors by positions and shifts, of a batch of two sizes, some edges to own images."""
    frames = theirs.crystals.Crystals(file, 1.0)
    for cutoff in (3.1, 5.0):
        found = theirs.crystals.joined([frames.parts["train"][k] for k in (2, 0)], cutoff)
        edges = data.edges(cutoff).take(torch.tensor([4, 2]), torch.float64)
        j, i = found.edges
        vector = found.pos[j] - found.pos[i] - found.shift
        ours = torch.cat([edges.index.T, edges.vector], dim=1).tolist()
        same = torch.cat([found.edges.T.double(), vector.double()], dim=1).tolist()
        assert len(same) == len(ours)
        assert np.allclose(sorted(np.round(ours, 3).tolist()), sorted(np.round(same, 3).tolist()),
                           atol=2e-3)  # fmt: skip
        assert (j == i).any()
    assert found.batch.tolist() == [0] * 4 + [1] * 5
    assert found.n_atoms.tolist() == [4, 5]


def test_labels_are_those_of_the_frames(theirs, data, file):
    """In the unit of the recipe; energies less the mean of an atom; none of the test frames."""
    frames = theirs.crystals.Crystals(file, 0.5)
    E = data.energies[PARTS[0]] / torch.tensor([5, 5, 4])
    assert frames.offset == pytest.approx(float(E.mean()))
    energy, forces, n = frames.target("train", torch.tensor([2, 0]))
    expected = 2 * (data.energies[[4, 2]] - E.mean() * torch.tensor([4, 5]))
    assert torch.allclose(energy.double(), expected, rtol=1e-5)
    assert torch.allclose(forces.double(), 2 * data.forces[data.atoms_of(torch.tensor([4, 2]))])
    assert n.tolist() == [4, 5]
    assert frames.sizes("test").tolist() == [4, 5]
    with np.load(file) as arrays:
        assert {key for key in arrays.files if key[-2:] in ("_E", "_F")} == {
            "train_E", "train_F", "valid_E", "valid_F"}  # fmt: skip
    known = frames.statistics()
    assert known.energy_std == pytest.approx(float(2 * E.std()), rel=1e-4)
    counts = data.edges(5.0).counts
    assert known.neighbours == pytest.approx(float(2 * counts[2] + counts[4]) / 14)


def test_given_distance_is_whole(theirs, file):
    """Lengths of edges, 0 of loops, directions to own images; gradients are finite."""
    frames = theirs.crystals.Crystals(file, 1.0)
    atoms = theirs.crystals.joined([frames.parts["train"][0]], 5.0)
    pos = atoms.pos.requires_grad_()
    given = theirs.networks.GivenDistance().with_loops(atoms)
    (to, other), length, vector = given(pos, atoms.batch)
    num_edges = atoms.edges.shape[1]
    exact = pos[atoms.edges[0]] - pos[atoms.edges[1]] - atoms.shift
    assert torch.allclose(length[:num_edges], exact.norm(dim=1))
    assert torch.equal(to[num_edges:], torch.arange(5))
    assert not length[num_edges:].any()
    assert not vector[num_edges:].any()
    own = (to == other)[:num_edges]
    assert own.any()
    assert torch.allclose(vector[:num_edges][own].norm(dim=1), torch.ones(int(own.sum())))
    assert torch.allclose(vector[:num_edges][~own], exact[~own])
    (length.sum() + vector.square().sum()).backward()
    assert pos.grad.isfinite().all()
    assert pos.grad.any()


def test_energies_count_by_atom_where_the_recipe_says_so(theirs):
    recipe = theirs.networks.RECIPES["mace"]._replace(energy_weight=2.0, force_weight=3.0)
    found = torch.tensor([4.0, 8.0]), torch.ones(6, 3)
    target = torch.tensor([0.0, 0.0]), torch.zeros(6, 3), torch.tensor([2, 4])
    assert theirs.worker.loss_of(recipe, found, target, 0.0) == 2 * 4 + 3
    whole = recipe._replace(per_atom=False)
    assert theirs.worker.loss_of(whole, found, target, 0.0) == 2 * 40 + 3


class Toy(nn.Module):
    """Energies of an atom and forces, both a weight; what a call costs goes to a clock."""

    def __init__(self, clock: list[float], seconds: float) -> None:
        super().__init__()
        self.weight, self.clock, self.seconds = nn.Parameter(torch.zeros(())), clock, seconds

    def forward(self, atoms) -> tuple[torch.Tensor, torch.Tensor]:
        """Return energies, (B,), and forces, (N, 3)."""
        self.clock[0] += 1.0 if self.training else self.seconds
        return self.weight * atoms.n_atoms, self.weight * torch.ones_like(atoms.pos)


def fitted(theirs, file, monkeypatch, seconds: float, **changes) -> dict:
    """Train a toy for 1000 s by its clock, where a step takes 1 s and a check some seconds."""
    clock, recipe = [0.0], theirs.networks.RECIPES["nequip"]._replace(batch_size=2, **changes)
    monkeypatch.setattr(theirs.worker.time, "process_time", lambda: clock[0])
    network = theirs.networks.Network(Toy(clock, seconds), 5.0, lambda model, x: model(x))
    optimizer = torch.optim.SGD(network.parameters(), lr=recipe.lr)
    frames = theirs.crystals.Crystals(file, 1.0)
    return theirs.worker.fit(network, frames, optimizer, recipe, 1000.0)


def test_last_stage_keeps_its_own_weights(theirs, file, monkeypatch):
    """The best by its loss, where energies count for more; not the best forces of before."""
    losses = []

    def loss_of(recipe, found, target, used: float) -> torch.Tensor:
        if not found[0].requires_grad:  # of a check
            losses.append((used, found[1].mean().item()))
            return torch.tensor({17: 3.0, 18: 1.0, 19: 2.0, 20: 2.0}.get(round(20 * used), 0.0))
        return (found[0] - 5).square().mean()  # drives the forces away from what they should be

    monkeypatch.setattr(theirs.worker, "loss_of", loss_of)
    for last_energy_weight in (None, 9.0):
        losses.clear()
        done = fitted(theirs, file, monkeypatch, 0.5, last_energy_weight=last_energy_weight)
        kept, forces = done["weights"]["model.weight"].item(), [x for _, x in losses]
        best = min(range(20), key=lambda check: done["log"][check][3])
        assert best < 16
        assert kept == pytest.approx(forces[17 if last_energy_weight else best])


def test_checks_take_little_of_the_time(theirs, file, monkeypatch):
    """Quick ones are done at every twentieth, slow ones wait; the last is done in any case."""
    quick = fitted(theirs, file, monkeypatch, 0.5)
    assert len(quick["log"]) == 20
    slow = fitted(theirs, file, monkeypatch, 30.0)
    assert 2 <= len(slow["log"]) <= 5
    assert slow["steps"] >= 850
    assert slow["log"][-1][1] == slow["steps"]
    assert slow["epochs"] == pytest.approx(slow["steps"] * 2 / 3)


def test_network_elsewhere_is_tested_on_silicon(theirs, data, monkeypatch, tmp_path):
    """A worker that answers what it should but for 0.1 eV an atom and 0.2 eV/Å."""
    asked = []

    def worker(what, name, options, *more) -> str:
        run = options.runs / name
        asked.append((what, *more))
        if what == "train":
            record = {"processor_seconds": 1.0, "epochs": 2, "parameters": 3, "cutoff": 5.0,
                      "versions": {}, "source": "", "batch_size": 4}  # fmt: skip
            (run / "trained.json").write_text(json.dumps(record))
        E = data.energies[PARTS[2]] + 0.1 * data.n_atoms[PARTS[2]]
        F = data.forces[data.atoms_of(PARTS[2])] - 0.2
        np.savez(run / "answers.npz", E=E.numpy(), F=F.numpy())
        return ""

    monkeypatch.setattr(others, "worker", worker)
    options = argparse.Namespace(runs=tmp_path, environments=tmp_path, data="silicon")
    found = minutes.train_theirs("mace", 3.0, options)
    assert asked == [("train", 3.0), ("answer-crystals",)]
    assert (tmp_path / "silicon" / "3" / "frames.npz").exists()
    for name, error in (("energy_per_atom_mae", 0.1), ("energy_per_atom_rmse", 0.1),
                        ("force_mae", 0.2), ("force_rmse", 0.2), ("energy_mae", 0.45)):  # fmt: skip
        assert found[name] == pytest.approx(error)
    assert [found[f"num_{part}"] for part in ("train", "validation", "test")] == [3, 2, 2]


def test_answer_has_the_energies_of_the_atoms(theirs, file, monkeypatch):
    """In eV, the mean of an atom added again."""
    run = file.parent / "toy"
    run.mkdir()
    network = theirs.networks.Network(Toy([0.0], 0.0), 5.0, lambda model, x: model(x))
    nn.init.constant_(network.model.weight, 3.0)
    monkeypatch.setattr(theirs.worker, "trained",
                        lambda *_: (network, {"unit": 0.5, "offset": 10.0}))  # fmt: skip
    theirs.worker.answer_crystals("toy", run)
    with np.load(run / "answers.npz") as answers:
        assert answers["E"] == pytest.approx(np.array([4, 5]) * (0.5 * 3 + 10))
        assert answers["F"] == pytest.approx(np.full((9, 3), 1.5))


def test_steps_are_of_few_crystals(theirs, file, monkeypatch):
    """Of as many as ours; the recipe's number is for molecules."""
    run, worker = file.parent / "toy", theirs.worker
    run.mkdir()
    seen, done = [], {"weights": {}, "steps": 1}
    monkeypatch.setitem(worker.RECIPES, "toy", theirs.networks.RECIPES["mace"])
    monkeypatch.setitem(worker.PACKAGES, "toy", ())
    monkeypatch.setitem(worker.BUILDERS, "toy", lambda *_: theirs.networks.Network(
        Toy([0.0], 0.0), 5.0, lambda model, x: model(x)))  # fmt: skip
    monkeypatch.setattr(worker, "optimizer_of", lambda *_: None)
    monkeypatch.setattr(worker, "fit", lambda *given: seen.append(given) or dict(done))
    worker.train("toy", run, 1.0)
    assert seen[0][3].batch_size == 2
    assert json.loads((run / "trained.json").read_text())["batch_size"] == 2


def test_every_network_of_others_can_be_trained(theirs):
    """It has a builder, a recipe, packages and an environment; all cases of the page do."""
    asked = {case for case, what in CASES.items() if what.kind == "theirs"}
    assert asked >= {"mace", "mace-small", "nequip", "tensornet", "schnetpack-painn"}
    assert {*others.OF_PAGE, *asked} == {*others.ENVIRONMENTS}
    for known in (theirs.networks.BUILDERS, theirs.networks.RECIPES, theirs.worker.PACKAGES):
        assert {*known} == {*others.ENVIRONMENTS}
    sources = [recipe.source for recipe in theirs.networks.RECIPES.values()]
    assert len({*sources}) == len(sources)


def test_small_mace_is_optimized_as_mace(theirs):
    network = nn.Module()
    network.model = nn.ModuleDict({"products": nn.Linear(2, 2), "other": nn.Linear(2, 2)})
    recipe = theirs.networks.RECIPES["mace-small"]
    made = [theirs.networks.optimizer_of(name, network, recipe) for name in ("mace", "mace-small")]
    for optimizer in made:
        assert type(optimizer) is torch.optim.Adam
        assert [group["weight_decay"] for group in optimizer.param_groups] == [5e-7, 0.0]
