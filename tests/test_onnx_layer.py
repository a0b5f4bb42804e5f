"""What is timed of a layer under ONNX Runtime is that layer."""

import pytest
import torch
from torch import nn

import tas.onnx_layer
from tas.onnx_layer import layer_in_onnx_runtime

LAYERS = {
    "stride": (nn.Conv2d(6, 8, 3, stride=2, padding=(1, 2)), (2, 6, 9, 7)),
    "groups": (nn.Conv2d(6, 12, (1, 5), groups=3, dilation=2, padding="same", bias=False), (1, 6, 8, 9)),
    "same": (nn.Conv2d(3, 4, 5, padding="same"), (1, 3, 8, 8)),
    "valid": (nn.Conv1d(3, 4, 3, padding="valid"), (2, 3, 8)),
    "video": (nn.Conv3d(3, 4, 3, padding=1), (1, 3, 4, 5, 6)),
    "transposed": (nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=(1, 0), groups=2), (2, 6, 5, 4)),
    "matrix": (nn.Linear(6, 5), (3, 6)),
    "tokens": (nn.Linear(6, 5), (2, 4, 6)),
    "no bias": (nn.Linear(6, 5, bias=False), (2, 4, 6)),
    "batch norm": (nn.BatchNorm2d(6), (2, 6, 3, 3)),
    "layer norm": (nn.LayerNorm((4, 6), eps=1e-3), (2, 3, 4, 6)),
}
BY_THE_EXPORTER = {
    "group norm": (nn.GroupNorm(2, 6), (2, 6, 3, 3)),
    "no weights": (nn.BatchNorm2d(6, affine=False), (2, 6, 3, 3)),
    "no statistics": (nn.InstanceNorm2d(6, affine=True), (2, 6, 3, 3)),
}


@pytest.mark.parametrize("name", [*LAYERS, *BY_THE_EXPORTER])
def test_a_layer_computes_the_same(name, monkeypatch):
    torch.manual_seed(0)
    if name in LAYERS:  # the exporter takes as long as hundred of them
        monkeypatch.setattr(tas.onnx_layer, "in_onnx_runtime", lambda *_: pytest.fail("exported"))
    layer, shape = (LAYERS | BY_THE_EXPORTER)[name]
    if isinstance(layer, nn.BatchNorm2d):
        layer.train()(torch.randn(4, 6, 3, 3))
    inputs = torch.randn(shape)
    runs = layer_in_onnx_runtime(layer.eval(), inputs)
    assert torch.allclose(runs(inputs), layer(inputs), atol=1e-5)
