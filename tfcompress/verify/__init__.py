"""Whether a `.tflite` file computes what the model does, wherever it runs.

Example:
    ```python
    result = tfc.verify(model, "model.tflite", x_test[:64])
    print(result)        # outputs in every runtime, and every operation
    assert result.ok
    ```
"""

import os
from dataclasses import dataclass, field

import numpy as np

from tfcompress.checks import batches, check_count, check_model, first_examples
from tfcompress.debug.differences import decibels
from tfcompress.deploy.runtime import TFLiteRunner, check_belongs
from tfcompress.deploy.tflite_file import read_tflite
from tfcompress.graph import symbolic_inputs
from tfcompress.measure import keras_runner
from tfcompress.passes.distill import Distiller
from tfcompress.verify.operations import OperationAgreement as OperationAgreement
from tfcompress.verify.operations import compare_operations
from tfcompress.verify.outputs import OutputAgreement as OutputAgreement
from tfcompress.verify.outputs import agreements, cells, least_db
from tfcompress.verify.runtimes import RUNTIMES, RuntimeMissing, RuntimeRefusal
from tfcompress.verify.runtimes import run as run_file

# Examples on which operations are compared: their tensors are all in memory.
_OPERATION_EXAMPLES = 4


class VerificationError(ValueError):
    """A file does not compute what the model does."""


@dataclass(frozen=True)
class Verification:
    """What `verify` found; printed, it is a table.

    Attributes:
        model: Name of the model.
        path: Path of the file.
        examples: Number of examples that were compared.
        min_sqnr_db: Least signal to noise, in dB, that counts as agreement.
        outputs: Tuple of `OutputAgreement`, by runtime and output.
        operations: Tuple of `OperationAgreement` in file order.
        skipped: Dict from runtime to the reason why it did not run the file.
        arena_bytes: Bytes that TFLite Micro needs for tensors and bookkeeping, on this
            64-bit machine, where pointers are twice as large as on most
            microcontrollers. `None` if it did not run.
    """

    model: str
    path: str
    examples: int
    min_sqnr_db: float
    outputs: tuple
    operations: tuple = field(default=(), repr=False)
    skipped: dict = field(default_factory=dict)
    arena_bytes: int | None = None

    @property
    def ok(self):
        """Whether every output agrees in every runtime that ran the file."""
        return all(output.ok for output in self.outputs)

    def __str__(self):
        verdict = "agrees" if self.ok else "DISAGREES"
        lines = [
            f"{self.path} {verdict} with {self.model} ({self.examples} examples, "
            f"at least {self.min_sqnr_db:g} dB)"
        ]
        rows = [("runtime", "output", "dB", "max error", "steps", "same class", "")]
        rows += [cells(output) for output in self.outputs]
        lines += _columns(rows)
        lines += [f"  {name}: {why}" for name, why in self.skipped.items()]
        if self.arena_bytes is not None:
            lines.append(f"  arena of TFLite Micro: {self.arena_bytes:,} bytes")
        if self.operations:
            rows = [("#", "operator", "xnnpack", "reference", "layer", "dB")]
            rows += [_operation_cells(operation) for operation in self.operations]
            lines += ["  largest difference to the builtin kernels:", *_columns(rows)]
        return "\n".join(lines)


def verify(
    model,
    path,
    data,
    *,
    runtimes=None,
    examples=64,
    operations=True,
    min_sqnr_db=None,
    check=False,
):
    """Compares a `.tflite` file with the model it was exported from.

    The file runs with XNNPACK, with TFLite's builtin and its reference kernels in
    `ai-edge-litert`, in TensorFlow's `tf.lite`, and in TFLite Micro, if that is
    installed (`pip install 'tfcompress[micro]'`). Each of its operations also runs
    alone, on what it is given within the file, in each kernel set; and its output is
    set beside that of the layer that computes it: of a quantization-aware model by the
    grids it learned (as `debug_quantization` does), of another by the values.

    A file that disagrees is a result, not an error: look at `.ok`, or pass
    `check=True`.

    Args:
        model: The Keras model, as it was exported. It stays as it is.
        path: Path of the file.
        data: Inputs: arrays, a batched `tf.data.Dataset` or an iterable of batches;
            labels are allowed.
        runtimes: Names of the runtimes, of `tfcompress.verify.RUNTIMES`; `None` is all
            that there are. One that is asked for and not installed is an error.
        examples: Number of examples to look at, from the beginning.
        operations: Whether to compare operations, on the first four examples.
        min_sqnr_db: Least signal to noise of an output in dB; `None` takes 60 for
            float32, 40 for float16, 25 for 16-bit and 12 for 8-bit files and weights.
        check: Whether to raise if an output disagrees.

    Returns:
        A `Verification`.

    Raises:
        TypeError: If `model` is no Keras 3 model.
        FileNotFoundError: If there is no such file.
        ImportError: If a runtime that was asked for is not installed.
        ValueError: If the file is damaged or does not belong to the model, the data do
            not fit, or LiteRT cannot run the file.
        VerificationError: If an output disagrees and `check` is True.
    """
    if isinstance(model, Distiller):
        model = model.student
    check_model(model)
    symbolic_inputs(model)
    names = _checked_runtimes(runtimes)
    check_count("examples", examples)
    file = read_tflite(path)
    check_belongs(model, TFLiteRunner(path), path)
    taken = first_examples(batches(model, data, argument="data"), examples)
    inputs = [np.concatenate(column) for column in zip(*taken, strict=True)]
    if min_sqnr_db is None:
        min_sqnr_db = least_db(file)
    expected = keras_runner(model)(inputs)
    outputs, skipped, arena = [], {}, None
    for name in names:
        try:
            found, used = run_file(name, path, inputs)
        except RuntimeMissing as err:
            if runtimes is not None:
                raise
            skipped[name] = str(err)
            continue
        except RuntimeRefusal as err:
            if runtimes is not None or name == names[0]:
                raise RuntimeRefusal(
                    f"{name} cannot run {os.fspath(path)!r}: {err}"
                ) from err
            skipped[name] = f"cannot run the file: {err}"
            continue
        arena = used or arena
        outputs += agreements(name, path, expected, found, min_sqnr_db)
    first = [array[:_OPERATION_EXAMPLES] for array in inputs]
    result = Verification(
        model=model.name,
        path=os.fspath(path),
        examples=len(inputs[0]),
        min_sqnr_db=float(min_sqnr_db),
        outputs=tuple(outputs),
        operations=compare_operations(model, path, first) if operations else (),
        skipped=skipped,
        arena_bytes=arena,
    )
    if check and not result.ok:
        raise VerificationError(f"{result}")
    return result


def _checked_runtimes(runtimes):
    names = tuple(RUNTIMES) if runtimes is None else tuple(runtimes)
    if isinstance(runtimes, str) or not names or not set(names) <= set(RUNTIMES):
        raise ValueError(
            f"`runtimes` must be a list of {tuple(RUNTIMES)}. Received: {runtimes!r}"
        )
    return names


def _operation_cells(operation):
    return (
        str(operation.index),
        operation.operator,
        _error(operation.xnnpack, operation.quantized),
        _error(operation.reference, operation.quantized),
        operation.layer or "-",
        decibels(operation.keras),
    )


def _error(value, quantized):
    if value is None:
        return "-"
    return f"{value:.0f} steps" if quantized else f"{value:.1g}"


def _columns(rows):
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
