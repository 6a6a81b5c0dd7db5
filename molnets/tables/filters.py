"""The filters of a SchNet as tables, made of its weights.

W(d) C(d), the filter of a block times the cutoff function, at K + 1 knots from 0 to the cutoff: the
slopes S, the values V, and the divided differences D to the next knot; cubic Hermite in between.

Axes:   F filters, K intervals of a table.
Units:  those of the model.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from schnet_helpers import SchNet


def filter_tables(model: SchNet, num_intervals: int) -> list[Tensor]:
    """Return the tables of the filters of each block at K + 1 knots, each (K + 1, 3 F), float64.

    The slopes are forward-mode derivatives of the block's own network times the cutoff function.
    """
    expansion, cutoff = model.radial_expansion, model.cutoff
    gamma, mu = expansion.gamma.double(), expansion.mu.double()
    d = torch.linspace(0, cutoff, num_intervals + 1, dtype=torch.float64)
    inside = (d < cutoff).unsqueeze(1)  # the cosine's rounding must not be left at the cutoff

    def filters(mlp: nn.Module, d: Tensor) -> Tensor:
        e = torch.exp(-gamma * (d.unsqueeze(1) - mu) ** 2)
        weights = {name: weight.double() for name, weight in mlp.named_parameters()}
        fade = 0.5 * (torch.cos(math.pi / cutoff * d) + 1)
        return torch.func.functional_call(mlp, weights, (e,)) * fade.unsqueeze(1) * inside

    tables = []
    for block in model.interactions:
        W, dW = torch.func.jvp(partial(filters, block.mlp), (d,), (torch.ones_like(d),))
        differences = F.pad(W[1:] - W[:-1], (0, 0, 0, 1)) * num_intervals / cutoff
        tables.append(torch.cat([dW, W, differences], dim=1))
    return tables


def deviation(table: Tensor, finer: Tensor, cutoff: float) -> float:
    """Return how far values and slopes of the spline are off those of a table 4 times finer.

    In units of the largest value and of the largest slope. The three points between two knots are
    close to where the errors are largest: t = 1/2 for values, t = 0.21 for slopes.
    """
    spacing, errors = cutoff / (len(table) - 1), []
    (S, V, D), (exact_dW, exact_W, _) = table.chunk(3, dim=1), finer.chunk(3, dim=1)
    knots = torch.stack([S[:-1], V[:-1], D[:-1], S[1:]])  # (4, K, F)
    for quarter in (1, 2, 3):
        w, dw = hermite_basis(torch.tensor(quarter / 4, dtype=V.dtype), spacing)
        value, slope = (torch.tensordot(basis, knots, dims=1) for basis in (w, dw))
        errors.append((value - exact_W[quarter::4]).abs().max() / exact_W.abs().max())
        errors.append((slope - exact_dW[quarter::4]).abs().max() / exact_dW.abs().max())
    return float(max(errors))


def hermite_basis(t: Tensor, spacing: float) -> tuple[Tensor, Tensor]:
    """Return the cubic Hermite basis at t in [0, 1] of an interval, (..., 4), and its slope.

    It goes with S_k, V_k, D_k and S_{k+1}; see `molnets.tables.passes`.
    """
    s, zero = 1 - t, torch.zeros_like(t)
    w = [spacing * t * s * s, zero + 1, spacing * t * t * (1 + 2 * s), -spacing * t * t * s]
    dw = [s * (s - 2 * t), zero, 6 * t * s, t * (t - 2 * s)]
    return torch.stack(w, dim=-1), torch.stack(dw, dim=-1)


def expand_knots(model: SchNet, num_intervals: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the Gaussians and the cutoff function at the knots, and their slopes.

    e_k and de_k/dd, (2, K + 1, Gaussians), and C and dC/dd, (2, K + 1), in the model's dtype.
    """
    mu, gamma = model.radial_expansion.mu.double(), model.radial_expansion.gamma.double()
    d = torch.linspace(0, model.cutoff, num_intervals + 1, dtype=torch.float64).unsqueeze(1)
    e = torch.exp(-gamma * (d - mu) ** 2)
    angle = math.pi / model.cutoff * d[:, 0]
    C = 0.5 * torch.stack([angle.cos() + 1, -math.pi / model.cutoff * angle.sin()])
    C[:, -1] = 0
    expansion, like = torch.stack([e, -2 * gamma * (d - mu) * e]), model.radial_expansion.mu.dtype
    return expansion.to(like).numpy(), C.to(like).numpy()
