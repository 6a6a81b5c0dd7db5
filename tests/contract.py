"""The contract that every energy model of this project keeps.

A test file subclasses `EnergyModelContract` and says how to make the model:

    class TestSchNet(EnergyModelContract):
        def make_model(self) -> nn.Module: ...
        def reach_further(self, model, factor) -> None: ...

Everything runs in float64 on a batch of two different molecules, neither planar nor centred, with
`rtol = 0`; energies are of order 1. Each "is equal" has a control that the quantity can differ.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

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
        stretched = model(z, 1.1 * pos, batch)  # control: a change of shape changes the energy
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
        assert_equal(forces(model, z, pos, batch), expected.detach(), atol=1e-8)

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
