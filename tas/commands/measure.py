"""The command `tas measure`: measure models."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Any

from tas import data as data_sets
from tas.budget import Budget
from tas.commands.inputs import InputSize, build_model, classes_of, device_of, example_of, trained_weights_in
from tas.errors import ConfigError, RunError
from tas.pipeline.measure import measure_side_by_side
from tas.pipeline.store import load, load_graph
from tas.profile import Runtime
from tas.record import versions
from tas.run import CONFIG, STAGES, SUMMARY, RunFolder, read_summary, read_text
from tas.show import print_profiles

SEEDS: list[str] = []  # options that follow --seed


def measure(
    *,
    model: str = "cifar_resnet:20",
    weights: str | None = None,
    pretrained: bool = False,
    run: str | None = None,
    data: str = "digits",
    data_dir: str | None = None,
    download: bool = False,
    image_size: int | None = None,
    normalization: str | list[list[float]] | None = None,
    input_size: InputSize | None = None,
    runtime: Runtime = "pytorch",
    device: str = "cpu",
    threads: int = 0,
    latency_batch: int | list[int] = 1,
    seconds: float = 1.0,
    seed: int = 0,
    json: bool = False,
) -> None:
    """Measure accuracy, multiply-adds, parameters and latency; with --run of the full and the small model.

    Args:
        model: cifar_resnet:DEPTH, torchvision:NAME, timm:NAME, transformers:NAME, FILE.py:FUNCTION or MODULE:FUNCTION
        weights: trained weights of the full model; those that the run has trained need not be named
        pretrained: use the released weights of torchvision, timm or transformers
        run: folder of a small model; its summary.json is written, for tas report
        data: digits, cifar10, cifar100 or folder:PATH
        data_dir: where cifar10 and cifar100 lie
        download: fetch cifar10 or cifar100 if missing
        image_size: resize images to this many pixels a side
        normalization: of images: imagenet, inception or [[means],[stds]]; the constants of the data set by default
        input_size: channels, height, width of one image, to time models without data; no summary.json is written then
        runtime: what runs the timed passes and the test; onnxruntime gets the model as an ONNX file
        device: cpu, cuda, or cuda:1 and so on
        threads: of a pass on a CPU; 0 is as many as torch uses
        latency_batch: images in the timed forward pass; several batch sizes as [1,8]
        seconds: time spent on measuring each latency
        seed: of weights that are not given
        json: print the profiles as JSON
    """
    place = device_of(device)
    source = (
        data_sets.load(data, data_dir=data_dir, download=download, image_size=image_size, normalization=normalization)
        if input_size is None
        else None
    )
    classes = source.num_classes if source else classes_of(load_graph(run)[0]) if run else None
    if run is not None and weights is None and not pretrained:
        weights = trained_weights_in(run)
        if source is not None and weights is None:
            raise ConfigError(
                f"{run} holds no weights of the full model, whose accuracy would be that of random ones; add --weights "
                f"or --pretrained, or --input-size to measure without data"
            )
    full = build_model(model, classes, weights, pretrained, seed)
    models = {"full": full} if run is None else {"full": full, "pruned": load(run, full)}
    found = measure_side_by_side(
        [one.to(place) for one in models.values()], source, example=example_of(input_size) if input_size else None,
        latency_batch=latency_batch, seconds=seconds, runtime=runtime, threads=threads,
    )  # fmt: skip
    profiles = {name: profile.to_dict() for name, profile in zip(models, found, strict=True)}
    if run is not None and source is not None:
        _write_summary(Path(run), profiles)
    if json:
        print(json_module.dumps(profiles))
    else:
        print_profiles(profiles)


def _write_summary(run: Path, profiles: dict[str, Any]) -> None:
    import yaml

    folder = RunFolder(run)
    path = run / CONFIG
    try:
        known = yaml.safe_load(read_text(path)) if path.is_file() else {}
        budget = Budget(**known.get("budget", {}))
    except (yaml.YAMLError, AttributeError, TypeError) as error:
        raise RunError(f"{path} is not the config of a run ({type(error).__name__}); repeat the run") from None
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
    return {**measured, **{name: before[name] for name in ("predicted_latency_ms",) if name in before}}
