"""Filters as splines: values at knots of the distance, and B-splines that go through them.

W(d) = Σ_j c_j b(d / h − j): uniform B-splines b of degree 5, h = r_c / K, with four continuous
derivatives. Through values W_n at all whole multiples n of h goes one such spline that does not
grow, and

c_j = Σ_m a_m W_{j + m},      a the inverse of (1, 26, 66, 26, 1) / 120 under convolution.

a falls off as 0.43^|m|: a filter is asked a few knots beyond both ends, where it is as smooth as
within, and no condition has to be set there. Only values are needed, no slopes.

Axes:   K intervals, K + 5 coefficients; C columns, any number of filters.
Units:  those of the model.
[1] Unser, Aldroubi & Eden, IEEE Trans. Signal Process. 41, 821 (1993).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

DEGREE = 5
TAPS = {torch.float32: 20, torch.float64: 42}  # |m| at most: 0.43^20 = 5e-8, 0.43^42 = 4e-16
TINY = 1e-300


def knots(num_intervals: int, cutoff: float, dtype: torch.dtype) -> Tensor:
    """Return where the filters are to be evaluated, float64, from below 0 to beyond the cutoff."""
    beyond = 2 + TAPS[dtype]
    places = torch.arange(-beyond, num_intervals + 1 + beyond, dtype=torch.float64)
    return places * (cutoff / num_intervals)


@cache
def inverse(dtype: torch.dtype) -> Tensor:
    """Return a, (2 taps + 1,)."""
    taps, n = TAPS[dtype], 4096
    angle = 2 * torch.pi * torch.arange(n // 2 + 1, dtype=torch.float64) / n
    samples = (66 + 52 * angle.cos() + 2 * (2 * angle).cos()) / 120
    with torch.inference_mode(False):
        a = torch.fft.irfft((1 / samples).to(torch.complex128), n)
        return torch.cat([a[-taps:], a[: taps + 1]]).to(dtype)


def basis(t: float) -> tuple[Tensor, Tensor]:
    """Return the weights of the six coefficients at the place t of an interval, and h times slopes.

    W = Σ_p w_p c_{k + p} at the distance (k + t) h.
    """
    lower, w = [0.0], [1.0]
    for n in range(1, DEGREE + 1):
        lower, w = w, [
            ((t + n - p) * (w[p - 1] if p else 0.0) + (1 + p - t) * (w[p] if p < n else 0.0)) / n
            for p in range(n + 1)
        ]  # fmt: skip
    slopes = [(lower[p - 1] if p else 0.0) - (lower[p] if p < DEGREE else 0.0)
              for p in range(DEGREE + 1)]  # fmt: skip
    return torch.tensor(w, dtype=torch.float64), torch.tensor(slopes, dtype=torch.float64)


def evaluate(c: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """Return values and h times slopes at the place t of all intervals, (K, C), from (K + 5, C)."""
    num = len(c) - DEGREE
    rows = torch.stack([c[p : p + num] for p in range(DEGREE + 1)])
    w, slopes = basis(t)
    return torch.tensordot(w, rows, dims=1), torch.tensordot(slopes, rows, dims=1)


def deviation(c: Tensor, finer: Tensor) -> float:
    """Return how far values and slopes of a spline are off those of one with 4 times the knots.

    In units of the largest value and of the largest slope; the finer one is 4^5 times as exact.
    """
    value, slope = evaluate(finer, 0.0)
    errors = [torch.zeros(1, dtype=torch.float64)]
    for quarter in (1, 2, 3):
        here, rise = evaluate(c, quarter / 4)
        errors.append((here - value[quarter::4]).abs().max() / (value.abs().max() + TINY))
        errors.append((rise / 4 - slope[quarter::4]).abs().max() / (slope.abs().max() + TINY))
    return float(torch.stack([error.reshape(()) for error in errors]).max())


def fitted(
    splines: Callable[[int], list[Tensor]],
    tolerance: float,
    start: int,
    most: int,
) -> tuple[list[Tensor], int] | None:
    """Return coefficients that keep a tolerance, (K + 5, C) for each filter, and K.

    Filters that are not finite are taken as they are.

    Args:
        splines: gives the coefficients of each filter for a K, (K + 5, C), float64.
        tolerance: of values and slopes, as `deviation` has it.
        start: the first K that is tried.
        most: the largest one; None is returned if it does not do.
    """
    K = start
    while most >= K:
        coarse, finer = splines(K), splines(4 * K)
        finite = all(c.isfinite().all() for c in finer)
        pairs = zip(coarse, finer, strict=True)
        if not finite or max(deviation(*pair) for pair in pairs) <= tolerance:
            return coarse, K
        K = K * 3 // 2 if K & (K - 1) == 0 else K // 3 * 4  # 64, 96, 128, 192, …
    return None
