"""Run labels through the graph that `torch.export` captures."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from tas.errors import ModelError
from tas.nn.labels import Labels, fixed
from tas.nn.rules import Call, Constant, Draft, label_rule


@dataclass(frozen=True)
class Captured:
    """What one run of labels has found.

    Attributes:
        nodes: the exported graph, in order of execution.
        values: label tensors, `Constant`s or lists of them, by node.
        labels: their union-find.
        drafts: layers by module path.
        results: nodes that the model returns.
    """

    nodes: list[fx.Node]
    values: dict[fx.Node, Any]
    labels: Labels
    drafts: dict[str, Draft]
    results: list[fx.Node]


def module_path(node: fx.Node) -> str:
    """Path of the innermost module a node belongs to."""
    stack = node.meta.get("nn_module_stack") or {"": ("", None)}
    return list(stack.values())[-1][0]


def module_paths(node: fx.Node) -> list[str]:
    """Paths of all modules around a node, outermost first."""
    return [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]


def export(model: nn.Module, example: Sequence[Tensor]) -> torch.export.ExportedProgram:
    """Capture `model` in evaluation mode.

    Raises:
        ModelError: the model does not run on the example, or export refuses, with the first words of the reason.
    """
    name = type(model).__name__
    with torch.no_grad():
        try:
            return torch.export.export(model, tuple(example))
        except Exception as refusal:  # export has no error root of its own
            try:
                model(*(tensor.clone() for tensor in example))
            except Exception as error:  # the user's own forward may fail in any way
                shapes = ", ".join(str(tuple(tensor.shape)) for tensor in example)
                raise ModelError(
                    f"{name} does not run on an example of shape {shapes}: {_first_line(error)}. Give an example with "
                    f"all the inputs its forward takes, of the size and channels it was built for"
                ) from error
            raise ModelError(
                f"torch.export cannot capture {name}: {type(refusal).__name__}: {_first_line(refusal)}. Rewrite the "
                f"part of forward that depends on values of tensors"
            ) from refusal


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def capture(model: nn.Module, example: Sequence[Tensor]) -> Captured:
    """Export a model in evaluation mode and push labels through every operation.

    Args:
        model: in evaluation mode; not changed.
        example: the tensors `forward` takes, batch first.

    Raises:
        ModelError: the model cannot be captured.
    """
    program = export(model, example)
    signature = program.graph_signature
    stored = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    nodes = list(program.graph.nodes)
    labels, drafts, values = Labels(), {}, {}
    results: list[fx.Node] = []
    for node in nodes:
        if node.op == "placeholder":
            values[node] = _placeholder(node, stored, set(signature.user_inputs))
        elif node.op == "get_attr":
            values[node] = None
        elif node.op == "call_function":
            values[node] = _step(node, values, labels, drafts, model, example[0].shape[0])
        elif node.op == "output":
            results = list(node.all_input_nodes)
    for node in results:
        for value in _flat(values[node]):
            labels.freeze(value, "output of the model", module_path(node))
    return Captured(nodes, values, labels, drafts, results)


def _placeholder(node: fx.Node, stored: dict[str, str], inputs: set[Any]) -> Any:
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return value
    if node.name in inputs:
        return fixed(tuple(value.shape))
    return Constant(stored.get(node.name), tuple(value.shape))


def _step(
    node: fx.Node, values: dict[fx.Node, Any], labels: Labels, drafts: dict[str, Draft], model: nn.Module, batch: int
) -> Any:
    if node.target is operator.getitem:
        whole, index = node.args
        return values[whole][index]  # type: ignore[index]
    arguments = _arguments(node, values)
    shapes = [tuple(item.shape) for item in _flat(node.meta.get("val"))]
    if not shapes:  # a number, or a check that returns nothing
        return None
    first = node.all_input_nodes[0] if node.all_input_nodes else None
    maker = module_path(first) if first is not None and len(first.users) == 1 else None
    name = getattr(node.target, "_schema", None)
    op = name.name.rpartition("::")[2] if name is not None else str(node.target)
    op = op[:-1] if op.endswith("_") and not op.endswith("__") else op
    call = Call(op, arguments, shapes, module_path(node), labels, drafts, model, batch, maker)
    if not call.label_tensors():  # computed from constants alone
        constants = [Constant(None, shape) for shape in shapes]
        return constants[0] if isinstance(node.meta["val"], Tensor) else constants
    try:
        result = label_rule(op)(call)
    except Exception as error:  # a way of calling the operation that its rule did not foresee must not end the trace
        result = call.refuse(f"passes {op} in a way its rule does not know ({type(error).__name__})")
    return [result] if isinstance(node.meta["val"], list | tuple) and isinstance(result, Tensor) else result


def _arguments(node: fx.Node, values: dict[fx.Node, Any]) -> dict[str, Any]:
    """Arguments by name, defaults filled in, nodes replaced by their values."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:  # a region of the graph, such as one under torch.no_grad; no rule knows it
        return {"inputs": [values[source] for source in node.all_input_nodes]}
    found = {}
    for position, argument in enumerate(schema.arguments):
        if position < len(node.args):
            given = node.args[position]
        elif argument.name in node.kwargs:
            given = node.kwargs[argument.name]
        else:
            given = argument.default_value if argument.has_default_value() else None
        found[argument.name] = map_arg(given, values.__getitem__)
    return found


def _flat(value: Any) -> list[Any]:
    if isinstance(value, Tensor):
        return [value]
    return [item for item in value if isinstance(item, Tensor)] if isinstance(value, list | tuple) else []
