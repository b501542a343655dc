"""Makes models of tf_keras and TFMOT, in a process of its own, for the tests.

    python make_models.py FOLDER

Importing TFMOT switches `tf.keras` for the whole process. Of each model there are
NAME.h5, NAME.npz with an input and what it predicts, and live_NAME.keras: the Keras 3
model that `from_tfmot` makes of the one in memory.
"""

import pathlib
import sys

import keras
import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras
from tensorflow_model_optimization.python.core.clustering.keras.experimental import (
    cluster as experimental,
)

import tfcompress as tfc

layers = tf_keras.layers
annotate = tfmot.quantization.keras.quantize_annotate_model
quantize = tfmot.quantization.keras.quantize_apply
FOLDER = pathlib.Path(sys.argv[1])
RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 12, 12, 3)).astype("float32")
Y = RNG.integers(0, 4, 64)


def convolutional(zeros=False):
    """What TFMOT knows: fused and unfused normalization, add, concatenation."""
    tf_keras.utils.set_random_seed(1)
    inputs = tf_keras.Input((12, 12, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="c1")(inputs)
    x = layers.BatchNormalization(name="bn1")(x)
    x = layers.ReLU(name="r1")(x)
    y = layers.DepthwiseConv2D(3, padding="same", name="dw")(x)
    y = layers.BatchNormalization(name="bn2")(y)
    y = layers.ReLU(6.0, name="r2")(y)
    x = layers.Add(name="add")([x, y])
    x = layers.MaxPooling2D(name="mp")(x)
    z = layers.Conv2D(8, 1, activation="relu", name="c2")(x)
    x = layers.Concatenate(name="cat")([x, z])
    x = layers.GlobalAveragePooling2D(name="gap")(x)
    x = layers.Dense(6, activation="relu", name="d1")(x)
    outputs = layers.Dense(4, activation="softmax", name="d2")(x)
    model = tf_keras.Model(inputs, outputs, name="convolutional")
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights([RNG.uniform(0.5, 1.5, 8) for _ in range(4)])
    if zeros:
        for layer in model.layers:
            if layer.name in ("c1", "c2", "d1"):
                kernel, *rest = layer.get_weights()
                kernel[np.abs(kernel) < np.median(np.abs(kernel))] = 0
                layer.set_weights([kernel, *rest])
    return model


def train(model, callbacks=()):
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(X, Y, verbose=0, callbacks=list(callbacks))


def set_ranges(model, same=()):
    """Other ranges for each tensor, which a thousand steps would take to find.

    Those of `same` layers are equal, as TFLite has them around a concatenation.
    """
    common = RNG.uniform(2, 3)
    for layer in model.layers:
        for weight in layer.weights:
            name = weight.name.split("/")[-1]
            if name.endswith(("_min:0", "_max:0")) and "kernel" not in name:
                value = common if layer.name in same else RNG.uniform(1.5, 4)
                weight.assign(-value if "_min" in name else value)


def write(name, model, *inputs, live=True):
    given = inputs if len(inputs) > 1 else inputs[0]
    predicted = model.predict(given, verbose=0)
    predicted = predicted if isinstance(predicted, list) else [predicted]
    arrays = {f"x{i}": x for i, x in enumerate(inputs)}
    arrays |= {f"y{i}": y for i, y in enumerate(predicted)}
    np.savez(FOLDER / f"{name}.npz", **arrays)
    model.save(FOLDER / f"{name}.h5", include_optimizer=False)
    if live:
        tfc.from_tfmot(model).save(FOLDER / f"live_{name}.keras")


def pruned():
    wrapped = tfmot.sparsity.keras.prune_low_magnitude(
        convolutional(),
        pruning_schedule=tfmot.sparsity.keras.ConstantSparsity(0.5, 0, frequency=1),
    )
    train(wrapped, [tfmot.sparsity.keras.UpdatePruningStep()])
    write("pruned", wrapped, X)


def clustered():
    start = tfmot.clustering.keras.CentroidInitialization.KMEANS_PLUS_PLUS
    settings = {"number_of_clusters": 4, "cluster_centroids_init": start}
    wrapped = tfmot.clustering.keras.cluster_weights(convolutional(), **settings)
    train(wrapped)
    write("clustered", wrapped, X)
    settings["number_of_clusters"] = 6
    sparse = experimental.cluster_weights(
        convolutional(zeros=True), **settings, preserve_sparsity=True
    )
    train(sparse)
    write("clustered_sparse", sparse, X)


def quantized():
    model = tfmot.quantization.keras.quantize_model(convolutional())
    train(model)
    set_ranges(model, same=("quant_add", "quant_c2", "quant_cat"))
    write("quantized", model, X)
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.inference_input_type = tf.int8
    converter.inference_output_type = tf.int8
    (FOLDER / "quantized.tflite").write_bytes(converter.convert())
    preserved = quantize(
        annotate(convolutional(zeros=True)),
        tfmot.experimental.combine.Default8BitPrunePreserveQuantizeScheme(),
    )
    train(preserved)
    set_ranges(preserved)
    write("quantized_sparse", preserved, X)


def quantized_sequential():
    tf_keras.utils.set_random_seed(2)
    model = tf_keras.Sequential(
        [
            layers.InputLayer((10,)),
            layers.Dense(8, activation="relu", name="first"),
            layers.Dense(5, activation="tanh", name="second"),
            layers.Dense(3, name="last"),
        ],
        name="sequential",
    )
    model = tfmot.quantization.keras.quantize_model(model)
    x = RNG.normal(size=(64, 10)).astype("float32")
    model.compile("adam", "mse")
    model.fit(x, RNG.normal(size=(64, 3)), verbose=0)
    set_ranges(model)
    write("quantized_sequential", model, x)


def recurrent():
    """Layers whose arguments or meaning changed with Keras 3."""
    tf_keras.utils.set_random_seed(3)
    inputs = tf_keras.Input((6,))
    x = layers.Embedding(20, 8, name="emb")(inputs)
    x = layers.LSTM(5, return_sequences=True, recurrent_activation="hard_sigmoid")(x)
    x = layers.Bidirectional(layers.GRU(4, return_sequences=True))(x)
    x = layers.TimeDistributed(layers.Dense(6, activation="swish"))(x)
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 4)(x, x))
    x = layers.Conv1D(4, 2, activation="hard_sigmoid")(x * 2.0 + 1.0)
    x = layers.LeakyReLU(0.1)(layers.GlobalMaxPooling1D()(x) - 0.5)
    outputs = layers.Dense(3, activation="softmax")(x)
    model = tf_keras.Model(inputs, outputs, name="recurrent")
    write("recurrent", model, RNG.integers(0, 20, (16, 6)).astype("float32"))
    model.save(FOLDER / "recurrent.keras")


def nested():
    """A shared nested model with a frozen layer, TensorFlow functions, two of each."""
    tf_keras.utils.set_random_seed(4)
    inside = tf_keras.Input((5, 5, 3))
    x = layers.Conv2D(4, 2, name="inner_conv")(inside)
    normalized = layers.BatchNormalization(name="inner_bn")
    inner = tf_keras.Model(inside, normalized(x), name="inner")
    normalized.set_weights([RNG.uniform(0.5, 2, 4) for _ in range(4)])
    normalized.trainable = False
    one, two = tf_keras.Input((5, 5, 3)), tf_keras.Input((5, 5, 3))
    a = inner(layers.Rescaling(1 / 127.5, offset=-1)(one))
    x = tf.nn.relu6(tf.concat([a, inner(two)], -1))[:, 1:]
    x = tf.reduce_mean(x, axis=[1, 2])
    first = layers.Dense(2, name="first")(x)
    second = layers.PReLU()(layers.BatchNormalization()(first))
    model = tf_keras.Model([one, two], [first, second], name="nested")
    images = [RNG.normal(size=(8, 5, 5, 3)).astype("float32") for _ in range(2)]
    write("nested", model, *images)
    model.save(FOLDER / "nested.keras")


def old_sequential():
    tf_keras.utils.set_random_seed(5)
    inner = tf_keras.Sequential(
        [layers.Dense(2, activation=tf.nn.leaky_relu), layers.ThresholdedReLU(0.2)],
        name="sub",
    )
    first = layers.Dense(4, input_shape=(3,), activation="hard_sigmoid")
    model = tf_keras.Sequential([first, layers.Dropout(0.1), inner], name="old")
    write("old_sequential", model, RNG.normal(size=(16, 3)).astype("float32"))


def inner_model():
    inputs = tf_keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="inner_conv")(inputs)
    bn = layers.BatchNormalization(name="inner_bn")
    model = tf_keras.Model(inputs, layers.Conv2D(2, 1, name="last_conv")(bn(x)))
    bn.set_weights([RNG.uniform(0.5, 1.5, 4) for _ in range(4)])
    deep = tf_keras.Sequential(
        [layers.Flatten(input_shape=(6, 6, 2)), layers.Dense(3, name="deep_dense")],
        name="deep",
    )
    return tf_keras.Model(model.input, deep(model.output), name="inner")


def wrapped_inside():
    """Wrappers of the layers of nested models, and of recurrent layers."""
    tf_keras.utils.set_random_seed(6)
    images = RNG.normal(size=(8, 8, 8, 3)).astype("float32")
    for name, wrap in (
        ("pruned_nested", tfmot.sparsity.keras.prune_low_magnitude),
        ("clustered_nested", cluster),
    ):
        parts = [tf_keras.Input((8, 8, 3)), inner_model(), layers.Dense(3)]
        write(name, wrap(tf_keras.Sequential(parts)), images)
    parts = [layers.LSTM(4, return_sequences=True), layers.GRU(4), layers.Dense(3)]
    model = cluster(tf_keras.Sequential([tf_keras.Input((5, 4)), *parts]))
    write("clustered_recurrent", model, RNG.normal(size=(8, 5, 4)).astype("float32"))


def cluster(model):
    start = tfmot.clustering.keras.CentroidInitialization.LINEAR
    return tfmot.clustering.keras.cluster_weights(
        model, number_of_clusters=4, cluster_centroids_init=start
    )


def partly_quantized():
    """Some layers without a quantizer, one of which has a similar name."""
    tf_keras.utils.set_random_seed(7)
    part = tfmot.quantization.keras.quantize_annotate_layer
    inputs = tf_keras.Input((12, 12, 3))
    x = layers.Conv2D(4, 3, activation="relu", name="before")(inputs)
    x = part(layers.Conv2D(4, 3, activation="relu", name="conv"))(x)
    x = layers.Conv2D(4, 3, name="conv_b")(x)
    model = tf_keras.Model(inputs, layers.GlobalAveragePooling2D(name="gap")(x))
    model = quantize(model)
    set_ranges(model)
    write("partly_quantized", model, X)


def not_translatable():
    inputs = tf_keras.Input((4,))
    x = layers.Lambda(lambda t: t * 2, name="twice")(inputs)
    x = tf.math.erf(x)
    model = tf_keras.Model(inputs, layers.Dense(2)(x), name="lambdas")
    model.save(FOLDER / "lambdas.h5", include_optimizer=False)


if __name__ == "__main__":
    for make in (
        pruned,
        clustered,
        quantized,
        quantized_sequential,
        recurrent,
        nested,
        old_sequential,
        wrapped_inside,
        partly_quantized,
        not_translatable,
    ):
        make()
    assert keras.__version__.startswith("3")
