"""Sums over the edges of a tabulated network, differentiable to any order by torch.

Axes:   N atoms, E edges j -> i, F features, K intervals of a table.
Tables: (K + 1, 3 F), as in `molnets.tables.passes`. On interval k
        W = w_0 S_k + w_1 V_k + w_2 D_k + w_3 S_{k+1}, w, (E, 4), the Hermite basis of the edge.
Rows:   `first` (N + 1,) and `order` (E,): the edges of atom n are order[first[n] : first[n + 1]].

All of them are pieces of M = Σ_e Σ_f g_if x_jf W_f(e), which is linear in each of g, x, w and T:
∂M/∂g and ∂M/∂x are `convolve`, ∂M/∂w is `edge_products` and ∂M/∂T is `table_gradient`; with their
derivatives they are closed, on any graph. The loops never store a feature of an edge, and every sum
has a fixed order: the same input gives the same bits.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numba import njit, prange

FEW = 20_000  # edges that are not worth a second thread
COMPILED = {"cache": True, "fastmath": True, "nogil": True, "error_model": "numpy"}


@njit(parallel=True, **COMPILED)
def convolve(x, table, knot, w, first, order, other, out):
    """y_n = Σ_e x_other ∘ W(e) over the edges of n: (N, F)."""
    F = x.shape[1]
    for n in prange(len(first) - 1):
        y = out[n]
        y[:] = 0
        for p in range(first[n], first[n + 1]):
            e = order[p]
            w0, w1, w2, w3 = w[e, 0], w[e, 1], w[e, 2], w[e, 3]
            x_j, t, u = x[other[e]], table[knot[e]], table[knot[e] + 1]
            for f in range(F):
                y[f] += x_j[f] * (w0 * t[f] + w1 * t[F + f] + w2 * t[2 * F + f] + w3 * u[f])


@njit(parallel=True, **COMPILED)
def edge_products(g, x, table, knot, receiver, sender, out):
    """s_e = Σ_f g_if x_jf (S_k, V_k, D_k, S_{k+1})_f: (E, 4)."""
    F = x.shape[1]
    for e in prange(len(knot)):
        g_i, x_j, t, u = g[receiver[e]], x[sender[e]], table[knot[e]], table[knot[e] + 1]
        s0 = s1 = s2 = s3 = x.dtype.type(0)
        for f in range(F):
            product = g_i[f] * x_j[f]
            s0 += product * t[f]
            s1 += product * t[F + f]
            s2 += product * t[2 * F + f]
            s3 += product * u[f]
        out[e, 0], out[e, 1], out[e, 2], out[e, 3] = s0, s1, s2, s3


@njit(parallel=True, **COMPILED)
def table_gradient(g, x, knot, w, receiver, sender, parts):
    """∂M/∂T, (K + 1, 3 F), in parts that are to be summed."""
    F, E, num = x.shape[1], len(knot), len(parts)
    for part in prange(num):
        G = parts[part]
        G[:] = 0
        for e in range(E * part // num, E * (part + 1) // num):
            g_i, x_j, t, u = g[receiver[e]], x[sender[e]], G[knot[e]], G[knot[e] + 1]
            w0, w1, w2, w3 = w[e, 0], w[e, 1], w[e, 2], w[e, 3]
            for f in range(F):
                product = g_i[f] * x_j[f]
                t[f] += w0 * product
                t[F + f] += w1 * product
                t[2 * F + f] += w2 * product
                u[f] += w3 * product


def num_parts(num_edges: int) -> int:
    """Return how many parts a table's gradient is summed in; threads do not change the result."""
    return 1 if num_edges < FEW else 8


class Edges(NamedTuple):
    """The edges of a batch, in any order."""

    receiver: np.ndarray  # (E,)
    sender: np.ndarray  # (E,)
    by_receiver: tuple[np.ndarray, np.ndarray]  # first (N + 1,) and order (E,)
    by_sender: tuple[np.ndarray, np.ndarray]
    knot: np.ndarray  # (E,)

    def reversed(self) -> Edges:
        """Return the edges led the other way."""
        return Edges(self.sender, self.receiver, self.by_sender, self.by_receiver, self.knot)


class _Convolve(torch.autograd.Function):
    """y_i = Σ_e x_j ∘ W(e): (N, F), with derivatives of any order by x, w and the table."""

    @staticmethod
    def forward(ctx, x, w, table, edges):
        ctx.save_for_backward(x, w, table)
        ctx.edges, y = edges, torch.empty_like(x)
        x, w, table = (t.detach().contiguous().numpy() for t in (x, w, table))
        convolve(x, table, edges.knot, w, *edges.by_receiver, edges.sender, y.numpy())
        return y

    @staticmethod
    def backward(ctx, g):
        x, w, table = ctx.saved_tensors
        edges, (need_x, need_w, need_table, _) = ctx.edges, ctx.needs_input_grad
        return (
            _Convolve.apply(g, w, table, edges.reversed()) if need_x else None,
            _EdgeProducts.apply(g, x, table, edges) if need_w else None,
            _TableGradient.apply(g, x, w, edges, len(table)) if need_table else None,
            None,
        )


class _EdgeProducts(torch.autograd.Function):
    """The derivative of Σ_i g_i · y_i by w: (E, 4)."""

    @staticmethod
    def forward(ctx, g, x, table, edges):
        ctx.save_for_backward(g, x, table)
        ctx.edges, out = edges, x.new_empty(len(edges.knot), 4)
        g, x, table = (t.detach().contiguous().numpy() for t in (g, x, table))
        edge_products(g, x, table, edges.knot, edges.receiver, edges.sender, out.numpy())
        return out

    @staticmethod
    def backward(ctx, u):
        g, x, table = ctx.saved_tensors
        edges, (need_g, need_x, need_table, _) = ctx.edges, ctx.needs_input_grad
        return (
            _Convolve.apply(x, u, table, edges) if need_g else None,
            _Convolve.apply(g, u, table, edges.reversed()) if need_x else None,
            _TableGradient.apply(g, x, u, edges, len(table)) if need_table else None,
            None,
        )


class _TableGradient(torch.autograd.Function):
    """The derivative of Σ_i g_i · y_i by the table: (K + 1, 3 F)."""

    @staticmethod
    def forward(ctx, g, x, w, edges, num_knots):
        ctx.save_for_backward(g, x, w)
        ctx.edges = edges
        parts = x.new_empty(num_parts(len(edges.knot)), num_knots, 3 * x.shape[1])
        g, x, w = (t.detach().contiguous().numpy() for t in (g, x, w))
        table_gradient(g, x, edges.knot, w, edges.receiver, edges.sender, parts.numpy())
        return parts.sum(dim=0)

    @staticmethod
    def backward(ctx, table):
        g, x, w = ctx.saved_tensors
        edges, (need_g, need_x, need_w, *_) = ctx.edges, ctx.needs_input_grad
        return (
            _Convolve.apply(x, w, table, edges) if need_g else None,
            _Convolve.apply(g, w, table, edges.reversed()) if need_x else None,
            _EdgeProducts.apply(g, x, table, edges) if need_w else None,
            None,
            None,
        )


convolution = _Convolve.apply  # what a network is made of; the others are its derivatives
edge_products_of, table_gradient_of = _EdgeProducts.apply, _TableGradient.apply
