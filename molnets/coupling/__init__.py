"""Engines that others wrote, driven by the models of this package.

driven.py     a model made ready once, for all that follow: units, elements, arrays
ase.py        a calculator for ASE
ipi.py        a client of i-PI
openmm.py     a force for OpenMM
torch_sim.py  a model for torch-sim
"""
