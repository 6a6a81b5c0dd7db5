"""A training step, its loss and gradient: plain, on splines, compiled."""

from __future__ import annotations

import dataclasses
import shutil

import pytest
import torch
from contract import assert_equal
from frames import CELL, SIZES, dataset, of_sizes, trainer_for
from torch import nn

from molnets.networks import sizes_of
from molnets.potential import energy_and_forces
from molnets.tables import SplineForces, SplineSteps, SplineUpdate, UnknownPartError
from molnets.training import (
    ENGINES,
    Dataset,
    PlainForces,
    PlainSteps,
    evaluate,
    factors_of,
    loss_of,
    make_steps,
    standardized,
)
from molnets.training.engines import PlainUpdate
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


def gradient_of(potential, loss):
    """Return the gradient of a loss by all weights, one after the other."""
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, [*potential.parameters()])])


def labelled(data: Dataset) -> Dataset:
    """Return frames of which some have virials, one has no forces, one no energy; with weights."""
    generator = torch.Generator().manual_seed(1)
    num = len(data)
    data.virials = torch.randn(num, 3, 3, generator=generator, dtype=torch.float64)
    data.labels = torch.ones(num, 3, dtype=torch.bool)
    data.labels[0, 1] = data.labels[2, 0] = data.labels[1, 2] = False
    data.weights = torch.linspace(0.5, 2, num, dtype=torch.float64)
    return data


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("network", ["schnet", "painn", "tensornet"])
@pytest.mark.parametrize("make", [of_sizes, lambda: labelled(of_sizes())], ids=["plain", "labels"])
@pytest.mark.parametrize("name", ["plain", "spline"])
def test_a_step_is_the_loss_and_its_gradient_of_the_whole_potential(name, make, network, threads):
    """Frames of all sizes, one in a cell: a step, and the same by autograd alone."""
    data, frames = make(), torch.tensor([2, 0, 4, 1])
    torch.manual_seed(0)
    sizes = SIZES if network == "schnet" else sizes_of(network)(8, 2, 10, cutoff=2.0)
    potential = standardized(sizes, data, frames).double()
    target, cells = data.take(frames, torch.float64), data.cells[frames]
    factors = factors_of(data, 0.1, 1.0, 0.3)
    edges = potential.graph.edges(target.pos, target.batch, cells, cells.any(dim=2))
    results = PlainForces(potential)(target.z, target.batch, edges, virial=True)
    loss = loss_of(results, target, factors[frames])
    expected, weights = gradient_of(potential, loss), [*potential.parameters()]
    before, step = torch.get_num_threads(), make_steps(name, potential, data, factors)
    torch.set_num_threads(threads)
    got = torch.ones(len(expected), dtype=torch.float64)
    value = step(frames, weights, got)
    torch.set_num_threads(before)
    assert value == pytest.approx(loss.item(), rel=1e-3 if name == "spline" else 1e-12)
    parts = zip(*(x.split([w.numel() for w in weights]) for x in (got, expected)), strict=True)
    for g, right in parts:  # what was there before is gone
        assert (g - right).norm() <= (2e-3 if name == "spline" else 1e-10) * right.norm()
        assert right.norm() > 0


def test_frozen_weights_have_no_gradient(data, potential):
    factors, weights = factors_of(data, 0.1, 1.0, 0.0), [*potential.parameters()]
    whole, some = (torch.zeros(sum(w.numel() for w in part)).double()
                   for part in (weights, weights[3:]))  # fmt: skip
    for part, gradient in ((weights, whole), (weights[3:], some)):
        make_steps("spline", potential, data, factors)(torch.arange(5), part, gradient)
    assert torch.equal(whole[-len(some) :], some) and len(some) < len(whole)


@pytest.mark.parametrize("change", ["weights", "scale", "energies", "activation", "data"])
def test_a_step_belongs_to_the_potential_as_it_is(data, potential, change):
    factors, chosen = factors_of(data, 0.1, 1.0, 0.0), torch.arange(4)
    step, weights = make_steps("spline", potential, data, factors), [*potential.parameters()]
    gradient = torch.zeros(sum(w.numel() for w in weights)).double()
    before = step(chosen, weights, gradient)
    with torch.no_grad():
        if change == "weights":
            weights[-1].data = weights[-1].data + 9  # in another place
        elif change == "scale":
            potential.scale.mul_(2)
        elif change == "energies":
            potential.element_energies = potential.element_energies + 1
        elif change == "data":
            torch._foreach_mul_(weights, 1.5)
        else:
            potential.network.readout[1] = torch.nn.SiLU()
    if change == "activation":
        with pytest.raises(UnknownPartError, match="readout"):
            step(chosen, weights, gradient)
        return
    expected = make_steps("plain", potential, data, factors)(chosen, weights, gradient)
    assert step(chosen, weights, gradient) == pytest.approx(expected, rel=1e-3)
    assert abs(expected - before) > 1e-2 * before  # control


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda f: f._replace(vector=f.vector * 0), "frames: .*longer than 0, got two atoms in"),
        (lambda f: f._replace(vector=f.vector + 0.1), "frames: .*its reverse, got others"),
        (lambda f: f._replace(z=f.z * 0 + 200), r"z: expected numbers from 0 to 100, got .*200"),
        (lambda f: f._replace(z=f.z.int()), "z: expected torch.int64 .*, got .torch.int32"),
        (lambda f: f._replace(forces=f.forces[:5]), r"forces: expected .*168, 3.*, got .*5, 3"),
    ],
)
def test_frames_that_do_not_do(data, potential, spoil, message):
    factors, weights = factors_of(data, 0.1, 1.0, 0.0), [*potential.parameters()]
    gradient = torch.zeros(sum(w.numel() for w in weights)).double()
    with pytest.raises((ValueError, TypeError), match=message):
        frames = spoil(data.frames(potential.cutoff, factors))
        SplineSteps(potential, frames)(torch.arange(3), weights, gradient)


@pytest.mark.parametrize("chosen", [[-1], [24], [0, 99]])
def test_frames_that_are_not_there(data, potential, chosen):
    factors, weights = factors_of(data, 0.1, 1.0, 0.0), [*potential.parameters()]
    gradient = torch.zeros(sum(w.numel() for w in weights)).double()
    step = make_steps("spline", potential, data, factors)
    with pytest.raises(IndexError, match=f"chosen: expected frames from 0 to 23.*{chosen[-1]}"):
        step(torch.tensor(chosen), weights, gradient)


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


def test_steps_of_networks_that_the_engine_does_not_know_are_plain(data, potential, capsys):
    factors = factors_of(data, 0.1, 1.0, 0.0)
    assert isinstance(make_steps("spline", potential, data, factors), SplineSteps)
    sizes = dataclasses.asdict(SIZES) | {"gamma": 4.0}
    potential.network = Doubled(**sizes).double()
    assert isinstance(make_steps("spline", potential, data, factors), PlainSteps)
    assert "the network is a Doubled" in capsys.readouterr().err
    assert isinstance(make_steps("plain", potential, data, factors), PlainSteps)


def test_engines_that_do_not_exist(data, potential):
    assert set(ENGINES) == {"spline", "plain", "compiled"}
    with pytest.raises(ValueError, match=r"engine: expected one of \('spline', .*got 'splines'"):
        make_steps("splines", potential, data, factors_of(data, 0.1, 1.0, 0.0))


def updates_of(dtype, num, kind, optimizer_options=None):
    """Return weights, their average, and what moves them, the same ones each time."""
    generator = torch.Generator().manual_seed(5)
    whole = nn.Parameter(torch.randn(num, dtype=dtype, generator=generator))
    whole.grad, average = torch.zeros_like(whole), torch.zeros(num, dtype=dtype)
    optimizer = torch.optim.AdamW([whole], lr=0.01, weight_decay=0.1, fused=True,
                                  **(optimizer_options or {}))  # fmt: skip
    return whole, average, kind(optimizer, average), optimizer


def move(whole, update, optimizer, steps, clip_norm=0.0):
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        whole.grad.copy_(10.0 ** (step % 4 - 2) * torch.randn(
            len(whole), dtype=whole.dtype, generator=generator))  # fmt: skip
        optimizer.param_groups[0]["lr"] = 0.01 / (1 + step)
        update(clip_norm, 0.9 - 0.1 * step % 0.5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 2e-6)])
@pytest.mark.parametrize("num", [1, 7, 1003])
@pytest.mark.parametrize("clip_norm", [0.0, 0.5])
def test_the_compiled_update_is_that_of_torch(dtype, tolerance, num, clip_norm):
    """Weights, average and state after steps of all sizes; each goes on where the other was."""
    kinds = PlainUpdate, SplineUpdate
    found = []
    for first, second in ((0, 0), (1, 1), (0, 1), (1, 0)):
        whole, average, update, optimizer = updates_of(dtype, num, kinds[first])
        move(whole, update, optimizer, range(5), clip_norm)
        move(whole, kinds[second](optimizer, average), optimizer, range(5, 9), clip_norm)
        state = optimizer.state[whole]
        found.append([whole.detach(), average, state["exp_avg"], state["exp_avg_sq"]])
        assert state["step"] == 9
    for others in found[1:]:
        for x, expected in zip(others, found[0], strict=True):
            assert (x - expected).abs().max() <= tolerance * expected.abs().max()
    assert (found[0][0] - updates_of(dtype, num, PlainUpdate)[0]).abs().mean() > 1e-3  # control


def test_a_gradient_that_is_no_number_makes_no_numbers():
    for kind in (PlainUpdate, SplineUpdate):
        whole, _, update, _ = updates_of(torch.float32, 5, kind)
        whole.grad[2] = torch.nan
        update(1.0, 0.5)
        assert whole.isnan().all()


def test_the_compiled_update_tells_torch_that_weights_are_others():
    whole, average, update, _ = updates_of(torch.float32, 5, SplineUpdate)
    versions = whole._version, average._version
    update(1.0, 0.5)
    assert whole._version > versions[0] and average._version > versions[1]


def test_the_compiled_update_is_that_of_adamw_alone():
    with pytest.raises(TypeError, match="optimizer: expected AdamW of one parameter"):
        updates_of(torch.float32, 5, SplineUpdate, {"amsgrad": True})
    x = nn.Parameter(torch.zeros(3))
    with pytest.raises(TypeError, match="optimizer"):
        SplineUpdate(torch.optim.SGD([x], lr=0.1), torch.zeros(3))
