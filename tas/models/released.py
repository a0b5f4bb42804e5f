"""Architectures as the authors of the paper write them."""

from collections.abc import Sequence

from tas.architecture import Architecture
from tas.errors import ArchitectureError
from tas.graph import Graph


def released_architecture(graph: Graph, *, xchannels: Sequence[int], xblocks: Sequence[int]) -> Architecture:
    """Read a result of the authors' code.

    Args:
        graph: of the full network, traced with `residuals="free"`.
        xchannels: of the input, then of every convolution of the full depth in order, shortcuts left out; entries of
            blocks that are dropped are not used.
        xblocks: blocks kept in every stage.

    Raises:
        ArchitectureError: the lists do not fit the graph.

    Source:
        Dong and Yang, 2019; the configurations released with their code, https://github.com/D-X-Y/AutoDL-Projects.

    Example:
        graph = tas.trace(tas.models.cifar_resnet(20), torch.zeros(1, 3, 32, 32), residuals="free")
        tas.models.released_architecture(graph, xchannels=[3, 16, 4, …], xblocks=[3, 3, 3])
    """
    # the shortcut of a transition has the width of its block's last convolution, which comes first
    if len(xchannels) - 1 != len(graph.widths) or len(xblocks) != len(graph.depths):
        raise ArchitectureError(
            f"xchannels are {len(xchannels)} and xblocks {len(xblocks)} numbers; this graph takes "
            f"{len(graph.widths) + 1} and {len(graph.depths)}: it must be of the same network, traced with "
            f'residuals="free" and without keep'
        )
    widths = {width.name: size for width, size in zip(graph.widths, xchannels[1:], strict=True)}
    return graph.check(
        Architecture(widths, {depth.name: kept for depth, kept in zip(graph.depths, xblocks, strict=True)})
    )
