"""Features of a student and its teacher: which layers belong together, how they are recorded and compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tas.errors import ConfigError, ModelError
from tas.nn.modes import evaluating, modes_kept
from tas.nn.transfer.losses import attention_loss, hint_loss
from tas.options import near_misses

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Match:
    """A layer that student and teacher both have.

    Attributes:
        layer: module path, the same in both.
        student: shape of what it gives, batch included.
        teacher: likewise; the same but for the channels.
        channels: the dimension on which they stand: 1 in feature maps, the last in tokens and in maps as Swin has them.
    """

    layer: str
    student: Shape
    teacher: Shape
    channels: int

    def tokens(self, features: Tensor) -> Tensor:
        """What the layer gives, as (batch, positions, channels)."""
        return features.movedim(self.channels, -1).flatten(1, -2)


class Hints(nn.Module):
    """Brings the student's features to the teacher's channels and compares them; learns, and is thrown away after.

    A regressor is a 1x1 convolution and a batch norm. Without the norm, the weight of 100 that belongs to this loss
    made training diverge at a learning rate of 0.1.

    Args:
        matches: the layers, in the order in which their features come.
        seed: of the regressors.

    Source:
        Romero et al., 2015, section 2.2, trained along with the rest as in Tian et al., "Contrastive Representation
        Distillation", ICLR 2020, https://arxiv.org/abs/1910.10699; see `hint_loss`.
    """

    def __init__(self, matches: Sequence[Match], seed: int):
        super().__init__()
        self.matches = tuple(matches)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.regressors = nn.ModuleList(_regressor(match) for match in matches)

    def forward(self, student_features: Sequence[Tensor], teacher_features: Sequence[Tensor]) -> Tensor:
        """Mean over the layers, so that the weight means the same for one hint, as in the paper, and for several."""
        losses = []
        for match, regressor, *pair in zip(
            self.matches, self.regressors, student_features, teacher_features, strict=True
        ):
            ours, theirs = (match.tokens(features).transpose(1, 2) for features in pair)
            losses.append(hint_loss(regressor(ours), theirs))
        return torch.stack(losses).mean()


def _regressor(match: Match) -> nn.Module:
    inputs, outputs = match.student[match.channels], match.teacher[match.channels]
    return nn.Sequential(nn.Conv1d(inputs, outputs, 1, bias=False), nn.BatchNorm1d(outputs))


class Attention(nn.Module):
    """Compares where the features are large; nothing to learn.

    Args:
        matches: the layers, in the order in which their features come.

    Source:
        Zagoruyko and Komodakis, 2017, equation 2; see `attention_loss`.
    """

    def __init__(self, matches: Sequence[Match]):
        super().__init__()
        self.matches = tuple(matches)

    def forward(self, student_features: Sequence[Tensor], teacher_features: Sequence[Tensor]) -> Tensor:
        """Sum over the layers, as in the paper."""
        features = zip(self.matches, student_features, teacher_features, strict=True)
        losses = [attention_loss(match.tokens(ours), match.tokens(theirs)) for match, ours, theirs in features]
        return torch.stack(losses).sum()


def require_layers(model: nn.Module, layers: Sequence[str]) -> None:
    """Check that the model has modules of these names.

    Raises:
        ConfigError: names the first that is missing.
    """
    names = dict(model.named_modules(remove_duplicate=False))
    for layer in layers:
        if not layer or layer not in names:
            raise ConfigError(
                f"there is no layer {layer!r} in {type(model).__name__}{near_misses(layer, names)}; give module paths "
                f"as named_modules() has them"
            )


def match_layers(
    student: nn.Module, teacher: nn.Module, inputs: Tensor, layers: Sequence[str] = ()
) -> tuple[Match, ...]:
    """The layers of which the features are compared; both models are run, in evaluation mode.

    Where their channels stand is seen, not assumed: student and teacher differ there alone, and it is a dimension that
    does not grow with the images. By default the last module of every stage: for every size of feature maps (or number
    of tokens) in which a layer computes, the last module to finish. A module inside a block that reads this size and
    gives another belongs to the next stage, and counts only if there is no other.

    Args:
        student: small; its modules have the names of the teacher's.
        teacher: large.
        inputs: what both take; the values do not matter.
        layers: module paths; empty for the default.

    Raises:
        ConfigError: a layer is missing in one of them, gives no feature map or tokens, or gives another size.
    """
    ours, theirs, larger = _calls(student, inputs), _calls(teacher, inputs), _calls_of_larger(teacher, inputs)
    channels = {}
    for layer, call in theirs.items():
        shapes = call.gave, ours.get(layer, call).gave, larger.get(layer, call).gave
        channels[layer] = _channels(*shapes, usual=1 if len(call.gave) == inputs.dim() else len(call.gave) - 1)
    if not layers:
        layers = _stage_ends(teacher, theirs, channels, set(ours))
        if not layers:
            raise ConfigError(
                "student and teacher have no feature maps of the same name and size; name the layers to compare, or "
                "choose transfer=kd"
            )
    for model in (student, teacher):
        require_layers(model, layers)
    return tuple(_match(layer, ours, theirs, channels) for layer in layers)


def _match(layer: str, ours: dict[str, _Call], theirs: dict[str, _Call], channels: dict[str, int | None]) -> Match:
    for whose, calls in (("student", ours), ("teacher", theirs)):
        if layer not in calls or len(calls[layer].gave) < 3:
            gives = f"gives {list(calls[layer].gave)}" if layer in calls else "is never called, or gives no tensor"
            raise ConfigError(
                f"layer {layer!r} of the {whose} {gives}; name layers that give feature maps or tokens, as (batch, "
                f"channels, height, width), (batch, height, width, channels) or (batch, tokens, channels)"
            )
    dimension = channels[layer]
    if dimension is None:
        raise ConfigError(
            f"layer {layer!r} gives {list(ours[layer].gave)} in the student and {list(theirs[layer].gave)} in the "
            f"teacher; the batch must come first and only the channels may differ, name another layer"
        )
    return Match(layer, ours[layer].gave, theirs[layer].gave, dimension)


def _channels(theirs: Shape, ours: Shape, larger: Shape, *, usual: int) -> int | None:
    """The dimension of the channels; None where the shapes are not those of one kind of features.

    Where nothing was cut and the model takes images of one size alone, several are left: then that beside which all
    are alike, as of square images, or the usual one.
    """
    if not len(theirs) == len(ours) == len(larger) >= 3 or not theirs[0] == ours[0] == larger[0]:
        return None
    cut = [dim for dim in range(1, len(theirs)) if _without(theirs, dim) == _without(ours, dim)]
    steady = [dim for dim in cut if theirs[dim] == larger[dim]]
    return min(steady, key=lambda dim: (len(set(_without(theirs, dim))), dim != usual), default=None)


def _without(shape: Shape, dim: int) -> Shape:
    """The positions of features: a shape but for the batch and this dimension."""
    return shape[1:dim] + shape[dim + 1 :]


@dataclass(frozen=True)
class _Call:
    """Shape of the first tensor a module read, and of the tensor it gave."""

    read: Shape
    gave: Shape

    def reads(self, positions: Shape) -> bool:
        """Whether what it read has these, wherever its channels stand."""
        return any(_without(self.read, dim) == positions for dim in range(1, len(self.read)))


@torch.no_grad()
def _calls(model: nn.Module, inputs: Tensor) -> dict[str, _Call]:
    """The last call of every module, in the order in which they finished."""
    calls: dict[str, _Call] = {}

    def note(path: str) -> Callable[[nn.Module, Any, Any], None]:
        """A hook that writes down the shapes of a call under this path."""

        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            calls.pop(path, None)
            if isinstance(output, Tensor):
                read = next((tuple(value.shape) for value in arguments if isinstance(value, Tensor)), ())
                calls[path] = _Call(read, tuple(output.shape))

        return hook

    with modes_kept(model), ExitStack() as hooks:
        for path, module in model.named_modules():
            if path:
                hooks.enter_context(module.register_forward_hook(note(path)))
        evaluating(model)(inputs)
    return calls


def _calls_of_larger(model: nn.Module, inputs: Tensor) -> dict[str, _Call]:
    """Those for inputs twice as large along every position; none where the model takes one size alone."""
    for dim in range(min(2, inputs.dim() - 1), inputs.dim()):
        inputs = inputs.repeat_interleave(2, dim)
    try:
        return _calls(model, inputs)
    except Exception:  # a forward may raise what it likes
        return {}


def _stage_ends(
    model: nn.Module, calls: dict[str, _Call], channels: dict[str, int | None], allowed: set[str]
) -> list[str]:
    modules = dict(model.named_modules())
    sizes = {layer: _without(calls[layer].gave, dim) for layer, dim in channels.items() if dim is not None}
    computed = {
        size: None
        for layer, size in sizes.items()
        if next(modules[layer].parameters(recurse=False), None) is not None and max(size) > 1  # one has no map
    }
    ends = []
    for size in computed:
        leaving = {}
        for layer in [layer for layer, found in sizes.items() if found == size and layer in allowed]:
            # a plain Sequential has no block's forward: what stands in it are the stages themselves
            around = [path for path in _outer(layer, calls) if type(modules[path]) is not nn.Sequential]
            gives = [(calls[path], sizes.get(path)) for path in around]
            if not any(gave is not None and gave != size and call.reads(gave) for call, gave in gives):  # a detour
                leaving[layer] = sum(gave != size and call.reads(size) for call, gave in gives)
        fewest = min(leaving.values(), default=0)
        ends += [layer for layer, count in leaving.items() if count == fewest][-1:]
    return ends


def _outer(layer: str, calls: dict[str, _Call]) -> list[str]:
    parts = layer.split(".")
    paths = [".".join(parts[:count]) for count in range(1, len(parts))]
    return [path for path in paths if path in calls]


@contextmanager
def recorded(models: Sequence[nn.Module], layers: Sequence[str]) -> Iterator[Callable[[], list[list[Tensor]]]]:
    """Record what these layers give in every forward pass, until the block ends; then no hook is left.

    Args:
        models: each has all of the layers; wrappers around them may be called instead.
        layers: module paths.

    Yields:
        A function that hands out, once, what the last pass gave: by model, by layer. A layer called several times
        gives the last; one that a later operation changes in place gives what came of it.
    """
    found: list[dict[str, Tensor]] = [{} for _ in models]

    def keep(features: dict[str, Tensor], layer: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, arguments, output: features.update({layer: output})

    def take() -> list[list[Tensor]]:
        """The features of the last call, by model and layer; they are let go of."""
        for features in found:
            missing = [layer for layer in layers if layer not in features]
            if missing:
                raise ModelError(f"layer {missing[0]!r} was not called in training; name layers that always are")
        taken = [[features[layer] for layer in layers] for features in found]
        for features in found:
            features.clear()  # what is held on to keeps a whole pass in memory
        return taken

    with ExitStack() as hooks:
        for model, features in zip(models, found, strict=True):
            for layer in layers:
                hooks.enter_context(model.get_submodule(layer).register_forward_hook(keep(features, layer)))
        yield take
