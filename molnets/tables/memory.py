"""Memory as compiled code wants it: where its numbers lie, and whether others hold the same."""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import carray, njit, prange, types
from numba.extending import intrinsic

# A change here is seen by the cache of this file only: no function calls one of another file.
COMPILED = {"cache": True, "fastmath": True, "nogil": True, "error_model": "numpy"}
PIECE = 2**14  # numbers that a thread compares at a time
ENOUGH_ROOM = 2**18  # numbers, for which compiled code asks for new memory in every call


@intrinsic
def _pointer(typing, address):
    """Return an address as a pointer to numbers of 32 bits."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], ir.IntType(32).as_pointer())

    return types.CPointer(types.int32)(address), generate


@njit(parallel=True, **COMPILED)
def same_bits(addresses, begins, seen):
    """Return whether arrays hold, one after the other, the numbers of `seen`, (n,), int32.

    Args:
        addresses: of the arrays, (A,).
        begins: where each begins in `seen`, and n, (A + 1,).
        seen: as above.
    """
    num = (len(seen) + PIECE - 1) // PIECE
    other = np.zeros(num, np.int32)
    for task in prange(num):
        at, end, different = task * PIECE, min((task + 1) * PIECE, len(seen)), np.int32(0)
        while at < end:
            array = np.searchsorted(begins, at, side="right") - 1
            stop = min(end, begins[array + 1])
            size, skip = stop - at, at - begins[array]
            now, then = carray(_pointer(addresses[array] + 4 * skip), (size,)), seen[at:stop]
            for n in range(size):
                different |= now[n] ^ then[n]
            at = stop
        other[task] = different
    return not other.any()


def no_room(like: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return empty room: for the numbers of a pass, and for whole numbers and numbers of edges."""
    return np.empty(0, like.dtype), np.empty(0, np.uint32), np.empty(0, like.dtype)


def in_large_pages(arrays: list[np.ndarray]) -> np.ndarray:
    """Return the arrays as one that begins with a line of the cache, in large pages if it is large.

    Edges read the tables here and there: with pages of 4 KB the processor would look for addresses.
    """
    size, line = sum(x.size for x in arrays), 64 // arrays[0].itemsize
    memory = np.empty(size + line, arrays[0].dtype)
    at = -(memory.ctypes.data // memory.itemsize) % line
    return np.stack(arrays, out=memory[at : at + size].reshape(len(arrays), *arrays[0].shape))


def grown(room: tuple[np.ndarray, ...], size: int, num_edges: int) -> tuple[np.ndarray, ...]:
    """Return room for a call like the last one, if it is so large that new memory takes time.

    The arrays are numpy's, which come in large pages, unlike those of compiled code.
    """
    needed = size, 2 * num_edges, 10 * num_edges
    if size < ENOUGH_ROOM or all(len(x) >= n for x, n in zip(room, needed, strict=True)):
        return room
    return tuple(np.empty(int(1.1 * n), x.dtype) for x, n in zip(room, needed, strict=True))
