"""A training step on splines in one compiled call: from frames to the gradient of their loss.

It is what `SplineForces`, a loss of squares and torch's way back give, without what torch does
around the passes: for molecules that takes as long as the passes.

Axes:   T frames of a data set, N atoms and E directed edges j -> i of all frames.
Units:  those of the model.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from operator import is_
from typing import NamedTuple

import torch
from torch import Tensor, nn

from molnets.checks import expect
from molnets.potential import NUM_ELEMENTS, Potential
from molnets.tables.library import library
from molnets.tables.native import PRECISIONS, Native, NativeNetwork
from molnets.tables.structure import Structure
from molnets.tables.training import SplineForces

SAME_PLACE, NOT_SYMMETRIC = -1.0, -2.0  # as in step.h


class Frames(NamedTuple):
    """The frames of a data set, one after the other, and how much each counts in the loss.

    Integers are int64, numbers float64.
    """

    z: Tensor  # (N,)
    num_atoms: Tensor  # (T,)
    index: Tensor  # of the edges, atoms counted by frame, (2, E)
    vector: Tensor  # (E, 3)
    num_edges: Tensor  # (T,)
    energies: Tensor  # (T,)
    forces: Tensor  # (N, 3)
    virials: Tensor | None  # (T, 3, 3)
    factors: Tensor  # of the squares of energies, of forces and of virials, (T, 3)


def _checked(frames: Frames) -> Frames:
    """Return frames whose arrays fit together."""
    T, N, E = len(frames.num_atoms), len(frames.z), len(frames.vector)
    shapes = (N,), (T,), (2, E), (E, 3), (T,), (T,), (N, 3), (T, 3, 3), (T, 3)
    for name, x, shape in zip(Frames._fields, frames, shapes, strict=True):
        whole = name in ("z", "num_atoms", "index", "num_edges")
        dtype = torch.int64 if whole else torch.float64
        if x is not None:
            got = x.dtype, tuple(x.shape)
            expect(got == (dtype, shape) and x.is_cpu, name, f"{dtype} {shape} on the CPU", got)
    expect(int(frames.num_atoms.sum()) == N, "num_atoms", f"{N} in all", frames.num_atoms.tolist())
    expect(int(frames.num_edges.sum()) == E, "num_edges", f"{E} in all", frames.num_edges.tolist())
    return frames


class _Frames(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in (
        "z", "num_atoms", "first_atom", "num_edges", "first_edge", "senders", "receivers",
        "vectors", "energies", "forces", "virials", "factors", "element_energies", "scale",
    )] + [("cutoff", ctypes.c_double)]  # fmt: skip


class _Tensors(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in (
        "of_passes", "of_filters", "of_embedding", "is_dense"
    )] + [("sizes", ctypes.c_void_p)]  # fmt: skip


class SplineSteps:
    """The loss of some frames and its gradient, for one training.

    L = 1/B Σ_b [a_b (E_b − E*_b)² + c_b Σ_i |F_i − F*_i|² + s_b |Ξ_b − Ξ*_b|²]

    with the factors a, c and s of `Frames`, and Ξ = ∂E/∂ε for a strain ε.

    Args:
        potential: the potential; a network that the engine knows is inside.
        frames: the frames, with edges within the network's cutoff.

    Raises:
        UnknownPartError: if the engine does not know the network.
    """

    def __init__(self, potential: Potential, frames: Frames) -> None:
        self.engine, self.frames = SplineForces(potential), _checked(frames)
        self._lock = threading.Lock()
        self._made_of: tuple = ()
        self._refresh()

    def __call__(self, chosen: Tensor, weights: Sequence[Tensor], gradient: Tensor) -> float:
        """Return the loss of the chosen frames, (B,), and write its gradient to `gradient`.

        A weight that is not among `weights` is as if it were constant.

        Args:
            chosen: indices of frames, int64.
            weights: those that the gradient is by, each of the network's.
            gradient: the gradients by them, one after the other, of their dtype, (P,).

        Raises:
            IndexError: for frames that are not there.
            ValueError: for a gradient of another size, or edges that are no cutoff's.
        """
        size, last = sum(w.numel() for w in weights), len(self.frames.num_atoms) - 1
        got = gradient.dtype, tuple(gradient.shape)
        with self._lock:
            self._refresh()
            ok = got == (self.engine.dtype, (size,)) and gradient.is_contiguous()
            expect(ok, "gradient", f"{self.engine.dtype} ({size},)", got)
            chosen = chosen.to(torch.int64).contiguous()
            low, high = (int(x) for x in chosen.aminmax())
            ok = chosen.ndim == 1 and low >= 0 and high <= last
            expect(ok, "chosen", f"frames from 0 to {last}", chosen.tolist(), IndexError)
            given = self._tensors
            expect(all(w.is_contiguous() for w in given), "weights", "contiguous ones", "others")
            pointers = (ctypes.c_void_p * len(given))(*[w.data_ptr() for w in given])
            ctypes.memset(gradient.data_ptr(), 0, gradient.nbytes)
            loss = self._take_step(
                self._step.pointer, self._network.pointer, pointers,
                self._places(weights, gradient), chosen.data_ptr(), len(chosen),
                torch.get_num_threads(),
            )  # fmt: skip
        expect(loss != SAME_PLACE, "frames", "edges longer than 0", "two atoms in one place")
        expect(loss != NOT_SYMMETRIC, "frames", "with each edge j -> i its reverse", "others")
        return loss

    def _places(self, weights: Sequence[Tensor], gradient: Tensor) -> ctypes.Array:
        """Return where the gradient by each of the engine's tensors begins, or null."""
        size, at, places = gradient.element_size(), gradient.data_ptr(), {}
        for weight in weights:
            places[id(weight)], at = at, at + size * weight.numel()
        found = [places.get(id(w)) for w in self._tensors]
        return (ctypes.c_void_p * len(found))(*found)

    def _refresh(self) -> None:
        """Make anew what does not belong to the network and the units as they are."""
        engine, potential = self.engine, self.engine.potential
        engine.refresh()
        now = engine.maker, potential.scale, potential.element_energies
        if len(self._made_of) == len(now) and all(map(is_, now, self._made_of)):
            return
        structure, dtype, embedding = engine.structure, engine.dtype, engine.structure.embedding
        self._tensors, self._made_of = structure.all_weights(), ()
        dtypes = {w.dtype for w in self._tensors}
        expect(dtypes == {dtype}, "potential", "weights of one dtype", dtypes, TypeError)
        rows = NUM_ELEMENTS if type(embedding) is nn.Linear else embedding.num_embeddings
        z = self.frames.z
        expect(z.min() >= 0 and z.max() < rows, "z", f"numbers from 0 to {rows - 1}", z.unique())
        splines = engine.maker(structure.filter_weights)
        self._network = NativeNetwork(structure, splines, engine.num_intervals)
        self._step, precision = self._native_step(structure), PRECISIONS[dtype]
        self._take_step = getattr(library(), f"take_step_{precision}")
        self._made_of = now

    def _native_step(self, structure: Structure) -> Native:
        potential, frames = self.engine.potential, self.frames
        first = [x.cumsum(0) - x for x in (frames.num_atoms, frames.num_edges)]
        arrays = [frames.z, frames.num_atoms, first[0], frames.num_edges, first[1], *frames.index,
                  frames.vector, frames.energies, frames.forces, frames.virials, frames.factors,
                  potential.element_energies, potential.scale]  # fmt: skip
        arrays = [x if x is None else x.contiguous() for x in arrays]
        pointers = [None if x is None else x.data_ptr() for x in arrays]
        groups = structure.weights, structure.filter_weights, [*structure.embedding.parameters()]
        sizes = torch.tensor([w.numel() for group in groups for w in group])
        dense = type(structure.embedding) is nn.Linear
        tensors = _Tensors(*map(len, groups), dense, sizes.data_ptr())
        self._kept = arrays, sizes  # as long as the engine reads them
        name, frames = f"step_{PRECISIONS[self.engine.dtype]}", _Frames(*pointers, structure.cutoff)
        make, maker = getattr(library(), name), self.engine.maker
        return Native(make(ctypes.byref(frames), ctypes.byref(tensors), maker.pointer),
                      f"free_{name}")  # fmt: skip
