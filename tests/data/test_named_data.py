import pickle
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tas import data
from tas.errors import DataError


def test_digits_are_the_1797_images_split_80_to_20_in_every_class():
    source = data.load("digits")
    assert (source.name, source.input_shape, source.num_classes) == ("digits", (3, 16, 16), 10)
    train = torch.cat([targets for _, targets in source.train_batches(1)])
    test = torch.cat([targets for _, targets in source.test_batches(500)])
    assert len(train) + len(test) == 1797
    share = train.bincount() / (train.bincount() + test.bincount())
    assert ((share >= 0.8) & (share < 0.81)).all()


def test_digits_have_three_equal_channels_and_are_not_mirrored():
    source = data.load("digits", image_size=8)
    assert source.input_shape == (3, 8, 8)
    inputs, _ = next(iter(source.test_batches(20)))
    torch.testing.assert_close(inputs[:, 0], inputs[:, 2])
    assert source.flip is False


def test_digits_resized_to_8_are_the_images_of_scikit_learn():
    from sklearn.datasets import load_digits

    source = data.load("digits", image_size=8)
    shown = {tuple((pixels * 255 / 16).round().astype(int)) for pixels in load_digits().data}
    inputs, _ = next(iter(source.test_batches(10)))
    pixels = ((inputs * source.std + source.mean) * 255)[:, 0].flatten(1).round().int()
    assert all(tuple(row.tolist()) in shown for row in pixels)


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(DataError, match=r"pip install tas-pruning\[demo\]"):
        data.load("digits")


@pytest.mark.parametrize(("name", "hint"), [("digit", "digits"), ("cifar-10", "cifar10"), ("CIFAR100", "cifar100")])
def test_an_unknown_name_lists_the_choices_and_guesses(name, hint):
    with pytest.raises(DataError, match=f"did you mean {hint}.*choose one of digits, cifar10, cifar100, folder:PATH"):
        data.load(name)


def test_the_path_of_a_folder_alone_gets_the_hint_to_write_folder(tmp_path):
    with pytest.raises(DataError, match=f"did you mean folder:{tmp_path}"):
        data.load(str(tmp_path))


def test_an_image_size_below_one_is_refused():
    with pytest.raises(DataError, match="sides of 0 pixels"):
        data.load("digits", image_size=0)


@pytest.mark.parametrize(("name", "folder"), [("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python")])
def test_missing_cifar_names_the_folder_and_both_ways_out(tmp_path, name, folder):
    with pytest.raises(DataError, match=rf"{folder}.*--data-dir.*--download"):
        data.load(name, data_dir=tmp_path)


def test_a_failed_download_says_so(tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", no_network)
    with pytest.raises(DataError, match=r"cannot be fetched into .* \(no network\)"):
        data.load("cifar10", data_dir=tmp_path, download=True)


def write_cifar10(folder, monkeypatch):
    """Write a data set of torchvision's format with 20 training images and 4 test images."""
    base = folder / "cifar-10-batches-py"
    base.mkdir()
    rng = np.random.default_rng(0)
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        content = {"data": rng.integers(0, 256, (4, 3072), dtype=np.uint8), "labels": [0, 1, 2, 9]}
        (base / name).write_bytes(pickle.dumps(content))
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {i}" for i in range(10)]}))
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args, **kwargs: True)


def test_cifar10_is_read_from_torchvisions_files(tmp_path, monkeypatch):
    write_cifar10(tmp_path, monkeypatch)
    source = data.load("cifar10", data_dir=tmp_path)
    assert (source.input_shape, source.num_classes, source.padding, source.flip) == ((3, 32, 32), 10, 4, True)
    assert len(source.train_batches(5)) == 4
    inputs, targets = next(iter(source.test_batches(4)))
    pixels = pickle.loads((tmp_path / "cifar-10-batches-py" / "test_batch").read_bytes())["data"]
    found = ((inputs * source.std + source.mean) * 255).round().byte()
    assert torch.equal(found, torch.from_numpy(pixels).view(4, 3, 32, 32))
    assert targets.tolist() == [0, 1, 2, 9]


def test_cifar_can_be_resized(tmp_path, monkeypatch):
    write_cifar10(tmp_path, monkeypatch)
    source = data.load("cifar10", data_dir=tmp_path, image_size=16)
    assert (source.input_shape, source.padding) == ((3, 16, 16), 2)


def test_cifar100_has_its_own_statistics(monkeypatch):
    images = np.zeros((4, 32, 32, 3), dtype=np.uint8)
    fake = SimpleNamespace(data=images, targets=[0, 1, 2, 99], classes=[str(i) for i in range(100)])
    monkeypatch.setattr("torchvision.datasets.CIFAR100", lambda *args, **kwargs: fake)
    source = data.load("cifar100")
    assert source.num_classes == 100
    torch.testing.assert_close(source.mean.flatten() * 255, torch.tensor([129.3, 124.1, 112.4]))


def test_images_are_normalised_by_the_constants_that_are_asked_for(tmp_path):
    own, raw = data.load("digits"), next(iter(data.load("digits").test_batches(5)))[0]
    pixels = raw * own.std + own.mean
    rows = [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]
    named = {"imagenet": [[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], "inception": [[0.5] * 3, [0.5] * 3]}
    for normalization, constants in [*named.items(), (rows, rows)]:
        found, _ = next(iter(data.load("digits", normalization=normalization).test_batches(5)))
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in constants)
        torch.testing.assert_close(found, (pixels - mean) / std)


@pytest.mark.parametrize("normalization", ["own", [[0.5] * 3], [[0.5] * 2, [0.5] * 2], [[0.5] * 3, [0.5, 0.0, 0.5]]])
def test_a_normalization_that_makes_no_sense_names_the_choices(normalization):
    with pytest.raises(DataError, match="it can be imagenet, inception, or three means"):
        data.load("digits", normalization=normalization)
