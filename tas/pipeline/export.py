"""Write a network in a format that runs without its code, and prove that the file computes the same."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from tas.data import Source, as_source
from tas.errors import ConfigError, DataError, ModelError
from tas.nn.modes import evaluating, require_module
from tas.nn.outputs import named_tensors, plain_outputs, tensors_of
from tas.nn.program import torch_warnings_hidden
from tas.onnx_file import (
    Exported,
    calibration_batches,
    capture_any_batch,
    failure,
    open_onnx,
    require_packages,
    write_int8,
    write_onnx,
)
from tas.options import with_options
from tas.pipeline.measure import evaluate, measure_latency
from tas.profile import metric_name, quality_words
from tas.storage import write_with
from tas.task import Metric, dtype_of

Format = Literal["onnx", "torch-export", "onnx-int8"]
FILES: dict[str, str] = {"onnx": "model.onnx", "torch-export": "model.pt2", "onnx-int8": "model-int8.onnx"}
BATCHES = (1, 3, 8)  # samples in the compared passes: one alone, and others than the two of the capture


@dataclass(frozen=True)
class ExportResult:
    """An exported file and how it compares with the model in PyTorch.

    Attributes:
        path: of the file.
        format: onnx, torch-export or onnx-int8.
        difference: largest difference of an output, divided by the largest output of the model in PyTorch.
        file_bytes: size of the file.
        model_bytes: size of the model's parameters and buffers.
        latency_ms: of the file, median.
        model_latency_ms: of the model in PyTorch, median, timed in turn with the file.
        accuracy: of the file on the test set, in percent or as the metric is; None unless it was asked for (int8).
        model_accuracy: of the model in PyTorch likewise.
        metric: name of the user's own metric; empty for the percentage of right classes.
    """

    path: Path
    format: str
    difference: float
    file_bytes: int
    model_bytes: int
    latency_ms: float
    model_latency_ms: float
    accuracy: float | None = None
    model_accuracy: float | None = None
    metric: str = ""


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """How to write a file and what it must hold.

    Attributes:
        tolerance: largest difference allowed between an output of the file and of the model, as a share of the largest
            absolute output of the model on the compared images; > 0. Not for int8.
        opset: version of the ONNX operators; None is the exporter's own.
        calibration_images: training images that the ranges of the int8 activations are measured on; >= 1.
        accuracy_tolerance: percentage points of test accuracy that int8 may lose, or so much of the metric; >= 0.
        latency_batch: images in the timed forward passes; >= 1.
        seconds: time spent on measuring latency, for each of the two.
    """

    tolerance: float = 1e-4
    opset: int | None = None
    calibration_images: int = 256
    accuracy_tolerance: float = 2.0
    latency_batch: int = 1
    seconds: float = 1.0

    def __post_init__(self):
        for name, least in (("tolerance", 0), ("seconds", 0)):
            if not getattr(self, name) > least:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be above {least}")
        for name, least in (("calibration_images", 1), ("accuracy_tolerance", 0), ("latency_batch", 1)):
            if not getattr(self, name) >= least:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least {least}")


def export(
    model: nn.Module,
    path: str | Path,
    *,
    format: Format = "onnx",
    data: Any = None,
    example: Tensor | None = None,
    metric: Metric | None = None,
    config: ExportConfig | None = None,
    **options: Any,
) -> ExportResult:
    """Write a model to one file, with any batch size, and compare the file with it before it gets its name.

    onnx and torch-export are compared output by output on batches of 1, 3 and 8 images; onnx-int8 (QDQ, static, a scale
    per channel of the weights) by accuracy on the test set.

    Args:
        model: takes one tensor, batch first; a copy on the CPU in evaluation mode is exported.
        path: of the file, replaced in one step.
        format: onnx for ONNX Runtime and others, torch-export for `torch.export.load`, onnx-int8 with 8-bit integers.
        data: a source, or a pair of loaders; its test images are compared. onnx-int8 needs it.
        example: without data, one input, batch first, whose shape random inputs get.
        metric: (outputs, targets) to the mean over the batch, by which int8 is judged, larger is better; several
            outputs are a list in the model's order. By default the percentage of right classes.
        config: None for the defaults.
        options: fields of `ExportConfig`, in place of those of `config`.

    Raises:
        ConfigError: no such format or option, or packages of the format are missing.
        DataError: neither data nor an example is given, or onnx-int8 has no data.
        ModelError: the model cannot be exported, or the file differs from it; then there is no new file.
        RunError: the place cannot be written.

    Example:
        >>> tas.export(small, "model.onnx", data=tas.data.load("digits")).difference
    """
    config = with_options(config or ExportConfig(), options, "export")
    _require_format(format)
    require_module(model)
    if format == "onnx-int8" and data is None:
        raise DataError("onnx-int8 needs data, for its calibration and its accuracy; give a data set")
    source, path, found = None if data is None else as_source(data), Path(path), []
    model = evaluating(copy.deepcopy(model).cpu())
    images = _images(source, example, dtype_of(model))

    def write(temporary: Path) -> None:
        found.append(_write_and_check(model, temporary, format, images, source, metric, config))

    write_with(path, write)
    return ExportResult(path, format, *found[0], metric=metric_name(metric))


def _require_format(format: str) -> None:
    if format not in get_args(Format):
        raise ConfigError(f"format is {format!r}; it can be {' or '.join(get_args(Format))}")
    if format != "torch-export":
        require_packages(format)


def _images(source: Source | None, example: Tensor | None, dtype: torch.dtype) -> Tensor:
    """As many images as the compared batches have together; a small data set's are repeated."""
    count = sum(BATCHES)
    if source is None:
        if example is None:
            raise DataError("export needs data or an example input; give one of them")
        return torch.randn(count, *example.shape[1:], generator=torch.Generator().manual_seed(0)).to(dtype)
    found: list[Tensor] = []
    for inputs, _ in source.test_batches(count):
        found.append(inputs)
        if sum(map(len, found)) >= count:
            break
    if not found:
        raise DataError(f"{source.name} gives no test batch; give it more samples, or smaller batches")
    images = torch.cat(found)
    return images[torch.arange(count) % len(images)]


def _write_and_check(
    model: nn.Module,
    path: Path,
    format: str,
    images: Tensor,
    source: Source | None,
    metric: Metric | None,
    config: ExportConfig,
) -> tuple:
    """Fill a file; the fields of `ExportResult` behind the format."""
    outputs = plain_outputs if format == "torch-export" else named_tensors
    program = capture_any_batch(model, images[:2], outputs=outputs)
    accuracies: tuple[float, float] | None = None
    if format == "torch-export":
        content = BytesIO()  # given a path, torch asks for a certain ending
        try:
            with torch_warnings_hidden():
                torch.export.save(program, content)
                reloaded = torch.export.load(BytesIO(content.getvalue())).module()
        except Exception as error:  # as where a module is called `code`, which torch's own modules have
            raise ModelError(failure("torch.export cannot write it", type(model).__name__, error)) from error
        path.write_bytes(content.getbuffer())
        exported = Exported(partial(_run_program, reloaded))
    elif format == "onnx":
        write_onnx(program, path, opset=config.opset, name=type(model).__name__)
        exported = open_onnx(path, model=model, images=images[:2])
    else:
        assert source is not None
        write_int8(
            program,
            path,
            calibration_batches(source, config.calibration_images),
            opset=config.opset,
            name=type(model).__name__,
        )
        exported = open_onnx(path, model=model, images=images[:2])
        accuracies = evaluate(exported, source, metric=metric), evaluate(model, source, metric=metric)
        _require_accuracy(*accuracies, config.accuracy_tolerance, metric_name(metric))
    difference = largest_difference(model, exported, images)
    if format != "onnx-int8" and not difference <= config.tolerance:  # NaN is no success
        raise ModelError(
            f"the exported model differs from the model by {difference:.1e} of its largest output, more than "
            f"{config.tolerance:.1e}; no file was written. Raise the tolerance, or try another opset or format"
        )
    (model_latency, _), (latency, _) = measure_latency(
        [model, exported], images, batch=config.latency_batch, seconds=config.seconds
    )
    sizes = path.stat().st_size, _bytes(model)
    return difference, *sizes, latency, model_latency, *(accuracies or ())


def _run_program(module: nn.Module, inputs: Tensor) -> Any:
    return module(inputs)


@torch.no_grad()
def largest_difference(model: nn.Module, exported: nn.Module, images: Tensor) -> float:
    """Largest difference of an output over batches of 1, 3 and 8, as a share of that output's largest absolute value.

    Args:
        model: the reference; its outputs may be nested.
        exported: gives the same tensors in the same order.
        images: (12, ...), at least.

    Raises:
        ModelError: the number or the shapes of the outputs differ.
    """
    worst: list[float] = []
    for batch in images[: sum(BATCHES)].split(BATCHES):
        wanted, found = tensors_of(model(batch)), tensors_of(exported(batch))
        if [value.shape for value in wanted] != [value.shape for value in found]:
            raise ModelError(
                f"for {len(batch)} images the exported model gives outputs of {[tuple(one.shape) for one in found]} "
                f"instead of {[tuple(one.shape) for one in wanted]}; no file was written"
            )
        for one, other in zip(wanted, found, strict=True):
            one, other = one.to(torch.cdouble), other.to(torch.cdouble)  # truth values and complex ones become it, too
            worst.append(float((one - other).abs().max()) / (float(one.abs().max()) or 1.0))
    return float(torch.tensor(worst, dtype=torch.double).max())  # unlike Python's max, it keeps a NaN


def _require_accuracy(found: float, wanted: float, tolerance: float, metric: str) -> None:
    if not wanted - found <= tolerance:
        name, value, difference = quality_words(metric)
        raise ModelError(
            f"int8 has {name} {value.format(found)}, the model {value.format(wanted)}: it loses more than "
            f"{difference.format(tolerance).lstrip('+')}; no file was written. Calibrate on more images, allow a "
            f"greater loss, or keep floats (onnx)"
        )


def _bytes(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
