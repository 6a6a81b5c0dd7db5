"""The way back from a loss of energies and forces to the weights of a SchNet on tables, compiled.

Symbols, axes, edges and tables are those of `molnets.tables.passes`. Of a block x, h, y, a and
ẋ, ḣ, ẏ, ȧ go forward; P, q_h, q_y, q_s are the gradients of J by x', h, y, s, and G, g_h, g_y, g_s
those of E, which are J's by the tangents. Every weight's gradient is then a sum of two products:

∂J/∂U₂ = Pᵀ a + Gᵀ ȧ;   ∂J/∂U₁ = q_sᵀ y + g_sᵀ ẏ;   ∂J/∂A = q_hᵀ x + g_hᵀ ẋ
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

# A change here is seen by the cache of this file only: no function calls one of another file.
COMPILED = {"cache": True, "fastmath": True, "nogil": True, "error_model": "numpy"}
ROWS = 16  # atoms that a thread takes at a time
BLAS_ALONE = 2**18  # multiply-adds of a product that BLAS does not split among threads of its own


@njit(**COMPILED)
def rows_of(W, most):
    """Return how many atoms a thread takes at a time, for a product with matrices like W."""
    return max(4, min(most, BLAS_ALONE // W.size))


@njit(parallel=True, **COMPILED)
def stretch(edges, direction):
    """Return ḋ, (E,), when the atoms move with the velocities `direction`, (N, 3)."""
    first, sender, unit = edges.first, edges.sender, edges.unit
    speed = np.empty(len(sender), unit.dtype)
    for i in prange(len(direction)):
        for e in range(first[2 * i], first[2 * i + 2]):
            total = unit.dtype.type(0)
            for axis in range(3):
                total += unit[axis, e] * (direction[sender[e], axis] - direction[i, axis])
            speed[e] = total
    return speed


@njit(**COMPILED)
def convolve_tangent(lo, hi, x, dx, table, edges, speed, out, sink):
    """out_i = Σ_e ẋ_j ∘ W(e) + x_j ∘ W'(e) ḋ_e, as `passes.convolve`."""
    first, sender, knot, w, dw = edges.first, edges.sender, edges.knot, edges.w, edges.dw
    M, flat = x.shape[1], table.reshape(-1)
    for i in range(lo, hi):
        y_i, x_i, dx_i = out[i], x[i], dx[i]
        for e in range(first[2 * i], first[2 * i + 2]):
            w0, w1, w2, v = w[0, e], w[1, e], w[2, e], speed[e]
            v0, v1, v2 = v * dw[0, e], v * dw[1, e], v * dw[2, e]
            k, j = 3 * M * np.int64(knot[e]), np.int64(sender[e])
            x_j, dx_j, y_j = x[j], dx[j], out[j] if e < first[2 * i + 1] else sink
            S, V, D, S1 = (flat[k : k + M], flat[k + M : k + 2 * M], flat[k + 2 * M : k + 3 * M],
                           flat[k + 3 * M : k + 4 * M])  # fmt: skip
            for f in range(M):
                W = V[f] + w0 * S[f] + w1 * D[f] + w2 * S1[f]
                dW = v0 * S[f] + v1 * D[f] + v2 * S1[f]
                y_i[f] += dx_j[f] * W + x_j[f] * dW
                y_j[f] += dx_i[f] * W + x_i[f] * dW


@njit(parallel=True, **COMPILED)
def forward(n, edges, speed, weights, table, slope, h, dh, dx, dy, ds, da, dx_next, dh_next):
    """Carry the tangents through block n."""
    rows = rows_of(weights.U2[n], ROWS)
    for p in prange(len(edges.parts) - 1):
        end, sink = edges.parts[p + 1], np.empty_like(dy[0])
        dy[edges.parts[p] : end] = 0
        for lo in range(edges.parts[p], end, rows):
            hi = min(lo + rows, end)
            convolve_tangent(lo, hi, h, dh, table, edges, speed, dy, sink)
            np.dot(dy[lo:hi], weights.U1t[n], ds[lo:hi])
            for i in range(lo, hi):
                for f in range(ds.shape[1]):
                    da[i, f] = slope[i, f] * ds[i, f]
            step = np.dot(da[lo:hi], weights.U2t[n])
            for i in range(hi - lo):
                for f in range(step.shape[1]):
                    dx_next[lo + i, f] = dx[lo + i, f] + step[i, f]
            if n + 1 < len(weights.A):
                np.dot(dx_next[lo:hi], weights.At[n + 1], dh_next[lo:hi])


@njit(**COMPILED)
def activation_back(lo, hi, slope, ds, g_s, q):
    """Turn the gradients q of a, those of J, into those of s = U₁ y + b₁, in place.

    With σ the slope and g_s = σ ∂E/∂a: ∂J/∂s = σ ∂J/∂a + (1 − σ) ṡ g_s.
    """
    for i in range(lo, hi):
        for f in range(q.shape[1]):
            q[i, f] = slope[i, f] * q[i, f] + (1 - slope[i, f]) * ds[i, f] * g_s[i, f]


@njit(**COMPILED)
def update_back(lo, hi, P, U1, U2, slope, ds, g_s, q_s, q_y):
    """Go back through the update of a block: from P to q_s and q_y."""
    np.dot(P[lo:hi], U2, q_s[lo:hi])
    activation_back(lo, hi, slope, ds, g_s, q_s)
    np.dot(q_s[lo:hi], U1, q_y[lo:hi])


@njit(parallel=True, **COMPILED)
def turn(seed, x, dx, weights, a, slope, g_s, q_s, terms, P):
    """Go through the readout and back: fill P, ∂J/∂x of the last block, and what its weights need.

    a and slope become seed a + ȧ, whose sum is ∂J/∂R₂ (`terms`), and both gradients by s.
    """
    rows = rows_of(weights.R1, ROWS)
    for block in prange((len(x) + rows - 1) // rows):
        lo, hi = block * rows, min((block + 1) * rows, len(x))
        ds = np.dot(dx[lo:hi], weights.R1t)
        for i in range(lo, hi):
            for f in range(a.shape[1]):
                dot, R2 = ds[i - lo, f], weights.R2[0, f]
                terms[i, f] = seed[i] * a[i, f] + slope[i, f] * dot
                g_s[i, f] = R2 * slope[i, f]
                q_s[i, f] = g_s[i, f] * (seed[i] + (1 - slope[i, f]) * dot)
        np.dot(q_s[lo:hi], weights.R1, P[lo:hi])


@njit(parallel=True, **COMPILED)
def first_back(P, U1, U2, slope, ds, g_s, q_s, q_y):
    """Go back through the update of the last block."""
    rows = rows_of(U2, ROWS)
    for block in prange((len(P) + rows - 1) // rows):
        lo, hi = block * rows, min((block + 1) * rows, len(P))
        update_back(lo, hi, P, U1, U2, slope, ds, g_s, q_s, q_y)


@njit(parallel=True, **COMPILED)
def backward(
    n, edges, speed, weights, table, g_y, q_y, q_h, P, P_next, slope, ds, g_s, q_s, q_y_next
):
    """Go back through the convolution of block n and the update of the one before."""
    rows = rows_of(weights.U2[0], ROWS)
    for p in prange(len(edges.parts) - 1):
        end, sink = edges.parts[p + 1], np.empty_like(q_h[0])
        q_h[edges.parts[p] : end] = 0
        for lo in range(edges.parts[p], end, rows):
            hi = min(lo + rows, end)
            convolve_tangent(lo, hi, g_y, q_y, table, edges, speed, q_h, sink)
            step = np.dot(q_h[lo:hi], weights.A[n])
            for i in range(hi - lo):
                for f in range(step.shape[1]):
                    P_next[lo + i, f] = P[lo + i, f] + step[i, f]
            if n > 0:
                update_back(lo, hi, P_next, weights.U1[n - 1], weights.U2[n - 1], slope, ds, g_s,
                            q_s, q_y_next)  # fmt: skip


@njit(**COMPILED)
def table_gradient(lo, hi, q, g, h, dh, edges, speed, G):
    """G = ∂J/∂T of the edges to the atoms lo : hi, (K + 1, 3 M), an edge and its reverse at once.

    J is linear in T: Σ_e (q_i h_j + g_i ḣ_j) ∘ W(e) + g_i h_j ∘ W'(e) ḋ_e
    """
    first, sender, knot, w, dw = edges.first, edges.sender, edges.knot, edges.w, edges.dw
    M, flat = h.shape[1], G.reshape(-1)
    flat[:] = 0
    for i in range(lo, hi):
        q_i, g_i, h_i, dh_i = q[i], g[i], h[i], dh[i]
        for e in range(first[2 * i], first[2 * i + 2]):
            j = np.int64(sender[e])
            if j < i:
                continue
            half = h.dtype.type(1 if j > i else 0.5)  # an atom and its own image: twice in the list
            w0, w1, w2, v = half * w[0, e], half * w[1, e], half * w[2, e], half * speed[e]
            v0, v1, v2 = v * dw[0, e], v * dw[1, e], v * dw[2, e]
            k, q_j, g_j, h_j, dh_j = 3 * M * np.int64(knot[e]), q[j], g[j], h[j], dh[j]
            S, V, D, S1 = (flat[k : k + M], flat[k + M : k + 2 * M], flat[k + 2 * M : k + 3 * M],
                           flat[k + 3 * M : k + 4 * M])  # fmt: skip
            for f in range(M):
                p = q_i[f] * h_j[f] + q_j[f] * h_i[f] + g_i[f] * dh_j[f] + g_j[f] * dh_i[f]
                r = g_i[f] * h_j[f] + g_j[f] * h_i[f]
                S[f] += w0 * p + v0 * r
                V[f] += half * p
                D[f] += w1 * p + v1 * r
                S1[f] += w2 * p + v2 * r


@njit(parallel=True, **COMPILED)
def table_gradients(q, g, h, dh, edges, speed, num_knots, num):
    """Return ∂J/∂T of all blocks, (L, K + 1, 3 M), summed in so many parts."""
    (L, N, M), new = h.shape, h.dtype
    parts = np.empty((L, num, num_knots + 1, 3 * M), new)  # S_{K+1} is written to, and is 0
    for task in prange(L * num):
        n, part = task // num, task % num
        table_gradient(N * part // num, N * (part + 1) // num, q[n], g[n], h[n], dh[n], edges,
                       speed, parts[n, part])  # fmt: skip
    total = np.empty((L, num_knots, 3 * M), new)
    for task in prange(L * num_knots):
        n, k = task // num_knots, task % num_knots
        total[n, k] = parts[n, 0, k]
        for part in range(1, num):
            total[n, k] += parts[n, part, k]
    return total


@njit(parallel=True, **COMPILED)
def filters_back(G, filters, slope, ds, spacing):
    """Go back from the tables through the filter networks.

    Returns:
        The gradients of a network's output and its tangent, and of its inner layer's s and ṡ.
    """
    (L, K1, M), new, rows = slope.shape, G.dtype, rows_of(filters.W2[0], ROWS)
    out, dout = np.empty((L, K1, M), new), np.empty((L, K1, M), new)
    q, g = np.empty((L, K1, M), new), np.empty((L, K1, M), new)
    num = (K1 + rows - 1) // rows
    for task in prange(L * num):
        n, lo = task // num, task % num * rows
        hi = min(lo + rows, K1)
        for k in range(lo, hi):
            C, dC = filters.C[0, k], filters.C[1, k]
            for f in range(M):
                value = G[n, k, M + f]
                value -= G[n, k, 2 * M + f] / spacing if k + 1 < K1 else new.type(0)
                value += G[n, k - 1, 2 * M + f] / spacing if k > 0 else new.type(0)
                out[n, k, f], dout[n, k, f] = value * C + G[n, k, f] * dC, G[n, k, f] * C
        np.dot(dout[n, lo:hi], filters.W2[n], g[n, lo:hi])
        np.dot(out[n, lo:hi], filters.W2[n], q[n, lo:hi])
        for k in range(lo, hi):
            for f in range(M):
                g[n, k, f] *= slope[n, k, f]
        activation_back(lo, hi, slope[n], ds[n], g[n], q[n])
    return out, dout, q, g


@njit(**COMPILED)
def product(q, x, g, dx, out):
    """out = qᵀ x + gᵀ ẋ."""
    rows = rows_of(out, 128)
    out[:] = 0
    for lo in range(0, len(q), rows):
        part = slice(lo, min(lo + rows, len(q)))
        out += np.dot(q[part].T, x[part])
        out += np.dot(g[part].T, dx[part])


@njit(**COMPILED)
def total(x, out):
    """out = Σ_i x_i."""
    out[:] = 0
    for i in range(len(x)):
        for f in range(len(out)):
            out[f] += x[i, f]


@njit(parallel=True, **COMPILED)
def collect(x, dx, y, dy, a, da, P, g, q_s, g_s, q_h, g_h, filters, inner, back):
    """Return the gradients of A, U₁, b₁, U₂, b₂ and of the filter networks' W₁, b₁, W₂, b₂."""
    (L, _, M), F, new = y.shape, x.shape[2], x.dtype
    (fa, slope, ds), (out, dout, q, t) = inner, back
    A, U1, b1 = np.empty((L, M, F), new), np.empty((L, F, M), new), np.empty((L, F), new)
    U2, b2 = np.empty((L, F, F), new), np.empty((L, F), new)
    W1, c1 = np.empty(filters.W1.shape, new), np.empty((L, M), new)
    W2, c2 = np.empty((L, M, M), new), np.empty((L, M), new)
    for task in prange(5 * L):
        n, kind = task // 5, task % 5
        if kind == 0:
            product(q_h[n], x[n], g_h[n], dx[n], A[n])
        elif kind == 1:
            product(q_s[n], y[n], g_s[n], dy[n], U1[n])
            total(q_s[n], b1[n])
        elif kind == 2:
            product(P[n + 1], a[n], g[n + 1], da[n], U2[n])
            total(P[n + 1], b2[n])
        elif kind == 3:
            product(q[n], filters.e[0], t[n], filters.e[1], W1[n])
            total(q[n], c1[n])
        else:
            product(out[n], fa[n], dout[n], slope[n] * ds[n], W2[n])
            total(out[n], c2[n])
    return A, U1, b1, U2, b2, W1, c1, W2, c2


@njit(**COMPILED)
def gradients(seed, direction, edges, weights, filters, tables, spacing, kept, inner, num_parts):
    """Return the gradients of J = Σ_i seed_i E_i + D_direction E.

    Args:
        seed: (N,).
        direction: (N, 3).
        edges: those of the batch.
        weights: of the blocks and of the readout.
        filters: the weights of the filter networks.
        tables: what `passes.tabulate` made of them.
        spacing: from knot to knot.
        kept: what `passes.energies_and_forces` kept.
        inner: what `passes.tabulate` kept.
        num_parts: in so many parts a table's gradient is summed.

    Returns:
        Those by the embeddings, (N, F), by the weights of the blocks and filters as `collect`
        returns them, and by R₁, c₁, R₂ and c₂.
    """
    x, h, y, a, slope, a_R, slope_R, g, g_s, g_y, g_h = kept
    L, spread = len(h), stretch(edges, direction)
    dx, dh, dy, ds = np.empty_like(x), np.empty_like(h), np.empty_like(y), np.empty_like(a)
    da, P, q_s, q_y, q_h = ds.copy(), dx.copy(), ds.copy(), dy.copy(), dh.copy()
    g_R, q_R, terms = np.empty_like(a_R), np.empty_like(a_R), np.empty_like(a_R)
    dx[0], dh[0] = 0, 0
    for n in range(L):
        forward(n, edges, spread, weights, tables[n], slope[n], h[n], dh[n], dx[n], dy[n], ds[n],
                da[n], dx[n + 1], dh[(n + 1) % L])  # fmt: skip
    n = L - 1
    turn(seed, x[L], dx[L], weights, a_R, slope_R, g_R, q_R, terms, P[L])
    first_back(P[L], weights.U1[n], weights.U2[n], slope[n], ds[n], g_s[n], q_s[n], q_y[n])
    for n in range(L - 1, -1, -1):
        backward(n, edges, spread, weights, tables[n], g_y[n], q_y[n], q_h[n], P[n + 1], P[n],
                 slope[n - 1], ds[n - 1], g_s[n - 1], q_s[n - 1], q_y[n - 1])  # fmt: skip
    G = table_gradients(q_y, g_y, h, dh, edges, spread, tables.shape[1], num_parts)
    back = filters_back(G, filters, inner[1], inner[2], spacing)
    blocks = collect(x, dx, y, dy, a, da, P, g, q_s, g_s, q_h, g_h, filters, inner, back)
    R1, c1, R2 = np.empty_like(weights.R1), np.empty_like(weights.c1), np.empty_like(weights.R2)
    product(q_R, x[L], g_R, dx[L], R1)
    total(q_R, c1)
    total(terms, R2[0])
    return P[0], blocks, (R1, c1, R2, seed.sum() + np.zeros_like(weights.c2))
