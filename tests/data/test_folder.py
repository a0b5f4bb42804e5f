import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tas import data
from tas.data import TensorSource
from tas.data.cifar import STATISTICS
from tas.data.streaming import StreamingSource
from tas.errors import DataError

CIFAR10 = os.environ.get("TAS_CIFAR10")


def write_image(path, seed=0, size=(12, 12), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return pixels


@pytest.fixture
def folder(tmp_path):
    """Two classes, six training and three test images each, 12x12."""
    for part, count in (("train", 6), ("test", 3)):
        for label, name in enumerate(("cat", "dog")):
            for index in range(count):
                write_image(tmp_path / part / name / f"{index}.png", seed=100 * label + index)
    return tmp_path


def load(folder, **options):
    return data.load(f"folder:{folder}", workers=0, **options)


def test_images_of_one_size_are_held_in_memory_with_their_exact_pixels(folder):
    source = load(folder)
    assert isinstance(source, TensorSource)
    assert (source.name, source.input_shape, source.num_classes) == (f"folder:{folder}", (3, 12, 12), 2)
    assert (source.padding, source.flip) == (1, True)
    inputs, targets = next(iter(source.test_batches(6)))
    pixels = ((inputs * source.std + source.mean) * 255).round().byte()
    with Image.open(folder / "test" / "dog" / "2.png") as image:
        expected = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    assert torch.equal(pixels[5], expected)
    assert targets.tolist() == [0, 0, 0, 1, 1, 1]


def test_val_is_taken_where_there_is_no_test(folder):
    (folder / "test").rename(folder / "val")
    assert len(load(folder).test_batches(2)) == 3


def test_grey_and_palette_images_become_rgb(folder):
    write_image(folder / "train" / "cat" / "0.png", mode="L")
    with Image.open(folder / "train" / "cat" / "1.png") as image:
        image.convert("P").save(folder / "train" / "cat" / "1.png", transparency=b"\x00\x80")
    assert load(folder).input_shape == (3, 12, 12)


def test_small_images_are_resized_when_asked(folder):
    source = load(folder, image_size=16)
    assert isinstance(source, TensorSource)
    assert source.input_shape == (3, 16, 16)


def test_images_of_different_sizes_are_streamed(folder):
    write_image(folder / "test" / "dog" / "2.png", size=(20, 14))
    source = load(folder, image_size=8)
    assert isinstance(source, StreamingSource)
    assert (source.input_shape, source.num_classes) == ((3, 8, 8), 2)
    assert str(folder) in repr(source)


def test_a_set_too_large_for_the_limit_is_streamed_at_224(folder):
    source = load(folder, memory_limit_mb=0)
    assert isinstance(source, StreamingSource)
    assert source.input_shape == (3, 224, 224)


def test_streamed_test_batches_are_centre_crops_normalised_as_imagenet_in_order(folder):
    for path in sorted((folder / "test").rglob("*.png")):
        write_image(path, size=(8, 8))
    inputs, targets = next(iter(load(folder, memory_limit_mb=0, image_size=7).test_batches(6)))
    with Image.open(folder / "test" / "cat" / "0.png") as image:  # 8 = 7 * 256 / 224, so nothing is resized
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    found = [torch.allclose(inputs[0], expected[:, t : t + 7, s : s + 7], atol=1e-6) for t in (0, 1) for s in (0, 1)]
    assert any(found)
    assert targets.tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("limit", [0, 100])
def test_streamed_and_held_images_are_normalised_by_the_constants_that_are_asked_for(folder, limit):
    batches = [
        next(iter(load(folder, memory_limit_mb=limit, image_size=12, normalization=rows).test_batches(6)))[0]
        for rows in ([[0.0] * 3, [1.0] * 3], [[0.1, 0.2, 0.3], [0.5, 0.25, 0.2]])
    ]
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), torch.tensor([0.5, 0.25, 0.2]).view(3, 1, 1)
    assert 0 <= batches[0].min() < batches[0].max() <= 1
    torch.testing.assert_close(batches[1], (batches[0] - mean) / std)


def test_streamed_training_batches_depend_on_seed_and_epoch_alone(folder):
    source = load(folder, memory_limit_mb=0, image_size=8)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = source.train_batches(4, seed=0, epoch=1)
    batches, again = list(first), list(first)
    other = next(iter(source.train_batches(4, seed=0, epoch=2)))
    assert torch.equal(state, torch.get_rng_state())
    assert [len(inputs) for inputs, _ in batches] == [4, 4, 4]
    for (a, b), (c, d) in zip(batches, again, strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, d)
    assert not torch.equal(batches[0][0], other[0])


def test_worker_processes_stream_the_same_batches(folder):
    alone = load(folder, memory_limit_mb=0, image_size=8)
    helped = data.load(f"folder:{folder}", memory_limit_mb=0, image_size=8, workers=1)
    for (a, b), (c, d) in zip(alone.train_batches(6), helped.train_batches(6), strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, d)


def test_streamed_halves_are_stratified_and_the_last_incomplete_batch_is_dropped(folder):
    source = load(folder, memory_limit_mb=0, image_size=8)
    for half in (0, 1):
        (_, targets), *rest = source.train_batches(6, half=half)
        assert not rest
        assert targets.bincount().tolist() == [3, 3]
        assert len(source.train_batches(4, half=half)) == 1


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match=r"there is no folder .*nowhere; pass one that holds train/"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize(("part", "wanted"), [("train", "train/"), ("test", "test/ or val/")])
def test_a_missing_part_is_named(folder, part, wanted):
    shutil.rmtree(folder / part)
    with pytest.raises(DataError, match=f"has no {wanted}; put one folder per class into"):
        load(folder)


def test_a_part_without_class_folders_is_named(folder):
    shutil.rmtree(folder / "train")
    (folder / "train").mkdir()
    with pytest.raises(DataError, match="train has no class folders"):
        load(folder)


def test_an_empty_class_folder_is_named(folder):
    (folder / "test" / "emu").mkdir()
    with pytest.raises(DataError, match="emu holds no images; add some, or remove the folder"):
        load(folder)


def test_different_classes_in_training_and_test_are_named(folder):
    (folder / "test" / "dog").rename(folder / "test" / "wolf")
    with pytest.raises(DataError, match=r"only train has dog; only test has wolf.*same class folders"):
        load(folder)


@pytest.mark.parametrize("memory_limit_mb", [0, 2048])
def test_a_damaged_image_is_named_in_one_line(folder, memory_limit_mb):
    broken = folder / "test" / "dog" / "1.png"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(DataError, match=r"cannot read the image .*dog/1\.png .*; replace or remove it") as caught:
        list(load(folder, memory_limit_mb=memory_limit_mb, image_size=8).test_batches(2))
    assert "\n" not in str(caught.value)


def test_a_damaged_image_is_named_in_one_line_by_worker_processes_too(folder):
    (folder / "test" / "cat" / "2.png").write_text("no image")
    source = data.load(f"folder:{folder}", memory_limit_mb=0, image_size=8, workers=1)
    with pytest.raises(DataError, match=r"^cannot read the image .*cat/2\.png .*; replace or remove it$"):
        list(source.test_batches(2))


@pytest.mark.skipif(not CIFAR10, reason="set TAS_CIFAR10 to an unpacked folder with train/ and test/")
def test_a_sample_of_cifar10_has_about_the_published_statistics(tmp_path):
    for part, count in (("train", 60), ("test", 2)):
        for label in (Path(CIFAR10) / part).iterdir():
            (tmp_path / part / label.name).mkdir(parents=True)
            for image in sorted(os.listdir(label))[:count]:
                (tmp_path / part / label.name / image).symlink_to((label / image).resolve())
    source = load(tmp_path)
    assert (source.input_shape, source.num_classes, source.padding) == ((3, 32, 32), 10, 4)
    mean, std = STATISTICS["cifar10"]
    torch.testing.assert_close(source.mean.flatten() * 255, torch.tensor(mean), atol=5, rtol=0)
    torch.testing.assert_close(source.std.flatten() * 255, torch.tensor(std), atol=5, rtol=0)


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_pixels_of_more_than_8_bits_are_refused_and_not_made_white(folder, mode):
    pixels = np.full((12, 12), 300, dtype={"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode])
    path = folder / "train" / "cat" / "0.tif"
    Image.fromarray(pixels).save(path)
    with pytest.raises(DataError, match="0.tif has pixels of more than 8 bits .*; convert the images to 8 bits"):
        load(folder)


def test_files_that_torchvision_leaves_out_are_counted(folder):
    for name in ("6.gif", ".hidden"):
        (folder / "train" / "cat" / name).write_bytes(b"")
    with pytest.warns(UserWarning, match=r"1 files of .*train are left out, .*6.gif among them: only .jpg"):
        assert len(load(folder).train_batches(1)) == 12


def test_what_systems_and_editors_hide_beside_the_images_is_left_out(folder):
    seen = load(folder)
    for part in ("train", "test"):
        (folder / part / ".ipynb_checkpoints").mkdir()
        shutil.copy(next((folder / part).rglob("*.png")), folder / part / ".ipynb_checkpoints" / "0.png")
    first = next((folder / "train").rglob("*.png")).parent
    (first / "._0.png").write_bytes(b"macOS keeps attributes here")
    assert repr(load(folder)) == repr(seen)
    assert load(folder).num_classes == seen.num_classes
