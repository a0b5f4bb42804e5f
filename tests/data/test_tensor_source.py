import pytest
import torch
import torch.nn.functional as F

from tas.data import Source, TensorSource
from tas.data.tensors import channel_statistics
from tas.errors import DataError

RAW = {"mean": [0.0] * 3, "std": [1.0] * 3}  # leaves float images as they are


def make_images(count=24, size=8, dtype=torch.uint8):
    images = torch.randint(256, (count, 3, size, size), generator=torch.Generator().manual_seed(0))
    return images.to(dtype)


def make_source(count=24, **options):
    labels = torch.arange(count) % 4
    return TensorSource(make_images(count), labels, make_images(10), torch.arange(10) % 4, **options)


def epoch_of(source, batch_size=6, **options):
    batches = list(source.train_batches(batch_size, **options))
    return torch.cat([inputs for inputs, _ in batches]), torch.cat([targets for _, targets in batches])


def numbered_source(count=21, **options):
    """Every image is filled with its own number, so that batches tell which images they hold."""
    images = torch.arange(count).float()[:, None, None, None].expand(count, 3, 4, 4).contiguous()
    return TensorSource(images, torch.arange(count) % 3, images, torch.arange(count) % 3, **RAW, **options)


def test_it_is_a_source_with_the_shape_and_classes_of_its_tensors():
    source = make_source()
    assert isinstance(source, Source)
    assert (source.input_shape, source.num_classes) == ((3, 8, 8), 4)
    assert repr(source) == "TensorSource(tensors: 24 training and 10 test images of 3x8x8, 4 classes)"


def test_batches_are_normalised_float32_with_int64_labels():
    inputs, targets = epoch_of(make_source())
    assert (inputs.dtype, targets.dtype) == (torch.float32, torch.int64)
    torch.testing.assert_close(inputs.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(inputs.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-5, rtol=0)


def test_given_mean_and_std_are_used_on_the_scale_from_0_to_1():
    source = make_source(mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.4])
    inputs, _ = next(iter(source.test_batches(10)))
    expected = (make_images(10) / 255 - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor(
        [0.2, 0.3, 0.4]
    ).view(3, 1, 1)
    torch.testing.assert_close(inputs, expected)


def test_channel_statistics_are_those_of_all_pixels_at_once():
    images = make_images(1500, size=4)
    mean, std = channel_statistics(images)
    values = images.double() / 255
    torch.testing.assert_close(torch.tensor(mean).double(), values.mean((0, 2, 3)), atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.tensor(std).double(), values.std((0, 2, 3), correction=0), atol=1e-6, rtol=0)


def test_a_constant_channel_does_not_divide_by_zero():
    source = TensorSource(torch.zeros(4, 1, 2, 2), torch.arange(4), torch.zeros(4, 1, 2, 2), torch.arange(4))
    assert all(inputs.isfinite().all() for inputs, _ in source.train_batches(2))


def test_an_epoch_holds_every_sample_once_with_its_own_label():
    inputs, targets = epoch_of(numbered_source(), batch_size=7)
    numbers = inputs[:, 0, 0, 0].long()
    assert sorted(numbers.tolist()) == list(range(21))
    assert torch.equal(numbers % 3, targets)


def test_the_last_incomplete_batch_is_dropped_unless_it_is_the_only_one():
    source = numbered_source(21)
    assert [len(inputs) for inputs, _ in source.train_batches(8)] == [8, 8]
    assert len(source.train_batches(8)) == 2
    assert [len(inputs) for inputs, _ in source.train_batches(64)] == [21]
    assert len(source.train_batches(64)) == 1


def test_test_batches_hold_every_sample_in_order_without_augmentation():
    source = numbered_source(21, padding=1, flip=True)
    batches = source.test_batches(8)
    assert (len(batches), [len(inputs) for inputs, _ in batches]) == (3, [8, 8, 5])
    assert torch.cat([inputs[:, 0, 0, 0] for inputs, _ in batches]).tolist() == list(range(21))


def test_the_same_seed_epoch_and_half_give_the_same_batches():
    first, second = (make_source(padding=2, flip=True) for _ in range(2))
    for options in ({"seed": 1, "epoch": 3}, {"seed": -5, "epoch": 0, "half": 1}):
        for a, b in zip(epoch_of(first, **options), epoch_of(second, **options), strict=True):
            assert torch.equal(a, b)


def test_batches_can_be_run_through_again():
    batches = make_source(padding=2, flip=True).train_batches(6)
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(batches, batches, strict=True))


def test_another_seed_or_epoch_gives_another_order():
    source = numbered_source()
    orders = [epoch_of(source, 7, seed=s, epoch=e)[0][:, 0, 0, 0] for s, e in ((0, 0), (1, 0), (0, 1))]
    assert not torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])
    assert not torch.equal(orders[1], orders[2])


def test_the_global_random_state_is_neither_read_nor_changed():
    source = make_source(padding=2, flip=True)
    expected, _ = epoch_of(source)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    found, _ = epoch_of(source)
    assert torch.equal(found, expected)
    assert torch.equal(state, torch.get_rng_state())


def test_the_halves_are_stratified_disjoint_and_together_the_whole_set():
    source = numbered_source(21)  # 7 of each of 3 classes
    halves = [epoch_of(source, 100, half=half) for half in (0, 1)]
    members = [set(inputs[:, 0, 0, 0].long().tolist()) for inputs, _ in halves]
    assert members[0] | members[1] == set(range(21))
    assert not members[0] & members[1]
    assert [targets.bincount().tolist() for _, targets in halves] == [[4, 4, 4], [3, 3, 3]]


def test_every_augmented_image_is_a_crop_of_the_zero_padded_image_or_of_its_mirror():
    images = torch.rand(40, 3, 6, 5, generator=torch.Generator().manual_seed(0)) + 1
    labels = torch.arange(40)
    source = TensorSource(images, labels, images, labels, padding=2, flip=True, **RAW)
    inputs, targets = epoch_of(source, 40)
    found = []
    for crop, label in zip(inputs, targets, strict=True):
        padded = F.pad(images[label], (2, 2, 2, 2))
        options = [
            (top, left, mirror)
            for top in range(5)
            for left in range(5)
            for mirror in (False, True)
            if torch.equal(crop.flip(2) if mirror else crop, padded[:, top : top + 6, left : left + 5])
        ]
        assert len(options) == 1
        found += options
    for values in zip(*found, strict=True):  # tops, lefts and mirrors all vary
        assert len(set(values)) > 1


def test_without_flip_nothing_is_mirrored_and_without_padding_nothing_moves():
    images = make_images(12).float()
    labels = torch.arange(12)
    source = TensorSource(images, labels, images, labels, **RAW)
    inputs, targets = epoch_of(source, 12)
    assert torch.equal(inputs, images[targets])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_images": torch.zeros(0, 3, 4, 4), "train_labels": torch.zeros(0).long()}, "no training images"),
        ({"test_images": torch.zeros(0, 3, 4, 4), "test_labels": torch.zeros(0).long()}, "no test images"),
        ({"train_labels": torch.zeros(5).long()}, "6 training images but 5 labels; pass one label per image"),
        ({"train_labels": torch.full((6,), -1)}, "labels run from -1 to -1"),
        ({"test_labels": torch.full((6,), 3), "num_classes": 3}, "3 classes allow 0 to 2; number the classes from 0"),
        ({"train_labels": torch.zeros(6)}, "pass one integer per image"),
        ({"train_images": torch.zeros(6, 4, 4)}, r"not \(samples, channels, height, width\)"),
        ({"test_images": torch.zeros(6, 3, 5, 5)}, "bring them to one shape and dtype"),
        ({"mean": [0.5], "std": [0.5]}, "mean and std need 3 values each"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_with_the_way_out(change, message):
    labels = torch.arange(6) % 3
    good = {"train_images": torch.rand(6, 3, 4, 4), "train_labels": labels}
    good |= {"test_images": torch.rand(6, 3, 4, 4), "test_labels": labels}
    with pytest.raises(DataError, match=message):
        TensorSource(**good | change)


def test_a_third_half_is_refused():
    with pytest.raises(DataError, match="no half 2"):
        make_source().train_batches(4, half=2)


def test_an_empty_half_is_refused():
    images = torch.rand(2, 3, 4, 4)
    source = TensorSource(images, torch.arange(2), images, torch.arange(2))
    with pytest.raises(DataError, match="half 1 of the training set is empty; it needs two images per class"):
        source.train_batches(4, half=1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_gets_the_batches_of_the_cpu():
    source = make_source(padding=2, flip=True)
    for (a, b), (c, d) in zip(source.train_batches(6), source.train_batches(6, device="cuda"), strict=True):
        assert c.is_cuda
        torch.testing.assert_close(a, c.cpu())
        assert torch.equal(b, d.cpu())
