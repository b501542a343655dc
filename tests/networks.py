"""Small networks and data that many tests train."""

import keras
import numpy as np
from keras import layers


def image_data(examples=192, *, size=8, classes=3, seed=0):
    """Images whose class is the colour channel that is brightest: easy to learn."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, examples)
    x = rng.normal(0, 0.5, (examples, size, size, classes)).astype("float32")
    x[np.arange(examples), :, :, y] += 1.0
    return x, y


def conv_net(classes=3, *, size=8, softmax=True):
    """Convolution, batch norm, depthwise convolution, residual add, dense."""
    inputs = keras.Input((size, size, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="conv")(inputs)
    x = layers.BatchNormalization(momentum=0.9, name="conv_bn")(x)
    x = shortcut = layers.ReLU(name="conv_relu")(x)
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = layers.BatchNormalization(momentum=0.9, name="depthwise_bn")(x)
    x = layers.ReLU(6.0, name="depthwise_relu")(x)
    x = layers.Add(name="add")([x, shortcut])
    x = layers.MaxPooling2D(name="max_pool")(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(8, activation="relu", name="hidden")(x)
    outputs = layers.Dense(
        classes, activation="softmax" if softmax else None, name="classifier"
    )(x)
    return keras.Model(inputs, outputs, name="conv_net")


def compiled(model, *, optimizer=None, from_logits=False, **settings):
    """Compiles for classification with a fast optimizer."""
    model.compile(
        optimizer or keras.optimizers.Adam(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits),
        metrics=["accuracy"],
        **settings,
    )
    _make_variables(model)
    return model


def _make_variables(model):
    """Makes the variables of optimizer and metrics, for models with symbolic inputs.

    Without a strategy Keras makes them in the first step, which TensorFlow then traces
    twice: half of the time that a test of a small network takes.
    """
    graph = getattr(model, "student", model)
    tensors = [*(getattr(graph, "inputs", None) or ()), *getattr(graph, "outputs", ())]
    if not tensors or any(None in t.shape[1:] for t in tensors):
        return
    *inputs, output = (np.zeros((2, *t.shape[1:]), t.dtype) for t in tensors)
    inputs = inputs[0] if len(inputs) == 1 else inputs
    model._symbolic_build(data_batch=(inputs, output[..., 0].astype("int32")))


@keras.saving.register_keras_serializable(package="tests")
class Subclassed(keras.Model):
    """A model that has no graph: pruning works on it all the same."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv = layers.Conv2D(8, 3, activation="relu", name="conv")
        self.dense = layers.Dense(3, activation="softmax", name="dense")

    def call(self, inputs):
        return self.dense(keras.ops.mean(self.conv(inputs), axis=(1, 2)))


def zeros(model):
    """Fraction of zeros in each trainable weight of two dimensions or more."""
    found = [v.numpy() for v in model.trainable_variables if len(v.shape) > 1]
    return [(w.size - np.count_nonzero(w)) / w.size for w in found]
