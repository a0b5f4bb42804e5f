"""ONNX Runtime runs what the model computes, with the threads and on the device that PyTorch would use."""

import builtins

import pytest
import torch
from toys import TinyNet, tiny_source

import tas
from tas.errors import ConfigError
from tas.onnx_file import in_onnx_runtime, open_onnx
from tas.timing import thread_count


def test_a_model_under_onnx_runtime_computes_the_same_and_is_not_changed():
    torch.manual_seed(0)
    model = TinyNet().train()
    exported = in_onnx_runtime(model, torch.zeros(1, 3, 8, 8))
    assert model.training
    for batch in (1, 5):
        images = torch.randn(batch, 8, 8, 3).permute(0, 3, 1, 2)  # not as it lies in memory
        assert torch.allclose(exported(images), model.eval()(images), atol=1e-5)


def test_several_outputs_come_as_the_model_gives_them():
    class Two(TinyNet):
        def forward(self, images):
            features = self.stem(images)
            return {"features": features, "mean": features.mean((2, 3))}

    model = Two().eval()
    found = in_onnx_runtime(model, torch.zeros(1, 3, 8, 8))(torch.ones(3, 3, 8, 8))
    assert torch.allclose(found["features"].mean((2, 3)), found["mean"], atol=1e-5)
    assert found["features"].shape == (3, 8, 8, 8)


class Named(TinyNet):
    """Parameters with names that inputs and outputs have, too."""

    def __init__(self, form):
        super().__init__()
        self.form, self.logits = form, torch.nn.Parameter(torch.ones(4))
        self.images = torch.nn.Parameter(torch.ones(3, 1, 1))
        self.register_buffer("table", torch.arange(3.0))

    def forward(self, pixels):
        return self.form(super().forward(pixels * self.images) * self.logits, self.table)


@pytest.mark.parametrize(
    ("form", "names", "format"),
    [
        (lambda logits, _: logits, ["output"], "onnx"),
        (lambda logits, table: (logits, table), ["output_0", "output_1"], "onnx"),
        (lambda logits, _: {"images": logits, "count": 3, "mul": 1 + logits}, ["images_1", "mul"], "onnx"),
        (lambda one, _: {"logits": one, "a": [-one, 2 * one], "a_0": one}, ["logits", "a_0", "a_1", "a_0_"], "onnx"),
        (lambda one, _: {"logits": one, "a": [-one, 2 * one], "b": one}, ["logits", "a_0", "a_1", "b"], "onnx-int8"),
    ],
)
def test_a_file_says_its_names_and_which_axis_is_the_batch(form, names, format, tmp_path):
    import onnx

    options = {"metric": lambda *_: 0.0, "seconds": 0.01, "calibration_images": 64}
    found = tas.export(Named(form), tmp_path / "m.onnx", format=format, data=tiny_source(), **options)
    assert found.difference < (1e-4 if format == "onnx" else 0.1)  # in the model's order
    graph = onnx.load(found.path).graph
    assert [value.name for value in graph.input] == ["images"]
    assert [value.name for value in graph.output] == names
    axes = [value.type.tensor_type.shape.dim[0] for value in (*graph.input, *graph.output)]
    assert {axis.dim_param or axis.dim_value for axis in axes} - {3} == {"batch"}


def test_int8_says_nothing_of_norms_that_it_rounds_as_a_whole(tmp_path, caplog):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LayerNorm(3 * 64), torch.nn.Linear(3 * 64, 4))
    options = {"metric": lambda *_: 0.0, "seconds": 0.01, "calibration_images": 64}
    tas.export(model, tmp_path / "m.onnx", format="onnx-int8", data=tiny_source(), **options)
    assert [record.message for record in caplog.records if record.name == "root"] == []


def test_it_has_as_many_threads_as_torch():
    with thread_count(3):
        exported = in_onnx_runtime(TinyNet(), torch.zeros(1, 3, 8, 8))
    assert exported.run.args[0].get_session_options().intra_op_num_threads == 3


def test_a_device_that_onnx_runtime_cannot_use_is_an_error(tmp_path, monkeypatch):
    import onnxruntime

    known = onnxruntime.get_available_providers()
    if "CUDAExecutionProvider" in known:
        pytest.skip("this ONNX Runtime can use CUDA")
    with pytest.raises(ConfigError, match="cannot use cuda.*pip install onnxruntime-gpu"):
        open_onnx(tmp_path / "m.onnx", torch.device("cuda"), model=TinyNet(), images=torch.zeros(2, 3, 8, 8))
    with pytest.raises(ConfigError, match="cannot use meta.*use cpu or cuda"):
        in_onnx_runtime(TinyNet().to("meta"), torch.zeros(1, 3, 8, 8))
    tas.export(TinyNet(), tmp_path / "m.onnx", example=torch.zeros(1, 3, 8, 8), seconds=0.01)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", *known])
    with pytest.warns(UserWarning, match="CUDA"), pytest.raises(ConfigError, match="cannot start CUDAExecutionProv"):
        open_onnx(tmp_path / "m.onnx", torch.device("cuda"), model=TinyNet(), images=torch.zeros(2, 3, 8, 8))


def test_a_missing_onnx_runtime_is_an_error_that_names_the_extra(monkeypatch):
    imported = builtins.__import__

    def without(name, *rest, **options):
        if name == "onnxruntime":
            raise ImportError("no onnxruntime", name=name)
        return imported(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r'measuring under ONNX Runtime needs onnxruntime.*"tas-pruning\[onnx\]"'):
        in_onnx_runtime(TinyNet(), torch.zeros(1, 3, 8, 8))
