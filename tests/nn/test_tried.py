import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import roi_align

from tas.nn.capture import capture

BOXES = [torch.tensor([[1.0, 1.0, 6.0, 7.0]])] * 2
BACKWARDS = torch.arange(63, -1, -1)


class Between(nn.Module):
    """Two convolutions with an operation between them."""

    def __init__(self, operation):
        super().__init__()
        self.operation, self.first, self.second = operation, nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return self.second(self.operation(self.first(x))).mean((2, 3))


def frozen(operation):
    captured = capture(Between(operation).eval(), [torch.randn(2, 3, 8, 8)])
    return [item.reason for item in captured.labels.freezes if item.reason != "output of the model"]


def assigned(x):
    y = x.clone()
    y[:, :, 0] = 0
    y[:, :, 1] = x[:, :, 2]
    return y


def with_state(x):
    return x + torch.zeros(x.shape) + x.new_zeros(x.shape)


APART = {
    "running maximum": lambda x: x.cummax(2).values,
    "turned": lambda x: x.rot90(1, (2, 3)),
    "differences": lambda x: F.pad(x.diff(dim=2), (0, 0, 1, 0)),
    "unpooled": lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2),
    "frequencies": lambda x: torch.fft.irfft2(torch.fft.rfft2(x), s=(8, 8)),
    "the same places of all": lambda x: x.flatten(2).gather(2, BACKWARDS.expand(2, x.shape[1], 64)).view_as(x),
    "by number": lambda x: x.index_select(2, torch.arange(7, -1, -1)),
    "assigned": assigned,
    "state": with_state,
    "state that is computed": lambda x: x + (x.new_zeros(x.shape) + 1) * x.new_ones(8).cumsum(0),
    "places that are counted": lambda x: x[:, :, x.new_ones(8, dtype=torch.long).cumsum(0) - 1],
    "larger of two": lambda x: torch.max(x, -x),
    "smaller of two": lambda x: torch.min(x, -x).multiply(2).subtract(x),
    "folded": lambda x: F.fold(F.unfold(x, 2, stride=2) + 1, (8, 8), 2, stride=2),
    "turned by letters": lambda x: torch.einsum("bchw->bcwh", x),
    "letters left out of one": lambda x: torch.einsum("...hw,wv->...hv", x, torch.ones(8, 8)),
    "letters left out": lambda x: torch.einsum("...hw,...vw->...hv", x, x),
    "of another package": lambda x: roi_align(x, BOXES, 8),
    "windows": lambda x: x.unfold(2, 2, 2).mean(-1),
}
MIXED = {
    "running maximum": lambda x: x.cummax(1).values,
    "differences": lambda x: F.pad(x.diff(dim=1), (0, 0, 0, 0, 1, 0)),
    "frequencies": lambda x: torch.fft.fft(x, dim=1).real,
    "distances": lambda x: torch.cdist(x.flatten(2), x.flatten(2)).unsqueeze(-1),
    "a norm": lambda x: x.renorm(2, 0, 1.0),
}


@pytest.mark.parametrize("name", APART)
def test_operations_that_keep_channels_apart_leave_them_open(name):
    assert frozen(APART[name]) == []


@pytest.mark.parametrize("name", MIXED)
def test_operations_that_mix_channels_freeze_them(name):
    reason, *_ = frozen(MIXED[name])
    assert "has no rule" in reason


def test_a_table_read_at_counted_places_is_cut():
    class Placed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.places, self.second = nn.Conv1d(3, 8, 1), nn.Embedding(9, 8), nn.Linear(8, 4)

        def forward(self, x):
            x = self.first(x).transpose(1, 2)
            places = x.new_ones(x.shape[1], dtype=torch.long).cumsum(0) - 1
            return self.second(x + self.places(places).view(1, -1, x.shape[2])).mean(1)

    captured = capture(Placed().eval(), [torch.randn(2, 3, 6)])
    assert captured.labels.axes["places.weight", 1].tolist() == captured.labels.axes["first.weight", 0].tolist()
