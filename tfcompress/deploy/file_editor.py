"""Adds tensors and operators to a `.tflite` file, in its object form.

Example:
    ```python
    editor = FileEditor(schema().ModelT.InitFromPackedBuf(content, 0))
    editor.reshape(source, target)
    content = editor.packed()
    ```
"""

import copy

import numpy as np

from tfcompress.deploy.tflite_file import schema

# The oldest version of each operator that takes int8, and a bias where there is one.
VERSIONS = {
    "CONV_2D": 3,
    "FULLY_CONNECTED": 4,
    "RESHAPE": 1,
    "SPLIT": 2,
    "CONCATENATION": 2,
    "RELU": 2,
    "RELU6": 2,
    "TRANSPOSE_CONV": 3,
}


class FileEditor:
    """The main subgraph of a model, to be changed; tensors are named by their index.

    Args:
        model: `ModelT` of the schema.

    Attributes:
        graph: Its first subgraph; operators are appended to it.
        tensors: The tensors of the subgraph.
        formats: The classes of the schema.
    """

    def __init__(self, model):
        self.model = model
        self.formats = schema()
        self.graph = model.subgraphs[0]
        self.tensors = self.graph.tensors
        self._names = {v: k for k, v in vars(self.formats.BuiltinOperator).items()}

    def packed(self):
        """The bytes of the file."""
        import flatbuffers

        self._drop_unused_codes()
        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def name(self, operator):
        """The operator's name."""
        code = self.model.operatorCodes[operator.opcodeIndex]
        return self._names[max(code.builtinCode, code.deprecatedBuiltinCode)]

    def code(self, name):
        """Index of the operator in the version of `VERSIONS`."""
        number = getattr(self.formats.BuiltinOperator, name)
        wanted = number, VERSIONS[name]
        for index, code in enumerate(self.model.operatorCodes):
            kind = max(code.builtinCode, code.deprecatedBuiltinCode)
            if (kind, code.version) == wanted:
                return index
        code = self.formats.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = number
        code.version = VERSIONS[name]
        self.model.operatorCodes.append(code)
        return len(self.model.operatorCodes) - 1

    def _drop_unused_codes(self):
        # Readers refuse an unknown code even if no operator has it.
        operators = [op for g in self.model.subgraphs for op in g.operators or ()]
        used = sorted({op.opcodeIndex for op in operators})
        codes = self.model.operatorCodes
        self.model.operatorCodes = [codes[index] for index in used]
        for operator in operators:
            operator.opcodeIndex = used.index(operator.opcodeIndex)

    def constant(self, index):
        """Whether a tensor's value is stored in the file."""
        data = self.model.buffers[self.tensors[index].buffer].data
        return data is not None and len(data) > 0

    def own(self, index):
        """A tensor with the same constant that no other operator reads."""
        tensor = copy.copy(self.tensors[index])
        tensor.shapeSignature = None
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def add_like(self, tensor, shape):
        """A computed tensor with the type and scale of another."""
        new = copy.copy(tensor)
        new.name = f"{_text(tensor.name)}/part{len(self.tensors)}"
        new.shape, new.shapeSignature = [int(size) for size in shape], None
        new.buffer = 0
        self.tensors.append(new)
        return len(self.tensors) - 1

    def add_parts(self, index, count):
        """Computed tensors that share out the last axis of another."""
        tensor = self.tensors[index]
        *outer, channels = map(int, tensor.shape)
        shape = (*outer, channels // count)
        return [self.add_like(tensor, shape) for _ in range(count)]

    def add_slices(self, index, count):
        """Constants that share out the first axis of another, scales included."""
        tensor = self.tensors[index]
        size = int(tensor.shape[0]) // count
        data = np.asarray(self.model.buffers[tensor.buffer].data, np.uint8)
        for part, piece in enumerate(np.split(data, count)):
            new = copy.copy(tensor)
            new.name = f"{_text(tensor.name)}/group{part}"
            new.shape = [size, *map(int, tensor.shape[1:])]
            new.buffer = self._add_buffer(piece)
            if len(tensor.quantization.scale) > 1:
                here = slice(part * size, (part + 1) * size)
                new.quantization = copy.copy(tensor.quantization)
                new.quantization.scale = tensor.quantization.scale[here]
                new.quantization.zeroPoint = tensor.quantization.zeroPoint[here]
            self.tensors.append(new)
        return list(range(len(self.tensors) - count, len(self.tensors)))

    def zero_bias(self, x, kernel, units):
        """A bias of zeros for a kernel that has none."""
        index = self.add_constant(np.zeros(units, np.int32))
        scale = np.asarray(self.tensors[kernel].quantization.scale)
        quantization = self.formats.QuantizationParametersT()
        quantization.scale = scale * self.tensors[x].quantization.scale[0]
        quantization.zeroPoint = np.zeros(len(scale), np.int64)
        quantization.quantizedDimension = 0
        self.tensors[index].quantization = quantization
        return index

    def add_constant(self, values):
        """A constant of int32."""
        tensor = self.formats.TensorT()
        tensor.name = f"constant{len(self.tensors)}"
        tensor.shape = list(values.shape)
        tensor.type = self.formats.TensorType.INT32
        tensor.buffer = self._add_buffer(np.frombuffer(values.tobytes(), np.uint8))
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def _add_buffer(self, data):
        buffer = self.formats.BufferT()
        buffer.data = data
        self.model.buffers.append(buffer)
        return len(self.model.buffers) - 1

    def reshape(self, source, target):
        """Appends a RESHAPE to the shape of `target`."""
        shape = np.array(self.tensors[target].shape, np.int32)
        options = self.formats.ReshapeOptionsT()
        options.newShape = shape
        self.add_operator(
            "RESHAPE", [source, self.add_constant(shape)], [target], options
        )

    def add_operator(self, name, inputs, outputs, options=None):
        """Appends an operator with its options, an object of the schema."""
        operator = self.formats.OperatorT()
        operator.opcodeIndex = self.code(name)
        operator.inputs, operator.outputs = inputs, outputs
        self.graph.operators.append(operator)
        if options is None:
            return
        operator.builtinOptions = options
        kind = type(options).__name__.removesuffix("T")
        operator.builtinOptionsType = getattr(self.formats.BuiltinOptions, kind)


def _text(name):
    return name.decode(errors="replace") if isinstance(name, bytes) else name
