"""Which layer loses most by quantization.

Example:
    ```python
    print(tfc.debug_quantization(qat, "model.tflite", x_test[:64], plot="errors.png"))
    ```
"""

import os
from dataclasses import dataclass, field

from tfcompress.checks import batches, check_count, check_model, first_examples
from tfcompress.debug.chart import bars
from tfcompress.debug.differences import Difference as Difference
from tfcompress.debug.differences import LayerError as LayerError
from tfcompress.debug.differences import decibels
from tfcompress.debug.file_tensors import Recorder, with_file
from tfcompress.debug.segments import Probe
from tfcompress.deploy.files import check_writable, written_atomically
from tfcompress.passes.distill import Distiller
from tfcompress.passes.export_graph import is_quantization_aware

# Rows of the printed table; `.layers` has them all.
_SHOWN = 60
_BATCH = 16


@dataclass(frozen=True)
class QuantizationDebug:
    """What `debug_quantization` found; prints as a table.

    Attributes:
        model: Name of the model.
        examples: Number of examples that were looked at.
        layers: Tuple of `LayerError`, the worst first.
        path: Path of the file, or `None`.
    """

    model: str
    examples: int
    layers: tuple = field(repr=False)
    path: str | None = None

    def __str__(self):
        header = ("layer", "weights of", "own dB", "max error", "LSB")
        header += ("weights dB", "output dB", "model dB", "model LSB")
        rows = [(*_cells(layer), *self._file_cells(layer)) for layer in self._shown()]
        if self.path is not None:
            header += ("file dB", "file LSB", "tensor of the file")
        lines = _aligned([header, *rows])
        hidden = len(self.layers) - len(rows)
        if hidden:
            lines.append(f"... and {hidden} more in `.layers`")
        title = f"{self.model}: {len(self.layers)} rounded tensors, worst first"
        return "\n".join([f"{title} ({self.examples} examples)", *lines])

    def _shown(self):
        return self.layers[:_SHOWN]

    def _file_cells(self, layer):
        if self.path is None:
            return ()
        if layer.file is None:
            return "-", "-", f"({layer.file_note})"
        name = "/".join(layer.file_tensor.split(";")[0].split("/")[-2:])
        return decibels(layer.file), f"{layer.file.max_error_lsb:.0f}", name


def debug_quantization(model, path=None, data=None, *, examples=64, plot=None):
    """Finds the layers that lose most by quantization.

    There is a row for each tensor that the model rounds. Rows are ranked by the error
    that a layer makes by itself: it computes on the rounded tensors that it is given,
    once with latent weights and an unrounded output and once with both rounded. So a
    bad layer does not blame those behind it.

    A tensor of the file counts as that of a row if its type, scale and zero point are
    those of the row's quantizer, its shape is the same but for axes of length one, and
    its values agree with the model's: noise of at most a quarter of the variance, or
    one step on average. Of several such tensors the closest is taken, if its noise is
    less than a quarter of the next one's. In all other cases the row has no file tensor
    and a note that says why. Names are not compared: converters make them up. Errors
    of the file add up along the model, other than those of `own`.

    Args:
        model: What `quantize_aware` returned, trained or calibrated. It stays as it is.
        path: `.tflite` file that was exported from it as it is now; `None` to look at
            the model only.
        data: Inputs: arrays, a batched `tf.data.Dataset` or an iterable of batches;
            labels are allowed.
        examples: Number of examples to look at, from the beginning.
        plot: Path of a PNG file with a bar for each layer; `None` for no plot.

    Returns:
        A `QuantizationDebug`.

    Raises:
        TypeError: If `model` is no Keras 3 model, `path` no path or `data` no data.
        ValueError: If the model is not quantization-aware or has no ranges yet, the
            data do not fit, or the file is damaged or does not belong to the model.
        FileNotFoundError: If there is no such file.
        OSError: If the plot cannot be written.

    Reference:
        After the idea of TensorFlow Lite's Quantization Debugger, which compares layer
        by layer on rounded inputs.
    """
    if isinstance(model, Distiller):
        model = model.student
    _check(model, path, examples)
    if plot is not None:
        check_writable(plot)
    recorder = None if path is None else Recorder(path, model)
    found = batches(model, data, argument="data", batch_size=_BATCH)
    inputs = first_examples(found, examples)
    probe = Probe(model)
    rows = probe.rows(inputs)
    if recorder is not None:
        rows = with_file(rows, probe, recorder, inputs)
    result = QuantizationDebug(
        model=model.name,
        examples=sum(len(batch[0]) for batch in inputs),
        layers=tuple(sorted(rows, key=lambda row: row.own.sqnr_db)),
        path=None if path is None else os.fspath(path),
    )
    if plot is not None:
        with written_atomically(plot) as temporary:
            temporary.write_bytes(bars(result))
    return result


def _check(model, path, examples):
    check_model(model)
    if not is_quantization_aware(model):
        raise ValueError(
            f"Model {model.name!r} is not quantization-aware: nothing in it is "
            "rounded. Pass what tfc.quantize_aware(model, calibration_data=x) returns."
        )
    if path is not None and not isinstance(path, (str, os.PathLike)):
        raise TypeError(
            "`path` must be the path of a .tflite file, or None. Received: an object "
            f"of type {type(path).__name__}. Data go into `data`."
        )
    check_count("examples", examples)


def _cells(layer):
    return (
        layer.name,
        ", ".join(k for k in layer.kernels if k != layer.name) or "-",
        decibels(layer.own),
        f"{layer.own.max_error:.3g}",
        f"{layer.own.max_error_lsb:.1f}",
        decibels(layer.weights),
        decibels(layer.output),
        decibels(layer.model),
        f"{layer.model.max_error_lsb:.1f}",
    )


def _aligned(rows):
    """Lines of text cells in columns: numbers right, all else left."""
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    left = [_is_text(column[1:]) for column in columns]
    return [
        "  ".join(
            cell.ljust(width) if text else cell.rjust(width)
            for cell, width, text in zip(row, widths, left, strict=True)
        ).rstrip()
        for row in rows
    ]


def _is_text(cells):
    words = ("-", "equal", "inf", "-inf", "nan")
    return not all(c in words or c.lstrip("-")[:1].isdigit() for c in cells)
