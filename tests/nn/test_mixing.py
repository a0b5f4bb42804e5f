import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tas.graph import Run, positions_of
from tas.nn.mixing import (
    PADDING,
    CompactAxis,
    CompactWidth,
    DenseAxis,
    DenseWidth,
    gumbel_weights,
    interpolation_matrix,
)


@pytest.mark.parametrize(("sources", "targets"), [(1, 1), (1, 7), (4, 6), (5, 5), (6, 16), (11, 12), (19, 64)])
def test_interpolation_is_adaptive_average_pooling_over_channels(sources, targets):
    x = torch.randn(3, sources, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrix = interpolation_matrix(sources, targets, targets, sources, dtype=torch.float64)
    torch.testing.assert_close(x @ matrix.T, F.adaptive_avg_pool1d(x[None], targets)[0], rtol=1e-12, atol=1e-12)
    assert (matrix > 0).sum(1).max() <= 2


def test_interpolation_with_tensor_sizes_is_padded_with_zeros():
    matrix = interpolation_matrix(torch.tensor(4), torch.tensor(6), 9, 8, dtype=torch.float64)
    assert torch.equal(matrix[:6, :4], interpolation_matrix(4, 6, 6, 4, dtype=torch.float64))
    assert not matrix[6:].any()
    assert not matrix[:, 4:].any()


def test_compact_and_dense_mixtures_are_the_same_matrix():
    draw = torch.Generator().manual_seed(0)
    scales, shifts = torch.randn(2, 3, 8, dtype=torch.float64, generator=draw)
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
    compact, dense = CompactWidth((3, 5, 8)), DenseWidth((3, 5, 8), 8)
    compact.draw([1, 0], weights)
    dense.draw(torch.tensor([1, 0]), weights)
    one, shift = compact.mixture(scales, shifts, weights)
    other, moved = dense.mixture(scales, shifts, weights)
    assert one.shape == (5, 5)
    torch.testing.assert_close(other[:5, :5], one)
    torch.testing.assert_close(moved[:5], shift)
    assert not other[5:].any()
    assert not other[:, 5:].any()
    assert not moved[5:].any()


@pytest.mark.parametrize("copies", [(), (2,)])
def test_without_interpolation_the_mixture_is_an_affine_in_both_executions(copies):
    draw = torch.Generator().manual_seed(0)
    scales, shifts = torch.randn(2, 3, *copies, 8, dtype=torch.float64, generator=draw)
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
    compact, dense = CompactWidth((3, 5, 8), "none"), DenseWidth((3, 5, 8), 8, "none")
    compact.draw([1, 0], weights)
    dense.draw(torch.tensor([1, 0]), weights)
    scale, shift = compact.affine(scales, shifts, weights)
    expected = [0.3 * values[1] + 0.7 * F.pad(values[0, ..., :3], (0, 5)) for values in (scales, shifts)]
    torch.testing.assert_close(scale, expected[0][..., :5])
    torch.testing.assert_close(shift, expected[1][..., :5])
    for found, wanted in zip(dense.affine(scales, shifts, weights), (scale, shift), strict=True):
        torch.testing.assert_close(found, F.pad(wanted, (0, 3)))
    assert all(map(torch.equal, compact.mixture(scales, shifts, weights), (scale, shift)))  # not the zeros around it
    ones, nothing = compact.affine(None, None, weights)
    torch.testing.assert_close(ones, torch.tensor([1, 1, 1, 0.3, 0.3], dtype=torch.float64))
    assert nothing is None


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_a_mixture_made_without_gradients_does_not_hide_them_from_the_next(without):
    width, weights = CompactWidth((3, 5), "none"), torch.tensor([0.3, 0.7], requires_grad=True)
    width.draw([0, 1], weights)
    scales = torch.arange(10.0).view(2, 5)
    with without():
        before, _ = width.affine(scales, None, weights)
    after, _ = width.affine(scales, None, weights)
    torch.testing.assert_close(after, before)
    (gradient,) = torch.autograd.grad(after.sum(), weights)
    torch.testing.assert_close(gradient, torch.tensor([3.0, 35.0]))
    assert width.affine(scales.double(), None, scales.double())[0].dtype == torch.float64


def test_an_axis_takes_and_puts_exactly_the_positions_that_are_kept():
    layout = (Run("a", 0, 4, 2), Run(None, 0, 1), Run("b", 0, 3))
    widths = {"a": CompactWidth((2, 4)), "b": CompactWidth((1, 3))}
    twins = {"a": DenseWidth((2, 4), 4), "b": DenseWidth((1, 3), 3)}
    axis, dense, values = CompactAxis(layout, widths), DenseAxis(layout, twins), torch.arange(1.0, 13)
    for a in (0, 1):
        for b in (0, 1):
            for pair in (widths, twins):
                pair["a"].pick(a), pair["b"].pick(b)
            kept = positions_of(layout, {"a": (2, 4)[a], "b": (1, 3)[b]})
            assert torch.equal(axis.take(values, 0), values[kept])
            masked = dense.mask(values, 0)
            assert torch.equal(masked[kept], values[kept])
            assert masked.sum() == values[kept].sum()
            whole = torch.zeros(12)
            axis.put(whole, values[kept])
            assert torch.equal(whole, masked)


def test_a_prefix_is_taken_as_a_view():
    width = CompactWidth((2, 4))
    width.pick(0)
    values = torch.arange(4.0)
    assert CompactAxis((Run("a", 0, 4),), {"a": width}).take(values, 0).data_ptr() == values.data_ptr()


def draws(logits: torch.Tensor, fragments: int, temperature: float, count: int, seed: int = 0):
    logs = logits.log_softmax(0).expand(count, -1)
    return gumbel_weights(logs, fragments, temperature=temperature, generator=torch.Generator().manual_seed(seed))


def test_the_first_draw_follows_the_gumbel_softmax():
    count, temperature = 40000, 0.7
    logits = torch.tensor([0.5, -0.3, 1.2, 0.0])
    chosen, _ = draws(logits, 1, temperature, count)
    found = np.bincount(chosen[:, 0].numpy(), minlength=4)
    # the chance of j is the mean over Gumbel noise of softmax((log p + noise) / temperature), here by numpy
    noise = np.random.default_rng(1).gumbel(size=(400000, 4))
    perturbed = (logits.log_softmax(0).numpy() + noise) / temperature
    chances = np.exp(perturbed - perturbed.max(1, keepdims=True))
    wanted = count * (chances / chances.sum(1, keepdims=True)).mean(0)
    assert ((found - wanted) ** 2 / wanted).sum() < 20  # 3 degrees of freedom: one in five thousand is above


def test_with_a_low_temperature_draws_follow_the_probabilities_themselves():
    count = 40000
    probabilities = torch.tensor([0.1, 0.2, 0.3, 0.4])
    chosen, _ = draws(probabilities.log(), 1, 1e-3, count)
    found, wanted = np.bincount(chosen[:, 0].numpy(), minlength=4), count * probabilities.numpy()
    assert ((found - wanted) ** 2 / wanted).sum() < 20


@pytest.mark.parametrize("fragments", [1, 2, 3, 8])
def test_draws_are_different_and_their_weights_sum_to_one(fragments):
    chosen, weights = draws(torch.tensor([0.5, -0.3, 1.2, 0.0]), fragments, 1.0, 500)
    assert chosen.shape == weights.shape == (500, min(fragments, 4))
    assert all(len(set(row)) == len(row) for row in chosen.tolist())
    torch.testing.assert_close(weights.sum(1), torch.ones(500))


def test_weights_are_the_softmax_of_the_chosen_perturbed_logits():
    logs = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).log_softmax(1)
    for temperature in (0.5, 3.0):
        generator = torch.Generator().manual_seed(1)
        noise = -torch.empty_like(logs).exponential_(generator=generator).log()
        chosen, weights = gumbel_weights(logs, 2, temperature=temperature, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(weights, ((logs + noise) / temperature).gather(1, chosen).softmax(1))


def test_padding_is_never_mixed_in():
    logits = torch.randn(300, 5, generator=torch.Generator().manual_seed(0))
    logits[:, 2:] = PADDING
    for temperature in (0.1, 1.0, 10.0):
        chosen, weights = gumbel_weights(
            logits.log_softmax(1), 3, temperature=temperature, generator=torch.Generator().manual_seed(0)
        )
        assert {tuple(sorted(row)) for row in chosen[:, :2].tolist()} == {(0, 1)}  # real ones come first
        assert not weights[:, 2].any()
        torch.testing.assert_close(weights.sum(1), torch.ones(300))


def test_the_same_seed_gives_the_same_draw():
    one, other, third = (draws(torch.zeros(8), 2, 1.0, 50, seed) for seed in (3, 3, 4))
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[1], other[1])
    assert not torch.equal(one[0], third[0])


def test_weights_carry_a_gradient_and_indices_do_not():
    logits = torch.zeros(3, 4, requires_grad=True)
    chosen, weights = gumbel_weights(
        logits.log_softmax(1), 2, temperature=1.0, generator=torch.Generator().manual_seed(0)
    )
    weights[:, 0].sum().backward()
    assert not chosen.is_floating_point()
    assert logits.grad is not None
    reached = torch.zeros(3, 4, dtype=torch.bool).scatter(1, chosen, True)
    assert (logits.grad[reached].abs() > 1e-6).all()
    assert (logits.grad[~reached].abs() < 1e-6).all()


@pytest.mark.parametrize("how", ["average", "linear"])
@pytest.mark.parametrize(("sources", "targets"), [(38, 64), (307, 512)])
def test_half_precision_mixes_by_the_same_matrix(how, sources, targets):
    exact, half = (
        interpolation_matrix(sources, targets, targets, sources, how=how, dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, rtol=0, atol=0.005)
