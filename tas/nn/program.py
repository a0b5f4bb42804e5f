"""The graph that `torch.export` captures of a model in evaluation mode, and which module each operation is of."""

from __future__ import annotations

import io
import re
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import is_dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind

from tas.errors import ModelError, first_line
from tas.nn.paths import joined
from tas.nn.surgery import shared_copy

_OWN, _CALLED = "tas_own_paths", "tas_called_paths"  # what is noted in `meta` of a node

WITHOUT_VALUES = (
    "Rewrite the part of forward that depends on values of tensors, or trace a module of your own that leaves it out, "
    "as a detector's boxes behind its head"
)


@contextmanager
def torch_warnings_hidden() -> Iterator[None]:
    """In the block torch does not warn about its own workings; every version has warnings of its own."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="torch|copyreg")  # what torch copies is told of by the latter
        yield


@contextmanager
def graph_not_printed() -> Iterator[None]:
    """In the block nothing appears on stderr, where torch prints the graph of an export that fails: megabytes of it."""
    with redirect_stderr(io.StringIO()):
        yield


def export(model: nn.Module, example: Sequence[Tensor]) -> torch.export.ExportedProgram:
    """Capture `model` in evaluation mode; it stays as it was, whatever its forward keeps.

    Raises:
        ModelError: the model does not run on the example, or export refuses, with the first words of the reason.
    """
    name = type(model).__name__
    with torch.no_grad(), torch_warnings_hidden():
        warnings.filterwarnings("ignore", message="The tensor attributes? .* assigned during export")
        # copies: a YOLO keeps its anchors, and of an export such without values
        trial, captured = shared_copy(model), shared_copy(model)
        try:  # first of all, since what fails in the middle of an export fills the screen
            result = trial(*(tensor.clone() for tensor in example))
        except Exception as error:  # the user's own forward may fail in any way
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in example)
            is_float = all(tensor.is_floating_point() for tensor in example)
            hint = "" if is_float else "; v2.ToDtype(torch.float32, scale=True) makes images of its whole numbers"
            raise ModelError(
                f"{name} does not run on an example of shape {shapes}: {_said(error)}. Give an example with "
                f"all the inputs its forward takes, of the size and channels it was built for{hint}"
            ) from error
        try:
            with graph_not_printed():
                program = torch.export.export(captured, tuple(example))
        except Exception as error:  # export has no error root of its own
            way_out = WITHOUT_VALUES
            if "fake tensor in the exported program constant's list" in str(error):
                way_out = (
                    "Its forward reads or sets .data of a parameter: do without .data, or, where it merges branches "
                    "into one layer, let the model merge them for good before (its own fuse, deploy or the like)"
                )
            kind = type(result).__name__
            if is_dataclass(result) and kind in str(error):
                way_out = f"Return a tuple or a dict instead of a {kind}, or call torch.export.register_dataclass on it"
            raise ModelError(
                f"torch.export cannot capture {name}: {type(error).__name__}: {_said(error)}. {way_out}"
            ) from error
        _note_all_readers(program)
        _read_no_more_than_a_type(program)
        _drop_what_nobody_reads(program)
        _name_modules_by_their_first_paths(model, program)
        return program


def _said(error: Exception) -> str:
    """The first line of what it says, and where in the code of the model, which is not torch's, it was raised."""
    ours = Path(torch.__file__).parent, Path(__file__).parents[1]
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if not any(Path(frame.filename).is_relative_to(folder) for folder in ours)]
    if not theirs or not theirs[-1].line:
        return first_line(error)
    return f"{first_line(error)} (line {theirs[-1].lineno} of {theirs[-1].filename}: {theirs[-1].line})"


def _note_all_readers(program: torch.export.ExportedProgram) -> None:
    """Torch (2.15) may forget that a slice is read where its values are not, and then fails to remove that slice."""
    for node in program.graph.nodes:
        for source in node.all_input_nodes:
            source.users.setdefault(node)


def _read_no_more_than_a_type(program: torch.export.ExportedProgram) -> None:
    """What takes the type of another tensor, as anchors do, is not computed from it."""
    for node in program.graph.nodes:
        if node.target is torch.ops.aten.type_as.default:
            node.target, node.args = torch.ops.aten.to.dtype, (node.args[0], node.meta["val"].dtype)


def _drop_what_nobody_reads(program: torch.export.ExportedProgram) -> None:
    """Remove results that a forward computes for nothing, or to look at (a norm it keeps): they bind no channels.

    What reads a parameter stays: it is a layer, and is cut with the others. So does what puts the results of such
    layers together (the sum behind a head that nobody asks): the forward fails where their channels differ.
    """
    inputs = set(program.graph_signature.user_inputs)
    stored = {node for node in program.graph.nodes if node.op == "placeholder" and node.name not in inputs}
    is_read: set[fx.Node] = set()
    for node in reversed(program.graph.nodes):
        if node.op == "output" or node.is_impure() or not is_read.isdisjoint(node.users):
            is_read.add(node)
    bound, behind = set(is_read), set[fx.Node]()  # behind layers that nobody reads
    for node in program.graph.nodes:
        is_layer, follows = not stored.isdisjoint(node.all_input_nodes), not behind.isdisjoint(node.all_input_nodes)
        if node not in is_read and (is_layer or follows):
            behind.add(node)
        if is_layer or (follows and len(list(filter(_has_dimensions, node.all_input_nodes))) > 1):
            bound.add(node)
    program.graph.eliminate_dead_code(bound.__contains__)


def _has_dimensions(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dim() > 0


def _name_modules_by_their_first_paths(model: nn.Module, program: torch.export.ExportedProgram) -> None:
    """Say the path that `named_modules` gives, of every module around a node, beside the path by which it is called.

    It may have others, as in nnU-Net. The two differ only for what is called by several, such as a layer that is lent
    to several blocks. Of a module in `self.layers[:-1]` torch may say `layers.slice(None, -1, None).3`.
    """
    own: dict[nn.Module, str] = {module: path for path, module in model.named_modules()}
    parts = [part for part in program.graph_module.modules() if isinstance(part, fx.GraphModule)]
    nodes = [node for part in parts for node in part.graph.nodes]
    stacks = [[path for path, _ in (node.meta.get("nn_module_stack") or {}).values()] for node in nodes]
    first: dict[str, str | None] = {path: path for stack in stacks for path in stack}
    for path in first:
        with suppress(AttributeError):  # of no module
            first[path] = own.get(_module_at(model, path))
    names = Counter(first.values())
    called = {path: name if names[name] < 2 or "slice(" in path else path for path, name in first.items()}
    for node, stack in zip(nodes, stacks, strict=True):
        known = [path for path in stack if first[path] is not None]  # a part of a Sequential is made anew
        node.meta[_OWN], node.meta[_CALLED] = ([of[path] for path in known] for of in (first, called))
    for spec in program.graph_signature.input_specs:
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and "." in str(spec.target):
            path, _, short = str(spec.target).rpartition(".")
            spec.target = joined(own[model.get_submodule(path)], short)


def _module_at(model: nn.Module, path: str) -> nn.Module:
    for part in re.findall(r"slice\([^)]*\)|[^.]+", path):
        if part.startswith("slice("):
            ends = [None if end == "None" else int(end) for end in part[len("slice(") : -1].split(", ")]
            model = cast(nn.Sequential, model)[slice(*ends)]
        else:
            model = model.get_submodule(part)
    return model


def module_path(node: fx.Node) -> str:
    """The first path of the innermost module a node belongs to."""
    return own_paths(node)[-1]


def own_paths(node: fx.Node) -> list[str]:
    """The first paths of all modules around a node, outermost first."""
    return node.meta.get(_OWN) or [""]


def is_for_nothing(node: fx.Node) -> bool:
    """Whether nobody reads what is computed, unless in training: the variance of an autoencoder, say."""
    is_unread = node.op == "call_function" and not node.users and not node.is_impure()  # nor written in place
    return is_unread and isinstance(node.meta.get("val"), Tensor)


def module_paths(node: fx.Node) -> list[str]:
    """The paths by which all modules around a node are called, outermost first."""
    return node.meta.get(_CALLED) or [""]


def changes(node: fx.Node, other: fx.Node) -> bool:
    """Whether a node is an operation in place, and changes what the other gives."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.name.endswith("_") and bool(node.args) and node.args[0] is other


def op_name(node: fx.Node) -> str:
    """Name of the operation of a node, without namespace, overload and in-place underscore; empty for the rest."""
    schema = getattr(node.target, "_schema", None)
    return schema.name.rpartition("::")[2].rstrip("_") if schema is not None else ""
