"""The command `tas trace`: show what can be pruned."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from tas.commands.inputs import InputSize, build_model, example_of
from tas.models import own_input_size
from tas.pipeline.trace import trace as trace_model
from tas.show import print_graph, say_json, summarize, why_nothing_is_open
from tas.space import SearchSpace, SpaceConfig
from tas.storage import write_text

SEEDS: list[str] = []  # options that follow --seed


def trace(
    *,
    model: str = "cifar_resnet:20",
    num_classes: int | None = None,
    input_size: InputSize | None = None,
    space: SpaceConfig = SpaceConfig(),  # noqa: B008  a frozen value
    keep: tuple[str, ...] | str = (),
    residuals: Literal["tied", "free"] = "tied",
    output: str | None = None,
    json: bool = False,
) -> None:
    """Show what can be pruned in a model, and what cannot and why.

    Args:
        model: cifar_resnet:DEPTH, torchvision:NAME, timm:NAME, transformers:NAME, FILE.py:FUNCTION or MODULE:FUNCTION
        num_classes: outputs of the classifier, where the constructor takes it
        input_size: channels, height, width of one image, such as 3,64,64; by default what the model was made for
        space: which sizes may be chosen
        keep: modules to leave alone, as patterns of their paths, such as layer1.*,fc
        residuals: one width per residual stream (tied), or one per convolution as in the paper (free)
        output: file for the graph as JSON
        json: print the graph and a summary as JSON
    """
    full = build_model(model, num_classes, None, False, 0)
    example = example_of(list(own_input_size(full)) if input_size is None else input_size)
    graph = trace_model(full, example, keep=keep, residuals=residuals)
    offered = SearchSpace.of(graph, space)
    if output is not None:
        write_text(Path(output), graph.to_json())
    if json:
        say_json({**graph.to_dict(), "summary": summarize(graph, offered)})
        if message := why_nothing_is_open(graph, offered):
            print(f"tas trace: {message}", file=sys.stderr)
    else:
        print_graph(graph, offered)
