"""The command line: commands chain through files, every mistake is one line that names the way out."""

import inspect
import json
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from recording import record_calls
from safetensors.torch import load_file, save_file
from toys import TinyNet

import tas
from tas.cli import COMMANDS, EXAMPLES, _written_out, main
from tas.options import plain
from tas.pipeline.compress import short_teacher, short_train

SCRATCH = [
    "--search.start", "scratch", "--search.logits_start", "random", "--search.architectures", "0",
    "--search.epochs", "1",
]  # fmt: skip
TOYS = f"{Path(__file__).parent / 'toys.py'}:build"
QUICK_SEARCH = [
    "--search.epochs", "1", "--search.batch_size", "8", "--search.architectures", "8", "--search.halving_steps", "10",
]  # fmt: skip
QUICK_TRAIN = ["--train.epochs", "1", "--train.batch_size", "8"]
QUICK = [*QUICK_SEARCH, *QUICK_TRAIN]
QUICK_TEACHER = ["--teacher.epochs", "1", "--teacher.batch_size", "8"]


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    """A real image folder: 4 classes, 8x8 pixels, one bright quarter."""
    root = tmp_path_factory.mktemp("images")
    draw = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 4)):
        for label in range(4):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = draw.integers(0, 100, (8, 8, 3), dtype=np.uint8)
                row, column = divmod(label, 2)
                pixels[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 120
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return root


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "full.safetensors"
    save_file(TinyNet().state_dict(), path)
    return path


def run(*words) -> int:
    return main([str(word) for word in words])


def fails(capsys, *words) -> str:
    """Run a command that must fail with 1 and one line on stderr."""
    assert run(*words) == 1
    streams = capsys.readouterr()
    assert streams.out == ""
    # torch warns once a process where it finds a CUDA toolkit and no GPU
    (message,) = [line for line in streams.err.strip().splitlines() if "No CUDA runtime is found" not in line]
    assert "Traceback" not in message
    return message


def test_compress_makes_a_run_that_reloads(images, weights, tmp_path, capsys):
    folder = tmp_path / "run"
    code = run("compress", "--model", TOYS, "--data", f"folder:{images}", "--weights", weights, "--budget.macs", "50%",
               "--output", folder, "--seed", 1, *QUICK[:4], *QUICK_TRAIN)  # fmt: skip
    assert code == 0
    out = capsys.readouterr().out
    assert "accuracy" in out
    assert f"{folder}/report.html" in out
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["seed"] == 1
    assert summary["pruned"]["macs"] <= 0.5 * summary["full"]["macs"]
    assert summary["seconds"]["teacher"] == 0
    assert sum(p.numel() for p in tas.load(folder, TinyNet()).parameters()) == summary["pruned"]["params"]


def test_a_run_repeats_from_its_own_config(images, weights, tmp_path, capsys):
    options = ["compress", TOYS, "--data", f"folder:{images}", "--weights", weights, *QUICK]
    options += ["--keep", "stem,head", "--space.round-to", "2", "--space.candidates", '{"blocks.*": [4, "75%"]}']
    assert run(*options, "--output", tmp_path / "one", "--budget.params", "40%", "--json") == 0
    first = json.loads(capsys.readouterr().out)
    settings = yaml.safe_load((tmp_path / "one" / "config.yaml").read_text())
    assert settings["keep"] == ["stem", "head"]
    assert settings["space"]["candidates"] == {"blocks.*": [4, "75%"]}
    assert settings["space"]["round_to"] == 2
    assert run("compress", "--config", tmp_path / "one" / "config.yaml", "--output", tmp_path / "two", "--json") == 0
    second = json.loads(capsys.readouterr().out)
    for name in ("full", "pruned"):
        assert all(first[name][key] == second[name][key] for key in ("macs", "params", "accuracy"))
    assert first["budget"] == second["budget"] == {"params": "40%"}
    assert (tmp_path / "one" / "config.yaml").read_text() == (tmp_path / "two" / "config.yaml").read_text()


def test_an_interrupted_run_says_how_to_go_on_and_does(images, weights, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "run"
    options = ["compress", "--model", TOYS, "--data", f"folder:{images}", "--weights", weights, *QUICK]
    add = tas.Record.add

    def interrupt(self, stage, **values):
        add(self, stage, **values)
        if stage == "train":
            raise KeyboardInterrupt

    monkeypatch.setattr(tas.Record, "add", interrupt)
    assert run(*options, "--output", folder) == 130
    assert (
        "go on with --resume and the same --output (without --resume if that is not there)" in capsys.readouterr().err
    )
    monkeypatch.setattr(tas.Record, "add", add)
    assert run("compress", "--resume", "--output", folder) == 0  # the options come from the run's own config
    assert (folder / "summary.json").is_file()


def test_the_single_commands_chain_through_files(images, tmp_path, capsys, monkeypatch):
    data = ["--model", TOYS, "--data", f"folder:{images}"]
    teacher, found = tmp_path / "teacher", tmp_path / "found"
    known = ["--weights", teacher / "model.safetensors"]
    assert run("train", *data, *QUICK_TRAIN, "--output", teacher) == 0
    assert run("search", *data, *known, *QUICK_SEARCH, "--budget.macs", "60%", "--output", found) == 0
    assert run("derive", "--run", found, *data[2:]) == 0  # with the data, for the norms
    assert run("derive", "--run", found) == 0  # from here on, model and data are those of the search
    assert run("train", "--run", found, *QUICK_TRAIN) == 0
    searched, trained = (yaml.safe_load((found / f"{name}.yaml").read_text()) for name in ("config", "train"))
    for name in ("model", "weights", "pretrained", "data", "data_dir", "image_size", "normalization"):
        assert trained[name] == searched[name]
    assert "learns from the labels alone" not in capsys.readouterr().err
    (tmp_path / "runs" / "train").mkdir(parents=True)  # of a full model, in the folder that is meant without --output
    (tmp_path / "runs" / "train" / "config.yaml").write_text("train: {epochs: 9}")
    monkeypatch.chdir(tmp_path)
    assert run("train", "--run", found, *QUICK_TRAIN, "--resume") == 0
    assert yaml.safe_load((found / "train.yaml").read_text())["train"]["epochs"] == 1
    capsys.readouterr()
    assert run("measure", "--run", found, "--json") == 0
    profiles = json.loads(capsys.readouterr().out)
    assert profiles["pruned"]["macs"] <= 0.6 * profiles["full"]["macs"]
    assert run("report", "--run", found, "--json") == 0
    assert json.loads(capsys.readouterr().out)["budget"] == {"macs": "60%"}
    assert (found / "report.md").is_file()
    both = tmp_path / "both"
    capsys.readouterr()
    assert run("report", found, teacher, "--output", both) == 0  # the teacher's is no whole run
    out = capsys.readouterr().out
    assert f"{teacher} has no results: it is not finished, or a training alone" in out
    assert f"report: {both}/report.html" in out
    assert run("report", found, teacher, "--output", both, "--json") == 0
    assert json.loads(capsys.readouterr().out).keys() == {str(found), str(teacher)}

    (found / "config.yaml").write_text(yaml.safe_dump({"budget": searched["budget"]}))  # as of a run made in Python
    for command in ("train", "measure"):
        assert "which model it was made with; give --model" in fails(capsys, command, "--run", found)
    for command in ("train", "measure"):
        assert "which data it was made with; give --data" in fails(capsys, command, TOYS, "--run", found)
    assert run("measure", *data, *known, "--run", found, "--json") == 0
    assert json.loads(capsys.readouterr().out)["full"]["accuracy"] == profiles["full"]["accuracy"]

    held = (found / "model.safetensors").read_bytes()
    assert "holds a trained network (it has summary.json and train.yaml); derive another one" in fails(
        capsys, "derive", *data, *known, "--run", found
    )
    assert (found / "model.safetensors").read_bytes() == held
    assert (
        run("train", *data, *known, "--run", found, *QUICK_TRAIN) == 0
    )  # another training: what told of the first goes
    assert not {"summary.json", "report.md", "report.html"} & {path.name for path in found.iterdir()}
    capsys.readouterr()
    assert "holds a trained network (it has train.yaml)" in fails(capsys, "derive", *data, *known, "--run", found)
    for name in ("train", "search"):
        words = (name, *data, *known, "--output", tmp_path / "tracked", "--tracker", "aim")
        assert "its package is not installed" in fails(capsys, *words)
        assert not (tmp_path / "tracked").exists()


def test_measure_times_what_runs_elsewhere_without_data_and_leaves_the_summary(images, weights, tmp_path, capsys):
    data = ["--model", TOYS, "--data", f"folder:{images}", "--weights", weights]
    folder, size = tmp_path / "found", ["--input-size", "[3,8,8]", "--seconds", "0.02"]
    assert run("search", *data, *QUICK_SEARCH, "--output", folder) == 0
    assert run("derive", *data, "--run", folder) == 0
    capsys.readouterr()
    words = ["measure", "--run", folder, *size, "--runtime", "onnxruntime", "--threads", 1]
    assert run(*words, "--latency-batch", "1,2", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found.keys() == {"full", "pruned"}
    for profile in found.values():
        assert (profile["accuracy"], profile["runtime"], profile["threads"]) == (None, "onnxruntime", 1)
        assert [timing["batch_size"] for timing in profile["timings"]] == [1, 2]
    assert not (folder / "summary.json").exists()
    assert run(*words, "--latency-batch", 2) == 0
    out = capsys.readouterr().out
    assert "latency, batch of 2" in out
    assert "latency: ONNX Runtime, 1 thread, " in out
    assert run("measure", *data, "--run", folder, *size[2:], "--threads", 2) == 0
    capsys.readouterr()
    assert run("report", folder) == 0
    assert "between its quartiles; PyTorch, 2 threads, " in (folder / "report.html").read_text()


def test_batch_sizes_that_are_no_positive_numbers_are_an_error(capsys):
    words = ["measure", TOYS, "--input-size", "3,8,8", "--latency-batch"]
    assert "must be at least 1" in fails(capsys, *words, "1,many")


@pytest.mark.parametrize("device", ["magic", "meta", "cuda:99"])
def test_a_device_that_is_not_there_is_an_error(capsys, device):
    words = ["measure", TOYS, "--input-size", "[3,8,8]", "--device", device]
    assert f"device '{device}' cannot be used (" in fails(capsys, *words)


def test_trace_shows_widths_depths_frozen_axes_and_costs(tmp_path, capsys):
    size = "[3,8,8]"
    assert run("trace", "--model", TOYS, "--input-size", size, "--output", tmp_path / "graph.json") == 0
    out = capsys.readouterr().out
    for word in ("stem.0", "blocks", "head.weight[0]", "output of the model", "smallest"):
        assert word in out
    assert run("trace", "--model", TOYS, "--input-size", size, "--json") == 0
    out = capsys.readouterr().out
    graph = tas.Graph.from_json(out)
    assert json.loads(out)["summary"]["smallest"]["macs"] == graph.macs(tas.SearchSpace.of(graph).smallest)
    assert graph == tas.trace(TinyNet(), torch.zeros(1, 3, 8, 8))
    assert graph == tas.Graph.from_json((tmp_path / "graph.json").read_text())


def test_what_may_change_is_the_same_in_words_in_yaml_and_in_python(tmp_path, capsys):
    file = tmp_path / "options.yaml"
    file.write_text("keep: [blocks.1, head]\nspace: {choose: width, round_to: 4, candidates: {blocks.*: [50%, 7]}}\n")
    words = ["--space.choose", "width", "--space.round_to=4", "--space.candidates", '{"blocks.*": ["50%", 7]}']
    graph = tas.trace(TinyNet(), torch.zeros(1, 3, 8, 8), keep=["blocks.1", "head"])
    space = tas.SearchSpace.of(graph, choose="width", round_to=4, candidates={"blocks.*": ["50%", 7]})
    for options in ([*words, "--keep", "blocks.1,head"], [*words, '--keep=["blocks.1", "head"]'], ["--config", file]):
        assert run("trace", TOYS, "--input-size", "[3,8,8]", *options, "--json") == 0
        out = capsys.readouterr().out
        assert tas.Graph.from_json(out) == graph
        assert json.loads(out)["summary"]["smallest"]["params"] == graph.params(space.smallest)
    assert run("trace", TOYS, "--input-size", "[3,8,8]", *words, "--keep", "blocks.1,head") == 0
    out = capsys.readouterr().out
    assert "kept, as keep='blocks.1' asks" in out
    assert "4 7 8" in out


def test_a_pattern_that_matches_nothing_is_an_error(capsys, tmp_path, images, weights):
    options = [TOYS, "--data", f"folder:{images}", "--weights", weights, "--output", tmp_path / "run"]
    for words in (["trace", TOYS, "--input-size", "[3,8,8]"], ["search", *options], ["compress", *options]):
        assert "is called 'blocs' (did you mean blocks" in fails(capsys, *words, "--keep", "head,blocs")
        assert "is called 'blocs' (did you mean blocks" in fails(capsys, *words, "--space.candidates", '{"blocs": [1]}')
        assert "space round_to is 0; it must be above 0" in fails(capsys, *words, "--space.round_to", "0")
    assert not (tmp_path / "run").exists()


def test_a_trace_without_a_result_says_so_on_stderr_where_stdout_is_for_machines(capsys):
    assert run("trace", TOYS, "--input-size", "[3,8,8]", "--keep", "*", "--json") == 0
    streams = capsys.readouterr()
    assert json.loads(streams.out)["summary"]["open_share"] == 0
    assert "nothing can be made smaller, for the reasons given; keep fewer modules" in streams.err


def test_the_printed_config_is_complete_and_can_be_read_back(capsys, tmp_path, images, weights):
    with pytest.raises(SystemExit) as ended:
        run("compress", "--search.epochs", "7", "--print_config")
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert re.search(r"^search:\n  epochs: 7$", text, re.M)
    assert text.count("seed") == 1
    file = tmp_path / "options.yaml"
    file.write_text(text)
    with pytest.raises(SystemExit):
        run("compress", "--config", file, "--print_config")
    assert capsys.readouterr().out == text


@pytest.mark.parametrize("amount", ["0", "200%", "-3", "1.5e99", "half", "3ms"])
def test_a_senseless_budget_is_an_error(capsys, tmp_path, images, weights, amount):
    folder = tmp_path / "run"
    message = fails(capsys, "compress", "--model", TOYS, "--data", f"folder:{images}", "--weights", weights,
                    f"--budget.macs={amount}", "--output", folder, *QUICK)  # fmt: skip
    assert "budget" in message
    assert not folder.exists()


def test_a_budget_without_a_quantity_is_one_of_macs(capsys):
    for words in (["--budget", "30%"], ["--budget=30%"]):
        with pytest.raises(SystemExit):
            run("compress", *words, "--print_config")
        assert "macs: 30%" in capsys.readouterr().out


def test_a_derived_network_is_trained_as_in_compress_and_a_full_one_as_its_teacher(capsys, tmp_path):
    file = tmp_path / "train.yaml"
    file.write_text("run: runs/x\n")
    derived = (["--run=runs/x"], ["--run", "x"], ["--config", str(file)])
    for words, recipe in (([], short_teacher()), *((words, short_train()) for words in derived)):
        with pytest.raises(SystemExit):
            run("train", *words, "--train.epochs", "7", "--print_config")
        printed = yaml.safe_load(capsys.readouterr().out)["train"]
        wanted = {name: value for name, value in plain(recipe).items() if name != "seed"}
        assert printed == {**wanted, "epochs": 7}


def test_a_budget_that_cannot_be_reached_names_the_smallest_cost(capsys, tmp_path, images, weights):
    folder = tmp_path / "run"
    message = fails(capsys, "compress", "--model", TOYS, "--data", f"folder:{images}", "--weights", weights,
                    "--budget.macs", "0.1%", "--output", folder, *QUICK)  # fmt: skip
    graph = tas.trace(TinyNet(), torch.zeros(1, 3, 8, 8))
    assert f"the smallest has {graph.macs(tas.SearchSpace.of(graph).smallest):,}" in message
    assert "raise the budget" in message
    assert not folder.exists()


@pytest.mark.parametrize(
    ("model", "hint"),
    [("cifar_resnet:21", "choose one of 20, 32"), ("torchvision:resnet19", "resnet18"),
     ("resnet18", "write it as one of"),
     ("no_such_file.py:build", "no_such_file.py"), ("tests/toys.py:nothing", "nothing")],
)  # fmt: skip
def test_an_unknown_model_is_an_error(capsys, tmp_path, images, model, hint):
    assert hint in fails(
        capsys, "compress", "--model", model, "--data", f"folder:{images}", "--output", tmp_path / "run"
    )
    assert not (tmp_path / "run").exists()


def test_a_missing_folder_or_an_empty_one_is_an_error(capsys, tmp_path):
    options = ["compress", "--model", TOYS, "--output", tmp_path / "run"]
    assert "pass one that holds train/" in fails(capsys, *options, "--data", f"folder:{tmp_path / 'nowhere'}")
    (tmp_path / "empty" / "train").mkdir(parents=True)
    (tmp_path / "empty" / "test").mkdir()
    assert str(tmp_path / "empty") in fails(capsys, *options, "--data", f"folder:{tmp_path / 'empty'}")
    assert not (tmp_path / "run").exists()


def test_an_unreadable_image_is_named(capsys, tmp_path, images):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(images, broken)
    victim = broken / "train" / "class1" / "3.png"
    victim.write_bytes(victim.read_bytes()[:40])
    message = fails(capsys, "compress", "--model", TOYS, "--data", f"folder:{broken}", "--output", tmp_path / "run")
    assert str(victim) in message
    assert not (tmp_path / "run").exists()


def test_weights_that_do_not_fit_are_an_error(capsys, tmp_path, images, weights):
    other = tmp_path / "ten.safetensors"
    save_file(TinyNet(10).state_dict(), other)
    options = ["compress", "--model", TOYS, "--data", f"folder:{images}", "--output", tmp_path / "run", "--weights"]
    assert "num_classes" in fails(capsys, *options, other)  # the wrong class count
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    assert "junk.safetensors" in fails(capsys, *options, tmp_path / "junk.safetensors")
    assert "check the path" in fails(capsys, *options, tmp_path / "absent.safetensors")
    assert not (tmp_path / "run").exists()


def test_a_model_with_too_few_classes_is_an_error(capsys, tmp_path, images):
    file = tmp_path / "two.py"
    file.write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from toys import TinyNet\ndef build(): return TinyNet(2)\n"
    )
    options = ["--data", f"folder:{images}", "--output", tmp_path / "run"]
    message = fails(capsys, "compress", "--model", f"{file}:build", *options, *QUICK, *QUICK_TEACHER)
    assert "only 2 classes" in message
    assert not (tmp_path / "run").exists()


def test_a_nan_loss_is_an_error(capsys, tmp_path, images):
    steep = ["--train.epochs", "2", "--train.learning_rate", "1e30"]
    message = fails(
        capsys, "train", "--model", TOYS, "--data", f"folder:{images}", "--output", tmp_path / "run", *steep
    )
    assert "lower its learning_rate" in message
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_model_of_nan_is_refused_before_anything_is_written(capsys, tmp_path, images):
    model = f"{Path(__file__).parent / 'toys.py'}:build_nan"
    message = fails(capsys, "compress", "--model", model, "--data", f"folder:{images}", "--output", tmp_path / "run")
    assert "check its weights for NaN" in message
    assert not (tmp_path / "run").exists()


def test_an_output_folder_in_use_is_left_alone(capsys, tmp_path, images, weights):
    (tmp_path / "precious.txt").write_text("mine")
    message = fails(
        capsys, "compress", "--model", TOYS, "--data", f"folder:{images}", "--weights", weights, "--output", tmp_path
    )
    assert "choose another folder" in message
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_grey_images_are_read_in_colour(tmp_path, images, weights):
    for path in images.rglob("*.png"):
        target = tmp_path / "grey" / path.relative_to(images)
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).convert("L").save(target)
    data = f"folder:{tmp_path / 'grey'}"
    assert (
        run("compress", "--model", TOYS, "--data", data, "--weights", weights, "--output", tmp_path / "run", *QUICK)
        == 0
    )


def test_searching_without_weights_asks_for_them(capsys, tmp_path, images):
    assert "--search.start scratch" in fails(capsys, "search", "--model", TOYS, "--data", f"folder:{images}")
    assert "resume needs the folder" in fails(capsys, "compress", "--resume")
    assert "give the output folder" in fails(
        capsys, "train", "--model", TOYS, "--data", f"folder:{images}", "--run", tmp_path
    )
    assert "holds no run" in fails(capsys, "report", "--run", tmp_path)


@pytest.mark.parametrize(
    "words",
    [
        ["compress", "--nonsense", "3"],
        ["compress", "--seed", "many"],
        ["dance"],
        ["compress", "--search.start", "magic"],
    ],
)
def test_wrong_usage_exits_with_2(capsys, words):
    assert main(words) == 2
    assert "help" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--bugdet.macs", "50%"], "(did you mean budget.macs "),
        (["--epochs", "3"], "(did you mean train.epochs or search.epochs or teacher.epochs?)"),
        (["--train.epochs", "many"], "--train.epochs: Expected int or float. Got value: many"),
        (["--image-size", "many"], "Got value: many"),
        (["--space.choose", "depths"], "--space.choose: Expected 'both' or 'width' or 'depth'. Got value: depths"),
    ],
)
def test_wrong_options_name_what_may_have_been_meant(capsys, words, message):
    assert run("compress", *words) == 2
    assert message in capsys.readouterr().err


def test_a_config_cannot_give_a_stage_a_seed_of_its_own_which_nobody_would_read(capsys, tmp_path):
    (tmp_path / "config.yaml").write_text("search: {seed: 3}")
    assert run("compress", "--config", tmp_path / "config.yaml") == 2
    assert "one seed rules all stages; give seed: …, not search.seed" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained(name):
    function = getattr(import_module(f"tas.commands.{name}"), name)
    explained = re.findall(r"^    (\w+):", inspect.getdoc(function) or "", flags=re.MULTILINE)
    assert explained == list(inspect.signature(function).parameters)


UNNAMED = {"export": "RUN", "report": "RUN [RUN …]"}


def test_every_command_has_help_and_examples(capsys):
    assert COMMANDS.keys() == EXAMPLES.keys()
    for name, line in COMMANDS.items():
        with pytest.raises(SystemExit) as ended:
            main([name, "--help"])
        assert ended.value.code == 0
        out = capsys.readouterr().out
        assert line in out.replace("\n", " ")
        assert EXAMPLES[name][0] in out
        assert "type:" not in out  # Python's, such as Union[str, list[list[float]], null]
        assert out.splitlines()[0] == f"usage: tas {name} {UNNAMED.get(name, '[MODEL]')} [--option value …]"
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in COMMANDS)


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("report", "export")])
def test_a_first_word_without_dashes_is_the_model(name, monkeypatch, capsys):
    called = record_calls(name, monkeypatch)
    assert main([name, "torchvision:resnet18"]) == main([name, "--model", "torchvision:resnet18"]) == 0
    assert [options["model"] for options in called] == ["torchvision:resnet18"] * 2
    assert main([name, "torchvision:resnet18", "another"]) == 2
    assert "--help" in capsys.readouterr().err


def test_help_needs_no_torch():
    code = "import sys; from tas.cli import main; main(['--help']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_version_is_printed(capsys):
    assert main(["--version"]) == 0
    assert re.match(r"\d+\.\d+", capsys.readouterr().out)


@pytest.mark.parametrize(
    "content", [b"search: 3", b"budget: 50%", b"\xff\xfe\x00", b"foo: 1", b"a: [", b"train: {x: 1}"]
)
def test_a_senseless_config_file_is_wrong_usage(capsys, tmp_path, content):
    (tmp_path / "options.yaml").write_bytes(content)
    assert run("compress", "--config", tmp_path / "options.yaml", "--output", tmp_path / "run") == 2
    assert "Traceback" not in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("size", ["3,a,8", "[3,-1,8]", "[0,8,8]", "[]"])
def test_an_input_size_that_is_no_positive_numbers_is_an_error(capsys, size):
    assert "such as 3,224,224" in fails(capsys, "trace", "--model", TOYS, f"--input-size={size}")


@pytest.mark.parametrize("size", ["[3,8,8]", "3,8,8", "3x8x8", "8"])
def test_an_input_size_may_be_written_in_several_ways(capsys, size):
    assert run("trace", "--model", TOYS, "--input_size", size, "--json") == 0
    assert json.loads(capsys.readouterr().out)["input_shapes"] == [[1, 3, 8, 8]]


@pytest.mark.parametrize(("model", "size"), [("cifar_resnet:20", 32), ("timm:test_vit", 160)])
def test_a_model_is_traced_at_its_own_size_where_none_is_given(capsys, model, size):
    if model.startswith("timm"):
        pytest.importorskip("timm")
    assert run("trace", "--model", model, "--json") == 0
    assert json.loads(capsys.readouterr().out)["input_shapes"] == [[1, 3, size, size]]


def test_a_seed_that_torch_does_not_take_is_an_error(capsys, images):
    assert "it must lie between" in fails(
        capsys, "measure", "--model", TOYS, "--data", f"folder:{images}", "--seed", 2**70
    )


def test_what_a_models_file_prints_is_no_result(capsys, tmp_path):
    file = tmp_path / "chatty.py"
    file.write_text("import torch\nprint('hello')\ndef build(): return torch.nn.Conv2d(3, 4, 3)\n")
    assert run("trace", "--model", f"{file}:build", "--input-size", "[3,8,8]", "--json") == 0
    streams = capsys.readouterr()
    json.loads(streams.out)
    assert "hello" in streams.err


def test_trained_weights_of_a_model_that_shares_modules_load_again(tmp_path, images, capsys):
    file = tmp_path / "shared.py"
    file.write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom toys import TinyNet\n"
        "def build():\n    model = TinyNet()\n    model.alias = model.stem\n    return model\n"
    )
    options = ["--model", f"{file}:build", "--data", f"folder:{images}"]
    assert run("train", *options, *QUICK_TRAIN, "--output", tmp_path / "run") == 0
    assert run("measure", *options, "--weights", tmp_path / "run" / "model.safetensors") == 0


def test_single_commands_refuse_a_model_with_too_few_classes(capsys, tmp_path, images):
    file = tmp_path / "two.py"
    file.write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from toys import TinyNet\ndef build(): return TinyNet(2)\n"
    )
    options = ["--model", f"{file}:build", "--data", f"folder:{images}"]
    for words in (["measure"], ["train", "--output", tmp_path / "run"],
                  ["search", *SCRATCH, "--output", tmp_path / "run"]):  # fmt: skip
        assert "only 2 classes" in fails(capsys, *words, *options)
    assert not (tmp_path / "run").exists()


def test_released_weights_for_other_classes_are_refused_but_for_training_a_teacher(tmp_path, images, capsys):
    transformers = pytest.importorskip("transformers")
    folder, options = tmp_path / "released", {"embedding_size": 8, "hidden_sizes": [8], "depths": [1]}
    config = transformers.ResNetConfig(layer_type="basic", num_labels=3, **options)
    transformers.ResNetForImageClassification(config).save_pretrained(folder)
    words = [f"transformers:{folder}", "--pretrained", "--data", f"folder:{images}"]
    place = ["--output", tmp_path / "run"]
    capsys.readouterr()
    for command, more in (("compress", place), ("search", place), ("compare", place), ("measure", [])):
        message = fails(capsys, command, *words, *more)
        assert "was released for 3 classes and the data has 4" in message
        assert f"first tas train transformers:{folder} --pretrained" in message
    assert not (tmp_path / "run").exists()
    assert run("train", *words, *QUICK_TRAIN, "--output", tmp_path / "teacher") == 0
    assert run("measure", *words, "--weights", tmp_path / "teacher" / "model.safetensors", "--seconds", "0.02") == 0


def test_compare_offers_every_option_of_the_job():
    from dataclasses import fields
    from inspect import signature

    from tas.commands.compare import compare

    offered = set(signature(compare).parameters)
    assert {field.name for field in fields(tas.CompressConfig)} - {"latency", "latency_batch"} <= offered
    hidden = {"job"}
    assert {field.name for field in fields(tas.CompareConfig)} - hidden <= offered


def test_compare_writes_what_it_found_and_goes_on_from_its_own_config(images, weights, tmp_path, capsys):
    folder = tmp_path / "versus"
    words = ["compare", "--model", TOYS, "--data", f"folder:{images}", "--weights", weights, "--methods",
             "tas:search.fragments=1 l1", "--transfers", "kd", "--seeds", "3", "--budget", "60%", "--workers", 1,
             "--output", folder, *QUICK, "--train.epochs", "60"]  # fmt: skip
    assert run(*words) == 0
    assert "compare.html, compare.md, compare.json" in capsys.readouterr().out
    found = json.loads((folder / "compare.json").read_text())
    assert [row["method"] for row in found["rows"]] == ["tas:search.fragments=1", "l1"]
    assert all(cell["seed"] == 3 and cell["macs"] <= 0.6 * found["full"]["macs"] for cell in found["cells"])
    victim = folder / "cells" / "l1-60pctmacs-kd-seed3.json"
    victim.unlink()
    assert run("compare", "--resume", "--output", folder, "--workers", 1, "--json") == 0
    again = json.loads(capsys.readouterr().out)
    assert [row["accuracy"] for row in again["rows"]] == [row["accuracy"] for row in found["rows"]]
    assert victim.exists()


def test_compare_refuses_a_misspelt_option_before_anything_is_written(images, weights, tmp_path, capsys):
    folder = tmp_path / "versus"
    message = fails(capsys, "compare", "--model", TOYS, "--data", f"folder:{images}", "--weights", weights,
                    "--methods", "tas:search.fragmets=1", "--output", folder)  # fmt: skip
    assert "there is no option 'fragmets' (did you mean fragments?)" in message
    assert not folder.exists()


def test_export_writes_a_run_as_one_file_and_says_how_it_compares(images, weights, tmp_path, capsys):
    folder = tmp_path / "run"
    assert run("compress", TOYS, "--data", f"folder:{images}", "--weights", weights, "--output", folder, *QUICK) == 0
    capsys.readouterr()
    before = {path.name for path in folder.iterdir()}
    assert run("export", folder, "--format", "torch-export") == 0
    out = capsys.readouterr().out
    assert {path.name for path in folder.iterdir()} - before == {"model.pt2"}
    assert "largest difference" in out
    assert f"file: {folder}/model.pt2" in out
    inputs = torch.rand(3, 3, 8, 8)
    wanted = tas.load(folder, TinyNet())(inputs)
    assert torch.allclose(torch.export.load(folder / "model.pt2").module()(inputs), wanted, atol=1e-5)

    file = tmp_path / "deep" / "int8.onnx"
    options = ["--output", file, "--accuracy-tolerance", 100, "--calibration-images", 8, "--json"]
    assert run("export", folder, "--format", "onnx-int8", *options) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["path"], found["file_bytes"]) == (str(file), file.stat().st_size)
    assert 0 <= found["accuracy"] <= 100

    (folder / "config.yaml").unlink()
    assert "give --model" in fails(capsys, "export", folder)
    assert "give --data, or --input-size" in fails(capsys, "export", folder, "--model", TOYS)
    assert "input_size is [3, 0, 8]" in fails(capsys, "export", folder, "--model", TOYS, "--input-size", "[3,0,8]")
    options = ["--model", TOYS, "--input-size", "[3,8,8]", "--format", "torch-export"]
    assert "tolerance is -1" in fails(capsys, "export", folder, *options, "--tolerance", "-1")
    assert run("export", folder, *options, "--output", tmp_path / "random.pt2") == 0


@pytest.fixture(scope="module")
def three(images, tmp_path_factory) -> Path:
    """Two budgets from one search of a model that is trained first."""
    folder = tmp_path_factory.mktemp("several") / "two"
    words = ["--budget", "70%,40%", *QUICK, "--search.epochs", "0", "--search.architectures", "2", *QUICK_TEACHER]
    assert run("compress", TOYS, "--data", f"folder:{images}", "--output", folder, *words) == 0
    return folder


def test_several_budgets_are_told_of_one_by_one(three, capsys):
    assert yaml.safe_load((three / "config.yaml").read_text())["budget"]["macs"] == ["70%", "40%"]
    assert run("report", three, "--json") == 0
    summaries = json.loads(capsys.readouterr().out)
    assert list(summaries) == [str(three / "macs-70pct"), str(three / "macs-40pct")]
    for summary, share in zip(summaries.values(), (0.7, 0.4), strict=True):
        assert summary["pruned"]["macs"] <= share * summary["full"]["macs"]
    assert run("report", three) == 0
    out = capsys.readouterr().out
    assert all(folder in out for folder in summaries)
    assert f"report: {three}/report.html" in out
    assert "holds a finished run" in fails(capsys, "compress", "--resume", "--output", three)


def test_a_finished_run_is_decoded_for_another_budget_without_data_and_goes_on_as_a_run(
    three, images, tmp_path, capsys
):
    found = tmp_path / "found"
    for place in (three, three / "macs-70pct"):
        assert run("search", "--from", place, "--budget.macs", "55%", "--output", found / place.name, "--json") == 0
        cost = json.loads(capsys.readouterr().out)
        assert cost["macs"]["pruned"] <= 0.55 * cost["macs"]["full"]
        files = {path.name for path in (found / place.name).iterdir()}
        assert files == {"config.yaml", "graph.json", "scores.json", "architecture.json", "record.jsonl",
                         "model.safetensors"}  # fmt: skip
    architectures = [(found / name / "architecture.json").read_text() for name in ("two", "macs-70pct")]
    assert tas.Architecture.from_json(architectures[0]) == tas.Scores.read(three).decode("55%")
    assert architectures[0] == architectures[1]

    full = TinyNet()
    full.load_state_dict(load_file(three / "teacher.safetensors"))
    graph = tas.Graph.from_json((three / "graph.json").read_text())
    wanted = tas.derive(tas.rank(full, graph), graph, tas.Architecture.from_json(architectures[0])).state_dict()
    inherited = tas.load(found / "two", TinyNet()).state_dict()
    assert all(torch.equal(inherited[name], value) for name, value in wanted.items())

    assert run("search", "--config", found / "two" / "config.yaml", "--output", tmp_path / "again") == 0
    assert (tmp_path / "again" / "architecture.json").read_text() == architectures[0]
    capsys.readouterr()
    assert run("train", "--run", found / "two", *QUICK_TRAIN) == 0
    assert "learns from the labels alone" not in capsys.readouterr().err
    assert run("measure", "--run", found / "two") == 0
    assert run("report", three, found / "two", "--output", tmp_path / "page") == 0
    assert "3 runs side by side" in (tmp_path / "page" / "report.html").read_text()


def test_training_a_run_takes_the_full_model_that_it_has_trained(three, images, tmp_path, capsys):
    options = ["train", "--model", TOYS, "--data", f"folder:{images}", *QUICK_TRAIN, "--run"]
    states = {}
    for name, more in (("own", []), ("given", ["--weights", three / "teacher.safetensors"]), ("none", [])):
        shutil.copytree(three, tmp_path / name)
        if name == "none":
            (tmp_path / name / "teacher.safetensors").unlink()
        capsys.readouterr()
        assert run(*options, tmp_path / name / "macs-40pct", *more) == 0
        assert ("learns from the labels alone; --weights names a teacher" in capsys.readouterr().err) == (
            name == "none"
        )
        assert yaml.safe_load((tmp_path / name / "macs-40pct" / "train.yaml").read_text())["model"] == TOYS
        states[name] = load_file(tmp_path / name / "macs-40pct" / "model.safetensors")
    assert all(torch.equal(value, states["own"][name]) for name, value in states["given"].items())
    assert any(not torch.equal(value, states["own"][name]) for name, value in states["none"].items())


def test_measuring_a_run_takes_the_full_model_that_it_has_trained(three, images, tmp_path, capsys):
    one, data = tmp_path / "one" / "macs-40pct", ["--model", TOYS, "--data", f"folder:{images}"]
    shutil.copytree(three, one.parent)
    before = json.loads((one / "summary.json").read_text())
    before["full"]["predicted_latency_ms"] = 3.0
    (one / "summary.json").write_text(json.dumps(before))
    assert run("measure", *data, "--run", one, "--seed", 7) == 0
    after = json.loads((one / "summary.json").read_text())
    for name in ("full", "pruned"):
        assert after[name]["accuracy"] == before[name]["accuracy"]
    assert after["full"]["predicted_latency_ms"] == 3.0
    (one.parent / "teacher.safetensors").unlink()
    capsys.readouterr()
    assert "add --weights" in fails(capsys, "measure", *data, "--run", one)
    assert json.loads((one / "summary.json").read_text()) == after


def test_what_a_finished_run_cannot_be_decoded_for_is_an_error(three, tmp_path, capsys):
    words = ["search", "--output", tmp_path / "new", "--from"]
    graph = tas.Graph.from_json((three / "graph.json").read_text())
    smallest = graph.macs(tas.SearchSpace.of(graph).smallest)
    assert f"the smallest has {smallest:,}" in fails(capsys, *words, three, "--budget", "0.1%")
    assert "names several, but one is meant here" in fails(capsys, *words, three, "--budget", "30%,40%")
    assert "a latency needs times measured" in fails(capsys, *words, three, "--budget.latency", "3ms")
    assert "takes the option search from" in fails(capsys, *words, three, "--search.epochs", "3")
    assert "takes the option keep from" in fails(capsys, *words, three, "--keep", "stem")
    assert "has no graph.json" in fails(capsys, *words, tmp_path / "nowhere")
    old = tmp_path / "old"
    shutil.copytree(three / "macs-40pct", old)
    config = yaml.safe_load((old / "config.yaml").read_text())
    (old / "config.yaml").write_text(yaml.safe_dump({**config, "model": "gone.py:build"}))
    assert run(*words, old) == 0  # there is no teacher beside it: the architecture alone
    assert f"make the network with tas derive --run {tmp_path / 'new'} and --weights" in capsys.readouterr().out
    assert "nothing to inherit; give --weights" in fails(capsys, "derive", TOYS, "--run", tmp_path / "new")
    shutil.rmtree(tmp_path / "new")
    (old / "config.yaml").write_text(yaml.safe_dump({"budget": config["budget"], "search": config["search"]}))
    assert "was made in Python and names no model; add --model and --weights" in fails(capsys, *words, old)
    assert run(*words, old, "--model", TOYS, "--weights", three / "teacher.safetensors") == 0
    capsys.readouterr()
    assert "which data it was made with; give --data" in fails(capsys, "train", "--run", tmp_path / "new")
    shutil.rmtree(tmp_path / "new")
    (old / "scores.json").unlink()
    capsys.readouterr()
    assert "has no scores.json, which a search writes at its end; finish the run" in fails(capsys, *words, old)
    assert not (tmp_path / "new").exists()


def test_nothing_is_wrong_where_the_reader_of_the_output_stops_early():
    code = "import sys; sys.stdin.read(); from tas.cli import main; raise SystemExit(main(['--help']))"
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as process:
        process.stdout.close()
        process.stdin.close()  # now it prints
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_what_a_users_forward_prints_is_no_result(tmp_path, capsys):
    (tmp_path / "chatty.py").write_text(
        "from toys import TinyNet\n"
        "class Chatty(TinyNet):\n"
        "    def forward(self, images):\n"
        "        print('shape', tuple(images.shape))\n"
        "        return super().forward(images)\n"
    )
    assert run("trace", f"{tmp_path / 'chatty.py'}:Chatty", "--input-size", "3,8,8", "--json") == 0
    streams = capsys.readouterr()
    assert json.loads(streams.out)["summary"]
    assert "shape (1, 3, 8, 8)" in streams.err


def test_an_interrupted_command_without_resume_does_not_speak_of_it(capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("tas.commands.trace.build_model", interrupt)
    assert run("trace", TOYS) == 130
    assert capsys.readouterr().err == "\ntas trace: interrupted\n"


@pytest.mark.parametrize(
    ("command", "words", "wanted"),
    [
        ("compress", "timm:x --resume --output o", "--model timm:x --resume=true --output o"),
        ("compress", "--resume timm:x --output o", "--resume=true --model timm:x --output o"),
        ("compress", "--output o --resume true timm:x", "--output o --resume true --model timm:x"),
        ("compress", "--config=c --budget.macs 50% timm:x", "--config=c --budget.macs 50% --model timm:x"),
        ("train", "--output --resume", "--output --resume=true"),  # the parser says what is missing
        ("report", "--json a b --output o", '--json=true --run ["a", "b"] --output o'),
        ("export", "--output=o a", "--output=o --run a"),
        ("compare", "--seeds 0,1 --help", "--seeds 0,1 --help"),
    ],
)
def test_models_and_runs_may_stand_anywhere(command, words, wanted):
    function = getattr(import_module(f"tas.commands.{command}"), command)
    assert " ".join(_written_out(words.split(), function)) == wanted
