"""Trials: who is tried, what a round teaches, and that a search by them repeats itself and goes on."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from toys import TinyNet, tiny_source

import tas
import tas.pipeline.search as search_module
from tas.data.source import first_images
from tas.decode import decode
from tas.nn.reconstruction import Made, reconstruct
from tas.nn.surgery import cut
from tas.pipeline.search import trials
from tas.pipeline.search.belief import NOT_FINITE, Belief
from tas.pipeline.search.steps import Steps
from tas.pipeline.search.trials import Bench, rounds_of
from tas.progress import progress_bar


@pytest.fixture(scope="module")
def prepared():
    torch.manual_seed(0)
    model, source = TinyNet(), tiny_source()
    tas.train(model, source, config=tas.TrainConfig(epochs=8, batch_size=16))
    graph = tas.trace(model, torch.zeros(1, 3, 8, 8))
    return tas.rank(model, graph), graph, tas.SearchSpace.of(graph), source


def scores_of(space):
    return {name: [math.log(size) for size in sizes] for name, sizes in space.choices.items()}


def short(**options) -> tas.SearchConfig:
    base = {
        "epochs": 0, "batch_size": 8, "start": "trained", "logits_start": "saliency", "trials": 14,
        "trial_images": 16, "held_out_images": 20,
    }  # fmt: skip
    return tas.SearchConfig(**{**base, **options})


def tried(graph, space, losses, *, budget="60%", count=14, seed=0, known=()):
    """The rounds, and whom each asked about."""
    asked = []

    def judge(architectures, times):
        if times == 1:
            asked.append(list(architectures))
        return [losses(one) for one in architectures]

    budget = tas.Budget(macs=budget)
    found = list(rounds_of(scores_of(space), graph, space, budget, judge, count=count, seed=seed, known=known))
    return found, asked


def fewer_in_the_stem(graph):
    """A loss that the scores do not expect: the widest stem is the worst."""
    return lambda one: float(one.widths["stem.0"] + graph.macs(graph.full) / graph.macs(one))


def test_rounds_hold_the_budget_try_nothing_twice_and_end_after_so_many(prepared):
    _, graph, space, _ = prepared
    rounds, asked = tried(graph, space, fewer_in_the_stem(graph), count=18)
    everyone = [one for of_round in asked for one in of_round]
    assert len(asked[0]) <= trials.FIRST
    assert all(1 <= len(of_round) <= trials.ROUND for of_round in asked[1:])
    assert [list(found.losses) for found in rounds[:-1]] == asked
    assert 8 < len({*everyone}) == len(everyone) <= 18
    assert all(one in space and tas.Budget(macs="60%").holds(graph, one) for one in everyone)
    for number, found in enumerate(rounds, 1):
        losses = {one: loss for of_round in rounds[:number] for one, loss in of_round.losses.items()}
        assert found.best == min(losses, key=losses.__getitem__)
        assert found.loss == losses[found.best]


def test_the_best_few_are_tried_again_on_more_images(prepared):
    _, graph, space, _ = prepared
    asked = []

    def judge(architectures, times):
        asked.append((list(architectures), times))
        return [float(graph.macs(one)) * (1 if times == 1 else -1) for one in architectures]

    budget = tas.Budget(macs="60%")
    rounds = list(rounds_of(scores_of(space), graph, space, budget, judge, count=14, seed=0))
    *earlier, (finalists, times) = asked
    assert (len(finalists), times) == (6, 4)
    everyone = [one for of_round, once in earlier for one in of_round if once == 1]
    assert len(everyone) == 14
    assert finalists == sorted(everyone, key=graph.macs)[:6]
    assert rounds[-1].best == max(finalists, key=graph.macs), "the second measure decides"
    assert rounds[-1].loss == -graph.macs(rounds[-1].best)


def test_the_scores_own_choice_is_tried_first_then_what_they_ask_for_in_corners(prepared):
    _, graph, space, _ = prepared
    first = tried(graph, space, lambda one: 1.0)[1][0]
    whole = decode(scores_of(space), graph, space, tas.Budget(macs="60%"))
    idle = graph.idle(whole)
    assert first[0].depths == whole.depths
    assert {n: s for n, s in first[0].widths.items() if n not in idle} == {
        n: s for n, s in whole.widths.items() if n not in idle
    }
    assert {one.depths["blocks"] for one in first} > {first[0].depths["blocks"]}
    assert all(graph.macs(one) >= 0.9 * graph.macs(first[0]) for one in first)
    for one in first:
        assert all(one.widths[name] == space.smallest.widths[name] for name in graph.idle(one)), "one network once"
    others = tried(graph, space, lambda one: 1.0, seed=1)[1][0]
    assert others[0] == first[0]
    assert others != first


def test_what_a_round_has_shown_decides_whom_the_next_one_tries(prepared):
    _, graph, space, _ = prepared
    losses = fewer_in_the_stem(graph)
    rounds, asked = tried(graph, space, losses, count=40)
    sampled = [one for of_round in asked[1:] for one in of_round]
    _, blindly = tried(graph, space, lambda one: 1.0, count=40)
    others = [one for of_round in blindly[1:] for one in of_round]
    assert np.mean([losses(one) for one in sampled]) < np.mean([losses(one) for one in others])
    assert rounds[-1].loss < rounds[0].loss
    generator = torch.Generator().manual_seed(0)
    fits = [one for one in (space.sample(generator) for _ in range(3000)) if graph.macs(one) <= 0.6 * graph.macs()]
    assert rounds[-1].loss <= np.quantile([losses(one) for one in fits], 0.02)


def test_rounds_that_are_known_are_not_judged_again_and_lead_to_the_same(prepared):
    _, graph, space, _ = prepared
    rounds, asked = tried(graph, space, fewer_in_the_stem(graph))
    known = [list(found.losses.values()) for found in rounds[:2]]
    again, later = tried(graph, space, fewer_in_the_stem(graph), known=known)
    assert again == rounds
    assert later == asked[2:]
    with pytest.raises(tas.RunError, match="the record is of another search"):
        tried(graph, space, fewer_in_the_stem(graph), known=[[1.0, 2.0]])


def test_where_samples_ask_for_nothing_new_it_is_over(prepared):
    _, graph, space, _ = prepared
    few = tas.SearchSpace({name: sizes[-2:] for name, sizes in space.widths.items()}, {"blocks": (3,)})
    rounds, _ = tried(graph, few, lambda one: float(graph.macs(one)), budget="90%", count=500)
    everyone = [one for found in rounds[:-1] for one in found.losses]
    assert 1 < len(everyone) == len({*everyone}) <= math.prod(map(len, few.widths.values()))


def test_losses_that_are_not_finite_teach_nothing_but_that_they_are_bad(prepared):
    _, graph, space, _ = prepared
    real = fewer_in_the_stem(graph)
    first = tried(graph, space, real)[1][0]
    rounds, asked = tried(graph, space, lambda one: NOT_FINITE if one in first[:5] else real(one), count=30)
    assert rounds[-1].loss < 1e3
    assert sum(map(len, asked)) > 8
    nothing, _ = tried(graph, space, lambda one: NOT_FINITE)
    assert {found.loss for found in nothing} == {NOT_FINITE}


def test_a_belief_is_what_the_scores_say_until_losses_say_otherwise(prepared):
    _, graph, space, _ = prepared
    scores, draw = scores_of(space), np.random.default_rng(0)
    belief = Belief(scores, graph, space)
    said = belief.sample(draw, scale=0.0)
    for name, row in scores.items():
        assert np.allclose(np.diff(said[name]), np.diff(row), atol=1e-5)
    generator = torch.Generator().manual_seed(0)
    losses = {one: float(one.widths["stem.0"]) for one in (space.sample(generator) for _ in range(60))}
    belief.learn(losses, first=8)
    learned = belief.sample(draw, scale=0.0)
    assert np.all(np.diff(learned["stem.0"]) < 0), "the scores said the opposite"
    others = [np.ptp(learned[name]) for name in scores if name != "stem.0"]
    assert max(others) < 0.3 * np.ptp(learned["stem.0"])


def test_neighbours_of_what_was_tried_are_known_better_than_others(prepared):
    _, graph, space, _ = prepared
    belief = Belief({name: [0.0] * len(sizes) for name, sizes in space.choices.items()}, graph, space)
    start = space.largest
    tries = {start: 1.0}
    for size in space.widths["stem.0"][-3:]:
        tries[tas.Architecture({**start.widths, "stem.0": size}, start.depths)] = float(size)
    before = np.diag(belief._covariance).copy()
    belief.learn(tries, first=4)
    row = belief._rows["stem.0"]
    left = (np.diag(belief._covariance) / before)[row]
    assert left[-1] < left[0]
    assert np.all(left <= 1 + 1e-9)


def bench_of(prepared, **options):
    model, graph, space, source = prepared
    config, budget = short(**options), tas.Budget.of("50%")
    steps = Steps(tas.Supernet(model, graph, space), budget, config, None, None)
    return Bench(model, graph, source, steps, "cpu"), steps


def test_a_trial_is_a_fitted_network_on_held_out_images(prepared):
    model, graph, space, source = prepared
    architectures = [space.sample(torch.Generator().manual_seed(seed)) for seed in range(3)]
    bench, steps = bench_of(prepared)
    was = copy.deepcopy(model.state_dict())
    with progress_bar("trials", 6) as bar:
        found = bench.losses(architectures, 1, bar=bar)
        assert bench.images == 16 + 16
        again = bench.losses(architectures, 2, bar=bar)
        assert bench.images == 32 + 32, "there are no more"
    for losses, count in ((found, 16), (again, 32)):
        inputs = first_images(source, count, seed=0, half=0)
        made, judged = Made.of(model, graph, inputs), steps.held_out(source, "cpu", count)
        for architecture, loss in zip(architectures, losses, strict=True):
            small = reconstruct(cut(model, graph, architecture), made, architecture)
            with torch.no_grad():
                wanted = [F.cross_entropy(small(images), labels).item() for images, labels, _ in judged]
            assert loss == pytest.approx(np.mean(wanted), rel=1e-4)
    assert all(torch.equal(value, was[name]) for name, value in model.state_dict().items())
    steps.objective = lambda *_: torch.tensor(math.nan)
    with progress_bar("trials", 3) as bar:
        assert bench.losses(architectures, 1, bar=bar) == [NOT_FINITE] * 3


def test_a_search_repeats_itself_and_goes_on_where_it_was(prepared, tmp_path, monkeypatch):
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
    rounds = len(whole.rows) - 1
    assert rounds > 2
    assert [row["part"] for row in whole.rows] == ["saliency", *["trials"] * rounds]
    last = whole.rows[-1]
    assert last["loss"] == min(last["losses"])
    assert tas.Architecture(**last["architecture"]) == first.architecture
    assert [row["images"] for row in whole.rows[1:]] == [32] * (rounds - 1) + [64]
    assert whole.seconds("search") > 0
    again = tas.Record()
    assert search(again).architecture == first.architecture
    assert told(again) == told(whole)
    real = Bench.losses

    for cut_after in range(rounds):
        record, checkpoint, left = tas.Record(tmp_path / f"{cut_after}.jsonl"), tmp_path / f"{cut_after}.pt", cut_after

        def interrupted(*given, **options):
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            return real(*given, **options)

        monkeypatch.setattr(Bench, "losses", interrupted)
        with pytest.raises(KeyboardInterrupt):
            search(record, checkpoint)
        monkeypatch.setattr(Bench, "losses", real)
        assert search(record, checkpoint).architecture == first.architecture
        assert told(record) == told(whole), "to the last digit of every loss"
        finished = tas.Record(record.path)
        assert search(finished, checkpoint).architecture == first.architecture
        assert told(finished) == told(whole), "of a finished one nothing is done again"
    with pytest.raises(tas.RunError, match="other options"):
        search(tas.Record(record.path), checkpoint, trial_images=20)
    lines = record.path.read_text().splitlines(keepends=True)
    record.path.write_text("".join(lines[:2]) + lines[1].replace('"round": 0', '"round": 1') + "".join(lines[3:]))
    with pytest.raises(tas.RunError, match="the record is of another search"):
        search(tas.Record(record.path), checkpoint)
    fresh = tas.Record(record.path)
    assert search(fresh, tmp_path / "new.pt").architecture == first.architecture, (
        "trials without a checkpoint are not known"
    )


def test_epochs_move_the_logits_and_networks_are_cut_from_the_weights_given(prepared, monkeypatch):
    model, graph, space, source = prepared
    seen = []
    monkeypatch.setattr(search_module, "Bench", lambda model, *given: seen.append(model) or Bench(model, *given))
    supernet, record = tas.Supernet(model, graph, space), tas.Record()
    found = tas.search(supernet, source, budget="50%", config=short(epochs=1, trials=4), record=record)
    assert all(torch.equal(value, seen[0].state_dict()[name]) for name, value in model.state_dict().items())
    moved = supernet.collapse(space.largest).state_dict()
    assert not all(torch.equal(value, moved[name]) for name, value in model.state_dict().items())
    assert [row.get("part", "epoch") for row in record.rows] == ["saliency", "epoch", "trials", "trials"]
    assert tas.Budget(macs="50%").holds(graph, found.architecture)


def test_no_finite_loss_is_an_error_that_names_the_image(prepared):
    model, graph, space, _ = prepared
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.head.bias.fill_(math.nan)
    scores = tas.Scores(scores_of(space), graph, space)
    with pytest.raises(tas.TrainingError, match="no loss of a trial is finite; check the weights for NaN"):
        tas.search(
            tas.Supernet(broken, graph, space), tiny_source(), budget="50%", config=short(), scores=scores
        )  # fmt: skip


def test_passes_count_what_a_search_reads(prepared):
    space = prepared[2]
    candidates = sum(len(sizes) - 1 for sizes in (*space.widths.values(), *space.depths.values()))
    config = short(epochs=2, trials=5, held_out_images=30, trial_images=50)
    assert config.passes(100, space) == pytest.approx(2 + ((5 + 6 * 4) * 2 * 50 + candidates * 30) / 3 / 100)
    closed = tas.SearchSpace({name: sizes[-1:] for name, sizes in space.widths.items()}, {"blocks": (3,)})
    assert config.passes(100, closed) == 2
    assert tas.SearchConfig(epochs=7).passes(100, space) == 7


def test_passes_of_a_search_are_those_it_has_read(prepared, monkeypatch):
    model, graph, space, source = prepared
    config, record, read = short(), tas.Record(), []
    monkeypatch.setattr(trials, "cut", lambda *given: counted(cut(*given), read))
    supernet = counted(tas.Supernet(model, graph, space), read)
    found = tas.search(supernet, source, budget="60%", config=config, record=record)
    base = config.held_out_images  # saliency measures the whole network once, which is not counted
    assert config.passes_of(record.rows, 64) == pytest.approx((sum(read) - base) / 3 / 64)
    assert config.passes_of([*record.rows[:2], *record.rows], 64) == config.passes_of(record.rows, 64)
    assert config.passes_of(record.rows, 64) <= config.passes(64, space)
    assert found.architecture


def counted(network, read):
    """The network, which notes how many samples it has read."""
    network.register_forward_pre_hook(lambda module, inputs: read.append(len(inputs[0])))
    return network


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": "scratch"}, "both need weights that know something"),
        ({"logits_start": "random"}, "nothing would be searched"),
        ({"trials": -1}, "trials"),
        ({"trial_images": 0}, "trial_images"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(tas.ConfigError, match=message):
        short(**options)
