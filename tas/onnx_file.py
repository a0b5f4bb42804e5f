"""ONNX files: captured, written by torch's exporter, rounded to 8-bit integers and run by ONNX Runtime."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from tas.data import Source
from tas.errors import ConfigError, DataError, ModelError
from tas.nn.modes import evaluating
from tas.nn.outputs import named_tensors, no_fast_path, with_tensors
from tas.nn.program import graph_not_printed, torch_warnings_hidden
from tas.task import run_model

SIZE_LIMIT = 2**31 - 1  # bytes of one protobuf message
CALIBRATION_BATCH = 32
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class Exported(nn.Module):
    """A file's network, called like a module; its one parameter takes no part and says where the inputs must lie."""

    def __init__(self, run: Callable[[Tensor], Any], device: torch.device | None = None):
        super().__init__()
        self.place = nn.Parameter(torch.zeros((), device=device), requires_grad=False)
        self.run = run

    def forward(self, inputs: Tensor) -> Any:
        """Run the file."""
        return self.run(inputs)


def require_packages(purpose: str) -> None:
    """Check that the extra `onnx` is installed.

    Raises:
        ConfigError: it is not.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(f'{purpose} needs {error.name}, which is missing; pip install "tas-pruning[onnx]"') from None


def capture_any_batch(
    model: nn.Module, images: Tensor, *, outputs: Callable[[Any], Any] = named_tensors
) -> torch.export.ExportedProgram:
    """The model as a program of any batch size, with attention in plain operations, which ONNX can express.

    Args:
        model: on the CPU, in evaluation mode.
        images: two of them.
        outputs: from the model's outputs to what the program returns; containers of the model's own nobody else loads.

    Raises:
        ModelError: it cannot be captured, or does not accept the images.
    """
    run_model(model, images)
    plain = model.register_forward_hook(lambda _module, _inputs, found: outputs(found))
    try:
        with plain, no_fast_path(), torch.no_grad(), torch_warnings_hidden(), graph_not_printed():
            capture = partial(torch.export.export, model, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
            try:
                return capture()
            except Exception:  # the exporter raises whatever the user's code makes it meet
                with _quiet("torch"):  # it logs what it raises
                    return capture(strict=True)  # slower; knows that `len(images)` is the batch size
    except Exception as error:
        is_fixed = "Constraints violated" in str(error)
        what = ", which its forward takes for a fixed number" if is_fixed else ""
        raise ModelError(
            failure(f"torch.export cannot capture it with any batch size{what}", type(model).__name__, error)
        ) from error


def write_onnx(program: torch.export.ExportedProgram, path: Path, *, opset: int | None, name: str) -> None:
    """Write a captured model with all its weights into one file: `images` in, its outputs under their names out.

    Args:
        program: of one input, with `named_tensors` for outputs.
        path: to write.
        opset: version of the operators; None is the exporter's own.
        name: of the model, for messages.

    Raises:
        ModelError: it is too large, or has an operation that ONNX cannot express.
        ConfigError: the exporter cannot write this opset.
    """
    from onnx_ir.passes.common import NameFixPass  # comes with onnxscript

    size = sum(tensor.nbytes for tensor in program.state_dict.values())
    if size > SIZE_LIMIT:
        raise ModelError(f"the weights have {size:,} bytes, an ONNX file at most {SIZE_LIMIT:,}; use torch-export")
    assert program.example_inputs is not None
    try:
        with torch.no_grad():
            names = list(program.module()(*program.example_inputs[0]))
        with torch_warnings_hidden(), _quiet("onnxscript"):  # which logs a traceback for an opset that cannot be had
            made = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                opset_version=opset,
                input_names=["images"],
                output_names=names,
                dynamic_shapes=({0: "batch"},),
                external_data=False,
            )
        assert made is not None
        NameFixPass()(made.model)  # what is inside may have the names of an input and outputs: it gives way
        made.save(str(path), external_data=False)
    except OSError:
        raise
    except Exception as error:  # likewise
        raise ModelError(failure("it cannot be written as ONNX", name, error)) from error
    found = made.model.opset_imports[""]
    if opset is not None and found != opset:
        raise ConfigError(
            f"opset is {opset}, which this model cannot be converted to: it was written as {found}; ask for that or a "
            f"later one, or leave it out"
        )


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Nothing below an emergency of this logger's, for the block."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def write_int8(
    program: torch.export.ExportedProgram, path: Path, images: Iterator[Tensor], *, opset: int | None, name: str
) -> None:
    """Write a captured model with 8-bit weights and activations: static ranges, a scale per channel of the weights.

    Args:
        program: of `write_onnx`.
        path: to write.
        images: batches the ranges of the activations are measured on.
        opset: of `write_onnx`.
        name: of the model, for messages.

    Raises:
        ModelError: ONNX or ONNX Runtime cannot do it.
        ConfigError: the exporter cannot write this opset.

    Source:
        https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        """Hands out training images."""

        def get_next(self) -> dict[str, Any] | None:
            """The next batch; None behind the last."""
            batch = next(images, None)
            return None if batch is None else {"images": batch.numpy()}

    with TemporaryDirectory() as folder:
        whole, prepared = Path(folder) / "float.onnx", Path(folder) / "prepared.onnx"
        write_onnx(program, whole, opset=opset, name=name)
        try:
            with _quiet("root"):  # it warns of every norm, whose weights have no second axis
                quant_pre_process(str(whole), str(prepared), skip_symbolic_shape=True)
                quantize_static(str(prepared), str(path), Reader(), quant_format=QuantFormat.QDQ, per_channel=True)
        except (DataError, OSError):  # a full disk is told by who opened the file
            raise
        except Exception as error:  # it raises what it likes
            raise ModelError(failure("ONNX Runtime cannot quantise it", name, error)) from error


def calibration_batches(source: Source, count: int) -> Iterator[Tensor]:
    """Training images, `count` of them or all there are."""
    left = count
    for inputs, _ in islice(source.train_batches(CALIBRATION_BATCH, seed=0), count):
        yield inputs[:left]
        left -= len(inputs)
        if left <= 0:
            return


def in_onnx_runtime(model: nn.Module, example: Tensor) -> Exported:
    """The model as ONNX Runtime runs it, on the device of the model and with as many threads as torch uses.

    Args:
        model: not changed.
        example: one input, batch first; on the device that runs a model without parameters.

    Raises:
        ConfigError: ONNX Runtime is missing, or cannot use the device.
        ModelError: the model cannot be written as ONNX.
    """
    require_packages("measuring under ONNX Runtime")
    device = next((parameter.device for parameter in model.parameters()), example.device)
    _provider(device)
    images = example[:1].cpu().expand(2, *example.shape[1:]).contiguous()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        model = evaluating(copy.deepcopy(model).cpu())
        program = capture_any_batch(model, images)
        write_onnx(program, path, opset=None, name=type(model).__name__)
        return open_onnx(path, device, model=model, images=images)


def open_onnx(file: Path | bytes, device: torch.device | None = None, *, model: nn.Module, images: Tensor) -> Exported:
    """A file as ONNX Runtime runs it; what it returns is nested as what the model returns.

    Args:
        file: its path, or its content; not needed afterwards.
        device: that computes, and on which the inputs must lie; the CPU by default.
        model: that the file is of, in evaluation mode.
        images: that it accepts.

    Raises:
        ConfigError: ONNX Runtime cannot use the device.
        ModelError: it cannot run the model: some types have no kernels.
    """
    import onnxruntime

    device = device or torch.device("cpu")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # what PyTorch is timed with
    options.log_severity_level = 3  # errors; it warns of nodes of constants that its own optimiser left
    provider = _provider(device)
    settings = {"device_id": device.index or 0} if device.type == "cuda" else {}
    try:
        what = file if isinstance(file, bytes) else str(file)
        session = onnxruntime.InferenceSession(what, options, providers=[(provider, settings)])
    except Exception as error:  # types and operations that it has no kernel for
        raise ModelError(failure("ONNX Runtime cannot run it", type(model).__name__, error)) from error
    if provider not in session.get_providers():  # its libraries are not there: it would go on without, on the CPU
        raise ConfigError(f"ONNX Runtime cannot start {provider}; check that its CUDA and cuDNN are installed")
    with torch.no_grad():
        outputs = model(images)
    return Exported(partial(_run_session, session, device, outputs), device)


def _provider(device: torch.device) -> str:
    import onnxruntime

    name = PROVIDERS.get(device.type)
    if name is None or name not in onnxruntime.get_available_providers():
        way_out = "pip install onnxruntime-gpu in its place, or measure on cpu" if name else "use cpu or cuda"
        raise ConfigError(f"this ONNX Runtime cannot use {device} ({name or 'no provider is known'}); {way_out}")
    return name


def _run_session(session: Any, device: torch.device, outputs: Any, inputs: Tensor) -> Any:
    """Inputs are read where they lie; outputs pass through the CPU, so that they are there when this ends."""
    inputs, binding = inputs.contiguous(), session.io_binding()
    kind = torch.empty(0, dtype=inputs.dtype).numpy().dtype
    name = session.get_inputs()[0].name
    if inputs.is_cuda:
        torch.cuda.current_stream(device).synchronize()  # ONNX Runtime has a stream of its own
    binding.bind_input(name, device.type, device.index or 0, kind, tuple(inputs.shape), inputs.data_ptr())
    for output in session.get_outputs():
        binding.bind_output(output.name)
    session.run_with_iobinding(binding)
    found = (torch.from_numpy(value).to(inputs.device) for value in binding.copy_outputs_to_cpu())
    return with_tensors(outputs, found)


def failure(what: str, name: str, error: BaseException) -> str:
    """A message: whose model, what failed, and why: the first line of the innermost cause, and what explains it."""
    while error.__cause__ is not None:
        error = error.__cause__  # torch's exporter wraps it in what to tell its developers
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    reason = " ".join(lines[: 2 if lines[1:] and lines[1].startswith("- ") else 1])  # a list of what is violated
    return f"{name}: {what} ({type(error).__name__}: {reason}); no file was written"
