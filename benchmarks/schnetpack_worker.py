"""SchNetPack's side of `benchmarks.peers`: runs in an environment of its own, is asked by lines.

It imports nothing of this project. The system comes as a file, with the weights of PyG's SchNet.
"""

from __future__ import annotations

import json
import sys
import time
import typing
from pathlib import Path

import torch
import torch.utils.data.dataloader as dataloader

if not hasattr(dataloader, "T_co"):  # SchNetPack 2.1.1 imports it; torch 2.13 has it no more
    dataloader.T_co = typing.TypeVar("T_co", covariant=True)

import schnetpack
from schnetpack import properties
from schnetpack.atomistic import Atomwise, Forces, PairwiseDistances
from schnetpack.model import NeuralNetworkPotential
from schnetpack.nn import CosineCutoff, GaussianRBF
from schnetpack.nn.activations import shifted_softplus
from schnetpack.representation import PaiNN, SchNet

RENAMED = {
    "conv.lin1": "in2f", "mlp.0": "filter_network.0", "mlp.2": "filter_network.1",
    "conv.lin2": "f2out.0", "lin": "f2out.1",
}  # fmt: skip


def potential(case: dict, weights: dict[str, torch.Tensor]) -> NeuralNetworkPotential:
    """Return SchNetPack's SchNet with energies and forces, with these weights."""
    F, cutoff = case["num_features"], case["cutoff"]
    net = SchNet(F, case["num_blocks"], GaussianRBF(case["num_gaussians"], cutoff),
                 CosineCutoff(cutoff))  # fmt: skip
    energy = Atomwise(F, output_key="energy", activation=shifted_softplus)
    net.embedding.load_state_dict({"weight": weights["embedding.weight"]})
    for number, block in enumerate(net.interactions):
        for theirs, ours in RENAMED.items():
            prefix = f"interactions.{number}.{theirs}."
            layer = {k.removeprefix(prefix): x for k, x in weights.items() if k.startswith(prefix)}
            block.get_submodule(ours).load_state_dict(layer)
    for number, name in enumerate(("lin1", "lin2")):
        layer = {part: weights[f"{name}.{part}"] for part in ("weight", "bias")}
        energy.outnet[number].load_state_dict(layer)
    forces = Forces(calc_forces=True, energy_key="energy", force_key="forces")
    return NeuralNetworkPotential(net, [PairwiseDistances()], [energy, forces])


def potential_of_painn(case: dict) -> NeuralNetworkPotential:
    """Return SchNetPack's PaiNN with energies and forces, of the case's sizes."""
    F, cutoff = case["num_features"], case["cutoff"]
    net = PaiNN(F, case["num_blocks"], GaussianRBF(case["num_gaussians"], cutoff),
                CosineCutoff(cutoff))  # fmt: skip
    forces = Forces(calc_forces=True, energy_key="energy", force_key="forces")
    return NeuralNetworkPotential(
        net, [PairwiseDistances()], [Atomwise(F, output_key="energy"), forces]
    )


def memory(name: str) -> float:
    """Return MB of this process, now or at most, of Linux; `peers` has the same for itself."""
    if name == "VmRSS":
        Path("/proc/self/clear_refs").write_text("5")  # forget the highest so far
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def main() -> None:
    """Load the system, then answer what is asked."""
    torch.set_num_threads(int(sys.argv[2]))
    given = torch.load(sys.argv[1])
    batch, (sender, receiver) = given["batch"], given["edges"]
    if given["network"] == "SchNet":
        model = potential(given["case"], given["weights"])
    else:
        model = potential_of_painn(given["case"])
    n_atoms = batch.bincount()
    inputs = {
        properties.Z: given["z"], properties.idx_m: batch, properties.n_atoms: n_atoms,
        properties.idx_i: receiver, properties.idx_j: sender,
        properties.offsets: torch.zeros(len(sender), 3),
    }  # fmt: skip

    def evaluate() -> dict[str, torch.Tensor]:
        return model({**inputs, properties.R: given["pos"].clone()})

    def step() -> None:
        found = evaluate()
        energy = (found["energy"].view(-1, 1) - given["energy"]).square().mean()
        squares = (found["forces"] - given["forces"]).square().sum(dim=1)
        loss = 0.01 * energy + (squares / n_atoms[batch]).sum() / len(n_atoms)
        loss.backward()

    print(json.dumps({"version": schnetpack.__version__}), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] == "forces":
            answer = {"forces": evaluate()["forces"].tolist()}
        elif command["do"] == "memory":
            model.eval()
            before = memory("VmRSS")
            evaluate()
            answer = {"mb": memory("VmHWM") - before}
        else:
            model.train(command["do"] == "training")  # forces keep their graph in training only
            call, times = (step if command["do"] == "training" else evaluate), []
            while not times or sum(times) < command["seconds"]:
                begin = time.perf_counter()
                call()
                times.append(time.perf_counter() - begin)
            answer = {"times": times}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
