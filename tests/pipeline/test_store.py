import os
import subprocess
import sys
from pathlib import Path

import nets
import pytest
import torch
from nets import images, perturbed
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from toys import tiny_source

from tas.architecture import Architecture
from tas.errors import ArchitectureError, ModelError, RunError
from tas.pipeline.compress import compress
from tas.pipeline.derive import derive
from tas.pipeline.rank import rank
from tas.pipeline.store import ARCHITECTURE, WEIGHTS, load, load_graph, save
from tas.pipeline.trace import trace
from tas.space import SearchSpace


@pytest.fixture
def saved(tmp_path):
    model = perturbed(nets.Residual())
    graph = trace(model, images())
    architecture = SearchSpace.of(graph).smallest
    small = derive(model, graph, architecture)
    save(tmp_path / "out", small, graph, architecture)
    return tmp_path / "out", small, graph, architecture


@pytest.mark.parametrize("name", nets.ALL)
def test_a_loaded_model_computes_what_was_saved(name, tmp_path):
    graph = nets.graph_of(name)
    model = rank(perturbed(nets.ALL[name]()), graph)  # its channels stand in another order than the constructor's
    architecture = SearchSpace.of(graph).sample(torch.Generator().manual_seed(2))
    small = derive(model, graph, architecture)
    save(tmp_path, small, graph, architecture)
    loaded = load(tmp_path, nets.ALL[name]())
    assert torch.equal(loaded(images()), small(images()))
    assert not loaded.training
    assert load_graph(tmp_path) == (graph, architecture)


def test_a_cut_buffer_that_no_state_has_is_saved_too(tmp_path):
    graph = nets.graph_of("unsaved buffer")
    architecture = Architecture(dict.fromkeys(graph.full.widths, 5), {})
    small = derive(rank(perturbed(nets.Unsaved()), graph), graph, architecture)
    save(tmp_path, small, graph, architecture)
    assert torch.equal(load(tmp_path, nets.Unsaved())(images()), small.eval()(images()))
    with safe_open(tmp_path / WEIGHTS, "pt") as file:
        assert set(file.keys()) == {*small.state_dict(), "table", "plain"}
        tensors, metadata = {name: file.get_tensor(name) for name in small.state_dict()}, file.metadata()
    save_file(tensors, tmp_path / WEIGHTS, metadata)  # as an older version wrote it
    with pytest.raises(ArchitectureError, match="lacks (table|plain), a buffer that was cut.*Derive and save"):
        load(tmp_path, nets.Unsaved())


def test_a_state_that_is_no_tensor_is_refused_before_anything_is_done(tmp_path):
    class Keeps(nets.Residual):
        def get_extra_state(self):
            return {"calls": 1}

        def set_extra_state(self, state):
            raise AssertionError

    with pytest.raises(ModelError, match="_extra_state in the state of Keeps is no tensor .dict.*return a tensor"):
        compress(Keeps(), tiny_source(), output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Views(nn.Module):
    """A convolution and an LSTM, with tensors that are parts of larger ones, or one number shown many times."""

    def __init__(self):
        super().__init__()
        self.conv, self.steps, self.last = nn.Conv2d(3, 6, 1), nn.LSTM(6, 4), nn.Linear(4, 5)
        self.register_buffer("mean", torch.tensor([[0.5, 0.1]])[:, :1])
        self.register_buffer("scale", torch.ones(1).expand(4))
        self.last.bias = nn.Parameter(torch.zeros(2, 5)[0])
        flat, start = torch.rand(sum(weight.numel() for weight in self.steps.parameters())), 0
        for weight in self.steps.parameters():  # as cuDNN has them
            weight.data = flat[start : (start := start + weight.numel())].view_as(weight)

    def forward(self, inputs):
        pixels = self.conv(inputs - self.mean[..., None, None]).relu().flatten(2)
        return self.last(self.steps(pixels.transpose(1, 2))[0][:, -1] * self.scale)


def test_parts_of_larger_tensors_are_saved_and_loaded(tmp_path):
    model = Views().eval()
    graph = trace(model, images())
    assert graph.full.widths == {"conv": 6}
    architecture = Architecture({"conv": 3}, {})
    small = derive(model, graph, architecture)
    small.mean, small.scale = small.mean + 1, torch.full((1,), 3.0).expand(4)
    save(tmp_path, small, graph, architecture)
    assert torch.equal(load(tmp_path, Views())(images()), small(images()))


def test_a_buffer_of_another_size_has_the_precision_of_the_model_that_is_loaded(tmp_path):
    model = Views().eval()
    graph = trace(model, images())
    small = derive(model, graph, graph.full)
    small.mean, small.scale = torch.ones(1, 3), torch.arange(3)
    save(tmp_path, small, graph, graph.full)
    loaded = load(tmp_path, Views().double())
    assert torch.equal(loaded.mean, torch.ones(1, 3, dtype=torch.double))
    assert torch.equal(loaded.scale, torch.arange(3))


class Tempered(nets.Plain):
    """Keeps a number in its state by torch's own hooks."""

    temperature = 1.0

    def forward(self, inputs):
        return super().forward(inputs) / self.temperature

    def get_extra_state(self):
        return torch.tensor(self.temperature)

    def set_extra_state(self, state):
        self.temperature = float(state)


def test_a_state_of_a_module_of_its_own_is_loaded(tmp_path):
    model = Tempered().eval()
    model.temperature = 3.0
    graph = trace(model, images())
    save(tmp_path, derive(model, graph, graph.full), graph, graph.full)
    loaded = load(tmp_path, Tempered())
    assert loaded.temperature == 3
    assert torch.equal(loaded(images()), model(images()))


def test_a_model_is_loaded_in_a_new_process(saved, tmp_path):
    folder, small, _, _ = saved
    code = (
        "import sys, torch; sys.path.insert(0, sys.argv[1]); import nets; from tas.pipeline.store import load;"
        "torch.save(load(sys.argv[2], nets.Residual())(nets.images()), sys.argv[3])"
    )
    tests = str(Path(nets.__file__).parent)
    subprocess.run(
        [sys.executable, "-c", code, tests, str(folder), str(tmp_path / "y")], check=True, cwd=Path(tests).parent
    )
    assert torch.equal(torch.load(tmp_path / "y"), small(images()))


def test_the_folder_holds_two_plain_files(saved):
    folder, small, _, architecture = saved
    assert sorted(os.listdir(folder)) == [ARCHITECTURE, WEIGHTS]
    assert Architecture.from_json((folder / ARCHITECTURE).read_text()) == architecture
    content = (folder / WEIGHTS).read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert content[8:9] == b"{"  # the safetensors header, JSON, and then nothing but numbers
    assert len(content) == 8 + length + sum(v.numel() * v.element_size() for v in small.state_dict().values())
    with safe_open(folder / WEIGHTS, "pt") as file:
        assert set(file.keys()) == set(small.state_dict())


def test_saving_again_replaces_the_files(saved):
    folder, small, graph, architecture = saved
    with torch.no_grad():
        small.head[2].bias.add_(1)
    save(folder, small, graph, architecture)
    assert torch.equal(load(folder, nets.Residual())(images()), small(images()))


def test_the_fresh_model_is_not_changed(saved):
    fresh = nets.Residual()
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    load(saved[0], fresh)
    assert all(torch.equal(value, before[name]) for name, value in fresh.state_dict().items())


def test_a_model_of_another_architecture_is_not_saved(saved, tmp_path):
    _, small, graph, _ = saved
    with pytest.raises(
        ArchitectureError, match=r"the model has [\d,]+ parameters, this architecture [\d,]+; save the model that was"
    ):
        save(tmp_path / "other", small, graph, graph.full)
    assert not (tmp_path / "other").exists()


def test_sizes_that_are_exchanged_are_not_saved(tmp_path):
    model = nn.Sequential(*[nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 1), nn.ReLU(), nn.Conv2d(6, 3, 1)])
    graph = trace(model.eval(), images())
    small = derive(model, graph, Architecture({"0": 2, "2": 4}, {}))
    with pytest.raises(ArchitectureError, match=r"0.weight has shape \(4, 3, 1, 1\) in this arch.* has shape \(2,"):
        save(tmp_path / "other", small, graph, Architecture({"0": 4, "2": 2}, {}))
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_a_model_in_a_wrapper_is_not_saved(saved, wrap, tmp_path):
    _, small, graph, architecture = saved
    with pytest.raises(ArchitectureError, match=r"no such tensor; .* out of torch.compile or DataParallel"):
        save(tmp_path / "other", wrap(small), graph, architecture)


@pytest.mark.parametrize("wrong", [nets.Plain, lambda: nets.Residual(2), lambda: nets.Residual(4)])
def test_another_constructor_is_refused(saved, wrong):
    with pytest.raises(ModelError, match="the graph does not fit this|the weights in .* do not fit"):
        load(saved[0], wrong())


class Constants(nn.Module):
    """Numbers that no weight tells of."""

    def __init__(self, eps: float = 1e-5, slope: float = 0.0, stride: int = 1, noise: float = 0.0):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, stride=stride), nn.BatchNorm2d(8, eps=eps)
        self.act, self.head = nn.LeakyReLU(slope), nets.head(8)
        self.noise = noise

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.norm(self.stem(x)) + self.noise * torch.rand(())))


def save_constants(folder: Path, *, half: bool = False, **options: float) -> nn.Module:
    model = perturbed(Constants(**options))
    graph = trace(model, images())
    small = derive(model, graph, SearchSpace.of(graph).sample(torch.Generator().manual_seed(1)))
    small = small.bfloat16() if half else small
    save(folder, small.train(), graph, SearchSpace.of(graph).sample(torch.Generator().manual_seed(1)))
    assert small.training
    return small


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        ({"eps": 1e-3}, r"norm \(BatchNorm2d\)"),
        ({"slope": 0.1}, r"act \(LeakyReLU\)"),
        ({"stride": 2}, r"stem \(Conv2d\)"),
    ],
)
@pytest.mark.parametrize("half", [False, True])
def test_a_constructor_with_other_constants_is_refused(options, culprit, half, tmp_path):
    small = save_constants(tmp_path, half=half)
    options = {**options, **({"eps": 0.5} if half and "eps" in options else {})}
    fresh = Constants(**options).bfloat16() if half else Constants(**options)
    with pytest.raises(ModelError, match=rf"{culprit} computes something else .* check=False"):
        load(tmp_path, fresh)
    taken = load(tmp_path, fresh, check=False)
    assert all(torch.equal(value, taken.state_dict()[name]) for name, value in small.state_dict().items())
    load(tmp_path, Constants().bfloat16() if half else Constants())


def test_a_network_that_draws_at_random_is_not_compared(tmp_path):
    save_constants(tmp_path, noise=1.0)
    load(tmp_path, Constants(slope=0.1, noise=1.0))


def test_a_network_saved_by_an_older_version_is_not_compared(tmp_path):
    small = save_constants(tmp_path)
    with safe_open(tmp_path / WEIGHTS, "pt") as file:
        header = {name: text for name, text in file.metadata().items() if name == "tas_graph"}
    save_file({name: value.clone() for name, value in small.state_dict().items()}, tmp_path / WEIGHTS, header)
    load(tmp_path, Constants(slope=0.1))


def test_a_constructor_without_memory_is_refused(saved):
    with pytest.raises(ModelError, match="Residual is on the meta device; build it on the CPU"):
        load(saved[0], nets.Residual().to("meta"))


@pytest.mark.parametrize("name", [WEIGHTS, ARCHITECTURE])
def test_a_missing_file_is_named(saved, name):
    (saved[0] / name).unlink()
    with pytest.raises(ArchitectureError, match=f"has no {name}; give the output folder of a finished run"):
        load(saved[0], nets.Residual())


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[:100], lambda b: b[:-5], lambda b: b"\xff" * 50 + b])
def test_a_damaged_weights_file_is_an_error_of_ours(saved, damage):
    path = saved[0] / WEIGHTS
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(
        ArchitectureError, match=r"model.safetensors cannot be read \(.*\); copy it anew or repeat the run"
    ):
        load(saved[0], nets.Residual())


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[1]", b'{"widths": {"stem.0": 0}}'])
def test_a_damaged_architecture_file_is_an_error_of_ours(saved, content):
    (saved[0] / ARCHITECTURE).write_bytes(content)
    with pytest.raises(ArchitectureError):
        load(saved[0], nets.Residual())


def test_an_architecture_of_another_graph_is_refused(saved):
    (saved[0] / ARCHITECTURE).write_text(Architecture({"stem.0": 3}).to_json())
    with pytest.raises(ArchitectureError, match="the architecture does not belong to this graph"):
        load(saved[0], nets.Residual())


def test_an_architecture_that_does_not_fit_the_weights_is_refused(saved):
    folder, _, graph, _ = saved
    (folder / ARCHITECTURE).write_text(graph.full.to_json())
    with pytest.raises(ModelError, match="the weights in .* do not fit"):
        load(folder, nets.Residual())


def test_weights_that_were_not_saved_by_tas_are_refused(saved):

    save_file({"a": torch.zeros(2)}, saved[0] / WEIGHTS)
    with pytest.raises(ArchitectureError, match="was not saved by tas; its header has no graph"):
        load(saved[0], nets.Residual())


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("I/O error: no space")])
def test_a_failed_write_leaves_what_was_there(saved, monkeypatch, error):
    folder, small, graph, architecture = saved
    before = {name: (folder / name).read_bytes() for name in os.listdir(folder)}

    def fail(model, path, metadata):
        Path(path).write_bytes(b"half")
        raise error

    monkeypatch.setattr("safetensors.torch.save_model", fail)
    with pytest.raises(
        RunError, match=r"cannot write .*model.safetensors \(.*space.*\); choose another folder or free some space"
    ):
        save(folder, small, graph, architecture)
    assert {name: (folder / name).read_bytes() for name in os.listdir(folder)} == before


def test_a_file_in_place_of_the_folder_is_an_error_of_ours(saved, tmp_path):
    _, small, graph, architecture = saved
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot write"):
        save(tmp_path / "file", small, graph, architecture)
