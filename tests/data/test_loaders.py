import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset, WeightedRandomSampler

from tas.data import LoaderSource, Source, TensorSource, as_source
from tas.errors import DataError


class Numbers(Dataset):
    """A user's data set: sample i is filled with i."""

    def __init__(self, count=12, targets=None, classes=None):
        self.count = count
        if targets is not None:
            self.targets = targets
        if classes is not None:
            self.classes = classes

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return torch.full((1, 2, 2), float(index)), index % 3


class Stream(IterableDataset):
    def __init__(self, count=6):
        self.count = count

    def __len__(self):
        return 6

    def __iter__(self):
        return iter([(torch.zeros(1, 2, 2), 0)] * self.count)


def tensor_dataset(count=12, num_classes=3):
    return TensorDataset(torch.arange(count).float().view(-1, 1, 1, 1), torch.arange(count) % num_classes)


def source_of(dataset, **options):
    options = {"batch_size": 4, "shuffle": True} | options
    return as_source((DataLoader(dataset, **options), DataLoader(tensor_dataset(), batch_size=5)))


def numbers_of(batches):
    return torch.cat([inputs[:, 0, 0, 0] for inputs, _ in batches]).long().tolist()


def test_a_source_is_returned_as_it_is():
    images = torch.rand(4, 3, 4, 4)
    source = TensorSource(images, torch.arange(4), images, torch.arange(4))
    assert as_source(source) is source


def test_a_pair_of_loaders_becomes_a_source():
    source = source_of(tensor_dataset())
    assert isinstance(source, Source)
    assert isinstance(source, LoaderSource)
    assert (source.input_shape, source.num_classes) == ((1, 1, 1), 3)
    assert repr(source) == "LoaderSource(loaders: inputs of 1x1x1, 3 classes)"


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ("digits", r'not \'digits\'; for a named data set pass tas.data.load\("digits"\)'),
        (DataLoader(tensor_dataset()), "not a DataLoader"),
        ((tensor_dataset(), tensor_dataset()), r"not a tuple of 2 \(TensorDataset, TensorDataset\)"),
        (None, "not a NoneType"),
        (TensorSource, "not a type"),
    ],
)
def test_anything_else_is_refused_with_what_is_wanted(wrong, named):
    with pytest.raises(DataError, match=rf"data must be a Source or a pair \(train_loader, test_loader\).*{named}"):
        as_source(wrong)


def test_a_shuffling_loader_is_reproducible_by_seed_and_epoch():
    source = source_of(tensor_dataset(), batch_size=5)
    first = numbers_of(source.train_batches(99, seed=1, epoch=2))
    torch.manual_seed(0)
    assert numbers_of(source.train_batches(99, seed=1, epoch=2)) == first
    assert numbers_of(source.train_batches(99, seed=1, epoch=3)) != first
    assert numbers_of(source.train_batches(99, seed=2, epoch=2)) != first
    assert len(first) == 10  # the loader's own batch size; the incomplete batch is dropped


def test_batches_of_a_loader_can_be_run_through_again():
    batches = source_of(tensor_dataset()).train_batches(4)
    assert numbers_of(batches) == numbers_of(batches)


def test_a_loader_that_does_not_shuffle_is_run_as_it_is():
    assert numbers_of(source_of(tensor_dataset(), shuffle=False).train_batches(4)) == list(range(12))


def test_a_loader_with_its_own_sampler_is_run_as_it_is():
    weights = [1.0] + [0.0] * 11
    source = source_of(tensor_dataset(), shuffle=False, sampler=WeightedRandomSampler(weights, 8))
    assert set(numbers_of(source.train_batches(4))) == {0}


def test_test_batches_are_the_loaders():
    batches = source_of(tensor_dataset()).test_batches(99)
    assert len(batches) == 3
    assert numbers_of(batches) == list(range(12))


@pytest.mark.parametrize(
    "dataset",
    [
        tensor_dataset(),
        Numbers(targets=[index % 3 for index in range(12)]),
        Subset(Numbers(24, targets=[index % 3 for index in range(24)]), range(12)),
    ],
)
def test_halves_are_stratified_by_the_labels_the_data_set_tells(dataset):
    source = source_of(dataset)
    assert source.num_classes == 3
    members = [numbers_of(source.train_batches(99, half=half)) for half in (0, 1)]
    for member in members:
        assert len(set(member)) == 4  # 6 samples in batches of 4: the incomplete one is dropped
    whole = source_of(dataset, batch_size=6)
    members = [numbers_of(whole.train_batches(99, half=half)) for half in (0, 1)]
    assert sorted(members[0] + members[1]) == list(range(12))
    assert all(torch.tensor(member).remainder(3).bincount().tolist() == [2, 2, 2] for member in members)


def test_without_known_labels_halves_are_a_fixed_shuffle_of_equal_size():
    first, second = (source_of(Numbers(), batch_size=6) for _ in range(2))
    assert first.num_classes is None
    members = [sorted(numbers_of(first.train_batches(6, half=half))) for half in (0, 1)]
    assert [len(member) for member in members] == [6, 6]
    assert sorted(members[0] + members[1]) == list(range(12))
    assert members[0] == sorted(numbers_of(second.train_batches(6, seed=9, epoch=9, half=0)))


def test_halves_keep_the_collate_function():
    def collate(samples):
        return torch.stack([inputs for inputs, _ in samples]) + 100, torch.tensor([label for _, label in samples])

    assert min(numbers_of(source_of(Numbers(), collate_fn=collate).train_batches(4, half=0))) >= 100


def test_halves_take_the_batch_size_of_a_batch_sampler():
    sampler = torch.utils.data.BatchSampler(range(12), batch_size=3, drop_last=False)
    loader = DataLoader(tensor_dataset(), batch_sampler=sampler)
    source = LoaderSource(loader, loader)
    assert [len(inputs) for inputs, _ in source.train_batches(99, half=1)] == [3, 3]
    assert numbers_of(source.train_batches(99)) == list(range(12))


def test_the_number_of_classes_is_that_of_the_data_sets_list():
    assert source_of(Numbers(targets=[0] * 12, classes=["a", "b", "c", "d"])).num_classes == 4


def test_targets_that_are_no_class_indices_give_no_number_of_classes():
    regression = TensorDataset(torch.zeros(6, 1, 2, 2), torch.rand(6))
    assert source_of(regression).num_classes is None
    assert source_of(Numbers(targets=[{"boxes": 1}] * 12)).num_classes is None


def test_looking_at_the_loaders_leaves_the_global_random_state_alone():
    class Noisy(Numbers):
        def __getitem__(self, index):
            return torch.rand(1, 2, 2), 0

    state = torch.get_rng_state()
    assert source_of(Noisy()).input_shape == (1, 2, 2)
    assert torch.equal(state, torch.get_rng_state())


def test_an_iterable_data_set_cannot_be_halved_and_says_what_to_pass():
    source = source_of(Stream(), shuffle=False)
    assert len(list(source.train_batches(4))) == len(source.train_batches(4)) == 2
    with pytest.raises(DataError, match=r"Stream is an IterableDataset.*pass a map-style data set, or your own Source"):
        source.train_batches(4, half=0)


def test_an_iterable_data_set_without_a_length_says_what_to_add():
    class Endless(IterableDataset):
        def __iter__(self):
            return iter(())

    with pytest.raises(DataError, match="the number of training batches is unknown; give Endless a __len__"):
        source_of(Endless(), shuffle=False)


def test_loaders_without_samples_are_refused():
    with pytest.raises(DataError, match="training loader's data set is empty"):
        source_of(tensor_dataset(0), shuffle=False)

    with pytest.raises(DataError, match="training loader yields nothing"):
        source_of(Stream(0), shuffle=False)


def test_a_half_of_one_sample_is_refused():
    with pytest.raises(DataError, match="half 1 of the training set is empty"):
        source_of(tensor_dataset(1)).train_batches(4, half=1)


def test_batches_that_are_no_pair_of_tensors_are_refused():
    with pytest.raises(
        DataError, match=r"must yield \(inputs, targets\), two tensors, but it yields a list of Tensor;"
    ):
        source_of(TensorDataset(torch.zeros(6, 1, 2, 2)))


class Named(Dataset):
    """Samples as mappings, as Hugging Face's data sets give them."""

    def __init__(self, *names: str):
        self.names = names

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return {name: torch.tensor([index]) if place else index for place, name in enumerate(self.names)}


@pytest.mark.parametrize("target", ["labels", "label", "targets", "target"])
@pytest.mark.parametrize("half", [None, 0])
def test_a_batch_with_names_is_told_apart_by_them(target, half):
    source = source_of(Named(target, "pixel_values"))
    inputs, targets = next(iter(source.train_batches(4, half=half)))
    assert (inputs.shape, targets.shape) == ((4, 1), (4,))
    assert inputs[:, 0].tolist() == targets.tolist()
    assert source.input_shape == (1,)


@pytest.mark.parametrize(
    "names", [("labels",), ("labels", "pixel_values", "pixel_mask"), ("a", "b"), ("label", "labels")]
)
def test_a_batch_whose_names_do_not_tell_is_refused(names):
    with pytest.raises(DataError, match=f"but it yields a dict of {', '.join(names)}; change its collate_fn"):
        source_of(Named(*names))


def test_labels_beyond_the_data_sets_classes_are_refused():
    with pytest.raises(DataError, match="labels run from 0 to 2, but 2 classes allow 0 to 1"):
        source_of(Numbers(targets=[0] * 12, classes=["a", "b"]))


def test_a_third_half_of_a_loader_is_refused():
    with pytest.raises(DataError, match="no half 'a'"):
        source_of(tensor_dataset()).train_batches(4, half="a")


@pytest.mark.parametrize("part", ["training", "test"])
def test_a_loader_that_drops_its_only_batch_is_refused(part):
    whole, dropping = DataLoader(tensor_dataset(), 4), DataLoader(tensor_dataset(3), 4, drop_last=True)
    with pytest.raises(DataError, match=f"the {part} loader yields no batch: 3 samples .* drop_last=False"):
        LoaderSource(*((dropping, whole) if part == "training" else (whole, dropping)))


def test_a_shuffling_loader_smaller_than_its_batch_is_rebuilt_without_dropping():
    dropping = DataLoader(tensor_dataset(3), 4, drop_last=True, shuffle=True)
    source = LoaderSource(dropping, DataLoader(tensor_dataset(), 4))
    assert [len(targets) for _, targets in source.train_batches(4)] == [3]


class Coarse(Numbers):
    """Twelve classes that a transform maps to three, as CIFAR-100's superclasses."""

    def __init__(self):
        super().__init__(targets=list(range(12)), classes=[str(index) for index in range(12)])
        self.target_transform = lambda label: label % 3


def test_labels_that_a_transform_changes_are_not_taken_for_the_classes():
    assert source_of(Coarse()).num_classes is None
    assert source_of(Subset(Coarse(), range(6))).num_classes is None
    assert source_of(Numbers(targets=list(range(12)))).num_classes == 12


def test_halves_of_labels_that_come_once_are_any_halves():
    source = source_of(Numbers(targets=list(range(12))))
    halves = [numbers_of(source.train_batches(4, half=half)) for half in (0, 1)]
    assert sorted(map(len, halves)) == [4, 4]  # whole batches of six samples each
    assert not set(halves[0]) & set(halves[1])


def test_labels_to_ignore_are_no_classes():
    assert source_of(Numbers(targets=[0, 1, 2, -100] * 3)).num_classes == 3
    with pytest.raises(DataError, match="labels run from -1 to 2.*targets that are no classes go in as floats"):
        source_of(Numbers(targets=[0, 1, 2, -1] * 3))


class Endless(torch.utils.data.Sampler):
    def __iter__(self):
        return iter(range(12))


def test_a_sampler_without_a_length_is_refused():
    with pytest.raises(DataError, match="give the loader's sampler a __len__"):
        source_of(tensor_dataset(), shuffle=None, sampler=Endless())


def test_batches_that_are_samples_cannot_be_halved():
    batches = torch.utils.data.BatchSampler(torch.utils.data.SequentialSampler(tensor_dataset()), 4, drop_last=False)
    source = source_of(tensor_dataset(), shuffle=None, batch_size=None, sampler=batches)
    assert numbers_of(source.train_batches(4)) == list(range(12))
    with pytest.raises(DataError, match="puts no batches together .*give the loader a batch_size"):
        source.train_batches(4, half=0)


def test_a_sampler_that_asks_for_the_epoch_is_told():
    sampler = torch.utils.data.DistributedSampler(tensor_dataset(), num_replicas=1, rank=0, shuffle=True)
    source = source_of(tensor_dataset(), shuffle=None, sampler=sampler)
    first, second, again = (numbers_of(source.train_batches(4, epoch=epoch)) for epoch in (0, 1, 0))
    assert first == again != second
