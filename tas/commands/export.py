"""The command `tas export`: write the small network of a run in a format that needs none of its code."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from tas.commands.inputs import InputSize, build_model, classes_of, example_of, load_data, origin_of
from tas.errors import ConfigError
from tas.pipeline.export import FILES, ExportConfig
from tas.pipeline.export import export as export_model
from tas.pipeline.store import load, load_graph
from tas.show import print_export, say_json

SEEDS: list[str] = []  # options that follow --seed


def export(
    *,
    run: str,
    format: Literal["onnx", "torch-export", "onnx-int8"] = "onnx",
    output: str | None = None,
    opset: int | None = None,
    tolerance: float = 1e-4,
    calibration_images: int = 256,
    accuracy_tolerance: float = 2.0,
    latency_batch: int = 1,
    model: str | None = None,
    data: str | None = None,
    data_dir: str | None = None,
    image_size: int | None = None,
    normalization: str | list[list[float]] | None = None,
    input_size: InputSize | None = None,
    json: bool = False,
) -> None:
    """Write the small network of a run to one file, and compare the file with it in PyTorch.

    Args:
        run: folder of a small model, from tas compress, tas derive or tas train
        format: onnx, torch-export (for torch.export.load), or onnx-int8 (ONNX with 8-bit integers)
        output: file to write; model.onnx, model.pt2 or model-int8.onnx in the run's folder by default
        opset: version of the ONNX operators; the exporter's own by default
        tolerance: largest difference allowed, as a share of the largest output of the model
        calibration_images: training images that int8 is calibrated on
        accuracy_tolerance: percentage points of test accuracy that int8 may lose
        latency_batch: images in the timed forward passes
        model: the full model; the one in the run's config.yaml by default
        data: data set of the compared images; the one in the run's config.yaml by default
        data_dir: where cifar10 and cifar100 lie
        image_size: resize images to this many pixels a side
        normalization: of images: imagenet, inception or [[means],[stds]]; the constants of the data set by default
        input_size: channels, height, width of random images to compare on, such as 3,64,64, instead of a data set
        json: print the comparison as JSON
    """
    graph, _ = load_graph(run)
    names = {"model": model, "data": data, "data_dir": data_dir, "image_size": image_size}
    origin = origin_of(run, {**names, "normalization": normalization}, needs=["model"])
    small = load(run, build_model(origin["model"], classes_of(graph), None, False, 0))
    config = ExportConfig(
        tolerance=tolerance,
        opset=opset,
        calibration_images=calibration_images,
        accuracy_tolerance=accuracy_tolerance,
        latency_batch=latency_batch,
    )
    found = export_model(
        small, output or Path(run) / FILES[format], format=format, config=config, **_images(origin, input_size)
    )
    values = {**asdict(found), "path": str(found.path)}
    if json:
        say_json(values)
    else:
        print_export(values)


def _images(origin: dict[str, Any], input_size: InputSize | None) -> dict[str, Any]:
    """The data set to compare on, or an example of the size given."""
    if input_size is not None:
        return {"example": example_of(input_size)}
    if not origin["data"]:
        raise ConfigError(
            "the run does not say on which images to compare; give --data, or --input-size for random ones"
        )
    return {"data": load_data(origin)}
