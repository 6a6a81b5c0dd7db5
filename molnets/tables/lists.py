"""The edges of a batch, as the compiled passes of `molnets.tables.passes` take them.

Axes:   N atoms, B samples, P parts, E edges j -> i that are kept.
Parts:  the atoms are cut into a part for each thread, between samples where that is possible. Every
        edge has its reverse. Inside a part only i < j is kept, and stands for both: the table is
        read once, and no other thread writes to either atom. Edges from part to part go one way.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numba
import numpy as np
import torch
from numba import njit, prange

# A change here is seen by the cache of this file only: no function calls one of another file.
COMPILED = {"cache": True, "fastmath": True, "nogil": True, "error_model": "numpy"}
FEW = 64  # atoms of a sample that are compared with all others
STRIP = 4  # cells along y, so that what the neighbours of an atom hold stays in the cache
CHUNK, MANY = 64, 1024  # atoms and edges that a thread takes at a time
ATOMS_OF_A_PART = 32  # at least: fewer are not worth a thread


class Edges(NamedTuple):
    """Edges sorted by receiver.

    Those of atom i are first[2 i] : first[2 i + 2], up to first[2 i + 1] those for both ways.
    """

    parts: np.ndarray  # where the parts begin and the last one ends, (P + 1,)
    first: np.ndarray  # (2 N + 1,)
    sender: np.ndarray  # j, (E,)
    knot: np.ndarray  # the interval of the table that d falls into, (E,)
    d: np.ndarray  # (E,)
    unit: np.ndarray  # the unit vector from i to j, (3, E)
    w: np.ndarray  # the Hermite basis that goes with S_k, D_k and S_{k+1}, (3, E)
    dw: np.ndarray  # dw/dd, (3, E)


def use_threads_of_torch(num_atoms: int) -> int:
    """Let the loops run on as many threads as torch does, and return their number.

    Few atoms get fewer: a thread without work that is late would only be waited for.
    """
    threads = torch.get_num_threads()
    most = min(threads, numba.config.NUMBA_NUM_THREADS)
    numba.set_num_threads(max(1, min(most, num_atoms // ATOMS_OF_A_PART)))
    if torch.get_num_threads() != threads:  # numba's first start gives all threads to OpenMP
        torch.set_num_threads(threads)
    return threads


@njit(cache=True, nogil=True)  # fast mathematics would take for granted what is asked here
def all_finite(pos):
    """Return whether all positions are finite numbers."""
    for i in range(len(pos)):
        for axis in range(pos.shape[1]):
            if not math.isfinite(pos[i, axis]):
                return False
    return True


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
def cut(start, num_threads):
    """Return where the parts begin, (P + 1,), given where the samples do, (B + 1,)."""
    N = start[-1]
    P = max(1, min(num_threads, N // ATOMS_OF_A_PART))
    parts = np.empty(P + 1, np.int64)
    for p in range(P + 1):
        parts[p] = N * p // P
        sample = np.searchsorted(start, parts[p])  # the first that begins there or after
        for begin in (start[sample - 1] if sample > 0 else 0, start[sample]):
            if 8 * P * abs(begin - N * p // P) <= N:
                parts[p] = begin
    return parts


@njit(**COMPILED)
def row_of(kx, ky, shape):
    """Return the place of a row of cells along z: strip after strip of y, each along x."""
    begin = ky // STRIP * STRIP
    return begin * shape[0] + kx * min(STRIP, shape[1] - begin) + ky - begin


@njit(**COMPILED)
def kx_and_ky_of(row, shape):
    """Return kx and ky of a row of cells."""
    begin = row // (STRIP * shape[0]) * STRIP
    width, rest = min(STRIP, shape[1] - begin), row - begin * shape[0]
    return rest // width, begin + rest % width


@njit(**COMPILED)
def sort_into_cells(pos, start, cutoff):
    """Sort the atoms of each sample into cells at least as wide as the cutoff.

    Returns:
        The order of the atoms, (N,), the cell of each in that order, (N,), where the cells begin,
        (C + 1,), how many a sample has along each axis, (B, 3), and its first one, (B + 1,).
    """
    N, B = len(pos), len(start) - 1
    cell, shape = np.empty(N, np.int64), np.ones((B, 3), np.int64)
    first_cell, k = np.zeros(B + 1, np.int64), np.empty(3, np.int64)
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
            for axis in range(3):
                k[axis] = min(int((pos[i, axis] - low[axis]) / width), shape[b, axis] - 1)
            cell[i] = first_cell[b] + row_of(k[0], k[1], shape[b]) * shape[b, 2] + k[2]
    cell_start, order = sort_edges(cell, first_cell[B])
    return order, cell[order], cell_start, shape, first_cell


@njit(**COMPILED)
def count_within(x, y, z, x_i, y_i, z_i, square):
    """Return how many of the atoms are within range of a point."""
    count = 0
    for n in range(len(x)):
        dx, dy, dz = x[n] - x_i, y[n] - y_i, z[n] - z_i
        count += 1 if dx * dx + dy * dy + dz * dz < square else 0
    return count


@njit(**COMPILED)
def ranges_around(i, b, part, cells, begin, end):
    """Fill the ranges of atoms in the cells around atom i of sample b whose edges to i are kept.

    Returns:
        How many are for both ways, which come first, and how many there are.
    """
    _, cell, cell_start, shape, first_cell = cells
    ny, nz = shape[b, 1], shape[b, 2]
    at = cell[i] - first_cell[b]
    (cx, cy), cz = kx_and_ky_of(at // nz, shape[b]), at % nz
    num = both = 0
    inside, before, after = (i + 1, part[1]), (0, part[0]), (part[1], len(cell))
    for where, (low, high) in enumerate((inside, before, after)):
        for kx in range(max(cx - 1, 0), min(cx + 2, shape[b, 0])):
            for ky in range(max(cy - 1, 0), min(cy + 2, ny)):
                row = first_cell[b] + row_of(kx, ky, shape[b]) * nz
                begin[num] = max(low, cell_start[row + max(cz - 1, 0)])
                end[num] = min(high, cell_start[row + min(cz + 2, nz)])
                num += 1 if begin[num] < end[num] else 0
        both = num if where == 0 else both
    return both, num


@njit(parallel=True, **COMPILED)
def find_near(points, batch, parts, cells, square, first, sender, vector):
    """Find the edges that are kept.

    Called with an empty `sender`, it writes the numbers of those of atom i, for both ways and for
    one, to first[2 i + 1] and first[2 i + 2]. Called with room for them, and `first` the running
    sum, it writes their senders and the vectors to these.
    """
    x, y, z = points[0], points[1], points[2]
    for chunk in prange((len(x) + CHUNK - 1) // CHUNK):
        begin, end = np.empty(28, np.int64), np.empty(28, np.int64)  # 3 × 9, and one to try
        for i in range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(x))):
            p = np.searchsorted(parts, i, side="right")
            both, num = ranges_around(i, batch[i], parts[p - 1 : p + 1], cells, begin, end)
            e, x_i, y_i, z_i = first[2 * i], x[i], y[i], z[i]
            for row in range(num):
                near = slice(begin[row], end[row])
                if len(sender) == 0:
                    way = 2 * i + (1 if row < both else 2)
                    first[way] += count_within(x[near], y[near], z[near], x_i, y_i, z_i, square)
                    continue
                xs, ys, zs = x[near], y[near], z[near]
                for n in range(len(xs)):
                    dx, dy, dz = xs[n] - x_i, ys[n] - y_i, zs[n] - z_i
                    if dx * dx + dy * dy + dz * dz < square:
                        sender[e] = begin[row] + n
                        vector[0, e], vector[1, e], vector[2, e] = dx, dy, dz
                        e += 1


@njit(**COMPILED)
def lengths(x, y, z, senders, dx, dy, dz, i, r2):
    """Return the squared lengths of the edges to atom i, whose offsets are dx, dy and dz."""
    x_i, y_i, z_i = x[i], y[i], z[i]
    for n in range(len(senders)):
        j = senders[n]
        a, b, c = x[j] - x_i + dx[n], y[j] - y_i + dy[n], z[j] - z_i + dz[n]
        r2[n] = a * a + b * b + c * c


@njit(parallel=True, **COMPILED)
def narrow(points, given, square, first, sender, vector):
    """Take those edges of a sorted list that are shorter than the cutoff; as `find_near`."""
    start, senders, offset = given
    x, y, z = points[0], points[1], points[2]
    for chunk in prange((len(x) + CHUNK - 1) // CHUNK):
        lo, hi = chunk * CHUNK, min((chunk + 1) * CHUNK, len(x))
        r2 = np.empty((start[2 * lo + 2 : 2 * hi + 1 : 2] - start[2 * lo : 2 * hi : 2]).max())
        for i in range(lo, hi):
            part, both = slice(start[2 * i], start[2 * i + 2]), start[2 * i + 1] - start[2 * i]
            near, dx, dy, dz = senders[part], offset[0, part], offset[1, part], offset[2, part]
            lengths(x, y, z, near, dx, dy, dz, i, r2)
            if len(sender) == 0:
                for n in range(len(near)):
                    first[2 * i + (1 if n < both else 2)] += 1 if r2[n] < square else 0
                continue
            e = first[2 * i]
            for n in range(len(near)):
                if r2[n] < square:
                    j = near[n]
                    sender[e], vector[0, e] = j, x[j] - x[i] + dx[n]
                    vector[1, e], vector[2, e] = y[j] - y[i] + dy[n], z[j] - z[i] + dz[n]
                    e += 1


@njit(**COMPILED)
def describe(x, y, z, spacing, last, knot, d, w0, w1, w2, dw0, dw1, dw2):
    """Fill the interval, the length and the Hermite basis of edges; make their vectors units.

    With an array of one axis for each, and without threads, the loop is compiled to vectors.
    """
    per_length = 1 / spacing
    for e in range(len(d)):
        dx, dy, dz = np.float64(x[e]), np.float64(y[e]), np.float64(z[e])
        r = math.sqrt(dx * dx + dy * dy + dz * dz)
        k = min(np.int32(r * per_length), last)
        t = r * per_length - k
        s, inverse = 1 - t, 1 / r
        d[e], knot[e] = r, k
        x[e], y[e], z[e] = dx * inverse, dy * inverse, dz * inverse
        w0[e], dw0[e] = spacing * t * s * s, s * (s - 2 * t)
        w1[e], dw1[e] = spacing * t * t * (1 + 2 * s), 6 * t * s
        w2[e], dw2[e] = -spacing * t * t * s, t * (t - 2 * s)


@njit(parallel=True, **COMPILED)
def describe_all(vector, spacing, num_intervals, knot, d, w, dw):
    """Do so for all edges."""
    last = np.int32(num_intervals - 1)
    for chunk in prange((len(d) + MANY - 1) // MANY):
        part = slice(chunk * MANY, min((chunk + 1) * MANY, len(d)))
        describe(vector[0, part], vector[1, part], vector[2, part], spacing, last, knot[part],
                 d[part], w[0, part], w[1, part], w[2, part], dw[0, part], dw[1, part],
                 dw[2, part])  # fmt: skip


@njit(**COMPILED)
def room_of(first, whole, real):
    """Return where the edges go: sender, knot, d, unit, w and dw, in the room if it is enough."""
    E = first[-1]
    if len(whole) < 2 * E or len(real) < 10 * E:
        whole, real = np.empty(2 * E, np.uint32), np.empty(10 * E, real.dtype)
    d, unit, w, dw = real[:E], real[E : 4 * E], real[4 * E : 7 * E], real[7 * E : 10 * E]
    threes = unit.reshape(3, E), w.reshape(3, E), dw.reshape(3, E)
    return whole[:E], whole[E : 2 * E], d, *threes


@njit(**COMPILED)
def columns(pos, order):
    """Return the coordinates of the atoms in an order, (3, N), float64."""
    points = np.empty((3, len(pos)))
    for n in range(len(pos)):
        for axis in range(3):
            points[axis, n] = pos[order[n], axis]
    return points


@njit(**COMPILED)
def find_graph(pos, batch, start, cutoff, spacing, num_intervals, num_threads, whole, real):
    """Find the edges between atoms closer than the cutoff, without periodic images.

    Returns:
        The order of the atoms, sample after sample and cell after cell, (N,), the edges, which
        number them so, and whether no two atoms of a sample are in one place.
    """
    cells, square, parts = sort_into_cells(pos, start, cutoff), cutoff**2, cut(start, num_threads)
    first, points = np.zeros(2 * len(pos) + 1, np.int64), columns(pos, cells[0])
    find_near(points, batch, parts, cells, square, first, whole[:0], real[:0].reshape(3, 0))
    first = np.cumsum(first)
    sender, knot, d, unit, w, dw = room_of(first, whole, real)
    if len(d) > 0:
        find_near(points, batch, parts, cells, square, first, sender, unit)
    describe_all(unit, spacing, num_intervals, knot, d, w, dw)
    edges = Edges(parts, first, sender, knot, d, unit, w, dw)
    return cells[0], edges, len(d) == 0 or d.min() > 0


@njit(**COMPILED)
def sort_graph(receiver, sender, offset, parts):
    """Return those edges of a list that are kept, by receiver: first, senders, offsets (3, E).

    The list is symmetric: with every edge it has its reverse.
    """
    N, way = parts[-1], np.empty(len(sender), np.int64)
    part = np.searchsorted(parts, np.arange(N), side="right")
    for e in range(len(sender)):
        i, j = receiver[e], sender[e]
        one_way = part[i] != part[j] or i == j  # an atom and its own image: both are in the list
        way[e] = 2 * i + 1 if one_way else 2 * i if i < j else 2 * N
    first, order = sort_edges(way, 2 * N + 1)
    first = first[: 2 * N + 1]
    senders, offsets = np.empty(first[-1], np.uint32), np.empty((3, first[-1]), offset.dtype)
    for e in range(first[-1]):
        senders[e] = sender[order[e]]
        for axis in range(3):
            offsets[axis, e] = offset[order[e], axis]
    return first, senders, offsets


@njit(**COMPILED)
def narrow_graph(pos, order, parts, given, cutoff, spacing, num_intervals, whole, real):
    """Return those edges of a sorted list that are in range, and whether all have a length.

    The list numbers the atoms in the given order; an edge leads from r_j + offset to r_i.
    """
    first, square = np.zeros(2 * len(pos) + 1, np.int64), cutoff * cutoff
    points = columns(pos, order)
    narrow(points, given, square, first, whole[:0], real[:0].reshape(3, 0))
    first = np.cumsum(first)
    sender, knot, d, unit, w, dw = room_of(first, whole, real)
    if len(d) > 0:
        narrow(points, given, square, first, sender, unit)
    describe_all(unit, spacing, num_intervals, knot, d, w, dw)
    return Edges(parts, first, sender, knot, d, unit, w, dw), len(d) == 0 or d.min() > 0


@njit(**COMPILED)
def describe_graph(first, sender, vector, parts, spacing, num_intervals):
    """Return the edges of a sorted list, (E,), whose vectors, (3, E), are known, and turn units."""
    E = len(sender)
    knot, d = np.empty(E, np.uint32), np.empty(E, vector.dtype)
    w, dw = np.empty((3, E), vector.dtype), np.empty((3, E), vector.dtype)
    describe_all(vector, spacing, num_intervals, knot, d, w, dw)
    return Edges(parts, first, sender, knot, d, vector, w, dw)
