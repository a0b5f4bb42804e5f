"""Per kind of layer: how labels pass, what it costs, how it is cut, how it is opened. One home for each."""

from tas.nn.rules import normalization, projection, shape
from tas.nn.rules.base import Call, Constant, Draft, Kind, LabelRule

LABELS: dict[str, LabelRule] = shape.LABELS | projection.LABELS | normalization.LABELS
KINDS: dict[str, Kind] = projection.KINDS | normalization.KINDS


def label_rule(op: str) -> LabelRule:
    """How labels pass this operation; unknown ones freeze what they touch."""
    return LABELS.get(op, shape.unknown)


__all__ = ["KINDS", "Call", "Constant", "Draft", "Kind", "label_rule"]
