"""Molecular dynamics of many replicas at once, and what it says.

force_fields.py   positions -> energies and forces: Lennard-Jones, and any model, periodic or not
integrators.py    the state, its start, and single steps: velocity Verlet, Langevin
runner.py         many steps, their frames, and what is left of an explosion
trajectory.py     extended XYZ files that survive a killed run
analysis.py       distributions with error bars, comparison, drift, errors
figures.py        all of it drawn; imported by its own name, since it needs matplotlib
"""

from molnets.dynamics.analysis import (
    Comparison,
    Distribution,
    Drift,
    compare,
    distribution,
    distribution_distance,
    energy_drift,
    kinetic_energy_density,
    mean_absolute_error,
    pair_distance_distribution,
    pair_distances,
    residuals,
    root_mean_square_error,
)
from molnets.dynamics.force_fields import ForceFn, lennard_jones, model_force_fn
from molnets.dynamics.integrators import (
    State,
    kinetic_energy,
    langevin_baoab,
    maxwell_boltzmann,
    remove_drift,
    remove_rotation,
    start,
    temperature_of,
    velocity_verlet,
)
from molnets.dynamics.runner import ExplosionError, Frames, run
from molnets.dynamics.trajectory import ExtxyzWriter, read_trajectory

__all__ = [
    "Comparison",
    "Distribution",
    "Drift",
    "ExplosionError",
    "ExtxyzWriter",
    "ForceFn",
    "Frames",
    "State",
    "compare",
    "distribution",
    "distribution_distance",
    "energy_drift",
    "kinetic_energy",
    "kinetic_energy_density",
    "langevin_baoab",
    "lennard_jones",
    "maxwell_boltzmann",
    "mean_absolute_error",
    "model_force_fn",
    "pair_distance_distribution",
    "pair_distances",
    "read_trajectory",
    "remove_drift",
    "remove_rotation",
    "residuals",
    "root_mean_square_error",
    "run",
    "start",
    "temperature_of",
    "velocity_verlet",
]
