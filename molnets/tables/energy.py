"""The energy of a tabulated network as torch sees it: its derivatives are compiled too.

What a call returns is one operation on the positions and on a bundle, an operation of its own that
stands for all weights and lasts as long as they do. Its way back gives forces, which the call has
computed already, and the gradient of the weights only if the pass back will get to the bundle. A
derivative that is to be differentiated again is taken of the general energy instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from molnets.checks import expect, spread_atomic_numbers
from molnets.tables.structure import embedding_gradients

if TYPE_CHECKING:
    from molnets.tables.model import System, _Tabulated
    from molnets.tables.native import NativeNetwork


class Call(NamedTuple):
    """What a call has computed beside the energies, and of what."""

    model: _Tabulated
    system: System
    forces: Tensor  # (N, 3)
    version: int  # of the positions
    made_of: NativeNetwork  # another one as soon as weights are others
    bundle: Tensor | None


def bundle_of(weights: list[Tensor]) -> Tensor:
    """Return zeros, (P,), whose gradient reaches the P numbers of all weights."""
    return _Bundle.apply(*weights)


class _Bundle(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *weights):
        ctx.sizes, ctx.shapes = [w.numel() for w in weights], [w.shape for w in weights]
        return weights[0].new_zeros(1).expand(sum(ctx.sizes))

    @staticmethod
    def backward(ctx, g):
        parts = zip(g.split(ctx.sizes), ctx.shapes, strict=True)
        return tuple(part.view(shape) for part, shape in parts)


class EnergyOfCall(torch.autograd.Function):
    """The energies of a call, (B, 1), as a function of positions and bundle."""

    @staticmethod
    def forward(ctx, pos, bundle, call, energy):  # noqa: D102
        ctx.call = call  # without the energy, which will know of ctx
        return energy[0]

    @staticmethod
    def backward(ctx, g):  # noqa: D102
        call = ctx.call
        if torch.is_grad_enabled():  # create_graph=True
            return *_general_gradients(call, g), None, None
        of_pos = of_weights = None
        if ctx.needs_input_grad[0]:
            of_pos = -(g if len(g) == 1 else g.index_select(0, call.system.batch)) * call.forces
        if call.bundle is not None and torch._C._will_engine_execute_node(call.bundle.grad_fn):
            of_weights = _gradients_of_weights(call, g)
        return of_pos, of_weights, None, None


def _expect_the_same(call: Call) -> None:
    same = call.system.pos._version == call.version
    expect(same, "pos", "the positions of the call", "others, changed in place", RuntimeError)
    same = call.model.state_of_weights() is call.made_of
    expect(same, "model", "the weights of the call", "others, changed since", RuntimeError)


def _general_gradients(call: Call, g: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients by positions and bundle, with a graph of their own."""
    _expect_the_same(call)
    pos, weights = call.system.pos, call.made_of.structure.all_weights()
    inputs = [x for x in (pos, *weights) if x.requires_grad]
    energy = call.model.general_energy(call.system)
    grads = torch.autograd.grad(energy, inputs, g, create_graph=True, materialize_grads=True)
    found = iter(grads)
    of_pos = next(found) if pos.requires_grad else None
    if call.bundle is None:
        return of_pos, None
    parts = [next(found) if w.requires_grad else torch.zeros_like(w) for w in weights]
    return of_pos, torch.cat([part.flatten() for part in parts])


def _gradients_of_weights(call: Call, g: Tensor) -> Tensor:
    """Return the gradient by the bundle."""
    _expect_the_same(call)
    model, system = call.model, call.system
    g_x, parts = model.weight_gradients(system, g)
    z = spread_atomic_numbers(system.z, system.batch, len(g)).to(g_x.dtype)
    parts += embedding_gradients(model.embedding, z, g_x)
    return torch.cat([part.flatten() for part in parts])
