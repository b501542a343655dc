"""Runs the TFLite converter on a model, and keeps its crashes away from us.

Example:
    ```python
    content = convert(plain, 1, int8_settings("int8"))
    content = calibrate_and_convert(model, 1, "int8", examples(model, x))
    ```
"""

import contextlib
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile

import keras
import numpy as np
import tensorflow as tf

from tfcompress.checks import batches
from tfcompress.deploy.quiet import quiet
from tfcompress.graph import check_scopes, flat_call, symbolic_inputs

IO_TYPES = {"int8": tf.int8, "uint8": tf.uint8, "float32": tf.float32}
_COLOURS = re.compile(r"\x1b\[\d+m")
_LOOPS = ("While", "StatelessWhile")
_ONE_SCALE_DENSE = "_experimental_disable_per_channel_quantization_for_dense_layers"


def convert(model, batch_size, configure):
    """Converts by way of a SavedModel, which holds for every kind of Keras model.

    Args:
        model: Keras model with symbolic inputs.
        batch_size: Batch size of the file; `None` leaves it open.
        configure: Function that sets up a `tf.lite.TFLiteConverter`.

    Returns:
        Bytes of the file. Its inputs are in the order of the model's.

    Raises:
        ValueError: If the converter refuses the model.
    """
    with tempfile.TemporaryDirectory() as folder, _named_errors(model):
        _save(model, batch_size, folder)
        return _convert_saved(folder, configure)


def calibrate_and_convert(model, batch_size, io, calibration, *, one_scale_dense=False):
    """Converts a float model to integers, with ranges that the converter measures.

    The converter's calibration of a graph with a loop can end the process, without an
    exception; such a graph is converted in a process of its own.

    Args:
        model: Keras model with symbolic inputs.
        batch_size: Batch size of the file; `None` leaves it open.
        io: Type of inputs and outputs.
        calibration: What `examples` returned.
        one_scale_dense: Whether a dense kernel has one scale for all units.

    Returns:
        Bytes of the file.

    Raises:
        ValueError: If the converter refuses the model, or crashes.
    """
    with tempfile.TemporaryDirectory() as folder, _named_errors(model):
        _save(model, batch_size, folder)
        if has_loop(folder):
            return _convert_apart(folder, io, calibration, batch_size)
        settings = int8_settings(
            io, calibration, batch_size, one_scale_dense=one_scale_dense
        )
        return _convert_saved(folder, settings)


def int8_settings(io, calibration=None, batch_size=1, *, one_scale_dense=False):
    """What the converter needs to be told for a file of 8-bit integers.

    Args:
        io: Type of inputs and outputs: `"int8"`, `"uint8"` or `"float32"`.
        calibration: What `examples` returned; `None` for a model with fake
            quantization.
        one_scale_dense: Whether a dense kernel has one scale for all units.
        batch_size: Batch size of the file; `None` leaves it open.

    Returns:
        Function that sets up a `tf.lite.TFLiteConverter`.
    """

    def configure(converter):
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.inference_input_type = IO_TYPES[io]
        converter.inference_output_type = IO_TYPES[io]
        if one_scale_dense:
            setattr(converter, _ONE_SCALE_DENSE, True)
        if calibration is not None:
            converter.representative_dataset = lambda: _single(
                calibration, batch_size or 1
            )
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]

    return configure


def examples(model, data):
    """Calibration data, checked before the converter starts.

    Args:
        model: The model that will see them.
        data: What the user passed as `calibration_data`.

    Returns:
        List of batches: dicts from the name of an input of the file to an array.
    """
    checked = batches(model, data, argument="calibration_data")
    return [{f"input_{i}": a for i, a in enumerate(inputs)} for inputs, _ in checked]


def _single(calibration, batch_size):
    """Each example by itself, as often as the file takes it at a time."""
    for batch in calibration:
        for row in range(len(batch["input_0"])):
            yield {
                name: np.repeat(array[row : row + 1], batch_size, axis=0)
                for name, array in batch.items()
            }


def has_loop(folder):
    """Whether the graph of a SavedModel holds a loop."""
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString((pathlib.Path(folder) / "saved_model.pb").read_bytes())
    graphs = [meta.graph_def for meta in saved.meta_graphs]
    return any(
        node.op in _LOOPS
        for graph in graphs
        for nodes in (graph.node, *(f.node_def for f in graph.library.function))
        for node in nodes
    )


def _save(model, batch_size, folder):
    check_scopes(model)
    specs = [
        tf.TensorSpec((batch_size, *tensor.shape[1:]), tensor.dtype, name=f"input_{i}")
        for i, tensor in enumerate(symbolic_inputs(model))
    ]
    archive = keras.export.ExportArchive()
    archive.track(model)
    infer = flat_call(model)
    archive.add_endpoint(
        "serving_default",
        # A dict would name the outputs, and lose their order.
        lambda *inputs: keras.tree.flatten(infer(*inputs)),
        input_signature=specs,
    )
    archive.write_out(folder, verbose=False)


def _convert_saved(folder, configure):
    converter = tf.lite.TFLiteConverter.from_saved_model(os.fspath(folder))
    configure(converter)
    return converter.convert()


def _convert_apart(folder, io, calibration, batch_size):
    """As `_convert_saved`, in a process that may die."""
    folder = pathlib.Path(folder)
    arrays = {
        f"{number}/{name}": array
        for number, batch in enumerate(calibration)
        for name, array in batch.items()
    }
    np.savez(folder / "calibration.npz", **arrays)
    code = "import sys; from tfcompress.deploy import converter; converter.child()"
    done = subprocess.run(
        [sys.executable, "-c", code, os.fspath(folder), io, str(batch_size or 1)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode < 0:
        raise RuntimeError(
            f"it crashed ({signal.Signals(-done.returncode).name}) while it calibrated "
            "a graph with a loop. Use layers that `tfc.quantize_aware` can unroll, and "
            "export what it returns, or export kind='float32'."
        )
    if done.returncode:
        raise RuntimeError(_reason(done.stderr, "the process ended"))
    return (folder / "model.tflite").read_bytes()


def child():
    """What `_convert_apart` runs in the other process."""
    folder, io = pathlib.Path(sys.argv[1]), sys.argv[2]
    calibration = {}
    with np.load(folder / "calibration.npz") as arrays:
        for key, array in arrays.items():
            number, name = key.split("/")
            calibration.setdefault(int(number), {})[name] = array
    settings = int8_settings(io, list(calibration.values()), int(sys.argv[3]))
    (folder / "model.tflite").write_bytes(_convert_saved(folder, settings))


@contextlib.contextmanager
def _named_errors(model):
    """Silence, and errors that say which model was refused and why."""
    with quiet() as caught:
        try:
            yield
        except Exception as err:
            raise ValueError(
                f"The TFLite converter refuses model {model.name!r}: "
                f"{_reason(caught(), err)}"
            ) from err


def _reason(caught, err):
    # Keras adds what a layer was called with, and colours.
    said = _COLOURS.sub("", str(err)).partition("Arguments received by")[0]
    lines = [line.strip() for line in f"{caught}\n{said}".splitlines()]
    telling = [
        line for line in lines if "error:" in line.lower() and not line.endswith(":")
    ]
    return (telling or [line for line in lines if line] or [type(err).__name__])[-1]
