"""Order the channels of every width by importance, without changing what the model computes."""

from __future__ import annotations

import numpy as np
from torch import nn

from tas.graph import Graph
from tas.nn.importance import channel_importance, ranked


def rank(model: nn.Module, graph: Graph, importance: dict[str, np.ndarray] | None = None) -> nn.Module:
    """A copy of `model` whose channels stand in falling order of importance; it computes the same.

    A prefix of a width then holds its most important channels, which is what the supernet and `derive` keep. Widths
    that identity shortcuts connect share one order, by the sum of their importance.

    Args:
        model: the full, trained model.
        graph: of it; holds for the result too.
        importance: by width name, (channels,); by default the squared weights in all layers a channel occurs in, each
            axis weighted equally (group L2, `tas.nn.importance.channel_importance`).

    Raises:
        ModelError: the graph does not fit the model.
        ConfigError: the importance of a width is missing or has the wrong length.
    """
    return ranked(model, graph, channel_importance(model, graph) if importance is None else importance)
