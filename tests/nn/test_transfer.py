"""Losses against a teacher, each against its formula written with numpy; which layers are compared, and how."""

import copy
import warnings

import nets
import numpy as np
import pytest
import torch
from nets import images, perturbed
from torch import nn

from tas.architecture import Architecture
from tas.errors import ConfigError, ModelError
from tas.models import cifar_resnet
from tas.nn.transfer import (
    Attention,
    Hints,
    Match,
    attention_loss,
    decoupled_loss,
    distillation_loss,
    hint_loss,
    imitation_loss,
    match_layers,
    recorded,
    relation_loss,
    require_layers,
)
from tas.pipeline.derive import derive
from tas.pipeline.trace import trace

LABELS = torch.tensor([0, 1, 2, 3, 4, 0])


def logits(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    student, teacher = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    return student, 3 * teacher


def features(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max())
    return powers / powers.sum()


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    return float(sum(a * np.log(a / b) for a, b in zip(p, q, strict=True)))


def test_the_distillation_loss_is_the_formula():
    student, teacher = logits()
    temperature, share = 3.0, 0.7
    total = 0.0
    for ours, theirs, label in zip(student.numpy(), teacher.numpy(), LABELS.tolist(), strict=True):
        against_teacher = divergence(softmax(theirs / temperature), softmax(ours / temperature))
        total += (1 - share) * -np.log(softmax(ours)[label]) + share * temperature**2 * against_teacher
    found = distillation_loss(student, teacher, LABELS, temperature=temperature, teacher_weight=share)
    assert float(found) == pytest.approx(total / 6, rel=1e-12)


@pytest.mark.parametrize(("temperature", "beta"), [(1.0, 1.0), (4.0, 8.0), (0.5, 0.0)])
def test_the_decoupled_loss_is_the_formula(temperature, beta):
    student, teacher = logits()
    total = 0.0
    for ours, theirs, label in zip(student.numpy(), teacher.numpy(), LABELS.tolist(), strict=True):
        q, p = softmax(ours / temperature), softmax(theirs / temperature)
        target = divergence(np.array([p[label], 1 - p[label]]), np.array([q[label], 1 - q[label]]))
        rest = [index for index in range(5) if index != label]
        other = divergence(softmax(theirs[rest] / temperature), softmax(ours[rest] / temperature))
        total += temperature**2 * (target + beta * other)
    found = decoupled_loss(student, teacher, LABELS, temperature=temperature, other_weight=beta)
    assert float(found) == pytest.approx(total / 6, rel=1e-10)


def test_the_decoupled_parts_with_the_teachers_weight_are_plain_distillation():
    student, teacher = (values[:1] for values in logits())  # KD = target part + (1 - p_target) · other part
    left = 1 - (teacher / 2).softmax(1)[0, 0]
    found = decoupled_loss(student, teacher, LABELS[:1], temperature=2.0, other_weight=float(left))
    plain = distillation_loss(student, teacher, LABELS[:1], temperature=2.0, teacher_weight=1.0)
    assert float(found) == pytest.approx(float(plain), rel=1e-10)


def test_the_decoupled_loss_leaves_out_unknown_labels_and_survives_a_teacher_that_is_certain():
    student, teacher = logits()
    labels = LABELS.clone()
    labels[3:] = -100
    torch.testing.assert_close(
        decoupled_loss(student, teacher, labels), decoupled_loss(student[:3], teacher[:3], LABELS[:3])
    )
    certain = torch.full((6, 5), -1e4).scatter_(1, LABELS[:, None], 1e4)
    ours = torch.randn(6, 5, requires_grad=True)
    decoupled_loss(ours, certain, LABELS).backward()
    assert ours.grad is not None
    assert bool(torch.isfinite(ours.grad).all())


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_relation_loss_is_the_formula(temperature):
    student, teacher = logits()
    ours, theirs = (np.stack([softmax(row / temperature) for row in values.numpy()]) for values in (student, teacher))
    rows = np.mean([1 - np.corrcoef(ours[i], theirs[i])[0, 1] for i in range(6)])
    columns = np.mean([1 - np.corrcoef(ours[:, j], theirs[:, j])[0, 1] for j in range(5)])
    found = relation_loss(student, teacher, temperature=temperature)
    assert float(found) == pytest.approx(temperature**2 * (rows + columns), rel=1e-6)


def test_the_relation_loss_does_not_see_what_keeps_the_relations():
    probabilities = torch.rand(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.double) + 0.5
    probabilities = probabilities / probabilities.sum(1, keepdim=True)
    flatter = 0.5 * probabilities + 0.1  # an affine change, still probabilities
    assert float(relation_loss(flatter.log(), probabilities.log(), temperature=1.0)) == pytest.approx(0, abs=1e-6)


def test_the_relation_loss_has_a_gradient_where_the_student_is_indifferent():
    student = torch.zeros(6, 5, requires_grad=True)
    relation_loss(student, logits()[1].float()).backward()
    assert student.grad is not None
    assert bool(torch.isfinite(student.grad).all())


def test_the_hint_loss_is_the_formula():
    student, teacher = features(2, 3, 4, 5), features(2, 3, 4, 5, seed=1)
    total = sum((a - b) ** 2 for a, b in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True))
    assert float(hint_loss(student, teacher)) == pytest.approx(total / 120, rel=1e-12)


def attention_map(one: np.ndarray) -> np.ndarray:
    """(channels, positions) to (positions,), of length 1."""
    found = np.array([sum(value**2 for value in one[:, place]) for place in range(one.shape[1])])
    return found / np.sqrt((found**2).sum())


def test_the_attention_loss_is_the_formula_for_maps_and_for_tokens():
    student, teacher = features(2, 3, 4, 5), features(2, 7, 4, 5, seed=1)
    total = 0.0
    for ours, theirs in zip(student.numpy(), teacher.numpy(), strict=True):
        total += ((attention_map(ours.reshape(3, 20)) - attention_map(theirs.reshape(7, 20))) ** 2).sum()
    assert float(attention_loss(student, teacher)) == pytest.approx(total / 40, rel=1e-12)
    tokens = [values.flatten(2).transpose(1, 2) for values in (student, teacher)]
    assert float(attention_loss(*tokens)) == pytest.approx(total / 40, rel=1e-12)


def test_attention_does_not_overflow_in_half_precision():
    large = torch.full((1, 2, 2, 2), 1e4, dtype=torch.half)
    assert float(attention_loss(large, large.clone())) == 0


def test_no_gradient_reaches_the_teacher():
    both = torch.randn(6, 5, requires_grad=True)
    student = torch.randn(6, 5, requires_grad=True)
    for value in (
        distillation_loss(student, both, LABELS), decoupled_loss(student, both, LABELS), relation_loss(student, both),
        imitation_loss(student, both), hint_loss(student, both), attention_loss(student[None], both[None]),
    ):  # fmt: skip
        value.backward()
    assert both.grad is None
    assert student.grad is not None


@pytest.mark.parametrize(("temperature", "share"), [(0.0, 0.5), (4.0, 1.5), (4.0, -0.1)])
def test_distillation_out_of_range_is_refused(temperature, share):
    with pytest.raises(ConfigError, match="must be above 0"):
        distillation_loss(*logits(), LABELS, temperature=temperature, teacher_weight=share)


def cut_to(net: nn.Module, widths: int, depths: int) -> tuple[nn.Module, nn.Module]:
    """A model and a small one made from it."""
    model = perturbed(net)
    graph = trace(model, images())
    sizes = {width.name: min(widths, width.size) for width in graph.widths}
    return model, derive(model, graph, Architecture(sizes, {depth.name: depths for depth in graph.depths}))


def found_layers(student: nn.Module, teacher: nn.Module, size: int = 8, **options) -> list[str]:
    return [match.layer for match in match_layers(student, teacher, torch.zeros(1, 3, size, size), **options)]


def test_the_layers_of_a_residual_network_are_its_stages_also_when_blocks_are_gone():
    model = cifar_resnet(20)
    assert found_layers(model, model, 32) == ["layer1", "layer2", "layer3"]
    small = copy.deepcopy(model)
    small.layer1[2] = small.layer2[1] = small.layer2[2] = nn.Identity()  # as `derive` leaves them
    assert found_layers(small, model, 32) == ["layer1", "layer2", "layer3"]


@pytest.mark.parametrize(
    ("name", "size", "wanted"),
    [
        ("resnet50", 64, ["relu", "layer1", "layer2", "layer3", "layer4"]),  # strides inside blocks
        ("mobilenet_v2", 64, ["features.1", "features.3", "features.6", "features.13", "features"]),
        ("vgg11", 64, ["features.1", "features.4", "features.9", "features.14", "features.19"]),  # pools between
        ("densenet121", 64, ["features.relu0", "features.denseblock1", "features.denseblock2",
                             "features.denseblock3", "features"]),
    ],
)  # fmt: skip
def test_the_layers_of_known_networks_are_the_last_of_every_stage(name, size, wanted):
    import torchvision

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = getattr(torchvision.models, name)(weights=None)
    assert found_layers(model, model, size) == wanted


class Tokens(nn.Module):
    """Patches, two layers on tokens, and a classifier."""

    def __init__(self, width: int = 6):
        super().__init__()
        self.patch, self.blocks = nn.Conv2d(3, width, 4, 4), nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean(1))


def test_tokens_have_layers_too():
    assert found_layers(Tokens(4), Tokens(6)) == ["patch", "blocks.1"]
    matches = match_layers(Tokens(4), Tokens(6), torch.zeros(1, 3, 8, 8))
    assert [(match.student, match.teacher) for match in matches] == [
        ((1, 4, 2, 2), (1, 6, 2, 2)),
        ((1, 4, 4), (1, 4, 6)),
    ]
    hints = Hints(matches, seed=0)
    value = hints([torch.randn(2, 4, 2, 2), torch.randn(2, 4, 4)], [torch.randn(2, 6, 2, 2), torch.randn(2, 4, 6)])
    value.backward()
    assert all(parameter.grad is not None for parameter in hints.parameters())


def test_finding_layers_changes_neither_model_nor_its_mode_and_leaves_no_hook():
    teacher, student = cut_to(nets.Residual(), 4, 2)
    student.train()
    student.head.eval()
    before = copy.deepcopy(student.state_dict())
    match_layers(student, teacher, images())
    assert student.training
    assert student.stem[1].training
    assert not student.head.training
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert not any(module._forward_hooks for net in (student, teacher) for module in net.modules())


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["stage.3"], r"no layer 'stage.3' in Residual \(did you mean"),
        ([""], "no layer '' in Residual"),
        (["head"], r"layer 'head' of the student gives \[4, 5\]; name layers that give"),
        (["stage.1.outer"], "no layer 'stage.1.outer' in Residual"),
    ],
)
def test_named_layers_must_exist_in_both_and_have_positions(layers, message):
    teacher, student = cut_to(nets.Residual(), 4, 1)  # stage.1 is an identity in the student
    with pytest.raises(ConfigError, match=message):
        match_layers(student, teacher, images(), layers)


def test_named_layers_must_agree_in_size_and_be_called():
    teacher, student = nets.Plain(), nets.Plain()
    student.first[0].stride = (2, 2)
    with pytest.raises(ConfigError, match=r"gives \[4, 8, 4, 4\] in the student and \[4, 8, 8, 8\] in the teacher"):
        match_layers(student, teacher, images(), ["first"])
    with pytest.raises(ConfigError, match="no feature maps of the same name and size"):
        match_layers(student, teacher, images())
    tapped = nets.Tapped()
    with pytest.raises(ConfigError, match="layer 'stage' of the student is never called"):
        match_layers(tapped, tapped, images(), ["stage"])


def test_layers_can_be_checked_before_there_is_a_student():
    require_layers(nets.Residual(), ["stem", "stage.1"])
    with pytest.raises(ConfigError, match=r"no layer 'stag' in Residual \(did you mean stage"):
        require_layers(nets.Residual(), ["stag"])


def test_recorded_features_are_those_of_the_layers_and_are_handed_out_once():
    teacher, student = cut_to(nets.Residual(), 4, 2)
    with recorded([student, teacher], ["stem", "stage"]) as take:
        outputs = student(images()), teacher(images())
        taken = take()
        with pytest.raises(ModelError, match="layer 'stem' was not called"):
            take()
    for net, answer, (stem, stage) in zip((student, teacher), outputs, taken, strict=True):
        assert torch.equal(stem, net.stem(images()))
        assert torch.equal(net.head(stage), answer)


def test_features_are_recorded_when_a_wrapper_is_called():
    model = perturbed(nets.Residual())
    with recorded([model], ["stage"]) as take:
        nn.DataParallel(model)(images())
        assert torch.equal(take()[0][0], model.stage(model.stem(images())))


def test_no_hook_is_left_when_the_block_raises():
    model = nets.Residual()
    with pytest.raises(RuntimeError, match="stop"), recorded([model], ["stem"]):
        raise RuntimeError("stop")
    assert not any(module._forward_hooks for module in model.modules())


def test_hints_adapt_to_pruned_channels_and_are_the_mean_over_layers():
    teacher, student = cut_to(nets.Residual(), 4, 2)
    matches = match_layers(student, teacher, images(), ["stem", "stage"])
    hints = Hints(matches, seed=3)
    ours, theirs = ([torch.randn(2, size, 4, 4) for _ in range(2)] for size in (4, 8))
    with torch.no_grad():
        pairs = [(one.flatten(2), other.flatten(2)) for one, other in zip(ours, theirs, strict=True)]
        wanted = [hint_loss(net(one), other) for net, (one, other) in zip(hints.regressors, pairs, strict=True)]
        torch.testing.assert_close(hints(ours, theirs), (wanted[0] + wanted[1]) / 2)
    state, again = torch.get_rng_state(), Hints(matches, seed=3)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(again.regressors[0][0].weight, hints.regressors[0][0].weight)
    assert not torch.equal(Hints(matches, seed=4).regressors[0][0].weight, again.regressors[0][0].weight)


def test_hints_can_be_learned_to_the_end():
    torch.manual_seed(0)
    teacher, student = cut_to(nets.Residual(), 4, 2)
    hints = Hints(match_layers(student, teacher, images(), ["stem"]), seed=0)
    ours = torch.randn(8, 4, 4, 4)
    theirs = nn.functional.conv2d(ours, torch.randn(8, 4, 1, 1))
    optimizer = torch.optim.Adam(hints.parameters(), 0.05)
    for _ in range(300):
        optimizer.zero_grad()
        value = hints([ours], [theirs])
        value.backward()
        optimizer.step()
    assert float(value.detach()) < 1e-3 * float(theirs.square().mean())


def test_attention_is_the_sum_over_layers():
    ours, theirs = ([features(2, size, 4, 4, seed=seed) for seed in range(2)] for size in (3, 5))
    wanted = sum(float(attention_loss(*pair)) for pair in zip(ours, theirs, strict=True))
    attention = Attention([Match("stem", (2, 3, 4, 4), (2, 5, 4, 4), 1)] * 2)
    assert float(attention(ours, theirs)) == pytest.approx(wanted)
    assert not list(attention.parameters())


@pytest.mark.parametrize("shape", [(6,), (3, 4), (2, 3, 2)])
@pytest.mark.parametrize("channels", [1, -1])
def test_the_losses_of_features_do_not_depend_on_where_the_channels_stand(shape, channels):
    ours, theirs = (features(2, size, *shape, seed=size) for size in (3, 5))
    first = [Match("stem", tuple(ours.shape), tuple(theirs.shape), 1)]
    moved = [values.movedim(1, channels) for values in (ours, theirs)]
    there = [Match("stem", tuple(moved[0].shape), tuple(moved[1].shape), channels % moved[0].dim())]
    maps = [values.flatten(2).unsqueeze(-1) for values in (ours, theirs)]  # the formula's own form
    assert float(Attention(there)([moved[0]], [moved[1]])) == pytest.approx(float(attention_loss(*maps)), rel=1e-12)
    hints = [Hints(matches, seed=0).double() for matches in (first, there)]
    torch.testing.assert_close(hints[0]([ours], [theirs]), hints[1]([moved[0]], [moved[1]]), rtol=1e-12, atol=0)


@pytest.mark.parametrize("loss", [distillation_loss, decoupled_loss, relation_loss])
def test_half_precision_is_widened_first(loss):
    student, teacher = (values.bfloat16() for values in logits())
    labels = () if loss is relation_loss else (LABELS,)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(student, teacher, *labels)
    torch.testing.assert_close(found, loss(student.float(), teacher.float(), *labels), rtol=0, atol=0)


class ChannelsLast(nn.Module):
    """A convolution, then blocks that keep channels last, as Swin does."""

    def __init__(self, width: int = 8, *, size: int | None = None):
        super().__init__()
        self.stem, self.block, self.head = nn.Conv2d(3, 8, 2, 2), nn.Linear(8, width), nn.Linear(width, 4)
        self.size = size

    def forward(self, inputs):
        assert self.size in (None, inputs.shape[2])
        return self.head(self.block(self.stem(inputs).permute(0, 2, 3, 1)).mean((1, 2)))


@pytest.mark.parametrize("width", [6, 8])
@pytest.mark.parametrize("size", [None, 8])  # as timm's Swin, it may take images of one size alone
def test_channels_may_stand_last_in_feature_maps(width, size):
    models = ChannelsLast(width, size=size), ChannelsLast(size=size)
    wanted = [Match("block", (1, 4, 4, width), (1, 4, 4, 8), 3)]
    assert list(match_layers(*models, torch.zeros(1, 3, 8, 8))) == wanted
    assert list(match_layers(*models, torch.zeros(1, 3, 8, 8), ["block"])) == wanted


def wave_net(width: int) -> nn.Module:
    layers = nn.Conv1d(4, width, 3, padding=1), nn.ReLU(), nn.Conv1d(width, 6, 3, 2, 1), nn.Flatten(), nn.Linear(48, 5)
    return nn.Sequential(*layers)


def volume_net(width: int) -> nn.Module:
    layers = nn.Conv3d(3, width, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(width, 5)
    return nn.Sequential(*layers)


@pytest.mark.parametrize("width", [6, 8])
def test_signals_and_volumes_have_channels_first(width):
    found = match_layers(wave_net(width), wave_net(8), torch.zeros(1, 4, 16))
    assert found == (Match("1", (1, width, 16), (1, 8, 16), 1), Match("2", (1, 6, 8), (1, 6, 8), 1))
    found = match_layers(volume_net(width), volume_net(8), torch.zeros(1, 3, 4, 4, 4))
    assert found == (Match("1", (1, width, 4, 4, 4), (1, 8, 4, 4, 4), 1),)


class BatchSecond(nn.Module):
    """Tokens as (tokens, batch, channels), as `nn.Transformer` has them."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.patch, self.block, self.head = nn.Conv2d(3, 8, 2, 2), nn.Linear(8, width), nn.Linear(width, 4)

    def forward(self, inputs):
        return self.head(self.block(self.patch(inputs).flatten(2).permute(2, 0, 1)).mean(0))


def test_layers_whose_batch_is_not_first_are_left_out_and_refused():
    models = BatchSecond(6), BatchSecond()
    assert found_layers(*models) == ["patch"]
    with pytest.raises(ConfigError, match="layer 'block' gives .16, 1, 6. in the student .* the batch must come first"):
        match_layers(*models, torch.zeros(1, 3, 8, 8), ["block"])


@pytest.mark.parametrize("name", ["swin_t", "convnext_tiny"])
def test_swin_and_convnext_have_a_layer_per_stage(name):
    import torchvision

    model = getattr(torchvision.models, name)(weights=None)
    sizes = [[*match.student[1:]] for match in match_layers(model, model, torch.zeros(1, 3, 64, 64))]
    assert [sorted(size) for size in sizes] == [[16, 16, 96], [8, 8, 192], [4, 4, 384], [2, 2, 768]]
