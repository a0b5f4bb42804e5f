"""Run labels through the graph that `torch.export` captures."""

from __future__ import annotations

import operator
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from tas.errors import ModelError
from tas.nn.labels import Echo, Labels, Stage, along, expanded, fixed, spread, varying_dims
from tas.nn.paths import joined, lies_in
from tas.nn.program import WITHOUT_VALUES, export, is_for_nothing, module_path, module_paths
from tas.nn.rules import (
    WITH_WEIGHTS,
    Call,
    Constant,
    Draft,
    label_rule,
    positions_in,
    refuse_what_is_no_norm,
    without_labels,
)  # fmt: skip
from tas.nn.surgery import made_in_evaluation, shared_copy


@dataclass(frozen=True)
class Captured:
    """What one run of labels has found.

    Attributes:
        nodes: the exported graph, in order of execution.
        values: label tensors, `Constant`s or lists of them, by node.
        labels: their union-find.
        drafts: layers by module path.
        results: nodes that the model returns.
        numbers: labels around every operation that a module gives sizes in numbers (a view, say), with its path, and
            which of several results they are.
    """

    nodes: list[fx.Node]
    values: dict[fx.Node, Any]
    labels: Labels
    drafts: dict[str, Draft]
    results: list[fx.Node]
    numbers: list[tuple[str, Tensor, int | None]]


def capture(
    model: nn.Module,
    example: Sequence[Tensor],
    *,
    program: torch.export.ExportedProgram | None = None,
    stages: Mapping[str, Sequence[str]] | None = None,
) -> Captured:
    """Export a model in evaluation mode and push labels through every operation.

    Args:
        model: in evaluation mode; not changed.
        example: the tensors `forward` takes, batch first.
        program: what `export` gave for them, where that is known.
        stages: paths of blocks in a row, by name of their depth: behind the last one new labels are read.

    Raises:
        ModelError: the model cannot be captured.
    """
    program = program or export(model, example)
    run = _LabelRun(model, example[0].shape[0], stages or {})
    run.follow(program)
    nodes = list(run.nodes)
    made = made_in_evaluation(model)
    if made or any(unseen_layers(model, run.labels)) or any(map(is_for_nothing, nodes)):
        run.follow_training(example, made)
    run.note_numbers_of_constants()
    refuse_what_is_no_norm(run.labels, run.drafts)
    run.labels.settle()
    return Captured(nodes, run.values, run.labels, run.drafts, run.results, run.numbers)


def ends_of(nodes: Iterable[fx.Node], path: str) -> list[fx.Node]:
    """The nodes of a module whose values are used outside of it."""
    inside = {node for node in nodes if path in module_paths(node)}
    return [node for node in inside if any(user not in inside for user in node.users)]


_WITH_SIZES = (
    "view", "reshape", "_unsafe_view", "unflatten", "expand", "repeat", "split", "split_with_sizes", "slice",
    "layer_norm", "rms_norm",
)  # fmt: skip


def unseen_layers(model: nn.Module, labels: Labels) -> Iterator[str]:
    """Paths of the convolutions and linear layers whose weight no captured graph has, under whatever name."""
    names, weights = {name for name, _ in labels.axes}, dict(model.named_parameters(remove_duplicate=False))
    seen = {weights[name] for name in names if name in weights}
    for path, module in model.named_modules():
        name = joined(path, "weight")
        is_layer = isinstance(module, nn.modules.conv._ConvNd | nn.Linear)
        if is_layer and name not in names and weights.get(name) not in seen:
            yield path


class _LabelRun:
    """The state of one run of labels through an exported graph."""

    def __init__(self, model: nn.Module, batch: int, stages: Mapping[str, Sequence[str]]):
        self._tensors = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
        self._stored: dict[str, str] = {}
        self._lifted: dict[str, Any] = {}
        self._inputs: set[Any] = set()
        self._model, self._batch, self._stages = model, batch, stages
        self._computed: dict[fx.Node, Any] = {}
        self._root: fx.GraphModule | None = None
        self.nodes: list[fx.Node] = []
        self._constants: list[tuple[str, Constant]] = []
        self.labels, self.drafts = Labels(), {}
        self.values: dict[fx.Node, Any] = {}
        self.results: list[fx.Node] = []
        self.numbers: list[tuple[str, Tensor, int | None]] = []

    def follow(self, program: torch.export.ExportedProgram) -> None:
        """Give every node of a captured graph its labels."""
        signature = program.graph_signature
        self._stored = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        lifted = signature.inputs_to_lifted_tensor_constants
        self._lifted = {name: program.constants[target] for name, target in lifted.items()}
        self._inputs, self._root = set(signature.user_inputs), program.graph_module
        ends: dict[fx.Node, tuple[str, int]] = {}
        for stage, paths in self._stages.items():
            for place, path in enumerate(paths):
                found = ends_of(program.graph.nodes, path)
                ends |= dict.fromkeys(found if len(found) == 1 else (), (stage, place))
        for node in program.graph.nodes:
            self._step(node)
            if node in ends:
                self._leave(node, *ends[node])

    def _leave(self, node: fx.Node, name: str, place: int) -> None:
        """Note what a block of a depth gives; behind the last one, any of the blocks may have been the last."""
        value = self.values[node]
        stage, outputs = self.labels.stages.setdefault(name, Stage()), self.labels.channel_vector(value, 1)
        known = stage.outputs.setdefault(place, outputs)
        self.labels.union(known, outputs)  # in training a block may take another way
        if place + 1 == len(self._stages[name]):
            stage.exit = self.labels.fresh(len(outputs)) if stage.exit is None else stage.exit
            self.values[node] = spread(stage.exit, 1, tuple(value.shape))

    def follow_training(self, example: Sequence[Tensor], made: Container[str]) -> None:
        """Follow what runs in training only, such as auxiliary heads; it is cut with the rest and costs nothing.

        Tensors that were `made` for evaluation to read in its place are made anew, not cut.
        """
        counted, results, size, passages = dict(self.drafts), self.results, self._batch, list(self.labels.passages)
        batch = [torch.cat([tensor, tensor]) for tensor in example]  # a batch norm may need two samples
        learner = shared_copy(self._model)
        learner.train()
        try:
            program = export(learner, batch)
        except ModelError:  # training is tried by the self-check, which freezes what fails there
            return
        self.drafts, self._batch = {path: Draft(draft.kind) for path, draft in counted.items()}, 2 * size
        self.follow(program)
        for name, dim in [axis for axis in self.labels.axes if axis[0] in made]:
            del self.labels.axes[name, dim]
        for path, draft in self.drafts.items():
            draft.products.clear()
            counted.setdefault(path, draft)
        self.drafts, self.results, self._batch, self.labels.passages = counted, results, size, passages

    def note_numbers_of_constants(self) -> None:
        """The same for parameters that turned out to be cut after they had been given a shape (`bias_shape`)."""
        axes: dict[str, list[tuple[int, Tensor]]] = {}
        for (name, dim), vector in self.labels.axes.items():
            axes.setdefault(name, []).append((dim, torch.as_tensor(vector)))
        for path, constant in self._constants:
            for name, elements in constant.elements() if prod(constant.shape) > 1 else ():
                for dim, vector in axes.get(name, ()):
                    coordinates = torch.unravel_index(elements, self._tensors[name].shape)[dim]
                    labels = expanded(vector[coordinates])
                    if len(varying_dims(labels)) == 1 and labels.shape == constant.shape:
                        self.numbers.append((path, labels, None))

    def _step(self, node: fx.Node) -> None:
        self.nodes.append(node)
        if node.op == "placeholder":
            self.values[node] = self._placeholder(node)
        elif node.op == "get_attr":
            region = getattr(self._root, str(node.target), None)
            self.values[node] = region if isinstance(region, fx.GraphModule) else None
        elif node.op == "call_function":
            self.values[node] = self._call(node)
        elif node.op == "output":
            self.results = list(node.all_input_nodes)
            for result in self.results:
                for value in _flat(self.values[result]):
                    self.labels.freeze(value, "output of the model", module_path(result))

    def _placeholder(self, node: fx.Node) -> Any:
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            return value
        shape = tuple(value.shape)
        if node.name in self._inputs:
            return fixed(shape)
        name = self._stored.get(node.name)
        if name is None:
            return Constant(None, shape, lambda: [("", positions_in(shape))], lambda: self._lifted[node.name])
        return Constant(name, shape, lambda: [(name, positions_in(shape))], lambda: self._tensors[name])

    def _call(self, node: fx.Node) -> Any:
        if node.target is operator.getitem:
            whole, index = node.args
            return self.values[whole][index]  # type: ignore[index]
        places = [place for place, item in enumerate(node.args) if isinstance(item, fx.Node)]
        regions = [place for place in places if isinstance(self.values[node.args[place]], fx.GraphModule)]  # type: ignore[index]
        if len(regions) == 1 and "wrap" in str(node.target):
            return self._region(self.values[node.args[regions[0]]], node.args[regions[0] + 1 :])  # type: ignore[index]
        shapes = [tuple(item.shape) for item in _flat(node.meta.get("val"))]
        if not shapes:  # a number, or a check that returns nothing
            return None
        call = self._described(node, shapes)
        is_list = isinstance(node.meta["val"], list | tuple)
        if not call.label_tensors() and call.op not in WITH_WEIGHTS:
            constants = without_labels(call, lambda: self._value(node))
            if call.op in _WITH_SIZES:
                self._constants += [(call.module, constant) for constant in constants]
            return constants if is_list else constants[0]
        if any(not isinstance(size, int) for shape in shapes for size in shape):
            raise ModelError(f"how large {call.op} in {call.module} is depends on values of tensors. {WITHOUT_VALUES}")
        try:
            result = label_rule(call)(call)
        except Exception as error:  # its rule did not foresee such a call; that must not end the trace
            result = call.refuse(f"passes {call.op} in a way its rule does not know ({type(error).__name__})")
        self._note_numbers(node, call, result)
        return [result] if is_list and isinstance(result, Tensor) else result

    def _region(self, region: fx.GraphModule, inputs: Sequence[Any]) -> list[Any]:
        """Follow a part of the graph under other rules of autocast or gradients."""
        given, results = iter(inputs), []
        for node in region.graph.nodes:
            if node.op == "placeholder":
                self.values[node] = self.values[next(given)]
            elif node.op == "output":
                results = [self.values[item] for item in node.args[0]]  # type: ignore[union-attr]
            else:
                self._step(node)
        return results

    def _described(self, node: fx.Node, shapes: list[tuple[int, ...]]) -> Call:
        first = node.all_input_nodes[0] if node.all_input_nodes else None
        maker = module_path(first) if first is not None and len(first.users) == 1 else None
        schema = getattr(node.target, "_schema", None)
        namespace, _, op = (f"aten::{node.target}" if schema is None else schema.name).rpartition("::")
        op = op[:-1] if op.endswith("_") and not op.endswith("__") else op
        op = "cat" if op in ("concat", "concatenate") else op
        return Call(
            op, _arguments(node, self.values), shapes, module_path(node), module_paths(node)[-1], self.labels,
            self.drafts, self._model, self._batch, maker, lambda: self._entry(node), lambda: self._example(node),
            namespace,
        )  # fmt: skip

    def _example(self, node: fx.Node) -> dict[str, Any]:
        """Values for the arguments of a node: those of constants, and noise; numbers small enough for any index."""
        draw, values = torch.Generator().manual_seed(0), {}
        for source in node.all_input_nodes:
            known, value = self.values[source], source.meta.get("val")
            if isinstance(known, Constant):
                value = self._value(source)
            elif isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex()):
                value = torch.randn(value.shape, generator=draw, dtype=value.dtype)
            elif isinstance(value, Tensor):
                value = torch.randint(2, value.shape, generator=draw).to(value.dtype)
            values[source] = value
        return _arguments(node, values)

    def _entry(self, node: fx.Node) -> Tensor | None:
        """Labels that the module around this node reads."""
        path = module_paths(node)[-1]
        while lies_in(module_paths(node)[-1], path):
            sources = [source for source in node.all_input_nodes if isinstance(self.values.get(source), Tensor | list)]
            if not sources:
                return None
            node = sources[0]
        found = self.values[node]
        return found if isinstance(found, Tensor) else None

    def _note_numbers(self, node: fx.Node, call: Call, result: Any) -> None:
        """Dimensions around a call that takes numbers: the module may keep such a number as `num_heads`."""
        draft = self.drafts.get(call.module)
        has_groups = call.op.startswith("conv") and draft is not None and draft.kind == "other"  # of no layer
        if call.op not in _WITH_SIZES and not has_groups:
            return
        sources = [(tensor, None) for tensor in call.label_tensors()]
        is_split = call.op == "split_with_sizes"
        results = [(tensor, part if is_split else None) for part, tensor in enumerate(_flat(result))]
        self.numbers += [(call.module, tensor, part) for tensor, part in (*sources, *results) if varying_dims(tensor)]
        self._note_echoes(call, [tensor for tensor, _ in results])

    def _note_echoes(self, call: Call, results: Sequence[Tensor]) -> None:
        """Such a number may also be that of the channels which the module reads."""
        entry = call.entry()
        dims = varying_dims(entry) if entry is not None else []
        if entry is None or len(dims) != 1:
            return
        read = along(entry, dims[0])
        for labels in results:
            for made in (along(labels, dim) for dim in varying_dims(labels)):
                if len(made) == len(read) and not torch.equal(made, read):
                    self.labels.echoes.append(Echo(call.module, made, read))

    def _value(self, node: fx.Node) -> Any:
        """What a node that depends on constants alone computes."""
        if node not in self._computed:
            known = self.values.get(node)
            if node.op == "placeholder" and isinstance(known, Constant):
                self._computed[node] = known.value()
            elif isinstance(known, Tensor):  # labels: what is made anew takes its shape alone from them
                self._computed[node] = torch.zeros((), dtype=node.meta["val"].dtype).expand(known.shape)
            else:
                arguments, options = map_arg((node.args, dict(node.kwargs)), self._value)
                self._computed[node] = node.target(*arguments, **options)  # type: ignore[operator]
        return self._computed[node]


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
