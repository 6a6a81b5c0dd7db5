"""A network that is changed in any way gives what the plain one gives, or an error."""

from __future__ import annotations

import copy
import types

import pytest
import torch
import torch.nn.functional as F
from contract import assert_equal
from networks import ON_SPLINES, cluster, painn, schnet, tensornet
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch_geometric.nn.models.schnet import CFConv, InteractionBlock, ShiftedSoftplus

from molnets.coupling.ase import ModelCalculator
from molnets.edges import Graph
from molnets.networks.painn import Message
from molnets.networks.tensornet import Interaction, Mix
from molnets.potential import Potential, energy_and_forces, energy_forces_virial
from molnets.tables import SplineForces, tabulated
from molnets.training import Dataset, factors_of, make_steps
from schnet_helpers import ElementEmbedding, RadialExpansion


class OwnBlock(InteractionBlock):
    def forward(self, *arguments: Tensor) -> Tensor:
        return 2 * super().forward(*arguments)


class OwnConvolution(CFConv):
    def message(self, x_j: Tensor, W: Tensor) -> Tensor:
        return 0.5 * x_j * W


class OwnExpansion(RadialExpansion):
    def expand(self, d: Tensor) -> Tensor:
        return super().expand(0.9 * d)


class OwnMessage(Message):
    def forward(self, *arguments: Tensor) -> tuple[Tensor, Tensor]:
        s, v = super().forward(*arguments)
        return s, 0.5 * v


class OwnInteraction(Interaction):
    def message(self, *arguments) -> Tensor:
        return 0.5 * super().message(*arguments)


class OwnMix(Mix):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return super().forward(0.5 * x)


class OwnEmbedding(ElementEmbedding):
    def forward(self, z: Tensor) -> Tensor:
        return super().forward(z).flip(1)


class Half(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x


def set_class(part: str, kind: type):
    def change(model: nn.Module) -> None:
        model.get_submodule(part).__class__ = kind

    return change


def replace(part: str, make):
    def change(model: nn.Module) -> None:
        parent, _, name = part.rpartition(".")
        module = make(model.get_submodule(part))
        module.to(next(model.parameters()).dtype)
        if name.isdigit():
            model.get_submodule(parent)[int(name)] = module
        else:
            setattr(model.get_submodule(parent), name, module)

    return change


def attribute(part: str, name: str, value: object):
    def change(model: nn.Module) -> None:
        setattr(model.get_submodule(part), name, value)

    return change


def fill(part: str, name: str, value: float):
    def change(model: nn.Module) -> None:
        getattr(model.get_submodule(part), name).fill_(value)

    return change


def hook(part: str, kind: str = "register_forward_hook"):
    def change(model: nn.Module) -> None:
        halve = (lambda m, x, y: 0.5 * y) if kind.endswith("forward_hook") else None
        getattr(model.get_submodule(part), kind)(halve or (lambda m, x: (0.5 * x[0], *x[1:])))

    return change


def own_forward(part: str):
    def change(model: nn.Module) -> None:
        module = model.get_submodule(part)
        old = module.forward
        module.forward = types.MethodType(lambda self, *x: 0.5 * old(*x), module)

    return change


def parametrized(part: str):
    def change(model: nn.Module) -> None:
        parametrize.register_parametrization(model.get_submodule(part), "weight", Half())

    return change


def with_bias(old: nn.Linear) -> nn.Linear:
    return nn.Linear(old.in_features, old.out_features)


def alike(old: nn.Linear) -> nn.Linear:
    return nn.Linear(old.in_features, old.out_features, old.bias is not None)


def wider(model: nn.Module) -> None:
    model.readout[0], model.readout[2] = nn.Linear(16, 40).double(), nn.Linear(40, 1).double()


def gaussians(model: nn.Module) -> None:
    model.radial_expansion.mu += 0.1


def tied(model: nn.Module) -> None:
    model.interactions[1] = model.interactions[0]


def no_block(model: nn.Module) -> None:
    del model.interactions[1]


def no_blocks(model: nn.Module) -> None:
    model.interactions = nn.ModuleList()


FIRST = "interactions.0"
SCHNET = {
    "another activation": replace(f"{FIRST}.act", lambda old: nn.Tanh()),
    "activation in place": replace(f"{FIRST}.act", lambda old: nn.Softplus()),
    "activation of the filters": replace(f"{FIRST}.mlp.1", lambda old: nn.SiLU()),
    "activation of the readout": replace("readout.1", lambda old: nn.SiLU()),
    "shift of the activation": attribute(f"{FIRST}.act", "shift", 0.5),
    "layer of another kind": replace(f"{FIRST}.lin", lambda old: nn.Bilinear(1, 1, 1)),
    "a new layer": replace(f"{FIRST}.lin", alike),
    "a layer without bias": replace(f"{FIRST}.lin", lambda old: nn.Linear(16, 16, bias=False)),
    "a layer with bias": replace(f"{FIRST}.conv.lin1", with_bias),
    "mlp but not conv.nn": replace(f"{FIRST}.mlp", copy.deepcopy),
    "conv.nn but not mlp": replace(f"{FIRST}.conv.nn",
                                   lambda old: nn.Sequential(nn.Linear(10, 12), nn.Tanh(),
                                                             nn.Linear(12, 12))),
    "dropout": replace(f"{FIRST}.lin", lambda old: nn.Sequential(old, nn.Dropout(0.0), Half())),
    "embedding of equal weights": set_class("embedding", OwnEmbedding),
    "another embedding": replace("embedding", lambda old: nn.Linear(1, 16)),
    "embedding in a sequence": replace("embedding", lambda old: nn.Sequential(old, Half())),
    "class of a block": set_class(FIRST, OwnBlock),
    "class of a convolution": set_class(f"{FIRST}.conv", OwnConvolution),
    "class of the expansion": set_class("radial_expansion", OwnExpansion),
    "aggregation": attribute(f"{FIRST}.conv", "aggr", "mean"),
    "cutoff of a block": attribute(f"{FIRST}.conv", "cutoff", 2.0),
    "cutoff of the network": attribute("", "cutoff", 2.0),
    "gamma": fill("radial_expansion", "gamma", 2.0),
    "mu": gaussians,
    "hook": hook(f"{FIRST}.lin"),
    "hook of a block": hook(FIRST),
    "hook before": hook("readout.2", "register_forward_pre_hook"),
    "forward of an instance": own_forward(f"{FIRST}.lin"),
    "message of an instance": attribute(f"{FIRST}.conv", "message",
                                        lambda x_j, W: 0.5 * x_j * W),
    "parametrization": parametrized(f"{FIRST}.lin"),
    "a wider readout": wider,
    "one block twice": tied,
    "a block less": no_block,
    "no blocks": no_blocks,
}  # fmt: skip
PAINN = {
    "another activation": replace("messages.0.phi.1", lambda old: nn.Tanh()),
    "activation of an update": replace("updates.1.a.1", lambda old: ShiftedSoftplus()),
    "a new layer": replace("updates.0.U", alike),
    "a layer with bias": replace("updates.0.V", with_bias),
    "filters with bias": replace("messages.1.filters", with_bias),
    "class of a message": set_class("messages.1", OwnMessage),
    "class of the expansion": set_class("radial_expansion", OwnExpansion),
    "embedding of equal weights": set_class("embedding", OwnEmbedding),
    "cutoff": attribute("", "cutoff", 2.0),
    "gamma": fill("radial_expansion", "gamma", 2.0),
    "mu": gaussians,
    "hook": hook("updates.0.a"),
    "forward of an instance": own_forward("updates.0.V"),
    "parametrization": parametrized("messages.1.phi.0"),
    "dropout": replace("updates.0.a", lambda old: nn.Sequential(*old, nn.Dropout(0.0))),
}
TENSORNET = {
    "another activation": replace("first.phi.1", lambda old: nn.Tanh()),
    "activation of the readout": replace("readout.1", lambda old: ShiftedSoftplus()),
    "a new layer": replace("blocks.0.before.layers.1", alike),
    "a layer with bias": replace("blocks.1.after.layers.0", with_bias),
    "p without bias": replace("first.p", lambda old: nn.Linear(12, 12, bias=False)),
    "q with bias": replace("first.q", with_bias),
    "filters with bias": replace("blocks.0.filters", with_bias),
    "norm with weights": replace("norm", lambda old: nn.LayerNorm(36)),
    "norm that is given a weight": attribute(
        "norm", "weight", nn.Parameter(torch.linspace(0.5, 2, 36).double())),
    "norm that is given a bias": attribute(
        "first.norm", "bias", nn.Parameter(torch.linspace(-1, 1, 12).double())),
    "q is given a bias": attribute(
        "first.q", "bias", nn.Parameter(torch.linspace(-1, 1, 12).double())),
    "norm of another eps": attribute("first.norm", "eps", 1e-2),
    "norm of another width": attribute("norm", "normalized_shape", (12,)),
    "no norm": replace("first.norm", lambda old: nn.Identity()),
    "class of a block": set_class("blocks.0", OwnInteraction),
    "class of the first mix": set_class("first.mix", OwnMix),
    "class of the expansion": set_class("radial_expansion", OwnExpansion),
    "embedding of equal weights": set_class("embedding", OwnEmbedding),
    "cutoff": attribute("", "cutoff", 2.0),
    "mu": gaussians,
    "hook": hook("first.phi"),
    "forward of an instance": own_forward("norm"),
    "message of an instance": attribute("blocks.1", "message", lambda y, index, e: 0.5 * sum(y)),
    "around of an instance": attribute("first", "around",
                                       lambda z, *_: z[:, None, None] * torch.eye(3)[:, :, None]),
    "parametrization": parametrized("blocks.1.after.layers.2"),
    "a block less": lambda model: model.blocks.__delitem__(1),
    "no blocks": lambda model: setattr(model, "blocks", nn.ModuleList()),
    "a fourth layer": lambda model: model.first.mix.layers.append(nn.Identity()),
}  # fmt: skip
CHANGES = {schnet: SCHNET, painn: PAINN, tensornet: TENSORNET}
CASES = [(make, name) for make, changes in CHANGES.items() for name in changes]


@pytest.mark.parametrize(("make", "name"), CASES)
def test_changed_network(make, name):
    """Changed before it is wrapped, and after: potential, calculator and training."""
    change = CHANGES[make][name]
    atoms = z, pos, batch = cluster()
    original, network = Potential(make()), make()
    early = tabulated(Potential(network))
    before = energy_and_forces(early, *atoms)
    assert_equal(before[0], original(*atoms).detach(), atol=1e-8)
    change(network)
    early.network._modules.update(network._modules)  # all parts are shared but the first ones
    early.network.cutoff = network.cutoff
    plain = Potential(network, graph=Graph(2.5))
    try:
        expected = plain.energy_forces_virial(*atoms)
    except (RuntimeError, TypeError, ValueError):
        expected = None  # the plain network does not work either
    for model in (early, tabulated(plain)):
        if expected is None:
            with pytest.raises((RuntimeError, TypeError, ValueError)):
                model.energy_forces_virial(*atoms)
            continue
        for a, b in zip(model.energy_forces_virial(*atoms), expected, strict=True):
            assert_equal(a, b, atol=2e-8 * float(b.abs().max()))
        assert_equal(model(*atoms).detach(), expected[0], atol=1e-8)
    if expected is None:
        return
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    assert_same_steps(plain, (z, pos, batch), weights)


def assert_same_steps(potential: Potential, atoms: tuple[Tensor, ...], weights: list) -> None:
    """A step on splines gives the loss and the gradients of a plain one."""
    z, pos, batch = atoms
    n_atoms, found = batch.bincount(), []
    data = Dataset(z.flatten(), pos, torch.zeros(len(n_atoms)), torch.zeros(len(z), 3), n_atoms)
    for name in ("plain", "spline"):
        step = make_steps(name, potential, data, factors_of(data, 1.0, 1.0, 0.0))
        gradient = torch.zeros(sum(w.numel() for w in weights), dtype=pos.dtype)
        loss = step(torch.arange(len(data)), weights, gradient)
        found.append((loss, gradient.split([w.numel() for w in weights])))
    (expected, right), (loss, gradients) = found
    assert loss == pytest.approx(expected, rel=1e-3)
    for a, b in zip(right, gradients, strict=True):
        assert float(F.l1_loss(b, a)) <= 1e-3 * float(a.abs().mean()) + 1e-9


@pytest.mark.parametrize("make", ON_SPLINES.values())
def test_a_network_with_energies_of_its_own_is_not_the_one_that_is_known(make):
    atoms, network = cluster(), make()
    before, old = Potential(network).energy_forces_virial(*atoms)[0], network.atomic_energies
    network.atomic_energies = lambda z, edges: 0.5 * old(z, edges)
    found = tabulated(Potential(network, graph=Graph(2.5))).energy_forces_virial(*atoms)
    assert_equal(found[0], 0.5 * before, atol=1e-8)


@pytest.mark.parametrize("make", ON_SPLINES.values())
def test_engine_of_training_sees_what_is_changed_later(make):
    z, pos, batch = cluster()
    potential = Potential(make())
    engine, edges = SplineForces(potential), Graph(2.5).edges(pos, batch)
    for change in (gaussians, fill("radial_expansion", "gamma", 2.0),
                   replace("readout.2", alike)):  # fmt: skip
        change(potential.network)
        expected = energy_forces_virial(potential.network, z, batch, edges)
        for a, b in zip(engine(z, batch, edges), expected, strict=False):
            assert_equal(a.detach(), b, atol=1e-3 * float(b.abs().max()))


@pytest.mark.parametrize("make", ON_SPLINES.values())
def test_copies_and_tables_of_tables_do_not_share_what_they_remember(make):
    atoms, network = cluster(), make()
    first = tabulated(Potential(network))
    energy_and_forces(first, *atoms)
    others = [copy.copy(first), tabulated(first), copy.deepcopy(first)]
    others[0].network = copy.copy(first.network)
    with torch.no_grad():
        for weight in network.parameters():
            weight *= 1.1
    expected = Potential(network)(*atoms).detach()
    for model in (others[0], first, others[1]):
        assert_equal(model(*atoms).detach(), expected, atol=1e-7)
    assert (others[2](*atoms) - expected).abs().min() > 1e-3  # a copy of its own weights


@pytest.mark.parametrize("make", ON_SPLINES.values())
def test_tables_made_in_inference_mode_serve_outside_of_it(make):
    atoms, model = cluster(), tabulated(Potential(make()))
    expected = Potential(make())(*atoms).detach()
    with torch.inference_mode():
        inside = energy_and_forces(model, *atoms)
    assert_equal(inside[0], expected, atol=1e-8)
    model(*atoms).sum().backward()
    assert all(w.grad is not None for w in model.parameters())
    assert_equal(ModelCalculator(model).model(*atoms).detach(), expected, atol=1e-8)


@pytest.mark.parametrize("make", ON_SPLINES.values())
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e38])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_that_are_no_numbers_give_none(make, value, dtype):
    """NaN in, NaN out; what overflows in the plain network overflows here."""
    z, pos, batch = cluster(dtype)
    names = [name for name, _ in make(dtype).named_parameters()]
    for name in names:
        network = make(dtype)
        network.get_parameter(name).data.view(-1)[0] = value
        plain = energy_and_forces(Potential(network), z, pos, batch)
        found = energy_and_forces(tabulated(Potential(network)), z, pos, batch)
        for a, b in zip(found, plain, strict=True):
            assert not (a.isfinite() & ~b.isfinite()).any(), (name, a, b)
