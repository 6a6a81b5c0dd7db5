"""Networks and atoms that several test files share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fake_data import fake_trajectory
from molnets.networks.painn import PaiNN
from molnets.networks.tensornet import TensorNet
from schnet_helpers import ElementEmbedding, SchNet


def schnet(
    dtype: torch.dtype = torch.float64, cutoff: float = 2.5, gamma: float = 4.0, blocks: int = 2
) -> SchNet:
    torch.manual_seed(0)
    model = SchNet(16, 12, blocks, 10, cutoff, gamma, embedding=ElementEmbedding(16))
    return moved(model).to(dtype)


def painn(
    dtype: torch.dtype = torch.float64, cutoff: float = 2.5, gamma: float = 4.0, blocks: int = 2
) -> PaiNN:
    torch.manual_seed(0)
    return moved(PaiNN(12, blocks, 10, cutoff, gamma)).to(dtype)


def tensornet(
    dtype: torch.dtype = torch.float64, cutoff: float = 2.5, gamma: float = 4.0, blocks: int = 2
) -> TensorNet:
    torch.manual_seed(0)
    return moved(TensorNet(12, blocks, 10, cutoff, gamma)).to(dtype)


# Those that the engine knows: by name, what makes one.
ON_SPLINES = {"schnet": schnet, "painn": painn, "tensornet": tensornet}


def cluster(dtype: torch.dtype = torch.float64, n: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    """Return z, pos, batch of four different frames of a cluster of two elements."""
    pos = fake_trajectory(4, n_atoms=n).positions.reshape(-1, 3).to(dtype)
    z = torch.tensor([1, 6]).repeat(2 * n).view(-1, 1)
    return z, pos, torch.arange(4).repeat_interleave(n)


def filled(network: nn.Module) -> nn.Module:
    """Return the network in float64, parameter k with the numbers 0.25 sin(1 + k + 0.37 n)."""
    network.double()
    with torch.no_grad():
        for k, parameter in enumerate(network.parameters()):
            n = torch.arange(parameter.numel(), dtype=torch.float64)
            parameter.copy_(0.25 * torch.sin(1 + k + 0.37 * n).view_as(parameter))
    return network


def shaken(network: nn.Module, size: float = 0.3) -> nn.Module:
    """Return the network in float64, every parameter moved at random, by a seed."""
    torch.manual_seed(0)
    return moved(network.double(), size)


def moved(network: nn.Module, size: float = 0.1) -> nn.Module:
    """Return the network, every parameter moved at random."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += size * torch.randn_like(parameter)
    return network
