"""The models that have a name: ours, torchvision's, timm's, and functions in the user's own files and packages."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from tas.errors import ModelError, first_line
from tas.models.cifar_resnet import BASIC_DEPTHS, BOTTLENECK_DEPTHS, CifarResNet, cifar_resnet
from tas.models.user_code import call_user_function
from tas.models.weights import load_weights

FORMS = (
    "cifar_resnet:DEPTH, torchvision:NAME, timm:NAME, transformers:NAME, path/to/file.py:function, "
    "package.module:function"
)


def load(
    name: str, *, num_classes: int | None = None, weights: str | Path | None = None, pretrained: bool = False
) -> nn.Module:
    """Build a model by name.

    Args:
        name: `cifar_resnet:20`, `torchvision:NAME`, `timm:NAME`, `transformers:NAME`, `path/to/file.py:function` or
            `package.module:function`; the last two are imported and called, so they must be trusted. A Hugging Face
            model for image classification is named by its repository (`microsoft/resnet-50`), a folder that
            `save_pretrained` wrote, or a type (`resnet`), which is built as its default configuration says.
        num_classes: outputs of the classifier, >= 1, passed on where the constructor takes it; None leaves its default.
        weights: file of weights to load, see `load_weights`.
        pretrained: start from the released weights of torchvision or timm, or those in the repository or folder of
            a Hugging Face model (may download them). timm's and Hugging Face's get a fresh classifier where
            `num_classes` is not theirs.

    Returns:
        A model with fresh weights unless `weights` or `pretrained` says otherwise, in training mode.

    Raises:
        ModelError: no such model, its package is missing, it cannot be built, or its weights do not fit.

    Example:
        >>> model = load("cifar_resnet:56", num_classes=10, weights="resnet56.safetensors")
    """
    if num_classes is not None and num_classes < 1:
        raise ModelError(f"a model needs at least 1 class, got num_classes={num_classes}")
    kind, colon, rest = name.rpartition(":")
    if not colon or not kind or not rest:
        raise ModelError(f"there is no model {name!r}{_hint(name)}; write it as one of {FORMS}")
    builders: dict[str, Callable[[str, int | None, bool], nn.Module]] = {
        "cifar_resnet": _build_cifar_resnet,
        "torchvision": _build_torchvision,
        "timm": _build_timm,
        "transformers": _build_transformers,
    }
    if kind in builders:
        model = builders[kind](rest, num_classes, pretrained)
    else:
        model = call_user_function(kind, rest, num_classes=num_classes, pretrained=pretrained)
    if weights is not None:
        load_weights(model, weights)
    return model


def released_classes(name: str) -> int | None:
    """Classes that a model by name was released for, where others are taken and get a fresh classifier; else None.

    timm and Hugging Face take others, torchvision does not.
    """
    kind, _, rest = name.rpartition(":")
    try:
        if kind == "timm":
            import timm

            return getattr(timm.get_pretrained_cfg(rest), "num_classes", None)
        if kind == "transformers":
            from transformers import AutoConfig

            config = AutoConfig.from_pretrained(rest)
            with_classifier = "ImageClassification" in str(config.architectures or "ImageClassification")
            return config.num_labels if with_classifier else 0
    except Exception:  # no such model, package or network: building it says so
        return None
    return None


def own_input_size(model: nn.Module) -> tuple[int, int, int]:
    """Channels, height and width of the images that a model says it was made for; those of ImageNet where it does not.

    Ours, timm's and Hugging Face's say so; torchvision's do not, of which a few want other sizes.
    """
    if isinstance(model, CifarResNet):
        return 3, 32, 32
    known = getattr(model, "pretrained_cfg", None)  # timm
    if isinstance(known, Mapping) and len(size := known.get("input_size") or ()) == 3:
        return tuple(size)
    config = getattr(model, "config", None)  # Hugging Face; of those that take text too, the part that sees
    config = getattr(config, "vision_config", config)
    size, channels = getattr(config, "image_size", None), getattr(config, "num_channels", None)
    height, width = size if isinstance(size, list | tuple) and len(size) == 2 else (size, size)
    usual = ((channels, 3), (height, 224), (width, 224))
    channels, height, width = (value if isinstance(value, int) else other for value, other in usual)
    return channels, height, width


def _build_cifar_resnet(depth: str, num_classes: int | None, pretrained: bool) -> nn.Module:
    if pretrained:
        raise ModelError(f"cifar_resnet:{depth} has no released weights; train it, or pass a file with weights=")
    if not depth.isdecimal():
        choices = ", ".join(map(str, BASIC_DEPTHS + BOTTLENECK_DEPTHS))
        raise ModelError(f"there is no cifar_resnet of depth {depth!r}; choose one of {choices}")
    return cifar_resnet(int(depth), 10 if num_classes is None else num_classes)


def _build_torchvision(name: str, num_classes: int | None, pretrained: bool) -> nn.Module:
    from torchvision import models

    if name not in models.list_models():
        raise ModelError(_unknown("torchvision", name, models.list_models()))
    options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    if "weights_backbone" in inspect.signature(models.get_model_builder(name)).parameters:
        options["weights_backbone"] = None  # torchvision would download some
    try:
        return models.get_model(name, weights="DEFAULT" if pretrained else None, **options)
    except Exception as error:  # constructors and downloads raise what they like
        raise ModelError(_failed("torchvision", name, error, pretrained)) from error


def _build_timm(name: str, num_classes: int | None, pretrained: bool) -> nn.Module:
    try:
        import timm
    except ImportError:
        raise ModelError(f"timm:{name} needs timm, which is missing; pip install tas-pruning[zoo]") from None
    if not timm.is_model(name):
        raise ModelError(_unknown("timm", name, timm.list_models()))
    options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    try:
        return timm.create_model(name, pretrained=pretrained, **options)
    except Exception as error:  # constructors and downloads raise what they like
        raise ModelError(_failed("timm", name, error, pretrained)) from error


def _build_transformers(name: str, num_classes: int | None, pretrained: bool) -> nn.Module:
    try:
        from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForImageClassification
    except ImportError:
        raise ModelError(
            f"transformers:{name} needs transformers, which is missing; pip install tas-pruning[zoo]"
        ) from None
    options: dict[str, Any] = {} if num_classes is None else {"num_labels": num_classes}
    try:
        if pretrained:
            model = AutoModelForImageClassification.from_pretrained(name, ignore_mismatched_sizes=True, **options)
        else:
            is_type = name in CONFIG_MAPPING
            config = (AutoConfig.for_model if is_type else AutoConfig.from_pretrained)(name, **options)
            config.architectures = config.architectures or []  # it looks there for one of several, but not for None
            model = AutoModelForImageClassification.from_config(config)
    except Exception as error:  # constructors and downloads raise what they like
        raise ModelError(_failed("transformers", name, error, pretrained)) from error
    model.train()
    return model


def _unknown(package: str, name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name.lower(), list(known), n=3)
    hint = f"did you mean {' or '.join(f'{package}:{match}' for match in close)}?" if close else "see its documentation"
    return f"{package} has no model {name!r}; {hint}"


def _failed(package: str, name: str, error: Exception, pretrained: bool) -> str:
    way_out = "leave num_classes or pretrained out, or pass weights=FILE" if pretrained else "check num_classes"
    return f"{package}:{name} cannot be built ({first_line(error)}); {way_out}"


def _hint(name: str) -> str:
    """Guess what a name without a colon was meant to be, by text alone: nothing of the user's is run for it."""
    if name.endswith(".py"):
        return f" (did you mean {name}:FUNCTION?)"
    from torchvision import models

    ours = {f"cifar_resnet{depth}": f"cifar_resnet:{depth}" for depth in BASIC_DEPTHS + BOTTLENECK_DEPTHS}
    theirs = {model: f"torchvision:{model}" for model in models.list_models()}
    close = difflib.get_close_matches(name.strip(":").lower(), [*ours, *theirs], n=1)
    return f" (did you mean {(ours | theirs)[close[0]]}?)" if close else ""
