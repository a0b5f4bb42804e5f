"""Shares of batches: together the whole batch, each image read by one process."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from toys import tiny_source

from tas.data import LoaderSource, TensorSource
from tas.data.folder import read_image
from tas.data.sharding import ShardedSource, Share
from tas.data.streaming import StreamingSource
from tas.errors import DataError


def augmented() -> TensorSource:
    images = torch.rand(50, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(50) % 4
    return TensorSource(images, labels, images, labels, padding=2, flip=True)


def loader_source(**options) -> LoaderSource:
    dataset = TensorDataset(torch.arange(100.0).view(50, 2), torch.arange(50) % 4)
    return LoaderSource(DataLoader(dataset, **options), DataLoader(dataset))


class Own:
    """A user's own source, which knows nothing of shares."""

    name, num_classes, input_shape = "own", 4, (3, 8, 8)

    def train_batches(self, batch_size, **options):
        return list(tiny_source().train_batches(batch_size, **options))

    def test_batches(self, batch_size, *, device="cpu"):
        return tiny_source().test_batches(batch_size, device=device)


class Stream(IterableDataset):
    def __len__(self):
        return 24

    def __iter__(self):
        return iter([(torch.tensor([float(i)]), torch.tensor(i % 4)) for i in range(24)])


SOURCES = {
    "tensors": augmented(),
    "shuffling loader": loader_source(batch_size=12, shuffle=True),
    "worker processes": loader_source(batch_size=12, shuffle=True, num_workers=2),
    "loader with a sampler": loader_source(batch_size=12, sampler=torch.utils.data.SequentialSampler(range(50))),
    "iterable": LoaderSource(DataLoader(Stream(), batch_size=12), DataLoader(Stream(), batch_size=12)),
    "own": Own(),
}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_shares_together_are_the_batches_of_one_process(source):
    whole = list(source.train_batches(12, seed=1, epoch=2))
    shares = [list(ShardedSource(source, Share(i, 3)).train_batches(12, seed=1, epoch=2)) for i in range(3)]
    full = [batch for batch in whole if len(batch[0]) == 12]
    for place, (inputs, targets) in enumerate(full):
        torch.testing.assert_close(torch.cat([share[place][0] for share in shares]), inputs, rtol=0, atol=0)
        assert torch.cat([share[place][1] for share in shares]).equal(targets)
    assert len(full) >= 2


def test_a_streamed_image_is_read_by_one_process_alone(tmp_path):
    files = []
    for index in range(16):
        files.append((str(tmp_path / f"{index}.png"), index % 2))
        Image.fromarray(np.full((8, 8, 3), index, dtype=np.uint8)).save(files[-1][0])
    read: list[list[str]] = [[], []]

    def source(place: int) -> StreamingSource:
        def reader(path: str) -> Image.Image:
            read[place].append(path)
            return read_image(path)

        return StreamingSource(files, files, name="stream", num_classes=2, read=reader, image_size=8)

    whole = list(source(0).train_batches(8, half=None))
    read[0].clear()
    shares = [list(ShardedSource(source(i), Share(i, 2)).train_batches(8)) for i in range(2)]
    assert [len(paths) for paths in read] == [8, 8]
    assert sorted(read[0] + read[1]) == sorted(path for path, _ in files)
    for place, (inputs, _) in enumerate(whole):
        assert torch.cat([share[place][0] for share in shares]).equal(inputs)


def test_what_cannot_be_shared_equally_is_left_out_by_all():
    source = loader_source(batch_size=12, sampler=torch.utils.data.SequentialSampler(range(37)))
    sizes = [[len(x) for x, _ in ShardedSource(source, Share(i, 4)).train_batches(1)] for i in range(4)]
    assert sizes == [[3, 3, 3]] * 4  # the last batch has one sample


@pytest.mark.parametrize("source", [augmented(), loader_source(batch_size=8, shuffle=True)], ids=["tensors", "loader"])
def test_a_batch_size_that_is_no_multiple_of_the_processes_is_refused(source):
    with pytest.raises(DataError, match=r"batches of 8 cannot be split evenly over 3 processes.*a multiple of 3"):
        ShardedSource(source, Share(0, 3)).train_batches(8)


def test_test_batches_are_whole():
    shared = ShardedSource(augmented(), Share(1, 2))
    assert sum(len(inputs) for inputs, _ in shared.test_batches(16)) == 50
