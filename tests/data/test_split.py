import torch

from tas.data.split import stratified_split

LABELS = torch.tensor([0] * 7 + [1] * 10 + [2] * 1)[torch.randperm(18, generator=torch.Generator().manual_seed(3))]


def test_the_parts_are_disjoint_and_together_everything():
    first, second = stratified_split(LABELS)
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(18))


def test_every_class_is_halved_and_the_spare_sample_goes_to_the_first_part():
    first, second = stratified_split(LABELS)
    assert LABELS[first].bincount(minlength=3).tolist() == [4, 5, 1]
    assert LABELS[second].bincount(minlength=3).tolist() == [3, 5, 0]


def test_the_split_depends_on_the_labels_alone():
    before = stratified_split(LABELS)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    after = stratified_split(LABELS.clone().int())
    assert torch.equal(before[0], after[0])
    assert torch.equal(state, torch.get_rng_state())


def test_a_share_of_four_fifths_is_taken_from_every_class():
    first, _ = stratified_split(torch.arange(5).repeat(10), share=0.8, seed=1)
    assert (torch.arange(5).repeat(10)[first].bincount() == 8).all()
