"""The tabulated SchNet against the plain one, and its kernels against finite differences."""

from __future__ import annotations

import copy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numba
import numpy as np
import pytest
import torch
from contract import EnergyModelContract, assert_equal, molecules
from torch import Tensor, nn

from fake_data import fake_trajectory
from md import fused, fused_graph, fused_memory, spline, spline_training
from md.calculator import ModelCalculator
from md.data import Dataset
from md.kernels import Edges, _Convolve, _EdgeProducts, _TableGradient
from md.neighbors import PeriodicGraph
from md.potential import Standardized, by_autograd, energy_and_forces
from md.spline import SplineSchNet, tabulated
from md.spline_training import SplineForces
from md.tables import hermite_basis
from md.training import FrameForces, Settings, loss_of, make_engine
from schnet_helpers import ElementEmbedding, RadiusInteractionGraph, SchNet


def schnet(
    dtype: torch.dtype = torch.float64, cutoff: float = 2.5, gamma: float = 4.0, blocks: int = 2
) -> SchNet:
    torch.manual_seed(0)
    model = SchNet(16, 12, blocks, 10, cutoff, gamma, embedding=ElementEmbedding(16))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.to(dtype)


def cluster(dtype: torch.dtype = torch.float64, n: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    """Return z, pos, batch of four different frames of a cluster of two elements."""
    pos = fake_trajectory(4, n_atoms=n).positions.reshape(-1, 3).to(dtype)
    z = torch.tensor([1, 6]).repeat(2 * n).view(-1, 1)
    return z, pos, torch.arange(4).repeat_interleave(n)


class TestSplineSchNetContract(EnergyModelContract):
    """What holds for every energy model holds for tables."""

    def make_model(self) -> nn.Module:
        return SplineSchNet(SchNet(16, 16, 2, 10, 2.5, 4.0, embedding=ElementEmbedding(16)))

    def reach_further(self, model: nn.Module, factor: float) -> None:
        model.interaction_graph = RadiusInteractionGraph(factor * model.cutoff)


# The same as the plain network


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


@pytest.mark.parametrize(("dtype", "relative"), [(np.float32, 5e-6), (np.float64, 1e-15)])
def test_softplus_and_sigmoid(dtype, relative):
    @numba.njit
    def both(s, softplus, sigmoid):
        for i in range(len(s)):
            softplus[i], sigmoid[i] = fused.softplus_and_sigmoid(s[i])

    s = np.linspace(-80, 80, 4001).astype(dtype)
    softplus, sigmoid = np.empty_like(s), np.empty_like(s)
    both(s, softplus, sigmoid)
    exact = s.astype(np.float64)
    np.testing.assert_allclose(softplus, np.logaddexp(0, exact), rtol=relative, atol=1e-7)
    np.testing.assert_allclose(sigmoid, 1 / (1 + np.exp(-exact)), rtol=relative, atol=1e-7)


def assert_same_gradients(
    model: Standardized, data: Dataset, settings: Settings, tolerance: float
) -> None:
    dtype, frames = next(model.parameters()).dtype, torch.arange(len(data))
    target, edges = data.take(frames, dtype), data.edges(model.cutoff).take(frames, dtype)

    def gradients(engine: nn.Module) -> list[Tensor]:
        model.zero_grad()
        loss = loss_of(*engine(*target[:3], *edges, len(data)), target, settings)
        loss.backward()
        return [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]

    plain, tabulated = gradients(FrameForces(model)), gradients(SplineForces(model, 4096))
    assert len(plain) == len(tabulated) == len(list(model.parameters()))
    for a, b in zip(plain, tabulated, strict=True):
        assert float((a - b).norm()) <= tolerance * float(a.norm()) + 1e-12
        assert b.any() or not a.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("rho_energy", "rho_forces"), [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0)])
def test_gradients_of_the_loss_are_those_of_the_plain_network(dtype, rho_energy, rho_forces):
    z, pos, _ = cluster(dtype)
    n_atoms = torch.full((4,), 7)
    data = Dataset(z.flatten(), pos, torch.randn(4), torch.randn(28, 3), n_atoms)
    settings = Settings(rho_energy=rho_energy, rho_forces=rho_forces)
    tolerance = 1e-8 if dtype == torch.float64 else 1e-3
    assert_same_gradients(Standardized(schnet(dtype), scale=1.7), data, settings, tolerance)


@pytest.mark.parametrize("blocks", [1, 3])
def test_gradients_with_other_numbers_of_blocks(blocks):
    z, pos, _ = cluster()
    data = Dataset(z.flatten(), pos, torch.randn(4), torch.randn(28, 3), torch.full((4,), 7))
    assert_same_gradients(Standardized(schnet(blocks=blocks)), data, Settings(rho_energy=1.0), 1e-8)


@pytest.mark.parametrize("few", [20_000, 10])
def test_gradients_of_atoms_that_see_their_own_images(few, monkeypatch):
    torch.manual_seed(0)
    pos, cells = 2.0 * torch.rand(9, 3), 2.0 * torch.eye(3).repeat(3, 1, 1)
    data = Dataset(torch.tensor([1, 6, 8] * 3), pos, torch.randn(3), torch.randn(9, 3),
                   torch.full((3,), 3), cells)  # fmt: skip
    edges, _ = data.edges(2.5).take(torch.arange(3))
    assert (edges[0] == edges[1]).any()
    monkeypatch.setattr(spline_training, "FEW_EDGES", few)  # in several parts, or in one
    assert_same_gradients(Standardized(schnet()), data, Settings(rho_energy=1.0), 1e-8)


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
    plain = Standardized(schnet(), scale=1.7)
    model = tabulated(plain)
    assert isinstance(model.model, SplineSchNet) and not isinstance(plain.model, SplineSchNet)
    assert all(a is b for a, b in zip(plain.parameters(), model.parameters(), strict=True))
    for a, b in zip(energy_and_forces(model, *cluster()),
                    by_autograd(plain, *cluster()), strict=True):  # fmt: skip
        assert_equal(a, b, atol=1e-8)


def test_frames_of_known_edges_are_those_of_the_plain_network():
    z, pos, batch = cluster()
    plain, (edge_index, _) = Standardized(schnet()), RadiusInteractionGraph(2.5)(pos, batch)
    given = z, pos, batch, edge_index, torch.zeros(edge_index.shape[1], 3).double(), 4
    for a, b in zip(FrameForces(tabulated(plain))(*given), FrameForces(plain)(*given), strict=True):
        assert torch.equal(a, b)


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


def test_room_is_kept_between_calls_of_any_size_and_not_shared_by_threads(monkeypatch):
    monkeypatch.setattr(fused_memory, "ENOUGH_ROOM", 0)
    model = SplineSchNet(schnet())
    given = [cluster(n=n) for n in (7, 3, 12, 30)]
    expected = [energy_and_forces(SplineSchNet(schnet()), *call) for call in given]
    for call, (energy, forces) in zip(given * 2, expected * 2, strict=True):
        e, f = energy_and_forces(model, *call)
        assert torch.equal(e, energy) and torch.equal(f, forces)
    assert len(model._room[0]) > 0
    room = model._room[0].ctypes.data
    energy_and_forces(model, *given[0])
    assert model._room[0].ctypes.data == room
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda call: energy_and_forces(model, *call), given * 50))
    for (e, f), (energy, forces) in zip(results, expected * 50, strict=True):
        assert torch.equal(e, energy) and torch.equal(f, forces)


def test_tables_are_made_once_for_the_same_weights(monkeypatch):
    model, made = SplineSchNet(schnet()), []
    tabulate = model._tabulate
    monkeypatch.setattr(model, "_tabulate", lambda: made.append(0) or tabulate())
    for _ in range(3):
        energy_and_forces(model, *cluster())
    assert len(made) == 1


@pytest.mark.parametrize("gamma", [1.0, 4.0, 100.0])
def test_tolerance_bounds_filters_and_slopes(gamma):
    model = SplineSchNet(schnet(gamma=gamma), tolerance=1e-5)
    with torch.no_grad():
        tables = model.tables()
    h = model.cutoff / model.num_intervals
    for block, table in zip(model.interactions, tables, strict=True):
        d = torch.linspace(0, model.cutoff - 1e-9, 20_001, dtype=torch.float64)

        def exact(d: Tensor, mlp: nn.Module = block.mlp) -> Tensor:
            fade = 0.5 * (torch.cos(torch.pi * d / model.cutoff) + 1)
            return mlp(model.radial_expansion.expand(d)) * fade.unsqueeze(1)

        W, slope = torch.func.jvp(exact, (d,), (torch.ones_like(d),))
        knot = (d / h).long()
        basis = hermite_basis(d / h - knot, h)
        S, V, D = table.chunk(3, dim=1)
        rows = torch.stack([S[knot], V[knot], D[knot], S[knot + 1]], dim=1)  # (E, 4, F)
        for w, expected in zip(basis, (W, slope), strict=True):
            error = (w.unsqueeze(2) * rows).sum(1) - expected
            assert error.abs().max() < 1.05e-5 * expected.abs().max()
            assert error.abs().max() > 1e-9 * expected.abs().max()  # control: it is a spline


def test_narrow_gaussians_in_float64_get_the_finest_tables():
    plain = schnet(cutoff=2.5, gamma=250.0)
    model = SplineSchNet(plain)
    z, pos, batch = cluster()
    exact = by_autograd(plain, z, pos, batch)[1]
    forces = energy_and_forces(model, z, pos, batch)[1]
    assert model.num_intervals == spline.MAX_INTERVALS
    assert_equal(forces, exact, atol=1e-8 * float(exact.square().mean().sqrt()))
    with pytest.raises(ValueError, match="tolerance: expected one that 32768 intervals can keep"):
        energy_and_forces(SplineSchNet(plain, tolerance=1e-10), z, pos, batch)


def test_filters_end_at_the_cutoff_with_value_and_slope_zero():
    for table in SplineSchNet(schnet()).tables():
        S, V, _ = table.chunk(3, dim=1)
        assert not V[-1].any() and not S[-1].any()
        assert V[-2].abs().max() > 0


# The kernels


def random_graph(num_atoms: int = 5, num_edges: int = 12, K: int = 3) -> Edges:
    """Return a graph that is not symmetric, with an atom without edges and a double edge."""
    rng = np.random.default_rng(0)
    receiver, sender = rng.integers(0, num_atoms - 1, (2, num_edges))
    receiver[1], sender[1] = receiver[0], sender[0]
    orders = [fused_graph.sort_edges(atom, num_atoms) for atom in (receiver, sender)]
    return Edges(receiver, sender, *orders, rng.integers(0, K, num_edges))


def inputs(*shapes: tuple[int, int]) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def test_convolution_is_the_double_loop():
    edges, (x, w, table) = random_graph(), inputs((5, 3), (12, 4), (4, 9))
    expected = torch.zeros(5, 3, dtype=torch.float64)
    for e, (i, j, k) in enumerate(zip(edges.receiver, edges.sender, edges.knot, strict=True)):
        rows = [table[k, 0:3], table[k, 3:6], table[k, 6:9], table[k + 1, 0:3]]
        expected[i] += x[j] * sum(w[e, c] * rows[c] for c in range(4))
    assert_equal(_Convolve.apply(x, w, table, edges), expected, atol=1e-12)


@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
@pytest.mark.parametrize(
    ("function", "shapes", "more"),
    [
        (_Convolve, [(5, 3), (12, 4), (4, 9)], []),
        (_EdgeProducts, [(5, 3), (5, 3), (4, 9)], []),
        (_TableGradient, [(5, 3), (5, 3), (12, 4)], [4]),
    ],
)
def test_derivatives_of_the_kernels(check, function, shapes, more):
    edges = random_graph()
    assert check(lambda *tensors: function.apply(*tensors, edges, *more), inputs(*shapes))


def test_second_derivatives_by_positions():
    z, pos, batch = molecules()
    model = SplineSchNet(schnet()).requires_grad_(False)

    def energy(pos: Tensor) -> Tensor:
        return model(z, pos, batch)

    assert torch.autograd.gradgradcheck(energy, pos.requires_grad_(), atol=1e-4)


def test_directed_edges_beyond_the_cutoff_and_none_at_all():
    plain = schnet()
    model, z = SplineSchNet(plain), torch.tensor([[1], [6], [8], [1]])
    edge_index, d = torch.tensor([[0, 1, 1, 3], [2, 2, 0, 1]]), torch.tensor([0.9, 2.4, 1.3, 2.0])
    d = d.double()
    assert_equal(model.atomic_energies(z, edge_index, d), plain.atomic_energies(z, edge_index, d))
    further = torch.cat([edge_index, torch.tensor([[2, 2], [3, 0]])], dim=1)
    beyond = torch.cat([d, torch.tensor([2.5, 9.0]).double()])
    assert_equal(model.atomic_energies(z, further, beyond), model.atomic_energies(z, edge_index, d))
    none = torch.zeros(2, 0, dtype=torch.int64), torch.zeros(0).double()
    assert_equal(model.atomic_energies(z, *none), plain.atomic_energies(z, *none))


def test_atoms_that_are_alone():
    model, batch = SplineSchNet(schnet()), torch.arange(3)
    z, pos = torch.tensor([[1], [6], [8]]), torch.zeros(3, 3).double()
    energy, forces = energy_and_forces(model, z, pos, batch)
    assert_equal(energy, schnet()(z, pos, batch).detach())
    assert energy.shape == (3, 1) and not forces.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_threads_change_nothing_but_round_off_and_two_runs_nothing(dtype):
    z, pos, batch = cluster(dtype)
    model = SplineSchNet(schnet(dtype))
    before, results = torch.get_num_threads(), []
    for threads in (1, min(2, numba.config.NUMBA_NUM_THREADS)):
        torch.set_num_threads(threads)
        twice = [energy_and_forces(model, z, pos, batch) for _ in range(2)]
        assert all(torch.equal(a, b) for a, b in zip(*twice, strict=True))
        weights = [model(z, pos, batch).sum() for _ in range(2)]
        mlp = model.interactions[0].mlp[0].weight
        grads = [torch.autograd.grad(energy, mlp)[0] for energy in weights]
        assert torch.equal(*grads)
        results.append((*twice[0], grads[0]))
        assert numba.get_num_threads() == threads
    torch.set_num_threads(before)
    for one, two in zip(*results, strict=True):
        assert_equal(one, two, atol=10 * torch.finfo(dtype).eps * float(one.abs().max()))


def edges_of(edges: fused_graph.Edges, order: np.ndarray) -> list[tuple[int, int]]:
    """Return the edges (i, j) that the kept ones stand for, sorted."""
    found = []
    for i in range(len(order)):
        for e in range(edges.first[2 * i], edges.first[2 * i + 2]):
            ends = int(order[i]), int(order[edges.sender[e]])
            found += [ends, ends[::-1]] if e < edges.first[2 * i + 1] else [ends]
    return sorted(found)


@pytest.mark.parametrize("sizes", [(200,), (40, 40, 40, 40), (3, 130, 1, 70, 2)])
def test_edges_that_are_kept_stand_for_all(sizes):
    rng, start = np.random.default_rng(0), np.append(0, np.cumsum(sizes))
    batch, pos = np.repeat(np.arange(len(sizes)), sizes), 6.0 * rng.random((sum(sizes), 3))
    near = np.linalg.norm(pos[:, None] - pos[None], axis=-1) < 2.5
    near &= (batch[:, None] == batch[None]) & ~np.eye(len(pos), dtype=bool)
    expected, empty = list(zip(*map(list, np.nonzero(near)), strict=True)), np.empty(0)
    room, length = (empty.astype(np.uint32), empty), (2.5, 2.5 / 64, 64)
    far = np.triu((batch[:, None] == batch[None]) & (rng.random(near.shape) < 0.2), 1)
    i, j = np.nonzero(near | far | far.T)
    for threads in (1, 2, 3, 5):
        order, edges, _ = fused_graph.find_graph(pos, batch, start, *length, threads, *room)
        assert edges_of(edges, order) == expected
        parts = fused_graph.cut(start, threads)
        assert len(parts) == threads + 1 and parts[0] == 0 and parts[-1] == len(pos)
        assert (np.diff(parts) > 0).all()
        given = fused_graph.sort_graph(i, j, np.zeros((len(i), 3)), parts)
        order = np.arange(len(pos))
        edges, _ = fused_graph.narrow_graph(pos, order, parts, given, *length, *room)
        assert edges_of(edges, order) == expected
        assert len(edges.d) < len(expected)
        kept = (edges.sender, edges.first, edges.d)
        assert len(kept[0]) == kept[1][-1] == len(kept[2])


def test_parts_are_cut_between_samples():
    start = 13 * np.arange(65)
    assert (fused_graph.cut(start, 3) % 13 == 0).all()
    assert list(fused_graph.cut(start, 2)) == [0, 32 * 13, 64 * 13]
    assert list(fused_graph.cut(np.array([0, 31]), 8)) == [0, 31]


@pytest.mark.parametrize("periodic", [False, True])
def test_parts_change_nothing_but_round_off(periodic, monkeypatch):
    torch.manual_seed(0)
    z, pos = torch.tensor([[1], [6], [8]]).repeat(40, 1), 5.0 * torch.rand(120, 3).double()
    batch, model = torch.zeros(120, dtype=torch.int64), SplineSchNet(schnet())
    if periodic:  # the cutoff reaches an atom's own image
        pos[:, 0] *= 0.4
        cell = torch.diag(torch.tensor([2.0, 5.0, 5.0])).double().unsqueeze(0)
        model.interaction_graph = PeriodicGraph(2.5, skin=0.3).set_cells(cell)
    results = []
    for parts in (1, 2, 3):
        monkeypatch.setattr(fused_graph, "use_threads_of_torch", lambda parts=parts: parts)
        results.append(model.energy_forces_virial(z, pos, batch))
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert_equal(one, two, atol=1e-12 * float(one.abs().max()))
    assert not torch.equal(results[0][1], results[1][1])  # control: sums of another order


@pytest.mark.parametrize("periodic", [False, True])
def test_gradients_with_edges_from_part_to_part(periodic, monkeypatch):
    torch.manual_seed(0)
    pos, sizes = 4.0 * torch.rand(150, 3), torch.tensor([60, 90])
    cells = torch.diag(torch.tensor([2.0, 4.0, 4.0])).repeat(2, 1, 1) if periodic else None
    data = Dataset(torch.tensor([1, 6, 8] * 50), pos * (0.5 if periodic else 1.0),
                   torch.randn(2), torch.randn(150, 3), sizes, cells)  # fmt: skip
    monkeypatch.setattr(fused_graph, "use_threads_of_torch", lambda: 4)
    assert_same_gradients(Standardized(schnet()), data, Settings(rho_energy=1.0), 1e-8)


def test_every_bit_of_the_weights_is_compared():
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 9, n, dtype=np.int32) for n in (7, 1, 20_000, 16_384, 3)]
    begins = np.append(0, np.cumsum([len(x) for x in arrays]))
    addresses, seen = np.array([x.ctypes.data for x in arrays]), np.concatenate(arrays)
    assert fused_memory.same_bits(addresses, begins, seen)
    for at in (*begins[:-1], *(begins[1:] - 1), 16_383, 16_384, 32_768):
        for bit in (0, 31):
            other = seen.copy()
            other[at] ^= np.int32(-(2**31) if bit else 1)
            assert not fused_memory.same_bits(addresses, begins, other)


def test_number_of_threads_stays_as_it_was():
    code = """
import torch
from md.potential import energy_and_forces
from md.spline import SplineSchNet
from schnet_helpers import SchNet
torch.set_num_threads(1)
pos = torch.rand(4, 3)
energy_and_forces(SplineSchNet(SchNet()), torch.ones(4, 1), pos, torch.zeros(4, dtype=torch.int64))
print(torch.get_num_threads())
"""
    root = Path(__file__).parent.parent
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert (run.stdout, run.returncode) == ("1\n", 0), run.stderr


# Where it is used


def test_periodic_graph_with_a_skin():
    torch.manual_seed(0)
    z, pos = torch.ones(8, 1), 3.0 * torch.rand(8, 3, dtype=torch.float64)
    batch, cell = torch.zeros(8, dtype=torch.int64), 3.0 * torch.eye(3).double().unsqueeze(0)
    plain = schnet()
    plain.interaction_graph = PeriodicGraph(2.5, skin=0.3).set_cells(cell)
    energy, forces = by_autograd(plain, z, pos, batch)
    model = SplineSchNet(plain)
    for way in (energy_and_forces, by_autograd):
        e, f = way(model, z, pos, batch)
        assert_equal(e, energy, atol=1e-8)
        assert_equal(f, forces, atol=1e-8)
    assert forces.abs().max() > 0.1


def test_list_with_a_skin_while_atoms_and_cell_move():
    torch.manual_seed(0)
    z, pos = torch.tensor([[1], [6]]).repeat(15, 1), 4.0 * torch.rand(30, 3).double()
    batch, moves = torch.zeros(30, dtype=torch.int64), 0.02 * torch.randn(30, 3).double()
    model, plain = SplineSchNet(schnet()), schnet()
    model.interaction_graph = kept = PeriodicGraph(2.5, skin=0.4)
    plain.interaction_graph = PeriodicGraph(2.5)
    for step in range(12):
        edge = 4.0 + 0.01 * (step // 2)  # every other step leaves the cell as it is
        for graph in (kept, plain.interaction_graph):
            graph.set_cells(edge * torch.eye(3).double().unsqueeze(0))
        results = [way(m, z, pos + step * moves, batch)
                   for way, m in ((energy_and_forces, model), (by_autograd, plain))]  # fmt: skip
        for a, b in zip(*results, strict=True):
            assert_equal(a, b, atol=1e-8 * float(b.abs().max()))
    assert 1 < kept.num_builds < plain.interaction_graph.num_builds == 12


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


def test_calculator_gives_the_same_forces_and_stress():
    from ase.build import bulk

    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.1, seed=0)
    plain = schnet(cutoff=4.0)
    results = []
    for model in (Around(plain), plain, Standardized(plain), SplineSchNet(plain)):
        atoms.calc = ModelCalculator(model)
        results.append((atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()))
    for result in results[1:]:
        for a, b in zip(results[0], result, strict=True):
            np.testing.assert_allclose(b, a, rtol=0, atol=1e-8)
    assert np.abs(results[0][2]).min() > 1e-5


class Around(nn.Module):
    """A model that `tabulated` does not see through to tables: a subclass keeps its own way."""

    def __init__(self, plain: SchNet) -> None:
        super().__init__()
        self.inner = Own(16, 12, 2, 10, plain.cutoff, 4.0, embedding=ElementEmbedding(16)).double()
        self.inner.load_state_dict(plain.state_dict())

    def forward(self, *given: Tensor) -> Tensor:
        return self.inner(*given)


class Own(SchNet):
    """A subclass, which could compute anything."""


def test_plain_network_where_tables_do_not_apply(monkeypatch, capsys):
    z, pos, batch = cluster()
    monkeypatch.setattr(spline, "kernels", None)
    spline.tables_apply.cache_clear()
    plain = schnet()
    energy, forces = energy_and_forces(SplineSchNet(plain), z, pos, batch)
    assert torch.equal(energy, plain(z, pos, batch))
    assert torch.equal(forces, by_autograd(plain, z, pos, batch)[1])
    assert isinstance(make_engine("spline", Standardized(plain)), FrameForces)
    spline.tables_apply.cache_clear()
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["No tables of filters (numba is not installed): the plain network is used."]


def test_copies_keep_the_tables_apart():
    model = SplineSchNet(schnet())
    before, _ = energy_and_forces(model, *cluster())
    other = copy.deepcopy(model)
    update_behind_the_back_of_torch(other)
    assert (energy_and_forces(other, *cluster())[0] - before).abs().min() > 1e-3
    assert torch.equal(energy_and_forces(model, *cluster())[0], before)


# Errors


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
    with pytest.raises(ValueError, match=r"engine: expected one of .*, got 'fast'"):
        make_engine("fast", Standardized(schnet()))
