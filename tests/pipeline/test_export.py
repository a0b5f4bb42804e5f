"""A file counts only if it computes what the model computes."""

import builtins
import copy
import sys
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from nets import perturbed
from toys import TinyNet, tiny_source

import tas
from tas.pipeline import export as verb
from tas.pipeline.export import FILES, ExportConfig, export, largest_difference
from tas.space import SearchSpace

FLOATS = ("onnx", "torch-export")
QUICK = {"seconds": 0.02}


def derived(model: torch.nn.Module, example: torch.Tensor, seed: int = 0) -> torch.nn.Module:
    """A random architecture of a model with random weights."""
    graph = tas.trace(model, example)
    return tas.derive(perturbed(model), graph, SearchSpace.of(graph).sample(torch.Generator().manual_seed(seed)))


@pytest.fixture(scope="module")
def small() -> torch.nn.Module:
    torch.manual_seed(0)
    return derived(TinyNet(), torch.zeros(1, 3, 8, 8))


@pytest.fixture(scope="module")
def trained() -> torch.nn.Module:
    torch.manual_seed(0)
    return tas.train(TinyNet(), tiny_source(), config=tas.TrainConfig(epochs=12, batch_size=16))


@pytest.mark.parametrize("format", FLOATS)
def test_a_file_computes_what_the_model_computes_for_any_batch(format, small, tmp_path):
    before = small.state_dict()
    found = export(small, tmp_path / FILES[format], format=format, data=tiny_source(), **QUICK)
    assert found.difference <= 1e-4
    assert [file.name for file in tmp_path.iterdir()] == [FILES[format]]
    assert found.file_bytes == found.path.stat().st_size
    assert found.model_bytes == sum(tensor.nbytes for tensor in before.values())
    assert found.latency_ms > 0 < found.model_latency_ms
    images = torch.randn(5, 3, 8, 8)
    assert torch.allclose(_reloaded(found.path, images), small.eval()(images), atol=1e-4)


def _reloaded(path, images: torch.Tensor) -> torch.Tensor:
    """What another program would do, with the batch at hand."""
    if path.suffix == ".pt2":
        return torch.export.load(path).module()(images)
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


@pytest.mark.parametrize("format", FLOATS)
def test_a_file_that_differs_is_an_error_and_leaves_what_was_there(format, small, tmp_path, monkeypatch):
    path = tmp_path / FILES[format]
    path.write_text("the last one")
    captured = verb.capture_any_batch

    def other(model, images, **options):
        with torch.no_grad():
            wrong = copy.deepcopy(model)
            wrong.head.bias[0] += 0.01 * float(model(images).abs().max())
        return captured(wrong, images, **options)

    monkeypatch.setattr(verb, "capture_any_batch", other)
    with pytest.raises(tas.ModelError, match=r"differs from the model by .*e-0[23] of its largest output.*no file"):
        export(small, path, format=format, example=torch.zeros(1, 3, 8, 8))
    assert [file.read_text() for file in tmp_path.iterdir()] == ["the last one"]
    assert export(small, path, format=format, example=torch.zeros(1, 3, 8, 8), tolerance=0.1, **QUICK).difference > 1e-3


def test_nan_is_a_difference(small):
    class Nan(torch.nn.Module):
        def forward(self, images):
            return small(images) * torch.tensor([1.0, float("nan"), 1, 1])

    images = torch.randn(12, 3, 8, 8)
    assert largest_difference(small, small, images) == 0
    assert not largest_difference(small, Nan(), images) <= 1e9


def test_nested_outputs_are_compared_each_on_its_own_scale():
    class Two(torch.nn.Module):
        def __init__(self, second: float):
            super().__init__()
            self.second = second

        def forward(self, images):
            flat = images.flatten(1)
            return {"large": 1000 * flat, "small": [flat + self.second]}

    images = torch.ones(12, 1, 2, 2)
    assert largest_difference(Two(0), Two(0.25), images) == pytest.approx(0.25)
    with pytest.raises(tas.ModelError, match=r"for 1 images .* instead of"):
        largest_difference(Two(0), torch.nn.Flatten(), images)


def test_int8_is_judged_by_accuracy_and_is_smaller(trained, tmp_path):
    found = export(trained, tmp_path / "m.onnx", format="onnx-int8", data=tiny_source(), calibration_images=40, **QUICK)
    assert found.model_accuracy == tas.measure(trained, tiny_source(), seconds=0.02).accuracy
    assert found.accuracy >= found.model_accuracy - 2
    assert found.difference > 1e-4  # it does round
    import onnx

    nodes = onnx.load(found.path).graph.node
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in nodes}
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]


def test_int8_is_judged_by_a_metric_of_the_users_own(trained, tmp_path):
    def smallness(outputs, labels):
        return -(outputs - labels[:, None]).abs().mean()

    options = {"format": "onnx-int8", "data": tiny_source(), "metric": smallness, **QUICK}
    found = export(trained, tmp_path / "m.onnx", accuracy_tolerance=0.5, **options)
    assert found.metric == "smallness"
    assert found.model_accuracy < 0  # no percentage
    assert found.accuracy == pytest.approx(found.model_accuracy, abs=0.5)
    values = iter([-2.0, *[-1.0] * 100])
    with pytest.raises(tas.ModelError, match=r"int8 has metric -.*, the model -.*: it loses more than 0; no file"):
        export(trained, tmp_path / "n.onnx", accuracy_tolerance=0.0, **options | {"metric": lambda *_: next(values)})


def test_a_metric_reads_the_outputs_of_int8_as_those_of_the_model(tmp_path):
    class Keyed(TinyNet):
        def forward(self, images):
            return {"found": super().forward(images), "scale": images.mean((2, 3))}

    def smallness(outputs, labels):
        return -(outputs["found"] - labels[:, None]).abs().mean() - 0 * outputs["scale"].sum()

    options = {"format": "onnx-int8", "data": tiny_source(), "metric": smallness, "accuracy_tolerance": 1.0, **QUICK}
    found = export(Keyed(), tmp_path / "m.onnx", **options)
    assert found.accuracy == pytest.approx(found.model_accuracy, abs=0.5)
    profile = tas.measure(Keyed(), tiny_source(), metric=smallness, runtime="onnxruntime", seconds=0.01)
    assert profile.accuracy < 0


def test_int8_that_loses_too_much_leaves_no_file(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(
        verb, "calibration_batches", lambda source, count: iter([torch.zeros(1, 3, 8, 8)])
    )  # ranges of nothing
    with pytest.raises(tas.ModelError, match=r"loses more than 2.00 points; no file was written"):
        export(trained, tmp_path / "m.onnx", format="onnx-int8", data=tiny_source(), **QUICK)
    assert list(tmp_path.iterdir()) == []


def test_calibration_takes_as_many_images_as_asked_for():
    source = tiny_source()  # 64 training images
    assert [sum(map(len, verb.calibration_batches(source, count))) for count in (1, 40, 1000)] == [1, 40, 64]


def test_the_opset_is_the_one_asked_for(small, tmp_path, capfd):
    import onnx

    path = export(small, tmp_path / "m.onnx", example=torch.zeros(1, 3, 8, 8), opset=19, **QUICK).path
    assert [item.version for item in onnx.load(path).opset_import if item.domain == ""] == [19]
    with pytest.raises(tas.ConfigError, match="opset is 5, which this model cannot be converted to: it was written as"):
        export(small, tmp_path / "m.onnx", example=torch.zeros(1, 3, 8, 8), opset=5, **QUICK)
    assert "Traceback" not in capfd.readouterr().err


class Pair(NamedTuple):
    one: torch.Tensor
    other: torch.Tensor


@dataclass
class Pose:
    one: torch.Tensor
    other: torch.Tensor


@pytest.mark.parametrize("container", [Pair, Pose])
def test_a_program_needs_no_container_of_the_models_own(container, tmp_path):
    class Named(TinyNet):
        def forward(self, images):
            found = super().forward(images)
            return container(found, found > 0)

    model = Named().eval()
    images = torch.randn(5, 3, 8, 8)
    for format in FLOATS:
        path = tmp_path / FILES[format]
        assert export(model, path, format=format, example=images, **QUICK).difference <= 1e-4
    found = torch.export.load(tmp_path / "model.pt2").module()(images)
    assert type(found) is (tuple if container is Pair else dict)
    assert type(model(images)) is container
    one = found[0] if container is Pair else found["one"]
    assert torch.allclose(one, model(images).one)


def test_what_an_error_says_of_an_export_is_its_cause(tmp_path):
    class Bessel(TinyNet):
        def forward(self, images):
            return torch.special.bessel_j0(super().forward(images))

    class Two(TinyNet):
        def forward(self, left, right):
            return super().forward(left + right)

    example = torch.zeros(1, 3, 8, 8)
    with pytest.raises(
        tas.ModelError, match=r"Bessel: it cannot be written as ONNX \(DispatchError: No ONNX function fou"
    ):
        export(Bessel(), tmp_path / "m.onnx", example=example, **QUICK)
    with pytest.raises(
        tas.ModelError, match=r"missing 1 required .*; wrap the model in a module that takes one tensor"
    ):
        export(Two(), tmp_path / "m.onnx", example=example, **QUICK)


def test_a_type_that_onnx_runtime_has_no_kernel_for_is_our_error(small, tmp_path):
    example = torch.zeros(1, 3, 8, 8, dtype=torch.bfloat16)
    with pytest.raises(tas.ModelError, match="^TinyNet: ONNX Runtime cannot run it"):
        export(copy.deepcopy(small).bfloat16(), tmp_path / "m.onnx", example=example, **QUICK)
    assert not (tmp_path / "m.onnx").exists()


def test_missing_packages_are_named(small, tmp_path, monkeypatch):
    imported = builtins.__import__

    def without(name, *rest, **options):
        if name == "onnxruntime":
            raise ImportError("no onnxruntime", name=name)
        return imported(name, *rest, **options)

    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(tas.ConfigError, match=r'needs onnxruntime.*pip install "tas-pruning\[onnx\]"'):
        export(small, tmp_path / "m.onnx", example=torch.zeros(1, 3, 8, 8))


def test_senseless_options_are_errors(small, tmp_path):
    for option in ({"tolerance": 0.0}, {"calibration_images": 0}, {"accuracy_tolerance": -1.0}, {"latency_batch": 0}):
        with pytest.raises(tas.ConfigError, match=next(iter(option))):
            export(small, tmp_path / "m", example=torch.zeros(1, 3, 8, 8), **option)
    with pytest.raises(tas.ConfigError, match="there is no option 'tolerence' .did you mean tolerance"):
        export(small, tmp_path / "m", example=torch.zeros(1, 3, 8, 8), config=ExportConfig(), tolerence=3)
    with pytest.raises(tas.ConfigError, match="format is 'tflite'; it can be onnx or torch-export or onnx-int8"):
        export(small, tmp_path / "m", format="tflite", example=torch.zeros(1, 3, 8, 8))
    with pytest.raises(tas.DataError, match="give one of them"):
        export(small, tmp_path / "m")
    with pytest.raises(tas.DataError, match="onnx-int8 needs data"):
        export(small, tmp_path / "m", format="onnx-int8", example=torch.zeros(1, 3, 8, 8))


def test_a_model_that_needs_one_batch_size_is_an_error(tmp_path):
    class Fixed(torch.nn.Module):
        def forward(self, images):
            return images.flatten(1) if images.shape[0] == 2 else images

    wanted = "Fixed: torch.export cannot capture it with any batch size, which its forward takes for a fixed number"
    with pytest.raises(tas.ModelError, match=wanted):
        export(Fixed(), tmp_path / "m.pt2", format="torch-export", example=torch.zeros(1, 3, 8, 8))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", FLOATS)
def test_a_forward_that_asks_for_the_length_of_its_input_keeps_the_batch_free(format, tmp_path):
    class WithToken(TinyNet):
        def __init__(self):
            super().__init__()
            self.token = torch.nn.Parameter(torch.ones(1, 4))

        def forward(self, images):
            return super().forward(images) + self.token.expand(len(images), -1)

    found = export(WithToken(), tmp_path / FILES[format], format=format, data=tiny_source(), **QUICK)
    assert _reloaded(found.path, torch.randn(5, 3, 8, 8)).shape == (5, 4)


def test_what_an_exporter_raises_is_an_error_of_ours_with_its_cause(tmp_path):
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.code = torch.nn.Linear(8, 4)  # the name of a property of torch's own modules

        def forward(self, images):
            return self.code(images) @ self.code.weight

    for format in FLOATS:
        with pytest.raises(tas.ModelError, match=r"Tied: .*RuntimeError: Node code_weight.*; no file was written"):
            export(Tied(), tmp_path / FILES[format], format=format, example=torch.zeros(1, 8))
    assert list(tmp_path.iterdir()) == []


QUICK_MODELS = [("cifar_resnet:20", 32)]
SLOW_MODELS = [  # of our ResNets those of both kinds of blocks; the others repeat the same ones more often
    ("cifar_resnet:164", 32),
    ("torchvision:resnet18", 64),
    ("torchvision:mobilenet_v2", 64),
    ("torchvision:efficientnet_b0", 64),
    ("torchvision:convnext_tiny", 64),
    ("torchvision:vit_b_16", 224),
]


def _shorten(name: str, model: torch.nn.Module) -> None:
    """Leave out what only repeats: exporting takes long."""
    if name.endswith("164"):
        for stage in (model.layer1, model.layer2, model.layer3):
            del stage[3:]  # of eighteen blocks
    elif "vit" in name:
        del model.encoder.layers[3:]  # of twelve
    elif "mobilenet" in name:
        del model.features[16], model.features[13], model.features[9:11], model.features[6]  # third blocks of a stage
    elif "efficientnet" in name:
        for stage in model.features[1:-1]:
            del stage[2:]
    elif "convnext" in name:
        for stage in model.features[1::2]:
            del stage[2:]


@pytest.mark.parametrize(
    ("name", "size"), [*QUICK_MODELS, *(pytest.param(*model, marks=pytest.mark.slow) for model in SLOW_MODELS)]
)
def test_onnx_computes_what_a_derived_model_computes(name, size, tmp_path):
    torch.manual_seed(0)
    model, example = tas.models.load(name, num_classes=10), torch.zeros(1, 3, size, size)
    _shorten(name, model)
    if "vit" in name:  # perturbed, it turns rounding into 1e-2: even its own decompositions differ by 2e-3
        torch.nn.init.normal_(model.heads.head.weight)  # zeros at the start
        graph = tas.trace(model, example)
        small = tas.derive(model, graph, SearchSpace.of(graph).sample(torch.Generator().manual_seed(1)))
    else:
        small = derived(model, example, seed=1)
    assert export(small, tmp_path / "m.onnx", example=torch.zeros(1, 3, size, size), **QUICK).difference <= 1e-4
