"""The command `tas measure`: measure models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tas.budget import Budget
from tas.commands.inputs import (
    InputSize,
    build_model,
    classes_of,
    config_of,
    device_of,
    example_of,
    load_data,
    numbers_in,
    origin_of,
)
from tas.errors import ConfigError, RunError
from tas.pipeline.measure import measure_side_by_side
from tas.pipeline.store import load, load_graph
from tas.profile import Runtime
from tas.record import versions
from tas.run import CONFIG, STAGES, SUMMARY, RunFolder, read_summary
from tas.show import print_profiles, say_json

SEEDS: list[str] = []  # options that follow --seed


def measure(
    *,
    model: str | None = None,
    weights: str | None = None,
    pretrained: bool = False,
    run: str | None = None,
    data: str | None = None,
    data_dir: str | None = None,
    download: bool = False,
    image_size: int | None = None,
    normalization: str | list[list[float]] | None = None,
    input_size: InputSize | None = None,
    runtime: Runtime = "pytorch",
    device: str = "cpu",
    threads: int = 0,
    latency_batch: int | list[int] | str = 1,
    seconds: float = 1.0,
    seed: int = 0,
    json: bool = False,
) -> None:
    """Measure accuracy, multiply-adds, parameters and latency; with --run of the full and the small model.

    Args:
        model: cifar_resnet:DEPTH, torchvision:NAME, timm:NAME, transformers:NAME, FILE.py:FUNCTION or MODULE:FUNCTION;
            the run's, or cifar_resnet:20, by default
        weights: trained weights of the full model; those of the run by default
        pretrained: use the released weights of torchvision, timm or transformers
        run: folder of a small model; its summary.json is written, for tas report. What is not said of model and data
            is read from its config.yaml
        data: digits, cifar10, cifar100 or folder:PATH; the run's, or digits, by default
        data_dir: where cifar10 and cifar100 lie
        download: fetch cifar10 or cifar100 if missing
        image_size: resize images to this many pixels a side
        normalization: of images: imagenet, inception or [[means],[stds]]; the constants of the data set by default
        input_size: channels, height, width of one image, such as 3,64,64, to time models without data; no summary.json
            is written then
        runtime: what runs the timed passes and the test; onnxruntime gets the model as an ONNX file
        device: cpu, cuda, or cuda:1 and so on
        threads: of a pass on a CPU; 0 is as many as torch uses
        latency_batch: images in the timed forward pass; several batch sizes as 1,8
        seconds: time spent on measuring each latency
        seed: of weights that are not given
        json: print the profiles as JSON
    """
    place = device_of(device)
    graph = load_graph(run)[0] if run else None
    names = {"model": model, "weights": weights, "pretrained": pretrained, "data": data, "data_dir": data_dir}
    names |= {"image_size": image_size, "normalization": normalization}
    if input_size is None:
        origin = origin_of(run, names)
        source = load_data(origin, download)
        if run and not (origin["weights"] or origin["pretrained"]):
            raise ConfigError(
                f"{run} holds no weights of the full model, whose accuracy would be that of random ones; add --weights "
                f"or --pretrained, or --input-size to measure without data"
            )
    else:
        source = None
        origin = origin_of(run, names, needs=["model"])
        origin |= {"weights": weights, "pretrained": pretrained}  # times need no trained ones
    classes = source.num_classes if source else classes_of(graph) if graph else None
    full = build_model(origin["model"], classes, origin["weights"], origin["pretrained"], seed)
    models = {"full": full} if run is None else {"full": full, "pruned": load(run, full)}
    found = measure_side_by_side(
        [one.to(place) for one in models.values()], source, example=example_of(input_size) if input_size else None,
        latency_batch=latency_batch if isinstance(latency_batch, int) else numbers_in(latency_batch),
        seconds=seconds, runtime=runtime, threads=threads,
    )  # fmt: skip
    profiles = {name: profile.to_dict() for name, profile in zip(models, found, strict=True)}
    if run is not None and source is not None:
        _write_summary(Path(run), profiles)
    if json:
        say_json(profiles)
    else:
        print_profiles(profiles)


def _write_summary(run: Path, profiles: dict[str, Any]) -> None:
    folder, known = RunFolder(run), config_of(run)
    try:
        budget = Budget(**known.get("budget", {}))
    except TypeError as error:
        raise RunError(f"{run}/{CONFIG} is not the config of a run ({error}); repeat the run") from None
    record = folder.record()
    seconds = {stage: round(record.seconds(stage), 1) for stage in STAGES}
    seconds["total"] = round(sum(seconds.values()), 1)
    if (run / SUMMARY).is_file():  # a whole run knows what tracing and measuring took besides
        before = read_summary(run)
        seconds = before["seconds"]
        profiles = {name: _with_prediction(profile, before.get(name, {})) for name, profile in profiles.items()}
    summary = {**profiles, "budget": budget.amounts, "seconds": seconds}
    folder.write_json(SUMMARY, {**summary, "seed": known.get("seed", 0), "versions": versions()})


def _with_prediction(measured: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """A budget was held by what was predicted, whatever is measured later."""
    predicted = before.get("predicted_latency_ms")
    return measured if predicted is None else {**measured, "predicted_latency_ms": predicted}
