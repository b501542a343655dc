"""Brings an int8 `.tflite` file into the form that Edge TPU compiler 16 reads.

The compiler is of 2021, and refuses a whole file for one operation of a later version.
What current converters write is put into older operations that compute the same
integers: a dense layer on several positions, or with a scale for each unit, is a 1x1
convolution, a grouped convolution is one for each group, and what follows a transposed
one is an operation of its own.

Example:
    ```python
    content = edgetpu_form(content)
    check_accepted(read_tflite(path))
    ```
"""

import copy
import math

import keras
import numpy as np
from absl import logging

from tfcompress.deploy.edgetpu_check import check_file
from tfcompress.deploy.file_editor import FileEditor
from tfcompress.deploy.tflite_file import schema
from tfcompress.graph import Graph, flatten, rewrite

_SEPARATE = ("NONE", "RELU", "RELU6")


def check_settings(kind, io, batch_size):
    """Raises `ValueError` unless a file of these settings can be for an Edge TPU."""
    for name, value, wanted in (
        ("kind", kind, ("int8",)),
        ("io", io, ("int8", "uint8")),
        ("batch_size", batch_size, (1,)),
    ):
        if value not in wanted:
            raise ValueError(
                f"target='edgetpu' needs {name}={' or '.join(map(repr, wanted))}. "
                f"Received: {name}={value!r}"
            )


def mappable_layers(model):
    """The model with nearest upsampling in operations that are mapped.

    Keras repeats rows and columns by five operations, two of them of rank 5, and steps
    of a sequence by one that is not documented.

    Args:
        model: Keras model with symbolic inputs.

    Returns:
        A model that computes the same; `model` itself if it has no such layer.
    """
    graph = Graph(flatten(model))
    if not any(_is_nearest(call) for call in graph.calls):
        return model
    taken = set()

    def visit(call, clone, args, kwargs):
        layer = call.operation
        if not _is_nearest(call):
            return clone(layer)(*args, **kwargs)
        # Each call of a shared layer becomes a layer, and names must differ.
        name = layer.name if layer.name not in taken else None
        taken.add(layer.name)
        given = {"name": name, "dtype": layer.dtype_policy}
        _, *shape = call.outputs[0].shape
        if isinstance(layer, keras.layers.UpSampling2D):
            return keras.layers.Resizing(*shape[:2], "nearest", **given)(
                *args, **kwargs
            )
        repeated = keras.layers.Concatenate(dtype=layer.dtype_policy)(
            [*args, *kwargs.values()] * layer.size
        )
        return keras.layers.Reshape(shape, **given)(repeated)

    return rewrite(graph, visit)


def _is_nearest(call):
    layer = call.operation
    if None in call.outputs[0].shape[1:]:
        return False
    if isinstance(layer, keras.layers.UpSampling1D):
        return layer.size > 1
    return (
        isinstance(layer, keras.layers.UpSampling2D)
        and layer.interpolation == "nearest"
        and layer.data_format == "channels_last"
    )


def edgetpu_form(content):
    """Replaces what the compiler does not read by operations that it does.

    Args:
        content: Bytes of an int8 file with a fixed batch size.

    Returns:
        Bytes of a file that computes the same integers. What has no older form stays:
        see `check_accepted`.
    """
    editor = FileEditor(schema().ModelT.InitFromPackedBuf(content, 0))
    graph = editor.graph
    operators = list(graph.operators or ())
    graph.operators = []
    for operator in operators:
        name = editor.name(operator)
        if name == "FULLY_CONNECTED":
            _dense(editor, operator)
        elif name == "CONV_2D":
            _convolution(editor, operator)
        elif name == "TRANSPOSE_CONV":
            _transposed(editor, operator)
        else:
            graph.operators.append(operator)
    return editor.packed()


def check_accepted(file):
    """Raises unless the compiler will take the file and map a part of it.

    What stays on the CPU is logged.

    Args:
        file: `TFLiteFile` of what was written.

    Raises:
        ValueError: If the compiler refuses the file, or would map nothing; says why,
            and what to do.
    """
    check = check_file(file)
    on_cpu = [op for op in check.operations if not op.mapped]
    if not check.mapped_count:
        first = on_cpu[0] if on_cpu else None
        why = f"{first.reason}. {first.remedy}" if first else "it has no operations."
        raise ValueError(
            f"No operation of the file would be mapped to an Edge TPU: {why} Nothing "
            "was written."
        )
    shapes = [t.shape for t in file.inputs if t.dynamic or t.shape[:1] != (1,)]
    if shapes:
        raise ValueError(
            "An Edge TPU needs inputs of fixed shape and batch size 1. Received: "
            f"{shapes}. Give every keras.Input a fixed shape. Nothing was written."
        )
    if on_cpu:
        names = ", ".join(dict.fromkeys(op.operator for op in on_cpu))
        logging.warning(
            "%d of %d operations will run on the CPU (%s): tfc.check_edgetpu says why.",
            len(on_cpu),
            len(check.operations),
            names,
        )


def _dense(editor, operator):
    """FULLY_CONNECTED of version 4, or a 1x1 convolution with the same weights."""
    x, weight = (editor.tensors[i] for i in operator.inputs[:2])
    output = editor.tensors[operator.outputs[0]]
    units, features = map(int, weight.shape)
    rows = math.prod(map(int, x.shape)) // features
    if not _of_8_bits(editor, operator.inputs[1]) or not editor.constant(
        operator.inputs[1]
    ):
        editor.graph.operators.append(operator)
    elif rows == 1 and len(weight.quantization.scale) == 1:
        _one_row(editor, operator, output, units)
    else:
        _as_convolution(editor, operator, rows)


def _one_row(editor, operator, output, units):
    operator.opcodeIndex = editor.code("FULLY_CONNECTED")
    operator.builtinOptions.keepNumDims = False
    editor.graph.operators.append(operator)
    if len(output.shape) != 2:
        flat = editor.add_like(output, (1, units))
        target, operator.outputs = operator.outputs[0], [flat]
        editor.reshape(flat, target)


def _as_convolution(editor, operator, rows):
    formats = editor.formats
    x, weight, *bias = (int(i) for i in operator.inputs)
    units, features = map(int, editor.tensors[weight].shape)
    kernel = editor.own(weight)
    editor.tensors[kernel].shape = [units, 1, 1, features]
    if not bias or bias[0] < 0:
        bias = [editor.zero_bias(x, kernel, units)]
    options = formats.Conv2DOptionsT()
    options.padding = formats.Padding.VALID
    options.strideH = options.strideW = 1
    options.dilationHFactor = options.dilationWFactor = 1
    options.fusedActivationFunction = operator.builtinOptions.fusedActivationFunction
    target = operator.outputs[0]
    shape = tuple(map(int, editor.tensors[x].shape))
    direct = len(shape) == 4 and len(editor.tensors[target].shape) == 4
    if direct:
        source, result = x, target
    else:
        source = editor.add_like(editor.tensors[x], (1, 1, rows, features))
        editor.reshape(x, source)
        result = editor.add_like(editor.tensors[target], (1, 1, rows, units))
    editor.add_operator("CONV_2D", [source, kernel, bias[0]], [result], options)
    if not direct:
        editor.reshape(result, target)


def _convolution(editor, operator):
    """CONV_2D of version 3.

    The converter writes one version for all of a kind: the newest that any needs.
    """
    if _groups(editor, operator) > 1:
        _grouped(editor, operator)
        return
    if _of_8_bits(editor, operator.inputs[1]):
        operator.opcodeIndex = editor.code("CONV_2D")
    editor.graph.operators.append(operator)


def _transposed(editor, operator):
    """TRANSPOSE_CONV of version 3, with its activation behind it.

    Both write with the same scale, so that the activation but cuts off integers.
    """
    activation = _activation(editor, operator)
    if not _of_8_bits(editor, operator.inputs[1]) or activation not in _SEPARATE:
        editor.graph.operators.append(operator)
        return
    operator.opcodeIndex = editor.code("TRANSPOSE_CONV")
    editor.graph.operators.append(operator)
    if activation != "NONE":
        target = int(operator.outputs[0])
        tensor = editor.tensors[target]
        operator.outputs = [editor.add_like(tensor, tensor.shape)]
        kinds = editor.formats.ActivationFunctionType
        operator.builtinOptions.fusedActivationFunction = kinds.NONE
        editor.add_operator(activation, operator.outputs, [target])


def _activation(editor, operator):
    """Name of the fused activation, which is that of its operator."""
    kinds = vars(editor.formats.ActivationFunctionType)
    names = {value: name for name, value in kinds.items() if name.isupper()}
    return names[operator.builtinOptions.fusedActivationFunction]


def _of_8_bits(editor, index):
    return editor.tensors[index].type == editor.formats.TensorType.INT8


def _groups(editor, operator):
    x, kernel = (editor.tensors[i] for i in operator.inputs[:2])
    return int(x.shape[-1]) // int(kernel.shape[-1])


def _grouped(editor, operator):
    """One convolution for each group, between SPLIT and CONCATENATION."""
    formats = editor.formats
    groups = _groups(editor, operator)
    x, kernel, *bias = (int(i) for i in operator.inputs)
    target = int(operator.outputs[0])
    parts = editor.add_parts(x, groups)
    results = editor.add_parts(target, groups)
    split = formats.SplitOptionsT()
    split.numSplits = groups
    axis = editor.add_constant(np.array(3, np.int32))
    editor.add_operator("SPLIT", [axis, x], parts, split)
    kernels = editor.add_slices(kernel, groups)
    biases = editor.add_slices(bias[0], groups) if bias and bias[0] >= 0 else None
    for number in range(groups):
        inputs = [parts[number], kernels[number]]
        if biases is None:
            units = int(editor.tensors[kernels[number]].shape[0])
            inputs.append(editor.zero_bias(*inputs, units))
        else:
            inputs.append(biases[number])
        options = copy.copy(operator.builtinOptions)
        editor.add_operator("CONV_2D", inputs, [results[number]], options)
    join = formats.ConcatenationOptionsT()
    join.axis = 3
    editor.add_operator("CONCATENATION", results, [target], join)
