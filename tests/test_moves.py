"""Moves: what they lead to, what they cost and what they add, against the same one by one."""

import numpy as np
import pytest
import torch

import tas
from tas.decode import Decoder
from tas.models import load
from tas.moves import Loads, Moves


@pytest.fixture(scope="module", params=["tied", "free"])
def problem(request):
    graph = tas.trace(load("cifar_resnet:20"), torch.zeros(1, 3, 16, 16), residuals=request.param)
    return graph, tas.SearchSpace.of(graph)


def moves_of(graph, space, is_open=None):
    rows = [*space.widths.values(), *space.depths.values()]
    columns = max(map(len, rows))
    every = np.arange(columns) < np.array([[len(sizes)] for sizes in rows])
    loads = Loads(graph, space, {"macs": 1000, "params": 10})
    return Moves(graph, space, loads, every if is_open is None else every & is_open), every


def some(every, count, seed=0):
    draw = np.random.default_rng(seed)
    return draw.integers(0, every.sum(1), (count, len(every)))


def test_loads_and_gains_of_all_moves_are_those_of_what_they_make(problem):
    moves, every = moves_of(*problem)
    scores = np.where(every, np.random.default_rng(1).normal(size=every.shape), -np.inf)
    choices, rows = some(every, 2), np.arange(len(every))
    loads, gains = moves.loads(choices), moves.gains(choices, scores)
    assert loads.shape == gains.shape == (2, len(moves))
    for choice, costs, added in zip(choices, loads, gains, strict=True):
        made = np.array([moves.made(choice, place) for place in range(len(moves))])
        np.testing.assert_array_equal(costs, moves.load.of(made))
        np.testing.assert_allclose(added, scores[rows, made].sum(1) - scores[rows, choice].sum(), atol=1e-9)


def test_the_largest_share_of_a_limit_counts(problem):
    graph, space = problem
    loads = Loads(graph, space, {"macs": 1000, "params": 10})
    last = np.array([[len(sizes) - 1 for sizes in (*space.widths.values(), *space.depths.values())]])
    assert loads.of(last)[0] == max(graph.macs() / 1000, graph.params() / 10)


def test_a_stream_moves_to_one_size_or_just_above_and_nowhere_that_is_closed():
    graph = tas.trace(load("cifar_resnet:20"), torch.zeros(1, 3, 16, 16), residuals="free")
    space = tas.SearchSpace.of(graph, candidates={"layer1.1.conv2": [5, 16]})
    moves, every = moves_of(graph, space)
    stream = next(stream for stream in graph.streams if "layer1.1.conv2" in stream)
    names = [name for name in space.widths if name in stream]
    rows = [list(space.widths).index(name) for name in names]
    made = [moves.made(np.zeros(len(every), dtype=int), place) for place in range(int(every.sum()), len(moves))]
    found = [[space.widths[name][choice[row]] for name, row in zip(names, rows, strict=True)] for choice in made]
    assert len(names) > 2
    for others, odd in ((4, 5), (6, 5), (6, 16), (8, 16), (9, 16), (11, 16), (12, 16), (14, 16), (16, 16)):
        assert [odd if name == "layer1.1.conv2" else others for name in names] in found
    closed, _ = moves_of(graph, space, np.arange(every.shape[1]) < 4)
    made = [closed.made(np.zeros(len(every), dtype=int), place) for place in range(len(closed))]
    assert np.max(made) == 3


def test_a_part_of_the_space_is_decoded_as_if_it_were_all(problem):
    graph, space = problem
    draw = np.random.default_rng(0)
    scores = {n: np.sort(draw.normal(size=len(s))).tolist() for n, s in (*space.widths.items(), *space.depths.items())}
    decoder = Decoder(scores, graph, space, tas.Budget(macs="40%"))
    part = tas.SearchSpace({n: s[:5] for n, s in space.widths.items()}, {n: s[1:] for n, s in space.depths.items()})
    of_part = {n: scores[n][:5] for n in part.widths} | {n: scores[n][1:] for n in part.depths}
    found = decoder.best(part)
    assert found in part
    assert found == Decoder(of_part, graph, part, tas.Budget(macs="40%")).best()
    assert decoder.share(found) == graph.macs(found) / int(0.4 * graph.macs())
    assert decoder.best() != found
    with pytest.raises(tas.BudgetError, match="no architecture was found"):
        Decoder(scores, graph, space, tas.Budget(macs=graph.macs(space.smallest))).best(part)
