"""How atoms can be connected, and what a graph says of itself.

connectivity.py   the k nearest, bonds by covalent radii; what they do along a trajectory
body_order.py     what an energy sees where only bonds are edges
spectral.py       Laplacians and the convolutions that come from them
"""

from molnets.graphs.body_order import Sight, along_bonds, chain, sight
from molnets.graphs.connectivity import (
    BondGraph,
    Changes,
    NearestGraph,
    changes,
    energy_jumps,
)
from molnets.graphs.spectral import (
    adjacency,
    chebyshev_convolution,
    chebyshev_polynomials,
    graph_convolution,
    laplacian,
    normalized_laplacian,
)

__all__ = [
    "BondGraph",
    "Changes",
    "NearestGraph",
    "Sight",
    "adjacency",
    "along_bonds",
    "chain",
    "changes",
    "chebyshev_convolution",
    "chebyshev_polynomials",
    "energy_jumps",
    "graph_convolution",
    "laplacian",
    "normalized_laplacian",
    "sight",
]
