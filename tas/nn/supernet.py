"""The model with its choices left open: the user's own modules and forward, some layers replaced."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tas.architecture import Architecture
from tas.errors import ArchitectureError, ConfigError
from tas.graph import Graph
from tas.nn.compiled import as_written, is_compiled
from tas.nn.mixed_depth import DepthState, OpenBlock, OpenBranch, free_exits
from tas.nn.mixing import (
    INTERPOLATIONS,
    PADDING,
    CompactWidth,
    DenseAxis,
    DenseWidth,
    FixedSize,
    Interpolation,
    Size,
    gumbel_weights,
)  # fmt: skip
from tas.nn.modes import forget, has_own_train
from tas.nn.rules import KINDS
from tas.nn.rules.normalization import MixedAffines, OpenBatchNorm
from tas.nn.rules.opened import Opened
from tas.nn.rules.shortcut import CompactShortcut, DenseShortcut
from tas.nn.surgery import fresh_copy, made_in_evaluation, replaced, require_fit, set_attribute
from tas.space import SearchSpace


class Supernet(nn.Module):
    """A copy of a model in which every width and depth of a space can be drawn, mixed, or fixed.

    Two executions compute the same numbers. Compact: only the largest drawn sizes are computed, which makes a step
    cheaper than one of the full model; sizes are Python numbers. Dense: full shapes with zeros, every index a tensor.

    After construction the largest architecture is open; `draw` opens a random mixture, `fixed` one architecture.

    Args:
        model: the full model; copied.
        graph: traced from it.
        space: the candidates.
        execution: compact or dense.
        fragments: candidates drawn per width, I of the paper.
        depth_samples: depths mixed per forward: as many as `fragments` (drawn), or all as in the paper.
        interpolation: how fragments of different size are aligned: average or linear over channels, or none (zeros).
        in_place: open `model` itself instead of a copy.

    Attributes:
        logits: (choices, candidates), α of the paper; rows are widths then depths, padded on the right.

    Raises:
        ConfigError: an option makes no sense.
        ModelError: the graph does not fit the model.

    Source:
        Dong and Yang, 2019, section 3.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: Graph,
        space: SearchSpace,
        *,
        execution: Literal["compact", "dense"] = "compact",
        fragments: int = 2,
        depth_samples: Literal["drawn", "all"] = "drawn",
        interpolation: Interpolation = "average",
        in_place: bool = False,
    ):
        super().__init__()
        if execution not in ("compact", "dense") or depth_samples not in ("drawn", "all") or fragments < 1:
            raise ConfigError(
                f"execution is {execution!r} (compact or dense), depth_samples {depth_samples!r} (drawn or all), "
                f"fragments {fragments} (at least 1)"
            )
        require_fit(model, graph)
        _require_space(graph, space)
        self.graph, self.space = graph, space
        self.execution, self.fragments, self.depth_samples = execution, fragments, depth_samples
        full = graph.full
        self._widths: dict[str, Any] = {
            name: CompactWidth(sizes) if execution == "compact" else DenseWidth(sizes, full.widths[name])
            for name, sizes in space.widths.items()
        }
        self._depths = {name: DepthState(kept, full.depths[name]) for name, kept in space.depths.items()}
        self._sizes: dict[str, Size] = {**self._widths, **free_exits(graph, self._widths, self._depths)}
        self.interpolation = interpolation
        opened = model if in_place else fresh_copy(model)
        # dense execution keeps full shapes, and with them the numbers on modules
        self._attributes = [
            (opened.get_submodule(item.module), item) for item in (graph.attributes if execution == "compact" else ())
        ]
        # of one size they may keep what is wrong for the next
        self._keeping = list(filter(has_own_train, opened.modules()))
        self._making = list(made_in_evaluation(opened).values())
        self.model = _opened(opened, graph, self._sizes, self._depths, execution)
        self._affines = MixedAffines(self.model)
        self._is_compiled = execution == "compact" and is_compiled(self.model)
        self._settle()
        choices = space.choices.values()
        columns = max(map(len, choices), default=1)
        self.logits = nn.Parameter(torch.zeros(len(choices), columns))
        is_candidate = torch.tensor([[c < len(s) for c in range(columns)] for s in choices], dtype=torch.bool)
        self.register_buffer("_is_candidate", is_candidate.view(-1, columns))
        self.training = model.training

    @property
    def keeps(self) -> bool:
        """Whether a module may keep in evaluation mode what it has computed, and must forget it at other sizes."""
        return bool(self._keeping)

    @property
    def interpolation(self) -> Interpolation:
        """How fragments of different size are aligned."""
        return self._interpolation

    @interpolation.setter
    def interpolation(self, how: Interpolation) -> None:
        if how not in INTERPOLATIONS:
            raise ConfigError(f"interpolation is {how!r}; it can be {' or '.join(INTERPOLATIONS)}")
        self._interpolation: Interpolation = how
        for state in (*self._widths.values(), *self._depths.values()):
            state.how = how

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """What the model's own forward returns, under the choices open now."""
        self._affines.make()
        for module in self._making:  # in evaluation it would read what it has made of its whole weights
            module.training = True
        try:
            with as_written(self._is_compiled):
                return self.model(*inputs, **options)
        finally:
            for module in self._making:
                module.training = self.training

    def weights(self) -> list[nn.Parameter]:
        """Every trainable parameter but the logits."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def log_probabilities(self) -> Tensor:
        """(choices, candidates), padding far below zero; differentiable."""
        masked = self.logits.masked_fill(~self._is_candidate, PADDING)  # type: ignore[operator]
        return masked.log_softmax(1) if masked.numel() else masked

    def scores(self) -> dict[str, list[float]]:
        """Log-probability of every candidate, by name of the width or depth."""
        table = self.log_probabilities().detach().double().tolist()
        choices = self.space.choices.items()
        return {name: row[: len(sizes)] for (name, sizes), row in zip(choices, table, strict=True)}

    def most_probable(self) -> Architecture:
        """The most probable size of everything, whatever it costs."""
        return self.space.architecture(row.index(max(row)) for row in self.scores().values())

    def draw(
        self, temperature: float, generator: torch.Generator | None = None, *, differentiable: bool = True
    ) -> None:
        """Open `fragments` candidates of every choice at random; they stay open until the next draw.

        Args:
            temperature: τ > 0 of the Gumbel softmax.
            generator: on the device of the logits.
            differentiable: whether the mixing weights carry a gradient to the logits.
        """
        with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()):
            logs = self.log_probabilities()
            split = len(self._widths)
            depth_fragments = self.fragments if self.depth_samples == "drawn" else logs.shape[1]
            for states, rows, fragments in (
                (self._widths, logs[:split], self.fragments),
                (self._depths, logs[split:], depth_fragments),
            ):
                if not states:
                    continue
                chosen, weights = gumbel_weights(rows, fragments, temperature=temperature, generator=generator)
                self._open(states, chosen, weights)
        self._settle()

    def _open(self, states: Mapping[str, Any], chosen: Tensor, weights: Tensor) -> None:
        if self.execution == "dense":
            counts = torch.tensor([len(state.candidates) for state in states.values()], device=chosen.device)
            chosen = chosen.where(chosen < counts[:, None], 0)  # padding has weight zero: any candidate will do
            for row, state in enumerate(states.values()):
                (state.draw_dense if isinstance(state, DepthState) else state.draw)(chosen[row], weights[row])
            return
        for state, indices, row in zip(states.values(), chosen.tolist(), weights, strict=True):
            real = [place for place, index in enumerate(indices) if index < len(state.candidates)]
            if len(state.candidates) == 1:
                state.pick(0)
            else:
                state.draw([indices[place] for place in real], row[real] if len(real) < len(indices) else row)

    def _settle(self) -> None:
        """Let numbers on modules follow the sizes open now; what modules keep in evaluation mode is computed anew."""
        self._affines.made = {}
        for module in self._keeping:
            if not module.training:
                forget(module)
        if self._attributes:
            sizes = {name: int(size.active) for name, size in self._sizes.items()}
            for module, item in self._attributes:
                set_attribute(module, item, sizes)

    @contextmanager
    def fixed(self, architecture: Architecture) -> Iterator[Supernet]:
        """Run exactly one architecture inside the block; afterwards what was open before is open again.

        Raises:
            ArchitectureError: the architecture is not in the space.
        """
        if architecture not in self.space:
            raise ArchitectureError("the architecture is not in the supernet's space; its sizes must be candidates")
        states = {**self._widths, **self._depths}
        before = {name: dict(vars(state)) for name, state in states.items()}
        try:
            for name, size in architecture.widths.items():
                self._widths[name].pick(self._widths[name].candidates.index(size), self.logits.device)
            for name, size in architecture.depths.items():
                self._depths[name].pick(self._depths[name].candidates.index(size))
            self._settle()
            yield self
        finally:
            for name, state in states.items():
                vars(state).clear()
                vars(state).update(before[name])
            self._settle()

    def reset_weights(self, seed: int) -> None:
        """Start the weights anew, each layer by its own `reset_parameters`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            reset_weights(self.model)
        for module in self.model.modules():
            if isinstance(module, OpenBatchNorm):
                module.reset_affine()

    def collapse(self, architecture: Architecture) -> nn.Module:
        """The model in its own modules and full shape again, with the supernet's weights for one architecture.

        Deriving `architecture` from the result gives the network that `fixed(architecture)` runs.
        """
        with self.fixed(architecture):  # a draw that carries gradients cannot be copied
            whole = fresh_copy(self.model)
        for module in whole.modules():
            if isinstance(module, OpenBatchNorm) and module.width_name is not None:
                name = module.width_name
                module.restore(self.space.widths[name].index(architecture.widths[name]))
        whole, sizes = _closed(whole), self.graph.sizes(self.graph.full)
        for item in self.graph.attributes:
            set_attribute(whole.get_submodule(item.module), item, sizes)
        for shortcut in self.graph.shortcuts:
            block = whole.get_submodule(shortcut.block)
            setattr(block, shortcut.attribute, getattr(block, shortcut.attribute).original)
        forget(whole)
        return whole


def reset_weights(model: nn.Module) -> None:
    """Give every module that knows how to a fresh start, in place.

    What a forward adds or multiplies by itself (a token, a layer scale) and parametrised weights stay: nobody knows how
    they start.
    """
    for module in model.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset) and not isinstance(module, Opened):
            reset()
        if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:  # its own reset is private
            nn.init.xavier_uniform_(module.in_proj_weight)
            if module.in_proj_bias is not None:
                nn.init.zeros_(module.in_proj_bias)


def _require_space(graph: Graph, space: SearchSpace) -> None:
    for what, candidates, full in (
        ("width", space.widths, graph.full.widths),
        ("depth", space.depths, graph.full.depths),
    ):
        if candidates.keys() != full.keys():
            raise ArchitectureError(f"the space does not belong to this graph: its {what}s have other names")
        for name, sizes in candidates.items():
            if sizes[-1] > full[name]:
                raise ArchitectureError(f"{what} {name!r} has a candidate {sizes[-1]}; the model has only {full[name]}")


def _opened(
    model: nn.Module, graph: Graph, sizes: dict[str, Any], depths: dict[str, DepthState], execution: str
) -> nn.Module:
    """The model with its open layers, shortcuts and blocks replaced, in place."""
    others: dict[nn.Module, nn.Module] = {}
    for item in graph.shortcuts:
        block = model.get_submodule(item.block)
        make = CompactShortcut if execution == "compact" else DenseShortcut
        ends = [FixedSize(item.channels) if end is None else sizes[end] for end in (item.reads, item.makes)]
        setattr(block, item.attribute, make(getattr(block, item.attribute), *ends).train(block.training))
    for layer in graph.layers:
        kind = KINDS[layer.kind]
        make = kind.compact if execution == "compact" else kind.dense
        if layer.is_open:
            module = model.get_submodule(layer.name)
            others[module] = make(module, layer, sizes).train(module.training)
            place = next(chain(module.parameters(), module.buffers(), model.parameters())).device
            for table in others[module].modules():
                if isinstance(table, DenseAxis):
                    table.to(place)  # nothing moves in a forward
    for depth in graph.depths:
        depths[depth.name].in_place = depth.in_place
        skippable = OpenBranch if depth.is_added else OpenBlock
        for position, path in list(enumerate(depth.blocks))[depth.is_added :]:  # the second branch reads the first sum
            block = model.get_submodule(path)
            others[block] = skippable(others.get(block, block), depths[depth.name], position, depth.returns)
            others[block].training = block.training
    return replaced(model, others)


def _closed(model: nn.Module) -> nn.Module:
    """The user's modules in their own places again, in place."""
    inner = {}
    for module in model.modules():
        if isinstance(module, Opened):
            within = module.module
            while isinstance(within, Opened):
                within = within.module
            inner[module] = within
    return replaced(model, inner)
