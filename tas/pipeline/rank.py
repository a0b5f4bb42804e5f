"""Order the channels of every width by importance, without changing what the model computes."""

from __future__ import annotations

import numpy as np
from torch import nn

from tas.errors import ConfigError
from tas.graph import Graph, channels_of
from tas.nn.surgery import reorder, require_fit


def channel_importance(model: nn.Module, graph: Graph) -> dict[str, np.ndarray]:
    """Importance of every channel: its squared weights in all layers it occurs in, each axis weighted equally.

    Returns:
        By width name, (channels,), larger is more important.

    Source:
        Group L2 norm as in Fang et al., "DepGraph", CVPR 2023, section 3.3, https://arxiv.org/abs/2301.12900.
    """
    require_fit(model, graph)
    found = {name: np.zeros(size) for name, size in graph.sizes(graph.full).items()}
    tensors = dict(model.named_parameters(remove_duplicate=False))
    for layer in graph.layers:
        for parameter in layer.parameters:
            if parameter.is_buffer or not parameter.name.endswith(".weight"):
                continue
            squares = tensors[parameter.name].detach().double().square().cpu().numpy()
            for dim, layout in enumerate(parameter.layouts):
                energy = squares.sum(axis=tuple(d for d in range(squares.ndim) if d != dim))
                energy = energy / max(energy.mean(), 1e-30)
                for name in {run.width for run in layout or () if run.width is not None}:
                    channels = channels_of(layout or (), name)
                    np.add.at(found[name], channels[channels >= 0], energy[channels >= 0])
    for item in graph.exits:  # what reads behind a stage speaks for the channels of the last block
        found[[width for width in item.widths if width is not None][-1]] += found.pop(item.name)
    return found


def rank(model: nn.Module, graph: Graph, importance: dict[str, np.ndarray] | None = None) -> nn.Module:
    """A copy of `model` whose channels stand in falling order of importance; it computes the same.

    A prefix of a width then holds its most important channels, which is what the supernet and `derive` keep. Widths
    that identity shortcuts connect share one order, by the sum of their importance.

    Args:
        model: the full, trained model.
        graph: of it; holds for the result too.
        importance: by width name, (channels,); `channel_importance` by default.

    Raises:
        ModelError: the graph does not fit the model.
        ConfigError: the importance of a width is missing or has the wrong length.
    """
    if importance is None:
        importance = channel_importance(model, graph)
    for width in graph.widths:
        if width.name not in importance or np.shape(importance[width.name]) != (width.size,):
            raise ConfigError(f"importance of {width.name!r} must be one number for each of its {width.size} channels")
    require_fit(model, graph)
    return reorder(model, graph, _orders(graph, importance))


def _orders(graph: Graph, importance: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The old channel at every new place, by name of the width or exit."""
    orders = {width.name: np.argsort(-np.asarray(importance[width.name]), kind="stable") for width in graph.widths}
    for stream in graph.streams:
        names = [name for name in stream if name is not None]
        total = np.sum([importance[name] for name in graph.full.widths if name in stream], axis=0)
        order = np.arange(len(total)) if None in stream else np.argsort(-total, kind="stable")
        orders |= dict.fromkeys(names, order)
    return orders
