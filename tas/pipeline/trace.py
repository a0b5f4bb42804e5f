"""Find out what can be pruned in a model, and prove it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from tas.errors import ConfigError, ModelError, first_line
from tas.graph import Graph
from tas.nn.blocks import find_depths
from tas.nn.capture import capture
from tas.nn.compiled import as_written, is_compiled
from tas.nn.counting import uncounted_macs
from tas.nn.grouping import build_graph, numbers_read
from tas.nn.keep import find_kept, keep_modules
from tas.nn.modes import evaluating, require_module
from tas.nn.rules.base import Draft
from tas.nn.selfcheck import self_check
from tas.nn.shortcuts import free_residuals
from tas.nn.surgery import fresh_copy, shared_copy
from tas.nn.ties import tie_echoes, tie_heads
from tas.options import split_patterns


def trace(
    model: nn.Module,
    example: Tensor | Sequence[Tensor],
    *,
    keep: str | Sequence[str] = (),
    residuals: Literal["tied", "free"] = "tied",
) -> Graph:
    """Find the widths and depths of a model, what they cost, and what stays frozen.

    Every output channel of a convolution or linear layer gets a label; labels flow through the graph that
    `torch.export` captures and merge where channels must be cut together. Some architectures are then cut for real and
    compared with the masked full model; what fails is frozen, with the reason.

    Args:
        model: any module `torch.export` can capture; not changed, and traced in evaluation mode.
        example: what `forward` takes, one tensor or several, batch first; the values do not matter.
        keep: modules to leave alone, as patterns of their paths (`fnmatch`): `layer1` and `layer1.*` keep all of a
            stage, `*.downsample.*` every shortcut. No parameter of a kept module changes shape, and none is dropped
            with its block. Text holds several patterns separated by commas.
        residuals: tied, all layers that add into one stream share one width; or free as in the paper, every
            convolution has a width of its own, and a block whose input and output differ gets a projection shortcut
            (1x1 convolution and batch norm). Only where the identity goes through a module that can be replaced,
            such as `downsample` or `shortcut`; which blocks stay tied is in `graph.frozen`.

    Returns:
        The graph; its costs are per sample at the example's size.

    Raises:
        ModelError: the model cannot be captured, or has no parameters.
        ConfigError: a pattern of `keep` matches no module, or there is no such kind of residuals.

    Example:
        graph = tas.trace(torchvision.models.resnet18(), torch.zeros(1, 3, 224, 224))
    """
    if residuals not in ("tied", "free"):
        raise ConfigError(f"residuals are {residuals!r}; they can be tied or free")
    inputs = [example] if isinstance(example, Tensor) else list(example) if isinstance(example, Sequence) else []
    if not inputs or not all(isinstance(tensor, Tensor) and tensor.dim() for tensor in inputs):
        raise ModelError("the example must be one tensor or several, with a batch dimension first")
    require_module(model)
    if next(model.parameters(), None) is None:
        raise ModelError(f"{type(model).__name__} has no parameters; there is nothing to prune")
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise ModelError("TorchScript cannot be cut; give the Python module that it was made of")
    try:
        is_here = all(tensor.device.type == "cpu" for tensor in (*model.parameters(), *model.buffers()))
        still = evaluating(shared_copy(model) if is_here else fresh_copy(model).cpu())
    except Exception as error:  # anything may hang on a user's module
        raise ModelError(
            f"{type(model).__name__} cannot be copied ({first_line(error)}): remove what holds computed tensors. "
            "torch.nn.utils.prune.remove makes masks permanent, torch.nn.utils.remove_weight_norm old weight norms; "
            "lazy layers need one forward first"
        ) from error
    with as_written(is_compiled(still)):
        return _traced(still, [tensor.detach().cpu() for tensor in inputs], split_patterns(keep), residuals)


def _traced(still: nn.Module, inputs: list[Tensor], keep: Sequence[str], residuals: str) -> Graph:
    kept = find_kept(still, keep)
    captured = capture(still, inputs)
    depths = find_depths(still, captured, inputs)
    rest = uncounted_macs(still, captured, inputs, dict.fromkeys(block for depth in depths for block in depth.blocks))
    shapes = tuple(tuple(tensor.shape) for tensor in inputs)
    if residuals == "free":
        captured = free_residuals(still, captured, inputs, depths, kept)
    for path, macs in rest.items():
        captured.drafts.setdefault(path, Draft("other")).products.append((macs, ()))
    graph = build_graph(still, captured, depths, shapes)
    with torch.random.fork_rng(devices=[]):
        for tie in (tie_heads, tie_echoes):
            if tie(still, captured, graph, inputs):
                graph = build_graph(still, captured, depths, shapes)
        graph = keep_modules(graph, kept)
        return self_check(still, graph, inputs, numbers=lambda: numbers_read(still, captured, graph))
