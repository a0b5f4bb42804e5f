"""What trials of whole architectures say about every candidate: a Gaussian process of one merit per candidate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tas.architecture import Architecture
from tas.graph import Graph
from tas.space import SearchSpace

NOT_FINITE = 1e30  # stands for the loss of a network that has none
# Losses are counted from the best so far, in units of what lies between it and the median of the first round
WORST = 2.0  # so bad, or worse: how bad does not matter, and losses that are not finite are no numbers
AMPLITUDE = 1.0  # standard deviation of what the scores do not know about an architecture
NOISE = 0.1  # of what is no sum over choices, and of the images
ALIKE = 0.35  # widths whose logarithms differ by this have much in common
STAGE = 0.25  # and this is how far depths are apart that differ by one


class Belief:
    """Scores, corrected by the losses of architectures that were tried.

    The loss of an architecture is a sum over its choices: some multiple of what the scores say, and one unknown number
    per candidate, neighbours alike; choices in dropped blocks count for nothing. Everything is Gaussian, so that what
    is known after some losses has a mean and a covariance.

    Args:
        scores: one number per candidate, by width and depth name; the larger the better.
        graph: of the model.
        space: the candidates.

    Source:
        Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, section 2.7, for the multiple; additive
        kernels: Duvenaud et al., NIPS 2011.
    """

    def __init__(self, scores: Mapping[str, Sequence[float]], graph: Graph, space: SearchSpace):
        self._graph, self._choices, self._rows = graph, space.choices, {}
        count = 0
        for name, sizes in self._choices.items():
            self._rows[name] = slice(count, count + len(sizes))
            count += len(sizes)
        self._said, self._prior = np.zeros(count), np.zeros((count, count))
        variance = AMPLITUDE**2 / max(1, len(self._choices))
        for name, row in self._rows.items():
            said = np.asarray(scores[name], dtype=float)
            self._said[row] = said.max() - said
            sizes = np.asarray(self._choices[name], dtype=float)
            places = np.log(sizes) if name in space.widths else STAGE * np.arange(len(sizes))
            self._prior[row, row] = variance * np.exp(-((places[:, None] - places) ** 2) / (2 * ALIKE**2))
        self._mean, self._covariance = self._said, self._prior

    def learn(self, losses: Mapping[Architecture, float], first: int) -> None:
        """Take the losses of everything that was tried, in order; those of the first round give the unit.

        Args:
            losses: by architecture; the lower the better, one of them finite.
            first: how many were in the first round.
        """
        values = np.asarray([*losses.values()])
        unit = np.median(values[:first]) - values.min()
        if not 0 < unit < NOT_FINITE / 2:
            unit = max(abs(values.min()), 1e-9)
        wanted = np.minimum((values - values.min()) / unit, WORST)
        chosen = np.stack([self._chosen(architecture) for architecture in losses])
        shared = self._prior @ chosen.T
        inverse = np.linalg.inv(chosen @ shared + NOISE**2 * np.eye(len(values)))
        trend = np.stack([np.ones(len(values)), chosen @ self._said], axis=1)
        # a weak pull towards no trend decides where all that was tried is one to the scores
        fit = np.linalg.solve(trend.T @ inverse @ trend + 1e-6 * np.eye(2), trend.T @ inverse @ wanted)
        multiple = max(float(fit[1]), 0.0)
        missing = wanted - trend @ np.asarray([fit[0], multiple])
        self._mean = multiple * self._said + shared @ inverse @ missing
        self._covariance = self._prior - shared @ inverse @ shared.T

    def sample(self, draw: np.random.Generator, scale: float = 1.0) -> dict[str, list[float]]:
        """Scores as they may be, by what is known.

        Args:
            draw: of the sample.
            scale: of the deviation from the mean.

        Returns:
            One number per candidate, by name.

        Source:
            Thompson, Biometrika 25, 1933: try what a sample asks for.
        """
        values, vectors = np.linalg.eigh(self._covariance)
        noise = vectors @ (np.sqrt(values.clip(0)) * draw.standard_normal(len(values)))
        merits = -(self._mean + scale * noise)
        return {name: merits[row].tolist() for name, row in self._rows.items()}

    def _chosen(self, architecture: Architecture) -> np.ndarray:
        """(candidates,): one where a candidate is chosen, in a block that is kept."""
        found, idle = np.zeros(len(self._said)), self._graph.idle(architecture)
        for name, size in {**architecture.widths, **architecture.depths}.items():
            if name not in idle:
                found[self._rows[name].start + self._choices[name].index(size)] = 1
        return found
