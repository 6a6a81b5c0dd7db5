"""A training step on tables: its gradients are those of the plain network."""

from __future__ import annotations

import pytest
import torch
from networks import cluster, schnet
from torch import Tensor, nn

from molnets.potential import Potential
from molnets.tables import SplineForces, lists, training
from molnets.training import Dataset, PlainForces, loss_of


def assert_same_gradients(
    model: Potential, data: Dataset, rho_energy: float, rho_forces: float, tolerance: float
) -> None:
    dtype, frames = next(model.parameters()).dtype, torch.arange(len(data))
    target, edges = data.take(frames, dtype), data.edges(model.cutoff).take(frames, dtype)

    def gradients(engine: nn.Module) -> list[Tensor]:
        model.zero_grad()
        loss = loss_of(*engine(target.z, target.batch, edges), target, rho_energy, rho_forces)
        loss.backward()
        return [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]

    plain, tabulated = gradients(PlainForces(model)), gradients(SplineForces(model, 4096))
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
    tolerance = 1e-8 if dtype == torch.float64 else 1e-3
    assert_same_gradients(
        Potential(schnet(dtype), scale=1.7), data, rho_energy, rho_forces, tolerance
    )


@pytest.mark.parametrize("blocks", [1, 3])
def test_gradients_with_other_numbers_of_blocks(blocks):
    z, pos, _ = cluster()
    data = Dataset(z.flatten(), pos, torch.randn(4), torch.randn(28, 3), torch.full((4,), 7))
    assert_same_gradients(Potential(schnet(blocks=blocks)), data, 1.0, 1.0, 1e-8)


@pytest.mark.parametrize("few", [20_000, 10])
def test_gradients_of_atoms_that_see_their_own_images(few, monkeypatch):
    torch.manual_seed(0)
    pos, cells = 2.0 * torch.rand(9, 3), 2.0 * torch.eye(3).repeat(3, 1, 1)
    data = Dataset(torch.tensor([1, 6, 8] * 3), pos, torch.randn(3), torch.randn(9, 3),
                   torch.full((3,), 3), cells)  # fmt: skip
    edges = data.edges(2.5).take(torch.arange(3))
    assert (edges.index[0] == edges.index[1]).any()
    monkeypatch.setattr(training, "FEW_EDGES", few)  # in several parts, or in one
    assert_same_gradients(Potential(schnet()), data, 1.0, 1.0, 1e-8)


@pytest.mark.parametrize("periodic", [False, True])
def test_gradients_with_edges_from_part_to_part(periodic, monkeypatch):
    torch.manual_seed(0)
    pos, sizes = 4.0 * torch.rand(150, 3), torch.tensor([60, 90])
    cells = torch.diag(torch.tensor([2.0, 4.0, 4.0])).repeat(2, 1, 1) if periodic else None
    data = Dataset(torch.tensor([1, 6, 8] * 50), pos * (0.5 if periodic else 1.0),
                   torch.randn(2), torch.randn(150, 3), sizes, cells)  # fmt: skip
    monkeypatch.setattr(lists, "use_threads_of_torch", lambda num_atoms: 4)
    assert_same_gradients(Potential(schnet()), data, 1.0, 1.0, 1e-8)
