"""Saliency is the growth of the loss that an independent cut shows, and logits keep its order."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from toys import TinyNet, tiny_source

import tas
from tas.decode import decode
from tas.errors import TrainingError
from tas.nn.statistics import batch_norms
from tas.nn.surgery import cut
from tas.pipeline.search.saliency import measured_saliency, saliency_logits, single_choices
from tas.progress import progress_bar


def cross_entropy(network, inputs, targets):
    return F.cross_entropy(network(inputs), targets)


def measured(supernet, batches):
    with progress_bar("saliency", 1) as bar:
        return measured_saliency(supernet, batches, cross_entropy, bar)


@pytest.fixture(scope="module")
def prepared():
    torch.manual_seed(0)
    model = TinyNet().double()
    graph = tas.trace(model, torch.zeros(1, 3, 8, 8, dtype=torch.float64))
    batches = [(x.double(), y) for x, y in itertools.islice(tiny_source().train_batches(16, half=1), 2)]
    return model, graph, tas.SearchSpace.of(graph), batches


@pytest.mark.parametrize("execution", ["compact", "dense"])
def test_it_is_the_loss_of_the_cut_network_with_statistics_of_the_batch(prepared, execution):
    model, graph, space, batches = prepared
    found = measured(tas.Supernet(model, graph, space, execution=execution), batches)

    def loss(architecture):
        small = cut(model, graph, architecture).eval()
        for norm in batch_norms(small):
            norm.train()
        with torch.no_grad():
            return sum(float(F.cross_entropy(small(x), y)) for x, y in batches) / len(batches)

    whole = loss(space.largest)
    assert {name: len(row) for name, row in found.items()} == {
        name: len(sizes) for name, sizes in {**space.widths, **space.depths}.items()
    }
    for name, index, architecture in single_choices(space):
        assert found[name][index] == pytest.approx(loss(architecture) - whole, abs=1e-9)
    assert all(row[-1] == 0 for row in found.values())


def test_the_supernet_is_as_before(prepared):
    model, graph, space, batches = prepared
    supernet = tas.Supernet(model, graph, space)
    supernet.train()
    before = copy.deepcopy(supernet.state_dict())
    measured(supernet, batches)
    assert all(module.training for module in supernet.modules())
    assert all(torch.equal(value, before[name]) for name, value in supernet.state_dict().items())


def test_a_loss_that_is_not_finite_is_an_error(prepared):
    model, graph, space, batches = prepared
    broken = copy.deepcopy(model)
    torch.nn.init.constant_(broken.head.weight, float("nan"))
    with pytest.raises(TrainingError, match="not finite with .*logits_start to random"):
        measured(tas.Supernet(broken, graph, space), batches)
    inputs, *others = batches[-1]
    inputs = inputs.clone()
    inputs[1] = float("inf")
    with pytest.raises(TrainingError, match=f"not finite with .*; image 1 of batch {len(batches) - 1} has NaN or"):
        measured(tas.Supernet(model, graph, space), [*batches[:-1], (inputs, *others)])


def test_logits_keep_the_order_have_the_entropy_and_decode_like_the_saliency(prepared):
    _, graph, space, _ = prepared
    draw = torch.Generator().manual_seed(3)
    choices = {**space.widths, **space.depths}
    found = {name: [*torch.rand(len(sizes) - 1, generator=draw).sort(descending=True).values.add(0.1).tolist(), 0.0]
             for name, sizes in choices.items()}  # fmt: skip
    supernet = tas.Supernet(prepared[0], graph, space)
    logits = saliency_logits(found, supernet.logits.shape[1], entropy=0.4)
    entropies = []
    for row, values in zip(logits.double(), found.values(), strict=True):
        kept = row[: len(values)]
        assert torch.equal(torch.tensor(values).argsort(stable=True), (-kept).argsort(stable=True))
        probabilities = kept.softmax(0)
        entropies.append(float(-(probabilities * probabilities.log()).sum()) / torch.tensor(len(values)).log().item())
    assert sum(entropies) / len(entropies) == pytest.approx(0.4, abs=0.01)
    with torch.no_grad():
        supernet.logits.copy_(logits)
    budget = tas.Budget(macs="50%")
    plain = decode({name: [-value for value in row] for name, row in found.items()}, graph, space, budget)
    assert decode(supernet.scores(), graph, space, budget) == plain


def test_no_candidate_is_preferred_to_a_larger_one(prepared):
    model, graph, space, _ = prepared
    found = {name: [0.3, *[-0.2] * (len(sizes) - 2), 0.0] for name, sizes in {**space.widths, **space.depths}.items()}
    supernet = tas.Supernet(model, graph, space)
    logits = saliency_logits(found, supernet.logits.shape[1])
    for row, values in zip(logits, found.values(), strict=True):
        kept = row[: len(values)].tolist()
        assert kept == sorted(kept), "lower losses of smaller candidates count as none"
        assert kept[-1] - kept[1] < 2e-3 < kept[1] - kept[0]
    with torch.no_grad():
        supernet.logits.copy_(logits)
    share = graph.macs(decode(supernet.scores(), graph, space, tas.Budget(macs="60%"))) / graph.macs()
    assert share > 0.45, "the budget is used"
