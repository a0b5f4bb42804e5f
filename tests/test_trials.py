"""Architectures are tried on the data and with the weights that the docstrings say."""

import sys

import pytest
import torch
from nets import perturbed
from toys import TinyNet, TwoBranches, tiny_source, two_branch_source

import tas
from tas.errors import ConfigError
from tas.fit import Fitter
from tas.progress import progress_bar
from tas.task import accuracy
from tas.trials import WORST, Judge, evolve, random_search


def judge_of(model, graph, source, **options) -> Judge:
    return Judge(
        tas.rank(model, graph),
        graph,
        lambda: source.train_batches(16, half=0),
        lambda: source.train_batches(16, half=1),
        **options,
    )


@pytest.fixture(scope="module")
def prepared():
    torch.manual_seed(0)
    model, source = TinyNet(), tiny_source()
    tas.train(model, source, config=tas.TrainConfig(epochs=1, batch_size=16, learning_rate=0.02))
    graph = tas.trace(model, torch.zeros(1, 3, 8, 8))
    return model, graph, source


def test_the_score_is_the_accuracy_on_one_half_with_statistics_of_the_other(prepared):
    model, graph, source = prepared
    architecture = tas.SearchSpace.of(graph).smallest
    small = tas.derive(tas.rank(model, graph), graph, architecture)
    norms = [module for module in small.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
        norm.reset_running_stats()
    small.eval()
    for norm in norms:
        norm.train()
    with torch.no_grad():
        for images, _ in source.train_batches(16, half=0):
            small(images)
        small.eval()
        values = [float(accuracy(small(images), labels)) for images, labels in source.train_batches(16, half=1)]
        losses = [
            float(torch.nn.functional.cross_entropy(small(images), labels))
            for images, labels in source.train_batches(16, half=1)
        ]
    assert judge_of(model, graph, source).score(architecture) == pytest.approx(sum(values) / len(values))
    by_loss = judge_of(model, graph, source, loss=torch.nn.functional.cross_entropy)
    assert by_loss.score(architecture) == pytest.approx(-sum(losses) / len(losses), rel=1e-5)


def test_an_architecture_is_measured_once(prepared):
    model, graph, source = prepared
    judge, reads = judge_of(model, graph, source), []
    evaluation = judge.evaluation
    judge.evaluation = lambda: reads.append(1) or evaluation()
    assert judge.score(graph.full) == judge.score(graph.full)
    assert len(reads) == 1


def test_a_loss_that_is_not_finite_is_the_worst_score(prepared):
    model, graph, source = prepared
    judge = judge_of(model, graph, source, loss=lambda outputs, targets: outputs.mean() * float("nan"))
    assert judge.score(graph.full) == WORST


class Counted:
    """A judge by a formula: nothing is run."""

    def __init__(self, value):
        self.value, self.scores, self.asked = value, {}, 0

    def score(self, architecture) -> float:
        self.asked += 1
        self.scores[architecture] = self.value(architecture)
        return self.scores[architecture]

    @property
    def best(self):
        return max(self.scores, key=lambda architecture: self.scores[architecture])


METHODS = {
    "random": lambda *given, **options: random_search(*given, **options),
    "evolution": lambda *given, **options: evolve(*given, **options, population=8),
}


@pytest.mark.parametrize("name", METHODS)
def test_as_many_are_tried_as_asked_for_all_fit_and_the_best_is_taken(prepared, name):
    _, graph, _ = prepared
    bound = tas.Budget(macs="50%")
    fitter = Fitter(graph, tas.SearchSpace.of(graph), bound)
    found = []
    for _ in range(2):
        judge = Counted(lambda architecture: float(architecture.widths["stem.0"] * 10 + architecture.depths["blocks"]))
        with progress_bar("test", 40) as bar:
            found.append(METHODS[name](fitter, judge, candidates=40, seed=3, bar=bar))
        assert judge.asked == 40
        assert all(bound.holds(graph, architecture) for architecture in judge.scores)
        assert judge.scores[found[-1]] == max(judge.scores.values())
    assert found[0] == found[1]


def test_evolution_climbs_where_random_draws_do_not():
    graph = tas.trace(tas.models.load("cifar_resnet:20", num_classes=10), torch.zeros(1, 3, 16, 16))
    fitter = Fitter(graph, tas.SearchSpace.of(graph), tas.Budget(macs="50%"))
    target = fitter.fitted([min(4, len(sizes) - 1) for sizes in fitter.space.choices.values()], 7)

    def closeness(architecture) -> float:
        return -sum(abs(size - target.widths[name]) / target.widths[name] for name, size in architecture.widths.items())

    best = {name: [] for name in METHODS}
    for seed in range(2):
        for name, method in METHODS.items():
            judge = Counted(closeness)
            with progress_bar("test", 100) as bar:
                method(fitter, judge, candidates=100, seed=seed, bar=bar)
            best[name].append(max(judge.scores.values()))
    assert sum(best["evolution"]) > sum(best["random"])


@pytest.mark.parametrize("name", METHODS)
def test_the_branch_that_matters_is_kept(name):
    torch.manual_seed(0)
    model, source = TwoBranches(), two_branch_source()
    tas.train(model, source, config=tas.TrainConfig(epochs=8, warmup_epochs=0, batch_size=64, learning_rate=0.05))
    graph = tas.trace(model, torch.zeros(1, 16, 1, 1))
    judge = judge_of(model, graph, source)
    with progress_bar("test", 40) as bar:
        fitter = Fitter(graph, tas.SearchSpace.of(graph), tas.Budget(macs="65%"))
        found = METHODS[name](fitter, judge, candidates=40, seed=0, bar=bar)
    assert found.widths["a"] >= 12 > found.widths["b"]


def test_evolution_without_optuna_says_what_to_install(prepared, monkeypatch):
    _, graph, _ = prepared
    monkeypatch.setitem(sys.modules, "optuna", None)
    fitter = Fitter(graph, tas.SearchSpace.of(graph), tas.Budget())
    with pytest.raises(ConfigError, match=r"pip install tas-pruning\[rivals\]"), progress_bar("test", 4) as bar:
        evolve(fitter, Counted(lambda _: 0.0), candidates=4, population=2, seed=0, bar=bar)


def test_the_global_random_state_is_left_alone(prepared):
    model, graph, source = prepared
    state = torch.get_rng_state()
    judge_of(perturbed(model), graph, source).score(graph.full)
    assert torch.equal(state, torch.get_rng_state())


def test_labels_to_ignore_do_not_count():
    torch.manual_seed(0)
    model = TinyNet().eval()
    graph = tas.trace(model, torch.zeros(1, 3, 8, 8))
    images = torch.rand(8, 3, 8, 8)
    right = model(images).argmax(1)
    batches = [(images[:4], right[:4]), (images[4:], torch.full((4,), -100))]
    judge = Judge(model, graph, lambda: [(images, right)], lambda: batches)
    with_all = Judge(model, graph, lambda: [(images, right)], lambda: batches[:1])
    assert judge.score(graph.full) == with_all.score(graph.full) >= 0
