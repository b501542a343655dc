"""Small models, one for each kind of thing that users put in a network."""

import keras
import numpy as np
from keras import layers, ops


def _model(inputs, outputs):
    return keras.Model(inputs, outputs)


def _image(build, shape=(8, 8, 4)):
    def make():
        inputs = keras.Input(shape)
        return _model(inputs, build(inputs))

    return make


def _sequence(build, shape=(6, 8)):
    return _image(build, shape)


@keras.saving.register_keras_serializable(package="tests")
class Scaled(layers.Layer):
    """A layer with a weight of its own and a Dense inside."""

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(input_shape[-1], 4), name="kernel")
        self.offset = self.add_weight(shape=(4,), name="offset")
        self.gain = self.add_weight(shape=(4,), name="gain", initializer="ones")
        self.dense = layers.Dense(4)
        self.dense.build(input_shape)

    def call(self, inputs):
        x = ops.matmul(inputs, self.kernel) + self.offset
        return ops.relu(x) * self.gain + self.dense(inputs) / 3.0


@keras.saving.register_keras_serializable(package="tests")
class Residual(layers.Layer):
    """Layers in a list and a dict, which the first call builds."""

    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.convs = [layers.Conv2D(filters, 3, padding="same") for _ in range(2)]
        self.norms = {str(i): layers.BatchNormalization() for i in range(2)}

    def call(self, inputs, training=False):
        x = inputs
        for conv, norm in zip(self.convs, self.norms.values(), strict=True):
            x = ops.relu(norm(conv(x), training=training))
        return x + inputs

    def get_config(self):
        return {**super().get_config(), "filters": self.filters}


@keras.saving.register_keras_serializable(package="tests")
class Classifier(keras.Model):
    """A subclassed model with a nested subclassed block."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv = layers.Conv2D(8, 3, use_bias=False)
        self.norm = layers.BatchNormalization()
        self.block = Block()
        self.dense = layers.Dense(3, activation="softmax")

    def call(self, inputs, training=False):
        x = ops.relu(self.norm(self.conv(inputs), training=training))
        x = self.block(x)
        return self.dense(ops.mean(x, axis=(1, 2)))


@keras.saving.register_keras_serializable(package="tests")
class Block(keras.Model):
    """Residual block."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv = layers.Conv2D(8, 3, padding="same", activation="relu")

    def call(self, inputs):
        return inputs + self.conv(inputs)


@keras.saving.register_keras_serializable(package="tests")
class Positions(layers.Layer):
    """Adds an embedding of the position."""

    def build(self, input_shape):
        self.length = input_shape[1]
        self.table = layers.Embedding(self.length, input_shape[2])
        self.table.build(None)

    def call(self, inputs):
        return inputs + self.table(ops.arange(self.length))


def subclassed():
    """Built by a call on data, as users do."""
    model = Classifier()
    model(np.zeros((2, 8, 8, 4), "float32"))
    return model


def _squeeze_excite(x):
    s = layers.GlobalAveragePooling2D(keepdims=True)(x)
    s = layers.Conv2D(2, 1, activation="relu")(s)
    s = layers.Conv2D(4, 1, activation="hard_sigmoid")(s)
    return layers.Multiply()([x, s])


def _nested_shared():
    inner_in = keras.Input((8, 8, 4))
    inner = _model(inner_in, layers.Conv2D(4, 3, padding="same")(inner_in))
    inputs = keras.Input((8, 8, 4))
    return _model(inputs, inner(layers.ReLU()(inner(inputs))))


def _many_inputs_and_outputs():
    a, b = keras.Input((6,), name="a"), keras.Input((4,), name="b")
    shared = layers.Dense(5, activation="relu")
    x = shared(a)
    y = layers.Concatenate()([x, layers.Dense(5)(b)])
    return _model(
        {"a": a, "b": b}, {"first": layers.Dense(2)(y), "second": layers.Dense(3)(x)}
    )


def _list_inputs():
    a, b = keras.Input((8, 8, 4)), keras.Input((8, 8, 4))
    return _model([a, b], [layers.Subtract()([a, b]), layers.Average()([a, b])])


def _tokens():
    inputs = keras.Input((6,), dtype="int32")
    x = layers.Embedding(300, 8)(inputs)
    return _model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))


def _tokens_as_floats():
    inputs = keras.Input((6,))
    x = layers.Embedding(300, 8)(inputs)
    return _model(inputs, layers.Dense(3)(layers.Flatten()(x)))


def _transformer(x):
    x = Positions()(x)
    y = layers.LayerNormalization()(x)
    y = layers.MultiHeadAttention(2, 4, dropout=0.1)(y, y)
    x = layers.Add()([x, y])
    y = layers.LayerNormalization()(x)
    y = layers.Dense(16, activation="gelu")(y)
    return layers.Add()([x, layers.Dense(8)(y)])


def _ops(x):
    y = x * 2 + 1
    y = ops.concatenate([y[:, ::2], -x[:, 1::2]], axis=1)
    return ops.sqrt(ops.relu(y) + 0.1) - ops.maximum(x, 0.5) / 4


ACTIVATIONS = (
    "elu",
    "selu",
    "gelu",
    "silu",
    "hard_silu",
    "hard_sigmoid",
    "softplus",
    "softsign",
    "mish",
    "exponential",
    "log_softmax",
    "leaky_relu",
    "relu6",
    "sigmoid",
    "softmax",
    "tanh",
    "celu",
    "hard_tanh",
    "log_sigmoid",
    "squareplus",
    "tanh_shrink",
)

# Name -> function that makes the model.
ARCHITECTURES = {
    "nested and shared": _nested_shared,
    "dicts of inputs and outputs": _many_inputs_and_outputs,
    "lists of inputs and outputs": _list_inputs,
    "functional operators": _image(_ops),
    "squeeze and excite": _image(_squeeze_excite),
    "rescaling": _image(
        lambda x: layers.Conv2D(2, 3)(layers.Rescaling(1 / 127.5, -1)(x))
    ),
    "normalization": _image(
        lambda x: layers.Normalization(
            mean=np.arange(4.0).tolist(), variance=[1.0, 2.0, 3.0, 4.0]
        )(x)
    ),
    "resizing": _image(lambda x: layers.Resizing(5, 6)(layers.Conv2D(2, 3)(x))),
    "pre-activation": _image(
        lambda x: layers.Conv2D(4, 3)(layers.ReLU()(layers.BatchNormalization()(x)))
    ),
    "batch norm alone, dense": _sequence(
        lambda x: layers.BatchNormalization()(layers.Flatten()(x))
    ),
    "layer normalization": _sequence(lambda x: layers.LayerNormalization()(x)),
    "layer normalization over two axes": _sequence(
        lambda x: layers.LayerNormalization(axis=(1, 2))(x)
    ),
    "rms normalization": _sequence(lambda x: layers.RMSNormalization()(x)),
    "group normalization": _image(lambda x: layers.GroupNormalization(2)(x)),
    "unit normalization": _sequence(lambda x: layers.UnitNormalization()(x)),
    "attention": _sequence(lambda x: layers.MultiHeadAttention(2, 4)(x, x)),
    "causal attention": _sequence(
        lambda x: layers.MultiHeadAttention(2, 4)(x, x, use_causal_mask=True)
    ),
    "grouped attention": _sequence(lambda x: layers.GroupQueryAttention(4, 4, 2)(x, x)),
    "dot attention": _sequence(lambda x: layers.Attention(use_scale=True)([x, x])),
    "transformer": _sequence(_transformer),
    "einsum dense": _sequence(
        lambda x: layers.EinsumDense("abc,cde->abde", (None, 2, 3), bias_axes="de")(x)
    ),
    "embedding": _tokens,
    "embedding of float ids": _tokens_as_floats,
    "conv1d": _sequence(lambda x: layers.Conv1D(4, 3, dilation_rate=2)(x)),
    "causal conv1d": _sequence(lambda x: layers.Conv1D(4, 3, padding="causal")(x)),
    "conv3d": _image(
        lambda x: layers.Conv3D(4, 3, padding="same", strides=2, activation="relu")(x),
        (6, 6, 6, 2),
    ),
    "pooling 3d": _image(
        lambda x: layers.AveragePooling3D(2)(layers.MaxPooling3D(2, 1)(x)), (6, 6, 6, 2)
    ),
    "transposed": _image(
        lambda x: layers.ReLU()(
            layers.BatchNormalization()(layers.Conv2DTranspose(5, 3, strides=2)(x))
        )
    ),
    "transposed 1d": _sequence(lambda x: layers.Conv1DTranspose(4, 3, strides=2)(x)),
    "separable": _image(lambda x: layers.SeparableConv2D(6, 3, activation="relu")(x)),
    "separable 1d": _sequence(lambda x: layers.SeparableConv1D(6, 3)(x)),
    "depthwise 1d": _sequence(lambda x: layers.DepthwiseConv1D(3)(x)),
    "dilated": _image(lambda x: layers.Conv2D(4, 3, dilation_rate=2)(x)),
    "grouped": _image(lambda x: layers.Conv2D(4, 3, groups=2)(x)),
    "depth multiplier": _image(
        lambda x: layers.DepthwiseConv2D(3, depth_multiplier=2)(x)
    ),
    "prelu": _image(lambda x: layers.PReLU(shared_axes=[1, 2])(x)),
    "bounded relu": _image(lambda x: layers.ReLU(4.0, negative_slope=0.1)(x)),
    "elu layer": _image(lambda x: layers.ELU(0.5)(x)),
    "softmax over height": _image(lambda x: layers.Softmax(axis=1)(x)),
    "upsampling": _image(lambda x: layers.UpSampling2D()(layers.Conv2D(4, 3)(x))),
    "upsampling bilinear": _image(
        lambda x: layers.UpSampling2D(interpolation="bilinear")(x)
    ),
    "upsampling 1d": _sequence(lambda x: layers.UpSampling1D(2)(x)),
    "time distributed": _image(
        lambda x: layers.TimeDistributed(layers.Conv1D(3, 3))(x)
    ),
    "lstm": _sequence(lambda x: layers.LSTM(5)(x)),
    "lstm, sequences": _sequence(lambda x: layers.LSTM(5, return_sequences=True)(x)),
    "gru": _sequence(lambda x: layers.GRU(5)(x)),
    "simple rnn": _sequence(lambda x: layers.SimpleRNN(5)(x)),
    "bidirectional": _sequence(
        lambda x: layers.Dense(3)(
            layers.Bidirectional(layers.LSTM(4, return_sequences=True))(x)
        )
    ),
    "custom layer": _sequence(lambda x: Scaled()(x)),
    "custom layer without build": _image(lambda x: Residual(4)(Residual(4)(x))),
    "subclassed": subclassed,
    "sigmoid into concatenate": _image(
        lambda x: layers.Concatenate()([layers.Activation("sigmoid")(x), x])
    ),
    "maximum": _image(
        lambda x: layers.Maximum()([x, layers.Conv2D(4, 3, padding="same")(x)])
    ),
    "dot": _sequence(lambda x: layers.Dot(axes=2)([x, x])),
    "minimum and stack": _sequence(
        lambda x: ops.stack([ops.minimum(x, 0.3), ops.exp(x)], axis=1)
    ),
} | {
    f"activation {name}": _image(
        lambda x, name=name: layers.Conv2D(4, 3, activation=name)(x)
    )
    for name in ACTIVATIONS
}


def examples(model, count=8, seed=0):
    """Random inputs in the structure that a model takes."""
    rng = np.random.default_rng(seed)

    def some(tensor):
        shape = (count, *tensor.shape[1:])
        if "int" in str(tensor.dtype):
            return rng.integers(0, 300, shape).astype("int32")
        return rng.normal(size=shape).astype("float32")

    inputs = getattr(model, "_inputs_struct", None)
    if inputs is None:
        return rng.normal(size=(count, 8, 8, 4)).astype("float32")
    found = keras.tree.map_structure(some, inputs)
    return found[0] if isinstance(found, list) and len(found) == 1 else found
