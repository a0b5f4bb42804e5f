"""Make the small model's weights from all channels of the full one, by averaging neighbours."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from tas.architecture import Architecture
from tas.graph import Graph, Layout, channels_of, positions_of
from tas.nn.mixing import interpolation_matrix
from tas.nn.rules import KINDS
from tas.nn.surgery import cut, projected, tensors_by_name


@torch.no_grad()
def interpolate(model: nn.Module, graph: Graph, architecture: Architecture) -> nn.Module:
    """A copy of `model` with the sizes of `architecture`, whose channels are averages of neighbouring channels.

    A width of n channels becomes one of m by channel-wise interpolation: channel i of the small model stands for the
    channels S_i = [⌊i·n/m⌋, ⌈(i+1)·n/m⌉) of the full one.

    * What makes or follows channels (outputs of a layer, biases, affine and statistics of norms) is the mean over S_i.
    * What reads channels (inputs of a convolution or linear layer) is shared out and summed: the weights of channel j
      go in equal parts to the outputs i with j in S_i.

    So the total input weight stays, and a model whose channels are equal within every S_i computes the same after.
    Products over channels of two activations (queries with keys), or of one with a parameter that is no layer's
    (`x @ self.proj`), sum over fewer of them, and are not made up for.
    A projection shortcut goes from one set of averages to the other by the same interpolation of channels.
    Neighbours are what `model` has them to be: rank it only if channels of similar importance are to be averaged.

    Source:
        Dong and Yang, 2019, section 3.1, for the interpolation of features; used on weights here.
    """
    small = cut(model, graph, architecture)
    given, wanted = tensors_by_name(model), tensors_by_name(small)
    full, sizes = graph.sizes(graph.full), graph.sizes(architecture)
    for shortcut in projected(graph, architecture):
        read, made = shortcut.sizes(sizes)
        weight = wanted[f"{shortcut.path}.0.weight"]
        weight.copy_(interpolation_matrix(read, made, made, read, dtype=weight.dtype)[:, :, None, None])
    for layer in graph.layers:
        for parameter in layer.parameters:
            old = given[parameter.name]
            if not any(parameter.layouts) or parameter.name not in wanted or not old.is_floating_point():
                continue  # never cut, or dropped with its block
            reads = KINDS[layer.kind].reads.get(parameter.short)
            for dim, layout in enumerate(parameter.layouts):
                if layout is not None:
                    old = _interpolate_axis(old, layout, full, sizes, dim=dim, reads=dim == reads)
            wanted[parameter.name].copy_(old)
    return small


def _interpolate_axis(
    tensor: Tensor, layout: Layout, full: Mapping[str, int], sizes: Mapping[str, int], *, dim: int, reads: bool
) -> Tensor:
    kept = positions_of(layout, sizes)
    old = tensor.movedim(dim, 0)
    new = old[torch.as_tensor(kept, device=old.device)]
    places = np.full(old.shape[0], -1)
    places[kept] = np.arange(len(kept))
    for name in {run.width for run in layout if run.width is not None}:
        size, wanted = full[name], sizes[name]
        channels = channels_of(layout, name)
        # every channel stands equally often on the axis: row j has all places of channel j, in order
        found = np.argsort(channels, kind="stable")[(channels < 0).sum() :].reshape(size, -1)
        matrix = (
            _shares(size, wanted) if reads else interpolation_matrix(size, wanted, wanted, size, dtype=tensor.dtype)
        )
        values = torch.tensordot(matrix.to(old), old[torch.as_tensor(found, device=old.device)], 1)
        new[torch.as_tensor(places[found[:wanted]], device=old.device)] = values
    return new.movedim(0, dim)


def _shares(size: int, wanted: int) -> Tensor:
    """(wanted, size): how much of what channel j is multiplied with goes to each of the wanted channels."""
    takes = (interpolation_matrix(size, wanted, wanted, size, dtype=torch.float64) > 0).double()
    return takes / takes.sum(0)
