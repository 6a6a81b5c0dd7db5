"""The passes through a SchNet on tables, compiled: nothing of torch in between.

Axes:   N atoms, B samples, E edges j -> i, L blocks, F features, M filters, H the
        readout's width, K intervals of a table. An axis of 2 holds a number and its tangent.
Edges:  `molnets.tables.lists.Edges`; each thread goes through the atoms of one part in their order.
        An edge for both ways leads from j > i, so the sum of atom i is complete after its edges.
Tables: (L, K + 1, 3 M), at the knots the slopes S of the filters, their values V, and the divided
        differences D to the next knot, which keep their digits in float32. On interval k
        W = V_k + w_0 S_k + w_1 D_k + w_2 S_{k+1}, four neighbours in a row of 4 M numbers.
Block:  h = A x;  y_i = Σ_j h_j ∘ W(d_ij);  s = U₁ y + b₁;  a = ssp(s);  x' = x + U₂ a + b₂

Energies and forces are one pass forward and one back, which keeps G = ∂E/∂x, T = ∂E/∂s, and so on.
The gradient of a loss of both needs no second derivative of the graph of operations: with its
gradients ē by the energies and −u by the forces held fixed,

∇_θ L = ∇_θ J,   J = Σ_b ē_b E_b + D_u E,   D_u E = d/dε E(r + ε u),

so tangents (ẋ, ḣ, …) go forward, and what goes back are the gradients P = ∂J/∂x and so on. Those by
the tangents need no pass: ∂J/∂ẋ = G. Every sum has an order that the number of threads fixes: two
runs give the same bits, and other threads the same to round-off.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.extending import intrinsic, overload

# A change here is seen by the cache of this file only: no function calls one of another file.
COMPILED = {"cache": True, "fastmath": True, "nogil": True, "error_model": "numpy"}
ROWS = 16  # atoms that a thread takes at a time
BLAS_ALONE = 2**18  # multiply-adds of a product that BLAS does not split among threads of its own
LOG_2 = float(np.float32(math.log(2)))  # as in PyG's shifted softplus
LOG2_E = 1 / math.log(2)
C1, C2, C3, C4, C5, C6, C7 = (math.log(2) ** k / math.factorial(k) for k in range(1, 8))


class Weights(NamedTuple):
    """The weights of a SchNet, stacked over its blocks; BLAS is faster when Wᵀ is stored too."""

    A: np.ndarray  # (L, M, F)
    At: np.ndarray
    U1: np.ndarray  # (L, F, M)
    U1t: np.ndarray
    b1: np.ndarray  # (L, F)
    U2: np.ndarray  # (L, F, F)
    U2t: np.ndarray
    b2: np.ndarray
    R1: np.ndarray  # (H, F)
    R1t: np.ndarray
    c1: np.ndarray  # (H,)
    R2: np.ndarray  # (1, H)
    c2: np.ndarray  # (1,)


class Filters(NamedTuple):
    """The weights of the filter networks; Gaussians and cutoff function at the knots."""

    W1: np.ndarray  # (L, M, Gaussians)
    W1t: np.ndarray
    b1: np.ndarray  # (L, M)
    W2: np.ndarray  # (L, M, M)
    W2t: np.ndarray
    b2: np.ndarray
    e: np.ndarray  # (2, K + 1, Gaussians)
    C: np.ndarray  # (2, K + 1)


@intrinsic
def _truncated(typing, y):
    """Return the whole part of a number, as a number; `math.floor` would be a call."""

    def generate(context, builder, signature, arguments):
        whole = builder.fptosi(arguments[0], ir.IntType(32))
        return builder.sitofp(whole, ir.FloatType())

    return types.float32(types.float32), generate


@intrinsic
def _two_to_the(typing, n):
    """Return 2**n for a whole number n from -126 to 127, by its bits."""

    def generate(context, builder, signature, arguments):
        whole = builder.fptosi(arguments[0], ir.IntType(32))
        bits = builder.shl(builder.add(whole, ir.IntType(32)(127)), ir.IntType(32)(23))
        return builder.bitcast(bits, ir.FloatType())

    return types.float32(types.float32), generate


def softplus_and_sigmoid(s):
    """Return log(1 + exp(s)) and 1 / (1 + exp(-s)), to round-off."""
    raise NotImplementedError  # compiled code only


@overload(softplus_and_sigmoid, inline="always")
def _softplus_and_sigmoid(s):
    def exact(s):
        u = math.exp(-abs(s))
        p = 1 / (1 + u)
        return max(s, 0) + math.log1p(u), p if s >= 0 else u * p

    def series(s):  # as exact in float32, and without a call that stands in the way of vectors
        zero, one, two = np.float32(0), np.float32(1), np.float32(2)
        y = -abs(s) * np.float32(LOG2_E)
        y = y if y > np.float32(-126) else np.float32(-126)
        n = _truncated(y - np.float32(0.5))  # the nearest, as y <= 0
        r = y - n
        p = np.float32(C5) + r * (np.float32(C6) + r * np.float32(C7))
        p = np.float32(C2) + r * (np.float32(C3) + r * (np.float32(C4) + r * p))
        u = (one + r * (np.float32(C1) + r * p)) * _two_to_the(n)
        t = u / (two + u)
        q = t * t
        p = np.float32(1 / 11) + q * (np.float32(1 / 13) + q * np.float32(1 / 15))
        p = np.float32(1 / 7) + q * (np.float32(1 / 9) + q * p)
        p = one + q * (np.float32(1 / 3) + q * (np.float32(1 / 5) + q * p))
        sigmoid = one / (one + u)
        return (s if s > zero else zero) + two * t * p, sigmoid if s > zero else u * sigmoid

    return series if s == types.float32 else exact


@njit(**COMPILED)
def rows_of(W):
    """Return how many atoms a thread takes at a time, for a product with matrices like W."""
    return max(4, min(ROWS, BLAS_ALONE // W.size))


@njit(**COMPILED)
def convolve(lo, hi, x, table, edges, out, sink):
    """out_i = Σ_e x_j ∘ W(e), complete for lo <= i < hi; one-way edges add to the sink."""
    first, sender, knot, w = edges.first, edges.sender, edges.knot, edges.w
    M, flat = x.shape[1], table.reshape(-1)
    for i in range(lo, hi):
        y_i, x_i = out[i], x[i]
        for e in range(first[2 * i], first[2 * i + 2]):
            w0, w1, w2 = w[0, e], w[1, e], w[2, e]
            k, j = 3 * M * np.int64(knot[e]), np.int64(sender[e])
            x_j, y_j = x[j], out[j] if e < first[2 * i + 1] else sink
            S, V, D, S1 = (flat[k : k + M], flat[k + M : k + 2 * M], flat[k + 2 * M : k + 3 * M],
                           flat[k + 3 * M : k + 4 * M])  # fmt: skip
            for f in range(M):
                W = V[f] + w0 * S[f] + w1 * D[f] + w2 * S1[f]
                y_i[f] += x_j[f] * W
                y_j[f] += x_i[f] * W


@njit(**COMPILED)
def convolve_back(lo, hi, x, g, table, edges, out, sink, pull):
    """out_i = Σ_e g_j ∘ W(e); pull_e = dE/dd grows by Σ_f (g_i x_j + g_j x_i) ∘ W'(e)."""
    first, sender, knot, w, dw = edges.first, edges.sender, edges.knot, edges.w, edges.dw
    M, flat = x.shape[1], table.reshape(-1)
    for i in range(lo, hi):
        y_i, x_i, g_i = out[i], x[i], g[i]
        for e in range(first[2 * i], first[2 * i + 2]):
            w0, w1, w2 = w[0, e], w[1, e], w[2, e]
            v0, v1, v2 = dw[0, e], dw[1, e], dw[2, e]
            k, j = 3 * M * np.int64(knot[e]), np.int64(sender[e])
            x_j, g_j, y_j = x[j], g[j], out[j] if e < first[2 * i + 1] else sink
            S, V, D, S1 = (flat[k : k + M], flat[k + M : k + 2 * M], flat[k + 2 * M : k + 3 * M],
                           flat[k + 3 * M : k + 4 * M])  # fmt: skip
            total = x.dtype.type(0)
            for f in range(M):
                W = V[f] + w0 * S[f] + w1 * D[f] + w2 * S1[f]
                y_i[f] += g_j[f] * W
                y_j[f] += g_i[f] * W
                dW = v0 * S[f] + v1 * D[f] + v2 * S1[f]
                total += (g_i[f] * x_j[f] + g_j[f] * x_i[f]) * dW
            pull[e] += total


@njit(**COMPILED)
def pull_only(lo, hi, x, g, table, edges, pull):
    """Do what `convolve_back` does to the pulls: all that is asked of the first block."""
    first, sender, knot, dw = edges.first, edges.sender, edges.knot, edges.dw
    M, flat = x.shape[1], table.reshape(-1)
    for i in range(lo, hi):
        x_i, g_i = x[i], g[i]
        for e in range(first[2 * i], first[2 * i + 2]):
            v0, v1, v2 = dw[0, e], dw[1, e], dw[2, e]
            k, x_j, g_j = 3 * M * np.int64(knot[e]), x[sender[e]], g[sender[e]]
            S, D, S1 = (flat[k : k + M], flat[k + 2 * M : k + 3 * M], flat[k + 3 * M : k + 4 * M])
            total = x.dtype.type(0)
            for f in range(M):
                dW = v0 * S[f] + v1 * D[f] + v2 * S1[f]
                total += (g_i[f] * x_j[f] + g_j[f] * x_i[f]) * dW
            pull[e] += total


@njit(**COMPILED)
def add_forces(lo, hi, edges, pull, forces):
    """Add up the forces on the atoms of a part: -∂E/∂r_i = Σ_e (dE/dd_e) unit_e."""
    first, sender, unit = edges.first, edges.sender, edges.unit
    forces[lo:hi] = 0
    for i in range(lo, hi):
        for e in range(first[2 * i], first[2 * i + 2]):
            j = sender[e]
            for axis in range(3):
                force = pull[e] * unit[axis, e]
                forces[i, axis] += force
                if e < first[2 * i + 1]:
                    forces[j, axis] -= force


@njit(parallel=True, **COMPILED)
def begin(embeddings, order, At, x, h):
    """Fill x and h of the first block."""
    rows = rows_of(At)
    for block in prange((len(x) + rows - 1) // rows):
        part = slice(block * rows, min((block + 1) * rows, len(x)))
        for i in range(part.start, part.stop):
            for f in range(x.shape[1]):
                x[i, f] = embeddings[order[i], f]
        np.dot(x[part], At, h[part])


@njit(parallel=True, **COMPILED)
def forward(n, edges, weights, table, x, h, y, a, slope, x_next, h_next):
    """Go through block n, from its x and h to x of the next one and, if there is one, its h."""
    rows, b1, b2 = rows_of(weights.U2[n]), weights.b1[n], weights.b2[n]
    for p in prange(len(edges.parts) - 1):
        end, sink = edges.parts[p + 1], np.empty_like(y[0])
        y[edges.parts[p] : end] = 0
        for lo in range(edges.parts[p], end, rows):
            hi = min(lo + rows, end)
            convolve(lo, hi, h, table, edges, y, sink)
            s, a_part, x_part = np.dot(y[lo:hi], weights.U1t[n]), a[lo:hi], x_next[lo:hi]
            for i in range(hi - lo):
                for f in range(len(b1)):
                    softplus, sigmoid = softplus_and_sigmoid(s[i, f] + b1[f])
                    a_part[i, f], slope[lo + i, f] = softplus - LOG_2, sigmoid
            np.dot(a_part, weights.U2t[n], s)
            for i in range(hi - lo):
                for f in range(len(b2)):
                    x_part[i, f] = x[lo + i, f] + s[i, f] + b2[f]
            if n + 1 < len(weights.A):
                np.dot(x_part, weights.At[n + 1], h_next[lo:hi])


@njit(**COMPILED)
def update_back(lo, hi, g, U1, U2, slope, g_s, g_y):
    """Fill the gradients of s and y of the rows lo : hi of a block, from those of its result."""
    np.dot(g[lo:hi], U2, g_s[lo:hi])
    for i in range(lo, hi):
        for f in range(g_s.shape[1]):
            g_s[i, f] *= slope[i, f]
    np.dot(g_s[lo:hi], U1, g_y[lo:hi])


@njit(parallel=True, **COMPILED)
def read_out(x, weights, slope, energy, a_R, slope_R, g, g_s, g_y):
    """Fill the energies of the atoms; go back from them through the update of the last block."""
    R2, c1, L, rows = weights.R2, weights.c1, len(weights.A), rows_of(weights.U2[0])
    for block in prange((len(x) + rows - 1) // rows):
        lo, hi = block * rows, min((block + 1) * rows, len(x))
        s = np.dot(x[lo:hi], weights.R1t)
        for i in range(hi - lo):
            total = weights.c2[0]
            for f in range(len(c1)):
                softplus, sigmoid = softplus_and_sigmoid(s[i, f] + c1[f])
                a_R[lo + i, f], slope_R[lo + i, f] = softplus - LOG_2, sigmoid
                total += R2[0, f] * (softplus - LOG_2)
                s[i, f] = R2[0, f] * sigmoid
            energy[lo + i] = total
        np.dot(s, weights.R1, g[lo:hi])
        update_back(lo, hi, g, weights.U1[L - 1], weights.U2[L - 1], slope, g_s, g_y)


@njit(parallel=True, **COMPILED)
def backward(
    n, edges, weights, table, h, slope, g_y, pull, g_h, g, g_x, g_s, g_y_before, forces, keep
):
    """Go back through the convolution of block n and the update of the one before."""
    rows = rows_of(weights.U2[0])
    for p in prange(len(edges.parts) - 1):
        begin, end, sink = edges.parts[p], edges.parts[p + 1], np.empty_like(g_h[0])
        if n == 0 and not keep:
            pull_only(begin, end, h, g_y, table, edges, pull)
            add_forces(begin, end, edges, pull, forces)
            continue
        g_h[begin:end] = 0
        for lo in range(begin, end, rows):
            hi = min(lo + rows, end)
            convolve_back(lo, hi, h, g_y, table, edges, g_h, sink, pull)
            if n > 0:
                step = np.dot(g_h[lo:hi], weights.A[n])
                for i in range(hi - lo):
                    for f in range(step.shape[1]):
                        g_x[lo + i, f] = g[lo + i, f] + step[i, f]
                update_back(lo, hi, g_x, weights.U1[n - 1], weights.U2[n - 1], slope, g_s,
                            g_y_before)  # fmt: skip
        if n == 0:
            add_forces(begin, end, edges, pull, forces)


@njit(**COMPILED)
def carve(room, at, size, N, width):
    """Return a piece of the room, (size, N, width), and where the next one may begin.

    Each begins with a line of the cache, and none a multiple of pages after another one.
    """
    line = 64 // room.itemsize
    at += -(room.ctypes.data // room.itemsize + at) % line
    end = at + size * N * width
    return room[at:end].reshape(size, N, width), end + 17 * line


@njit(**COMPILED)
def room_for(N, weights, keep):
    """Return how many numbers `energies_and_forces` keeps on its way."""
    (L, M, F), H, num = weights.A.shape, len(weights.R1), len(weights.A) if keep else 1
    more = 1 if keep else 0
    width = F * (2 * (num + more) + 2 * num + L) + M * (L + 2 * num + min(2 * num, L)) + 2 * H
    return N * width + 10 * 18 * 64  # lines of the cache between the pieces


@njit(**COMPILED)
def energies_and_forces(embeddings, order, edges, weights, tables, keep, room):
    """Return the energies of the atoms, (N,), the forces, (N, 3), the pulls, (E,), and all between.

    Args:
        embeddings: of the atoms, (N, F).
        order: which of them each atom of the edges is, (N,).
        edges: as above.
        weights: as above.
        tables: as above.
        keep: of each block what `gradients` needs; otherwise the next block takes its place.
        room: where to keep it, if it is large enough; pages of memory that are new cost time.
    """
    (L, M, F), N, H, new = weights.A.shape, len(order), len(weights.R1), embeddings.dtype
    num, more = (L, 1) if keep else (1, 0)
    if len(room) < room_for(N, weights, keep):
        room = np.empty(room_for(N, weights, keep), new)
    xs, at = carve(room, 0, num + more, N, F)
    hs, at = carve(room, at, L, N, M)
    ys, at = carve(room, at, num, N, M)
    a, at = carve(room, at, num, N, F)
    slope, at = carve(room, at, L, N, F)
    g, at = carve(room, at, num + more, N, F)
    g_s, at = carve(room, at, num, N, F)
    g_y, at = carve(room, at, min(2 * num, L), N, M)
    g_h, at = carve(room, at, num, N, M)
    ends, at = carve(room, at, 2, N, H)
    a_R, slope_R = ends[0], ends[1]
    energy, forces, pull = np.empty(N, new), np.empty((N, 3), new), np.zeros(len(edges.d), new)
    begin(embeddings, order, weights.At[0], xs[0], hs[0])
    for n in range(L):
        forward(n, edges, weights, tables[n], xs[n % len(xs)], hs[n], ys[n % num], a[n % num],
                slope[n], xs[(n + 1) % len(xs)], hs[(n + 1) % L])  # fmt: skip
    last = L - 1
    read_out(xs[L % len(xs)], weights, slope[last], energy, a_R, slope_R, g[L % len(g)],
             g_s[last % num], g_y[last % len(g_y)])  # fmt: skip
    for n in range(last, -1, -1):
        backward(n, edges, weights, tables[n], hs[n], slope[n - 1], g_y[n % len(g_y)], pull,
                 g_h[n % num], g[(n + 1) % len(g)], g[n % len(g)], g_s[(n - 1) % num],
                 g_y[(n - 1) % len(g_y)], forces, keep)  # fmt: skip
    return energy, forces, pull, (xs, hs, ys, a, slope, a_R, slope_R, g, g_s, g_y, g_h)


@njit(parallel=True, **COMPILED)
def tabulate(filters, spacing):
    """Return the tables, and of each filter network's inner layer a, σ and ṡ: (L, K + 1, M)."""
    (L, M, _), (_, K1, _), new = filters.W1.shape, filters.e.shape, filters.e.dtype
    tables, a = np.empty((L, K1, 3 * M), new), np.empty((L, K1, M), new)
    slope, ds, rows = np.empty((L, K1, M), new), np.empty((L, K1, M), new), rows_of(filters.W2[0])
    num = (K1 + rows - 1) // rows
    for task in prange(L * num):
        n, lo = task // num, task % num * rows
        hi = min(lo + rows, K1)
        s = np.dot(filters.e[0, lo:hi], filters.W1t[n])
        np.dot(filters.e[1, lo:hi], filters.W1t[n], ds[n, lo:hi])
        da = np.empty_like(s)
        for k in range(hi - lo):
            for f in range(M):
                softplus, sigmoid = softplus_and_sigmoid(s[k, f] + filters.b1[n, f])
                a[n, lo + k, f], slope[n, lo + k, f] = softplus - LOG_2, sigmoid
                da[k, f] = sigmoid * ds[n, lo + k, f]
        np.dot(a[n, lo:hi], filters.W2t[n], s)
        dW = np.dot(da, filters.W2t[n])
        for k in range(hi - lo):
            row, C, dC = tables[n, lo + k], filters.C[0, lo + k], filters.C[1, lo + k]
            for f in range(M):
                W = s[k, f] + filters.b2[n, f]
                row[f], row[M + f] = dW[k, f] * C + W * dC, W * C
    for n in prange(L):
        table = tables[n]
        for k in range(K1 - 1):
            for f in range(M):
                table[k, 2 * M + f] = (table[k + 1, M + f] - table[k, M + f]) / spacing
        table[K1 - 1, 2 * M :] = 0
    return tables, (a, slope, ds)
