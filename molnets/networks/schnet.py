"""SchNet [1], as `schnet_helpers` builds it: its sizes.

It has the method `atomic_energies(z, edges)` of every network by taking the lengths of the edges.

[1] Schütt et al., NeurIPS 2017, arXiv:1706.08566.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from molnets.networks.parts import gamma_of
from molnets.options import option
from schnet_helpers import ElementEmbedding, SchNet


@dataclass(frozen=True)
class Sizes:
    """The sizes of a SchNet; `gamma` 0 stands for Gaussians as wide as they are apart."""

    dim_embedding: int = option(64, "features of an atom")
    num_filters: int = option(64, "width of the filters")
    num_interactions: int = option(3, "interaction blocks")
    num_gaussians: int = option(25, "Gaussians of the radial expansion")
    cutoff: float = option(5.0, "cutoff, in the data's length unit")
    gamma: float = option(0.0, "of the Gaussians, 1 / length**2; 0: as wide as they are apart")

    def build(self) -> SchNet:
        """Return a SchNet that looks up a vector for each element."""
        sizes = asdict(self)
        sizes["gamma"] = gamma_of(self.num_gaussians, self.cutoff, self.gamma)
        return SchNet(**sizes, embedding=ElementEmbedding(self.dim_embedding))
