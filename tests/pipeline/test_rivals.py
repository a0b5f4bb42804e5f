"""Every rival holds the budget, repeats itself, and gives a model that derive can cut."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from toys import TinyNet, TwoBranches, tiny_source, two_branch_source

import tas
from tas.data import TensorSource
from tas.decode import decode
from tas.errors import BudgetError, ConfigError, DataError, ModelError
from tas.fit import above_threshold, uniform
from tas.nn.importance import channel_importance, filter_norms
from tas.pipeline.measure import count_macs
from tas.pipeline.rivals import METHODS, RivalConfig, allocate, choose


class TrainingOnly:
    """A source whose test images may not be looked at."""

    def __init__(self, source: TensorSource):
        self.source, self.halves = source, set()
        self.name, self.num_classes, self.input_shape = source.name, source.num_classes, source.input_shape

    def train_batches(self, batch_size, **options):
        self.halves.add(options.get("half"))
        return self.source.train_batches(batch_size, **options)

    def test_batches(self, batch_size, **options):
        raise AssertionError("a choice looked at the test images")


class Prepared:
    def __init__(self):
        torch.manual_seed(0)
        self.model, self.source = TinyNet(), tiny_source()
        tas.train(self.model, self.source, config=tas.TrainConfig(epochs=1, batch_size=16, learning_rate=0.02))
        self.graph = tas.trace(self.model, torch.zeros(1, 3, 8, 8))
        self.space = tas.SearchSpace.of(self.graph)

    def choose(self, method: str, budget="50%", data=None, loss=None, **options) -> tas.Choice:
        base = {"candidates": 6, "batch_size": 16, "sfp_epochs": 2, "calibration_batches": 2, "evaluation_batches": 2}
        config = tas.RivalConfig(**{**base, **options})
        data = self.source if data is None else data
        return choose(method, self.model, self.graph, self.space, data, budget=budget, config=config, loss=loss)


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return Prepared()


def test_the_methods_are_these():
    assert METHODS == ("uniform", "random", "evolution", "l1", "l2", "fpgm", "taylor", "bn_scale", "sfp")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("budget", ["50%", {"params": "45%", "macs": 0.6}])
def test_the_budget_holds_and_the_small_network_costs_what_was_promised(prepared, method, budget):
    choice = prepared.choose(method, budget)
    assert choice.architecture in prepared.space
    assert tas.Budget.of(budget).holds(prepared.graph, choice.architecture)
    small = tas.derive(choice.model, prepared.graph, choice.architecture)
    assert count_macs(small, torch.zeros(1, 3, 8, 8)) == prepared.graph.macs(choice.architecture)
    assert sum(p.numel() for p in small.parameters()) == prepared.graph.params(choice.architecture)
    assert small(torch.rand(2, 3, 8, 8)).shape == (2, 4)
    assert choice.seconds > 0


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_choice_and_nothing_given_is_changed(prepared, method):
    before, state = copy.deepcopy(prepared.model.state_dict()), torch.get_rng_state()
    one, other = (prepared.choose(method, seed=5) for _ in range(2))
    assert one.architecture == other.architecture
    assert one.details == other.details
    pairs = zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert all(torch.equal(value, before[name]) for name, value in prepared.model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("method", METHODS)
def test_the_full_model_of_a_choice_computes_the_same_unless_it_was_trained(prepared, method):
    images, model = torch.rand(4, 3, 8, 8), prepared.model.eval()
    outputs = prepared.choose(method).model(images)
    assert torch.allclose(outputs, model(images), rtol=1e-4, atol=1e-5) == (method != "sfp")


@pytest.mark.parametrize("method", METHODS)
def test_only_the_halves_that_a_method_may_see_are_read(prepared, method):
    data = TrainingOnly(prepared.source)
    prepared.choose(method, data=data)
    wanted = {"taylor": {None, 0}, "random": {None, 0, 1}, "evolution": {None, 0, 1}, "sfp": {None}}  # None: the check
    assert data.halves == wanted.get(method, set())


@pytest.mark.parametrize("method", ["l1", "l2", "fpgm", "bn_scale"])
def test_a_ranking_keeps_the_most_important_channels_of_its_own_criterion(prepared, method):
    choice = prepared.choose(method)
    importance = channel_importance(prepared.model, prepared.graph, method)
    small = tas.derive(choice.model, prepared.graph, choice.architecture)
    kept = choice.architecture.widths["stem.0"]
    best = np.argsort(-importance["stem.0"], kind="stable")[:kept]
    assert torch.equal(small.stem[0].weight, prepared.model.stem[0].weight[best])
    assert choice.architecture.depths == prepared.graph.full.depths


def test_uniform_and_soft_pruning_have_one_ratio_and_soft_pruning_keeps_what_is_on(prepared):
    wanted = uniform(prepared.graph, prepared.space, tas.Budget(macs="50%"))
    assert prepared.choose("uniform").architecture == wanted
    choice = prepared.choose("sfp")
    assert choice.architecture == wanted
    for name, values in filter_norms(choice.model, prepared.graph).items():
        assert (values[: wanted.widths[name]] > 0).all()
        assert (values[wanted.widths[name] :] == 0).all()


def test_allocations_are_a_threshold_a_ratio_or_the_largest_share(prepared):
    graph, space, budget = prepared.graph, prepared.space, tas.Budget(macs="50%")
    draw = np.random.default_rng(0)
    importance = {name: 10 ** draw.integers(5) * draw.random(size) for name, size in graph.full.widths.items()}
    normal = {name: values / values.mean() for name, values in importance.items()}
    assert allocate(importance, graph, space, budget) == above_threshold(normal, graph, space, budget)
    assert allocate(importance, graph, space, budget, "uniform") == uniform(graph, space, budget)
    scores = {
        name: [sum(sorted(normal[name])[::-1][:size]) for size in space.widths[name]] for name in graph.full.widths
    }
    wanted = decode({**scores, "blocks": [-1e6, -1e6, 0.0]}, graph, space, budget)
    assert allocate(importance, graph, space, budget, "share") == wanted
    scaled = {name: 1e-3 * values for name, values in importance.items()}
    assert allocate(scaled, graph, space, budget) == allocate(importance, graph, space, budget)


def test_the_record_says_how_much_was_tried(prepared):
    for method in ("random", "evolution"):
        details = prepared.choose(method).details
        assert details["candidates"] == 6
        assert 1 <= details["evaluations"] <= 6
        assert details["mean_score"] <= details["best_score"] <= 100
    assert prepared.choose("taylor").details == {"batches": 2}
    assert prepared.choose("bn_scale").details == {"widths_by_l2": 0}


@pytest.mark.parametrize("method", ["taylor", "evolution", "random", "bn_scale"])
def test_the_branch_that_matters_keeps_more_channels(method):
    torch.manual_seed(0)
    model, source = TwoBranches(), two_branch_source()
    tas.train(model, source, config=tas.TrainConfig(epochs=8, warmup_epochs=0, batch_size=64, learning_rate=0.05))
    graph = tas.trace(model, torch.zeros(1, 16, 1, 1))
    space, config = tas.SearchSpace.of(graph), tas.RivalConfig(candidates=40)
    found = choose(method, model, graph, space, source, budget="65%", config=config).architecture
    if method in ("random", "evolution"):
        assert found.widths["a"] >= 12 > found.widths["b"]
    else:  # normalised by width, so that only channels within a width compare
        assert tas.Budget(macs="65%").holds(graph, found)


def test_a_loss_of_ones_own_takes_the_place_of_labels(prepared):
    def distance(outputs, targets):
        return (outputs - nn.functional.one_hot(targets, 4).float()).square().mean()

    for method in ("taylor", "random", "sfp"):
        choice = prepared.choose(method, loss=distance)
        assert tas.Budget(macs="50%").holds(prepared.graph, choice.architecture)
    assert prepared.choose("random", loss=distance).details["best_score"] <= 0


def test_a_method_that_does_not_exist_is_refused_with_the_list(prepared):
    with pytest.raises(ConfigError, match=r"there is no method 'fpmg' \(did you mean fpgm\?\); choose uniform, random"):
        prepared.choose("fpmg")


def test_a_budget_for_which_blocks_must_go_is_refused_by_those_that_keep_them(prepared):
    space = tas.SearchSpace.of(prepared.graph, choose="depth")
    for method in ("uniform", "l2", "sfp"):
        with pytest.raises(BudgetError, match=f"{method} cuts channels and keeps every block: nothing in this space"):
            choose(method, prepared.model, prepared.graph, space, prepared.source, budget="50%")
    config = RivalConfig(candidates=2, batch_size=16)
    found = choose("random", prepared.model, prepared.graph, space, prepared.source, budget="50%", config=config)
    assert found.architecture.depths == {"blocks": 1}
    with pytest.raises(BudgetError, match="no architecture in this space has"):
        choose("random", prepared.model, prepared.graph, space, prepared.source, budget="5%")


def test_a_graph_of_another_model_and_data_that_does_not_fit_are_refused(prepared):
    with pytest.raises(ModelError, match="the graph does not fit this TwoBranches"):
        choose("l2", TwoBranches(), prepared.graph, prepared.space, None, budget="50%")
    with pytest.raises(ModelError, match="the model does not accept inputs of shape"):
        prepared.choose("taylor", data=two_branch_source(512))
    with pytest.raises(DataError):
        prepared.choose("random", data=3)


def test_options_out_of_range_are_refused():
    for options in ({"candidates": 0}, {"sfp_learning_rate": 0.0}, {"batch_size": -1}, {"allocation": "greedy"}):
        with pytest.raises(ConfigError, match=f"rivals {next(iter(options))} is"):
            RivalConfig(**options)


class Detector(TinyNet):
    """Wants targets while it trains, as torchvision's detectors."""

    def forward(self, images, targets=None):
        assert not self.training or targets is not None, "targets should not be None"
        return super().forward(images)


def test_rivals_that_never_train_do_not_ask_for_a_forward_that_trains():
    model, source = Detector(), tiny_source()
    graph = tas.trace(model, torch.zeros(1, 3, 8, 8))
    space = tas.SearchSpace.of(graph)
    for method in ("taylor", "random"):
        assert tas.choose(
            method, model, graph, space, source, budget="60%", config=RivalConfig(candidates=2)
        ).architecture
    with pytest.raises(tas.ModelError, match="Detector fails in training mode .targets should not be None"):
        tas.choose("sfp", model, graph, space, source, budget="60%")
