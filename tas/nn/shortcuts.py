"""Free residuals: find the identities around blocks that a projection can replace, and tie what cannot be free."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

from torch import Tensor, fx, nn

from tas.errors import ModelError
from tas.graph import Depth
from tas.nn.blocks import PASSES
from tas.nn.capture import Captured, capture, ends_of
from tas.nn.labels import TIED
from tas.nn.paths import joined
from tas.nn.program import export, module_path, module_paths, op_name
from tas.nn.rules.shortcut import Marker

_NAMES = ("shortcut", "downsample", "skip", "residual", "identity")  # of attributes that are None where not needed
_NO_MODULE = "adds its input through no module that a projection can replace"
_NONE = "no block adds its input through a module that a projection can replace"
_NO_EXIT = "lies in a stage that does not give one image"


def free_residuals(
    model: nn.Module, tied: Captured, example: Sequence[Tensor], depths: Sequence[Depth], kept: Mapping[str, str]
) -> Captured:
    """Capture a model once more, with new labels behind every identity shortcut that can be replaced.

    Args:
        model: in evaluation mode; not changed.
        tied: what `capture` gave for it; comes back where nothing can be free.
        example: inputs of its forward.
        depths: found in it.
        kept: modules to leave alone, with the reason.

    Returns:
        What was captured; `labels.tied` says which blocks stay as they are.
    """
    marked = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    markers, notes = _marked(marked), {}
    try:
        program = export(marked, example) if markers else None
    except ModelError:  # a forward may do something else where a module stands instead of None
        program = None
    nodes = list(program.graph.nodes) if program is not None else []
    for path, marker in markers.items():
        marker.is_open = path not in kept and path.rpartition(".")[0] not in kept and _is_identity(path, nodes)
    stages = {}
    for depth in depths:
        notes |= _notes(depth, nodes, markers, kept)
        if any(marker.is_open for path, marker in markers.items() if _lies_in(path, depth.blocks[1:])):
            stages[depth.name] = depth.blocks
    is_free = any(marker.is_open for marker in markers.values())
    captured = capture(marked, example, program=program, stages=stages) if is_free else tied
    captured.labels.tied |= notes if is_free or notes else {"residuals": _NONE}
    return captured


def _lies_in(path: str, blocks: Sequence[str]) -> bool:
    return any(path.startswith(f"{block}.") for block in blocks)


def _notes(
    depth: Depth, nodes: Sequence[fx.Node], markers: Mapping[str, Marker], kept: Mapping[str, str]
) -> dict[str, str]:
    """Why blocks of a depth stay tied; shortcuts of a stage whose end cannot be read in their stead are closed."""
    notes = {}
    ends = [ends_of(nodes, block) for block in depth.blocks]
    is_clear = all(len(found) == 1 and len(_shape(found[0])) == 4 for found in ends)
    for block in depth.blocks[1:]:
        inside = [path for path in markers if _lies_in(path, [block])]
        opened = [path for path in inside if markers[path].is_open]
        for path in opened if not is_clear else ():
            markers[path].is_open = False
        if not opened or not is_clear:
            reason = next((kept[path] for path in (block, *inside) if path in kept), _NO_MODULE)
            notes[block] = (_NO_EXIT if opened else reason) + TIED
    return notes


def _shape(node: fx.Node) -> Sequence[int]:
    value = node.meta.get("val")
    return value.shape if isinstance(value, Tensor) else ()


def _marked(model: nn.Module) -> dict[str, Marker]:
    """Put a marker wherever an identity may be, in place; by path."""
    found: dict[str, Marker] = {}
    for block_path, block in list(model.named_modules()):
        if isinstance(block, nn.Sequential | nn.ModuleList):
            continue
        for name, child in {**vars(block), **dict(block.named_children())}.items():
            if isinstance(child, nn.Identity) or (child is None and any(word in name for word in _NAMES)):
                found[joined(block_path, name)] = marker = Marker()
                setattr(block, name, marker)
    return found


def _is_identity(path: str, nodes: Sequence[fx.Node]) -> bool:
    """Whether a marker reads what its block reads, and its output is added to something inside the block."""
    block, mine = path.rpartition(".")[0], [node for node in nodes if module_path(node) == path]
    if not block or len(mine) != 1:
        return False
    inside = {node for node in nodes if block in module_paths(node)}
    source = user = mine[0]
    while source in inside and (source is user or op_name(source) in PASSES):
        source = source.all_input_nodes[0]
    while len(user.users) == 1 and (user is mine[0] or op_name(user) in PASSES):
        user = next(iter(user.users))
    is_entry = source not in inside and source.op == "call_function"
    return is_entry and user in inside and op_name(user) == "add" and len(user.all_input_nodes) == 2
