"""What a tabulated model has made of its weights, and whether that still belongs to them."""

from __future__ import annotations

import sys
import threading
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from molnets.checks import expect
from molnets.tables.library import library
from molnets.tables.native import NativeNetwork, SplineMaker, Work
from molnets.tables.splines import fitted
from molnets.tables.structure import Structure, UnknownPartError, Watch, describe

MIN_INTERVALS, MAX_INTERVALS = 32, 2**15
TOLERANCES = {torch.float32: 5e-7, torch.float64: 1e-10}


class Atoms(NamedTuple):
    """The atoms of a batch, and what follows from them and the weights alone."""

    z: Tensor
    batch: Tensor
    network: NativeNetwork
    x: Tensor  # embeddings, (N, F)
    start: Tensor  # the first atom of each sample, and N, (B + 1,)


class Engine:
    """What a tabulated model has made of its weights; several threads may ask for it."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.lock = model, threading.RLock()
        self.watch: Watch | None = None
        self.unknown: str | None = None  # what the engine does not know
        self.network: NativeNetwork | None = None
        self.tolerance = model.tolerance
        self.bundled: tuple[object, Tensor | None] = None, None  # what stands for which weights
        self.atoms: Atoms | None = None
        self.list: tuple[object, ...] = ()  # a list of edges, and what it was made of
        self.free: list[Work] = []

    def knows(self) -> bool:
        """Return whether the engine computes what the model does; if not, say so once."""
        watch = self.watch
        if watch is None or not watch.same_structure():
            with self.lock:
                self._look()
        return self.unknown is None

    def _look(self) -> None:
        before, self.network, self.unknown = self.unknown, None, None
        watch = Watch(self.model)
        try:
            describe(self.model)
        except (UnknownPartError, AttributeError) as error:
            self.unknown = str(error)
            if self.unknown != before:
                say_why(self.unknown)
        self.watch = watch

    def current(self) -> NativeNetwork:
        """Return what belongs to the weights as they are."""
        if self.watch is None:
            self.knows()
        network, lib = self.network, library()
        same = network is not None and self.tolerance == self.model.tolerance
        if same and self.watch.same_weights(lib):
            return network
        with self.lock:
            other = self.network  # of another thread that was here first
            if other not in (network, None) and self.watch.same_weights(lib):
                return other
            self.network, self.tolerance = None, self.model.tolerance  # should the rest fail
            structure = describe(self.model)
            self.watch.remember()
            self.network = self._made_of(structure)
            return self.network

    def _made_of(self, structure: Structure) -> NativeNetwork:
        dtypes = {x.dtype for x in self.watch.tensors()}
        expect(len(dtypes) == 1, "model", "weights of one dtype", dtypes, TypeError)
        (dtype,) = dtypes
        tolerance = self.model.tolerance or TOLERANCES[dtype]
        with torch.no_grad(), torch.inference_mode(False):
            found = fitted(partial(_splines, structure), tolerance, MIN_INTERVALS, MAX_INTERVALS)
        expected = f"one that {MAX_INTERVALS} intervals can keep"
        expect(found is not None, "tolerance", expected, tolerance)
        splines = torch.cat([c.flatten() for c in found[0]]).to(dtype)
        if not all(w.isfinite().all() for w in structure.filter_weights):
            splines = torch.full_like(splines, torch.nan)  # an activation may have hidden them
        return NativeNetwork(structure, splines, found[1])

    def work(self, network: NativeNetwork) -> Work:
        """Return memory that no other call uses."""
        try:
            work = self.free.pop()
        except IndexError:
            return Work(network.dtype)
        return work if work.precision == network.precision else Work(network.dtype)


def say_why(why: str) -> None:
    """Say in one line why there are no splines."""
    print(f"No splines of filters ({why}): the plain network is used.", file=sys.stderr)


def _splines(structure: Structure, num_intervals: int) -> list[Tensor]:
    """Return the coefficients of each block's filters, (K + 5, channels M), float64."""
    maker = SplineMaker(structure, num_intervals, torch.float64)
    return maker.by_block(maker(structure.filter_weights))
