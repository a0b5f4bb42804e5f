"""Single layers as ONNX Runtime runs them: graphs of a node or two, written in a hundredth of the exporter's time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from tas.nn.modes import evaluating
from tas.onnx_file import in_onnx_runtime, open_onnx

OPSET, IR_VERSION = 18, 9  # old enough for every ONNX Runtime that we ask for
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def layer_in_onnx_runtime(layer: nn.Module, inputs: Tensor) -> nn.Module:
    """A layer as ONNX Runtime runs it, with as many threads as torch uses: to be timed, not for what it computes.

    Projections and the commonest norms are written as ONNX has them, whatever a subclass adds in its forward; others
    go through torch's exporter.

    Args:
        layer: in evaluation mode, on the device where it is to run.
        inputs: what it reads.

    Raises:
        ConfigError: ONNX Runtime cannot use the device.
        ModelError: the layer cannot be written as ONNX, or ONNX Runtime cannot run it.
    """
    from onnx import helper, numpy_helper

    tensors = _tensors(layer)
    if not tensors:
        return in_onnx_runtime(layer, inputs)
    values = [numpy_helper.from_array(tensor.detach().cpu().numpy(), name) for name, tensor in tensors.items()]
    ends = [
        helper.make_tensor_value_info(name, values[0].data_type, shape)
        for name, shape in (("inputs", tuple(inputs.shape)), ("outputs", None))
    ]
    graph = helper.make_graph(_nodes(layer, tensors, inputs.dim()), "layer", ends[:1], ends[1:], values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    return open_onnx(model.SerializeToString(), inputs.device, model=evaluating(layer), images=inputs)


def _tensors(layer: nn.Module) -> dict[str, Tensor]:
    """What the node reads besides the inputs, in its order; nothing of a layer that has no node."""
    if isinstance(layer, _BATCH_NORMS):
        found = {"weight": layer.weight, "bias": layer.bias, "mean": layer.running_mean, "var": layer.running_var}
        return {} if any(tensor is None for tensor in found.values()) else found  # type: ignore[return-value]
    if not (
        isinstance(layer, (*_CONVOLUTIONS, nn.Linear)) or (type(layer) is nn.LayerNorm and layer.elementwise_affine)
    ):
        return {}
    weight = layer.weight.T.contiguous() if isinstance(layer, nn.Linear) else layer.weight
    return {"weight": weight} if layer.bias is None else {"weight": weight, "bias": layer.bias}


def _nodes(layer: nn.Module, tensors: Mapping[str, Tensor], dims: int) -> list[Any]:
    from onnx import helper

    read = ["inputs", *tensors]
    if isinstance(layer, _BATCH_NORMS):
        return [helper.make_node("BatchNormalization", read, ["outputs"], epsilon=layer.eps)]
    if isinstance(layer, nn.LayerNorm):
        axis = -len(layer.normalized_shape)
        return [helper.make_node("LayerNormalization", read, ["outputs"], axis=axis, epsilon=layer.eps)]
    if isinstance(layer, nn.Linear):
        if dims == 2:
            return [helper.make_node("Gemm", read, ["outputs"])]
        if len(read) == 2:
            return [helper.make_node("MatMul", read, ["outputs"])]
        return [
            helper.make_node("MatMul", read[:2], ["product"]),
            helper.make_node("Add", ["product", "bias"], ["outputs"]),
        ]
    assert isinstance(layer, _CONVOLUTIONS)
    sizes: dict[str, Any] = {"kernel_shape": layer.kernel_size, "strides": layer.stride, "dilations": layer.dilation}
    if layer.transposed:
        sizes["output_padding"] = layer.output_padding
    kind = "ConvTranspose" if layer.transposed else "Conv"
    return [helper.make_node(kind, read, ["outputs"], group=layer.groups, pads=_pads(layer), **sizes)]


def _pads(layer: Any) -> list[int]:
    """Before and after, as ONNX wants them: first of all dimensions before."""
    if not isinstance(layer.padding, str):
        return [*layer.padding, *layer.padding]
    whole = [
        d * (k - 1) if layer.padding == "same" else 0 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)
    ]
    return [*(size // 2 for size in whole), *(size - size // 2 for size in whole)]
