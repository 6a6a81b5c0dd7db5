"""The engine: networks whose filters depend on distance alone, as splines, compiled.

model.py      SchNet and PaiNN on splines: energies, forces, virials
energy.py     their energy as torch sees it
training.py   a training step on splines
splines.py    filters as splines, made of the weights
structure.py  which networks the engine knows, part by part
native.py     the engine's objects as Python has them
library.py    the engine's library, and how it comes about
engine/       the library: one C++ program of small files

What is named here is all that other rooms use.
"""

from molnets.tables.library import compiler_version, prepare
from molnets.tables.model import SplinePaiNN, SplineSchNet, say_why, tables_apply, tabulated
from molnets.tables.structure import UnknownPartError
from molnets.tables.training import SplineForces

__all__ = ["SplineForces", "SplinePaiNN", "SplineSchNet", "UnknownPartError",
           "compiler_version", "prepare", "say_why", "tables_apply", "tabulated"]  # fmt: skip
