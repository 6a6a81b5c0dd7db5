"""Engines that others wrote, driven by the models of this package.

driven.py  a model made ready once, for all that follow: units, elements, arrays
ase.py     a calculator for ASE
openmm.py  a force for OpenMM
"""
