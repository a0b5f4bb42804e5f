"""From merged labels to the values of a `Graph`: which channels form a width, and what stands on every axis."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Set
from math import prod

import numpy as np
from torch import nn

from tas.cost import Gate
from tas.graph import (
    Attribute,
    Depth,
    Exit,
    Frozen,
    Graph,
    Layer,
    Layout,
    Parameter,
    Shortcut,
    Width,
    whole_width,
)  # fmt: skip
from tas.layout import Place
from tas.nn.capture import Captured, unseen_layers
from tas.nn.labels import TIED, Stage
from tas.nn.numbers import count_at, find_attributes, find_numbers_read, layout_at
from tas.nn.paths import joined, lies_in
from tas.nn.rules import KINDS, Draft


def build_graph(
    model: nn.Module, captured: Captured, depths: tuple[Depth, ...], input_shapes: tuple[tuple[int, ...], ...]
) -> Graph:
    """Assemble what was found about `model` into a `Graph`."""
    tie_unclear(captured)
    roots = captured.labels.roots()
    reasons = _frozen_roots(captured, roots)
    places, widths = _widths(captured, roots, reasons)
    exits = _exits(captured, roots, places, widths)
    layouts = _layouts(captured, roots, places)
    gates = {block: (depth.name, place) for depth in depths for place, block in enumerate(depth.blocks) if place}
    shortcuts = _shortcuts(captured, roots, places, widths, gates)
    # a parameter shared by two modules is counted once, and a module of two paths has its tensors at the first
    unique = {*(name for name, _ in model.named_parameters()), *(path for path, _ in model.named_modules())}
    layers = tuple(
        _layer(model, path, captured.drafts.get(path), captured, layouts, gates, roots, places, unique)
        for path in _layer_order(model, captured)
    )
    members = _members(layers)
    excluded = _excluded(layers)
    found = tuple(
        Width(name, size, tuple(members[name]), excluded.get(name, ()))
        for name, size in widths.items()
        if name not in {item.name for item in exits}
    )
    tied = [Frozen(path, reason, path) for path, reason in captured.labels.tied.items()]
    frozen = (*_frozen(captured, roots, reasons, places), *_unseen(model, captured), *tied)
    attributes = find_attributes(model, captured, {layer.name: layer.kind for layer in layers}, roots, places)
    return Graph(found, depths, layers, frozen, input_shapes, attributes, shortcuts, exits)


def numbers_read(model: nn.Module, captured: Captured, graph: Graph) -> tuple[Attribute, ...]:
    """Numbers that modules may compare with how many channels they read, of a graph that was built of this."""
    roots = captured.labels.roots()
    places, _ = _widths(captured, roots, _frozen_roots(captured, roots))
    found = find_numbers_read(model, captured, graph, roots, places)
    names = {*graph.full.widths, *(item.name for item in graph.exits)}
    return tuple(item for item in found if all(name in names for name, _ in item.count.widths))


def tie_unclear(captured: Captured) -> None:
    """Merge both ends of every shortcut, and all of every stage, that are not one width each; until all are."""
    labels = captured.labels
    is_new = True
    while is_new:
        is_new, roots = False, labels.roots()
        places, widths = _widths(captured, roots, _frozen_roots(captured, roots))
        paths = [passage.path for passage in labels.passages]
        for passage in labels.passages:
            ends = [_end(roots[vector.numpy()], places, widths) for vector in (passage.reads, passage.makes)]
            if passage.path not in labels.tied and ("" in ends or paths.count(passage.path) > 1):
                labels.union(passage.reads, passage.makes)
                labels.tied[passage.path] = "what its shortcut adds is not one width" + TIED
                is_new = True
        for name, stage in labels.stages.items():
            outputs = [_end(roots[vector.numpy()], places, widths) for vector in stage.outputs.values()]
            is_clear = "" not in outputs and any(outputs) and _is_clear(stage, roots, places, widths)
            if name not in labels.tied and not is_clear:
                for vector in (*stage.outputs.values(), *([] if stage.exit is None else [stage.exit])):
                    labels.union(stage.outputs[0], vector)
                labels.tied[name] = "what is read behind its blocks cannot follow the last one; they keep one width"
                is_new = True


def _end(roots: np.ndarray, places: dict[int, Place], widths: dict[str, int]) -> str | None:
    """The width that these channels are, all of it and in order; None if they are never cut, empty for all else."""
    layout = layout_at(roots, places)
    if layout is None:
        return None
    whole = whole_width(layout)
    is_all = whole is not None and (whole.copies, whole.repeat, widths[whole.width]) == (1, 1, len(roots))
    return whole.width if whole is not None and is_all else ""


def _is_clear(stage: Stage, roots: np.ndarray, places: dict[int, Place], widths: dict[str, int]) -> bool:
    """Whether what is read behind a stage is merged with nothing, so that it can be as wide as any of its blocks."""
    if stage.exit is None:
        return False
    mine = roots[stage.exit.numpy()]
    return bool(_end(mine, places, widths)) and int(np.isin(roots, mine).sum()) == len(mine)


def _exits(captured: Captured, roots: np.ndarray, places: dict[int, Place], widths: dict[str, int]) -> tuple[Exit, ...]:
    found = []
    for name, stage in captured.labels.stages.items():
        if name in captured.labels.tied or stage.exit is None:
            continue
        ends = tuple(_end(roots[stage.outputs[place].numpy()], places, widths) for place in sorted(stage.outputs))
        exit_ = _end(roots[stage.exit.numpy()], places, widths)
        assert exit_
        found.append(Exit(exit_, name, ends, len(stage.exit)))
    return tuple(found)


def _shortcuts(
    captured: Captured,
    roots: np.ndarray,
    places: dict[int, Place],
    widths: dict[str, int],
    gates: dict[str, Gate],
) -> tuple[Shortcut, ...]:
    """The open shortcuts whose ends can differ."""
    found = []
    for passage in captured.labels.passages:
        reads, makes = (_end(roots[vector.numpy()], places, widths) for vector in (passage.reads, passage.makes))
        block, _, attribute = passage.path.rpartition(".")
        if reads != makes:
            gate = _gate(passage.path, gates)
            found.append(Shortcut(block, attribute, reads, makes, len(passage.reads), passage.positions, gate))
    return tuple(found)


def _gate(path: str, gates: dict[str, Gate]) -> Gate | None:
    return next((gate for block, gate in gates.items() if lies_in(path, block)), None)


def _frozen_roots(captured: Captured, roots: np.ndarray) -> dict[int, tuple[str, str]]:
    """Reason and module of every class that must stay."""
    reasons: dict[int, tuple[str, str]] = {0: ("", "")}
    for freeze in captured.labels.freezes:
        for root in np.unique(roots[freeze.labels]).tolist():
            reasons.setdefault(root, (freeze.reason, freeze.module))
    return reasons


def _owner(parameter: str) -> str:
    return parameter.rpartition(".")[0]


def _widths(
    captured: Captured, roots: np.ndarray, frozen: dict[int, tuple[str, str]]
) -> tuple[dict[int, Place], dict[str, int]]:
    """Group classes that occur in the same axes, equally often, into widths."""
    signatures: dict[int, list[tuple[int, int]]] = defaultdict(list)
    known: set[bytes] = set()
    for index, labels in enumerate(captured.labels.axes.values()):
        vector = roots[labels]
        if (key := vector.tobytes()) in known:  # an axis like another tells its classes apart no better
            continue
        known.add(key)
        classes, times = np.unique(vector, return_counts=True)
        for root, count in zip(classes.tolist(), times.tolist(), strict=True):
            signatures[root].append((index, count))
    groups: dict[tuple[tuple[int, int], ...], list[int]] = defaultdict(list)
    for root in sorted(signatures):
        if root not in frozen:
            groups[tuple(signatures[root])].append(root)
    axes = list(captured.labels.axes)
    exits = {
        int(roots[stage.exit[0]]): f"{name}:exit"
        for name, stage in captured.labels.stages.items()
        if stage.exit is not None and name not in captured.labels.tied
    }
    places: dict[int, Place] = {}
    widths: dict[str, int] = {}
    for signature, members in sorted(groups.items(), key=lambda item: item[1][0]):
        if len(members) < 2:
            continue
        name = exits.get(members[0]) or _owner(axes[min(index for index, _ in signature)][0])
        name = name if name not in widths else f"{name}:{1 + sum(w.partition(':')[0] == name for w in widths)}"
        widths[name] = len(members)
        places |= {root: (name, channel) for channel, root in enumerate(members)}
    return places, widths


def _layouts(captured: Captured, roots: np.ndarray, places: dict[int, Place]) -> dict[tuple[str, int], Layout | None]:
    """Every axis described; many are alike."""
    known: dict[bytes, Layout | None] = {}
    layouts = {}
    for axis, labels in captured.labels.axes.items():
        vector = roots[labels]
        key = vector.tobytes()
        if key not in known:
            known[key] = layout_at(vector, places)
        layouts[axis] = known[key]
    return layouts


def _layer_order(model: nn.Module, captured: Captured) -> list[str]:
    """Layers in order of execution, then modules with parameters that were never seen."""
    owners = dict.fromkeys(_owner(name) for name, _ in model.named_parameters())
    return list(dict.fromkeys([*captured.drafts, *owners]))


def _layer(
    model: nn.Module,
    path: str,
    draft: Draft | None,
    captured: Captured,
    layouts: dict[tuple[str, int], Layout | None],
    gates: dict[str, Gate],
    roots: np.ndarray,
    places: dict[int, Place],
    unique: Set[str],
) -> Layer:
    module = model.get_submodule(path)
    parameters = []
    held = ((False, module.named_parameters), (True, module.named_buffers))
    for is_buffer, tensors in held if path in unique else ():
        for name, tensor in tensors(recurse=False):
            full = joined(path, name)
            dims = tuple(layouts.get((full, dim)) for dim in range(tensor.dim()))
            parameters.append(Parameter(full, tuple(tensor.shape), dims, is_buffer or full not in unique))
    products = []
    for times, factors in draft.products if draft else ():
        vectors = [roots[factor.numpy()] for factor in factors]
        products.append((times, tuple(count_at(vector, places) for vector in vectors)))
    gate = _gate(path, gates)
    kind = draft.kind if draft else "other"
    mixed_by, dim = _mixed_by(path, kind, captured, layouts), draft.channel_dim if draft else 1
    channels = None if draft is None or draft.channels is None else layout_at(roots[draft.channels.numpy()], places)
    return Layer(path, kind, tuple(parameters), tuple(products), gate, mixed_by, dim, channels)


def _mixed_by(path: str, kind: str, captured: Captured, layouts: dict[tuple[str, int], Layout | None]) -> str | None:
    """A layer that makes one whole width mixes its candidates itself, or leaves it to the norm that alone reads it."""
    if kind == "batch_norm":
        makers = captured.drafts[path].makers
        maker = makers[0]
        has_tensors = any(layouts.get((f"{path}.{name}", 0)) for name in ("weight", "running_mean"))
        is_alone = (
            has_tensors and len(makers) == 1 and maker is not None and _makes_width(maker, captured, layouts) == 1
        )
        is_alone = is_alone and maker is not None and captured.drafts[maker].calls == 1
        readers = [name for name, draft in captured.drafts.items() if maker in draft.makers]
        return path if is_alone and len(readers) == 1 else None
    if not _makes_width(path, captured, layouts):
        return None
    readers = [name for name, draft in captured.drafts.items() if path in draft.makers]
    is_read = len(readers) == 1 and captured.drafts[readers[0]].kind == "batch_norm"
    if is_read and _mixed_by(readers[0], "batch_norm", captured, layouts) == readers[0]:
        return readers[0]
    return path


def _makes_width(path: str, captured: Captured, layouts: dict[tuple[str, int], Layout | None]) -> int:
    """Positions per channel if this layer makes one whole width, else 0."""
    draft = captured.drafts.get(path)
    for name, dim in KINDS[draft.kind].makes.items() if draft is not None and draft.kind != "other" else ():
        whole = whole_width(layouts.get((joined(path, name), dim)))
        if whole is not None:
            return whole.repeat
    return 0


def _excluded(layers: tuple[Layer, ...]) -> dict[str, tuple[int, ...]]:
    """Widths of which a layer needs two: a weight that is standardised must not be a single number."""
    excluded = {}
    for layer in layers:
        for item in layer.parameters if layer.kind == "own_convolution" else ():
            if item.name.endswith("weight") and (reads := whole_width(item.layouts[1])) and prod(item.shape[2:]) == 1:
                excluded[reads.width] = (1,)
    return excluded


def _members(layers: tuple[Layer, ...]) -> dict[str, list[str]]:
    members: dict[str, dict[str, None]] = defaultdict(dict)
    for layer in layers:
        for parameter in layer.parameters:
            for layout in parameter.layouts:
                for run in layout or ():
                    if run.width is not None:
                        members[run.width][layer.name] = None
    return {name: list(found) for name, found in members.items()}


def _frozen(
    captured: Captured, roots: np.ndarray, reasons: dict[int, tuple[str, str]], places: dict[int, Place]
) -> tuple[Frozen, ...]:
    """Axes on which a layer makes channels that stay; one entry per axis and reason."""
    found = []
    for (parameter, dim), labels in captured.labels.axes.items():
        draft = captured.drafts.get(_owner(parameter))
        makes = KINDS[draft.kind].makes if draft is not None else {}
        if makes.get(parameter.rpartition(".")[2]) != dim:
            continue
        tied = "is a single channel" if len(labels) == 1 else "all its channels must be cut together, that is, never"
        lonely = (tied, "")
        mine = [root for root in np.unique(roots[labels]).tolist() if root not in places]
        for reason, module in dict.fromkeys(reasons.get(root, lonely) for root in mine):
            found.append(Frozen(f"{parameter}[{dim}]", reason, module))
    return tuple(found)


def _unseen(model: nn.Module, captured: Captured) -> list[Frozen]:
    """Layers that were never met: those are not counted either."""
    reason = "is not in the captured graph, and not counted: it never runs"
    return [Frozen(joined(path, "weight[0]"), reason, path) for path in unseen_layers(model, captured.labels)]
