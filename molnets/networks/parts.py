"""What the networks share: Gaussians of distances, the cutoff, two dense layers, sizes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from molnets.options import option
from schnet_helpers import RadialExpansion, expect_positive, expect_sizes


def gaussians(num_gaussians: int, cutoff: float, gamma: float = 0.0) -> RadialExpansion:
    """Return Gaussians whose centres are spread evenly over [0, r_c].

    Args:
        num_gaussians: K.
        cutoff: r_c, in the unit of the positions.
        gamma: γ, 1 / length²; 0 stands for Gaussians as wide as they are apart.

    Raises:
        ValueError: for numbers that are not positive.
    """
    gamma = gamma_of(num_gaussians, cutoff, gamma)
    return RadialExpansion(gamma, torch.linspace(0, cutoff, num_gaussians))


def gamma_of(num_gaussians: int, cutoff: float, gamma: float) -> float:
    """Return γ, or for 0 that of Gaussians as wide as they are apart."""
    expect_sizes(num_gaussians=num_gaussians)
    expect_positive("cutoff", cutoff)  # it divides
    return gamma or 0.5 / (cutoff / max(1, num_gaussians - 1)) ** 2


def cosine_cutoff(d_ij: Tensor, cutoff: float) -> Tensor:
    """Return ½ (cos(π d / r_c) + 1) below r_c and 0 from there on: (E,) -> (E, 1)."""
    fade = 0.5 * (torch.cos(math.pi / cutoff * d_ij) + 1) * (d_ij < cutoff)
    return fade.unsqueeze(1)


def perceptron(width: int, hidden: int, out: int) -> nn.Sequential:
    """Return dense - SiLU - dense."""
    return nn.Sequential(nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, out))


@dataclass(frozen=True)
class AtomSizes:
    """The sizes of a network of atoms whose filters are made of Gaussians."""

    dim_embedding: int = option(64, "features of an atom")
    num_interactions: int = option(3, "interaction blocks, or layers")
    num_gaussians: int = option(25, "Gaussians of the radial expansion")
    cutoff: float = option(5.0, "cutoff, in the data's length unit")
    gamma: float = option(0.0, "of the Gaussians, 1 / length**2; 0: as wide as they are apart")
