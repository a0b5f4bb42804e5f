"""What a cut model is compared with: the masked one, on inputs that show something."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from tas.architecture import Architecture
from tas.errors import ModelError, first_line
from tas.graph import Graph
from tas.nn.importance import ranked
from tas.nn.outputs import DIFFERS, difference, no_fast_path, run, shows_something
from tas.nn.perturb import calibrate, noise_like, perturbed, tokens_like
from tas.nn.supernet import Supernet
from tas.nn.surgery import cut, fresh_copy, mask, shared_copy
from tas.space import SearchSpace

Execution = Literal["dense", "compact"]  # of the supernet
EXECUTIONS: tuple[Execution, ...] = ("dense", "compact")
_ORDER_TOLERANCE = 1e-3  # at full size much is summed, in whatever order


@dataclass(frozen=True)
class Witness:
    """A model with inputs on which it runs, to compare cut models with.

    Attributes:
        model: in evaluation mode, with perturbed weights where those give finite outputs.
        inputs: of its forward.
        outputs: what it makes of them.
    """

    model: nn.Module
    inputs: list[Tensor]
    outputs: list[Tensor]

    @classmethod
    def find(cls, model: nn.Module, example: Sequence[Tensor], generator: torch.Generator) -> Witness | None:
        """None where no outputs are finite and more than zeros."""
        noise = [noise_like(tensor, generator) for tensor in example]
        few, noisy = [tensor[:2] for tensor in noise], perturbed(model, generator)
        rows = [module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding)]
        tokens = [[tokens_like(tensor, min(rows), generator) for tensor in few]] if rows else []
        if not any(calibrate(noisy, inputs) for inputs in (*tokens, few)):
            calibrate(noisy, [torch.cat([one, noise_like(one, generator)]) for one in few])
        trials = [(noisy, inputs) for inputs in (*tokens, few, noise)]
        trials += [(model, inputs) for inputs in (few, noise, list(example))]
        error = None
        for trial, inputs in trials:
            try:
                outputs = run(trial, inputs)
            except Exception as failure:  # the user's own forward may fail in any way
                error = failure
                continue
            error = None
            if shows_something(outputs):
                return cls(trial, inputs, outputs)
        if error is not None:
            raise ModelError(f"{type(model).__name__} fails on the example: {first_line(error)}") from error
        return None

    @cached_property
    def in_double(self) -> Witness | None:
        """The same in double precision; None where the model does not run in it, or this is it."""
        if all(tensor.dtype == torch.double for tensor in self.outputs):
            return None
        try:
            model = fresh_copy(self.model).double()
            inputs = [tensor.double() if tensor.is_floating_point() else tensor for tensor in self.inputs]
            outputs = run(model, inputs)
        except Exception:  # the user's own forward may ask for single precision in any way
            return None
        return Witness(model, inputs, outputs) if shows_something(outputs) else None

    def failure(
        self, graph: Graph, architectures: Sequence[Architecture], executions: Sequence[Execution] | None = None
    ) -> str | None:
        """Why a cut model, or the supernet in these executions, differs from the masked one; None if none does.

        Where those are None, architectures take turns in them, the dear one where most is cut: that both agree is
        hardly ever a property of the model. Rounding is no fault of the graph: what differs is looked at again in
        double precision, which takes several times as long.
        """
        reason = self._failure(graph, architectures, executions)
        precise = self.in_double if reason is not None and DIFFERS in reason else None
        return reason if precise is None else precise.failure(graph, architectures, executions)

    def _failure(
        self, graph: Graph, architectures: Sequence[Architecture], executions: Sequence[Execution] | None
    ) -> str | None:
        for place, architecture in enumerate(architectures):
            found, reason = self._cut(graph, architecture)
            if reason is not None:
                return reason
            try:
                with no_fast_path():
                    wanted = run(mask(self.model, graph, architecture), self.inputs)
            except Exception as error:  # the user's own forward may fail in any way
                return f"the masked model fails: {first_line(error)}"
            reason = difference(found, wanted)
            if reason is not None:
                return f"the cut model {reason}"
            if place == 0 and executions != ():
                reason = self._order_failure(graph, architecture)
                if reason is not None:
                    return reason
            for execution in EXECUTIONS[place % 2 :][:1] if executions is None else executions:
                reason = self._supernet_failure(graph, architecture, execution, wanted)
                if reason is not None:
                    return reason
        return None

    def _order_failure(self, graph: Graph, architecture: Architecture) -> str | None:
        """Why the model is another one where the channels of widths that are cut stand in another order."""
        draw = np.random.default_rng(0)
        cut_away = {name: size - architecture.widths[name] for name, size in graph.full.widths.items()}
        importance = {name: draw.random(size) * bool(cut_away[name]) for name, size in graph.full.widths.items()}
        if not any(cut_away.values()):
            return None
        try:
            found = run(ranked(self.model, graph, importance), self.inputs)
            reason = difference(found, self.outputs, of="the model", tolerance=_ORDER_TOLERANCE)
        except Exception as error:  # the user's own forward may fail in any way
            reason = f"fails: {first_line(error)}"
        return reason and f"with its channels in another order it {reason}"

    def _cut(self, graph: Graph, architecture: Architecture) -> tuple[list[Tensor], str | None]:
        """Outputs of the cut model, which is not kept, and why it is no good."""
        try:
            small = cut(self.model, graph, architecture)
            found = run(small, self.inputs)
        except Exception as error:  # the user's own forward may fail in any way
            return [], f"the cut model fails: {first_line(error)}"
        count = sum(parameter.numel() for parameter in small.parameters())
        if count != graph.params(architecture):
            return [], f"the cut model has {count} parameters instead of {graph.params(architecture)}"
        error = _training_error(small, self.inputs)
        if error is not None and _training_error(shared_copy(self.model), self.inputs) is None:
            return [], f"the cut model fails in training mode: {error}"
        return found, None

    def _supernet_failure(
        self, graph: Graph, architecture: Architecture, execution: Execution, wanted: list[Tensor]
    ) -> str | None:
        full = graph.full
        space = SearchSpace(
            {name: tuple(sorted({size, full.widths[name]})) for name, size in architecture.widths.items()},
            {name: tuple(sorted({size, full.depths[name]})) for name, size in architecture.depths.items()},
        )
        try:
            opened = Supernet(
                shared_copy(self.model), graph, space,
                execution=execution, interpolation="none", in_place=True,  # of a size alone any is the same
            )  # fmt: skip
            if opened.keeps:
                run(opened, self.inputs)  # of the largest, of which nothing may be kept
            with opened.fixed(architecture) as supernet:
                reason = difference(run(supernet, self.inputs), wanted)
        except Exception as error:
            return f"the {execution} supernet fails: {first_line(error)}"
        return reason and f"the {execution} supernet {reason}"


def _training_error(model: nn.Module, inputs: list[Tensor]) -> str | None:
    """Why a model does not run in training mode, where a forward may take other paths (auxiliary heads)."""
    error = None
    for trial in (inputs, [torch.cat([tensor, tensor]) for tensor in inputs]):  # a batch norm may need two samples
        try:
            model.train()
            run(model, trial)
        except Exception as failure:  # the user's own forward may fail in any way
            error = first_line(failure)
            continue
        return None
    return error
