"""Images for one forward pass: so many, fewer of large ones, all of one size."""

import pytest
import torch
from toys import tiny_source

from tas.data.source import first_images
from tas.errors import DataError


def test_large_images_are_fewer(monkeypatch):
    monkeypatch.setattr("tas.data.source.VALUES", 3 * 8 * 8 * 100)
    sizes = [len(first_images(tiny_source(3000, size=size), 1024, seed=0)) for size in (8, 16, 4, 64)]
    assert sizes == [100, 25, 400, 16]
    assert [len(first_images(tiny_source(300), most, seed=0)) for most in (10, 50)] == [10, 50]


def test_of_images_of_several_sizes_those_like_the_first_are_taken(monkeypatch):
    source = tiny_source()
    batches = [(torch.rand(8, 3, size, size), torch.zeros(8)) for size in (8, 12, 8, 16)]
    monkeypatch.setattr(source, "train_batches", lambda *_, **__: iter(batches))
    assert torch.equal(first_images(source, 1024, seed=0), torch.cat([batches[0][0], batches[2][0]]))
    monkeypatch.setattr(source, "train_batches", lambda *_, **__: iter(()))
    with pytest.raises(DataError, match="quarters gives no training batch"):
        first_images(source, 1024, seed=0)


def test_a_half_gives_no_image_of_the_other():
    source = tiny_source(200)
    first, second = (first_images(source, 64, seed=3, half=half) for half in (0, 1))
    assert torch.equal(first, first_images(source, 64, seed=3, half=0))
    assert not (first[:, None] == second[None]).flatten(2).all(2).any()
