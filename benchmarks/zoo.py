"""Trace and cut every model of the zoo, and say what is open, what is frozen and why.

    python benchmarks/zoo.py                                   the whole list; exit 1 if anything fails
    python benchmarks/zoo.py --only 'torchvision:resnet*'      some of it; several patterns may be given
    python benchmarks/zoo.py --resume --write docs/zoo.md      go on after an interruption, keep the result

Each model has random weights and processes of its own, so that a crash, a hang or a lack of memory costs one row. It is
captured or refused with our error; then the smallest architecture of its search space and three random ones are cut on
perturbed weights, compared with the masked full model, counted, saved, and loaded in a second process; the supernet
runs all of them, and takes a step of the search with a mixture.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import os
import platform
import re
import resource
import shlex
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import date
from fnmatch import fnmatchcase
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import task_models
from task_models import MONAI, SMP, TASKS, VIDEO, medical_model, segmentation_model, shape_of

from tas.errors import TasError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tas.graph import Graph

TOLERANCE = 1e-4  # relative to the largest output, float32
RANDOM_ARCHITECTURES = 3
PRELOADED = [
    "torch.export", "torchvision", "timm", "transformers.modeling_utils", "tas.pipeline.trace", "tas.pipeline.store",
]  # fmt: skip
_GIANT = 10_000_000_000  # macs
SEGMENTATION = ("fcn_resnet50", "deeplabv3_resnet50", "lraspp_mobilenet_v3_large")
SIZES = {"inception_v3": 299, "swin_v2_t": 256, "swin_v2_s": 256, "swin_v2_b": 256}  # torchvision's, where not 224
TIMM = (  # the smallest member of every family, but for one of 412 million parameters (deepseek_vit)
    "bat_resnext26ts", "beit_base_patch16_224", "botnet26t_256", "caformer_s18", "cait_xxs24_224", "coat_lite_tiny",
    "coatnet_0_224", "coatnet_nano_rw_224", "convit_tiny", "convmixer_768_32", "convnext_atto", "convnextv2_atto",
    "cpubone_nano", "crossvit_9_240", "cs3darknet_s", "csatv2", "cspnext_tiny", "cspresnet50", "darknet17",
    "davit_tiny", "deit3_small_patch16_224", "deit_tiny_distilled_patch16_224", "deit_tiny_patch16_224", "densenet121",
    "densenetblur121d", "dla46_c", "dm_nfnet_f0", "dpn48b", "dpn68", "eca_nfnet_l0", "ecaresnet26t",
    "edgenext_xx_small", "efficientformer_l1", "efficientformerv2_s0", "efficientnet_lite0", "efficientnetv2_rw_t",
    "efficientvim_m1", "efficientvit_b0", "efficientvit_m0", "ese_vovnet19b_slim_dw", "eva02_tiny_patch14_224",
    "fasternet_t0", "fastvit_t8", "fbnetc_100", "focalnet_tiny_srf", "gcresnet33ts", "gcvit_xxtiny", "gemma4_vit_167m",
    "gernet_s", "ghostnet_050", "ghostnetv2_100", "ghostnetv3_050", "gmlp_ti16_224", "halonet26t", "hardcorenas_a",
    "hgnet_tiny", "hgnetv2_b0", "hiera_tiny_224", "hrnet_w18_small", "iformer_t", "inception_next_atto",
    "inception_resnet_v2", "inception_v3", "inception_v4", "lambda_resnet26t", "lcnet_035", "lcnetv2_small",
    "legacy_seresnet18", "legacy_xception", "levit_128s", "levit_conv_128s", "lowformer_b0", "mambaout_femto",
    "maxvit_pico_rw_256", "mixer_s32_224", "mixnet_s", "mnasnet_small", "mobilenetv1_100", "mobilenetv3_small_050",
    "mobilenetv4_conv_small_035", "mobilenetv4_hybrid_medium_075", "mobilenetv5_base", "mobileone_s0", "mobilevit_xxs",
    "mobilevitv2_050", "mvitv2_tiny", "naflexvit_base_patch16_parfac_gap", "nasnetalarge", "nest_tiny", "nextvit_small",
    "nf_regnet_b0", "nf_resnet26", "pit_ti_224", "pnasnet5large", "poolformer_s12", "poolformerv2_s12", "pvt_v2_b0",
    "qwen3_vit_88m", "rdnet_tiny", "regnetv_040", "regnetx_002", "regnety_002", "regnetz_005", "repghostnet_050",
    "repvgg_a0", "repvit_m0_9", "res2net50_14w_8s", "resmlp_12_224", "resnest14d", "resnet14t", "resnet18d",
    "resnet50_gn", "resnetv2_18", "resnetv2_50x1_bit", "rexnet_100", "sam2_hiera_tiny", "samvit_base_patch16_224",
    "selecsls42", "semnasnet_050", "sequencer2d_s", "seresnet18", "shvit_s1", "skresnet18", "spnasnet_100",
    "starnet_s050", "swiftformer_xs", "swin_tiny_patch4_window7_224", "swinv2_cr_tiny_224", "swinv2_tiny_window8_256",
    "tf_efficientnetv2_b0", "tiny_vit_5m_224", "tinynet_e", "tnt_s_patch16_224", "tresnet_m", "twins_pcpvt_small",
    "twins_svt_small", "vgg11_bn", "visformer_tiny", "vit_small_patch16_dinov3", "vit_srelpos_small_patch16_224",
    "vit_tiny_patch16_224", "vit_tiny_r_s16_p8_224", "vitamin_small_224", "volo_d1_224", "vovnet39a", "xception41",
    "xcit_nano_12_p16_224",
)  # fmt: skip
TRANSFORMERS = (  # types of image classifiers; those that also take text, or need packages of their own, are not here
    "beit", "bit", "clip", "convnext", "convnextv2", "cvt", "data2vec-vision", "deit", "dinov2",
    "dinov2_with_registers", "efficientnet", "focalnet", "hgnet_v2", "hiera", "ijepa", "levit", "mobilenet_v1",
    "mobilenet_v2", "mobilevit", "mobilevitv2", "poolformer", "pp_lcnet", "pvt", "pvt_v2", "regnet", "resnet",
    "segformer", "siglip", "swiftformer", "swin", "swinv2", "textnet", "vit", "vit_msn",
)  # fmt: skip
ULTRALYTICS = (  # detectors and their relatives, looked at where the package (AGPL-3.0) is installed
    "yolov3-tiny", "yolov5n", "yolov6n", "yolov8n", "yolov8n-cls", "yolov8n-obb", "yolov8n-pose", "yolov8n-seg",
    "yolov9t", "yolov10n", "yolo11n", "yolo12n", "yolo26n", "rtdetr-l",
)  # fmt: skip

Status = Literal["passed", "refused", "FAILED"]


@dataclass(frozen=True)
class Reason:
    """Why axes are frozen.

    Attributes:
        text: the reason, without its numbers and module paths.
        axes: frozen for it.
        macs_share: of the layers of these axes, in [0, 1].
    """

    text: str
    axes: int
    macs_share: float


@dataclass(frozen=True)
class Row:
    """What one model did.

    Attributes:
        name: as `tas.models.load` takes it; `ultralytics:NAME`, `monai:NAME` and `smp:DECODER-ENCODER`
            (segmentation_models_pytorch) are of these packages, `tasks:NAME` of `task_models.py`.
        status: refused by an error of ours; FAILED by anything that must not happen; passed otherwise.
        message: why it was refused or failed.
        size: height and width of the image; 0 where the model could not be built.
        seconds: of the trace, imports excluded.
        peak_mb: largest memory of the process up to the end of the trace.
        macs: of the full model, per sample.
        widths: that are open.
        depths: that are open.
        frozen: axes.
        reasons: for them, the largest share of the macs first.
        open_share: of the macs, in [0, 1].
        error: largest relative difference between a derived model and the masked one.
        in_double: whether some comparison was repeated in double precision, where single lost too many digits.
        architectures: that were cut and compared.
        total_seconds: of all processes, imports included.
    """

    name: str
    status: Status
    message: str = ""
    size: int = 0
    seconds: float = 0.0
    peak_mb: int = 0
    macs: int = 0
    widths: int = 0
    depths: int = 0
    frozen: int = 0
    reasons: tuple[Reason, ...] = ()
    open_share: float = 0.0
    error: float = 0.0
    in_double: bool = False
    architectures: int = 0
    total_seconds: float = 0.0

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Row:
        """Read what `asdict` wrote."""
        return cls(**{**value, "reasons": tuple(Reason(**reason) for reason in value["reasons"])})


class ProcessError(Exception):
    """A process that was asked for something has no answer."""


def all_names() -> list[str]:
    """Every model of the list."""
    import torchvision

    classifiers = torchvision.models.list_models(module=torchvision.models)
    lists = {"torchvision": (*classifiers, *SEGMENTATION, *VIDEO), "timm": TIMM, "transformers": TRANSFORMERS}
    lists["tasks"] = tuple(TASKS)
    if find_spec("segmentation_models_pytorch"):
        lists["smp"] = SMP
    if find_spec("monai"):
        lists["monai"] = tuple(MONAI)
    if find_spec("ultralytics"):
        lists["ultralytics"] = ULTRALYTICS
    return [f"{package}:{name}" for package, names in lists.items() for name in names]


def load_model(name: str) -> nn.Module:
    """A model of the list with random weights; nothing is downloaded."""
    import tas

    package, _, short = name.partition(":")
    if package == "ultralytics":
        from ultralytics import RTDETR, YOLO  # pyright: ignore[reportMissingImports]

        return (RTDETR if short.startswith("rtdetr") else YOLO)(f"{short}.yaml").model
    builders = {"tasks": lambda name: TASKS[name](), "smp": segmentation_model, "monai": medical_model}
    return builders[package](short) if package in builders else tas.models.load(name)


def check(name: str, size: int | None = None, folder: Path | None = None) -> Row:
    """Trace one model, cut it to some architectures and compare.

    Args:
        name: as `tas.models.load` takes it.
        size: of the image, where the model runs at it; None, or a size at which it does not run, gives the model's own.
        folder: where the derived models and their outputs are saved for `reload_difference`; None saves nothing.

    Returns:
        Every exception is in the row; only an error of ours in the trace is a refusal, all others are failures.
    """
    row = Row(name, "FAILED")
    try:
        model, row = _build(row, size)
        try:
            graph, row = _trace(model, row)
        except TasError as error:
            return replace(row, status="refused", message=str(error))
        return _cut_and_compare(model, graph, row, folder)
    except Exception as error:
        return replace(row, message=f"{type(error).__name__}: {error}")


def reload_difference(name: str, folder: Path) -> float:
    """Load what `check` saved into freshly built models; the largest relative difference of the outputs.

    Meant for a process that did not save them.
    """
    import torch
    from safetensors.torch import load_file

    import tas

    torch.manual_seed(1)  # other weights than those of the model that was saved
    fresh, worst = load_model(name), 0.0
    for saved in sorted(folder.glob("*/outputs.safetensors")):
        tensors = load_file(saved)
        images = tensors.pop("images")
        outputs = _outputs(tas.load(saved.parent, fresh), images)
        worst = max(worst, _difference([tensors[str(place)] for place in range(len(tensors))], outputs))
    return worst


def _build(row: Row, size: int | None) -> tuple[nn.Module, Row]:
    import torch

    import tas

    torch.manual_seed(0)
    model = load_model(row.name).eval()
    package, _, short = row.name.partition(":")
    if package in ("timm", "transformers"):
        own = tas.models.own_input_size(model)[-1]
    elif package in ("tasks", "smp", "monai") or short in VIDEO:
        own = task_models.SIZES.get(short, task_models.SIZE)
    else:
        own = SIZES.get(short, 224)
    return model, replace(row, size=size if size and _runs_at(model, short, size) else own)


def _runs_at(model: nn.Module, name: str, size: int) -> bool:
    import torch

    try:
        _outputs(copy.deepcopy(model), torch.zeros(1, *shape_of(name, size)))  # trying it may change it (Swin's tables)
    except Exception:  # a size it was not built for; some models assert, some fail in a view
        return False
    return True


def _trace(model: nn.Module, row: Row) -> tuple[Graph, Row]:
    import torch
    from torch import nn

    import tas

    tas.trace(nn.Conv2d(3, 4, 1), torch.zeros(1, 3, 8, 8))  # imports what a trace needs
    example, start = torch.zeros(1, *_shape(row)), time.perf_counter()
    try:
        graph = tas.trace(model, example)
    finally:
        row = replace(row, seconds=round(time.perf_counter() - start, 2), peak_mb=_peak_mb())
    return graph, replace(
        row,
        macs=graph.macs(),
        widths=len(graph.widths),
        depths=len(graph.depths),
        frozen=len(graph.frozen),
        reasons=group_reasons(graph),
        open_share=round(graph.open_share, 4),
    )


def _shape(row: Row) -> tuple[int, ...]:
    return shape_of(row.name.partition(":")[2], row.size)


def _cut_and_compare(model: nn.Module, graph: Graph, row: Row, folder: Path | None) -> Row:
    import torch
    from safetensors.torch import save_file

    import tas
    from tas.nn.surgery import mask
    from tas.pipeline.measure import count_macs

    draw = torch.Generator().manual_seed(0)
    perturb_(model, draw)
    model = tas.rank(model, graph)  # so that what is kept is not what a constructor would give to a reloaded model
    images = torch.randn(1 if row.macs > _GIANT else 2, *_shape(row), generator=draw)
    full, worst, in_double = _outputs(model, images), 0.0, False
    failures = _macs_failures("the full model", graph.macs(), count_macs(model, images[:1]))
    if not all(bool(tensor.isfinite().all()) for tensor in full):
        failures.append("the perturbed model's outputs are not finite, so that nothing is proven")
    space = tas.SearchSpace.of(graph)
    drawn = [space.smallest, *(space.sample(draw) for _ in range(RANDOM_ARCHITECTURES))]
    architectures = list(dict.fromkeys(drawn))
    derived: dict[tas.Architecture, list[Tensor]] = {}
    for place, architecture in enumerate(architectures):  # one copy at a time: some models fill gigabytes
        what = f"architecture {place}" if place else "the smallest architecture"
        small = tas.derive(model, graph, architecture)
        found = _outputs(small, images)
        difference = _difference(_outputs(mask(model, graph, architecture), images), found)
        if not difference <= TOLERANCE:  # rounding grows along a hundred random layers; in double precision it does not
            precise = copy.deepcopy(model).double()
            wanted = _outputs(mask(precise, graph, architecture), images.double())
            difference, in_double = (
                _difference(wanted, _outputs(tas.derive(precise, graph, architecture), images.double())),
                True,
            )
        worst, derived[architecture] = max(worst, difference), found
        if not difference <= TOLERANCE:
            failures.append(f"{what}: the derived model differs from the masked one by {difference:.1e}")
        if place == 0 and architecture != graph.full and _difference(full, found) <= TOLERANCE:
            failures.append(f"{what}: the derived model computes what the full one does, so that nothing is proven")
        failures += _macs_failures(what, graph.macs(architecture), count_macs(small, images[:1]))
        if folder is not None:
            tas.save(folder / str(place), small, graph, architecture)
            tensors = {str(index): tensor.contiguous().clone() for index, tensor in enumerate(found)}
            save_file({"images": images, **tensors}, folder / str(place) / "outputs.safetensors")
    failures += _supernet_failures(model, graph, {} if in_double else derived, images)
    return replace(
        row,
        status="FAILED" if failures else "passed",
        message="; ".join(failures),
        error=worst,
        in_double=in_double,
        architectures=len(architectures),
    )


def _supernet_failures(
    model: nn.Module, graph: Graph, derived: Mapping[Any, list[Tensor]], images: Tensor
) -> list[str]:
    """What is wrong with the supernet: it runs one architecture after the other, then takes a step with a mixture."""
    import torch
    from torch.utils._pytree import tree_leaves

    import tas

    supernet, failures = tas.Supernet(model, graph, tas.SearchSpace.of(graph)), []
    for place, (architecture, wanted) in enumerate(derived.items()):
        with supernet.fixed(architecture):
            difference = _difference(wanted, _outputs(supernet, images))
        if not difference <= TOLERANCE:
            failures.append(f"architecture {place}: the supernet differs from the derived model by {difference:.1e}")
    if not supernet.logits.numel():
        return failures
    torch.manual_seed(0)
    supernet.train().draw(1.0)
    outputs = [leaf for leaf in tree_leaves(supernet(images)) if isinstance(leaf, torch.Tensor) and leaf.requires_grad]
    sum(leaf.float().square().mean() for leaf in outputs).backward()
    steep = supernet.logits.grad
    if steep is None or not bool(steep.isfinite().all()) or not bool(steep.any()):
        failures.append("a step of the search gives the logits no finite gradient")
    return failures


def perturb_(model: nn.Module, draw: Any) -> None:
    """Draw all weights anew, in place, so that every channel and block has an effect (fresh scales may be 1e-6)."""
    import torch
    from torch import nn

    model.requires_grad_(False)
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = parameter[0].numel() if parameter.dim() else 1
            if parameter.dim() > 1 and fan_in > 1:
                gain = 2.0 if parameter.dim() == 4 else 1.0  # convolutions are read through a ReLU
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * (gain / fan_in) ** 0.5)
            else:  # scales that were not small vary around 1, all others around 0
                low = 0.5 if parameter.mean() > 0.5 else -0.5
                parameter.copy_(low + torch.rand(parameter.shape, generator=draw))
        for module in model.modules():
            if not isinstance(module, nn.modules.batchnorm._BatchNorm):
                continue
            if module.affine:  # zero-initialised ones would hide a branch
                module.weight.copy_(torch.rand(module.weight.shape, generator=draw) + 0.5)
            if module.running_mean is not None:
                module.running_mean.copy_(torch.rand(module.running_mean.shape, generator=draw) - 0.5)
                module.running_var.copy_(torch.rand(module.running_var.shape, generator=draw) + 0.5)


def group_reasons(graph: Graph) -> tuple[Reason, ...]:
    """The reasons of a graph without numbers and module paths, the largest share of the macs first."""
    axes: Counter = Counter()
    layers: dict[str, set[str]] = {}
    for item in graph.frozen:
        text = re.sub(r"\b\d+(\.\d+)?(e[+-]?\d+)?", "N", item.reason)
        text = re.sub(r"\b(\w+\.)+(?=\w)", "*.", text)
        axes[text] += 1
        layers.setdefault(text, set()).add(item.axis.rpartition(".")[0])
    shares = {
        text: sum(graph.layer_macs.get(name, 0) for name in names) / max(1, graph.macs())
        for text, names in layers.items()
    }
    found = [Reason(text, count, round(shares[text], 4)) for text, count in axes.items()]
    return tuple(sorted(found, key=lambda reason: (-reason.macs_share, -reason.axes)))


def _macs_failures(what: str, said: int, counted: int) -> list[str]:
    return [f"{what}: the graph says {said:,} macs, torch counts {counted:,}"] if said != counted else []


def _outputs(model: nn.Module, images: Tensor) -> list[Tensor]:
    import torch
    from torch.utils._pytree import tree_leaves

    with torch.no_grad(), torch.random.fork_rng([]):
        torch.manual_seed(0)  # of what a forward draws at random
        return [leaf for leaf in tree_leaves(model.eval()(images)) if isinstance(leaf, torch.Tensor)]


def _difference(wanted: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """The largest, relative to the largest of each output; infinite where they cannot be compared."""
    if [tensor.shape for tensor in wanted] != [tensor.shape for tensor in found]:
        return float("inf")
    pairs = zip(wanted, found, strict=True)
    differences = [float((one - other).abs().max() / one.abs().max().clamp_min(1e-12)) for one, other in pairs]
    return max((value if value == value else float("inf") for value in differences), default=float("inf"))


def _peak_mb() -> int:
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    return round(kilobytes / 1024)


def run_one(name: str, *, size: int | None, seconds: float) -> Row:
    """Check one model in a process of its own, and load what it saved in another.

    Args:
        name: as `tas.models.load` takes it.
        size: see `check`.
        seconds: after which a process is ended and the row failed.
    """
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="zoo") as folder:
        try:
            row = apart(check, name, size, Path(folder), seconds=seconds)
            if row.status == "passed":
                difference = apart(reload_difference, name, Path(folder), seconds=seconds)
                if not difference <= TOLERANCE:
                    row = replace(row, status="FAILED", message=f"the loaded models differ by {difference:.1e}")
        except ProcessError as error:
            row = Row(name, "FAILED", str(error))
    return replace(row, total_seconds=round(time.perf_counter() - start, 1))


def apart(function: Callable[..., Any], *arguments: Any, seconds: float) -> Any:
    """Call a function of this module in a new process.

    The process is forked from a server that has imported torch and the packages of models (ten seconds for every
    process otherwise) and done nothing else.

    Raises:
        ProcessError: the function raised an exception, took too long, or the process died.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, function, arguments), daemon=True)
    process.start()
    sender.close()
    try:
        if not receiver.poll(seconds):
            raise ProcessError(f"{function.__name__}: no result after {seconds:.0f} seconds")
        answer = receiver.recv()
    except EOFError:
        process.join()
        raise ProcessError(f"{function.__name__}: the process died, exit code {process.exitcode}") from None
    finally:
        process.kill()
        process.join()
    if isinstance(answer, ProcessError):
        raise answer
    return answer


def _answer(connection: Any, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    with suppress(OSError):  # where memory ends, this process goes, not the one that writes the rows
        Path("/proc/self/oom_score_adj").write_text("1000")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # models and torch.export print and warn as they like
    os.dup2(nowhere, 2)
    try:
        answer = function(*arguments)
    except Exception as error:
        answer = ProcessError(f"{function.__name__}: {type(error).__name__}: {error}")
    connection.send(answer)


def read_rows(path: Path) -> dict[str, Row]:
    """Rows by name; the last of each name, and none of a line that was cut off by an interruption."""
    rows = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with suppress(ValueError):
            row = Row.of(json.loads(line))
            rows[row.name] = row
    return rows


def run_all(names: Sequence[str], results: Path, *, resume: bool, size: int | None, seconds: float) -> list[Row]:
    """Check models one after another; each row is written to `results` at once.

    Args:
        names: of the models.
        results: one JSON object per line.
        resume: keep the rows that are there, but for failed ones, and check the other models only.
        size: see `check`.
        seconds: for each process.
    """
    from tas.progress import progress_bar

    results.parent.mkdir(parents=True, exist_ok=True)
    rows = {name: row for name, row in read_rows(results).items() if resume and row.status != "FAILED"}
    results.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows.values()), encoding="utf-8")
    missing = [name for name in names if name not in rows]
    with progress_bar("zoo", len(names), len(names) - len(missing)) as bar:
        for name in missing:
            row = rows[name] = run_one(name, size=size, seconds=seconds)
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(row)) + "\n")
            bar.advance(f"{name} {row.status}")
    return [rows[name] for name in names]


COLUMNS = (
    "model", "image", "result", "seconds", "peak MB", "widths", "depths", "frozen", "macs open", "difference",
)  # fmt: skip


def cells(row: Row) -> tuple[str, ...]:
    """One row of the table, in the order of `COLUMNS`; what a refused or failed model does not have is empty."""
    known = (f"{row.seconds:.1f}", f"{row.peak_mb:,}") if row.seconds else ("", "")
    if row.macs:
        opened = (f"{row.widths}", f"{row.depths}", f"{row.frozen}", f"{100 * row.open_share:.1f} %")
    else:
        opened = ("", "", "", "")
    error = f"{row.error:.0e}{' in double' if row.in_double else ''}" if row.status == "passed" else ""
    return (row.name, f"{row.size or ''}", row.status, *known, *opened, error)


def ranked_reasons(rows: Iterable[Row]) -> list[tuple[str, int, float, str]]:
    """Reasons over all models: text, number of models, mean share of their macs, the model with the largest share."""
    found: dict[str, list[tuple[float, str]]] = {}
    for row in rows:
        for reason in row.reasons:
            found.setdefault(reason.text, []).append((reason.macs_share, row.name))
    ranked = [
        (text, len(models), statistics.fmean(share for share, _ in models), max(models)[1])
        for text, models in found.items()
    ]
    return sorted(ranked, key=lambda entry: (-entry[1], -entry[2]))


def summary(rows: Sequence[Row]) -> str:
    """The result in one sentence."""
    count = Counter(row.status for row in rows)
    text = f"{len(rows)} models: {count['passed']} passed, {count['refused']} refused, {count['FAILED']} failed"
    traced = [row for row in rows if row.macs]
    if not traced:
        return f"{text}."
    shares, seconds = [row.open_share for row in traced], [row.seconds for row in traced]
    return (
        f"{text}. Macs open: median {100 * statistics.median(shares):.1f} %, at least "
        f"{100 * min(shares):.1f} %. Trace: median {statistics.median(seconds):.1f} s, at most {max(seconds):.1f} s."
    )


def show(rows: Sequence[Row]) -> None:
    """Print the table, the reasons, and the message of every model that did not pass."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 160)
    table = Table(*COLUMNS)
    for column in table.columns[3:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*cells(row), style="bold red" if row.status == "FAILED" else None)
    console.print(table)
    table = Table("why axes are frozen", "models", "mean share of macs", "most in")
    for text, models, share, name in ranked_reasons(rows):
        table.add_row(text, f"{models}", f"{100 * share:.1f} %", name)
    console.print(table)
    for row in rows:
        if row.status != "passed":
            console.print(f"{row.name} {row.status}: {row.message}", markup=False, highlight=False, soft_wrap=True)
    console.print(summary(rows), highlight=False, soft_wrap=True)


def markdown(rows: Sequence[Row], command: str) -> str:
    """The page that is kept: the same tables, and what they were made with."""
    versions = {
        "python": platform.python_version(),
        **{
            name: version(name)
            for name in ("torch", "torchvision", "timm", "transformers", "segmentation_models_pytorch", "ultralytics")
            if find_spec(name)
        },
    }
    made = ", ".join(f"{name} {number}" for name, number in versions.items())
    threads = os.environ.get("OMP_NUM_THREADS")
    machine = f"{os.cpu_count()} CPU cores" + (f", {threads} thread{'s' * (threads != '1')}" if threads else "")
    lines = [
        "# Zoo",
        "",
        f"`{command}`, {date.today()}, {machine}, {made}. Random weights, one process per model.",
        "",
        summary(rows),
        "",
        "*Seconds* and *peak MB* (of the whole process) are the trace's. *Macs open*: the share of the multiply-adds "
        "that can be cut, in layers that get narrower or in blocks that can be dropped. *Difference*: the largest of "
        "derived models from the masked full model, relative, for the smallest architecture and "
        f"{RANDOM_ARCHITECTURES} random ones, weights perturbed; below 1e-4 passes. Passed models also have exactly "
        "the multiply-adds torch counts, and "
        "compute the same after being saved and loaded in another process.",
        "",
        _row(COLUMNS),
        _row(["---", *["---:" if place != 2 else "---" for place in range(1, len(COLUMNS))]]),
        *(_row(cells(row)) for row in rows),
        "",
        "## Why axes are frozen",
        "",
        _row(("reason", "models", "mean share of macs", "most in")),
        _row(("---", "---:", "---:", "---")),
        *(
            _row((text, f"{models}", f"{100 * share:.1f} %", name))
            for text, models, share, name in ranked_reasons(rows)
        ),
    ]
    odd = [row for row in rows if row.status != "passed"]
    if odd:
        messages = (f"* {row.name} {row.status}: {' '.join(row.message.split())}" for row in odd)
        lines += ["", "## Refused and failed", "", *messages]
    return "\n".join(lines) + "\n"


def _row(values: Iterable[str]) -> str:
    return f"| {' | '.join(value.replace('|', '/') for value in values)} |"


def main(words: Sequence[str]) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--only", action="append", metavar="PATTERN", help="models to check, 'timm:res*'; may be repeated"
    )
    parser.add_argument("--skip", action="append", default=[], metavar="PATTERN", help="models to leave out")
    parser.add_argument("--size", type=int, help="of the images, where a model runs at it; each model's own by default")
    parser.add_argument(
        "--results", type=Path, default=Path("runs/zoo.jsonl"), help="one row per model, as they finish"
    )
    parser.add_argument("--resume", action="store_true", help="keep the rows in the results that did not fail")
    parser.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS", help="for each process")
    parser.add_argument("--write", type=Path, metavar="FILE.md", help="keep the tables as a page")
    parser.add_argument("--one", metavar="NAME", help="check one model here and now, and print its row as JSON")
    options = parser.parse_args(words)
    if options.one:
        print(json.dumps(asdict(check(options.one, options.size)), indent=2))
        return 0
    names = [
        name
        for name in all_names()
        if any(fnmatchcase(name, pattern) for pattern in options.only or ["*"])
        and not any(fnmatchcase(name, pattern) for pattern in options.skip)
    ]
    if not names:
        parser.error(f"no model of the list is called like {' or '.join(options.only or [])}")
    rows = run_all(names, options.results, resume=options.resume, size=options.size, seconds=options.timeout)
    show(rows)
    if options.write:
        command = shlex.join(["python", "benchmarks/zoo.py", *words])
        options.write.write_text(markdown(rows, command), encoding="utf-8")
    return int(any(row.status == "FAILED" for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
