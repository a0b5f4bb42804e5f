import copy

import nets
import numpy as np
import pytest
import torch
from nets import images, perturbed
from torch import nn
from toys import TinyNet, tiny_source

import tas.pipeline.derive
from tas.architecture import Architecture
from tas.errors import ArchitectureError, ConfigError, DataError, ModelError
from tas.nn.statistics import measure_statistics
from tas.pipeline.derive import derive, recalibrate
from tas.pipeline.trace import trace
from tas.pipeline.train import TrainConfig, train
from tas.space import SearchSpace


def prepared(net: nn.Module):
    model = perturbed(net)
    graph = trace(model, images())
    return model, graph, SearchSpace.of(graph)


def test_the_small_model_keeps_the_first_channels_and_the_classes_of_the_user():
    model, graph, _ = prepared(nets.Plain())
    small = derive(model, graph, Architecture({"first.0": 3, "second.0": 5}))
    assert type(small) is nets.Plain
    assert torch.equal(small.first[0].weight, model.first[0].weight[:3])
    assert torch.equal(small.second[0].weight, model.second[0].weight[:5, :3])
    assert torch.equal(small.first[1].running_var, model.first[1].running_var[:3])
    assert torch.equal(small.head[2].weight, model.head[2].weight[:, :5])
    assert (small.first[0].out_channels, small.second[0].in_channels, small.second[0].out_channels) == (3, 3, 5)
    assert (small.first[1].num_features, small.head[2].in_features, small.head[2].out_features) == (3, 5, 5)


def test_a_depthwise_convolution_keeps_one_group_per_channel():
    for multiplier in (1, 2):
        model, graph, _ = prepared(nets.Depthwise(multiplier))
        small = derive(model, graph, Architecture({"expand.0": 3, "project.0": 10}))
        layer = small.filter
        assert (layer.groups, layer.in_channels, layer.out_channels) == (3, 3, 3 * multiplier)


def test_dropped_blocks_become_identities():
    model, graph, space = prepared(nets.Residual())
    small = derive(model, graph, Architecture(space.largest.widths, {"stage": 1}))
    assert [isinstance(block, nn.Identity) for block in small.stage] == [False, True, True]
    assert torch.equal(small(images()), model.head(model.stage[0](model.stem(images()))))


def test_the_full_architecture_is_the_model():
    model, graph, _ = prepared(nets.Residual())
    assert torch.equal(derive(model, graph, graph.full)(images()), model(images()))


def test_neither_the_model_nor_what_is_done_to_the_small_one_changes_it():
    model, graph, space = prepared(nets.Residual())
    before = copy.deepcopy(model.state_dict())
    for architecture in (space.smallest, space.largest):
        small = derive(model, graph, architecture, weights="fresh").train()
        small(images()).sum().backward()
        with torch.no_grad():
            for parameter in small.parameters():
                parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_frozen_parameters_stay_frozen_and_buffers_stay_buffers():
    model, graph, space = prepared(nets.Plain())
    model.first[0].weight.requires_grad_(False)
    small = derive(model, graph, space.smallest)
    assert not small.first[0].weight.requires_grad
    assert small.second[0].weight.requires_grad
    assert small.state_dict().keys() == model.state_dict().keys()


def test_fresh_weights_follow_the_seed_and_leave_the_random_state():
    model, graph, space = prepared(nets.Residual())
    state = torch.get_rng_state()
    one, same, other = (derive(model, graph, space.smallest, weights="fresh", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(one.stem[0].weight, same.stem[0].weight)
    assert not torch.equal(one.stem[0].weight, other.stem[0].weight)
    assert not torch.equal(one.stem[0].weight, model.stem[0].weight[: one.stem[0].out_channels])
    assert one.stem[1].running_mean.eq(0).all()


def test_a_gradient_reaches_every_parameter_of_the_small_model():
    model, graph, space = prepared(nets.Concat())
    small = derive(model, graph, space.smallest).train()
    small(images()).square().sum().backward()
    assert all(
        parameter.grad is not None and parameter.grad.shape == parameter.shape for parameter in small.parameters()
    )


class Encoder(nn.Module):
    """torch's encoder, which in evaluation leaves out what is padding."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(12, 4, 10, batch_first=True)
        self.first, self.encoder, self.last = nn.Linear(5, 12), nn.TransformerEncoder(layer, 2), nn.Linear(12, 3)

    def forward(self, x, padding=None):
        return self.last(self.encoder(self.first(x), src_key_padding_mask=padding))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_attention_over_fewer_heads_knows_padding():
    model, inputs = perturbed(Encoder()), torch.randn(3, 6, 5)
    graph = trace(model, inputs)
    small = derive(model, graph, SearchSpace.of(graph).smallest)
    padding = torch.arange(6) >= torch.tensor([[4], [6], [3]])
    with torch.no_grad():
        outputs = small(inputs, padding)
        for row, alone, is_padding in zip(outputs, inputs, padding, strict=True):
            torch.testing.assert_close(row[~is_padding], small(alone[None, ~is_padding])[0])


def test_attention_over_fewer_heads_is_cut_again():
    model, inputs = perturbed(Encoder()), torch.randn(3, 6, 5)
    graph = trace(model, inputs)
    heads = {name: 2 if name.endswith("self_attn") else size for name, size in graph.full.widths.items()}
    fewer = Architecture(heads, graph.full.depths)
    again = trace(derive(model, graph, fewer), inputs)
    assert again.full == fewer
    assert again.macs() == graph.macs(fewer)


def loaders(inputs: torch.Tensor):
    labels = torch.zeros(len(inputs), dtype=torch.long)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, labels), batch_size=len(inputs))
    return loader, loader


def test_recalibration_gives_every_norm_the_statistics_of_its_inputs():
    model, graph, space = prepared(nets.Plain())
    small = derive(model, graph, space.smallest)
    recalibrate(small, loaders(images(32)), batches=1)
    raw = small.first[0](images(32)).transpose(0, 1).flatten(1)
    torch.testing.assert_close(small.first[1].running_mean, raw.mean(1).detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(small.first[1].running_var, raw.var(1).detach(), rtol=1e-4, atol=1e-5)
    assert small.first[1].momentum == 0.1
    assert not any(module.training for module in small.modules())


class Folds(nets.Plain):
    """In evaluation it reads the statistics of its first norm without calling it."""

    def forward(self, x):
        if self.training:
            return super().forward(x)
        convolution, norm = self.first
        x = nn.functional.batch_norm(convolution(x), norm.running_mean, norm.running_var, norm.weight, norm.bias)
        return self.head(self.second(x.relu()).relu())


def test_a_norm_that_sees_no_batch_keeps_its_statistics():
    model = perturbed(Folds())
    before = copy.deepcopy(model.state_dict())
    recalibrate(model, loaders(images()))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"second.1.running_mean", "second.1.running_var", "second.1.num_batches_tracked"}


def test_recalibration_without_a_batch_is_refused():
    with pytest.raises(ConfigError, match="batches is 0; it must be at least 1"):
        recalibrate(nets.Plain(), None, batches=0)


def test_recalibration_that_fails_leaves_the_model_as_it_was():
    model = perturbed(nets.Plain())
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match="expected input"):
        recalibrate(model, loaders(torch.zeros(4, 7, 8, 8)))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.first[1].momentum == 0.1
    assert not any(module.training for module in model.modules())


def test_a_model_without_norms_needs_no_recalibration():
    model, graph, space = prepared(nets.WithoutNorm())
    small = derive(model, graph, space.smallest).train()
    assert not recalibrate(small, None).training


def test_an_unknown_origin_of_weights_is_refused():
    model, graph, space = prepared(nets.Plain())
    with pytest.raises(ConfigError, match="weights is 'none'; it can be inherit or reconstruct or interpolate"):
        derive(model, graph, space.smallest, weights="none")  # type: ignore[arg-type]


def test_to_reconstruct_takes_training_images_and_makes_a_network_that_works_at_once(monkeypatch):
    torch.manual_seed(0)
    model, source = TinyNet(), tiny_source()
    train(model, source, config=TrainConfig(epochs=12, batch_size=16))
    graph = trace(model, torch.zeros(1, 3, 8, 8))
    architecture = Architecture(dict.fromkeys(SearchSpace.of(graph).widths, 4), {"blocks": 2})
    looked_at = []
    fit = tas.pipeline.derive.reconstruct
    monkeypatch.setattr(tas.pipeline.derive, "reconstruct", lambda *a, **o: looked_at.append(a[-1]) or fit(*a, **o))
    numbers = torch.get_rng_state()
    small = derive(model, graph, architecture, weights="reconstruct", data=source, seed=1)
    assert torch.equal(torch.get_rng_state(), numbers)
    assert not small.training
    inherited = recalibrate(derive(model, graph, architecture), source)
    unseen, _ = next(iter(source.test_batches(64)))
    with torch.no_grad():
        distance, before = ((one(unseen) - model(unseen)).norm() for one in (small, inherited))
    assert distance < 0.6 * before
    again = derive(model, graph, architecture, weights="reconstruct", data=source, seed=1)
    assert all(torch.equal(one, other) for one, other in zip(small.parameters(), again.parameters(), strict=True))
    assert len(looked_at[0]) == 64  # all there are
    with pytest.raises(ConfigError, match="fitted on training images; give data, or inherit"):
        derive(model, graph, architecture, weights="reconstruct")
    monkeypatch.setattr(source, "train_batches", lambda *_, **__: iter(()))
    with pytest.raises(DataError, match="quarters gives no training batch"):
        derive(model, graph, architecture, weights="reconstruct", data=source)


def test_what_is_frozen_whole_is_not_left_unfitted_without_a_word():
    model = TinyNet()
    graph = trace(model, torch.zeros(1, 3, 8, 8))
    with pytest.raises(ModelError, match="every parameter of TinyNet is frozen .* call model.requires_grad_.True"):
        derive(model.requires_grad_(False), graph, graph.full, weights="reconstruct", data=tiny_source())
    model.head.requires_grad_(True)
    derive(model, graph, graph.full, weights="reconstruct", data=tiny_source())


def test_large_images_are_fewer(monkeypatch):
    seen = []
    monkeypatch.setattr("tas.pipeline.derive.reconstruct", lambda *given, **_: seen.append(given[-1]))
    monkeypatch.setattr("tas.pipeline.derive.VALUES", 3 * 8 * 8 * 100)
    model = TinyNet()
    graph = trace(model, torch.zeros(1, 3, 8, 8))
    for size in (8, 16, 4):
        derive(model, graph, graph.full, weights="reconstruct", data=tiny_source(3000, size=size))
    assert [len(images) for images in seen] == [100, 25, 400]


def test_of_images_of_several_sizes_those_like_the_first_are_looked_at(monkeypatch):
    seen = []
    monkeypatch.setattr("tas.pipeline.derive.reconstruct", lambda *given, **_: seen.append(given[-1]))
    model, source = TinyNet(), tiny_source()
    batches = [(torch.rand(8, 3, size, size), torch.zeros(8)) for size in (8, 12, 8, 16)]
    monkeypatch.setattr(source, "train_batches", lambda *_, **__: iter(batches))
    graph = trace(model, torch.zeros(1, 3, 8, 8))
    derive(model, graph, graph.full, weights="reconstruct", data=source)
    assert torch.equal(seen[0], torch.cat([batches[0][0], batches[2][0]]))


class Draws(TinyNet):
    """Drops some of its input in evaluation as well, to no effect."""

    def forward(self, x):
        return super().forward(x) + 0 * nn.functional.dropout(x, 0.5, training=True).mean()


def test_to_reconstruct_leaves_the_generator_that_a_forward_draws_from():
    model, numbers = Draws(), torch.get_rng_state()
    graph = trace(TinyNet(), torch.zeros(1, 3, 8, 8))
    torch.set_rng_state(numbers)
    derive(model, graph, graph.full, weights="reconstruct", data=tiny_source())
    assert torch.equal(torch.get_rng_state(), numbers)


def test_a_graph_of_another_model_is_refused():
    model, graph, space = prepared(nets.Plain())
    with pytest.raises(ModelError, match="the graph does not fit this Residual"):
        derive(nets.Residual(), graph, space.smallest)
    small = derive(model, graph, space.smallest)
    with pytest.raises(
        ModelError, match=r"first.0.weight should have shape \(8, 3, 3, 3\), the model has shape \(2, 3, 3, 3\)"
    ):
        derive(small, graph, space.smallest)


def test_an_architecture_of_another_graph_is_refused():
    model, graph, _ = prepared(nets.Plain())
    with pytest.raises(ArchitectureError, match="the architecture does not belong to this graph"):
        derive(model, graph, Architecture({"first.0": 3}))


class Noisy(torch.utils.data.Dataset):
    """Noise of numpy's global generator, as many users' augmentation draws it."""

    def __len__(self):
        return 16

    def __getitem__(self, index):
        return torch.full((3, 8, 8), float(np.random.randn())), index % 4


def test_recalibration_repeats_itself_and_leaves_the_generators_alone():
    loaders = [torch.utils.data.DataLoader(Noisy(), 8, shuffle=True) for _ in range(2)]
    found = []
    for seed in (1, 2):
        np.random.seed(seed)
        before = np.random.get_state()[2]
        torch.manual_seed(0)
        model = recalibrate(TinyNet(), loaders)
        assert np.random.get_state()[2] == before
        found.append(model.stem[1].running_mean)
    assert torch.equal(*found)


def test_a_recalibration_that_fails_in_its_second_batch_leaves_the_model_as_it_was():
    model = TinyNet().train()
    before = copy.deepcopy(model.state_dict())

    def batches():
        yield torch.rand(4, 3, 8, 8), torch.zeros(4)
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        measure_statistics(model, batches())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.stem[1].momentum == TinyNet().stem[1].momentum


@pytest.mark.parametrize("weights", ["inherit", "fresh", "interpolate"])
def test_what_a_model_keeps_in_evaluation_is_of_the_weights_that_it_has(weights):
    model, graph = perturbed(nets.ALL["keeps biases"]()), nets.graph_of("keeps biases")
    small = derive(model, graph, SearchSpace.of(graph).smallest, weights=weights)
    kept = small(images())
    small.train().eval()  # makes its table anew
    torch.testing.assert_close(kept, small(images()))
    assert small.blocks[0].attention.ab.shape[0] == 1
