"""What the engine knows to compute: networks whose every part is the one that it was written for.

`describe` looks at all parts of a network, once; `Watch` sees, at every call, whether anything
could have changed since: a part, its class, a hook, a method, the cutoff, or a weight.
"""

from __future__ import annotations

import ctypes
import math
from itertools import chain, repeat
from operator import getitem, is_
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.modules.module as torch_module
from torch import Tensor, nn
from torch_geometric.nn.models.schnet import CFConv, InteractionBlock, ShiftedSoftplus

from molnets.networks.painn import Message, PaiNN, Update
from molnets.networks.tensornet import Embedding, Interaction, Mix, TensorNet
from schnet_helpers import ElementEmbedding, RadialExpansion, SchNet

SCHNET, PAINN, TENSORNET = 0, 1, 2  # as in engine.cpp
SHIFT = ShiftedSoftplus().shift  # log(2) in single precision
NORM_EPS = 1e-5  # as in rooms.h
OWN_METHODS = {"forward", "__call__", "message", "propagate", "aggregate", "update", "expand",
               "around", "atomic_energies"}  # fmt: skip
ATTRIBUTES = ("cutoff", "aggr", "flow", "shift", "eps", "normalized_shape", "dim")
OF_ALL_MODULES = [
    torch_module._global_forward_hooks,
    torch_module._global_forward_pre_hooks,
    torch_module._global_backward_hooks,
    torch_module._global_backward_pre_hooks,
]


class UnknownPartError(TypeError):
    """The engine does not know a network, and the message says what of it."""


class Structure(NamedTuple):
    """A network in the engine's terms.

    Its weights are all tensors that results depend on, but for those of the embedding: first those
    that the engine takes, in its order, then those of the filters.
    """

    kind: int
    sizes: tuple[int, int, int, int]  # blocks, features, filters, width of the readout
    channels: list[int]  # rows of filters in each block
    weights: list[Tensor]  # the engine's
    filter_weights: list[Tensor]
    expansion: RadialExpansion
    embedding: nn.Module
    cutoff: float

    def all_weights(self) -> list[Tensor]:
        """Return the engine's weights, those of the filters, and those of the embedding."""
        return [*self.weights, *self.filter_weights, *self.embedding.parameters()]

    def radial(self, d: Tensor) -> tuple[Tensor, Tensor]:
        """Return Gaussians, (n, Gaussians), and the cutoff function, (n, 1), smooth beyond r_c."""
        gamma, mu = self.expansion.gamma.double(), self.expansion.mu.double()
        d = d.unsqueeze(1)
        return torch.exp(-gamma * (d - mu) ** 2), 0.5 * (torch.cos(math.pi / self.cutoff * d) + 1)


def describe(model: nn.Module) -> Structure:
    """Return a network in the engine's terms.

    Raises:
        UnknownPartError: if any part of it is not the one that the engine was written for.
    """
    kind = getattr(type(model), "plain", type(model))  # a subclass could compute anything
    known = {SchNet: _schnet, PaiNN: _painn, TensorNet: _tensornet}
    if kind not in known:
        raise UnknownPartError(f"the network is a {type(model).__name__}")
    structure = known[kind](model)
    for name, module in model.named_modules():
        own = OWN_METHODS & module.__dict__.keys()
        _expect(not own, f"{name or 'the network'} has a {', '.join(own)} of its own")
    _expect(not any(_hooks(list(model.modules()))), "it has hooks")
    tensors = (*structure.weights, *structure.filter_weights)
    _expect(all(type(w) in (nn.Parameter, Tensor) for w in tensors), "weights of another class")
    return structure


def _schnet(model: SchNet) -> Structure:
    weights, filter_weights = [], []
    for name, block in model.interactions.named_children():
        _expect_type(block, InteractionBlock, f"interactions.{name}")
        conv, filters = block.conv, block.conv.nn
        _expect_type(conv, CFConv, f"interactions.{name}.conv")
        _expect(filters is block.mlp, f"interactions.{name}: mlp and conv.nn are not the same")
        _expect((conv.aggr, conv.flow, conv.cutoff) == ("add", "source_to_target", model.cutoff),
                f"interactions.{name}.conv has another aggregation, flow or cutoff")  # fmt: skip
        _expect_type(block.act, ShiftedSoftplus, f"interactions.{name}.act")
        first, second = _two_layers(filters, ShiftedSoftplus, f"interactions.{name}.mlp")
        for part, layer in (("conv.lin1", conv.lin1), ("conv.lin2", conv.lin2), ("lin", block.lin)):
            _expect_type(layer, nn.Linear, f"interactions.{name}.{part}")
        _expect(conv.lin1.bias is None, f"interactions.{name}.conv.lin1 has a bias")
        weights += [conv.lin1.weight, *_both(conv.lin2), *_both(block.lin)]
        filter_weights += [*_both(first), *_both(second)]
    ends = _two_layers(model.readout, ShiftedSoftplus, "readout")
    weights += [w for layer in ends for w in _both(layer)]
    for module in model.modules():
        if type(module) is ShiftedSoftplus:
            _expect(module.shift == SHIFT, "a shifted softplus of another shift")
    L, (M, F) = len(model.interactions), weights[0].shape
    _expect(L > 0, "it has no blocks")
    sizes = (L, F, M, ends[0].out_features)
    kinds = [(M, F), (F, M), (F,), (F, F), (F,)] * L
    return _structure(SCHNET, sizes, [1] * L, weights, filter_weights, model, kinds, F)


def _painn(model: PaiNN) -> Structure:
    weights, filter_weights = [], []
    F, L = model.readout[0].in_features, len(model.messages)
    kinds, channels = [], [2] + [3] * (L - 1)
    for n, (message, update) in enumerate(zip(model.messages, model.updates, strict=True)):
        _expect_type(message, Message, f"messages.{n}")
        _expect_type(update, Update, f"updates.{n}")
        phi = _two_layers(message.phi, nn.SiLU, f"messages.{n}.phi")
        mix = _two_layers(update.a, nn.SiLU, f"updates.{n}.a")
        for part, layer in (("U", update.U), ("V", update.V), ("filters", message.filters)):
            _expect_type(layer, nn.Linear, f"{part} of block {n}")
            _expect(layer.bias is None, f"{part} of block {n} has a bias")
        weights += [*_both(phi[0]), *_both(phi[1]), update.U.weight, update.V.weight,
                    *_both(mix[0]), *_both(mix[1])]  # fmt: skip
        filter_weights.append(message.filters.weight)
        wide, out = channels[n] * F, (2 if n == L - 1 else 3) * F
        kinds += [
            (F, F),
            (F,),
            (wide, F),
            (wide,),
            (F, F),
            (F, F),
            (F, 2 * F),
            (F,),
            (out, F),
            (out,),
        ]
    ends = _two_layers(model.readout, nn.SiLU, "readout")
    weights += [w for layer in ends for w in _both(layer)]
    sizes = (L, F, F, ends[0].out_features)
    return _structure(PAINN, sizes, channels, weights, filter_weights, model, kinds, F)


def _tensornet(model: TensorNet) -> Structure:
    first, blocks, F = model.first, list(model.blocks), model.first.mix.layers[0].in_features
    _expect_type(first, Embedding, "first")
    for name, norm, width in (("first.norm", first.norm, F), ("norm", model.norm, 3 * F)):
        _expect_type(norm, nn.LayerNorm, name)
        same = norm.normalized_shape == (width,) and norm.eps == NORM_EPS
        weighted = norm.weight is not None or norm.bias is not None  # whatever its flag says
        _expect(same and not weighted, f"{name} is {norm}, with weights: {weighted}")
    for name, layer, bias in (("p", first.p, True), ("q", first.q, False)):
        _expect_type(layer, nn.Linear, f"first.{name}")
        _expect((layer.bias is not None) == bias, f"first.{name} has another bias")
    phi = _two_layers(first.phi, nn.SiLU, "first.phi")
    weights = [*_both(first.p), first.q.weight, *_both(phi[0]), *_both(phi[1])]
    weights += _layers_of(first.mix, "first.mix")
    for n, block in enumerate(blocks):
        _expect_type(block, Interaction, f"blocks.{n}")
        weights += _layers_of(block.before, f"blocks.{n}.before")
        weights += _layers_of(block.after, f"blocks.{n}.after")
    filters = [part.filters for part in (first, *blocks)]
    for n, layer in enumerate(filters):
        _expect_type(layer, nn.Linear, f"filters {n}")
        _expect(layer.bias is None, f"filters {n} have a bias")
    ends = _two_layers(model.readout, nn.SiLU, "readout")
    weights += [w for layer in ends for w in _both(layer)]
    kinds = [(F, F), (F,), (F, F), (F, F), (F,), (3 * F, F), (3 * F,)]
    kinds += [(F, F)] * (3 + 6 * len(blocks))
    sizes = (1 + len(blocks), F, F, ends[0].out_features)
    filter_weights = [layer.weight for layer in filters]
    channels = [3] * sizes[0]
    return _structure(TENSORNET, sizes, channels, weights, filter_weights, model, kinds, 3 * F)


def _layers_of(mix: Mix, name: str) -> list[Tensor]:
    _expect_type(mix, Mix, name)
    layers = list(mix.layers)
    for layer in layers:
        _expect_type(layer, nn.Linear, f"{name}.layers")
        _expect(layer.bias is None, f"{name}.layers has a bias")
    _expect(len(layers) == 3, f"{name} has {len(layers)} layers")
    return [layer.weight for layer in layers]


def _structure(kind, sizes, channels, weights, filter_weights, model, kinds, read_out) -> Structure:
    """Return a structure whose shapes and remaining parts are checked; `read_out` numbers are."""
    _expect_type(model.radial_expansion, RadialExpansion, "radial_expansion")
    H = sizes[-1]
    shapes = [tuple(w.shape) for w in weights]
    expected = [*kinds, (H, read_out), (H,), (1, H), (1,)]
    _expect(shapes == expected, f"layers of shapes {shapes} where {expected} are known")
    G, (M, F) = len(model.radial_expansion.mu), (sizes[2], sizes[1])
    shapes = [tuple(w.shape) for w in filter_weights]
    expected = [(M, G), (M,), (M, M), (M,)] * sizes[0]
    if kind != SCHNET:
        expected = [(rows * F, G + 1) for rows in channels]
    _expect(shapes == expected, f"filters of shapes {shapes} where {expected} are known")
    known = type(model.embedding) in (nn.Linear, ElementEmbedding)
    _expect(known, f"embedding is a {type(model.embedding).__name__}")
    return Structure(kind, sizes, channels, weights, filter_weights, model.radial_expansion,
                     model.embedding, model.cutoff)  # fmt: skip


def embedding_gradients(embedding: nn.Module, z: Tensor, of_x: Tensor) -> list[Tensor]:
    """Return the gradients by the embedding's parameters from those by its vectors, (N, F).

    Args:
        embedding: that of a structure, a dense layer or a vector for each element.
        z: the numbers that it was given, (N, 1), like its weights.
        of_x: (N, F).
    """
    if type(embedding) is nn.Linear:
        of_bias = [of_x.sum(dim=0)] if embedding.bias is not None else []
        return [of_x.T @ z, *of_bias]
    return [torch.zeros_like(embedding.weight).index_add_(0, z[:, 0].long(), of_x)]


def _both(layer: nn.Linear) -> tuple[Tensor, Tensor]:
    _expect(layer.bias is not None, "it has a layer without bias")
    return layer.weight, layer.bias


def _two_layers(parts: nn.Module, activation: type, name: str) -> tuple[nn.Linear, nn.Linear]:
    """Return the dense layers of dense - activation - dense."""
    kinds = [type(part) for part in parts.children()]
    ok = type(parts) is nn.Sequential and kinds == [nn.Linear, activation, nn.Linear]
    _expect(ok, f"{name} is {type(parts).__name__}({', '.join(k.__name__ for k in kinds)})")
    first, _, second = parts.children()
    return first, second


def _expect_type(part: nn.Module, kind: type, name: str) -> None:
    _expect(type(part) is kind, f"{name} is a {type(part).__name__}")


def _expect(ok: bool, what: str) -> None:
    if not ok:
        raise UnknownPartError(what)


def _hooks(modules: list[nn.Module]) -> list[dict]:
    """Return where hooks would stand that change what modules compute."""
    own = [hooks for module in modules for name, hooks in module.__dict__.items()
           if "hooks" in name and "state_dict" not in name and isinstance(hooks, dict)]  # fmt: skip
    return OF_ALL_MODULES + own


class Watch:
    """Whether a network is still what it was when it was described.

    Args:
        model: the network.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model, modules = model, list(model.modules())
        self._modules, self._hooks = modules, _hooks(modules)
        self._children = [module._modules for module in modules]
        self._parameters = [module._parameters for module in modules if module._parameters]
        self._buffers = [module._buffers for module in modules if module._buffers]
        self._dicts = [module.__dict__ for module in modules]
        plain = [(d, name) for d in self._dicts for name in ATTRIBUTES if name in d]
        self._plain = [d for d, _ in plain], [name for _, name in plain]
        absent = [(d, name) for d in self._parameters for name, x in d.items() if x is None]
        self._absent = [d for d, _ in absent], [name for _, name in absent]
        self._state = self._now()
        self._memory = _Memory([], None, np.empty(0, np.int64), np.empty(0, np.uint8))

    def _now(self) -> tuple[list | bool, ...]:
        """Return what must stay as it is; modules are compared by identity.

        It is asked for in every call: `map` and `chain` take a third of the time of loops.
        """
        return (
            [*chain.from_iterable(map(dict.values, self._children))],
            [*map(type, self._modules)],
            [*map(len, self._dicts)],
            [*map(getitem, *self._plain)],
            all(map(is_, map(dict.get, *self._absent), repeat(None))),
            any(self._hooks),
        )

    def same_structure(self) -> bool:
        """Return whether no part is another one, or could compute something else."""
        try:
            return self._now() == self._state
        except KeyError:  # an attribute is gone
            return False

    def tensors(self) -> list[Tensor]:
        """Return all weights and buffers."""
        groups = map(dict.values, chain(self._parameters, self._buffers))
        return [x for x in chain.from_iterable(groups) if x is not None]

    def same_weights(self, library: ctypes.CDLL) -> bool:
        """Return whether all numbers are those of the last `remember`, bit by bit."""
        memory = self._memory  # at once: another thread may remember others
        tensors = self.tensors()
        if len(tensors) != len(memory.tensors) or not all(map(is_, tensors, memory.tensors)):
            return False
        if not all(map(Tensor.is_contiguous, tensors)):
            return False
        if any(x.dtype is not memory.dtype for x in tensors):
            return False
        return bool(library.same(memory.pointers(tensors), *memory.places, len(tensors)))

    @torch.no_grad()
    def remember(self) -> None:
        """Take the weights as they are for those of `same_weights`."""
        tensors = self.tensors()
        sizes = np.array([x.numel() * x.element_size() for x in tensors], np.int64)
        copies = [x.detach().contiguous().view(-1).numpy().view(np.uint8) for x in tensors]
        self._memory = _Memory(tensors, tensors[0].dtype, sizes, np.concatenate(copies))


class _Memory:
    """Weights as they were: which ones, their dtype, how many bytes each has, and all bytes."""

    def __init__(
        self, tensors: list[Tensor], dtype: torch.dtype | None, sizes: np.ndarray, seen: np.ndarray
    ) -> None:
        self.tensors, self.dtype, self._kept = tensors, dtype, (sizes, seen)
        self.places = sizes.ctypes.data, seen.ctypes.data
        self._pointers = ctypes.c_void_p * len(tensors)

    def pointers(self, tensors: list[Tensor]) -> ctypes.Array:
        """Return where the numbers of tensors are now."""
        return self._pointers(*map(Tensor.data_ptr, tensors))
