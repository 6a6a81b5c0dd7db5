"""Make `painn_schnetpack.npz`: energies and forces of SchNetPack's PaiNN, in float64.

Started by hand, in the environment that `benchmarks/schnetpack.txt` describes:

    python tests/data/painn_schnetpack.py

It imports nothing of this project. The weights are those of `filled` in `tests/networks.py`, given
by a formula: parameter k of the list below has the numbers 0.25 sin(1 + k + 0.37 n), n = 0, 1, …
"""

from __future__ import annotations

import typing
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import torch.utils.data.dataloader as dataloader
from torch import nn

if not hasattr(dataloader, "T_co"):  # SchNetPack 2.1.1 imports it; torch 2.13 has it no more
    dataloader.T_co = typing.TypeVar("T_co", covariant=True)

from schnetpack import properties
from schnetpack.nn import CosineCutoff, GaussianRBF
from schnetpack.representation import PaiNN

F, K, BLOCKS, CUTOFF = 6, 7, 3, 3.0  # Gaussians 0.5 apart: exact in float32 too


def numbers(k: int, *shape: int) -> torch.Tensor:
    """Return the numbers of parameter k."""
    n = torch.arange(int(np.prod(shape)), dtype=torch.float64)
    return 0.25 * torch.sin(1 + k + 0.37 * n).view(*shape)


def split_of(parts: list[torch.Tensor], order: list[int | None]) -> torch.Tensor:
    """Return blocks of F rows in SchNetPack's order; None for one that must not matter."""
    return torch.cat([torch.full_like(parts[0], 7.0) if n is None else parts[n] for n in order])


def network() -> tuple[PaiNN, nn.Sequential]:
    """Return SchNetPack's network and a readout, with our weights in our order."""
    net = PaiNN(
        F, BLOCKS, GaussianRBF(K, CUTOFF), CosineCutoff(CUTOFF), activation=nn.functional.silu
    )
    net, k = net.double(), iter(range(1000))
    state, filters, biases = net.state_dict(), [], []
    embedding = numbers(next(k), 101, F)
    state["embedding.weight"][:101] = embedding[: len(state["embedding.weight"])]
    for block in range(BLOCKS):  # messages
        order, width = ([0, 1, None], 2) if block == 0 else ([0, 1, 2], 3)
        name = f"interactions.{block}.interatomic_context_net"
        state[f"{name}.0.weight"], state[f"{name}.0.bias"] = (
            numbers(next(k), F, F),
            numbers(next(k), F),
        )
        weight, bias = numbers(next(k), width * F, F), numbers(next(k), width * F)
        state[f"{name}.1.weight"] = split_of(list(weight.split(F)), order)
        state[f"{name}.1.bias"] = split_of(list(bias.split(F)), order)
        both = split_of(list(numbers(next(k), width * F, K + 1).split(F)), order)
        filters.append(both[:, :K])
        biases.append(both[:, K])
    state["filter_net.weight"], state["filter_net.bias"] = torch.cat(filters), torch.cat(biases)
    for block in range(BLOCKS):  # updates
        order, width = ([0, None, 1], 2) if block == BLOCKS - 1 else ([0, 2, 1], 3)
        U, V = numbers(next(k), F, F), numbers(next(k), F, F)
        state[f"mixing.{block}.mu_channel_mix.weight"] = torch.cat([V, U])
        name = f"mixing.{block}.intraatomic_context_net"
        state[f"{name}.0.weight"] = numbers(next(k), F, 2 * F)
        state[f"{name}.0.bias"] = numbers(next(k), F)
        weight, bias = numbers(next(k), width * F, F), numbers(next(k), width * F)
        state[f"{name}.1.weight"] = split_of(list(weight.split(F)), order)
        state[f"{name}.1.bias"] = split_of(list(bias.split(F)), order)
    net.load_state_dict(state)
    readout = nn.Sequential(nn.Linear(F, F // 2), nn.SiLU(), nn.Linear(F // 2, 1)).double()
    for parameter in readout.parameters():
        parameter.data = numbers(next(k), *parameter.shape)
    return net, readout


def main() -> None:
    """Write energies of atoms, (n,), and forces, (n, 3), of one molecule."""
    z = torch.tensor([6, 8, 1, 1, 7])
    pos = torch.tensor([[2.0, -1.0, 0.3], [2.9, -0.4, 0.9], [1.3, -1.7, 0.9], [1.6, -0.3, -0.5],
                        [3.1, -2.6, 0.1]], dtype=torch.float64, requires_grad=True)  # fmt: skip
    i, j = torch.where(torch.cdist(pos, pos) < CUTOFF)
    i, j = i[i != j], j[i != j]
    net, readout = network()
    inputs = {properties.Z: z, properties.Rij: pos[j] - pos[i], properties.idx_i: i,
              properties.idx_j: j, properties.n_atoms: torch.tensor([5])}  # fmt: skip
    energy = readout(net(inputs)["scalar_representation"])
    (gradient,) = torch.autograd.grad(energy.sum(), pos)
    np.savez(Path(__file__).with_suffix(".npz"), z=z.numpy(), pos=pos.detach().numpy(),
             energy=energy.detach().numpy()[:, 0], forces=-gradient.numpy(),
             version=version("schnetpack"))  # fmt: skip


if __name__ == "__main__":
    main()
