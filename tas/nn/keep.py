"""Leave alone what the user names: no parameter of a kept module changes shape, and no depth drops one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TypeVar

from torch import nn

from tas.errors import ConfigError
from tas.graph import Depth, Frozen, Graph, Layer, Shortcut
from tas.nn.freeze import without
from tas.nn.paths import lies_in
from tas.options import near_misses

Gated = TypeVar("Gated", Layer, Shortcut)


def find_kept(model: nn.Module, patterns: Sequence[str]) -> dict[str, str]:
    """The reason to leave it alone, by the path of every module to keep; all paths of a module that has several.

    Args:
        model: its module paths are what the patterns are about.
        patterns: of `fnmatch`, such as `layer1.*`; a module inside a kept one is kept too.

    Raises:
        ConfigError: a pattern matches no module.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    reasons: dict[nn.Module, str] = {}
    for pattern in patterns:
        matched = [path for path in modules if fnmatchcase(path, pattern)]
        if not matched:
            raise ConfigError(
                f"keep: no module of {type(model).__name__} is called {pattern!r}{near_misses(pattern, modules)}; "
                f"give module paths as named_modules() has them, * stands for any text"
            )
        for path in matched:
            for inside in modules[path].modules():
                reasons.setdefault(inside, f"kept, as keep={pattern!r} asks")
    return {path: reasons[module] for path, module in modules.items() if module in reasons}


def keep_modules(graph: Graph, kept: Mapping[str, str]) -> Graph:
    """The graph in which the modules found by `find_kept` stay as they are."""
    for width, module in _widths_in(graph, kept).items():
        graph = _frozen(graph, width, kept[module], module)
    for depth in graph.depths:
        graph = _shortened(graph, depth, kept)
    return graph


def _widths_in(graph: Graph, kept: Mapping[str, str]) -> dict[str, str]:
    """The first kept layer with an axis in it, by width name."""
    found: dict[str, str] = {}
    for layer in graph.layers:
        for parameter in layer.parameters if layer.name in kept else ():
            for count in parameter.counts:
                for width, _ in count.widths:
                    found.setdefault(width, layer.name)
    return found


def _frozen(graph: Graph, name: str, reason: str, module: str) -> Graph:
    """The graph with one width or depth frozen; the reason lies in `module`."""
    smaller, known = without(graph, name, reason), len(graph.frozen)
    rest = tuple(replace(item, module=module) for item in smaller.frozen[known:])
    return replace(smaller, frozen=(*smaller.frozen[:known], *rest))


def _shortened(graph: Graph, depth: Depth, kept: Mapping[str, str]) -> Graph:
    """The graph in which a depth starts at its last kept block: it keeps a prefix, so what lies before stays too."""
    inside = {block: next((path for path in kept if lies_in(path, block)), None) for block in depth.blocks}
    last = max((place for place, block in enumerate(depth.blocks) if inside[block] is not None), default=0)
    module = inside[depth.blocks[last]]
    if last == 0 or module is None:  # the first block always stays
        return graph
    if last == len(depth.blocks) - 1:
        return _frozen(graph, depth.name, kept[module], module)
    shorter = replace(depth, blocks=depth.blocks[last:])
    stay = tuple(Frozen(block, kept[module], module) for block in depth.blocks[1 : last + 1])
    return replace(
        graph,
        depths=tuple(shorter if item.name == depth.name else item for item in graph.depths),
        layers=tuple(_regated(layer, depth.name, last) for layer in graph.layers),
        shortcuts=tuple(_regated(item, depth.name, last) for item in graph.shortcuts),
        exits=tuple(
            replace(item, widths=item.widths[last:]) if item.depth == depth.name else item for item in graph.exits
        ),
        frozen=(*graph.frozen, *stay),
    )


def _regated(layer: Gated, depth: str, dropped: int) -> Gated:
    """A layer or shortcut with its place in a depth that has lost its first blocks."""
    if layer.gate is None or layer.gate[0] != depth:
        return layer
    place = layer.gate[1] - dropped
    return replace(layer, gate=(depth, place) if place > 0 else None)
