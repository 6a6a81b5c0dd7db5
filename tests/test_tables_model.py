"""The tabulated SchNet against the plain one."""

from __future__ import annotations

import copy
import gc
import weakref

import numpy as np
import pytest
import torch
from contract import EnergyModelContract, assert_equal
from networks import cluster, schnet
from torch import Tensor, nn

from molnets.edges import Graph
from molnets.potential import Potential, by_autograd, energy_and_forces
from molnets.tables import SplineSchNet, splines, state, tabulated
from molnets.tables import model as table_model
from molnets.tables.library import NoLibraryError
from molnets.training import Dataset, PlainForces, PlainSteps, factors_of, make_steps
from schnet_helpers import ElementEmbedding, RadiusInteractionGraph, SchNet


class TestSplineSchNetContract(EnergyModelContract):
    """What holds for every energy model holds for tables."""

    def make_model(self) -> nn.Module:
        return SplineSchNet(SchNet(16, 16, 2, 10, 2.5, 4.0, embedding=ElementEmbedding(16)))

    def reach_further(self, model: nn.Module, factor: float) -> None:
        model.interaction_graph = RadiusInteractionGraph(factor * model.cutoff)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_energies_and_forces_are_those_of_the_plain_network(dtype, tolerance):
    z, pos, batch = cluster()
    energy, forces = by_autograd(schnet(), z, pos, batch)
    model = SplineSchNet(schnet(dtype))
    for way in (energy_and_forces, by_autograd):
        e, f = way(model, z, pos.to(dtype), batch)
        assert e.dtype == f.dtype == dtype
        assert_equal(e.double(), energy, atol=tolerance * float(energy.abs().max()))
        assert_equal(f.double(), forces, atol=tolerance * float(forces.square().mean().sqrt()))


@pytest.mark.parametrize("spread", [12.0, 400.0])
def test_large_samples_whose_atoms_are_sorted_into_cells(spread):
    rng = np.random.default_rng(0)
    sites = rng.permutation(1000)[:600]  # of a cubic lattice, in random order
    pos = np.stack(np.unravel_index(sites, (10, 10, 10)), axis=1) * spread / 10
    pos = torch.from_numpy(pos + rng.uniform(-0.3, 0.3, (600, 3)))
    pos = torch.cat([pos[:3] / spread, pos, pos[:1], 7 + 0.1 * pos[:100]])
    batch = torch.tensor([0] * 3 + [1] * 600 + [2] + [3] * 100)
    z = torch.from_numpy(rng.choice([1, 6, 8], (704, 1)))
    plain = schnet()
    for a, b in zip(energy_and_forces(SplineSchNet(plain), z, pos, batch),
                    by_autograd(plain, z, pos, batch), strict=True):  # fmt: skip
        assert_equal(a, b, atol=1e-8 * float(b.abs().max()))
        assert b.abs().max() > 0.01


def test_flat_and_linear_samples():
    grid = torch.stack(torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij"), 2)
    flat = torch.cat([grid.view(-1, 2), torch.zeros(144, 1)], dim=1).double()
    line = torch.cat([torch.arange(100.0).view(-1, 1), torch.zeros(100, 2)], dim=1).double()
    pos, batch = torch.cat([flat, line]), torch.tensor([0] * 144 + [1] * 100)
    z, plain = torch.ones(244, 1), schnet()
    expected = plain(z, pos, batch).detach()
    assert_equal(energy_and_forces(SplineSchNet(plain), z, pos, batch)[0], expected, atol=1e-6)


def test_gradients_by_autograd_are_those_of_the_plain_network():
    z, pos, batch = cluster()
    plain, gradients = schnet(), []
    for model in (plain, SplineSchNet(plain)):
        plain.zero_grad()
        energy, forces = energy_and_forces(model, z, pos, batch, create_graph=True)
        (energy.square().sum() + forces.square().sum()).backward()
        gradients.append([weight.grad.clone() for weight in plain.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert_equal(b, a, atol=1e-8 * float(a.abs().max()))


def test_weights_are_shared_and_modules_are_not():
    plain = schnet()
    model = SplineSchNet(plain)
    assert all(a is b for a, b in zip(plain.parameters(), model.parameters(), strict=True))
    assert model.state_dict().keys() == plain.state_dict().keys()
    model.interaction_graph = RadiusInteractionGraph(1.0)
    assert plain.interaction_graph.cutoff == 2.5


def test_a_model_around_the_network_gets_tables_and_keeps_its_weights():
    plain = Potential(schnet(), scale=1.7)
    model = tabulated(plain)
    assert isinstance(model.network, SplineSchNet) and not isinstance(plain.network, SplineSchNet)
    assert all(a is b for a, b in zip(plain.parameters(), model.parameters(), strict=True))
    for a, b in zip(energy_and_forces(model, *cluster()),
                    by_autograd(plain, *cluster()), strict=True):  # fmt: skip
        assert_equal(a, b, atol=1e-8)


def test_frames_of_known_edges_are_those_of_the_plain_network():
    z, pos, batch = cluster()
    plain = Potential(schnet())
    edges = Graph(2.5).edges(pos, batch)
    results = [PlainForces(model)(z, batch, edges) for model in (tabulated(plain), plain)]
    for a, b in zip(*results, strict=True):
        assert_equal(a, b, atol=1e-9)


def update_by_optimizer(model: SchNet) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    model(*cluster()).sum().backward()
    optimizer.step()


def update_behind_the_back_of_torch(model: SchNet) -> None:
    for weight in model.parameters():
        weight.data *= 1.1


def update_by_state_dict(model: SchNet) -> None:
    model.load_state_dict({k: 1.1 * x if "mlp" in k else x for k, x in model.state_dict().items()})


@pytest.mark.parametrize(
    "update", [update_by_optimizer, update_behind_the_back_of_torch, update_by_state_dict]
)
def test_tables_are_never_those_of_older_weights(update):
    plain = schnet()
    model = SplineSchNet(plain)
    before, _ = energy_and_forces(model, *cluster())
    update(plain)
    energy, _ = energy_and_forces(model, *cluster())
    assert_equal(energy, plain(*cluster()).detach(), atol=1e-8)
    assert (energy - before).abs().min() > 1e-3


def test_one_model_for_changing_atoms_and_samples():
    plain = schnet()
    model, (z, pos, batch) = SplineSchNet(plain), cluster()
    several = torch.arange(4).repeat_interleave(torch.tensor([3, 11, 7, 7]))
    calls = [(z, pos, batch), (z.flip(0), pos, batch), (z, pos, several), (z, 1.1 * pos, several),
             (z.double(), pos.T.contiguous().T, batch), (z[:14], pos[:14], batch[:14])]  # fmt: skip
    seen = []
    for call in (*calls, calls[0]):
        results = energy_and_forces(model, *call), by_autograd(plain, *call)
        for a, b in zip(*results, strict=True):
            assert_equal(a, b, atol=1e-8)
        seen.append(results[0])
    assert torch.equal(seen[0][0], seen[-1][0])
    assert all((seen[0][1][:14] - forces[:14]).abs().max() > 1e-3 for _, forces in seen[1:4])
    plain.embedding.weight.data *= 2  # of nothing but the embedding is a new result
    assert_equal(energy_and_forces(model, *calls[0])[0], plain(*calls[0]).detach(), atol=1e-8)
    assert (plain(*calls[0]) - seen[0][0]).abs().min() > 1e-3


def test_tables_are_made_once_for_the_same_weights(monkeypatch):
    model, made = SplineSchNet(schnet()), []
    monkeypatch.setattr(state, "fitted", lambda *a: made.append(0) or splines.fitted(*a))
    for _ in range(3):
        energy_and_forces(model, *cluster())
    assert len(made) == 1


def test_atoms_that_are_alone():
    model, batch = SplineSchNet(schnet()), torch.arange(3)
    z, pos = torch.tensor([[1], [6], [8]]), torch.zeros(3, 3).double()
    energy, forces = energy_and_forces(model, z, pos, batch)
    assert_equal(energy, schnet()(z, pos, batch).detach())
    assert energy.shape == (3, 1) and not forces.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_threads_change_nothing_but_round_off_and_two_runs_nothing(dtype):
    z, pos, batch = cluster(dtype, n=20)
    model = SplineSchNet(schnet(dtype))
    before, results = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        twice = [energy_and_forces(model, z, pos, batch) for _ in range(2)]
        assert all(torch.equal(a, b) for a, b in zip(*twice, strict=True))
        weights = [model(z, pos, batch).sum() for _ in range(2)]
        mlp = model.interactions[0].mlp[0].weight
        grads = [torch.autograd.grad(energy, mlp)[0] for energy in weights]
        assert torch.equal(*grads)
        results.append((*twice[0], grads[0]))
    torch.set_num_threads(before)
    for one, two in zip(*results, strict=True):
        assert_equal(one, two, atol=10 * torch.finfo(dtype).eps * float(one.abs().max()))


def test_another_graph_is_taken_as_it_is():
    class Directed(RadiusInteractionGraph):
        def forward(self, pos: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
            edge_index, d_ij = super().forward(pos, batch)
            keep = edge_index[0] < edge_index[1]
            return edge_index[:, keep], d_ij[keep]

    plain = schnet()
    plain.interaction_graph = Directed(2.5)
    energy, forces = by_autograd(plain, *cluster())
    e, f = energy_and_forces(SplineSchNet(plain), *cluster())
    assert_equal(e, energy, atol=1e-8)
    assert_equal(f, forces, atol=1e-8)


class Own(SchNet):
    """A subclass, which could compute anything, and keeps its own way."""

    @classmethod
    def like(cls, plain: SchNet) -> Own:
        """Return one with the same weights."""
        own = cls(16, 12, 2, 10, plain.cutoff, 4.0, embedding=ElementEmbedding(16)).double()
        own.load_state_dict(plain.state_dict())
        return own


def test_plain_network_where_there_is_no_compiler(monkeypatch, capsys):
    def no_library() -> None:
        raise NoLibraryError("there is no C++ compiler")

    z, pos, batch = cluster()
    monkeypatch.setattr(table_model, "library", no_library)
    table_model.tables_apply.cache_clear()
    plain = schnet()
    energy, forces = energy_and_forces(SplineSchNet(plain), z, pos, batch)
    assert torch.equal(energy, plain(z, pos, batch))
    assert torch.equal(forces, by_autograd(plain, z, pos, batch)[1])
    data = Dataset(z.flatten(), pos, energy.flatten(), forces, batch.bincount())
    factors = factors_of(data, 1.0, 1.0, 0.0)
    assert isinstance(make_steps("spline", Potential(plain), data, factors), PlainSteps)
    table_model.tables_apply.cache_clear()
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["No splines of filters (there is no C++ compiler): the plain network is used."]


def test_copies_keep_the_tables_apart():
    model = SplineSchNet(schnet())
    before, _ = energy_and_forces(model, *cluster())
    other = copy.deepcopy(model)
    update_behind_the_back_of_torch(other)
    assert (energy_and_forces(other, *cluster())[0] - before).abs().min() > 1e-3
    assert torch.equal(energy_and_forces(model, *cluster())[0], before)


@pytest.mark.parametrize("way", [SplineSchNet.__call__, energy_and_forces])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"pos": torch.zeros(28, 2).double()}, ValueError, "pos: expected shape"),
        ({"pos": torch.zeros(28, 3)}, TypeError, "pos: expected dtype torch.float64"),
        ({"pos": torch.zeros(28, 3).double()}, ValueError, "pos: expected distinct positions"),
        ({"pos": torch.full((28, 3), torch.nan).double()}, ValueError, "pos: expected finite"),
        ({"z": torch.ones(5, 1)}, ValueError, "z: expected shape"),
        ({"z": torch.full((28, 1), 1.5)}, ValueError, "z: expected whole numbers"),
        ({"batch": torch.arange(28).flip(0)}, ValueError, "batch: expected"),
    ],
)
def test_bad_input_gets_the_errors_of_schnet(way, change, error, message):
    good = dict(zip(("z", "pos", "batch"), cluster(), strict=True))
    model = SplineSchNet(schnet())
    for _ in range(2):  # the second time after a good call, which leaves something behind
        with pytest.raises(error, match=message):
            way(model, *(good | change).values())
        way(model, *good.values())


def test_weights_without_tables_are_refused_again_and_leave_no_older_ones():
    plain = schnet()
    model = SplineSchNet(plain, tolerance=1e-8)
    energy_and_forces(model, *cluster())
    plain.radial_expansion.gamma.fill_(1e7)
    for _ in range(2):
        with pytest.raises(ValueError, match="tolerance: expected one that 32768 intervals"):
            energy_and_forces(model, *cluster())


def test_weights_of_two_dtypes_are_refused():
    model = schnet(torch.float32)
    model.interactions[0].lin.double()
    with pytest.raises(TypeError, match="model: expected weights of one dtype, got"):
        energy_and_forces(SplineSchNet(model), *cluster(torch.float32))


def test_bad_arguments():
    with pytest.raises(TypeError, match="model: expected a SchNet, got Linear"):
        SplineSchNet(nn.Linear(1, 1))
    with pytest.raises(ValueError, match="tolerance: expected a number >= 0, below 1, got -1"):
        SplineSchNet(schnet(), tolerance=-1)
    with pytest.raises(ValueError, match="tolerance: expected one that 32768 intervals can keep"):
        SplineSchNet(schnet(), tolerance=1e-16)(*cluster())


# The call of the model, and backward


def test_backward_in_float32():
    z, pos, batch = cluster(torch.float32)
    plain, found = schnet(torch.float32), []
    for model in (plain, SplineSchNet(plain)):
        moved = pos.clone().requires_grad_()
        plain.zero_grad()
        model(z, moved, batch).square().sum().backward()
        found.append([moved.grad, *(weight.grad.clone() for weight in plain.parameters())])
    for a, b in zip(*found, strict=True):
        assert_equal(b, a, atol=1e-3 * float(a.abs().max()))


def test_derivatives_by_positions_alone_leave_the_weights_and_the_kernels_in_peace(monkeypatch):
    def forbidden(*_: object) -> None:
        raise AssertionError("the weights' gradients were not asked for")

    z, pos, batch = cluster()
    model, moved = SplineSchNet(schnet()), pos.clone().requires_grad_()
    expected = energy_and_forces(model, z, pos, batch)[1]
    monkeypatch.setattr(model, "weight_gradients", forbidden)
    monkeypatch.setattr(model, "general_energy", forbidden)
    energy = model(z, moved, batch)
    for _ in range(2):
        (gradient,) = torch.autograd.grad(energy.sum(), moved, retain_graph=True)
        assert torch.equal(-gradient, expected)
    energy.sum().backward(inputs=[moved])
    assert torch.equal(-moved.grad, expected)
    with pytest.raises(AssertionError, match="were not asked for"):  # control
        model(z, moved, batch).sum().backward()
    with pytest.raises(AssertionError, match="were not asked for"):
        torch.autograd.grad(model(z, moved, batch).sum(), [moved], create_graph=True)


def test_derivatives_by_some_weights_alone():
    z, pos, batch = cluster()
    plain = schnet()
    names = "embedding.weight", "interactions.0.mlp.0.weight", "readout.2.bias"
    wanted = [plain.get_parameter(name) for name in names]
    for frozen in ((), ("readout.0.weight", "interactions.1.conv.lin1.weight")):
        for name in frozen:
            plain.get_parameter(name).requires_grad_(False)
        expected = torch.autograd.grad(plain(z, pos, batch).square().sum(), wanted)
        model = SplineSchNet(plain)
        found = torch.autograd.grad(model(z, pos, batch).square().sum(), wanted)
        for a, b in zip(found, expected, strict=True):
            assert_equal(a, b, atol=3e-8 * float(b.abs().max()))
        plain.zero_grad()
        model(z, pos, batch).sum().backward()
        assert all(plain.get_parameter(name).grad is None for name in frozen)


def test_calls_without_gradients():
    z, pos, batch = cluster()
    model = SplineSchNet(schnet())
    with torch.no_grad():
        energy = model(z, pos.clone().requires_grad_(), batch)
    assert not energy.requires_grad
    assert torch.equal(energy, energy_and_forces(model, z, pos, batch)[0])
    with torch.inference_mode():
        assert torch.equal(model(z, pos, batch), energy)
    model.requires_grad_(False)
    assert not model(z, pos, batch).requires_grad
    assert model(z, pos.clone().requires_grad_(), batch).requires_grad


def test_training_on_energies_by_calls_gives_the_same_weights():
    z, pos, batch = cluster()
    target, results = torch.randn(4, 1).double(), []
    for wrap in (lambda m: m, SplineSchNet):
        plain = schnet()
        model = wrap(plain)
        optimizer = torch.optim.Adam(plain.parameters(), lr=1e-3)
        for _ in range(5):
            optimizer.zero_grad()
            (model(z, pos, batch) - target).square().sum().backward()
            optimizer.step()
        results.append([weight.detach().clone() for weight in plain.parameters()])
    for a, b in zip(*results, strict=True):
        assert_equal(a, b, atol=1e-7)


def test_what_was_changed_between_call_and_backward_is_an_error():
    z, pos, batch = cluster()
    plain = schnet()
    model, moved = SplineSchNet(plain), pos.clone().requires_grad_()
    energy = model(z, 1.0 * moved, batch)
    update_behind_the_back_of_torch(plain)
    with pytest.raises(RuntimeError, match="model: expected the weights of the call, got others"):
        energy.sum().backward()
    elsewhere = 1.0 * moved
    energy = model(z, elsewhere, batch)
    elsewhere += 1
    with pytest.raises(RuntimeError, match="pos: expected the positions of the call, got others"):
        torch.autograd.grad(energy.sum(), moved, create_graph=True)


def test_weights_of_another_dtype_or_other_weights_get_their_own_gradients():
    z, pos, batch = cluster()
    plain = schnet()
    model = SplineSchNet(plain)
    model(z, pos, batch).sum().backward()
    model.float()
    plain.zero_grad()
    model(z, pos.float(), batch).sum().backward()
    assert all(w.grad.dtype == torch.float32 and w.grad.any() for w in model.parameters())
    model.double()
    model.readout[2].bias = nn.Parameter(torch.ones(1).double())
    model(z, pos, batch).sum().backward()
    assert model.readout[2].bias.grad.item() == len(pos)


def test_a_call_leaves_nothing_in_memory():
    z, pos, batch = cluster()
    model, moved = SplineSchNet(schnet()), pos.clone().requires_grad_()
    model(z, moved, batch).sum().backward()
    gc.collect()
    gc.disable()
    energy = model(z, moved, batch)
    node = weakref.ref(energy.grad_fn)
    assert node() is not None
    del energy
    assert node() is None
    gc.enable()


def test_an_embedding_that_could_be_random_takes_the_general_way():
    z, pos, batch = cluster()
    plain = schnet()
    plain.embedding = nn.Sequential(plain.embedding, nn.Dropout(0.5))
    model = SplineSchNet(plain)
    assert not torch.equal(model(z, pos, batch), model(z, pos, batch))
    plain.eval()
    assert_equal(model(z, pos, batch), plain(z, pos, batch), atol=1e-8)
