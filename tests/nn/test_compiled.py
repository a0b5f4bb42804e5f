import nets
import pytest
import torch
from nets import images
from torch import nn

import tas
from tas.errors import ModelError
from tas.nn.supernet import Supernet
from tas.pipeline.trace import trace
from tas.space import SearchSpace


@pytest.mark.parametrize("inside", [False, True], ids=["whole", "a part"])
def test_nothing_is_compiled_while_a_compiled_model_is_traced_and_searched(inside):
    compilations = []

    def note(graph, _):
        compilations.append(graph)
        return graph.forward

    model, plain = nets.Plain(), trace(nets.Plain(), images())
    if inside:
        model.first = torch.compile(model.first, backend=note)
    else:
        model = torch.compile(model, backend=note)
    graph = trace(model, images())
    assert [name.replace("_orig_mod.", "") for name in graph.full.widths] == list(plain.full.widths)
    assert graph.macs() == plain.macs()
    space, generator = SearchSpace.of(graph), torch.Generator().manual_seed(0)
    supernet = Supernet(model, graph, space)
    for _ in range(3):
        supernet.draw(1.0, generator)
        supernet(images()).sum().backward()
    assert compilations == []

    small = tas.derive(model, graph, space.smallest)
    supernet = Supernet(model, graph, space).eval()
    with supernet.fixed(space.smallest):
        assert torch.allclose(supernet(images()), small.eval()(images()), atol=1e-5)
    assert len(compilations) == 1  # of the small network: as the user had it


@pytest.mark.filterwarnings("ignore:.*is deprecated")
def test_torchscript_is_refused():
    script = torch.jit.trace(nets.Plain().eval(), images())
    for model in (script, nn.Sequential(script, nn.Flatten())):
        with pytest.raises(ModelError, match="TorchScript cannot be cut; give the Python module"):
            trace(model, images())
