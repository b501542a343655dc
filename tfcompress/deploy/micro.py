"""TFLite Micro: which operators a file needs, how much memory, and what it computes.

Example:
    ```python
    resolver_calls(read_tflite("model.tflite"))         # ("AddConv2D", ...)
    run = run_micro("model.tflite")
    run.arena_bytes, run.outputs
    ```
"""

import os
import pathlib
import tempfile
from dataclasses import dataclass, field

import numpy as np

from tfcompress.deploy.programs import installed, run_script
from tfcompress.deploy.tflite_file import read_tflite

# The methods of `MicroMutableOpResolver`, without "Add", for operators of TFLite. Their
# names are those of the operators, but for capitals and underscores.
_METHODS = """
Abs Add AddN ArgMax ArgMin AssignVariable AveragePool2D BatchMatMul BatchToSpaceNd
BroadcastArgs BroadcastTo CallOnce Cast Ceil Concatenation Conv2D Cos CumSum
DepthToSpace DepthwiseConv2D Dequantize Div DynamicUpdateSlice Elu EmbeddingLookup Equal
Exp ExpandDims Fill Floor FloorDiv FloorMod FullyConnected Gather GatherNd Greater
GreaterEqual HardSwish If L2Normalization L2Pool2D LeakyRelu Less LessEqual Log
LogSoftmax LogicalAnd LogicalNot LogicalOr Logistic MaxPool2D Maximum Mean Minimum
MirrorPad Mul Neg NotEqual Pack Pad PadV2 Prelu Quantize ReadVariable ReduceAll
ReduceMax ReduceMin Relu Relu6 Reshape ResizeBilinear ResizeNearestNeighbor ReverseV2
Round Rsqrt SelectV2 Shape Sin Slice Softmax SpaceToBatchNd SpaceToDepth Split SplitV
Sqrt Square SquaredDifference Squeeze StridedSlice Sub Sum Svdf Tanh Transpose
TransposeConv UnidirectionalSequenceLSTM Unpack VarHandle While ZerosLike
""".split()
_BY_OPERATOR = {name.lower(): f"Add{name}" for name in _METHODS}
_CUSTOM = {
    "CIRCULAR_BUFFER": "AddCircularBuffer",
    "TFLite_Detection_PostProcess": "AddDetectionPostprocess",
    "ethos-u": "AddEthosU",
}
_INPUT_TYPES = ("FLOAT32", "INT8", "UINT8", "INT16", "INT32", "INT64", "BOOL")
_PACKAGE = "tflite_micro"
# Larger than any file's size and activations on the devices that this is for.
_LARGEST_ARENA = 1 << 28
_CHILD = pathlib.Path(__file__).with_name("micro_child.py")


@dataclass(frozen=True)
class MicroRun:
    """What TFLite Micro's interpreter did with a file, on this machine.

    Attributes:
        arena_bytes: Smallest tensor arena with which it loads, on this machine; a
            microcontroller, with pointers of 4 bytes, needs somewhat less, and
            optimized kernels (CMSIS-NN) may need more.
        outputs: List of arrays, one an output in the file's order, with one row an
            example, in the file's types.
        milliseconds: Median time of one inference by its portable kernels here, which
            says nothing of a device; NaN if it was not timed.
    """

    arena_bytes: int
    outputs: list = field(repr=False)
    milliseconds: float


def resolver_calls(file):
    """The methods of `MicroMutableOpResolver` that a file needs.

    Args:
        file: What `read_tflite` returned.

    Returns:
        Tuple of names, `"AddConv2D"`, sorted; each once.

    Raises:
        ValueError: If TFLite Micro has no kernel for an operator.
    """
    calls, unknown = set(), set()
    for op in (op for graph in file.graphs for op in graph.operations):
        known = _CUSTOM if op.custom else _BY_OPERATOR
        name = op.operator if op.custom else op.operator.replace("_", "").lower()
        calls.add(known.get(name))
        if name not in known:
            unknown.add(op.operator)
    if unknown:
        raise ValueError(
            f"TFLite Micro has no kernel for {', '.join(sorted(unknown))}. Replace the "
            "layers they come from (tfc.replace_activations does activations), or pass "
            "resolver=False to write the bytes alone and register your own kernels."
        )
    return tuple(sorted(calls))


def run_micro(path, inputs=None, *, repeats=0, timeout_sec=120):
    """Runs a file in TFLite Micro's interpreter, in a process of its own.

    It is the interpreter that runs on microcontrollers, built for this machine, with
    its portable kernels. It ends its process on some files, which is an error here.

    Args:
        path: Path of a `.tflite` file.
        inputs: List of arrays, one an input in the file's order, with one row an
            example, in the file's types; `None` for one example of zeros. A row has the
            shape of the file's input without its batch axis of 1.
        repeats: How many inferences are timed.
        timeout_sec: Seconds after which it is given up.

    Returns:
        A `MicroRun`.

    Raises:
        ImportError: If the package `tflite-micro` is not installed.
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, or the interpreter cannot run it.
    """
    file = read_tflite(path)
    if not installed(_PACKAGE):
        raise ImportError(
            "TFLite Micro's interpreter is not installed: "
            "pip install 'tfcompress[micro]' (the package tflite-micro)."
        )
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder).resolve()
        (folder / "model.tflite").write_bytes(pathlib.Path(path).read_bytes())
        np.savez(folder / "inputs.npz", **_columns(file, inputs))
        _run(path, folder, len(file.outputs), repeats, timeout_sec)
        with np.load(folder / "outputs.npz") as arrays:
            found = dict(arrays)
    outputs = [found[f"output_{i}"] for i in range(len(found) - 2)]
    return MicroRun(
        arena_bytes=int(found["arena_bytes"]),
        outputs=[_flat_batch(output) for output in outputs],
        milliseconds=float(found["milliseconds"]),
    )


def _columns(file, inputs):
    """The examples of each input, each as the file wants it."""
    for tensor in file.inputs:
        if tensor.dtype not in _INPUT_TYPES:
            raise ValueError(
                f"Input {tensor.name!r} of {file.path!r} is {tensor.dtype.lower()}; "
                f"TFLite Micro takes {', '.join(_INPUT_TYPES).lower()}."
            )
    types = [np.dtype(t.dtype.lower()) for t in file.inputs]
    if inputs is None:
        inputs = [np.zeros((1, *t.shape[1:])) for t in file.inputs]
    if len(inputs) != len(file.inputs):
        raise ValueError(
            f"`inputs` must be {len(file.inputs)} array(s). Received: {len(inputs)}"
        )
    return {
        f"input_{i}": np.asarray(a, dtype).reshape(-1, *tensor.shape)
        for i, (a, dtype, tensor) in enumerate(
            zip(inputs, types, file.inputs, strict=True)
        )
    }


def _flat_batch(output):
    """One row an example, from rows that each hold a batch of one."""
    if output.ndim < 2:
        return output
    return output.reshape(len(output) * output.shape[1], *output.shape[2:])


def _run(path, folder, outputs, repeats, timeout_sec):
    arguments = [str(_LARGEST_ARENA), str(outputs), str(repeats)]
    done = run_script(_CHILD, arguments, folder, timeout_sec)
    if done.code == 0:
        return
    said = done.code is not None and not done.crash
    why = _reason(done.output) if said else done.trouble(timeout_sec)
    raise ValueError(f"TFLite Micro cannot run {os.fspath(path)!r}: {why}.")


def _reason(output):
    """What the interpreter said last before the traceback, and the error."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    start = next((i for i, s in enumerate(lines) if s.startswith("Traceback")), 0)
    # It names the cause and then the operation; without a cause it repeats itself.
    said = dict.fromkeys([*lines[max(start - 2, 0) : start], *lines[-1:]])
    return "; ".join(said) or "no reason given"
