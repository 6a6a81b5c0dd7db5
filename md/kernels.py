"""The compiled loops of `md.spline`: sums over edges that never store a feature of an edge.

Axes:   N atoms, E edges j -> i, F features, K intervals of a table, R rows of atoms.
Tables: (K + 1, 3 F), at K + 1 knots the values V of F filters, then their slopes S, then the
        divided differences D to the next knot, which keep their digits in float32. On interval k
        W = w_0 V_k + w_1 S_k + w_2 D_k + w_3 S_{k+1}, w, (E, 4), the Hermite basis of the edge.
Rows:   `first` (N + 1,) and `order` (E,): the edges of atom n are order[first[n] : first[n + 1]].

All of them are pieces of M = Σ_e Σ_f g_if x_jf W_f(e), which is linear in each of g, x, w and T:
∂M/∂g and ∂M/∂x are `convolve`, ∂M/∂w is `edge_products` and ∂M/∂T is `table_gradient`; with their
derivatives they are closed. Every sum has a fixed order: the same input gives the same bits.
"""

from __future__ import annotations

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
                y[f] += x_j[f] * (w0 * t[f] + w1 * t[F + f] + w2 * t[2 * F + f] + w3 * u[F + f])


@njit(parallel=True, **COMPILED)
def convolve_both(x, dx, table, knot, w, dw, first, order, other, out, dout):
    """y_n of `convolve` and its tangent ẏ_n = Σ_e ẋ_other ∘ W(e) + x_other ∘ Ẇ(e): twice (N, F).

    Ẇ has the weights ẇ in place of w.
    """
    F = x.shape[1]
    for n in prange(len(first) - 1):
        y, dy = out[n], dout[n]
        y[:] = 0
        dy[:] = 0
        for p in range(first[n], first[n + 1]):
            e = order[p]
            w0, w1, w2, w3 = w[e, 0], w[e, 1], w[e, 2], w[e, 3]
            v0, v1, v2, v3 = dw[e, 0], dw[e, 1], dw[e, 2], dw[e, 3]
            x_j, dx_j = x[other[e]], dx[other[e]]
            t, u = table[knot[e]], table[knot[e] + 1]
            for f in range(F):
                W = w0 * t[f] + w1 * t[F + f] + w2 * t[2 * F + f] + w3 * u[F + f]
                dW = v0 * t[f] + v1 * t[F + f] + v2 * t[2 * F + f] + v3 * u[F + f]
                y[f] += x_j[f] * W
                dy[f] += dx_j[f] * W + x_j[f] * dW


@njit(parallel=True, **COMPILED)
def edge_products(g, x, table, knot, receiver, sender, out):
    """s_e = Σ_f g_if x_jf (V_k, S_k, D_k, S_{k+1})_f: (E, 4)."""
    F = x.shape[1]
    for e in prange(len(knot)):
        g_i, x_j, t, u = g[receiver[e]], x[sender[e]], table[knot[e]], table[knot[e] + 1]
        s0 = s1 = s2 = s3 = x.dtype.type(0)
        for f in range(F):
            product = g_i[f] * x_j[f]
            s0 += product * t[f]
            s1 += product * t[F + f]
            s2 += product * t[2 * F + f]
            s3 += product * u[F + f]
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
                u[F + f] += w3 * product


@njit(parallel=True, **COMPILED)
def table_gradient_both(g, dg, x, dx, knot, w, dw, receiver, sender, parts):
    """The same for Σ_e g_i x_j W + ġ_i ẋ_j W + ġ_i x_j Ẇ, the two sums of `convolve_both`."""
    F, E, num = x.shape[1], len(knot), len(parts)
    for part in prange(num):
        G = parts[part]
        G[:] = 0
        for e in range(E * part // num, E * (part + 1) // num):
            g_i, dg_i, x_j, dx_j = g[receiver[e]], dg[receiver[e]], x[sender[e]], dx[sender[e]]
            t, u = G[knot[e]], G[knot[e] + 1]
            w0, w1, w2, w3 = w[e, 0], w[e, 1], w[e, 2], w[e, 3]
            v0, v1, v2, v3 = dw[e, 0], dw[e, 1], dw[e, 2], dw[e, 3]
            for f in range(F):
                p = g_i[f] * x_j[f] + dg_i[f] * dx_j[f]
                q = dg_i[f] * x_j[f]
                t[f] += w0 * p + v0 * q
                t[F + f] += w1 * p + v1 * q
                t[2 * F + f] += w2 * p + v2 * q
                u[F + f] += w3 * p + v3 * q


def num_parts(num_edges: int) -> int:
    """Return how many parts a table's gradient is summed in; threads do not change the result."""
    return 1 if num_edges < FEW else 8


@njit(**COMPILED)
def stretch(unit, direction, receiver, sender, dw, out):
    """ẇ_e = dw_e ḋ_e, (E, 4), when the atoms move with the velocities `direction`, (N, 3)."""
    for e in range(len(receiver)):
        i, j = receiver[e], sender[e]
        speed = direction.dtype.type(0)
        for axis in range(3):
            speed += unit[e, axis] * (direction[j, axis] - direction[i, axis])
        for c in range(4):
            out[e, c] = dw[e, c] * speed
