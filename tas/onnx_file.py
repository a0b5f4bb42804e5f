"""ONNX files: written by torch's exporter, rounded to 8-bit integers and run by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from tas.data import Source
from tas.errors import ConfigError, DataError, ModelError

SIZE_LIMIT = 2**31 - 1  # bytes of one protobuf message
CALIBRATION_BATCH = 32


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


def write_onnx(program: torch.export.ExportedProgram, path: Path, *, opset: int | None, name: str) -> None:
    """Write a captured model with all its weights into one file; its input is called images.

    Args:
        program: of one input.
        path: to write.
        opset: version of the operators; None is the exporter's own.
        name: of the model, for messages.

    Raises:
        ModelError: it is too large, or has an operation that ONNX cannot express.
        ConfigError: the exporter cannot write this opset.
    """
    size = sum(tensor.nbytes for tensor in program.state_dict.values())
    if size > SIZE_LIMIT:
        raise ModelError(f"the weights have {size:,} bytes, an ONNX file at most {SIZE_LIMIT:,}; use torch-export")
    try:
        made = torch.onnx.export(
            program, dynamo=True, verbose=False, opset_version=opset, input_names=["images"], external_data=False
        )
        assert made is not None
        made.save(str(path), external_data=False)
    except OSError:
        raise
    except Exception as error:  # likewise
        raise ModelError(failure("it cannot be written as ONNX", name, error)) from error
    found = made.model.opset_imports[""]
    if opset is not None and found != opset:
        raise ConfigError(f"opset is {opset}, but the exporter can only write {found} for this model; leave it out")


def write_int8(
    program: torch.export.ExportedProgram, path: Path, images: Iterator[Tensor], *, opset: int | None, name: str
) -> None:
    """Write a captured model with 8-bit weights and activations: static ranges, a scale per channel of the weights.

    Args:
        program: of one input.
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


def open_onnx(path: Path) -> Callable[[Tensor], Any]:
    """A function that runs a file under ONNX Runtime on the CPU: a tensor in, one or a list of them out."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # what PyTorch is timed with
    options.log_severity_level = 3  # errors; it warns of nodes of constants that its own optimiser left
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return partial(_run_session, session)


def _run_session(session: Any, inputs: Tensor) -> Any:
    found = [torch.from_numpy(value) for value in session.run(None, {session.get_inputs()[0].name: inputs.numpy()})]
    return found[0] if len(found) == 1 else found


def failure(what: str, name: str, error: Exception) -> str:
    """A message: whose model, what failed, and the first line of why."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"{name}: {what} ({type(error).__name__}: {reason}); no file was written"
