import json
from dataclasses import replace
from math import prod

import nets
import numpy as np
import pytest
import token_nets
import torch
from torch import nn
from toys import TinyNet, tiny_source

import tas
from tas.errors import BudgetError, ConfigError
from tas.layer_planes import layer_planes
from tas.pipeline.compress import short_search
from tas.pipeline.latency import LatencyConfig, known_latency, with_latency
from tas.profile import RUNTIMES
from tas.timing import LayerTimes, signature

BY_EIGHTS = tas.SpaceConfig(round_to=8)
QUICK = LatencyConfig(grid=3, models=3, seconds=0.001, cache="")


@pytest.fixture(scope="module")
def traced():
    model = nets.Plain().eval()
    graph = tas.trace(model, nets.images(1))
    return model, graph, tas.SearchSpace.of(graph)


def test_the_full_model_is_predicted_as_it_was_measured(traced):
    model, graph, space = traced
    found = with_latency(model, graph, space, nets.images(1), batch=2, config=QUICK)
    assert found.latency is not None
    assert replace(found, latency=None) == graph
    full = found.cost("latency").exact(graph.full)
    assert full == pytest.approx(found.latency.full_ms * 1e6, rel=1e-3)
    assert found.cost("latency").exact(space.smallest) > 0
    assert (found.latency.batch, found.latency.untimed) == (2, ())
    assert {part.layer for part in found.latency.parts} == {layer.name for layer in graph.layers}
    assert tas.Graph.from_json(found.to_json()) == found


def test_a_fit_for_a_budget_makes_use_of_it_where_one_for_all_does_not(monkeypatch):
    """A machine whose cache holds the weights of half the model: to fetch others takes as long as to compute."""
    model = tas.models.load("cifar_resnet:20", num_classes=10)
    graph = tas.trace(model, torch.zeros(1, 3, 32, 32))
    space = tas.SearchSpace.of(graph)

    def nanoseconds(architecture):
        return graph.macs(architecture) / 50 + 6 * max(0, graph.params(architecture) - graph.params() / 2)

    def measure(self, wanted, **_):
        self.seconds = {
            name: sum(p.numel() for p in layer.parameters()) * prod(shape[2:]) / 50e9
            for name, (layer, shape) in wanted.items()
        }

    monkeypatch.setattr(LayerTimes, "measure", measure)
    monkeypatch.setattr(
        "tas.pipeline.latency._nanoseconds",
        lambda _model, graph, chosen, *_: np.array([nanoseconds(one) for one in (graph.full, *chosen)]),
    )
    draw, budget, used = np.random.default_rng(5), tas.Budget(latency="60%"), {}
    scores = [
        {name: draw.random(len(sizes)).cumsum().tolist() for name, sizes in space.choices.items()} for _ in range(8)
    ]
    for budgets in ((), (budget,)):
        found = with_latency(
            model, graph, space, torch.zeros(1, 3, 32, 32), budgets=budgets, config=LatencyConfig(grid=3, cache="")
        )
        assert budget.limits(found)["latency"] <= 0.6 * nanoseconds(graph.full)
        chosen = [tas.Scores(one, found, space).decode(budget) for one in scores]
        used[budgets] = max(map(nanoseconds, chosen)) / nanoseconds(graph.full)
    assert used[()] < 0.45 < 0.55 < used[(budget,)] < 0.61


def test_under_onnx_runtime_layers_and_networks_are_timed_there(traced, tmp_path):
    model, graph, _ = traced
    space = tas.SearchSpace.of(graph, BY_EIGHTS)
    config = replace(QUICK, runtime="onnxruntime", threads=1, cache=str(tmp_path))
    found = with_latency(model, graph, space, nets.images(1), config=config)
    assert found.latency.runtime == "onnxruntime"
    assert found.cost("latency").exact(graph.full) == pytest.approx(found.latency.full_ms * 1e6, rel=1e-3)
    assert {part.layer for part in found.latency.parts} == {layer.name for layer in graph.layers}
    assert tas.Graph.from_json(found.to_json()) == found
    (kept,) = tmp_path.iterdir()
    assert "onnxruntime" in json.loads(kept.read_text())["setting"]
    measured = tas.measure(model, example=nets.images(1), runtime="onnxruntime", threads=1, seconds=0.2)
    assert found.latency.full_ms == pytest.approx(measured.latency_ms, rel=0.8)  # other tests run beside
    with_latency(model, graph, space, nets.images(1), config=replace(config, runtime="pytorch"))
    assert len([*tmp_path.iterdir()]) == 2  # nothing of the one is taken for the other


def test_onnx_runtime_wants_whole_groups_of_channels(traced):
    model, graph, space = traced
    config = replace(QUICK, runtime="onnxruntime", threads=1)
    with pytest.raises(ConfigError, match="whole groups of 8 channels alone, and width first.0 may become 2; add"):
        with_latency(model, graph, space, nets.images(1), config=config)


def test_a_graph_of_before_was_measured_in_pytorch(traced):
    model, graph, space = traced
    found = with_latency(model, graph, space, nets.images(1), config=QUICK)
    value = found.to_dict()
    del value["latency"]["runtime"]
    assert tas.Graph.from_json(json.dumps(value)) == found


def test_a_runtime_that_is_not_known_is_refused():
    with pytest.raises(ConfigError, match="latency runtime is 'tensorrt'; it can be pytorch or onnxruntime"):
        LatencyConfig(runtime="tensorrt")


def test_a_layer_that_is_lent_to_a_block_takes_no_time_where_that_is_dropped():
    model = nets.SharedInBlocks().eval()
    graph = tas.trace(model, nets.images(1))
    found = with_latency(model, graph, tas.SearchSpace.of(graph), nets.images(1), config=QUICK).latency
    gates = [part.gate for part in found.parts if part.layer == "stage.1.inner.0"]
    assert (gates, found.untimed) == ([("stage", 1), ("stage", 2)], ())


def test_times_are_kept_and_read_by_the_same_setting_alone(tmp_path):
    with torch.device("meta"):
        layer = nn.Conv2d(3, 4, 1)
    wanted = {signature(layer, (1, 3, 5, 5)): (layer, (1, 3, 5, 5))}
    first = LayerTimes(tmp_path, {"threads": 1})
    first.measure(wanted, device=torch.device("cpu"), seconds=0.001)
    assert first.seconds.keys() == wanted.keys()
    assert min(first.seconds.values()) > 0
    again = LayerTimes(tmp_path, {"threads": 1})
    assert again.seconds == first.seconds
    again.measure(wanted, device=torch.device("cpu"), seconds=0.001, advance=lambda: pytest.fail("timed again"))
    assert LayerTimes(tmp_path, {"threads": 2}).seconds == {}
    (file,) = tmp_path.iterdir()
    file.write_text(json.dumps({**json.loads(file.read_text()), "setting": {"threads": 3}}))
    assert LayerTimes(tmp_path, {"threads": 1}).seconds == {}
    file.write_text("{")
    assert LayerTimes(tmp_path, {"threads": 1}).seconds == {}


def test_the_signature_knows_sizes_and_the_input():
    found = {signature(nn.Conv2d(3, n, 1, groups=g), (1, 3, s, s)) for n, g, s in ((3, 1, 4), (3, 3, 4), (6, 1, 4))}
    assert len(found | {signature(nn.Conv2d(3, 3, 1), (1, 3, 5, 5))}) == 4


def test_a_place_where_times_cannot_be_kept_is_no_end_of_a_run(tmp_path):
    (tmp_path / "file").touch()
    times = LayerTimes(tmp_path / "file" / "cache", {"threads": 1})
    layer = torch.nn.Linear(4, 4, device="meta")
    with pytest.warns(UserWarning, match="will time all layers again: cannot write .*latency.cache"):
        times.measure({"a": (layer, (1, 4))}, device=torch.device("cpu"), seconds=0.001)
    assert times.seconds["a"] > 0


def test_the_clock_of_a_processor_needs_one_thread():
    with pytest.raises(ConfigError, match="latency clock cpu needs one thread, not 0"):
        LatencyConfig(clock="cpu")


def test_free_residuals_are_refused():
    model = tas.models.load("cifar_resnet:20", num_classes=4)
    graph = tas.trace(model, torch.zeros(1, 3, 32, 32), residuals="free")
    with pytest.raises(BudgetError, match="cannot be a budget with free residuals yet"):
        with_latency(model, graph, tas.SearchSpace.of(graph), torch.zeros(1, 3, 32, 32), config=QUICK)


def test_compress_holds_a_budget_of_latency_and_says_what_it_measured(tmp_path):
    threads = torch.get_num_threads() + 1
    config = tas.CompressConfig(
        search=replace(short_search(), epochs=1, batch_size=16, architectures=0), latency_batch=2,
        train=tas.TrainConfig(epochs=1, batch_size=16, warmup_epochs=0), latency=replace(QUICK, threads=threads),
    )  # fmt: skip
    budget = tas.Budget(latency="100%", macs="70%")  # of which up to a tenth is kept back
    # large enough that small networks are faster by far, also beside other tests
    found = tas.compress(TinyNet(width=32), tiny_source(size=32), budget=budget, config=config, output=tmp_path / "run")
    assert budget.holds(found.graph, found.architecture)
    predicted = found.graph.cost("latency").exact(found.architecture) / 1e6
    assert found.full.threads == found.pruned.threads == found.graph.latency.threads == threads
    assert found.summary["pruned"]["predicted_latency_ms"] == pytest.approx(predicted, abs=1e-4)
    assert found.summary["budget"] == {"macs": "70%", "latency": "100%"}
    assert known_latency(tmp_path / "run") == found.graph.latency
    text = (tmp_path / "run" / "report.md").read_text()
    assert "| predicted latency |" in text
    assert "| latency |" in text


@pytest.mark.parametrize("runtime", ["pytorch", "onnxruntime"])
def test_what_a_budget_counts_is_what_is_measured_afterwards(runtime, tmp_path):
    config = tas.CompressConfig(
        search=replace(short_search(), batch_size=16, architectures=0),
        train=tas.TrainConfig(epochs=1, batch_size=16, warmup_epochs=0),
        latency=replace(QUICK, runtime=runtime, threads=1, clock="cpu"), space=BY_EIGHTS,
    )  # fmt: skip
    found = tas.compress(
        TinyNet(width=16), tiny_source(), budget={"latency": "100%"}, config=config, output=tmp_path / "run"
    )
    assert found.full.clock == found.pruned.clock == "cpu"
    assert found.full.runtime == found.pruned.runtime == runtime
    page = (tmp_path / "run" / "report.html").read_text()
    assert "time spent by the processor." in page
    assert RUNTIMES[runtime] + ", 1 thread" in page


class Odd(nn.Module):
    """A norm without weights, and a layer called by keyword."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(8, affine=False), nn.Linear(8, 4)

    def forward(self, images):
        return self.head(self.norm(self.b(input=self.a(images))).mean((2, 3)))


@pytest.mark.parametrize("net", [nets.StandardisedNet, nets.MaskedNet])
def test_convolutions_that_compute_their_weight_are_timed(net):
    model = net().eval()
    graph = tas.trace(model, nets.images(1))
    found = with_latency(model, graph, tas.SearchSpace.of(graph), nets.images(1), config=QUICK)
    assert "own_convolution" in {layer.kind for layer in graph.layers}
    assert found.latency.untimed == ()


@pytest.mark.parametrize(
    ("net", "layer"), [("EmbeddedPositions", "blocks.0.attention"), ("EncoderLayers", "layer.self_attn")]
)
def test_products_in_attention_follow_their_heads(net, layer):
    model = getattr(token_nets, net)().eval()
    graph = tas.trace(model, nets.images(1))
    space = tas.SearchSpace.of(graph)
    times = LayerTimes(None, {})
    planes, untimed = layer_planes(model, graph, space, nets.images(1), times, grid=2, seconds=1e-4, clock="wall")
    own = [plane for plane in planes if plane.layer == layer]
    macs = {
        size: sum(plane.at(one, graph.sizes(one))[6] for plane in own)
        for size, one in (("full", graph.full), ("small", space.smallest))
    }  # fmt: skip
    found = next(one for one in graph.layers if one.name == layer)
    assert macs["full"] == sum(n * prod(c.of(dict(graph.full.widths)) for c in counts) for n, counts in found.products)
    assert 0 < macs["small"] < macs["full"]
    assert layer not in untimed


def test_norms_without_weights_and_layers_called_by_keyword_are_timed():
    model = Odd().eval()
    graph = tas.trace(model, nets.images(1))
    found = with_latency(model, graph, tas.SearchSpace.of(graph), nets.images(1), batch=2, config=QUICK)
    assert {part.layer for part in found.latency.parts} == {"a", "b", "norm", "head"}


def test_a_latency_is_refused_in_words_where_nothing_can_be_cut():
    model = Odd().eval()
    graph = tas.trace(model, nets.images(1), keep=["*"])
    space = tas.SearchSpace.of(graph)
    found = with_latency(model, graph, space, nets.images(1), batch=2, config=QUICK)
    with pytest.raises(BudgetError, match="nothing in this space can be made smaller"):
        tas.Budget(latency="50%").require_reachable(found, space)
