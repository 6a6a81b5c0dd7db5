"""What gives the energies and forces of a training step, as functions of the weights."""

from __future__ import annotations

from torch import Tensor, nn

from molnets.checks import expect
from molnets.edges import Edges
from molnets.potential import Potential
from molnets.tables import SplineForces, UnknownPartError, say_why, tables_apply
from molnets.training.errors import dtype_and_device

ENGINES = ("spline", "plain", "compiled")


class PlainForces(nn.Module):
    """Energies and forces of frames whose edges are known: a training step without the search.

    The forces are part of the forward pass, so that it can be compiled and run in parallel.

    Args:
        potential: the potential.
    """

    def __init__(self, potential: Potential) -> None:
        super().__init__()
        self.potential = potential

    def forward(self, z: Tensor, batch: Tensor, edges: Edges) -> tuple[Tensor, Tensor]:
        """Return energies (B, 1) and forces (N, 3) from z (N, 1), batch (N,) and the edges."""
        return self.potential.energy_and_forces_of(z, batch, edges, create_graph=True)


def make_engine(name: str, potential: Potential) -> nn.Module:
    """Return what gives the energies and forces of a training step.

    "plain" is the network itself, "compiled" the same, compiled by torch, and "spline" takes its
    filters from splines: the fastest on a CPU, and plain where there are none.

    Raises:
        ValueError: for another name.
    """
    expect(name in ENGINES, "engine", f"one of {ENGINES}", repr(name))
    if name == "spline":
        dtype, device = dtype_and_device(potential)
        if tables_apply(device, dtype):
            try:
                return SplineForces(potential)
            except UnknownPartError as error:
                say_why(str(error))
    plain = PlainForces(potential)
    if name == "compiled":
        plain.compile()
    return plain
