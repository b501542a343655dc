"""Small models for each way in which channels hang together.

Each body gets what a layer with eight channels made, and a layer that reads all
channels stands behind it, so that what the body does with them is what counts.
"""

import keras
import numpy as np
from keras import layers, ops


def _conv(filters=8, size=3, **settings):
    return layers.Conv2D(filters, size, padding="same", **settings)


def _image(body, shape=(8, 8, 3)):
    def make():
        inputs = keras.Input(shape)
        x = body(_conv(activation="relu")(inputs))
        if len(x.shape) == 4:
            x = layers.GlobalAveragePooling2D()(_conv(5)(x))
        return keras.Model(inputs, layers.Dense(3)(x))

    return make


def _sequence(body, shape=(6, 4), batch=None):
    def make():
        inputs = keras.Input(shape, batch_size=batch)
        x = body(layers.Dense(8)(inputs))
        return keras.Model(inputs, layers.Dense(3)(x))

    return make


def _residual(x):
    y = _conv(8)(layers.ReLU()(layers.BatchNormalization()(_conv(6)(x))))
    return layers.ReLU()(layers.Add()([x, layers.BatchNormalization()(y)]))


def _inverted(x):
    y = layers.ReLU(6.0)(layers.BatchNormalization()(_conv(12, 1)(x)))
    y = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2)(y)
    y = layers.Activation("relu6")(layers.BatchNormalization()(y))
    return layers.Add()([x, _conv(8, 1)(y)])


def _squeeze_excite(x):
    s = layers.GlobalAveragePooling2D()(x)
    s = layers.Reshape((1, 1, 8))(s)
    s = _conv(4, 1, activation="relu")(s)
    s = _conv(8, 1, activation="sigmoid")(s)
    return layers.Multiply()([x, s])


def _dense_block(x):
    for _ in range(3):
        y = _conv(4)(layers.ReLU()(layers.BatchNormalization()(x)))
        x = layers.Concatenate()([x, y])
    return x


def _concatenate_and_add(x):
    both = layers.Concatenate()([_conv(3)(x), _conv(5)(x)])
    return both + x


def _shared(x):
    twice = _conv(8)
    return twice(ops.relu(twice(x)))


def _grouped(x):
    return _conv(12, groups=4)(layers.ReLU()(x))


def _grouped_depthwise(x):
    return _conv(16, groups=8)(x)


def _nested(x):
    inside = keras.Input(x.shape[1:])
    block = keras.Model(inside, _residual(inside), name="block")
    return block(block(x))


def _flattened(x):
    x = layers.Flatten()(layers.MaxPooling2D(4)(x))
    return layers.Dense(6, activation="elu")(x)


def _flattened_and_back(x):
    return layers.Reshape((8, 8, 8))(layers.Flatten()(x))


def _channels_by_hand(x):
    halves = ops.split(x, 2, axis=-1)
    mixed = ops.concatenate([halves[0] * 2.0, ops.tanh(halves[1])], axis=-1)
    y = ops.transpose(mixed, (0, 3, 1, 2))
    y = ops.moveaxis(ops.swapaxes(y, 2, 3), 1, -1)
    return ops.squeeze(ops.expand_dims(y, 1), 1) + ops.mean(
        x, axis=(1, 2), keepdims=True
    )


def _sizes(x):
    x = layers.ZeroPadding2D(1)(layers.UpSampling2D(2)(x))
    x = layers.AveragePooling2D(2)(layers.Cropping2D(1)(x))
    return layers.Dropout(0.1)(layers.PReLU(shared_axes=[1, 2])(x))


def _shuffled(x):
    x = ops.reshape(x, (-1, 8, 8, 2, 4))
    return ops.reshape(ops.transpose(x, (0, 1, 2, 4, 3)), (-1, 8, 8, 8))


def _attention_by_hand(x):
    """Heads made by reshape, as in many training scripts."""
    q, k, v = (
        ops.transpose(ops.reshape(layers.Dense(12)(x), (-1, 6, 3, 4)), (0, 2, 1, 3))
        for _ in range(3)
    )
    weights = ops.softmax(ops.matmul(q, ops.transpose(k, (0, 1, 3, 2))) / 2.0)
    y = ops.transpose(ops.matmul(weights, v), (0, 2, 1, 3))
    return layers.Dense(8)(ops.reshape(y, (-1, 6, 12))) + x


def _attention_by_einsum(x):
    q, k, v = (
        layers.EinsumDense("btd,dhk->bthk", (6, 3, 4), bias_axes="hk")(x)
        for _ in range(3)
    )
    weights = ops.softmax(ops.einsum("bthk,bshk->bhts", q, k))
    y = ops.einsum("bhts,bshk->bthk", weights, v)
    return layers.EinsumDense("bthk,hkd->btd", (6, 8), bias_axes="d")(y)


def _transformer(x):
    y = layers.MultiHeadAttention(4, 3)(x, x)
    x = layers.Add()([x, y])
    y = layers.Dense(16, activation="gelu")(x)
    return layers.Add()([x, layers.Dense(8)(y)])


def _recurrent(x):
    x = layers.LSTM(6, return_sequences=True)(x)
    x = layers.Bidirectional(layers.GRU(5, return_sequences=True))(x)
    return layers.SimpleRNN(4)(x)


def _two_outputs():
    inputs = keras.Input((8, 8, 3))
    x = _residual(_conv(8)(inputs))
    pooled = layers.GlobalMaxPooling2D()(x)
    return keras.Model(inputs, {"a": layers.Dense(2)(pooled), "map": _conv(1)(x)})


def _embedded():
    words, place = keras.Input((6,), dtype="int32"), keras.Input((6,), dtype="int32")
    x = layers.Embedding(20, 8)(words) + layers.Embedding(6, 8)(place)
    x = layers.Dense(6, activation="relu")(layers.GlobalAveragePooling1D()(x))
    return keras.Model([words, place], layers.Dense(3, activation="softmax")(x))


def _masked(body):
    def make():
        words = keras.Input((6,), dtype="int32")
        x = body(layers.Embedding(20, 8, mask_zero=True)(words))
        return keras.Model(words, layers.Dense(3)(x))

    return make


def _shared_and_whole(x):
    """A normalization that reads the input, too, whose channels stay."""
    twice = layers.BatchNormalization()
    inputs = layers.Dense(8, name="kept")(x)
    softmax = layers.Softmax()(inputs)
    return layers.Dense(9)(layers.Concatenate()([twice(softmax), twice(x)]))


def _shared_reshape(x):
    fold = layers.Reshape((3, 2, 8))
    y = layers.Softmax()(layers.Dense(8)(x))
    joined = layers.Concatenate()([fold(layers.Dense(8)(x)), fold(y)])
    return layers.Dense(9)(layers.Flatten()(joined))


def _gated_halves(x):
    a, b = ops.split(layers.Dense(16)(x), 2, axis=-1)
    (whole,) = ops.split(a * ops.sigmoid(b), 1, axis=-1)
    return layers.Flatten()(ops.reshape(whole, (-1, 2, 3, 8)))


def _halves_by_themselves(x):
    a, b = ops.split(x, 2, axis=-1)
    return layers.Dense(5)(a) + layers.Dense(5)(b)


def _one_head_for_all(x):
    q = layers.EinsumDense("btd,dhk->bhtk", (4, 6, 3))(x)
    k = layers.EinsumDense("btd,dhk->bhkt", (1, 3, 6))(x)
    y = ops.matmul(ops.softmax(ops.matmul(q, k)), layers.Dense(7)(x)[:, None])
    return layers.Dense(4)(ops.mean(y, axis=1))


def _constants(x):
    ones = np.ones((2, 6, 2), "float32")
    x = ops.concatenate([x, ones], axis=-1)
    return ops.pad(ops.clip(x, -1.0, 1.0), ((0, 0), (1, 1), (0, 0)))


def _attentions(x):
    y = layers.MultiHeadAttention(4, 3, value_dim=5, output_shape=6)(
        x, x, use_causal_mask=True
    )
    z, scores = layers.MultiHeadAttention(4, 3)(x, y, return_attention_scores=True)
    return layers.Concatenate()([y, z, ops.mean(scores, axis=1)])


# Name -> function that makes the model.
EXACT = {
    "residual": _image(_residual),
    "inverted residual": _image(_inverted),
    "squeeze and excite": _image(_squeeze_excite),
    "dense block": _image(_dense_block),
    "concatenation added": _image(_concatenate_and_add),
    "shared layer": _image(_shared),
    "grouped": _image(_grouped),
    "groups of one": _image(_grouped_depthwise),
    "nested, called twice": _image(_nested),
    "flatten": _image(_flattened),
    "flatten and back": _image(_flattened_and_back),
    "operations": _image(_channels_by_hand),
    "sizes": _image(_sizes),
    "shuffle": _image(_shuffled),
    "separable": _image(
        lambda x: layers.SeparableConv2D(6, 3, depth_multiplier=2, activation="elu")(x)
    ),
    "transposed": _image(lambda x: layers.Conv2DTranspose(6, 3, strides=2)(x)),
    "average of branches": _image(lambda x: layers.Average()([x, _conv(8)(x), x])),
    "maximum": _image(lambda x: layers.Maximum()([x, _conv(8)(x)])),
    "bias behind sigmoid": _image(lambda x: layers.Activation("sigmoid")(x)),
    "spatial attention": _image(lambda x: x * _conv(1, activation="sigmoid")(x)),
    "attention by hand": _sequence(_attention_by_hand),
    "attention by einsum": _sequence(_attention_by_einsum),
    "transformer": _sequence(_transformer),
    "dot attention": _sequence(
        lambda x: layers.Attention()([layers.Dense(5)(x), x, layers.Dense(5)(x)])
    ),
    "recurrent": _sequence(_recurrent),
    "conv1d": _sequence(
        lambda x: layers.SeparableConv1D(6, 3)(
            layers.DepthwiseConv1D(3)(layers.Conv1D(7, 2, activation="relu")(x))
        )
    ),
    "transposed 1d": _sequence(lambda x: layers.Conv1DTranspose(5, 3)(x)),
    "time distributed": _image(
        lambda x: layers.GlobalAveragePooling2D()(
            layers.TimeDistributed(layers.Conv1D(6, 3))(x)
        )
    ),
    "conv3d": _image(
        lambda x: layers.GlobalAveragePooling2D()(
            layers.Reshape((6, 6, 30))(
                layers.Conv3D(5, (3, 3, 1))(layers.Reshape((8, 8, 6, 1))(_conv(6)(x)))
            )
        )
    ),
    "time distributed dense": _image(
        lambda x: layers.GlobalAveragePooling2D()(
            layers.TimeDistributed(layers.Dense(6))(x)
        )
    ),
    "shared with what stays": _sequence(_shared_and_whole),
    "shared reshape": _sequence(_shared_reshape),
    "gated halves": _sequence(_gated_halves),
    "halves by themselves": _sequence(_halves_by_themselves),
    "one head for all": _sequence(_one_head_for_all),
    "constants": _sequence(_constants, batch=2),
    "kinds of attention": _sequence(_attentions),
    "attention over one axis": _image(
        lambda x: layers.GlobalAveragePooling2D()(
            layers.MultiHeadAttention(2, 3, attention_axes=(2,))(x, x)
        )
    ),
    "masked pooling": _masked(lambda x: layers.GlobalAveragePooling1D()(x)),
    "masked recurrent": _masked(
        lambda x: layers.GRU(4, reset_after=False)(
            layers.Bidirectional(layers.LSTM(5, return_sequences=True))(x)
        )
    ),
    "initial state": _sequence(
        lambda x: layers.GRU(8)(x, initial_state=layers.Dense(8)(x[:, 0]))
    ),
    "two outputs": _two_outputs,
    "embedding": _embedded,
}

# These take statistics over the channels that stay.
NORMALIZED = {
    "layer norm": _sequence(lambda x: layers.LayerNormalization()(x)),
    "rms norm": _sequence(lambda x: layers.RMSNormalization()(x)),
    "group norm": _image(lambda x: layers.GroupNormalization(2)(x)),
    "instance norm": _image(lambda x: layers.GroupNormalization(8)(x)),
}
