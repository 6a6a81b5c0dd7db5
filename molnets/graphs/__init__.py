"""How atoms can be connected, and what a graph says of itself.

connectivity.py   the k nearest, bonds by covalent radii; what they do along a trajectory
spectral.py       Laplacians and the convolutions that come from them
"""

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
    "adjacency",
    "changes",
    "chebyshev_convolution",
    "chebyshev_polynomials",
    "energy_jumps",
    "graph_convolution",
    "laplacian",
    "normalized_laplacian",
]
