"""The search finds what matters, holds its budget, and repeats itself."""

import itertools
import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn
from toys import TinyNet, TwoBranches, tiny_source, two_branch_source

import tas
from tas.data import TensorSource
from tas.pipeline.search import SearchConfig
from tas.pipeline.search.steps import Steps


def prepared(model: nn.Module, shape=(3, 8, 8), **options) -> tas.Supernet:
    graph = tas.trace(model, torch.zeros(1, *shape))
    return tas.Supernet(model, graph, tas.SearchSpace.of(graph), **options)


def quick(**options) -> SearchConfig:
    base = {"epochs": 2, "batch_size": 16, "logits_learning_rate": 0.05, "temperature_start": 5.0}
    return SearchConfig(**{**base, **options})


@pytest.fixture(scope="module")
def branches() -> TensorSource:
    return two_branch_source()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_search_keeps_the_width_that_matters_and_cuts_the_one_that_does_not(branches, seed):
    torch.manual_seed(seed)
    supernet = prepared(TwoBranches(), (16, 1, 1))
    config = quick(epochs=12, batch_size=64, logits_weight_decay=0.0, temperature_end=0.5, seed=seed)
    found = tas.search(supernet, branches, budget="65%", config=config).architecture
    assert found.widths["a"] >= 12
    assert found.widths["b"] <= 8


def expected_macs(supernet: tas.Supernet) -> float:
    """By enumeration of all architectures, independent of CostTable."""
    graph, space = supernet.graph, supernet.space
    scores = supernet.scores()
    names = [*space.widths, *space.depths]
    total = 0.0
    for picks in itertools.product(*[range(len(scores[name])) for name in names]):
        chosen = dict(zip(names, picks, strict=True))
        architecture = tas.Architecture(
            {name: space.widths[name][chosen[name]] for name in space.widths},
            {name: space.depths[name][chosen[name]] for name in space.depths},
        )
        weight = torch.tensor([scores[name][index] for name, index in chosen.items()]).sum().exp()
        total += float(weight) * graph.macs(architecture)
    return total


def test_without_a_cost_term_the_search_grows(branches):
    torch.manual_seed(0)
    supernet = prepared(TwoBranches(), (16, 1, 1))
    uniform = expected_macs(supernet)
    config = quick(epochs=10, batch_size=64, cost_weight=0.0, logits_weight_decay=0.0, temperature_end=0.5)
    tas.search(supernet, branches, budget="40%", config=config)
    assert expected_macs(supernet) > 1.05 * uniform


def test_a_huge_cost_weight_shrinks_everything_to_the_smallest():
    torch.manual_seed(0)
    supernet = prepared(TinyNet())
    budget = {"macs": supernet.graph.macs(supernet.space.smallest)}
    config = quick(epochs=6, cost_weight=1e4, logits_learning_rate=0.3)
    found = tas.search(supernet, tiny_source(), budget=budget, config=config)
    assert found.architecture == supernet.space.smallest
    # depth gates every cost behind the lead block, so a cut depth leaves its inner widths without a cost gradient
    used = [
        n
        for n in supernet.space.widths
        if not any(n.startswith(b) for b in supernet.graph.skipped(supernet.space.smallest))
    ]
    likely = supernet.most_probable()
    assert all(likely.widths[name] == supernet.space.smallest.widths[name] for name in used)


@pytest.mark.parametrize("share", [0.15, 0.37, 0.5, 0.81, 1.0])
def test_the_budget_holds(share):
    torch.manual_seed(1)
    supernet = prepared(TinyNet())
    found = tas.search(supernet, tiny_source(), budget=share, config=quick(epochs=1)).architecture
    assert supernet.graph.macs(found) <= share * supernet.graph.macs()
    small = tas.derive(TinyNet(), supernet.graph, found)
    assert tas.measure(small, example=torch.zeros(1, 3, 8, 8), seconds=0.01).macs == supernet.graph.macs(found)


def test_two_budgets_hold_together():
    supernet = prepared(TinyNet())
    found = tas.search(
        supernet, tiny_source(), budget={"macs": "60%", "params": "30%"}, config=quick(epochs=1)
    ).architecture
    graph = supernet.graph
    assert graph.macs(found) <= 0.6 * graph.macs()
    assert graph.params(found) <= 0.3 * graph.params()


def test_an_impossible_budget_is_refused_before_any_step_and_names_the_smallest_cost():
    supernet = prepared(TinyNet())
    before = {name: value.clone() for name, value in supernet.state_dict().items()}
    smallest = supernet.graph.macs(supernet.space.smallest)
    with pytest.raises(tas.BudgetError, match=f"the smallest has {smallest:,} "):
        tas.search(supernet, tiny_source(), budget={"macs": smallest - 1})
    assert all(torch.equal(value, before[name]) for name, value in supernet.state_dict().items())


@pytest.mark.parametrize("execution", ["compact", "dense"])
@pytest.mark.parametrize("choose", ["both", "width", "depth"])
def test_width_and_depth_can_be_searched_alone_in_both_executions(execution, choose):
    torch.manual_seed(0)
    model = TinyNet()
    graph = tas.trace(model, torch.zeros(1, 3, 8, 8))
    space = tas.SearchSpace.of(graph, choose=choose)
    supernet = tas.Supernet(model, graph, space, execution=execution)
    config = quick(start="trained")
    found = tas.search(supernet, tiny_source(), budget="70%", config=config).architecture
    assert graph.macs(found) <= 0.7 * graph.macs()
    assert (dict(found.widths) == dict(graph.full.widths)) == (choose == "depth")
    assert (dict(found.depths) == dict(graph.full.depths)) == (choose == "width") or choose == "both"


def test_compact_and_dense_execution_find_the_same():
    results = []
    for execution in ("compact", "dense"):
        torch.manual_seed(0)
        supernet = prepared(TinyNet(), execution=execution)
        supernet.double()
        source = tiny_source()
        results.append(tas.search(supernet, _Double(source), budget="50%", config=quick()).scores.log_probabilities)
    for name, row in results[0].items():
        assert row == pytest.approx(results[1][name], abs=1e-6)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own, while it compiles
def test_a_compiled_search_finds_the_same(compiles):
    results = []
    for compile in (False, True):
        torch.manual_seed(0)
        supernet = prepared(TinyNet(), execution="dense").double()
        config = quick(compile=compile, start="trained", teacher_weight=0.9, architectures=2, halving_steps=2)
        results.append(
            tas.search(supernet, _Double(tiny_source()), budget="50%", teacher=TinyNet().double(), config=config)
        )
    for name, row in results[0].scores.log_probabilities.items():
        assert row == pytest.approx(results[1].scores.log_probabilities[name], abs=1e-6)
    assert results[0].architecture == results[1].architecture
    assert len(compiles) == 2, "supernet and teacher, once each"


def test_compact_execution_is_not_compiled():
    message = "compile needs dense execution.*not compact; set execution to dense"
    with pytest.raises(tas.ConfigError, match=message):
        tas.search(prepared(TinyNet()), tiny_source(), budget="50%", config=quick(compile=True))
    with pytest.raises(tas.ConfigError, match=message):
        tas.CompressConfig(search=quick(compile=True))
    assert tas.CompressConfig(search=quick(compile=True), execution="dense").search.compile


class _Double:
    """A source in float64."""

    def __init__(self, source):
        self.source, self.name = source, source.name
        self.num_classes, self.input_shape = source.num_classes, source.input_shape

    def train_batches(self, *arguments, **options):
        return _Doubled(self.source.train_batches(*arguments, **options))

    def test_batches(self, *arguments, **options):
        return _Doubled(self.source.test_batches(*arguments, **options))


class _Doubled:
    def __init__(self, batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return ((inputs.double(), targets) for inputs, targets in self.batches)


def test_the_same_seed_gives_the_same_scores_and_another_seed_does_not():
    def scores(seed):
        torch.manual_seed(0)
        return tas.search(prepared(TinyNet()), tiny_source(), budget="50%", config=quick(seed=seed)).scores

    assert scores(3) == scores(3)
    assert scores(3) != scores(4)


def test_the_search_leaves_the_global_random_state_alone():
    supernet = prepared(TinyNet())
    torch.manual_seed(5)
    state = torch.get_rng_state()
    tas.search(supernet, tiny_source(), budget="50%", config=quick(epochs=1))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_trained_start_keeps_the_weights_and_scratch_does_not():
    torch.manual_seed(1)  # another seed than that of the reset
    model = TinyNet()
    kept, reset = (prepared(model) for _ in range(2))
    frozen = {"learning_rate": 1e-12, "weight_decay": 0.0, "epochs": 1}
    tas.search(kept, tiny_source(), budget="50%", config=quick(start="trained", **frozen))
    tas.search(reset, tiny_source(), budget="50%", config=quick(start="scratch", **frozen))
    full = kept.collapse(kept.space.largest)
    assert torch.allclose(full.head.weight, model.head.weight, atol=1e-6)
    assert not torch.allclose(reset.collapse(reset.space.largest).head.weight, model.head.weight, atol=1e-3)


def test_a_teacher_changes_the_search_only_when_it_has_weight():
    torch.manual_seed(0)
    model = TinyNet()
    teacher = TinyNet()

    def scores(**options):
        return tas.search(prepared(model), tiny_source(), budget="50%", config=quick(**options), teacher=teacher).scores

    assert scores(teacher_weight=0.0) == tas.search(prepared(model), tiny_source(), budget="50%", config=quick()).scores
    assert scores(teacher_weight=0.5) != scores(teacher_weight=0.0)


def test_an_interrupted_search_goes_on_where_it_was(tmp_path):
    def run(checkpoint=None, record=None):
        torch.manual_seed(0)
        return tas.search(
            prepared(TinyNet()),
            tiny_source(),
            budget="50%",
            config=quick(epochs=4),
            checkpoint=checkpoint,
            record=record,
        )

    class Interrupts(tas.Record):
        def add(self, stage, **values):
            super().add(stage, **values)
            if values.get("epoch") == 2:
                raise KeyboardInterrupt

    whole = run()
    file = tmp_path / "search.pt"
    with pytest.raises(KeyboardInterrupt):
        run(file, Interrupts())
    record = tas.Record()
    resumed = run(file, record)
    assert [row["epoch"] for row in record.epochs("search")] == [2, 3]  # epoch 2 had no checkpoint yet
    assert resumed.scores == whole.scores
    assert resumed.architecture == whole.architecture


def test_a_checkpoint_of_other_options_is_refused(tmp_path):
    file = tmp_path / "search.pt"
    tas.search(prepared(TinyNet()), tiny_source(), budget="50%", config=quick(epochs=1), checkpoint=file)
    with pytest.raises(tas.RunError, match="written with other options"):
        tas.search(prepared(TinyNet()), tiny_source(), budget="50%", config=quick(epochs=2), checkpoint=file)


def test_the_record_holds_the_architecture_of_every_epoch():
    supernet = prepared(TinyNet())
    record = tas.search(supernet, tiny_source(), budget="50%", config=quick(epochs=3)).record
    rows = record.epochs("search")
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    for row in rows:
        architecture = tas.Architecture(**row["architecture"])
        assert architecture in supernet.space
        assert row["most_probable"]["macs"] == supernet.graph.macs(architecture)
    assert rows[-1]["expected"]["macs"] == pytest.approx(expected_macs(supernet), rel=1e-3)


def test_the_weight_step_leaves_the_logits_alone_and_the_logits_step_the_weights():
    torch.manual_seed(0)
    supernet = prepared(TinyNet()).train()
    steps = Steps(supernet, tas.Budget(macs="30%"), quick(), None, None)
    inputs, targets = next(iter(tiny_source().train_batches(16)))
    weights = [weight.detach().clone() for weight in supernet.weights()]
    logits = supernet.logits.detach().clone()
    steps.logits_step(inputs, targets, 1.0, torch.Generator().manual_seed(0))
    assert not torch.equal(supernet.logits, logits)
    assert all(torch.equal(one, other) for one, other in zip(weights, supernet.weights(), strict=True))
    logits = supernet.logits.detach().clone()
    steps.weight_step(inputs, targets, 1.0, torch.Generator().manual_seed(0))
    assert torch.equal(supernet.logits, logits)
    assert not all(torch.equal(one, other) for one, other in zip(weights, supernet.weights(), strict=True))


@pytest.mark.parametrize(
    ("band", "limit_share", "sign"),
    [("paper", 0.5, 1), ("paper", 0.97, 0), ("paper", 1.0, 0), ("code", 0.97, 1), ("code", 1.0, 0)],
)
def test_the_cost_term_pushes_only_outside_its_band(band, limit_share, sign):
    supernet = prepared(TinyNet())
    with torch.no_grad():  # the full network is the most probable one
        for row, sizes in enumerate([*supernet.space.widths.values(), *supernet.space.depths.values()]):
            supernet.logits[row, len(sizes) - 1] = 4.0
    steps = Steps(supernet, tas.Budget(macs=limit_share), quick(band=band, tolerance=0.05), None, None)
    term = steps.cost_loss()
    limit = tas.Budget(macs=limit_share).limits(supernet.graph)["macs"]
    wanted = sign * torch.log(torch.tensor(expected_macs(supernet) / limit))
    assert float(term.detach()) == pytest.approx(float(wanted), abs=1e-5)


def test_the_cost_term_pulls_up_when_the_likely_network_is_too_small():
    supernet = prepared(TinyNet())
    with torch.no_grad():
        supernet.logits[:, 0] = 4.0
    steps = Steps(supernet, tas.Budget(macs=0.8), quick(), None, None)
    limit = tas.Budget(macs=0.8).limits(supernet.graph)["macs"]
    wanted = -torch.log(torch.tensor(expected_macs(supernet) / limit))
    assert float(steps.cost_loss().detach()) == pytest.approx(float(wanted), abs=1e-5)
    (gradient,) = torch.autograd.grad(steps.cost_loss(), [supernet.logits])
    assert float(gradient[0, 0]) > 0  # descending makes the smallest candidate less likely


def test_temperatures_run_from_start_to_end():
    for schedule in ("linear", "cosine"):
        config = quick(temperature_start=8.0, temperature_end=0.5, temperature_schedule=schedule)
        assert config.temperature(0.0) == pytest.approx(8.0)
        assert config.temperature(1.0) == pytest.approx(0.5)
        assert config.temperature(0.5) == pytest.approx(4.25)
    assert quick(temperature_schedule="cosine").temperature(0.25) > quick().temperature(0.25)


def test_an_automatic_learning_rate_of_the_logits_falls_with_the_number_of_steps():
    supernet = prepared(TinyNet())
    for total in (100, 1000):
        steps = Steps(supernet, tas.Budget(), quick(logits_learning_rate="auto"), None, None, total)
        assert steps.logits.param_groups[0]["lr"] == pytest.approx(12 / total)


def test_frozen_weights_stay_as_they_are():
    torch.manual_seed(1)
    model = TinyNet()
    for parameter in model.stem.parameters():
        parameter.requires_grad_(False)
    supernet = prepared(model)
    tas.search(supernet, tiny_source(), budget="50%", config=quick(start="trained"))
    whole = supernet.collapse(supernet.space.largest)
    assert torch.equal(whole.stem[0].weight, model.stem[0].weight)
    assert torch.equal(whole.stem[1].weight, model.stem[1].weight)
    assert not torch.equal(whole.head.weight, model.head.weight)


def test_the_defaults_are_the_papers():
    config = SearchConfig()
    assert (config.epochs, config.batch_size, config.fragments, config.cost_weight, config.tolerance) == (
        600,
        256,
        2,
        2.0,
        0.05,
    )
    assert (config.learning_rate, config.momentum, config.weight_decay) == (0.1, 0.9, 5e-4)
    assert (config.logits_learning_rate, config.logits_betas, config.logits_weight_decay) == (1e-3, (0.5, 0.999), 1e-3)
    assert (config.temperature_start, config.temperature_end, config.temperature_schedule) == (10.0, 0.1, "linear")
    assert (config.start, config.depth_samples, config.band) == ("scratch", "all", "paper")


@pytest.mark.parametrize(
    ("option", "value"),
    [("epochs", 0), ("batch_size", 0), ("fragments", 0), ("cost_weight", -1.0), ("tolerance", -0.1),
     ("teacher_weight", 2.0),
     ("temperature_end", 0.0), ("learning_rate", 0.0)],
)  # fmt: skip
def test_options_out_of_range_are_refused_by_name(option, value):
    with pytest.raises(tas.ConfigError, match=option):
        SearchConfig(**{option: value})


def test_a_nan_loss_is_an_error_and_leaves_no_checkpoint(tmp_path):
    model = TinyNet()
    supernet = prepared(model)
    nn.init.constant_(supernet.model.head.module.weight, float("nan"))
    file = tmp_path / "search.pt"
    with pytest.raises(tas.TrainingError, match="lower search.learning_rate"):
        tas.search(supernet, tiny_source(), budget="50%", config=quick(start="trained"), checkpoint=file)
    assert not file.exists()


def test_a_custom_loss_opens_other_tasks():
    def regression(outputs, targets):
        return nn.functional.mse_loss(outputs[:, 0], targets.float())

    supernet = prepared(TinyNet())
    found = tas.search(supernet, tiny_source(), budget="50%", config=quick(epochs=1), loss=regression)
    assert found.record.rows[-1]["loss"] > 0


def test_labels_may_be_of_any_integer_type():
    source = tiny_source()
    source._train = (source._train[0], source._train[1].int())
    tas.search(prepared(TinyNet()), source, budget="50%", config=quick(epochs=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"start": "somewhere"}, "it can be scratch or trained"), ({"logits_betas": (2.0, 0.9)}, "two numbers"),
     ({"distillation_temperature": 0.0}, "above 0"), ({"logits_weight_decay": -1.0}, "not be negative"),
     ({"compile": True, "sync_batch_norm": True}, "compile does not go with sync_batch_norm")],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(tas.ConfigError, match=message):
        quick(**options)


@pytest.mark.parametrize("execution", ["compact", "dense"])
@pytest.mark.parametrize("interpolation", ["average", "linear", "none"])
def test_half_precision_runs_in_all_forms(execution, interpolation):
    config = quick(epochs=1, precision="bf16", interpolation=interpolation)
    supernet = prepared(TinyNet(), execution=execution)
    found = tas.search(supernet, tiny_source(), budget="60%", config=config)
    assert math.isfinite(found.record.rows[0]["loss"])


@pytest.mark.parametrize("changes", [{"epochs": 2}, {"epochs": 0, "logits_start": "saliency", "architectures": 4}])
def test_a_checkpoint_of_another_budget_is_refused(tmp_path, changes):
    config, record = quick(start="trained", halving_steps=4, **changes), tas.Record()
    for budget, refusal in (("60%", nullcontext()), ("30%", pytest.raises(tas.RunError, match="other options"))):
        with refusal:
            tas.search(
                prepared(TinyNet()), tiny_source(), budget=budget, config=config, record=record,
                checkpoint=tmp_path / "x.pt",
            )  # fmt: skip


class Noisy(torch.utils.data.Dataset):
    """Images with noise of numpy's global generator, as many users' augmentation draws it."""

    def __init__(self):
        self.images, self.targets = next(iter(tiny_source().test_batches(32)))

    def __len__(self):
        return 32

    def __getitem__(self, index):
        return self.images[index] + 0.5 * float(np.random.randn()), int(self.targets[index])


def noisy_loaders():
    return [torch.utils.data.DataLoader(Noisy(), 8, shuffle=True) for _ in range(2)]


def test_augmentation_from_the_global_generators_repeats_itself(tmp_path):
    config = quick(epochs=0, start="trained", logits_start="saliency", architectures=8, halving_steps=8, batch_size=8)

    def searched(np_seed, checkpoint=None, record=None):
        np.random.seed(np_seed)
        torch.manual_seed(0)
        return tas.search(
            prepared(TinyNet()), noisy_loaders(), budget="60%", config=config, checkpoint=checkpoint, record=record
        ).record.rows

    def losses(rows):
        return [row["losses"] for row in rows]

    first = searched(1)
    assert len(first) == 3
    assert losses(first) == losses(searched(2))

    class StoppedError(Exception):
        pass

    class Stopping(tas.Record):
        def add(self, stage, **values):
            if values.get("round") == 1:
                raise StoppedError
            super().add(stage, **values)

    stopped = Stopping()
    with pytest.raises(StoppedError):
        searched(3, tmp_path / "x.pt", stopped)
    record = tas.Record()
    record.rows = stopped.rows
    assert losses(searched(4, tmp_path / "x.pt", record)) == losses(first)


def test_a_loss_that_is_nan_in_the_middle_of_an_epoch_is_our_error():
    for seed in range(3):
        with pytest.raises(tas.TrainingError, match="the loss of the search became .* image . of batch . has NaN or"):
            tas.search(
                prepared(TinyNet()), tiny_source(48, broken=5), budget="60%",
                config=quick(depth_samples="drawn", batch_size=4, epochs=3, seed=seed),
            )  # fmt: skip


def test_the_teacher_is_left_as_it_is():
    teacher = TinyNet().to(memory_format=torch.channels_last).train()
    tas.search(prepared(TinyNet()), tiny_source(), budget="60%", config=quick(epochs=1, teacher_weight=0.5),
               teacher=teacher)  # fmt: skip
    assert all(module.training for module in teacher.modules())
    assert teacher.stem[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_what_may_learn_can_lie_in_a_block_that_is_not_drawn():
    model = TinyNet().requires_grad_(False)
    model.blocks[2].requires_grad_(True)
    config = quick(epochs=3, start="trained", fragments=1, depth_samples="drawn", architectures=4, halving_steps=8)
    found = tas.search(prepared(model), tiny_source(), budget="60%", config=config)
    assert found.architecture


def test_frozen_norms_stay_frozen_when_the_supernet_is_collapsed():
    model = TinyNet()
    model.stem[1].requires_grad_(False)
    supernet = prepared(model)
    collapsed = supernet.collapse(supernet.space.largest)
    assert [p.requires_grad for p in collapsed.stem[1].parameters()] == [False, False]
    assert all(p.requires_grad for p in collapsed.head.parameters())
