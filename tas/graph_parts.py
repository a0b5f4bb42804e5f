"""What a graph consists of, as plain values, and how they are read from JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tas.cost import Count, Gate
from tas.layout import Layout, Run, count_of


@dataclass(frozen=True)
class Parameter:
    """One parameter or buffer of a layer and what stands on its axes.

    Attributes:
        name: as in `state_dict`.
        shape: in the full model.
        layouts: one per dimension; None where the dimension is never cut.
        is_buffer: whether it is left out of the parameter count.
    """

    name: str
    shape: tuple[int, ...]
    layouts: tuple[Layout | None, ...]
    is_buffer: bool = False

    @property
    def short(self) -> str:
        """Its name within its layer."""
        return self.name.rpartition(".")[2]

    @property
    def counts(self) -> tuple[Count, ...]:
        """Size of every dimension as a function of the widths."""
        return tuple(
            Count(size) if layout is None else count_of(layout)
            for size, layout in zip(self.shape, self.layouts, strict=True)
        )


@dataclass(frozen=True)
class Layer:
    """A module that is cut: with parameters, or one that averages over channels.

    Attributes:
        name: module path.
        kind: which rule knows it, such as `convolution`, `linear`, `batch_norm`; `other` for a module that is no layer
            but has parameters of its own, or multiplies activations with each other.
        parameters: its parameters and buffers.
        products: multiply-adds per sample, each a coefficient times axis sizes; empty for norms.
        gate: (depth, position) when it lies in a block that can be dropped.
        mixed_by: the layer behind which the supernet mixes the candidates made here: itself, the batch norm that alone
            reads it, or None where nothing is mixed.
        channel_dim: dimension of its input that holds the channels; used by norms over channels.
        channels: what stands there, for modules whose own forward averages over channels.
    """

    name: str
    kind: str
    parameters: tuple[Parameter, ...]
    products: tuple[tuple[int, tuple[Count, ...]], ...] = ()
    gate: Gate | None = None
    mixed_by: str | None = None
    channel_dim: int = 1
    channels: Layout | None = None

    @property
    def is_open(self) -> bool:
        """Whether anything about it follows a width."""
        return bool(self.channels) or any(any(parameter.layouts) for parameter in self.parameters)


@dataclass(frozen=True)
class Attribute:
    """A whole number that a module keeps beside its parameters and that follows the widths, such as `num_heads`.

    Attributes:
        module: its path.
        name: of the attribute.
        count: its value as a function of the widths.
        place: of the number, where the attribute is a list, a tuple or a dict.
    """

    module: str
    name: str
    count: Count
    place: int | str | None = None


@dataclass(frozen=True)
class Width:
    """An ordered list of channels that occur in the same axes; the thing whose size is chosen.

    Attributes:
        name: path of the first layer that makes these channels.
        size: channels in the full model.
        layers: paths of all layers with an axis in it.
        excluded: sizes at which a weight cannot be standardised, or a forward would take another way.
    """

    name: str
    size: int
    layers: tuple[str, ...]
    excluded: tuple[int, ...] = ()

    def allowed(self, size: int) -> int:
        """The smallest size from this one on, at least 1, that it may have."""
        return next(found for found in range(max(1, size), self.size + 1) if found not in self.excluded)


@dataclass(frozen=True)
class Depth:
    """A run of blocks of which a prefix is kept; the first block always stays.

    Attributes:
        name: path of the container, or of a block that can be dropped; ends with a + where widths have these names.
        blocks: module paths in order.
        returns: items of the tuple that a block returns, whose first is handed on; 0 where it returns that alone.
        is_added: whether what a block gives is added to its input outside of it: a dropped one gives zeros.
        in_place: whether anything changes in place what is handed on from block to block.
    """

    name: str
    blocks: tuple[str, ...]
    returns: int = 0
    is_added: bool = False
    in_place: bool = False


@dataclass(frozen=True)
class Frozen:
    """An axis that is not searched.

    Attributes:
        axis: `layer1.0.conv1.weight[0]`.
        reason: why, in words.
        module: path of the module in which the reason lies.
    """

    axis: str
    reason: str
    module: str


def read_count(value: dict[str, Any]) -> Count:
    """A count from what `dataclasses.asdict` makes of it."""
    return Count(value["constant"], tuple((width, times) for width, times in value["widths"]))


def _read_layout(value: list[dict[str, Any]] | None) -> Layout | None:
    return None if value is None else tuple(Run(**run) for run in value)


def read_layer(value: dict[str, Any]) -> Layer:
    """A layer from what `dataclasses.asdict` makes of it."""
    parameters = tuple(
        Parameter(item["name"], tuple(item["shape"]), tuple(map(_read_layout, item["layouts"])), item["is_buffer"])
        for item in value["parameters"]
    )
    products = tuple((times, tuple(read_count(factor) for factor in factors)) for times, factors in value["products"])
    return Layer(
        value["name"], value["kind"], parameters, products, read_gate(value["gate"]), value["mixed_by"],
        value.get("channel_dim", 1), _read_layout(value.get("channels")),
    )  # fmt: skip


def read_gate(value: list[Any] | None) -> Gate | None:
    """Depth and position from a list of both."""
    return (value[0], value[1]) if value else None
