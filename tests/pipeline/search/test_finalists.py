"""Trials tune what they say, and the climb finds the best corner of the space that it can see."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from toys import TinyNet, tiny_source

import tas
from tas.decode import decode
from tas.nn.surgery import cut
from tas.pipeline.search.finalists import Corner, Trials, climb, run_off


def cross_entropy(network, inputs, targets):
    return F.cross_entropy(network(inputs), targets)


@pytest.fixture(scope="module")
def prepared():
    torch.manual_seed(0)
    model, source = TinyNet(), tiny_source()
    graph = tas.trace(model, torch.zeros(1, 3, 8, 8))
    return model, graph, tas.SearchSpace.of(graph), source


def trials_of(model, graph, source, **options) -> Trials:
    return Trials(
        model, graph, lambda: itertools.islice(source.train_batches(8, half=0), 3),
        lambda: source.train_batches(16, half=1), cross_entropy, steps=3, learning_rate=0.1, **options,
    )  # fmt: skip


def test_a_trial_is_a_few_steps_of_sgd_on_one_half_and_the_loss_on_the_other(prepared):
    model, graph, space, source = prepared
    small = cut(model, graph, space.smallest).train()
    optimizer = torch.optim.SGD(small.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True)
    for (images, labels), rate in zip(source.train_batches(8, half=0), (0.1, 0.075, 0.025), strict=False):
        optimizer.param_groups[0]["lr"] = rate  # 0.05 (1 + cos(π step / 3))
        optimizer.zero_grad()
        F.cross_entropy(small(images), labels).backward()
        optimizer.step()
    small.eval()
    with torch.no_grad():
        sums = [float(F.cross_entropy(small(x), y, reduction="sum")) for x, y in source.train_batches(16, half=1)]
    count = sum(len(y) for _, y in source.train_batches(16, half=1))
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    assert trials_of(model, graph, source).loss(space.smallest) == pytest.approx(sum(sums) / count, rel=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


class Table(Trials):
    """Losses by number of blocks and largest share of a width, without training."""

    def _measure(self, architecture):
        widest = max(size / self.graph.full.widths[name] for name, size in architecture.widths.items())
        return {1: 0.5, 2: 0.2, 3: 1.0}[architecture.depths["blocks"]] + (widest - 0.8) ** 2


def scores_of(space):
    return {name: [float(size) for size in sizes] for name, sizes in {**space.widths, **space.depths}.items()}


def test_the_climb_ends_at_the_best_corner_and_everything_it_tries_holds_the_budget(prepared):
    model, graph, space, _ = prepared
    budget, scores = tas.Budget(macs="60%"), scores_of(prepared[2])
    trials = Table(model, graph, list, list, cross_entropy, steps=1)
    found = list(climb(scores, graph, space, budget, trials, 99))
    assert found[0] == decode(scores, graph, space, budget)
    assert found[-1] == trials.best
    corners = [Corner({"blocks": kept}, closed) for kept in (1, 2, 3) for closed in range(8)]
    everything = {corner.best(scores, graph, space, budget) for corner in corners} - {None}
    assert found[-1] == min(everything, key=trials._measure)
    assert found[-1].depths == {"blocks": 2}
    assert set(trials.losses) <= everything
    assert all(budget.holds(graph, architecture) for architecture in trials.losses)


def test_in_a_corner_the_scores_choose_the_widths_that_fit(prepared):
    _, graph, space, _ = prepared
    budget, scores = tas.Budget(macs="60%"), scores_of(space)
    found = Corner({"blocks": 2}, 3).best(scores, graph, space, budget)
    only = tas.SearchSpace({name: sizes[:-3] for name, sizes in space.widths.items()}, {"blocks": (2,)})
    merits = {name: values[:-3] for name, values in scores.items()} | {"blocks": [0.0]}
    assert found == decode(merits, graph, only, budget)
    smallest = Corner({"blocks": 1}, 99).best(scores, graph, space, budget)
    assert smallest is not None
    assert smallest.widths == space.smallest.widths
    assert Corner({"blocks": 3}).best(scores, graph, space, tas.Budget(macs=graph.macs(space.smallest))) is None


def test_no_more_is_tried_than_allowed_and_nothing_without_a_choice(prepared):
    model, graph, space, _ = prepared
    budget, scores = tas.Budget(macs="60%"), scores_of(space)
    trials = Table(model, graph, list, list, cross_entropy, steps=1)
    assert len(list(climb(scores, graph, space, budget, trials, 2))) == 2
    assert len(trials.losses) == 2
    fresh = Table(model, graph, list, list, cross_entropy, steps=1)
    closed = tas.SearchSpace({name: sizes[:1] for name, sizes in space.widths.items()}, {"blocks": (2,)})
    (only,) = climb({name: [0.0] for name in scores}, graph, closed, budget, fresh, 9)
    assert only == closed.largest
    assert not fresh.losses


def test_of_the_best_trials_the_longer_ones_decide(prepared):
    model, graph, space, _ = prepared
    tried = [space.largest, space.smallest, tas.Architecture(space.largest.widths, {"blocks": 2})]

    class Told(Trials):
        def __init__(self, *losses, **options):
            super().__init__(model, graph, list, list, cross_entropy, steps=1, **options)
            self.told = dict(zip(tried, losses, strict=True))

        def _measure(self, architecture):
            return self.told[architecture]

    short = Told(3.0, 1.0, 2.0)
    for architecture in tried:
        short.loss(architecture)
    longer = Told(0.1, 0.3, 0.2)
    assert list(run_off(short, longer, 2)) == [tried[1], tried[2]], "the best so far, after each"
    assert list(longer.losses) == [tried[1], tried[2]], "the best of the short ones first, and no other"
    assert list(run_off(short, Told(0.1, 0.3, 0.2), 9)) == [tried[1], tried[2], tried[0]]
    for most in (0, 1):
        assert not list(run_off(short, Told(0.1, 0.3, 0.2), most)), "one alone needs no longer trial"


def test_what_an_interrupted_search_knows_is_not_measured_again_and_the_path_is_the_same(prepared):
    model, graph, space, _ = prepared
    budget, scores = tas.Budget(macs="60%"), scores_of(space)
    whole = Table(model, graph, list, list, cross_entropy, steps=1)
    path = list(climb(scores, graph, space, budget, whole, 9))

    class Blind(Table):
        def _measure(self, architecture):
            raise AssertionError("it was known")

    again = Blind(model, graph, list, list, cross_entropy, steps=1, known=dict(whole.losses))
    assert list(climb(scores, graph, space, budget, again, 9)) == path
    assert list(again.losses) == list(whole.losses)


def short(**options) -> tas.SearchConfig:
    base = {
        "epochs": 0, "batch_size": 8, "start": "trained", "logits_start": "saliency", "trials": 4, "trial_steps": 3,
        "held_out_images": 20, "trial_images": 40, "learning_rate": 0.05,
    }  # fmt: skip
    return tas.SearchConfig(**{**base, **options})


@pytest.mark.parametrize("finalists", [0, 2])
def test_a_search_by_saliency_and_trials_repeats_itself_and_goes_on_where_it_was(prepared, tmp_path, finalists):
    model, graph, space, source = prepared

    def run(record, checkpoint=None):
        config = short(finalists=finalists, final_steps=5)
        supernet = tas.Supernet(model, graph, space)
        return tas.search(supernet, source, budget="50%", config=config, record=record, checkpoint=checkpoint)

    whole = tas.Record(tmp_path / "whole.jsonl")
    first = run(whole)
    assert tas.Budget(macs="50%").holds(graph, first.architecture)
    parts = [row["part"] for row in whole.rows]
    assert parts[0] == "saliency"
    assert set(parts[1:]) == {"trial"}
    assert [row["steps"] for row in whole.rows if row.get("steps") == 5] == [5] * finalists
    assert whole.seconds("search") > 0
    last = max(row["steps"] for row in whole.rows[1:])
    best = min((row for row in whole.rows[1:] if row["steps"] == last), key=lambda row: row["loss"])
    assert best["architecture"]["widths"] == dict(first.architecture.widths)
    assert best["architecture"]["depths"] == dict(first.architecture.depths)
    assert run(tas.Record()).architecture == first.architecture
    for known in (2, len(whole.rows) - 1):
        half = tas.Record(tmp_path / f"half{known}.jsonl")
        for row in whole.rows[:known]:
            half.add(**row)
        assert run(half, tmp_path / f"search{known}.pt").architecture == first.architecture
        assert [row["part"] for row in half.rows] == parts
    run(whole)  # without a run around it, a record says nothing about this search
    assert [row["part"] for row in whole.rows] == parts + parts


def test_passes_count_what_a_search_reads(prepared):
    space = prepared[2]
    candidates = sum(len(sizes) - 1 for sizes in (*space.widths.values(), *space.depths.values()))
    config = short(epochs=2, trials=4, trial_steps=3, held_out_images=30, trial_images=50)
    assert config.passes(100, space) == pytest.approx(2 + (4 * 3 * 8 + (4 * 50 + candidates * 30) / 3) / 100)
    final = short(trials=4, trial_steps=3, held_out_images=30, trial_images=50, finalists=9, final_steps=7)
    assert final.passes(100, space) == pytest.approx((4 * (3 + 7) * 8 + (8 * 50 + candidates * 30) / 3) / 100)
    one = short(trials=4, trial_steps=3, held_out_images=30, trial_images=50, finalists=1)
    assert one.passes(100, space) == pytest.approx((4 * 3 * 8 + (4 * 50 + candidates * 30) / 3) / 100)
    closed = tas.SearchSpace({name: sizes[-1:] for name, sizes in space.widths.items()}, {"blocks": (3,)})
    assert config.passes(100, closed) == 2
    assert tas.SearchConfig(epochs=7).passes(100, space) == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": "scratch"}, "both need weights that know something"),
        ({"logits_start": "random"}, "nothing would be searched"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(tas.ConfigError, match=message):
        short(**options)
