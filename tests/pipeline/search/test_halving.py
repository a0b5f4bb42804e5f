"""Successive halving: who enters, who trains, who goes; and that a search by it repeats itself and goes on."""

import copy
import itertools
import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from toys import TinyNet, tiny_source

import tas
from tas.decode import decode
from tas.nn.surgery import cut
from tas.pipeline.search import halving
from tas.pipeline.search.halving import Corner, Field, halve
from tas.pipeline.search.steps import Steps


@pytest.fixture(scope="module")
def prepared():
    torch.manual_seed(0)
    model, source = TinyNet(), tiny_source()
    graph = tas.trace(model, torch.zeros(1, 3, 8, 8))
    return model, graph, tas.SearchSpace.of(graph), source


def scores_of(space):
    return {name: [float(size) for size in sizes] for name, sizes in {**space.widths, **space.depths}.items()}


def field_of(graph, space, budget="60%"):
    return Field(scores_of(space), graph, space, tas.Budget(macs=budget))


def as_network(graph, space, architecture):
    dropped = {name for name in architecture.widths if name.startswith(graph.skipped(architecture))}
    widths = {name: space.smallest.widths[name] if name in dropped else size
              for name, size in architecture.widths.items()}  # fmt: skip
    return tas.Architecture(widths, architecture.depths)


def short(**options) -> tas.SearchConfig:
    base = {
        "epochs": 0, "batch_size": 8, "start": "trained", "logits_start": "saliency", "architectures": 12,
        "halving_steps": 20, "held_out_images": 20, "halving_images": 10, "learning_rate": 0.05,
    }  # fmt: skip
    return tas.SearchConfig(**{**base, **options})


def best_of(corner, field):
    """What the scores ask for in a corner, in a list; an empty one where nothing fits."""
    part = corner.of(field.space)
    scores = {name: row[: len(part.widths[name])] for name, row in field.scores.items() if name in part.widths}
    try:
        return [decode(scores | {"blocks": [0.0]}, field.graph, part, field.budget)]
    except tas.BudgetError:
        return []


def test_a_corner_is_a_part_of_the_space(prepared):
    _, _, space, _ = prepared
    part = Corner({"blocks": 2}, 3).of(space)
    assert part == tas.SearchSpace({name: sizes[:-3] for name, sizes in space.widths.items()}, {"blocks": (2,)})
    assert Corner({"blocks": 1}, 99).of(space).largest == space.smallest


def test_all_corners_enter_that_use_the_budget_and_the_scores_own_choice_is_first(prepared):
    _, graph, space, _ = prepared
    budget, field = tas.Budget(macs="60%"), field_of(graph, space)
    entrants = field.first(99, seed=0)
    assert entrants[0] == as_network(graph, space, decode(field.scores, graph, space, budget))
    levels = max(map(len, space.widths.values()))
    corners = [Corner({"blocks": kept}, closed) for kept in (1, 2, 3) for closed in range(levels)]
    found = {as_network(graph, space, one) for corner in corners for one in best_of(corner, field)}
    assert set(entrants) == {one for one in found if graph.macs(one) >= 0.9 * graph.macs(entrants[0])}
    assert len(set(entrants)) == len(entrants) > 3
    assert {one.depths["blocks"] for one in entrants} > {entrants[0].depths["blocks"]}
    assert all(budget.holds(graph, one) for one in entrants)
    assert field.around(entrants[0]) == [], "they are there already"


def test_two_architectures_that_differ_in_dropped_blocks_alone_enter_once(prepared):
    _, graph, space, _ = prepared
    only = tas.SearchSpace(space.widths, {"blocks": (1,)})
    scores = scores_of(only)
    for name in ("stem.0", "blocks.0.conv1"):
        scores[name] = [-score for score in scores[name]]  # small ones, which no corner closes
    (network,) = Field(scores, graph, only, tas.Budget(macs="100%")).first(99, seed=0)
    assert network.widths == space.smallest.widths
    assert graph.idle(network) == {"blocks.1.conv1", "blocks.2.conv1"}
    assert not graph.idle(graph.full)


def test_of_many_corners_some_are_drawn_and_those_around_the_best_come_later(prepared):
    _, graph, space, _ = prepared
    field = field_of(graph, space)
    few = field.first(3, seed=0)
    assert len(few) == 3
    assert few == field_of(graph, space).first(3, seed=0)
    assert {*few} != {*field_of(graph, space).first(3, seed=1)}
    everyone = set(field_of(graph, space).first(99, seed=0))
    fresh = field.around(few[1])
    assert fresh
    assert not {*fresh} & {*few}
    assert {*fresh} <= everyone
    center = field.corners[few[1]]
    for one in fresh:
        other = field.corners[one]
        assert abs(other.depths["blocks"] - center.depths["blocks"]) + abs(other.closed - center.closed) == 1


class Told:
    """Takes the place of `Steps`: the loss of an architecture is what it is told to be, and steps are counted."""

    def __init__(self, config, losses):
        self.config, self.losses, self.steps, self.rates, self.open = config, losses, [], [], None
        self.supernet = SimpleNamespace(
            train=lambda: None, fixed=self.fixed, modules=list, buffers=list, eval=lambda: 0, state_dict=dict,
        )  # fmt: skip

    def fixed(self, architecture):
        self.open = architecture
        return torch.no_grad()

    def objective(self, network, inputs, targets, wanted):
        return torch.tensor(self.losses[self.open])

    def step_of(self, architecture, inputs, targets):
        self.steps.append(architecture)

    def set_learning_rate(self, progress):
        self.rates.append(progress)


BAR = SimpleNamespace(advance=lambda note="": None)


def run(entrants, field, steps, known=(), images=(0.0, 0.0)):
    def judged(count):
        return [(torch.full((count,), images[1]), None, None)]

    batches = itertools.repeat((torch.full((1,), images[0]), None))
    return list(halve(entrants, field, steps, tuning=lambda: batches, judged=judged, known=known, bar=BAR))


def some(space, count, without=()):
    """So many architectures, all different."""
    generator, found = torch.Generator().manual_seed(1), {}
    while len(found) < count:
        one = space.sample(generator)
        if one not in without:
            found[one] = None
    return list(found)


def test_after_the_shrinking_three_quarters_go_then_the_worse_half_and_the_best_wins(prepared):
    _, graph, space, _ = prepared
    field, entrants = field_of(graph, space), some(space, 16)
    field.around = lambda architecture: []
    losses = {one: float(place * 5 % 16) for place, one in enumerate(entrants, 3)}
    best = min(entrants, key=losses.__getitem__)
    steps = Told(short(halving_steps=200), losses)
    rounds = run(entrants, field, steps)
    assert [len(found.losses) for found in rounds] == [16, 4, 2]
    assert [found.steps for found in rounds] == [100, 150, 200]
    assert [found.images for found in rounds] == [10, 20, 40]
    assert [found.best for found in rounds] == [best] * 3
    assert sorted(rounds[1].losses.values()) == [0, 1, 2, 3]
    assert len(steps.steps) == 200
    for first, last, found in zip((100, 150), (150, 200), rounds[1:], strict=True):
        turns = Counter(steps.steps[first:last])
        assert set(turns) == set(found.losses)
        assert max(turns.values()) - min(turns.values()) <= 1, "each as often as any other"
    assert steps.rates == [step / 200 for step in range(200)]
    again = Told(short(halving_steps=200), losses)
    known = [list(found.losses.values()) for found in rounds[:2]]
    assert run(entrants, field, again, known) == rounds
    assert again.steps == steps.steps[150:], "known rounds are not done again"


def test_the_weights_first_serve_larger_networks_then_smaller_and_smaller_ones(prepared):
    _, graph, space, _ = prepared
    field = field_of(graph, space, "30%")
    entrants = field.first(4, seed=0)
    steps = Told(short(halving_steps=200), dict.fromkeys(entrants, 1.0))
    run(entrants, field, steps, known=[])
    shares = [graph.macs(one) / graph.macs(graph.full) for one in steps.steps[:100]]
    for stage in range(5):
        allowed = 0.3 + 0.7 * halving.LOOSEST * (1 - stage / 5)
        assert 0.85 * allowed < max(shares[20 * stage : 20 * stage + 20]) <= allowed
        assert len({*steps.steps[20 * stage : 20 * stage + 20]}) > 1
    assert {*steps.steps[100:]} <= {*field.corners}


def test_who_comes_later_takes_part_and_can_win(prepared):
    _, graph, space, _ = prepared
    field = field_of(graph, space)
    everyone = field.first(99, seed=0)
    start, late = everyone[0], everyone[-1]
    near = next(one for one in everyone if field.corners[one] in field.corners[late].around(space))
    del field.corners[late]
    entrants = [start, near, *some(space, 10, without=everyone)]
    losses = dict.fromkeys([*everyone, *entrants], 5.0) | {near: 2.0, late: 1.0}
    rounds = run(entrants, field, Told(short(), losses))
    assert late not in rounds[0].losses
    assert rounds[0].best == near
    assert late in rounds[1].losses
    assert rounds[-1].best == late


def test_one_alone_needs_no_round_and_losses_that_are_not_finite_are_an_error(prepared):
    _, graph, space, _ = prepared
    field = field_of(graph, space)
    entrants = field.first(4, seed=0)
    assert run(entrants[:1], field, Told(short(), {})) == []
    nothing = dict.fromkeys(entrants, float("nan"))
    with pytest.raises(tas.TrainingError, match="lower search.learning_rate"):
        run(entrants, field, Told(short(), nothing))
    for broken in ((math.nan, 0.0), (0.0, math.inf)):
        with pytest.raises(tas.TrainingError, match="no loss is finite .*; image 0 of batch .* has NaN or infinite"):
            run(entrants, field, Told(short(), nothing), images=broken)
    one = {**nothing, entrants[2]: 1.0}
    assert (
        run(entrants, field, Told(short(), {**dict.fromkeys(field_of(graph, space).first(99, 0), 9.0), **one}))[-1].best
        == (entrants[2])
    )


@pytest.mark.parametrize("execution", ["compact", "dense"])
def test_a_step_of_an_architecture_is_one_of_its_own_weights(prepared, execution):
    model, graph, space, source = prepared
    architecture = space.sample(torch.Generator().manual_seed(3))
    config = short(learning_rate=0.1, weight_decay=0.0)
    supernet = tas.Supernet(model, graph, space, execution=execution).train()
    steps = Steps(supernet, tas.Budget.of("50%"), config, None, None)
    small = cut(model, graph, architecture).train()
    optimizer = torch.optim.SGD(small.parameters(), 0.1, 0.9, nesterov=True)
    for images, labels in itertools.islice(source.train_batches(8, half=0), 2):
        steps.step_of(architecture, images, labels)
        optimizer.zero_grad()
        F.cross_entropy(small(images), labels).backward()
        optimizer.step()
    found = cut(supernet.collapse(architecture), graph, architecture)
    wanted = dict(small.named_parameters())
    for name, weight in found.named_parameters():
        assert torch.allclose(weight, wanted[name], atol=1e-5), name
    kept = architecture.widths["stem.0"]
    untouched = dict(supernet.collapse(space.largest).named_parameters())["stem.0.weight"][kept:]
    assert torch.equal(untouched, model.stem[0].weight[kept:]), "what the architecture lacks stays as it is"


def test_a_search_repeats_itself_and_goes_on_where_it_was(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr("tas.pipeline.search.config.FIRST_CUT", 2)  # three rounds for the eight of this small space
    model, graph, space, source = prepared
    teacher = copy.deepcopy(model).eval()

    def search(record, checkpoint=None, **options):
        supernet = tas.Supernet(model, graph, space)
        config = short(teacher_weight=0.9, **options)
        return tas.search(
            supernet, source, budget="50%", config=config, record=record, checkpoint=checkpoint, teacher=teacher
        )

    def told(record):
        return [{name: value for name, value in row.items() if name != "seconds"} for row in record.rows]

    state = torch.get_rng_state()
    whole = tas.Record(tmp_path / "whole.jsonl")
    first = search(whole)
    assert torch.equal(torch.get_rng_state(), state)
    assert tas.Budget(macs="50%").holds(graph, first.architecture)
    parts = [row["part"] for row in whole.rows]
    assert parts == ["saliency", *["halving"] * (len(parts) - 1)]
    assert len(parts) > 3
    last = whole.rows[-1]
    assert last["loss"] == min(last["losses"])
    assert tas.Architecture(**last["architecture"]) == first.architecture
    assert whole.seconds("search") > 0
    again = tas.Record()
    assert search(again).architecture == first.architecture
    assert told(again) == told(whole)
    real = halving.Round

    for cut_after in range(1, len(parts) - 1):
        record, checkpoint, left = tas.Record(tmp_path / f"{cut_after}.jsonl"), tmp_path / f"{cut_after}.pt", cut_after

        def interrupted(*values):
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            return real(*values)

        monkeypatch.setattr(halving, "Round", interrupted)
        with pytest.raises(KeyboardInterrupt):
            search(record, checkpoint)
        monkeypatch.setattr(halving, "Round", real)
        assert search(record, checkpoint).architecture == first.architecture
        assert told(record) == told(whole), "to the last digit of every loss"
        finished = tas.Record(record.path)
        assert search(finished, checkpoint).architecture == first.architecture
        assert told(finished) == told(whole), "of a finished one nothing is done again"
    with pytest.raises(tas.RunError, match="lacks rounds"):
        search(tas.Record(), checkpoint)


def test_epochs_move_the_logits_and_the_architectures_start_from_the_weights_given(prepared, monkeypatch):
    model, graph, space, source = prepared
    seen = []
    real = halving.Field.first

    def look(self, most, seed):
        seen.append(copy.deepcopy(supernet.collapse(space.largest).state_dict()))
        return real(self, most, seed)

    monkeypatch.setattr(halving.Field, "first", look)
    supernet = tas.Supernet(model, graph, space)
    config = short(epochs=1, architectures=4, halving_steps=4)
    record = tas.Record()
    found = tas.search(supernet, source, budget="50%", config=config, record=record)
    given = seen[0]  # later ones look for networks of looser budgets
    assert all(torch.equal(value, given[name]) for name, value in model.state_dict().items())
    assert [row.get("part", "epoch") for row in record.rows][:2] == ["saliency", "epoch"]
    assert tas.Budget(macs="50%").holds(graph, found.architecture)


def test_passes_count_what_a_search_reads(prepared):
    space = prepared[2]
    candidates = sum(len(sizes) - 1 for sizes in (*space.widths.values(), *space.depths.values()))
    config = short(epochs=2, architectures=5, halving_steps=30, held_out_images=30, halving_images=50)
    judged = 5 * 50 + 2 * 100
    assert config.passes(100, 8, space) == pytest.approx(2 + (30 * 8 + (judged + candidates * 30) / 3) / 100)
    assert config.passes(100, 16, space) == pytest.approx(2 + (30 * 16 + (judged + candidates * 30) / 3) / 100)
    closed = tas.SearchSpace({name: sizes[-1:] for name, sizes in space.widths.items()}, {"blocks": (3,)})
    assert config.passes(100, 8, closed) == 2
    assert tas.SearchConfig(epochs=7).passes(100, 8, space) == 7


def test_passes_of_a_search_are_those_it_has_read(prepared):
    model, graph, space, source = prepared
    config, record, read = short(halving_steps=8), tas.Record(), []
    supernet = tas.Supernet(tas.rank(model, graph), graph, space)
    supernet.register_forward_pre_hook(lambda module, inputs: read.append((len(inputs[0]), module.training)))
    found = tas.search(supernet, source, budget="60%", config=config, record=record)
    trained = sum(count for count, training in read if training)
    judged = sum(count for count, training in read if not training)
    base = config.held_out_images  # saliency measures the whole network once, which is not counted
    assert config.passes_of(record.rows, 64, 8) == pytest.approx((trained + (judged - base) / 3) / 64)
    assert config.passes_of([*record.rows[:2], *record.rows], 64, 8) == config.passes_of(record.rows, 64, 8)
    assert found.architecture


@pytest.mark.parametrize(
    ("entrants", "rounds"),
    [
        (0, []),
        (1, []),
        (2, [(50, 10, 2), (100, 20, 1)]),
        (3, [(50, 10, 2), (100, 20, 1)]),
        (16, [(50, 10, 4), (75, 20, 2), (100, 40, 1)]),
        (100, [(50, 10, 25), (60, 20, 13), (70, 40, 7), (80, 80, 4), (90, 80, 2), (100, 80, 1)]),
    ],
)
def test_rounds_end_after_more_steps_with_fewer_architectures_and_more_images(entrants, rounds):
    assert short(halving_steps=100).halving_rounds(entrants) == rounds


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": "scratch"}, "both need weights that know something"),
        ({"logits_start": "random"}, "nothing would be searched"),
        ({"architectures": -1}, "architectures"),
        ({"halving_steps": 0}, "halving_steps"),
        ({"halving_images": 0}, "halving_images"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(tas.ConfigError, match=message):
        short(**options)
