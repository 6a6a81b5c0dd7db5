"""What several test files share: the searches of both graphs, and float64 as the default."""

from __future__ import annotations

import pytest
import torch

import molnets.edges
import schnet_helpers

torch.set_num_threads(1)  # small tensors: more threads only wait for each other


@pytest.fixture(params=["torch_cluster", "torch"])
def search(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test once with torch_cluster's k-d tree, once with the comparison of all pairs."""
    if request.param == "torch":
        monkeypatch.setattr(schnet_helpers, "radius_graph", None)
    elif schnet_helpers.radius_graph is None:
        pytest.skip("torch_cluster cannot be imported here")
    return request.param


@pytest.fixture(params=["pairs", "pieces", "boxes"])
def edge_search(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test with all pairs compared at once, in small pieces, and with vesin's boxes."""
    few = 0 if request.param == "boxes" else 10**12
    monkeypatch.setattr(molnets.edges, "FEW_PAIRS", few)
    if request.param == "pieces":
        monkeypatch.setattr(molnets.edges, "MANY_PAIRS", 100)
    return request.param


@pytest.fixture
def float64():
    """Make float64 the default dtype of one test."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the notebooks first: they are the longest file, and the other worker has the rest."""
    items.sort(key=lambda item: item.path.name != "test_notebook.py")
