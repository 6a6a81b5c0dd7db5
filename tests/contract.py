"""The contracts that every energy model and every potential of this project keep.

A test file subclasses `EnergyModelContract` and says how to make the model:

    class TestSchNet(EnergyModelContract):
        def make_model(self) -> nn.Module: ...
        def reach_further(self, model, factor) -> None: ...

or `PotentialContract`, which knows how a `Potential` reaches further, and asks more of it.

Everything runs in float64, on a batch of two different molecules, neither planar nor centred, and
on samples in cells that differ in shape and periodicity, with `rtol = 0`; energies are of order 1.
Each "is equal" has a control that the quantity can differ.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from molnets.edges import Edges, Graph
from molnets.potential import energy_and_forces

ATOL = 1e-11
WATER = ([8, 1, 1], [[0.1, 0.2, 1.0], [0.9, 0.4, 0.5], [-0.6, 0.9, 0.8]])
FORMALDEHYDE = (
    [6, 8, 1, 1],
    [[2.0, -1.0, 0.3], [2.9, -0.4, 0.9], [1.3, -1.7, 0.9], [1.6, -0.3, -0.5]],
)


def molecules() -> tuple[Tensor, Tensor, Tensor]:
    """Return z (7, 1), pos (7, 3) and batch (7,) of a batch of two molecules."""
    z = torch.tensor(WATER[0] + FORMALDEHYDE[0]).view(-1, 1)
    pos = torch.tensor(WATER[1] + FORMALDEHYDE[1], dtype=torch.float64)
    return z, pos, torch.tensor([0] * 3 + [1] * 4)


def forces(model: nn.Module, z: Tensor, pos: Tensor, batch: Tensor) -> Tensor:
    """Return −∂E/∂r of the summed energy, (N, 3)."""
    pos = pos.detach().clone().requires_grad_()
    return -torch.autograd.grad(model(z, pos, batch).sum(), pos)[0]


def pair(species: tuple[int, int], distance: float) -> tuple[Tensor, ...]:
    """Return z, pos, batch of two atoms a distance apart, in a generic direction."""
    direction = torch.tensor([1.0, 2.0, -2.0], dtype=torch.float64) / 3
    pos = torch.stack([torch.full((3,), 0.4, dtype=torch.float64), 0.4 + distance * direction])
    return torch.tensor(species).view(2, 1), pos, torch.zeros(2, dtype=torch.int64)


def random_orthogonal(determinant: int) -> Tensor:
    """Return a generic orthogonal matrix with the given determinant, +1 or −1."""
    q, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
    return q if torch.det(q) * determinant > 0 else -q


def assert_equal(actual: Tensor, expected: Tensor, atol: float = ATOL) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


class EnergyModelContract:
    """What holds for the energy of any isolated molecules: subclass and give `make_model`."""

    def make_model(self) -> nn.Module:
        """Return a new model with an embedding that tells elements apart and a `cutoff`."""
        raise NotImplementedError

    def reach_further(self, model: nn.Module, factor: float) -> None:
        """Let the model's edge list reach to `factor` times its cutoff."""
        raise NotImplementedError

    @pytest.fixture
    def model(self) -> nn.Module:
        """Return the model in float64 with every parameter shaken, biases that start at 0 too."""
        torch.manual_seed(0)
        model = self.make_model().double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
        return model

    def test_shapes(self, model):
        z, pos, batch = molecules()
        assert model(z, pos, batch).shape == (2, 1)
        assert forces(model, z, pos, batch).shape == (7, 3)

    @pytest.mark.parametrize("determinant", [1, -1])
    def test_rotation_reflection_and_translation(self, model, determinant):
        z, pos, batch = molecules()
        rotation = random_orthogonal(determinant)
        moved = pos @ rotation.T + torch.tensor([3.0, -2.0, 5.0], dtype=torch.float64)
        assert_equal(model(z, moved, batch), model(z, pos, batch))
        assert_equal(forces(model, z, moved, batch), forces(model, z, pos, batch) @ rotation.T)
        stretched = model(z, 1.3 * pos, batch)  # control: a change of shape changes the energy
        assert (stretched - model(z, pos, batch)).abs().min() > 1e-4
        assert forces(model, z, pos, batch).abs().max() > 1e-2

    def test_permutation_within_samples(self, model):
        z, pos, batch = molecules()
        order = torch.tensor([2, 0, 1, 5, 3, 6, 4])
        assert_equal(model(z[order], pos[order], batch), model(z, pos, batch))
        assert_equal(
            forces(model, z[order], pos[order], batch), forces(model, z, pos, batch)[order]
        )
        swapped = model(z[order], pos, batch)  # control: it matters which atom is which
        assert (swapped - model(z, pos, batch)).abs().min() > 1e-4

    def test_batch_equals_one_by_one(self, model):
        z, pos, batch = molecules()
        together = model(z, pos, batch)
        for sample in range(2):
            own = batch == sample
            alone = model(z[own], pos[own], torch.zeros_like(batch[own]))
            assert_equal(alone, together[sample : sample + 1])
        assert (together[0] - together[1]).abs() > 1e-3

    def test_samples_in_one_place_do_not_see_each_other(self, model):
        z, pos, _ = molecules()
        z, pos = z[:3].repeat(2, 1), pos[:3].repeat(2, 1)
        batch = torch.tensor([0, 0, 0, 1, 1, 1])
        energy = model(z, pos, batch)
        assert_equal(energy, model(z[:3], pos[:3], batch[:3]).expand(2, 1))

    def test_energies_of_far_apart_molecules_add(self, model):
        z, pos, batch = molecules()
        apart = pos + (batch * 100.0).view(-1, 1)
        together = model(z, apart, torch.zeros_like(batch))
        assert_equal(together, model(z, pos, batch).sum().view(1, 1))
        close = model(z, pos, torch.zeros_like(batch))  # control: close molecules do interact
        assert (close - together).abs() > 1e-4

    def test_energy_and_forces_fade_out_at_the_cutoff(self, model):
        self.reach_further(model, 1.5)

        def at(fraction: float) -> tuple[Tensor, Tensor]:
            atoms = pair((6, 8), fraction * model.cutoff)
            return model(*atoms), forces(model, *atoms)

        (close, force), (inside, small), (edge, none) = at(0.5), at(1 - 1e-6), at(1.0)
        assert force.abs().max() > 1e-4
        assert (close - edge).abs() > 1e-4
        assert small.abs().max() < 1e-4 * force.abs().max()  # no jump: zero is reached in full
        assert (inside - edge).abs() < 1e-6 * (close - edge).abs()
        assert_equal(none, torch.zeros(2, 3, dtype=torch.float64))
        assert_equal(at(1.1)[0], edge)
        assert_equal(at(1.1)[1], torch.zeros(2, 3, dtype=torch.float64))

    def test_forces_are_the_finite_differences_of_the_energy(self, model):
        z, pos, batch = molecules()
        step = 1e-5
        expected = torch.zeros_like(pos)
        for atom in range(len(pos)):
            for axis in range(3):
                shift = torch.zeros_like(pos)
                shift[atom, axis] = step
                up, down = model(z, pos + shift, batch).sum(), model(z, pos - shift, batch).sum()
                expected[atom, axis] = -(up - down) / (2 * step)
        force = forces(model, z, pos, batch)
        atol = 1e-8 * max(1.0, float(force.abs().max()))  # rounding and the step's own error
        assert_equal(force, expected.detach(), atol=atol)

    def test_no_net_force_and_no_net_torque(self, model):
        z, pos, batch = molecules()
        force = forces(model, z, pos, batch)
        for sample in range(2):
            own = batch == sample
            assert_equal(force[own].sum(dim=0), torch.zeros(3, dtype=torch.float64))
            torque = torch.linalg.cross(pos[own], force[own]).sum(dim=0)
            assert_equal(torque, torch.zeros(3, dtype=torch.float64))
            assert torch.linalg.cross(pos[own], force[own]).abs().max() > 1e-3

    def test_single_atoms_keep_their_shape(self, model):
        z, pos, batch = molecules()
        assert model(z[:1], pos[:1], batch[:1]).shape == (1, 1)
        assert model(z[:3], pos[:3], torch.arange(3)).shape == (3, 1)
        assert_equal(forces(model, z[:1], pos[:1], batch[:1]), torch.zeros(1, 3).double())

    def test_species_of_neighbours_matter(self, model):
        def energy(a: int, b: int) -> Tensor:
            return model(*pair((a, b), 1.2))

        mixed, other = energy(6, 8) + energy(1, 1), energy(6, 1) + energy(1, 8)
        assert (mixed - other).abs() > 1e-5  # equal if an atom received its own features

    def test_every_parameter_gets_a_gradient(self, model):
        z, pos, batch = molecules()
        force = forces(model, z, pos, batch)
        assert force.abs().max() > 0
        pos.requires_grad_()
        energy = model(z, pos, batch)
        force = torch.autograd.grad(energy.sum(), pos, create_graph=True)[0]
        (energy.square().sum() + force.square().sum()).backward()
        silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
        assert silent == []


def crystals() -> tuple[Tensor, ...]:
    """Return z (10, 1), pos (10, 3), batch (10,), cells (4, 3, 3) and pbc (4, 3).

    Water in a triclinic cell, some of its atoms outside; one atom among its images, the cell
    left-handed; formaldehyde on a slab, the vector across without a meaning; and CO, not periodic.
    """
    z, pos, batch = molecules()
    cells = torch.tensor(
        [
            [[3.1, 0.2, 0.0], [0.6, 2.8, 0.3], [-0.4, 0.5, 3.3]],
            [[0.0, 1.9, 0.1], [2.1, 0.0, 0.2], [0.3, 0.0, 1.8]],
            [[3.4, 0.3, 0.2], [7.0, 1.0, 2.0], [0.1, -0.2, 3.7]],
            [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]],
        ],
        dtype=torch.float64,
    )
    pos[1] += 2 * cells[0, 0] - cells[0, 2]
    alone = torch.tensor([[0.3, -5.0, 4.0]], dtype=torch.float64)
    pos = torch.cat([pos[:3], alone, pos[3:], pos[3:5]])
    z = torch.cat([z[:3], torch.tensor([[6]]), z[3:], z[3:5]])
    batch = torch.tensor([0, 0, 0, 1, 2, 2, 2, 2, 3, 3])
    pbc = torch.tensor([[True] * 3, [True] * 3, [True, False, True], [False] * 3])
    return z, pos, batch, cells, pbc


def strained(x: Tensor, strain: Tensor) -> Tensor:
    """Return x (1 + ε), for rows of x (n, 3) or (n, k, 3), each with its own strain (n, 3, 3)."""
    stretch = torch.eye(3, dtype=x.dtype) + strain
    return x @ stretch if x.ndim == 3 else (x.unsqueeze(1) @ stretch).squeeze(1)


def by_strain(model: nn.Module, z, pos, batch, cells, pbc) -> tuple[Tensor, Tensor, Tensor]:
    """Return energies, −∂E/∂r and ∂E/∂ε by a backward pass through positions and cells."""
    strain = torch.zeros(len(cells), 3, 3, dtype=pos.dtype, requires_grad=True)
    pos = pos.detach().requires_grad_()
    moved = strained(pos, strain[batch]), batch, strained(cells, strain), pbc
    energy = model(z, *moved)
    gradient, virial = torch.autograd.grad(energy.sum(), (pos, strain))
    return energy.detach(), -gradient, virial


class Shuffled:
    """A graph whose edges come in another order every time."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def edges(self, *args: object) -> Edges:
        index, vector = self.graph.edges(*args)
        order = torch.randperm(len(vector))
        return Edges(index[:, order], vector[order])


class PotentialContract(EnergyModelContract):
    """What holds for a `Potential` besides, in cells of any kind."""

    def reach_further(self, model, factor):
        model.graph = Graph(factor * model.cutoff)

    def test_energies_forces_and_virials_are_those_of_autograd(self, model):
        atoms = crystals()
        expected = by_strain(model, *atoms)
        results = model.energy_forces_virial(*atoms)
        for actual, wanted in zip(results, expected, strict=True):
            assert_equal(actual, wanted)
            assert not actual.requires_grad
        for actual, wanted in zip(energy_and_forces(model, *atoms), expected[:2], strict=True):
            assert_equal(actual, wanted)
            assert not actual.requires_grad
        with torch.no_grad():
            assert_equal(model(*atoms), expected[0])
            assert_equal(model.energy_forces_virial(*atoms)[2], expected[2])
        _, force, virial = results  # control: nothing is zero or as it is for another sample
        assert (force[[0, 1, 2, 4, 5, 6, 7, 8, 9]].abs().amax(dim=1) > 1e-3).all()
        assert (virial.abs().amax(dim=(1, 2)) > 1e-3).all()
        assert (virial[:3, 0, 1].abs() > 1e-5).all()
        different = (virial[:, None] - virial[None]).abs().amax(dim=(2, 3))  # (4, 4)
        assert different[~torch.eye(4, dtype=torch.bool)].min() > 1e-3

    def test_virials_are_finite_differences(self, model):
        z, pos, batch, cells, pbc = crystals()
        virial = model.energy_forces_virial(z, pos, batch, cells, pbc)[2]
        step = 1e-5
        for a in range(3):
            for b in range(3):
                strain = torch.zeros(4, 3, 3, dtype=torch.float64)
                strain[:, a, b] = step
                up, down = (
                    model(z, strained(pos, e[batch]), batch, strained(cells, e), pbc).detach()
                    for e in (strain, -strain)
                )
                assert_equal(virial[:, a, b], ((up - down) / (2 * step)).squeeze(1), atol=1e-7)

    def test_each_crystal_alone_is_what_it_is_in_the_batch(self, model):
        z, pos, batch, cells, pbc = crystals()
        energy, force, virial = model.energy_forces_virial(z, pos, batch, cells, pbc)
        energy_i = model.atomic_energies(z, pos, batch, cells, pbc)
        for sample in range(4):
            own = batch == sample
            alone = z[own], pos[own], torch.zeros_like(batch[own]), cells[sample, None], pbc[sample]
            results = model.energy_forces_virial(*alone)
            together = energy[sample, None], force[own], virial[sample, None]
            for actual, wanted in zip(results, together, strict=True):
                assert_equal(actual, wanted)
            assert_equal(model.atomic_energies(*alone), energy_i[own])
        bare = z[8:], pos[8:], torch.tensor([0, 0])  # the last sample is not periodic
        for actual, wanted in zip(model.energy_forces_virial(*bare), together, strict=True):
            assert_equal(actual, wanted)
        images = model.energy_forces_virial(*bare, cells[:1])  # control: images do count
        assert (images[0] - energy[3]).abs() > 1e-3

    def test_energies_of_atoms_sum_to_the_energy_and_follow_permutations(self, model):
        z, pos, batch, cells, pbc = crystals()
        energy_i = model.atomic_energies(z, pos, batch, cells, pbc)
        assert energy_i.shape == (10, 1)
        assert energy_i.dtype == torch.float64
        energy = model(z, pos, batch, cells, pbc)
        assert_equal(torch.zeros(4, 1).double().index_add(0, batch, energy_i), energy)
        order = torch.tensor([2, 0, 1, 3, 6, 4, 7, 5, 9, 8])
        permuted = model.atomic_energies(z[order], pos[order], batch, cells, pbc)
        assert_equal(permuted, energy_i[order])
        assert (permuted - energy_i).abs().max() > 1e-3

    def test_images_of_atoms_and_crystals_that_are_moved_are_the_same(self, model):
        z, pos, batch, cells, pbc = crystals()
        expected = model.energy_forces_virial(z, pos, batch, cells, pbc)
        images = torch.randint(-2, 3, (10, 1, 3)).double() * pbc[batch].unsqueeze(1)
        shift = torch.tensor([[3.0, -1.0, 2.0]]).double()
        moved = pos + (images @ cells[batch]).squeeze(1) + shift
        for actual, wanted in zip(
            model.energy_forces_virial(z, moved, batch, cells, pbc), expected, strict=True
        ):
            assert_equal(actual, wanted)
        apart = pos.clone()
        apart[4] += cells[2, 1]  # control: the vector across the slab is no period
        assert (model(z, apart, batch, cells, pbc) - expected[0])[2].abs() > 1e-3

    def test_a_doubled_cell_has_twice_the_energy_and_virial(self, model):
        z, pos, batch, cells, _ = crystals()
        z, pos, batch, cells = z[:3], pos[:3], batch[:3], cells[:1]
        energy, force, virial = model.energy_forces_virial(z, pos, batch, cells)
        for k in range(3):
            both = torch.cat([pos, pos + cells[0, k]])
            double = cells.clone()
            double[0, k] *= 2
            results = model.energy_forces_virial(z.repeat(2, 1), both, batch.repeat(2), double)
            expected = 2 * energy, force.repeat(2, 1), 2 * virial
            for actual, wanted in zip(results, expected, strict=True):
                assert_equal(actual, wanted)

    def test_edges_beyond_the_cutoff_change_nothing(self, model):
        atoms = crystals()
        expected = model.energy_forces_virial(*atoms)
        energy_i = model.atomic_energies(*atoms)
        before = len(model.graph.edges(*atoms[1:]).vector)
        self.reach_further(model, 1.5)
        assert len(model.graph.edges(*atoms[1:]).vector) > 2 * before
        for actual, wanted in zip(model.energy_forces_virial(*atoms), expected, strict=True):
            assert_equal(actual, wanted)
        assert_equal(model.atomic_energies(*atoms), energy_i)

    def test_edges_in_any_order(self, model):
        atoms = crystals()
        expected = model.energy_forces_virial(*atoms)
        model.graph = Shuffled(model.graph)
        for actual, wanted in zip(model.energy_forces_virial(*atoms), expected, strict=True):
            assert_equal(actual, wanted)

    def test_a_skin_changes_nothing(self, model):
        z, pos, batch, cells, pbc = crystals()
        fresh, model.graph = model.graph, Graph(model.cutoff, skin=0.5)
        for _ in range(3):
            pos = pos + 0.02 * torch.randn_like(pos)
            kept = model.energy_forces_virial(z, pos, batch, cells, pbc)
            kept_graph, model.graph = model.graph, fresh
            for actual, wanted in zip(
                kept, model.energy_forces_virial(z, pos, batch, cells, pbc), strict=True
            ):
                assert_equal(actual, wanted)
            model.graph = kept_graph
        assert kept_graph.num_builds == 1

    def test_a_loss_of_forces_has_the_gradients_of_the_slow_way(self, model):
        z, pos, batch, cells, pbc = crystals()

        def gradients(energy: Tensor, force: Tensor) -> list[Tensor]:
            loss = energy.square().sum() + force.square().sum()
            return torch.autograd.grad(loss, list(model.parameters()))

        fast = gradients(*energy_and_forces(model, z, pos, batch, cells, pbc, create_graph=True))
        pos.requires_grad_()
        energy = model(z, pos, batch, cells, pbc)
        force = -torch.autograd.grad(energy.sum(), pos, create_graph=True)[0]
        for actual, wanted in zip(fast, gradients(energy, force), strict=True):
            assert_equal(actual, wanted, atol=ATOL * (1 + float(wanted.abs().max())))
            assert wanted.abs().max() > 1e-4
