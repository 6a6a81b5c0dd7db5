"""Energies and forces of a SchNet on tables in a few compiled calls: nothing of torch in between.

Axes:   N atoms, B samples, E directed edges j -> i, F features, M filters, H the readout's width.
Edges:  by receiver: those of atom i are first[i] : first[i + 1]; every edge's reverse is there too.
Tables: as in `md.kernels`.
"""

from __future__ import annotations

import math

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import njit, prange, types
from numba.extending import intrinsic, overload

# A change here is seen by the cache of this file only: no function calls one of another file.
COMPILED = {"cache": True, "fastmath": True, "nogil": True, "error_model": "numpy"}
FEW = 64  # atoms of a sample that are compared with all others
LOG_2 = float(np.float32(math.log(2)))  # as in PyG's shifted softplus
BLAS_ALONE = 2**18  # multiply-adds of a product that BLAS does not split among threads of its own
LOG2_E = 1 / math.log(2)
C1, C2, C3, C4, C5, C6, C7 = (math.log(2) ** k / math.factorial(k) for k in range(1, 8))


def use_threads_of_torch() -> None:
    """Let the loops run on as many threads as torch does: one, where small systems are many."""
    numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))


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
def sort_edges(atom, num_atoms):
    """Return `first` (N + 1,) and `order` (E,) of the edges by atom; a counting sort."""
    first = np.zeros(num_atoms + 1, np.int64)
    for e in range(len(atom)):
        first[atom[e] + 1] += 1
    for n in range(num_atoms):
        first[n + 1] += first[n]
    order, place = np.empty(len(atom), np.int64), first[:-1].copy()
    for e in range(len(atom)):
        order[place[atom[e]]] = e
        place[atom[e]] += 1
    return first, order


@njit(**COMPILED)
def sort_into_cells(pos, start, cutoff):
    """Sort the atoms of each sample into cells at least as wide as the cutoff.

    Returns:
        The order of the atoms, (N,), the cell of each in that order, (N,), where the cells begin,
        (C + 1,), how many a sample has along each axis, (B, 3), and its first one, (B + 1,).
    """
    N, B = len(pos), len(start) - 1
    cell, shape, first_cell = (
        np.empty(N, np.int64),
        np.ones((B, 3), np.int64),
        np.zeros(B + 1, np.int64),
    )
    low, high = np.empty(3), np.empty(3)
    for b in range(B):
        n, width = start[b + 1] - start[b], cutoff * (1 + 1e-6)
        for axis in range(3):
            low[axis], high[axis] = math.inf, -math.inf
            for i in range(start[b], start[b + 1]):
                low[axis] = min(low[axis], pos[i, axis])
                high[axis] = max(high[axis], pos[i, axis])
        while n > FEW:
            along = np.maximum(1.0, np.floor((high - low) / width))
            if along[0] * along[1] * along[2] <= n:
                shape[b] = along.astype(np.int64)
                break
            width *= 1.26
        first_cell[b + 1] = first_cell[b] + shape[b, 0] * shape[b, 1] * shape[b, 2]
        for i in range(start[b], start[b + 1]):
            at = 0
            for axis in range(3):
                k = min(int((pos[i, axis] - low[axis]) / width), shape[b, axis] - 1)
                at = at * shape[b, axis] + k
            cell[i] = first_cell[b] + at
    cell_start, order = sort_edges(cell, first_cell[B])
    return order, cell[order], cell_start, shape, first_cell


@njit(parallel=True, **COMPILED)
def find_edges(pos, batch, cells, cutoff, first, sender, unit, d):
    """Find the neighbours of each atom; the atoms are in the order of their cells.

    Called with an empty `sender`, it writes the number of neighbours of atom i to first[i + 1].
    Called with room for them, and `first` the running sum, it writes the edges themselves.
    """
    _, cell, cell_start, shape, first_cell = cells
    fill, square = len(sender) > 0, cutoff * cutoff
    for i in prange(len(pos)):
        b = batch[i]
        ny, nz = shape[b, 1], shape[b, 2]
        at = cell[i] - first_cell[b]
        cx, cy, cz = at // (ny * nz), at // nz % ny, at % nz
        e = first[i] if fill else 0
        for kx in range(max(cx - 1, 0), min(cx + 2, shape[b, 0])):
            for ky in range(max(cy - 1, 0), min(cy + 2, ny)):
                row = first_cell[b] + (kx * ny + ky) * nz
                begin = cell_start[row + max(cz - 1, 0)]
                for j in range(begin, cell_start[row + min(cz + 2, nz)]):
                    x = np.float64(pos[j, 0]) - pos[i, 0]
                    y = np.float64(pos[j, 1]) - pos[i, 1]
                    z = np.float64(pos[j, 2]) - pos[i, 2]
                    r2 = x * x + y * y + z * z
                    if r2 < square and i != j:
                        if fill:
                            r = math.sqrt(r2)
                            sender[e], d[e] = j, r
                            unit[e, 0], unit[e, 1], unit[e, 2] = x / r, y / r, z / r
                        e += 1
        if not fill:
            first[i + 1] = e


@njit(parallel=True, **COMPILED)
def hermite(d, spacing, num_intervals, knot, w, dw):
    """Fill the interval, the Hermite basis and its derivative of each length; 0 beyond K."""
    for e in prange(len(d)):
        k = int(d[e] / spacing)
        if k >= num_intervals:
            knot[e], w[e], dw[e] = 0, 0, 0
            continue
        t = d[e] / spacing - k
        s = 1 - t
        knot[e] = k
        w[e, 0], w[e, 1] = 1, spacing * t * s * s
        w[e, 2], w[e, 3] = spacing * t * t * (1 + 2 * s), -spacing * t * t * s
        dw[e, 0], dw[e, 1] = 0, s * (s - 2 * t)
        dw[e, 2], dw[e, 3] = 6 * t * s, t * (t - 2 * s)


@njit(**COMPILED)
def find_graph(pos, batch, start, cutoff, spacing, num_intervals):
    """Find the edges between atoms closer than the cutoff, without periodic images.

    Returns:
        order: the atoms, sample after sample and cell after cell, (N,); edges number them so.
        edges: first (N + 1,), sender (E,), d (E,), unit (E, 3) from i to j, knot (E,), w and dw
            (E, 4).
        distinct: whether no two atoms of a sample are in one place.
    """
    cells = sort_into_cells(pos, start, cutoff)
    order, none = cells[0], np.empty(0)
    pos, first = pos[order], np.zeros(len(pos) + 1, np.int64)
    find_edges(pos, batch, cells, cutoff, first, np.empty(0, np.int64), pos[:0], none)
    first = np.cumsum(first)
    E = first[-1]
    sender, unit, d = np.empty(E, np.int64), np.empty((E, 3), pos.dtype), np.empty(E)
    knot, w, dw = np.empty(E, np.int64), np.empty((E, 4), pos.dtype), np.empty((E, 4), pos.dtype)
    if E > 0:
        find_edges(pos, batch, cells, cutoff, first, sender, unit, d)
    hermite(d, spacing, num_intervals, knot, w, dw)
    return order, (first, sender, d, unit, knot, w, dw), E == 0 or d.min() > 0


@njit(**COMPILED)
def sort_graph(pos, receiver, sender, offset, spacing, num_intervals):
    """Return the edges of `find_graph` for a given list: from r_j + offset to r_i.

    Beyond the table an edge's basis is 0. The second result is the receiver of each edge, (E,).
    """
    E = len(receiver)
    first, by_receiver = sort_edges(receiver, len(pos))
    receiver, sender = receiver[by_receiver], sender[by_receiver]
    unit, d = np.empty((E, 3), pos.dtype), np.empty(E)
    knot, w, dw = np.empty(E, np.int64), np.empty((E, 4), pos.dtype), np.empty((E, 4), pos.dtype)
    for e in range(E):
        i, j, shift = receiver[e], sender[e], offset[by_receiver[e]]
        x = np.float64(pos[j, 0]) - pos[i, 0] + shift[0]
        y = np.float64(pos[j, 1]) - pos[i, 1] + shift[1]
        z = np.float64(pos[j, 2]) - pos[i, 2] + shift[2]
        d[e] = math.sqrt(x * x + y * y + z * z)
        unit[e, 0], unit[e, 1], unit[e, 2] = x / d[e], y / d[e], z / d[e]
    hermite(d, spacing, num_intervals, knot, w, dw)
    return (first, sender, d, unit, knot, w, dw), receiver


@njit(parallel=True, **COMPILED)
def dense(x, W, out, add):
    """x Wᵀ, or added to what is there: (N, F) -> (N, M) for W (M, F)."""
    rows = max(4, BLAS_ALONE // W.size)
    for block in prange((len(x) + rows - 1) // rows):
        part = slice(block * rows, min((block + 1) * rows, len(x)))
        if add:
            out[part] += np.dot(x[part], W.T)
        else:
            np.dot(x[part], W.T, out[part])


@njit(parallel=True, **COMPILED)
def update(y, U1, b1, U2, b2, s, x):
    """x + U₂ ssp(U₁ y + b₁) + b₂ in place; keeps s = U₁ y + b₁."""
    rows = max(4, BLAS_ALONE // U2.size)
    for block in prange((len(x) + rows - 1) // rows):
        part = slice(block * rows, min((block + 1) * rows, len(x)))
        s_part, x_part = s[part], x[part]
        np.dot(y[part], U1.T, s_part)
        a = np.empty_like(s_part)
        for i in range(len(a)):
            for f in range(len(b1)):
                s_part[i, f] += b1[f]
                a[i, f] = softplus_and_sigmoid(s_part[i, f])[0] - LOG_2
        step = np.dot(a, U2.T)
        for i in range(len(a)):
            for f in range(len(b2)):
                x_part[i, f] += step[i, f] + b2[f]


@njit(parallel=True, **COMPILED)
def update_back(g, U1, U2, s, g_y):
    """The gradient of y in `update`, from that of its result."""
    rows = max(4, BLAS_ALONE // U2.size)
    for block in prange((len(g) + rows - 1) // rows):
        part = slice(block * rows, min((block + 1) * rows, len(g)))
        t, s_part = np.dot(g[part], U2), s[part]
        for i in range(len(t)):
            for f in range(t.shape[1]):
                t[i, f] *= softplus_and_sigmoid(s_part[i, f])[1]
        np.dot(t, U1, g_y[part])


@njit(parallel=True, **COMPILED)
def readout(x, R1, c1, R2, c2, energy, g):
    """The energy of each atom, (N,), and its gradient by x, (N, F)."""
    rows = max(4, BLAS_ALONE // R1.size)
    for block in prange((len(x) + rows - 1) // rows):
        part = slice(block * rows, min((block + 1) * rows, len(x)))
        s = np.dot(x[part], R1.T)
        for i in range(len(s)):
            total = c2[0]
            for h in range(len(c1)):
                a, slope = softplus_and_sigmoid(s[i, h] + c1[h])
                total += R2[0, h] * (a - LOG_2)
                s[i, h] = R2[0, h] * slope
            energy[block * rows + i] = total
        np.dot(s, R1, g[part])


@njit(parallel=True, **COMPILED)
def convolve(x, table, knot, w, first, sender, out):
    """y_i = Σ_e x_j ∘ W(e): (N, M)."""
    F = x.shape[1]
    for i in prange(len(x)):
        y = out[i]
        y[:] = 0
        for e in range(first[i], first[i + 1]):
            w0, w1, w2, w3 = w[e, 0], w[e, 1], w[e, 2], w[e, 3]
            x_j, t, u = x[sender[e]], table[knot[e]], table[knot[e] + 1]
            for f in range(F):
                y[f] += x_j[f] * (w0 * t[f] + w1 * t[F + f] + w2 * t[2 * F + f] + w3 * u[F + f])


@njit(parallel=True, **COMPILED)
def convolve_back(x, g, table, knot, w, dw, first, sender, out, pull):
    """out_i = Σ_e g_j ∘ W(e), (N, M); to pull_e, (E,), comes Σ_f (g_i x_j + g_j x_i) ∘ W'(e).

    The pull is dE/dd of the pair, which both its edges have.
    """
    F = x.shape[1]
    for i in prange(len(x)):
        y, x_i, g_i = out[i], x[i], g[i]
        y[:] = 0
        for e in range(first[i], first[i + 1]):
            w0, w1, w2, w3 = w[e, 0], w[e, 1], w[e, 2], w[e, 3]
            v1, v2, v3 = dw[e, 1], dw[e, 2], dw[e, 3]
            x_j, g_j = x[sender[e]], g[sender[e]]
            t, u = table[knot[e]], table[knot[e] + 1]
            total = x.dtype.type(0)
            for f in range(F):
                W = w0 * t[f] + w1 * t[F + f] + w2 * t[2 * F + f] + w3 * u[F + f]
                dW = v1 * t[F + f] + v2 * t[2 * F + f] + v3 * u[F + f]
                y[f] += g_j[f] * W
                total += (g_i[f] * x_j[f] + g_j[f] * x_i[f]) * dW
            pull[e] += total


@njit(parallel=True, **COMPILED)
def gather(pull, unit, first, forces):
    """F_i = Σ_e pull_e unit_e: (N, 3)."""
    for i in prange(len(forces)):
        force = forces[i]
        force[:] = 0
        for e in range(first[i], first[i + 1]):
            for axis in range(3):
                force[axis] += pull[e] * unit[e, axis]


@njit(**COMPILED)
def energies_and_forces(x, edges, weights, tables):
    """Return the energies of the atoms, (N,), the forces, (N, 3), and the pulls, (E,).

    The embeddings x, (N, F), are overwritten.
    """
    first, sender, _, unit, knot, w, dw = edges
    A, U1, b1, U2, b2, R1, c1, R2, c2 = weights
    (L, M, F), N = A.shape, len(x)
    h, s = np.empty((L, N, M), x.dtype), np.empty((L, N, F), x.dtype)
    y, g = np.empty((N, M), x.dtype), np.empty((N, F), x.dtype)
    for n in range(L):
        dense(x, A[n], h[n], False)
        convolve(h[n], tables[n], knot, w, first, sender, y)
        update(y, U1[n], b1[n], U2[n], b2[n], s[n], x)
    energy, pull = np.empty(N, x.dtype), np.zeros(len(sender), x.dtype)
    readout(x, R1, c1, R2, c2, energy, g)
    g_y = np.empty((N, M), x.dtype)
    for n in range(L - 1, -1, -1):
        update_back(g, U1[n], U2[n], s[n], g_y)
        convolve_back(h[n], g_y, tables[n], knot, w, dw, first, sender, y, pull)
        if n > 0:
            dense(y, np.ascontiguousarray(A[n].T), g, True)
    forces = np.empty((N, 3), x.dtype)
    gather(pull, unit, first, forces)
    return energy, forces, pull
