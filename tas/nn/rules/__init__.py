"""Per kind of layer: how labels pass, what it costs, how it is cut, how it is opened. One home for each."""

from collections.abc import Mapping

from tas.nn.labels import Labels
from tas.nn.rules import (
    attention,
    channel_norm,
    constants,
    embedding,
    normalization,
    own_projection,
    parameter,
    products,
    projection,
    recurrent,
    shape,
    shortcut,
    tried,
)  # fmt: skip
from tas.nn.rules.base import Call, Constant, Draft, Kind, LabelRule, positions_in

_HOMES = (parameter, projection, embedding, attention, normalization, channel_norm, own_projection, recurrent)
LABELS: dict[str, LabelRule] = {op: rule for home in (shape, products, *_HOMES) for op, rule in home.LABELS.items()}
KINDS: dict[str, Kind] = {name: kind for home in _HOMES for name, kind in home.KINDS.items()}
WITH_WEIGHTS = {  # these give channels even where they read a constant
    *projection.LABELS, *products.LABELS, *attention.LABELS, *recurrent.LABELS, "layer_norm", "rms_norm",
}  # fmt: skip


without_labels = constants.without_labels


def refuse_what_is_no_norm(labels: Labels, drafts: Mapping[str, Draft]) -> None:
    """Freeze what a module averages over channels where that is neither a norm nor attention over pixels."""
    read = []
    for (name, dim), axis in labels.axes.items():
        path, _, short = name.rpartition(".")
        kind = KINDS.get(drafts[path].kind) if path in drafts else None
        if kind and kind.reads.get(short, 1 if short.startswith("weight") else None) == dim:
            read.append(axis)
    channel_norm.refuse_what_is_no_norm(labels, drafts, read)


def label_rule(call: Call) -> LabelRule:
    """How labels pass this operation; unknown ones are tried."""
    if call.op == "clone" and isinstance(call.model.get_submodule(call.module), shortcut.Marker):
        return shortcut.marked
    return LABELS.get(call.op, tried.unknown)


__all__ = [
    "KINDS", "WITH_WEIGHTS", "Call", "Constant", "Draft", "Kind", "label_rule", "positions_in",
    "refuse_what_is_no_norm", "without_labels",
]  # fmt: skip
