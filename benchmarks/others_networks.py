"""The networks of `benchmarks.others`, each behind one call; packages are imported when built.

Every network is `network(z, R) -> E, F` on copies of one set of atoms; nothing here imports this
project. Where a package takes a graph, it gets one by the distances of all pairs of a molecule.
Samples of any sizes, periodic ones among them, come as `Atoms`, with their edges: `network.of`.

Axes:   B molecules of n atoms each, or B samples of N atoms in all, E directed edges.
Units:  eV and Å outside; inside, energies in the unit of the recipe.
Edges:  index[0] sends, index[1] receives; vectors are pos[index[1]] − pos[index[0]] + shift.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

KCAL_MOL = 0.0433641  # eV
Result = tuple[Tensor, Tensor]


class Recipe(NamedTuple):
    """How a package trains: its optimizer's numbers, its loss, and where they are written."""

    source: str
    batch_size: int
    lr: float
    energy_weight: float  # of the mean square of energies, per atom squared where `per_atom`
    force_weight: float  # of the mean square of the forces' components
    per_atom: bool = False
    last_energy_weight: float | None = None  # in the last fifth of the training
    warmup: int = 0  # steps
    ema_decay: float = 0.0
    clip_norm: float = 0.0
    unit: float = 1.0  # eV


# torchmd-net and ViSNet smooth the energy loss by α, which multiplies its gradient by α.
RECIPES = {
    "mace": Recipe("README of mace-torch 0.3.16", 10, 0.01, 1.0, 100.0, per_atom=True,
                   last_energy_weight=1000.0, ema_decay=0.99, clip_norm=10.0),
    "nequip": Recipe("configs/tutorial.yaml of NequIP", 5, 0.01, 1.0, 1.0, per_atom=True,
                     ema_decay=0.999),
    "tensornet": Recipe("examples/TensorNet-rMD17.yaml of torchmd-net", 8, 1e-3, 0.5 * 0.01, 0.5,
                        warmup=500, clip_norm=40.0, unit=KCAL_MOL),
    "schnetpack-painn": Recipe("experiment=rmd17 of SchNetPack 2.1.1", 10, 1e-3, 0.01, 0.99,
                               ema_decay=0.995, unit=KCAL_MOL),
    "et": Recipe("examples/ET-MD17.yaml of torchmd-net", 8, 1e-3, 0.2 * 0.05, 0.8, warmup=1000,
                 unit=KCAL_MOL),
    "visnet": Recipe("examples/ViSNet-rMD17.yml of ViSNet", 4, 2e-4, 0.05 * 0.05, 0.95,
                     warmup=1000, unit=KCAL_MOL),
}  # fmt: skip

RECIPES["mace-small"] = RECIPES["mace"]._replace(
    source="README of mace-torch 0.3.16, with `--max_L=0`, as in the small model of MACE-MP-0"
)


class Statistics(NamedTuple):
    """What a recipe takes from the training frames, in the recipe's unit of energy."""

    neighbours: float
    energy_std: float
    force_rms: float
    force_rms_of: dict[int, float]  # by atomic number


def edges_within(R: Tensor, cutoff: float, loops: bool = False) -> Tensor:
    """Return the edges of molecules, (B, n, 3), atoms counted through all of them, (2, E)."""
    n = R.shape[1]
    near = (R[:, :, None] - R[:, None]).square().sum(-1) < cutoff**2
    near &= torch.eye(n) == 0 if not loops else near
    b, i, j = near.nonzero().unbind(1)
    return torch.stack([n * b + j, n * b + i])


class Atoms(NamedTuple):
    """Samples as the packages take them."""

    z: Tensor  # (N,)
    pos: Tensor  # (N, 3)
    batch: Tensor  # the sample of each atom, (N,)
    n_atoms: Tensor  # (B,)
    edges: Tensor | None  # (2, E); None where the model searches
    shift: Tensor | None = None  # (E, 3); None for molecules

    def shifts(self) -> Tensor:
        """Return the edges' shifts, 0 for molecules."""
        return self.pos.new_zeros(self.edges.shape[1], 3) if self.shift is None else self.shift


class Network(nn.Module):
    """A package's model with one call for all.

    Args:
        model: the package's.
        cutoff: in Å, of the graph.
        call: (model, atoms) -> energies (B,), forces (N, 3).
        graph: "given", "with loops", or "own" where the model searches.
    """

    def __init__(
        self, model: nn.Module, cutoff: float, call: Callable[..., Result], graph: str = "given"
    ) -> None:
        super().__init__()
        self.model, self.cutoff, self.call, self.graph = model, cutoff, call, graph

    def forward(self, z: Tensor, R: Tensor) -> Result:
        """Return energies, (B,), and forces, (B, n, 3), of atoms z, (n,), at R, (B, n, 3)."""
        (B, n, _), edges = R.shape, None
        if self.graph != "own":
            edges = edges_within(R, self.cutoff, self.graph == "with loops")
        batch = torch.arange(B).repeat_interleave(n)
        pos = R.reshape(-1, 3).clone()
        energy, forces = self.of(Atoms(z.repeat(B), pos, batch, torch.full((B,), n), edges))
        return energy, forces.view(B, n, 3)

    def of(self, atoms: Atoms) -> Result:
        """Return energies, (B,), and forces, (N, 3), of samples."""
        energy, forces = self.call(self.model, atoms)
        return energy.view(-1), forces


def mace(statistics: Statistics, elements: list[int], irreps: str = "128x0e + 128x1o") -> Network:
    """Return MACE with its README's messages and, for the rest, the defaults of its command."""
    import numpy as np
    from mace import modules  # first: it lets torch load the constants of its e3nn
    from e3nn import o3  # isort: skip

    blocks = modules.interaction_classes
    model = modules.ScaleShiftMACE(
        r_max=5.0, num_bessel=8, num_polynomial_cutoff=5, max_ell=3, num_interactions=2,
        interaction_cls=blocks["RealAgnosticResidualInteractionBlock"],
        interaction_cls_first=blocks["RealAgnosticInteractionBlock"],
        num_elements=len(elements), atomic_numbers=elements, atomic_energies=np.zeros(
            (1, len(elements))), hidden_irreps=o3.Irreps(irreps),
        MLP_irreps=o3.Irreps("16x0e"), gate=torch.nn.functional.silu, correlation=3,
        radial_MLP=[64, 64, 64], radial_type="bessel", avg_num_neighbors=statistics.neighbours,
        atomic_inter_scale=statistics.force_rms, atomic_inter_shift=0.0, heads=["Default"],
    )  # fmt: skip
    column = {element: k for k, element in enumerate(elements)}

    def call(model: nn.Module, atoms: Atoms) -> Result:
        B, types = len(atoms.n_atoms), torch.tensor([column[x] for x in atoms.z.tolist()])
        data = {
            "positions": atoms.pos, "edge_index": atoms.edges, "batch": atoms.batch,
            "node_attrs": nn.functional.one_hot(types, len(elements)).to(atoms.pos.dtype),
            "ptr": nn.functional.pad(atoms.n_atoms.cumsum(0), (1, 0)),
            "cell": atoms.pos.new_zeros(3 * B, 3),  # of stresses, and these of nothing else
            "shifts": atoms.shifts(), "unit_shifts": torch.zeros_like(atoms.shifts()),
        }  # fmt: skip
        found = model(data, training=model.training)
        return found["energy"], found["forces"]

    return Network(model, 5.0, call)


def mace_small(statistics: Statistics, elements: list[int]) -> Network:
    """Return MACE whose messages are invariant: 128x0e."""
    return mace(statistics, elements, "128x0e")


def nequip(statistics: Statistics, elements: list[int]) -> Network:
    """Return NequIP as its tutorial's configuration has it: l = 1, 32 features, 4 layers, ZBL."""
    from ase.data import chemical_symbols
    from nequip.model import NequIPGNNModel
    from nequip.utils.global_state import set_global_state

    float64 = torch.get_default_dtype() == torch.float64
    set_global_state()  # its data is float64, and so is torch's default from here on
    names = [chemical_symbols[element] for element in elements]
    model = NequIPGNNModel(
        seed=456, model_dtype="float64" if float64 else "float32", type_names=names, r_max=5.0,
        num_bessels=8, bessel_trainable=False, polynomial_cutoff_p=6, num_layers=4, l_max=1,
        parity=True, num_features=32, radial_mlp_depth=2, radial_mlp_width=64,
        avg_num_neighbors=statistics.neighbours, per_type_energy_shifts=dict.fromkeys(names, 0.0),
        per_type_energy_scales=dict(zip(names, statistics.force_rms_of.values(), strict=True)),
        pair_potential={"_target_": "nequip.nn.pair_potential.ZBL", "units": "metal",
                        "chemical_species": names},
    )  # fmt: skip
    column = {element: k for k, element in enumerate(elements)}

    def call(model: nn.Module, atoms: Atoms) -> Result:
        data = {"pos": atoms.pos.double(), "batch": atoms.batch, "edge_index": atoms.edges,
                "num_atoms": atoms.n_atoms,
                "atom_types": torch.tensor([column[x] for x in atoms.z.tolist()])}  # fmt: skip
        if atoms.shift is not None:  # in multiples of a cell, which is 1 Å long here
            cells = torch.eye(3).double().expand(len(atoms.n_atoms), 3, 3)
            data |= {"cell": cells, "edge_cell_shift": atoms.shift.double()}
        found = model(data)
        return found["total_energy"], found["forces"]

    return Network(model, 5.0, call)


class GivenDistance(nn.Module):
    """Stands in for a package's search: the edges are given; 0 for an atom's distance to itself.

    Packages do not divide the vectors of edges from an atom to itself by their lengths: those to
    an atom's own images, in cells shorter than the cutoff, are of length 1 already.
    """

    edges: Tensor
    shift: Tensor | None = None

    def with_loops(self, atoms: Atoms) -> GivenDistance:
        """Take edges and shifts, and one edge from each atom to itself."""
        own = torch.arange(len(atoms.z)).expand(2, -1)
        self.edges = torch.cat([atoms.edges, own], dim=1)
        self.shift = nn.functional.pad(atoms.shifts(), (0, 0, 0, own.shape[1]))
        return self

    def forward(
        self, pos: Tensor, batch: Tensor, box: None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return edges, (2, E), their lengths, (E,), and vectors, (E, 3)."""
        vector = pos[self.edges[0]] - pos[self.edges[1]]
        vector = vector if self.shift is None else vector - self.shift
        same, length = self.edges[0] == self.edges[1], pos.new_zeros(len(vector))
        other = ~same if self.shift is None else ~same | self.shift.any(dim=1)
        length[other] = vector[other].norm(dim=-1)
        divisor = torch.where(same & other, length, 1.0)  # no 0 / 0, whose gradient is not finite
        return self.edges, length, vector / divisor.unsqueeze(1)


COMMON_OF_TORCHMD = {
    "activation": "silu", "aggr": "add", "atom_filter": -1, "cutoff_lower": 0.0,
    "derivative": True, "embedding_dimension": 128, "max_num_neighbors": 32, "max_z": 100,
    "num_rbf": 32, "output_model": "Scalar", "prior_model": None, "rbf_type": "expnorm",
    "reduce_op": "add", "trainable_rbf": False,
}  # fmt: skip


def torchmd(statistics: Statistics, **own: Any) -> Network:
    """Return a network of torchmd-net, which searches its own graph.

    `static_shapes`, which pads every list to 32 neighbours for CUDA graphs, is off. In cells,
    which its search wants to be twice as wide as the cutoff, it is given the edges.
    """
    from torchmdnet.models.model import create_model

    float64 = torch.get_default_dtype() == torch.float64
    args = COMMON_OF_TORCHMD | own | {"precision": 64 if float64 else 32, "static_shapes": False}
    std = torch.tensor(statistics.energy_std)
    model = create_model(args, mean=torch.zeros_like(std), std=std)

    own_search, given = model.representation_model.distance, GivenDistance()

    def call(model: nn.Module, atoms: Atoms) -> Result:
        model.representation_model.distance = own_search
        if atoms.edges is not None:
            model.representation_model.distance = given.with_loops(atoms)
        return model(atoms.z, atoms.pos, batch=atoms.batch)

    return Network(model, own["cutoff_upper"], call, "own")


def tensornet(statistics: Statistics, elements: list[int]) -> Network:
    """Return TensorNet with 128 channels and 2 layers."""
    return torchmd(statistics, model="tensornet", num_layers=2, cutoff_upper=4.5,
                   equivariance_invariance_group="O(3)")  # fmt: skip


def et(statistics: Statistics, elements: list[int]) -> Network:
    """Return the equivariant transformer with 128 channels, 8 heads and 6 layers."""
    return torchmd(statistics, model="equivariant-transformer", num_layers=6, cutoff_upper=5.0,
                   attn_activation="silu", num_heads=8, distance_influence="both",
                   neighbor_embedding=True)  # fmt: skip


def visnet(statistics: Statistics, elements: list[int]) -> Network:
    """Return ViSNet as PyG has it by default: lmax 1, 128 channels, 8 heads, 6 layers."""
    from torch_geometric.nn.models import ViSNet

    model = ViSNet(std=statistics.energy_std, derivative=True)
    model.representation_model.distance = distance = GivenDistance()

    def call(model: nn.Module, atoms: Atoms) -> Result:
        distance.edges = atoms.edges
        return model(atoms.z, atoms.pos, atoms.batch)

    return Network(model, 5.0, call, "with loops")


def schnetpack_painn(statistics: Statistics, elements: list[int]) -> Network:
    """Return SchNetPack's PaiNN with 128 features, 3 layers and 20 Gaussians."""
    from schnetpack_worker import potential_of_painn, properties  # makes it importable, too

    sizes = {"num_features": 128, "num_blocks": 3, "num_gaussians": 20, "cutoff": 5.0}

    def call(model: nn.Module, atoms: Atoms) -> Result:
        j, i = atoms.edges
        found = model({
            properties.Z: atoms.z, properties.R: atoms.pos, properties.idx_m: atoms.batch,
            properties.n_atoms: atoms.n_atoms, properties.idx_i: i, properties.idx_j: j,
            properties.offsets: -atoms.shifts(),
        })  # fmt: skip
        return found["energy"], found["forces"]

    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)  # SchNetPack makes its Gaussians in no other
    model = potential_of_painn(sizes).to(dtype)
    torch.set_default_dtype(dtype)
    return Network(model, sizes["cutoff"], call)


BUILDERS: dict[str, Callable[[Statistics, list[int]], Network]] = {
    "mace": mace, "nequip": nequip, "tensornet": tensornet, "et": et, "visnet": visnet,
    "mace-small": mace_small, "schnetpack-painn": schnetpack_painn,
}  # fmt: skip


def optimizer_of(name: str, network: Network, recipe: Recipe) -> torch.optim.Optimizer:
    """Return the optimizer of a recipe."""
    if name == "nequip":
        return torch.optim.Adam(network.parameters(), lr=recipe.lr)
    if name not in ("mace", "mace-small"):
        return torch.optim.AdamW(network.parameters(), lr=recipe.lr, weight_decay=0.0)
    decayed, others = [], []
    for key, weight in network.model.named_parameters():
        linear = "linear.weight" in key or "skip_tp_full.weight" in key
        decays = key.startswith("products") or (key.startswith("interactions") and linear)
        (decayed if decays else others).append(weight)
    groups = [{"params": decayed, "weight_decay": 5e-7}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.Adam(groups, lr=recipe.lr, amsgrad=True)
