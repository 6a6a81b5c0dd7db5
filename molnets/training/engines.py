"""What computes a training step: the loss of some frames and its gradient by the weights.

"plain" is the network itself, "compiled" the same, compiled by torch, and "spline" takes its
filters from splines, in one compiled call: the fastest on a CPU, and plain where it is not known.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from molnets.checks import expect
from molnets.edges import Edges
from molnets.potential import Potential
from molnets.tables import (
    SplineForces,
    SplineSteps,
    SplineUpdate,
    UnknownPartError,
    say_why,
    tables_apply,
)
from molnets.training.data import Dataset
from molnets.training.errors import dtype_and_device, loss_of

ENGINES = ("spline", "plain", "compiled")


class PlainForces(nn.Module):
    """Energies and forces of frames whose edges are known: a training step without the search.

    The forces are part of the forward pass, so that it can be compiled.

    Args:
        potential: the potential.
    """

    def __init__(self, potential: Potential) -> None:
        super().__init__()
        self.potential = potential

    def forward(
        self, z: Tensor, batch: Tensor, edges: Edges, virial: bool = False
    ) -> tuple[Tensor, ...]:
        """Return energies (B, 1) and forces (N, 3) from z (N, 1), batch (N,) and the edges.

        If asked for, also the virials ∂E/∂ε, (B, 3, 3).
        """
        return self.potential.energy_and_forces_of(
            z, batch, edges, create_graph=True, virial=virial
        )


class Steps(Protocol):
    """The steps of one training."""

    def __call__(self, chosen: Tensor, weights: Sequence[Tensor], gradient: Tensor) -> float:
        """Return the loss of the chosen frames, (B,), and write its gradient to `gradient`.

        Args:
            chosen: indices of frames, int64.
            weights: those that the gradient is by.
            gradient: the gradients by them, one after the other, (P,).
        """


class PlainSteps:
    """Steps by torch.

    Args:
        forces: what gives energies and forces; its `potential` says in which dtype, and where.
        data: the frames.
        factors: what the frames' errors count in the loss, (T, 3), see `loss_of`.
    """

    def __init__(self, forces: nn.Module, data: Dataset, factors: Tensor) -> None:
        self.forces, self.data, self.factors = forces, data, factors

    def __call__(self, chosen: Tensor, weights: Sequence[Tensor], gradient: Tensor) -> float:
        """Return the loss of the chosen frames, and write its gradient."""
        potential, virial = self.forces.potential, bool(self.factors[:, 2].any())
        dtype, device = dtype_and_device(potential)
        target = self.data.take(chosen, dtype, device)
        edges = self.data.edges(potential.cutoff).take(chosen, dtype, device)
        results = self.forces(target.z, target.batch, edges, virial)
        loss = loss_of(results, target, self.factors[chosen].to(device))
        found = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
        gradient.copy_(torch.cat([g.flatten() for g in found]))
        return loss.item()


def make_steps(name: str, potential: Potential, data: Dataset, factors: Tensor) -> Steps:
    """Return what computes the steps of a training.

    Args:
        name: one of `ENGINES`.
        potential: what is trained.
        data: the frames.
        factors: what the frames' errors count in the loss, (T, 3), see `loss_of`.

    Raises:
        ValueError: for another name.
    """
    expect(name in ENGINES, "engine", f"one of {ENGINES}", repr(name))
    if name == "spline" and tables_apply(*reversed(dtype_and_device(potential))):
        try:
            return SplineSteps(potential, data.frames(potential.cutoff, factors))
        except UnknownPartError as error:
            say_why(str(error))
    plain = PlainForces(potential)
    if name == "compiled":
        plain.compile()
    return PlainSteps(plain, data, factors)


def judge_of(name: str, potential: Potential) -> nn.Module | None:
    """Return what gives energies and forces on splines to judge weights by, if `name` is "spline".

    It has four times the knots of training's: it is 4^5 times as exact. None where there is none.
    """
    if name != "spline" or not tables_apply(*reversed(dtype_and_device(potential))):
        return None
    try:
        coarse = SplineForces(potential)
    except UnknownPartError:
        return None
    return SplineForces(potential, 4 * coarse.num_intervals)


class PlainUpdate:
    """A step of the optimizer by torch; arguments and call as those of `SplineUpdate`."""

    def __init__(self, optimizer: torch.optim.Optimizer, average: Tensor) -> None:
        self.optimizer, self.average = optimizer, average
        self.weights = optimizer.param_groups[0]["params"][0]

    def __call__(self, clip_norm: float, decay: float) -> None:
        """Move the weights along their gradient, and the average towards them."""
        with on_one_thread():
            if clip_norm:
                nn.utils.clip_grad_norm_([self.weights], clip_norm)
            self.optimizer.step()
            self.average.lerp_(self.weights.detach(), 1 - decay)


def make_update(
    name: str, optimizer: torch.optim.AdamW, average: Tensor
) -> PlainUpdate | SplineUpdate:
    """Return what moves all weights, one parameter, (P,), and their average, (P,).

    Args:
        name: one of `ENGINES`.
        optimizer: that of the one parameter.
        average: the running average.
    """
    compiled = name == "spline" and tables_apply(average.device, average.dtype)
    return (SplineUpdate if compiled else PlainUpdate)(optimizer, average)


@contextmanager
def on_one_thread() -> Iterator[None]:
    """Let torch use one thread: others would wait busily for more, beside those of the engine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def laid_out(weights: list[Tensor]) -> Tensor:
    """Lay weights one after the other in memory, as parts of what is returned, (P,)."""
    kinds = {(weight.dtype, weight.device) for weight in weights}
    expect(len(kinds) == 1, "potential", "weights of one dtype on one device", kinds)
    flat = torch.cat([weight.detach().flatten() for weight in weights])
    for weight, part in zip(weights, flat.split([w.numel() for w in weights]), strict=True):
        weight.data = part.view(weight.shape)
    return flat
