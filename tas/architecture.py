"""One point of a search space, as a value that travels."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tas.errors import ArchitectureError


def _sizes(values: Any, what: str) -> dict[str, int]:
    if not isinstance(values, Mapping):
        raise ArchitectureError(f"{what} of an architecture must map names to sizes, not be {type(values).__name__}")
    for name, size in values.items():
        if not isinstance(name, str) or isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ArchitectureError(f"{what}[{name!r}] is {size!r}; an architecture keeps a whole number of at least 1")
    return dict(sorted(values.items()))


@dataclass(frozen=True)
class Architecture:
    """One point of a `SearchSpace`; the names are the space's. Hashable; do not change the mappings.

    Attributes:
        widths: channels to keep, by width name.
        depths: blocks to keep, by depth name.
    """

    widths: Mapping[str, int]
    depths: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self):
        object.__setattr__(self, "widths", _sizes(self.widths, "widths"))
        object.__setattr__(self, "depths", _sizes(self.depths, "depths"))

    def __hash__(self):
        return hash((tuple(self.widths.items()), tuple(self.depths.items())))

    def to_dict(self) -> dict[str, dict[str, int]]:
        """The sizes in plain mappings, names sorted."""
        return {"widths": dict(self.widths), "depths": dict(self.depths)}

    def to_json(self) -> str:
        """The architecture as JSON text, names sorted."""
        return json.dumps(self.to_dict(), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Architecture":
        """Read what `to_json` wrote.

        Raises:
            ArchitectureError: the text is not an architecture.
        """
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            raise ArchitectureError(f"this is not JSON ({error}); give the architecture.json of a run") from None
        if not isinstance(value, dict) or "widths" not in value:
            raise ArchitectureError(
                'an architecture is {"widths": {…}, "depths": {…}}; give the architecture.json of a run'
            )
        return cls(value["widths"], value.get("depths", {}))
