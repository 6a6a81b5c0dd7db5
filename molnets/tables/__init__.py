"""The engine: networks whose filters depend on distance alone, as splines, compiled.

model.py      SchNet, PaiNN and TensorNet on splines: energies, forces, virials
energy.py     their energy as torch sees it
training.py   energies, forces and virials that losses are made of
steps.py      a training step in one compiled call
update.py     the optimizer's step in one
domain.py     one process's part of a system that several share
state.py      what a model has made of its weights
splines.py    filters as splines, made of the weights
structure.py  which networks the engine knows, part by part
native.py     the engine's objects as Python has them
library.py    the engine's library, and how it comes about
engine/       the library: one C++ program of small files

Why C++: numba's loops for SchNet took 1.5 to 2.1 times as long on one thread (milliseconds, other
work beside both: 13 atoms 0.138 and 0.065, 64 × 13 atoms 1.07 and 0.70, 8,000 atoms in bulk 77 and
50), had to be written once for each file that called them, were compiled for a minute and a half,
and died in forked processes. What made the difference is not the compiler but what it is told:
64 columns of an atom stay in registers while its edges pass by (16 at a time: 72 ms for the passes
of 8,000 atoms, 32: 58, 64: 48); sums across a register by halves, not in turn, which had taken half
of the way back; splines of degree 5, which need 384 intervals where cubic ones needed 2048. The
plain networks are the fallback where there is no compiler.

What limits it: of SchNet on 8,000 atoms in bulk (one thread, by perf), sums over neighbours take
about 28 % forward and 36 % back, dense layers 26 %, the search 8 %. An edge reads eight registers
for seven multiply-adds of one register's width: splines of 64 intervals, which stay in the nearest
cache, would save 3 % against 384, two partial sums side by side 1 to 2 %.

What is named here is all that other rooms use.
"""

from molnets.tables.domain import Domain, DomainPasses
from molnets.tables.library import compiler_version, prepare
from molnets.tables.model import (
    SplinePaiNN,
    SplineSchNet,
    SplineTensorNet,
    tables_apply,
    tabulated,
)
from molnets.tables.state import say_why
from molnets.tables.steps import Frames, SplineSteps
from molnets.tables.structure import UnknownPartError
from molnets.tables.training import SplineForces
from molnets.tables.update import SplineUpdate

__all__ = [
    "Domain",
    "DomainPasses",
    "Frames",
    "SplineForces",
    "SplinePaiNN",
    "SplineSchNet",
    "SplineSteps",
    "SplineTensorNet",
    "SplineUpdate",
    "UnknownPartError",
    "compiler_version",
    "prepare",
    "say_why",
    "tables_apply",
    "tabulated",
]
