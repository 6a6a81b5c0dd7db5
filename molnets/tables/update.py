"""A step of an optimizer on all weights at once, compiled.

Axes:   P weights, one after the other.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from molnets.checks import expect
from molnets.tables.library import library
from molnets.tables.native import PRECISIONS


class _Rates(ctypes.Structure):
    """As `Rates` of the engine."""

    _fields_ = [
        *((name, ctypes.c_double) for name in
          ("lr", "beta1", "beta2", "eps", "weight_decay", "clip_norm", "average_decay")),
        ("step", ctypes.c_int64),
    ]  # fmt: skip


class SplineUpdate:
    """Torch's AdamW on one parameter, which stands for all weights, in one compiled pass.

    What torch keeps in the optimizer's state is used and kept up to date: either can go on where
    the other one was.

    Args:
        optimizer: an AdamW without AMSGrad, of one parameter, (P,), float32 or float64, on the CPU.
        average: the running average of the weights, (P,).

    Raises:
        TypeError: for another optimizer.
    """

    def __init__(self, optimizer: torch.optim.AdamW, average: Tensor) -> None:
        self._group = group = optimizer.param_groups[0]
        known = type(optimizer) is torch.optim.AdamW and len(group["params"]) == 1
        known = known and not (group["amsgrad"] or group["maximize"])
        expect(known, "optimizer", "AdamW of one parameter", optimizer, TypeError)
        self.optimizer, self.average, self.weights = optimizer, average, group["params"][0]
        self._update = getattr(library(), f"update_weights_{PRECISIONS[average.dtype]}")

    def __call__(self, clip_norm: float, decay: float) -> None:
        """Move the weights along their `grad`, and the average by 1 − decay towards them.

        Args:
            clip_norm: what the gradient's norm is limited to; 0 for no limit.
            decay: of the average.
        """
        state, group, whole = self._state(), self.optimizer.param_groups[0], self.weights
        state["step"] += 1
        rates = _Rates(group["lr"], *group["betas"], group["eps"], group["weight_decay"], clip_norm,
                       decay, int(state["step"]))  # fmt: skip
        arrays = whole, whole.grad, state["exp_avg"], state["exp_avg_sq"], self.average
        self._update(ctypes.byref(rates), whole.numel(), *(x.data_ptr() for x in arrays))
        torch.autograd.graph.increment_version([whole, self.average])

    def _state(self) -> dict[str, Tensor]:
        state = self.optimizer.state[self.weights]
        if not state:
            state |= {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(self.weights.data),
                      "exp_avg_sq": torch.zeros_like(self.weights.data)}  # fmt: skip
        return state
