"""Files with 16-bit activations and 8-bit weights, from the ranges a model learned.

The converter makes such a file from fake quantization of 16 bits around zero, without
any data. What it writes then does not run yet: biases are too narrow, and additions are
marked as if their scales were powers of two. Both are set right afterwards.

Example:
    ```python
    model = widen_activations(export_graph(qat, batch_size=1))
    ...   # converted with settings(io="int16")
    content = make_runnable(content)
    ```

Reference:
    TensorFlow Lite 8-bit quantization specification, and "16x8" in
    tensorflow.org/lite/performance/post_training_integer_quant_16x8
"""

import keras
import numpy as np
import tensorflow as tf

from tfcompress.deploy.tflite_file import parsed, schema, serialized
from tfcompress.graph import Graph, clone, rewrite
from tfcompress.layers import ConstantFakeQuant, ConstantTensor
from tfcompress.passes import quantize_rules as rules

IO_TYPES = {"int16": tf.int16, "float32": tf.float32}

# Keras' operations of two operands, of which one may be a constant.
_ARITHMETIC = ("Add", "Subtract", "Multiply")

# Operators whose output has this scale in the runtime, whatever the file says.
_UNIT = ("LOGISTIC", "SOFTMAX", "TANH")
_UNIT_SCALE = 2.0**-15

# Operators with a bias, which has the third place, or here the fourth.
_BIAS = {
    "CONV_2D": 2,
    "DEPTHWISE_CONV_2D": 2,
    "FULLY_CONNECTED": 2,
    "TRANSPOSE_CONV": 3,
}

# Version from which an operator takes what is set here.
_VERSIONS = {
    "ADD": 3,
    "CONV_2D": 8,
    "DEPTHWISE_CONV_2D": 3,
    "FULLY_CONNECTED": 11,
    "SUB": 5,
    "TRANSPOSE_CONV": 5,
}


def widen_activations(model, *, batch_size="same"):
    """Gives the activations of an export graph grids of 16 bits around zero.

    A range from `low` to `high` becomes one of 65,536 steps from `-limit` to `limit`,
    the larger of the two; values that were cut off before may pass now. Grids of 16
    bits stay. Concatenation and a ReLU6 that stands alone, which the converter refuses
    in 16 bits, become operations that give the same.

    Args:
        model: What `export_graph` returned.
        batch_size: Batch size of the result; `"same"` keeps what there is.

    Returns:
        A float32 `keras.Model` that computes what the 16-bit file will.
    """
    graph = Graph(model)
    return rewrite(graph, _Widen(graph), batch_size=batch_size, dtype="float32")


class _Widen:
    """Visitor that widens grids and replaces what has no 16-bit form."""

    def __init__(self, graph):
        self.graph = graph

    def __call__(self, call, clone_once, args, kwargs):
        operation = call.operation
        if isinstance(operation, ConstantFakeQuant):
            return self._widened(call)(args[0])
        if type(operation).__name__ == "Add" and len(call.input_tensors) == 2:
            return _Sum()(*_tensors(args, kwargs))
        if type(operation).__name__ in _ARITHMETIC and len(call.input_tensors) == 1:
            return _with_constant(operation, clone_once, args, kwargs)
        if type(operation).__name__ == "Concatenate":
            return self._joined(call, _tensors(args, kwargs))
        if rules.activation(operation) == "relu6" and self._is_cut_off(call):
            return keras.layers.ReLU(name=operation.name)(args[0])
        return clone_once(operation)(*args, **kwargs)

    def _widened(self, call):
        quantizer, producer = call.operation, self.graph.producer(call.input_tensors[0])
        if quantizer.bits == 16:
            return clone(quantizer)
        name = None if producer is None else rules.activation(producer.operation)
        prescribed = rules.prescribed_range(name, bits=16)
        if prescribed is not None:
            return ConstantFakeQuant(*prescribed, 16, name=quantizer.name)
        limit = max(-quantizer.low, quantizer.high)
        return around_zero(limit, name=quantizer.name)

    def _joined(self, call, tensors):
        """Concatenation as a sum of padded tensors, which is exact on one grid.

        The converter has no concatenation of 16-bit integers, though the runtime has.
        """
        grids = [self._grid(tensor) for tensor in call.input_tensors]
        low, high = min(g.low for g in grids), max(g.high for g in grids)
        padded = _padded(tensors, call.operation.axis)
        total = padded[0]
        for part in padded[1:]:
            total = ConstantFakeQuant(low, high, 16)(_Sum()(total, part))
        return total

    def _grid(self, tensor):
        """The widened quantizer on whose grid a tensor of the old graph lies."""
        call = self.graph.producer(tensor)
        while not isinstance(call.operation, ConstantFakeQuant):
            call = self.graph.producer(call.input_tensors[0])
        return self._widened(call)

    def _is_cut_off(self, call):
        """Whether the grid that follows ends at 6 or before."""
        following = self.graph.only_consumer(call.outputs[0])
        return (
            following is not None
            and isinstance(following.operation, ConstantFakeQuant)
            and following.operation.high <= 6
        )


def _with_constant(operation, clone_once, args, kwargs):
    """Arithmetic with a constant of 16 bits; left alone, it gets 8 and is refused.

    Of sums the converter refuses it even so: they become differences.
    """
    tensor = _tensors(args, kwargs)[0]
    if type(operation).__name__ == "Add":
        constant = next(
            v for v in keras.tree.flatten((args, kwargs)) if v is not tensor
        )
        return keras.ops.subtract(tensor, _rounded(-np.asarray(constant), tensor))
    args, kwargs = keras.tree.map_structure(
        lambda value: value if value is tensor else _rounded(value, tensor),
        (args, kwargs),
    )
    return clone_once(operation)(*args, **kwargs)


def _rounded(constant, anchor):
    array = np.asarray(constant, "float32")
    limit = float(np.abs(array).max()) or 1.0
    return around_zero(limit)(ConstantTensor(array)(anchor))


def _tensors(args, kwargs):
    flat = keras.tree.flatten((args, kwargs))
    return [value for value in flat if isinstance(value, keras.KerasTensor)]


class _Sum(keras.layers.Layer):
    """Addition, always: Keras adds a bias where a shape looks like one."""

    def call(self, first, second):
        return tf.add(first, second)


def _padded(tensors, axis):
    """Each tensor with zeros where the others will stand."""
    sizes = [tensor.shape[axis] for tensor in tensors]
    padded = []
    for number, tensor in enumerate(tensors):
        widths = [(0, 0)] * len(tensor.shape)
        widths[axis] = sum(sizes[:number]), sum(sizes[number + 1 :])
        padded.append(keras.ops.pad(tensor, widths))
    return padded


def around_zero(limit, **kwargs):
    """Fake quantization to the 16-bit integers, with 32,767 standing for `limit`."""
    return ConstantFakeQuant(-limit * 32768 / 32767, limit, 16, **kwargs)


def settings(io="int16"):
    """What the converter needs to be told.

    Args:
        io: Type of inputs and outputs, `"int16"` or `"float32"`.

    Returns:
        Function that sets up a `tf.lite.TFLiteConverter`.
    """

    def configure(converter):
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_ops = [
            tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
        ]
        converter.inference_input_type = IO_TYPES[io]
        converter.inference_output_type = IO_TYPES[io]

    return configure


def make_runnable(content):
    """Sets right what the converter leaves wrong in a 16-bit file.

    Biases become int64, and with them the accumulators, which 16 by 8 bits overflow in
    int32 from some 500 products; sums use their scales as they are; the outputs of
    softmax, sigmoid and tanh get the scale that the runtime computes with; versions
    say so.

    Args:
        content: Bytes of the file, as the converter made it.

    Returns:
        Bytes of the new file.
    """
    model = parsed(content)
    for graph in model.subgraphs:
        for operation in graph.operators:
            if _is_int16(graph, operation):
                _set_right(model, graph, operation)
    return serialized(model, len(content))


def _is_int16(graph, operation):
    types = [graph.tensors[i].type for i in operation.outputs]
    return schema().TensorType.INT16 in types


def _set_right(model, graph, operation):
    operator = _operator(model, operation)
    options = operation.builtinOptions
    if hasattr(options, "potScaleInt16"):
        options.potScaleInt16 = False
    if hasattr(options, "quantizedBiasType"):
        options.quantizedBiasType = schema().TensorType.INT64
    if operator in _VERSIONS:
        code = model.operatorCodes[operation.opcodeIndex]
        code.version = max(code.version, _VERSIONS[operator])
    if operator in _UNIT:
        quantization = graph.tensors[operation.outputs[0]].quantization
        quantization.scale = np.array([_UNIT_SCALE], np.float32)
        quantization.zeroPoint = np.array([0], np.int64)
    place = _BIAS.get(operator)
    if place is not None and place < len(operation.inputs):
        _widen(model, graph.tensors[operation.inputs[place]])


def _operator(model, operation):
    code = model.operatorCodes[operation.opcodeIndex]
    number = max(code.builtinCode, code.deprecatedBuiltinCode)
    operators = vars(schema().BuiltinOperator)
    names = (*_VERSIONS, *_UNIT)
    return next((name for name in names if operators[name] == number), None)


def _widen(model, bias):
    """Makes an int32 bias int64; its values and scales stay."""
    types = schema().TensorType
    if bias.type != types.INT32:
        return
    integers = np.frombuffer(bytes(model.buffers[bias.buffer].data), np.int32)
    buffer = schema().BufferT()
    buffer.data = np.frombuffer(integers.astype(np.int64).tobytes(), np.uint8)
    bias.type, bias.buffer = types.INT64, len(model.buffers)
    model.buffers.append(buffer)
