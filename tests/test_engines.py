"""What gives the energies and forces of a training step: plain, from tables, compiled."""

from __future__ import annotations

import dataclasses
import shutil

import pytest
import torch
from contract import assert_equal
from frames import CELL, SIZES, dataset, of_sizes, trainer_for

from molnets.potential import energy_and_forces
from molnets.tables import SplineForces
from molnets.training import ENGINES, PlainForces, evaluate, loss_of, make_engine, standardized
from schnet_helpers import SchNet


@pytest.fixture
def data():
    return dataset()


@pytest.fixture
def potential(data):
    torch.manual_seed(0)
    return standardized(SIZES, data, torch.arange(16)).double()


@pytest.mark.parametrize("num_frames", [1, 3])
def test_known_edges_give_the_model_s_energies_and_forces(data, potential, num_frames):
    frames = torch.tensor([3, 9, 0])[:num_frames]
    z, pos, batch, *_ = data.take(frames, torch.float64)
    expected = energy_and_forces(potential, z, pos, batch)
    edges = data.edges(potential.cutoff).take(frames, torch.float64)
    energy, forces = PlainForces(potential)(z, batch, edges)
    assert_equal(energy.detach(), expected[0])
    assert_equal(forces.detach(), expected[1])
    assert forces.abs().max() > 1e-3


@pytest.mark.parametrize("engine", [PlainForces, SplineForces])
def test_periodic_frames_see_their_images(data, potential, engine):
    frames, periodic = torch.tensor([3, 9]), dataset(CELL)
    z, pos, batch, *_ = data.take(frames, torch.float64)
    edges = periodic.edges(potential.cutoff).take(frames, torch.float64)
    energy, forces = engine(potential)(z, batch, edges)
    expected = energy_and_forces(potential, z, pos, batch, CELL.expand(2, 3, 3))
    atol = 1e-11 if engine is PlainForces else 1e-3  # training's tables are coarse
    assert_equal(energy.detach(), expected[0], atol)
    assert_equal(forces.detach(), expected[1], atol)
    isolated = evaluate(potential, data, frames).energies
    assert (energy - isolated).abs().min() > 1e-2


@pytest.mark.parametrize("name", ["plain", "spline"])
def test_gradients_are_those_of_the_whole_potential(name):
    """Frames of all sizes, one in a cell: the loss by way of the engine and by autograd alone."""
    data, frames = of_sizes(), torch.tensor([2, 0, 4])
    torch.manual_seed(0)
    potential = standardized(SIZES, data, frames).double()
    target = data.take(frames, torch.float64)
    edges = data.edges(potential.cutoff).take(frames, torch.float64)
    cells = data.cells[frames]
    whole = potential.energy_and_forces(
        *target[:3], cells, cells.any(dim=2), create_graph=True
    )  # fmt: skip
    results = make_engine(name, potential)(target.z, target.batch, edges), whole
    gradients = []
    for energy, forces in results:
        loss = loss_of(energy, forces, target, 0.1, 1.0)
        loss.backward()
        weights = potential.named_parameters()
        gradients.append({name: weight.grad.clone() for name, weight in weights})
        potential.zero_grad()
    for name_of_weight, expected in gradients[1].items():
        got = gradients[0][name_of_weight]
        assert (got - expected).norm() <= 2e-3 * expected.norm(), name_of_weight
        assert expected.norm() > 0, name_of_weight


def test_tables_give_the_same_weights(data, tmp_path):
    settings = {"epochs": 3, "batch_size": 4}
    plain = trainer_for(data, tmp_path / "plain", **settings, engine="plain")
    tables = trainer_for(data, tmp_path / "tables", **settings)
    before = [weight.detach().clone() for weight in plain.weights]
    for trainer in (plain, tables):
        trainer.run(progress=False)
    for a, b, start in zip(plain.weights, tables.weights, before, strict=True):
        assert (a - b).norm() < 0.02 * (a - start).norm()


@pytest.mark.slow
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


class Doubled(SchNet):
    """A network that is made of a SchNet's weights, and is none."""

    def energy_per_atom(self, *arguments):
        return 2 * super().energy_per_atom(*arguments)


def test_tables_are_for_schnet_alone(potential, capsys):
    assert isinstance(make_engine("spline", potential), SplineForces)
    sizes = dataclasses.asdict(SIZES) | {"gamma": 4.0}
    potential.network = Doubled(**sizes).double()
    assert isinstance(make_engine("spline", potential), PlainForces)
    assert "the network is a Doubled" in capsys.readouterr().err
    assert isinstance(make_engine("plain", potential), PlainForces)


def test_engines_that_do_not_exist(potential):
    assert set(ENGINES) == {"spline", "plain", "compiled"}
    with pytest.raises(ValueError, match=r"engine: expected one of \('spline', .*got 'splines'"):
        make_engine("splines", potential)
