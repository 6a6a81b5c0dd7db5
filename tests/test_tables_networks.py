"""Every network that the engine knows, on splines, against the plain one."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from contract import PotentialContract, assert_equal
from networks import ON_SPLINES, cluster
from torch import Tensor, nn

from molnets.coupling.ase import ModelCalculator
from molnets.edges import Graph
from molnets.potential import Potential, energy_and_forces, energy_forces_virial
from molnets.tables import SplineForces, tabulated
from molnets.training import Dataset, PlainForces, factors_of, loss_of


@pytest.fixture(params=sorted(ON_SPLINES))
def make(request):
    """Return what makes the network."""
    return ON_SPLINES[request.param]


@pytest.mark.parametrize("network", sorted(ON_SPLINES))
class TestTabulatedContract(PotentialContract):
    """What holds for every potential holds on splines."""

    @pytest.fixture(autouse=True)
    def _name(self, network):
        self.name = network

    def make_model(self) -> nn.Module:
        network = ON_SPLINES[self.name](cutoff=3.0)
        model = tabulated(Potential(network, 0.7, torch.linspace(-3, 2, 119)))
        model.network.tolerance = 1e-11  # the contract's own tolerances are tighter than 1e-10
        return model


def assert_close(found, expected, tolerance: float) -> None:
    """Each of the quantities to a tolerance relative to its largest number, which is not 0."""
    for a, b in zip(found, expected, strict=True):
        assert_equal(a.double(), b.double(), atol=tolerance * float(b.abs().max()))
        assert b.abs().max() > 1e-3


def batch_of(sizes: list[int], spread: float, dtype: torch.dtype = torch.float64):
    """Return z, pos, batch: atoms on a jittered lattice, in random order."""
    rng = np.random.default_rng(0)
    pos = []
    for size in sizes:
        side = int(np.ceil(size ** (1 / 3)))
        sites = rng.permutation(side**3)[:size]
        lattice = np.stack(np.unravel_index(sites, (side,) * 3), axis=1) * spread
        pos.append(lattice + rng.uniform(-0.2, 0.2, (size, 3)))
    batch = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    z = torch.from_numpy(rng.choice([1, 6, 8], (len(batch), 1)))
    return z, torch.from_numpy(np.concatenate(pos)).to(dtype), batch


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("sizes", [[300], [3, 120, 1, 70], [9] * 40, [1], [2, 1]])
def test_energies_forces_and_virials(make, dtype, tolerance, threads, sizes, monkeypatch):
    z, pos, batch = batch_of(sizes, 1.1, dtype)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    exact = Potential(make()).energy_forces_virial(z, pos.double(), batch)
    model = tabulated(Potential(make(dtype)))
    found = model.energy_forces_virial(z, pos, batch)
    for a, b in zip(found, exact, strict=True):
        assert_equal(a.double(), b, atol=tolerance * max(1.0, float(b.abs().max())))
    assert exact[0].abs().min() > 1e-3
    again = model.energy_forces_virial(z, pos, batch)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


@pytest.mark.parametrize("features", [1, 7, 16, 33, 64, 70])
def test_widths_that_no_register_has(make, features):
    torch.manual_seed(0)
    sizes = {
        "schnet": (features, 2 * features + 1, 2, 10, 2.5, 4.0),
        "painn": (features, 2, 10, 2.5),
        "tensornet": (features, 2, 10, 2.5),
    }
    network = type(make())(*sizes[make.__name__]).double()
    z, pos, batch = batch_of([40, 7], 1.1)
    expected = Potential(network).energy_forces_virial(z, pos, batch)
    assert_close(tabulated(Potential(network)).energy_forces_virial(z, pos, batch), expected, 1e-8)


@pytest.mark.parametrize("skin", [0.0, 0.3])
@pytest.mark.parametrize("pbc", [None, True, [True, False, True], [[True] * 3, [False] * 3]])
def test_periodic_samples(make, skin, pbc):
    torch.manual_seed(0)
    z, pos = torch.tensor([[1], [6], [8]] * 5), 3.0 * torch.rand(15, 3).double()
    batch = torch.tensor([0] * 7 + [1] * 8)
    cells = 3.0 * torch.eye(3).double() + 0.5 * torch.rand(2, 3, 3).double()
    pbc = pbc if pbc is None else torch.tensor(pbc)
    plain = Potential(make(), graph=Graph(2.5, skin))
    model = tabulated(Potential(make(), graph=Graph(2.5, skin)))
    expected = plain.energy_forces_virial(z, pos, batch, cells, pbc)
    assert_close(model.energy_forces_virial(z, pos, batch, cells, pbc), expected, 1e-8)
    moved = pos.clone().requires_grad_()
    energy = model(z, moved, batch, cells, pbc)
    assert_equal(energy.detach(), expected[0], atol=1e-8)
    assert_equal(-torch.autograd.grad(energy.sum(), moved)[0], expected[1], atol=1e-8)


def gradients_of_call(model: nn.Module, second: bool) -> list[Tensor]:
    """Return the gradients of a loss of energies, or of energies and forces, by all there is."""
    z, pos, batch = cluster()
    base = pos.requires_grad_()
    moved = 1.05 * base  # not a leaf
    weights = torch.tensor([[1.0], [-2.0], [0.5], [3.0]], dtype=torch.float64)
    energy = model(z, moved, batch)
    loss = (weights * energy).sum()
    if second:
        (gradient,) = torch.autograd.grad(loss, moved, create_graph=True)
        loss = gradient.square().sum() + energy.square().sum()
    model.zero_grad()
    loss.backward()
    return [base.grad, *(weight.grad.clone() for weight in model.parameters())]


@pytest.mark.parametrize("second", [False, True])
def test_backward_of_a_call(make, second):
    plain = Potential(make(), 1.7)
    expected = gradients_of_call(plain, second)
    assert_close(gradients_of_call(tabulated(plain), second), expected, 1e-8)


def test_new_weights_are_noticed_and_old_results_do_not_stay(make):
    plain = Potential(make())
    model = tabulated(plain)
    before = model(*cluster()).detach()
    for name, weight in list(plain.named_parameters()):
        kept = weight.detach().clone()
        shift = 0.01 * torch.arange(weight.numel()).cos().view_as(weight)
        weight.data = weight.data + shift  # behind the back of autograd
        found = model(*cluster()).detach()
        assert_equal(found, plain(*cluster()).detach(), atol=1e-8)
        assert (found - before).abs().max() > 1e-9, name
        weight.data = kept
    assert torch.equal(model(*cluster()).detach(), before)


def test_list_with_a_skin_while_atoms_and_cell_move(make):
    torch.manual_seed(0)
    z, pos = torch.tensor([[1], [6]]).repeat(15, 1), 4.0 * torch.rand(30, 3).double()
    batch, moves = torch.zeros(30, dtype=torch.int64), 0.02 * torch.randn(30, 3).double()
    model = tabulated(Potential(make(), graph=Graph(2.5, skin=0.4)))
    plain = Potential(make())
    for step in range(12):
        edge = 4.0 + 0.01 * (step // 2)  # every other step leaves the cell as it is
        cells = edge * torch.eye(3).double().unsqueeze(0)
        results = [energy_and_forces(m, z, pos + step * moves, batch, cells)
                   for m in (model, plain)]  # fmt: skip
        for a, b in zip(*results, strict=True):
            assert_equal(a, b, atol=1e-8 * float(b.abs().max()))
    assert 1 < model.graph.num_builds < plain.graph.num_builds == 12


def test_gradients_by_cells_are_those_of_the_plain_network(make):
    torch.manual_seed(0)
    z, pos, batch = torch.ones(5, 1), 3.0 * torch.rand(5, 3).double(), torch.zeros(5).long()
    cells = 3.0 * torch.eye(3).double().unsqueeze(0).requires_grad_()
    by_cells = [torch.autograd.grad(model(z, pos, batch, cells).sum(), cells)[0]
                for model in (Potential(make()), tabulated(Potential(make())))]  # fmt: skip
    assert_equal(*by_cells, atol=1e-8)
    assert by_cells[0].abs().max() > 1e-3


# Training


def assert_same_gradients(
    model: Potential, data: Dataset, rho: tuple[float, float], tolerance: float
) -> None:
    """The gradients of a training step by all weights, as the plain network's."""
    dtype, frames = next(model.parameters()).dtype, torch.arange(len(data))
    target, edges = data.take(frames, dtype), data.edges(model.cutoff).take(frames, dtype)

    def gradients(engine: nn.Module) -> list[Tensor]:
        model.zero_grad()
        factors = factors_of(data, *rho, 0.0)
        loss_of(engine(target.z, target.batch, edges), target, factors).backward()
        return [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]

    plain, found = gradients(PlainForces(model)), gradients(SplineForces(model, 600))
    assert len(plain) == len(found) == len(list(model.parameters()))
    for a, b in zip(plain, found, strict=True):
        assert float((a - b).norm()) <= tolerance * float(a.norm()) + 1e-12
        assert b.any() or not a.any()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 1e-3)])
@pytest.mark.parametrize("rho", [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0)])
def test_gradients_of_the_loss(make, dtype, tolerance, rho):
    z, pos, _ = cluster(dtype)
    data = Dataset(z.flatten(), pos, torch.randn(4), torch.randn(28, 3), torch.full((4,), 7))
    assert_same_gradients(Potential(make(dtype), scale=1.7), data, rho, tolerance)


@pytest.mark.parametrize("blocks", [1, 3])
def test_gradients_with_other_numbers_of_blocks(make, blocks):
    z, pos, _ = cluster()
    data = Dataset(z.flatten(), pos, torch.randn(4), torch.randn(28, 3), torch.full((4,), 7))
    assert_same_gradients(Potential(make(blocks=blocks)), data, (1.0, 1.0), 1e-8)


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("periodic", [False, True])
def test_gradients_of_frames_larger_than_a_part(make, periodic, threads, monkeypatch):
    torch.manual_seed(0)
    pos, sizes = 4.0 * torch.rand(150, 3), torch.tensor([150])
    cells = torch.diag(torch.tensor([2.0, 4.0, 4.0])).repeat(1, 1, 1) if periodic else None
    data = Dataset(torch.tensor([1, 6, 8] * 50), pos * (0.5 if periodic else 1.0),
                   torch.randn(1), torch.randn(150, 3), sizes, cells)  # fmt: skip
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert_same_gradients(Potential(make()), data, (1.0, 1.0), 1e-8)


def test_gradients_of_atoms_that_see_their_own_images(make):
    torch.manual_seed(0)
    pos, cells = 2.0 * torch.rand(9, 3), 2.0 * torch.eye(3).repeat(3, 1, 1)
    data = Dataset(torch.tensor([1, 6, 8] * 3), pos, torch.randn(3), torch.randn(9, 3),
                   torch.full((3,), 3), cells)  # fmt: skip
    edges = data.edges(2.5).take(torch.arange(3))
    assert (edges.index[0] == edges.index[1]).any()
    assert_same_gradients(Potential(make()), data, (1.0, 1.0), 1e-8)


def test_gradients_of_stresses(make):
    z, pos, batch = cluster()
    potential, edges = Potential(make(), 1.7), Graph(2.5).edges(pos, batch)
    torch.manual_seed(0)
    target, results = torch.randn(4, 3, 3).double(), []
    weights = list(potential.parameters())
    plain = energy_forces_virial(potential.network, z, batch, edges, create_graph=True)[2]
    found = SplineForces(potential, 600)(z, batch, edges, virial=True)[2]
    for virial in (potential.scale * plain, found):
        loss = (target * virial).sum() + virial.square().sum()
        results.append(torch.autograd.grad(loss, weights, materialize_grads=True))
    assert_equal(found.detach(), 1.7 * plain.detach(), atol=1e-8)
    for a, b in zip(*results, strict=True):
        assert_equal(b, a, atol=1e-8 * float(a.abs().max()))
    assert max(float(a.abs().max()) for a in results[0]) > 0.1


def test_two_steps_before_their_backwards_do_not_disturb_each_other(make):
    z, pos, batch = cluster()
    potential = Potential(make())
    engine, weights, found = SplineForces(potential), list(potential.parameters()), []
    edges = [Graph(2.5).edges(scale * pos, batch) for scale in (1.0, 1.1)]
    for both in (False, True):
        if both:
            results = [engine(z, batch, e) for e in edges]
        else:
            results = (engine(z, batch, e) for e in edges)
        grads = [torch.autograd.grad(e.sum() + f.square().sum(), weights, materialize_grads=True)
                 for e, f in results]  # fmt: skip
        found.append([g for group in grads for g in group])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_directed_graph_is_no_set_for_training(make):
    z, pos, batch = cluster()
    edges = Graph(2.5).edges(pos, batch)
    half = edges.index[0] < edges.index[1]
    engine = SplineForces(Potential(make()))
    with pytest.raises(ValueError, match="edges: expected with each edge j -> i its reverse"):
        engine(z, batch, type(edges)(edges.index[:, half], edges.vector[half]))
    far = torch.where(edges.index == 3, 10**9, edges.index)  # an atom that is not there
    with pytest.raises(ValueError, match="edges: expected with each edge j -> i its reverse"):
        engine(z, batch, type(edges)(far, edges.vector))
    wrong = edges.vector.clone()
    wrong[0, 0] += 0.01  # not what its reverse has
    with pytest.raises(ValueError, match="edges: expected with each edge j -> i its reverse"):
        engine(z, batch, type(edges)(edges.index, wrong))


def test_calculator(make):
    from ase.build import bulk

    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.1, seed=0)
    network, results = make(cutoff=4.0), []
    for fast in (True, False):
        atoms.calc = ModelCalculator(network)
        if not fast:
            atoms.calc.model.network = copy.deepcopy(network)
        results.append((atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()))
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-8)
    assert np.abs(results[0][2]).min() > 1e-5


def test_energy_and_forces_of_a_potential_are_one_pass(make):
    plain = Potential(make(), 1.3)
    found = energy_and_forces(tabulated(plain), *cluster())
    assert_close(found, energy_and_forces(plain, *cluster()), 1e-8)
