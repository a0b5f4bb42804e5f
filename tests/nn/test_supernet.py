import copy
import re
from collections.abc import Iterator
from functools import cache

import nets
import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from nets import images, perturbed
from torch import Tensor, nn

from tas.architecture import Architecture
from tas.errors import ArchitectureError, ConfigError, ModelError
from tas.graph import Graph
from tas.nn.mixing import CompactWidth
from tas.nn.supernet import Supernet
from tas.pipeline.derive import derive
from tas.pipeline.trace import trace
from tas.space import SearchSpace

EXECUTIONS = ("compact", "dense")


def relative(one: Tensor, other: Tensor) -> float:
    assert one.shape == other.shape
    return float((one - other).detach().abs().max() / one.detach().abs().max())


@cache
def traced(name: str) -> tuple[nn.Module, Graph]:
    model = perturbed(nets.ALL[name]())
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model, nets.graph_of(name)


def prepared(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Graph, SearchSpace]:
    model, graph = traced(name)
    return copy.deepcopy(model).to(dtype), graph, SearchSpace.of(graph)


def samples(space: SearchSpace, count: int, seed: int = 0) -> Iterator[Architecture]:
    generator = torch.Generator().manual_seed(seed)
    yield space.smallest
    for _ in range(count):
        yield space.sample(generator)


def randomised(supernet: Supernet, seed: int = 0) -> Supernet:
    """Other logits, and another affine for every candidate; the same in both executions."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        supernet.logits.copy_(torch.randn(supernet.logits.shape, generator=draw))
        for name, parameter in supernet.named_parameters():
            if name.endswith((".scales", ".shifts")):
                parameter.add_(0.5 * torch.randn(parameter.shape, generator=draw).to(parameter))
    return supernet


def twins(name: str, dtype: torch.dtype, **options) -> tuple[Supernet, Supernet]:
    model, graph, space = prepared(name, dtype)
    pair = [randomised(Supernet(model, graph, space, execution=kind, **options)).to(dtype) for kind in EXECUTIONS]
    return pair[0], pair[1]


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("name", nets.ALL)
def test_the_largest_architecture_is_the_original_model(name, execution):
    model, graph, space = prepared(name)
    supernet = Supernet(model, graph, space, execution=execution)
    assert relative(model(images()), supernet(images())) < 1e-5
    with supernet.fixed(space.largest):
        assert relative(model(images()), supernet(images())) < 1e-5


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("name", nets.ALL)
def test_a_fixed_architecture_computes_what_the_derived_model_computes(name, execution):
    model, graph, space = prepared(name)
    supernet, full = Supernet(model, graph, space, execution=execution), model(images())
    for architecture in samples(space, 3):
        with supernet.fixed(architecture):
            wanted = derive(model, graph, architecture)(images())
            assert relative(wanted, supernet(images())) < 1e-5
            if architecture != space.largest:
                assert relative(full, wanted) > 1e-3  # the comparison can fail


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize(
    "name",
    [
        "plain",
        "residual",
        "concat",
        "depthwise",
        "norm without affine",
        "norm with plain averages",
        "flatten to linear",
    ],
)
def test_training_a_fixed_architecture_is_training_the_derived_model(name, execution):
    model, graph, space = prepared(name, torch.float64)
    inputs = images(dtype=torch.float64)
    for architecture in samples(space, 2):
        supernet = Supernet(model, graph, space, execution=execution).train()
        small = derive(model, graph, architecture).train()
        with supernet.fixed(architecture):
            for _ in range(2):  # twice: the running statistics of the first are there in the second
                assert relative(small(inputs), supernet(inputs)) < 1e-10
            supernet.eval(), small.eval()
            assert relative(small(inputs), supernet(inputs)) < 1e-10


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_an_instance_norm_over_two_branches_keeps_its_statistics(execution):
    model = nets.Concat()
    model.norm = nn.InstanceNorm2d(14, affine=True, track_running_stats=True)
    model = perturbed(model, dtype=torch.float64)
    inputs = images(dtype=torch.float64)
    graph = trace(model, inputs)
    supernet = Supernet(model, graph, SearchSpace.of(graph), execution=execution).train()
    small = derive(model, graph, SearchSpace.of(graph).smallest).train()
    with supernet.fixed(SearchSpace.of(graph).smallest):
        supernet(inputs), small(inputs)
        assert relative(small.eval()(inputs), supernet.eval()(inputs)) < 1e-10


def test_named_models_fixed_equal_derived(named):
    full = named.model(named.images)
    nothing = Supernet(named.model, named.graph, named.space)
    assert relative(full, nothing(named.images)) < 1e-5
    for execution in EXECUTIONS:
        supernet = Supernet(named.model, named.graph, named.space, execution=execution)
        for architecture in samples(named.space, 1):
            with torch.no_grad(), supernet.fixed(architecture):
                wanted = derive(named.model, named.graph, architecture)(named.images)
                assert relative(wanted, supernet(named.images)) < 1e-5
                assert relative(full, wanted) > 1e-2


def compare(compact: Supernet, dense: Supernet, inputs: Tensor, tolerance: float, seed: int) -> None:
    """Outputs, gradients and statistics of one random mixture."""
    found = []
    for supernet in (compact, dense):
        supernet.zero_grad()
        supernet.draw(1.5, torch.Generator().manual_seed(seed))
        torch.manual_seed(seed)  # for stochastic depth
        outputs = supernet(inputs)
        outputs = outputs if isinstance(outputs, Tensor) else torch.cat(outputs)
        weights = torch.linspace(-1, 1, outputs.numel(), dtype=outputs.dtype).view(outputs.shape)
        (outputs * weights).sum().backward()
        found.append(outputs.detach())
    assert relative(*found) < tolerance
    others, size = dict(dense.named_parameters()), float(found[0].abs().max())
    for name, parameter in compact.named_parameters():
        if parameter.numel() == 0:  # no logits
            continue
        one, other = (p.grad if p.grad is not None else torch.zeros_like(p) for p in (parameter, others[name]))
        scale = max(float(one.abs().max()), 1e-2 * size)
        assert float((one - other).abs().max()) < 10 * tolerance * scale, name
    buffers = dict(dense.named_buffers())
    idle = [  # dense runs every block, and their norms see batches
        f".{block}." for depth in compact.graph.depths for block in depth.blocks[compact._depths[depth.name].deepest :]
    ]
    for name, buffer in compact.named_buffers():
        if any(block in f".{name}" for block in idle):
            continue
        torch.testing.assert_close(buffer, buffers[name], rtol=10 * tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("fragments", [1, 2, 3, 8])
@pytest.mark.parametrize("depth_samples", ["drawn", "all"])
@pytest.mark.parametrize("interpolation", ["average", "none"])
def test_compact_equals_dense_for_any_number_of_fragments(fragments, depth_samples, interpolation, training):
    options = {"fragments": fragments, "depth_samples": depth_samples, "interpolation": interpolation}
    pair = twins("residual", torch.float64, **options)
    for supernet in pair:
        supernet.train(training)
    for seed in range(3):
        compare(*pair, images(dtype=torch.float64), 1e-10, seed)


@pytest.mark.parametrize(("training", "interpolation"), [(False, "average"), (True, "average"), (True, "none")])
@pytest.mark.parametrize("name", nets.ALL)
def test_compact_equals_dense_in_every_net(name, training, interpolation):
    pair = twins(name, torch.float64, interpolation=interpolation)
    for supernet in pair:
        supernet.train(training)
    compare(*pair, images(dtype=torch.float64), 1e-10, 0)


@pytest.mark.parametrize("name", ["residual", "without norm", "concat"])
def test_compact_equals_dense_in_single_precision(name):
    pair = twins(name, torch.float32)
    for supernet in pair:
        supernet.eval()
    compare(*pair, images(), 1e-5, 1)


def test_named_models_compact_equals_dense(named):
    pair = [randomised(Supernet(named.model, named.graph, named.space, execution=kind)) for kind in EXECUTIONS]
    outputs = []
    for supernet in pair:
        supernet.draw(1.0, torch.Generator().manual_seed(0))
        with torch.no_grad():
            outputs.append(supernet(named.images))
    assert relative(*outputs) < 2e-5
    pair[0].draw(1.0, torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert relative(outputs[0], pair[0](named.images)) > 1e-2


class Checkpointed(nn.Module):
    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.utils.checkpoint.checkpoint(self.module, inputs, use_reentrant=False)


@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_without_interpolation_the_affines_of_all_norms_are_made_at_once(is_checkpointed, monkeypatch):
    supernet = randomised(Supernet(*prepared("plain"), interpolation="none")).train()
    supernet.draw(1.5, torch.Generator().manual_seed(0), differentiable=False)
    alone = CompactWidth.affine
    wanted = torch.autograd.grad(supernet.model(images()).square().sum(), supernet.weights())  # each norm by itself
    if is_checkpointed:
        supernet.model.first = Checkpointed(supernet.model.first)
    monkeypatch.setattr(CompactWidth, "affine", lambda *given: pytest.fail("a norm makes its own"))
    for _ in range(2):
        found = torch.autograd.grad(supernet(images()).square().sum(), supernet.weights())
        torch.testing.assert_close(found, wanted)
    copy.deepcopy(supernet)
    with torch.no_grad():
        supernet.weights()[1].add_(1.0)
        moved = supernet(images())
        monkeypatch.setattr(CompactWidth, "affine", alone)
        supernet.draw(1.5, torch.Generator().manual_seed(0))
        torch.testing.assert_close(moved, supernet.model(images()))


def interpolated(x: Tensor, channels: int) -> Tensor:
    """The paper's channel-wise interpolation, by torch's own adaptive average pooling over channels."""
    batch, count, *space = x.shape
    flat = x.reshape(batch, count, -1).transpose(1, 2)
    return F.adaptive_avg_pool1d(flat, channels).transpose(1, 2).reshape(batch, channels, *space)


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("training", [False, True])
def test_the_mixture_is_the_paper_s_formula_behind_a_norm(execution, training):
    model, graph, space = prepared("plain", torch.float64)
    supernet = randomised(Supernet(model, graph, space, execution=execution, fragments=3)).double().train(training)
    supernet.draw(2.0, torch.Generator().manual_seed(4))
    inputs, state = images(dtype=torch.float64), supernet._widths["first.0"]
    norm = supernet.model.first[1]
    raw = F.conv2d(inputs, model.first[0].weight, padding=1)
    chosen = [int(index) for index in state.chosen]
    sizes = [space.widths["first.0"][index] for index in chosen]
    assert len(set(sizes)) == 3
    total = 0
    for weight, index, size in zip(state.weights, chosen, sizes, strict=True):
        fragment = F.batch_norm(
            raw[:, :size],
            norm.module.running_mean[:size].clone(),
            norm.module.running_var[:size].clone(),
            norm.scales[index, :size],
            norm.shifts[index, :size],
            training=training,
        )
        total = total + weight * interpolated(fragment, max(sizes))
    found = supernet.model.first(inputs)
    assert relative(total, found[:, : max(sizes)]) < 1e-10
    assert not found[:, max(sizes) :].any()


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("layer", ["first", "third"])
def test_the_mixture_is_the_paper_s_formula_without_a_norm(execution, layer):
    model, graph, space = prepared("without norm", torch.float64)
    supernet = randomised(Supernet(model, graph, space, execution=execution)).double()
    supernet.draw(2.0, torch.Generator().manual_seed(1))
    state = supernet._widths[layer]
    sizes = [space.widths[layer][int(index)] for index in state.chosen]
    assert len(set(sizes)) == 2
    if layer == "first":
        inputs = images(dtype=torch.float64)
    else:
        active = int(supernet._widths["second"].active)
        inputs = torch.randn(6, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        inputs[:, active:] = 0
    raw = getattr(model, layer)(inputs)
    total = sum(w * interpolated(raw[:, :size], max(sizes)) for w, size in zip(state.weights, sizes, strict=True))
    if layer == "third" and execution == "compact":
        inputs = inputs[:, :active]
    found = supernet.model.get_submodule(layer)(inputs)
    assert relative(total, found[:, : max(sizes)]) < 1e-10
    assert not found[:, max(sizes) :].any()


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_the_mixture_of_depths_is_the_weighted_sum_of_the_outputs(execution):
    model, graph, space = prepared("residual", torch.float64)
    supernet = randomised(Supernet(model, graph, space, execution=execution, depth_samples="all")).double()
    generator = torch.Generator().manual_seed(0)
    supernet.draw(1.0, generator)
    for name, sizes in space.widths.items():  # all widths full: only the depth is mixed
        supernet._widths[name].pick(len(sizes) - 1)
    state = supernet._depths["stage"]
    weights = [float(state._weight(kept).detach()) for kept in (1, 2, 3)]
    assert sum(weights) == pytest.approx(1)
    with supernet.fixed(space.largest):
        whole = supernet.collapse(space.largest)
    x, total = whole.stem(images(dtype=torch.float64)), 0
    for weight, block in zip(weights, whole.stage, strict=True):
        x = block(x)
        total = total + weight * x
    assert relative(whole.head(total), supernet(images(dtype=torch.float64))) < 1e-10


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own, while it compiles
@pytest.mark.parametrize("interpolation", ["average", "none"])
def test_dense_execution_is_one_graph_for_all_samples(interpolation):
    model, graph, space = prepared("residual")
    supernet = Supernet(model, graph, space, execution="dense", depth_samples="all", interpolation=interpolation)
    compiled = torch.compile(supernet.train(), fullgraph=True, backend="eager")
    generator, inputs, seen = torch.Generator().manual_seed(0), images(), set()
    supernet.draw(5.0, generator)
    compiled(inputs)
    with torch.compiler.set_stance("fail_on_recompile"):
        for _ in range(4):
            supernet.draw(5.0, generator)
            outputs = compiled(inputs)
            torch.testing.assert_close(outputs, supernet(inputs), rtol=1e-4, atol=1e-5)
            outputs.sum().backward()
            seen.add(float(outputs.detach().sum()))
    assert len(seen) == 4, "every sample is another network"


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("name", ["residual", "one and three dimensions"])
def test_dense_execution_moves_no_table_in_a_forward_on_another_device(name):
    model, graph, space = prepared(name)
    supernet = Supernet(model, graph, space, execution="dense").to("meta")
    compiled = torch.compile(supernet, fullgraph=True, backend="eager")
    supernet.draw(5.0)
    compiled(images().to("meta"))
    with torch.compiler.set_stance("fail_on_recompile"):
        supernet.draw(5.0)
        compiled(images().to("meta")).sum().backward()


@pytest.mark.parametrize("name", ["residual", "one and three dimensions"])
def test_a_dense_supernet_lies_where_the_model_it_is_made_of_lies(name):
    model, graph, space = prepared(name)
    supernet = Supernet(model.to("meta"), graph, space, execution="dense")
    assert supernet(images().to("meta")).is_meta


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("name", nets.ALL)
def test_deriving_the_collapsed_supernet_gives_what_it_computed(name, execution):
    model, graph, space = prepared(name)
    supernet = randomised(Supernet(model, graph, space, execution=execution))
    supernet.draw(1.0, torch.Generator().manual_seed(0))  # a mixture with gradients is open
    supernet(images())
    for architecture in samples(space, 2):
        small = derive(supernet.collapse(architecture), graph, architecture)
        with supernet.fixed(architecture):
            assert relative(small(images()), supernet(images())) < 1e-5


def test_a_collapsed_supernet_has_the_modules_and_shapes_of_the_model():
    model, graph, space = prepared("depthwise")
    supernet = Supernet(model, graph, space)
    with supernet.fixed(space.smallest):
        supernet(images())
    whole = supernet.collapse(space.largest)
    assert [(n, type(m), getattr(m, "groups", 0)) for n, m in whole.named_modules()] == [
        (n, type(m), getattr(m, "groups", 0)) for n, m in model.named_modules()
    ]
    assert whole.state_dict().keys() == model.state_dict().keys()
    assert relative(model(images()), whole(images())) < 1e-6


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_after_fixed_the_draw_before_is_open_again(execution):
    model, graph, space = prepared("residual")
    supernet = randomised(Supernet(model, graph, space, execution=execution))
    supernet.draw(1.0, torch.Generator().manual_seed(0))
    before = supernet(images())
    with supernet.fixed(space.smallest):
        assert relative(before, supernet(images())) > 1e-3
        with pytest.raises(RuntimeError), supernet.fixed(space.largest):
            supernet(torch.zeros(1, 4, 8, 8))  # an error inside must not leave the choice behind
        with supernet.fixed(space.smallest):
            inner = supernet(images())
        assert torch.equal(inner, supernet(images()))
    assert torch.equal(before, supernet(images()))


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_the_same_generator_seed_gives_the_same_draw(execution):
    model, graph, space = prepared("residual")
    outputs = []
    for seed in (3, 3, 4):
        supernet = randomised(Supernet(model, graph, space, execution=execution))
        supernet.draw(1.0, torch.Generator().manual_seed(seed))
        outputs.append(supernet(images()))
    assert torch.equal(outputs[0], outputs[1])
    assert relative(outputs[0], outputs[2]) > 1e-3


def test_a_draw_without_gradient_leaves_the_logits_alone():
    model, graph, space = prepared("plain")
    supernet = randomised(Supernet(model, graph, space))
    supernet.draw(1.0, torch.Generator().manual_seed(0), differentiable=False)
    supernet(images()).sum().backward()
    assert supernet.logits.grad is None
    supernet.draw(1.0, torch.Generator().manual_seed(0))
    supernet(images()).square().sum().backward()
    assert supernet.logits.grad is not None
    touched = (supernet.logits.grad.abs() > 1e-4 * supernet.logits.grad.abs().max()).sum(1)
    assert touched.tolist() == [2, 2]  # only what was drawn


def test_a_supernet_of_a_model_in_training_mode_trains_and_of_a_still_one_is_still():
    model, graph, space = prepared("plain")
    for mode in (False, True):
        model.train(mode)
        supernet = Supernet(model, graph, space)
        assert [module.training for module in supernet.modules()] == [mode] * len(list(supernet.modules()))


def test_log_probabilities_are_those_of_a_softmax_over_the_candidates_alone():
    model, graph, space = prepared("residual")
    supernet = randomised(Supernet(model, graph, space))
    for row, (name, sizes) in enumerate([*space.widths.items(), *space.depths.items()]):
        wanted = supernet.logits[row, : len(sizes)].log_softmax(0)
        assert supernet.scores()[name] == pytest.approx(wanted.tolist(), abs=1e-5)
        assert supernet.log_probabilities()[row].exp().sum().item() == pytest.approx(1, abs=1e-5)
        sizes_chosen = {**supernet.most_probable().widths, **supernet.most_probable().depths}
        assert sizes_chosen[name] == sizes[int(wanted.argmax())]


@pytest.mark.parametrize("name", nets.ALL)
def test_weights_can_start_anew_in_every_net(name):
    model, graph, space = prepared(name)
    one, other = Supernet(model, graph, space), Supernet(model, graph, space)
    one.reset_weights(3), other.reset_weights(3)
    learning = [(path, parameter) for path, parameter in one.model.named_parameters() if parameter.requires_grad]
    for (path, parameter), twin, old in zip(
        learning, other.weights(), Supernet(model, graph, space).weights(), strict=True
    ):
        if re.search(
            r"\b(token|position|query|queries|scale|table|gamma|gain|[qk]_gain|decay|matrix|proj|experts|scales\..*|shifts\..*)$|\.parametrizations\.",
            path,
        ):
            continue  # nobody knows how these start
        assert torch.equal(parameter, twin)
        assert parameter.dim() == 1 or not torch.equal(parameter, old)


def test_the_model_given_is_not_changed():
    model, graph, space = prepared("residual")
    before = copy.deepcopy(model.state_dict())
    supernet = Supernet(model, graph, space).train()
    supernet.reset_weights(0)
    supernet.draw(1.0)
    supernet(images()).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_graph_without_choices_gives_a_supernet_that_is_the_model():
    model = perturbed(nn.Sequential(nn.Flatten(), nn.Linear(192, 5)))
    graph = trace(model, images())
    for execution in EXECUTIONS:
        supernet = Supernet(model, graph, SearchSpace.of(graph), execution=execution)
        supernet.draw(1.0)
        assert torch.equal(model(images()), supernet(images()))
        assert (supernet.scores(), supernet.most_probable()) == ({}, graph.full)


def test_a_width_with_one_candidate_is_never_mixed():
    model, graph, _ = prepared("plain")
    space = SearchSpace({"first.0": (5,), "second.0": (3, 12)}, {})
    outputs = []
    for execution in EXECUTIONS:
        supernet = randomised(Supernet(model, graph, space, execution=execution, fragments=4))
        supernet.draw(1.0, torch.Generator().manual_seed(0))
        outputs.append(supernet(images()))
        assert int(supernet._widths["first.0"].active) == 5
    assert relative(*outputs) < 1e-5


@pytest.mark.parametrize("options", [{"execution": "fast"}, {"depth_samples": "some"}, {"fragments": 0}])
def test_options_that_make_no_sense_are_refused(options):
    model, graph, space = prepared("plain")
    with pytest.raises(
        ConfigError, match=r"execution is .* \(compact or dense\), depth_samples .* fragments .* \(at least 1\)"
    ):
        Supernet(model, graph, space, **options)


def test_a_graph_of_another_model_is_refused():
    _, graph, space = prepared("plain")
    with pytest.raises(ModelError, match="the graph does not fit this Residual: first.0.weight should have shape"):
        Supernet(nets.Residual(), graph, space)


def test_a_space_of_another_graph_is_refused():
    model, graph, space = prepared("plain")
    with pytest.raises(ArchitectureError, match="its widths have other names"):
        Supernet(model, graph, SearchSpace({"first.0": (1,)}, {}))
    with pytest.raises(ArchitectureError, match="its depths have other names"):
        Supernet(model, graph, SearchSpace(space.widths, {"stage": (1,)}))
    with pytest.raises(ArchitectureError, match=r"width 'first.0' has a candidate 9; the model has only 8"):
        Supernet(model, graph, SearchSpace({**space.widths, "first.0": (9,)}, {}))


def test_an_architecture_outside_the_space_cannot_be_fixed():
    model, graph, space = prepared("plain")
    supernet = Supernet(model, graph, space)
    outside = Architecture({**space.largest.widths, "first.0": 1})
    with pytest.raises(ArchitectureError, match="is not in the supernet's space"), supernet.fixed(outside):
        pass


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.filterwarnings("ignore:The tensor attribute .* was assigned during export")
def test_what_a_module_remembers_of_one_size_is_forgotten_at_the_next(execution):
    model = perturbed(nn.Sequential(nets.conv_bn(3, 8), nets.Remembers(), nets.head(8)))
    graph = trace(model, images())
    supernet = Supernet(model, graph, SearchSpace.of(graph), execution=execution).eval()
    with torch.no_grad():
        for size in (8, 3, 5, 3):
            architecture = Architecture({"0.0": size}, {})
            with supernet.fixed(architecture):
                assert relative(derive(model, graph, architecture)(images()), supernet(images())) < 1e-5
            collapsed = supernet.collapse(architecture)
        assert not collapsed[1].known
