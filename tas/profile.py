"""What one model costs and how good it is."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Measured facts of one model.

    Attributes:
        macs: multiply-adds per sample of convolutions and linear layers.
        params: number of parameters.
        accuracy: percent of the test set, or the mean of the user's metric; None when no data was given.
        latency_ms: median time of one forward pass, in milliseconds.
        latency_spread_ms: distance between the quartiles of that time.
        batch_size: samples in the timed forward pass.
    """

    macs: int
    params: int
    accuracy: float | None
    latency_ms: float
    latency_spread_ms: float
    batch_size: int = 1

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, for JSON."""
        return asdict(self)
