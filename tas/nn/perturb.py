"""Weights and statistics under which nothing that a cut does wrong stays hidden."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tas.nn.surgery import shared_copy

_LARGE = 100_000  # weights
_DEAD = 1e-3  # share of the usual variance
_WEAK = 0.5  # standard deviation of what a layer makes of inputs of one; torch's linear layers begin at 0.58


def perturbed(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """A copy in which neither zeros (fresh biases, zero-initialised scales) nor weak weights hide a wrong cut.

    Scores of weak weights make attention a mean over positions, whatever its heads are. Large weights that are not
    weak hide nothing, and are shared.
    """
    noisy = shared_copy(model)
    new: dict[nn.Parameter, nn.Parameter] = {}  # what two modules share stays shared
    for module in noisy.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter not in new:
                new[parameter] = _moved(parameter, generator)
            setattr(module, name, new[parameter])
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            assert module.running_var is not None
            module.running_mean.add_(torch.randn(module.running_mean.shape, generator=generator) * 0.1)
            module.running_var.mul_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
    return noisy


def calibrate(model: nn.Module, inputs: list[Tensor]) -> bool:
    """Give batch norms the statistics of these inputs, in place, and say whether the model runs so.

    With other statistics what is random fades from layer to layer until all positions look alike, and attention does
    the same with any number of heads.
    """
    norms = [
        (norm, norm.running_mean, norm.running_var, norm.momentum)
        for norm in model.modules()
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_mean is not None and not norm.training
    ]
    for norm, mean, variance, _ in norms:
        norm.running_mean, norm.running_var = mean.clone(), variance.clone()  # type: ignore[union-attr]
        norm.momentum, norm.training = 1.0, True
    runs = True
    try:
        if norms:
            with torch.no_grad():
                model(*(tensor.clone() for tensor in inputs))
        for norm, *_ in norms:
            norm.running_var.clamp_(min=_DEAD * float(norm.running_var.mean()))  # type: ignore[union-attr]
            assert norm.running_var.isfinite().all()  # type: ignore[union-attr]
    except Exception:  # a batch norm may want two samples, and the user's own forward may fail in any way
        runs = False
        for norm, mean, variance, _ in norms:
            norm.running_mean, norm.running_var = mean, variance
    for norm, _, _, momentum in norms:
        norm.momentum, norm.training = momentum, False
    return runs


def _moved(parameter: nn.Parameter, generator: torch.Generator) -> nn.Parameter:
    with torch.no_grad():
        spread = float(parameter.std()) if parameter.numel() > 1 else 0.0
        strength = spread * parameter[0].numel() ** 0.5 if spread and parameter.dim() > 1 else 1.0
        scale = 1 / strength if 0 < strength < _WEAK else 1.0
        if parameter.numel() > _LARGE and spread > 0 and scale == 1:
            return parameter
        noise = torch.randn(parameter.shape, generator=generator).to(parameter)
        return nn.Parameter(scale * (parameter + 0.1 * (spread or 1.0) * noise))


def noise_like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Noise in the place of a tensor of floating point; others stay."""
    return torch.randn(tensor.shape, generator=generator).to(tensor) if tensor.is_floating_point() else tensor


def tokens_like(tensor: Tensor, below: int, generator: torch.Generator) -> Tensor:
    """Numbers drawn in the place of those that an embedding may read: equal tokens hide how heads are split.

    Args:
        tensor: what is neither int32 nor int64 stays.
        below: rows of the smallest embedding; a larger number in the tensor shows that it reads a larger one.
        generator: of the numbers.
    """
    if tensor.dtype not in (torch.int32, torch.int64) or not tensor.numel():
        return tensor
    return torch.randint(max(below, int(tensor.max()) + 1), tensor.shape, generator=generator).to(tensor)
