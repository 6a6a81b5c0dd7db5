"""Engines that others wrote, driven by the models of this package.

driven.py     a model made ready once, for all that follow: units, elements, arrays
ase.py        a calculator for ASE
ipi.py        a client of i-PI
lammps.py     LAMMPS on any number of processes
domains.py    a process's part of a system, for LAMMPS: two ways to its energies and forces
halo.py       atoms of other processes, and the exchange of what they hold
openmm.py     a force for OpenMM
torch_sim.py  a model for torch-sim
"""
