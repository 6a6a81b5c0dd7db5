"""SchNet [1], as `schnet_helpers` builds it: its sizes.

It has the method `atomic_energies(z, edges)` of every network by taking the lengths of the edges.

[1] Schütt et al., NeurIPS 2017, arXiv:1706.08566.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from molnets.networks.parts import AtomSizes, gamma_of
from molnets.options import option
from schnet_helpers import ElementEmbedding, SchNet


@dataclass(frozen=True)
class Sizes(AtomSizes):
    """The sizes of a SchNet."""

    num_filters: int = option(64, "width of the filters")

    def build(self) -> SchNet:
        """Return a SchNet that looks up a vector for each element."""
        sizes = asdict(self)
        sizes["gamma"] = gamma_of(self.num_gaussians, self.cutoff, self.gamma)
        return SchNet(**sizes, embedding=ElementEmbedding(self.dim_embedding))
