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
    """

    layer: str
    student: Shape
    teacher: Shape


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
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.regressors = nn.ModuleList(_regressor(match) for match in matches)

    def forward(self, student_features: Sequence[Tensor], teacher_features: Sequence[Tensor]) -> Tensor:
        """Mean over the layers, so that the weight means the same for one hint, as in the paper, and for several."""
        features = zip(map(_channels_second, student_features), map(_channels_second, teacher_features), strict=True)
        pairs = zip(self.regressors, features, strict=True)
        return torch.stack([hint_loss(regressor(ours), theirs) for regressor, (ours, theirs) in pairs]).mean()


def _regressor(match: Match) -> nn.Module:
    if len(match.student) == 4:
        inputs, outputs = match.student[1], match.teacher[1]
        return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
    inputs, outputs = match.student[2], match.teacher[2]
    return nn.Sequential(nn.Conv1d(inputs, outputs, 1, bias=False), nn.BatchNorm1d(outputs))


def _channels_second(features: Tensor) -> Tensor:
    return features.transpose(1, 2) if features.dim() == 3 else features


class Attention(nn.Module):
    """Compares where the features are large; nothing to learn.

    Source:
        Zagoruyko and Komodakis, 2017, equation 2; see `attention_loss`.
    """

    def forward(self, student_features: Sequence[Tensor], teacher_features: Sequence[Tensor]) -> Tensor:
        """Sum over the layers, as in the paper."""
        pairs = zip(student_features, teacher_features, strict=True)
        return torch.stack([attention_loss(ours, theirs) for ours, theirs in pairs]).sum()


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
    """The layers of which the features are compared; both models are run once, in evaluation mode.

    By default the last module of every stage: for every size of feature maps (or number of tokens) in which a layer
    computes, the last module to finish. A module inside a block that reads this size and gives another belongs to the
    next stage, and counts only if there is no other.

    Args:
        student: small; its modules have the names of the teacher's.
        teacher: large.
        inputs: what both take; the values do not matter.
        layers: module paths; empty for the default.

    Raises:
        ConfigError: a layer is missing in one of them, gives no feature map or tokens, or gives another size.
    """
    ours, theirs = _calls(student, inputs), _without_channels_last(_calls(teacher, inputs), teacher, inputs)
    if not layers:
        layers = _stage_ends(teacher, theirs, {layer for layer in ours if ours[layer].size == _size(theirs, layer)})
        if not layers:
            raise ConfigError(
                "student and teacher have no feature maps of the same name and size; name the layers to compare, or "
                "choose transfer=kd"
            )
    for model in (student, teacher):
        require_layers(model, layers)
    return tuple(_match(layer, ours, theirs) for layer in layers)


def _match(layer: str, ours: dict[str, _Call], theirs: dict[str, _Call]) -> Match:
    for whose, calls in (("student", ours), ("teacher", theirs)):
        if _size(calls, layer) is None:
            gives = f"gives {list(calls[layer].gave)}" if layer in calls else "is never called, or gives no tensor"
            raise ConfigError(
                f"layer {layer!r} of the {whose} {gives}; name layers that give (batch, channels, height, width) or "
                f"(batch, tokens, channels)"
            )
    if ours[layer].size != theirs[layer].size:
        raise ConfigError(
            f"layer {layer!r} gives {list(ours[layer].gave)} in the student and {list(theirs[layer].gave)} in the "
            f"teacher; only the channels may differ, name another layer"
        )
    return Match(layer, ours[layer].gave, theirs[layer].gave)


@dataclass(frozen=True)
class _Call:
    """Shape of the first tensor a module read, and of the tensor it gave."""

    read: Shape
    gave: Shape

    @property
    def size(self) -> Shape | None:
        return _spatial(self.gave)


def _size(calls: dict[str, _Call], layer: str) -> Shape | None:
    return calls[layer].size if layer in calls else None


def _spatial(shape: Shape) -> Shape | None:
    """Height and width, or the number of tokens; None for everything else."""
    return shape[2:] if len(shape) == 4 else shape[1:2] if len(shape) == 3 else None


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


def _without_channels_last(calls: dict[str, _Call], model: nn.Module, inputs: Tensor) -> dict[str, _Call]:
    """Those that do not give (batch, height, width, channels), as Swin's layers: taller images make that dimension 1.

    All of them where the model takes images of one size alone.
    """
    try:
        others = _calls(model, inputs.repeat_interleave(2, 2)) if inputs.dim() == 4 else {}
    except Exception:  # a forward may raise what it likes
        return calls
    shapes = {path: (call.gave, others[path].gave) for path, call in calls.items() if path in others}
    grown = {path for path, (one, other) in shapes.items() if len(one) == 4 == len(other) and one[1] != other[1]}
    return {path: call for path, call in calls.items() if path not in grown}


def _stage_ends(model: nn.Module, calls: dict[str, _Call], allowed: set[str]) -> list[str]:
    modules = dict(model.named_modules())
    computed = {
        call.size: None
        for layer, call in calls.items()
        if next(modules[layer].parameters(recurse=False), None) is not None
        and call.size is not None
        and max(call.size) > 1  # a single position has no map
    }
    ends = []
    for size in computed:
        leaving = {}
        for layer in [layer for layer, call in calls.items() if call.size == size and layer in allowed]:
            # a plain Sequential has no block's forward: what stands in it are the stages themselves
            around = [calls[path] for path in _outer(layer, calls) if type(modules[path]) is not nn.Sequential]
            if not any(_spatial(outer.read) == outer.size != size for outer in around):  # a detour within a block
                leaving[layer] = sum(_spatial(outer.read) == size != outer.size for outer in around)
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
