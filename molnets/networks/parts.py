"""What the networks share: Gaussians of distances, how a neighbour fades out, two dense layers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

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
    expect_sizes(num_gaussians=num_gaussians)
    expect_positive("cutoff", cutoff)  # it divides
    spacing = cutoff / max(1, num_gaussians - 1)
    return RadialExpansion(gamma or 0.5 / spacing**2, torch.linspace(0, cutoff, num_gaussians))


def cosine_cutoff(d_ij: Tensor, cutoff: float) -> Tensor:
    """Return ½ (cos(π d / r_c) + 1) below r_c and 0 from there on: (E,) -> (E, 1)."""
    fade = 0.5 * (torch.cos(math.pi / cutoff * d_ij) + 1) * (d_ij < cutoff)
    return fade.unsqueeze(1)


def perceptron(width: int, hidden: int, out: int) -> nn.Sequential:
    """Return dense - SiLU - dense."""
    return nn.Sequential(nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, out))
