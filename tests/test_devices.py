"""What runs on a GPU, on a pretended one: nothing meets a tensor of another device, and the numbers are the CPU's."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from pretended import RefusedError, pretended_gpus
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from toys import TinyNet, tiny_source

import tas
from tas.pipeline.train import TrainConfig

SHORT = TrainConfig(epochs=2, batch_size=16, learning_rate=0.05)
SEARCH = replace(tas.CompressConfig().search, batch_size=16, held_out_images=16, halving_images=16, halving_steps=6)
STEPS, MEANS = 2 * 4, 2 * 6  # of a training: labels are looked at in every step, losses at the ends of an epoch
SEARCHES: dict[str, dict[str, Any]] = {
    "alternation": {"epochs": 1, "architectures": 0, "logits_start": "random", "interpolation": "average"},
    "halving": {"epochs": 0, "architectures": 4},
}


@pytest.fixture
def gpu() -> Iterator[Counter[str]]:
    with pretended_gpus() as counts:
        yield counts


def net(seed: int = 0) -> TinyNet:
    torch.manual_seed(seed)
    return TinyNet()


def loaders() -> tuple[DataLoader, DataLoader]:
    data = TensorDataset(torch.randn(64, 3, 8, 8), torch.arange(64) % 4)
    return DataLoader(data, 16, shuffle=True, pin_memory=True), DataLoader(data, 16)


def weights_of(model: nn.Module) -> list[torch.Tensor]:
    return [value.detach().cpu() for value in model.state_dict().values()]


def test_a_pretended_gpu_behaves_as_one(gpu):
    here, there = torch.ones(2), torch.ones(2, device="cuda")
    assert there.is_cuda
    assert there.device == torch.device("cuda:0")
    with pytest.raises(RefusedError, match="same device"):
        torch.add(here, there)
    with pytest.raises(RefusedError, match="same device"):
        torch.add(there, there.to("cuda:1"))
    with pytest.raises(RefusedError, match="generator"):
        torch.rand(2, generator=torch.Generator(), device="cuda")
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()
    moved = here.requires_grad_().to(there)
    assert (moved * there)[:1].device == there.device
    (moved * there).sum().backward()
    assert here.grad is not None
    assert not here.grad.is_cuda
    gpu.clear()
    assert float(there.sum()) == 2
    assert there[there > 0].tolist() == [1, 1]
    assert gpu["waits"] == 3


def test_a_network_is_fitted_there_and_comes_back():
    model = net()
    graph = tas.trace(model, torch.zeros(1, 3, 8, 8))
    architecture = tas.Architecture(dict.fromkeys(graph.full.widths, 4), graph.full.depths)

    def fitted() -> nn.Module:
        return tas.derive(model, graph, architecture, weights="reconstruct", data=tiny_source())

    wanted = weights_of(fitted())
    with pretended_gpus():
        found = fitted()
        assert next(found.parameters()).device.type == next(model.parameters()).device.type == "cpu"
    assert all(torch.allclose(one, other, atol=1e-4) for one, other in zip(weights_of(found), wanted, strict=True))


@pytest.mark.parametrize("transfer", ["none", "kd", "dkd", "dist", "hints", "attention"])
def test_training_gives_the_weights_of_the_cpu_and_waits_once_a_step(transfer):
    def trained() -> list[torch.Tensor]:
        return weights_of(tas.train(net(), tiny_source(), teacher=net(1), config=replace(SHORT, transfer=transfer)))

    wanted = trained()
    with pretended_gpus() as counts:
        found = trained()
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    assert counts["waits"] == STEPS + MEANS


@pytest.mark.parametrize(("precision", "waits"), [("bf16", 1), ("fp16", 2)])  # fp16 asks whether gradients overflowed
def test_half_precision_waits_no_longer(gpu, precision, waits):
    tas.train(net(), tiny_source(), teacher=net(1), config=replace(SHORT, precision=precision))
    assert gpu["waits"] == waits * STEPS + MEANS


@pytest.mark.parametrize("how", SEARCHES)
@pytest.mark.parametrize("execution", ["compact", "dense"])
def test_a_search_measures_what_the_cpu_measures(how, execution):
    def searched() -> dict[str, Any]:
        model = net()
        graph = tas.trace(model, torch.zeros(1, 3, 8, 8))
        supernet = tas.Supernet(tas.rank(model, graph), graph, tas.SearchSpace.of(graph), execution=execution)
        config = replace(SEARCH, **SEARCHES[how])
        found = tas.search(supernet, tiny_source(), budget="50%", teacher=net(1), config=config)
        return dict(found.scores.log_probabilities)

    wanted = searched()
    with pretended_gpus():
        found = searched()
    for name, row in wanted.items():
        assert found[name] == pytest.approx(row, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize(("execution", "waits"), [("compact", 2), ("dense", 0)])  # sizes as numbers: widths, depths
def test_a_supernet_on_a_gpu_takes_nothing_from_the_host(gpu, execution, waits):
    model = net()
    graph = tas.trace(model, torch.zeros(1, 3, 8, 8))
    supernet = tas.Supernet(model, graph, tas.SearchSpace.of(graph), execution=execution).to("cuda")
    images, generator = torch.zeros(4, 3, 8, 8, device="cuda"), torch.Generator("cuda")
    for _ in range(2):
        gpu.clear()
        supernet.draw(1.0, generator)
        supernet(images).sum().backward()
        for architecture in (supernet.space.smallest, supernet.space.largest):
            with supernet.fixed(architecture):
                supernet(images)
    assert (gpu["waits"], gpu["copies"], gpu["copies to the host"]) == (waits, 0, 0)


@pytest.mark.filterwarnings("ignore:.*legacy TorchScript:DeprecationWarning")
def test_the_whole_job_runs_there_from_the_trace_to_a_measured_network(gpu, tmp_path):
    config = tas.CompressConfig(
        search=replace(SEARCH, architectures=4), train=replace(SHORT, epochs=1), teacher=replace(SHORT, epochs=1)
    )
    model = net().to("cuda")
    before = torch.cuda.get_rng_state("cuda")
    result = tas.compress(model, loaders(), budget="50%", config=config, output=tmp_path)
    assert gpu["pinned"]
    assert torch.equal(torch.cuda.get_rng_state("cuda"), before)
    assert result.pruned.device == result.full.device == "a pretended GPU"
    assert next(result.model.parameters()).is_cuda
    assert next(model.parameters()).is_cuda
    small = tas.load(tmp_path, net().to("cuda:1"))
    assert {str(value.device) for value in small.state_dict().values()} == {"cuda:1"}
    torch.testing.assert_close(weights_of(small), weights_of(result.model))


def test_a_training_goes_on_there_from_a_checkpoint_of_the_cpu(tmp_path):
    file = tmp_path / "train.pt"

    def interrupt(row: dict[str, Any]) -> None:
        if row["epoch"] == 1:
            raise KeyboardInterrupt

    wanted = weights_of(tas.train(net(), tiny_source(), config=SHORT))
    record = tas.Record()
    record.listeners = [interrupt]
    with pytest.raises(KeyboardInterrupt):
        tas.train(net(), tiny_source(), config=SHORT, record=record, checkpoint=file)
    with pretended_gpus():
        found = tas.train(net(3), tiny_source(), config=SHORT, checkpoint=file)
        assert next(found.parameters()).is_cuda
    torch.testing.assert_close(weights_of(found), wanted, rtol=1e-3, atol=1e-4)
