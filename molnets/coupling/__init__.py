"""Engines that others wrote, driven by the models of this package.

ase.py   a calculator for ASE
"""
