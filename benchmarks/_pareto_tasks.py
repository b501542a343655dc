"""The four tasks of `pareto.py`: data, networks and how they are trained.

Networks are written for Keras 3 and for tf_keras alike (`build(layers, keras)`), every
layer with a name, so that weights go over by name. Convolutions along one axis are
written as k x 1 in two, which TFMOT needs and TFLite makes of them anyway.
"""

import collections
import dataclasses
import pathlib
import re

import numpy as np
import tensorflow as tf

from tfcompress.datasets import untuned

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
PACKAGE = pathlib.Path(__file__).resolve().parents[1] / "tfcompress"
BATCH = 64
_WORDS, _LENGTH = 4000, 32


@dataclasses.dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
        about: Data and network in words, the split included.
        load: Function to `((x, y), (x_test, y_test))`.
        build: Function of `(layers, keras)` to a model.
        augment: Function of a batch of `x` to one of the same shape, or `None`.
        float_epochs: Epochs of the float model.
        rate: First learning rate of the float model.
        epochs: Epochs of all compression together.
    """

    about: str
    load: callable
    build: callable
    augment: callable
    float_epochs: int
    rate: float
    epochs: int


def batches(task, x, y, seed):
    """A training data set, new in each epoch where the task augments."""
    data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x), seed=seed)
    data = data.batch(BATCH, drop_remainder=True)
    if task.augment is not None:
        data = data.map(lambda a, b: (task.augment(a), b), 2)
    return untuned(data.prefetch(2))


def named_weights(model):
    """Dict from `layer/index` to array."""
    return {
        f"{layer.name}/{i}": w
        for layer in model.layers
        for i, w in enumerate(layer.get_weights())
    }


def set_named_weights(model, arrays):
    """Gives a model the weights of `named_weights`; all of them must fit."""
    arrays = dict(arrays)
    for layer in model.layers:
        count = len(layer.weights)
        if count:
            layer.set_weights([arrays.pop(f"{layer.name}/{i}") for i in range(count)])
    assert not arrays, sorted(arrays)


# CIFAR-10.


def _cifar():
    def part(name):
        with np.load(SHARED / name) as file:
            return file["x"].astype("float32") / 127.5 - 1, file["y"].astype("int32")

    return part("cifar10_train_10k.npz"), part("cifar10_test_2k.npz")


def _shifted_and_flipped(images):
    padded = tf.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)), constant_values=-1.0)
    moved = tf.image.random_crop(padded, (BATCH, 32, 32, 3))
    return tf.image.random_flip_left_right(moved)


def _resnet8(layers, keras):
    def conv(x, filters, size, strides, name):
        x = layers.Conv2D(
            filters, size, strides=strides, padding="same", use_bias=False, name=name
        )(x)
        return layers.BatchNormalization(momentum=0.9, name=f"{name}_bn")(x)

    inputs = keras.Input((32, 32, 3), name="image")
    x = layers.ReLU(name="stem_relu")(conv(inputs, 16, 3, 1, "stem"))
    for stack, filters in enumerate((16, 32, 64), start=1):
        strides = 1 if stack == 1 else 2
        y = conv(x, filters, 3, strides, f"stack{stack}_a")
        y = layers.ReLU(name=f"stack{stack}_a_relu")(y)
        y = conv(y, filters, 3, 1, f"stack{stack}_b")
        if strides > 1:
            x = conv(x, filters, 1, strides, f"stack{stack}_short")
        x = layers.Add(name=f"stack{stack}_add")([x, y])
        x = layers.ReLU(name=f"stack{stack}_relu")(x)
    return _classified(x, inputs, 10, layers, keras)


# Spoken digits.


def _digits():
    with np.load(PACKAGE / "data" / "spoken_digits_mfcc.npz") as file:
        x = np.concatenate([file["x_train"], file["x_test"]]).astype("float32")
        y = np.concatenate([file["y_train"], file["y_test"]]).astype("int32")
        who = np.concatenate([file["speaker_train"], file["speaker_test"]])
        old = np.arange(len(x)) < len(file["x_train"])
    x -= x.mean(axis=1, keepdims=True)
    x /= x.std(axis=1, keepdims=True) + 1e-3
    held_out = np.isin(who, ("theo", "yweweler"))
    train, x = old & ~held_out, x[..., None]
    return (x[train], y[train]), (x[held_out], y[held_out])


def _other_voice(x):
    frames, coefficients = x.shape[1:3]

    def one(clip):
        length = tf.cast(frames * tf.random.uniform((), 0.8, 1.2), tf.int32)
        clip = tf.image.resize(clip, (length, coefficients))
        clip = tf.image.resize_with_crop_or_pad(clip, frames, coefficients)
        clip = tf.roll(clip, tf.random.uniform((), -6, 7, tf.int32), axis=0)
        gain, offset = tf.unstack(tf.random.normal((2, 1, coefficients, 1), 0, 0.25))
        noise = tf.random.normal(tf.shape(clip), stddev=0.5)
        return clip * (1 + gain) + offset + noise

    return tf.ensure_shape(tf.map_fn(one, x), (BATCH, frames, coefficients, 1))


def _ds_cnn(layers, keras):
    def normed(x, name):
        x = layers.BatchNormalization(momentum=0.9, name=f"{name}_bn")(x)
        return layers.ReLU(name=f"{name}_relu")(x)

    inputs = keras.Input((49, 10, 1), name="mfcc")
    x = layers.Conv2D(
        64, (10, 4), strides=2, padding="same", use_bias=False, name="stem"
    )(inputs)
    x = normed(x, "stem")
    for block in range(1, 5):
        name = f"depthwise_{block}"
        x = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name=name)(x)
        x = normed(x, name)
        name = f"pointwise_{block}"
        x = normed(layers.Conv2D(64, 1, use_bias=False, name=name)(x), name)
    return _classified(x, inputs, 10, layers, keras, dropout=0.3)


# Windows of a wrist-worn motion sensor.


def _imu():
    with np.load(SHARED / "imu_shoulder_windows.npz") as file:
        arrays = {name: file[name] for name in file.files}
    x = arrays["x_train"].astype("float32")
    mean, scale = x.mean(axis=(0, 1)), x.std(axis=(0, 1)) + 1e-3

    def part(name):
        found = (arrays[f"x_{name}"].astype("float32") - mean) / scale
        return found[:, :, None, :], arrays[f"y_{name}"].astype("int32")

    return part("train"), part("test")


def _cnn_1d(layers, keras):
    inputs = keras.Input((100, 1, 6), name="window")
    x = inputs
    for number, (filters, size, strides) in enumerate(
        ((32, 7, 2), (64, 5, 2), (96, 5, 2), (96, 3, 1)), start=1
    ):
        x = layers.Conv2D(
            filters,
            (size, 1),
            strides=(strides, strides),
            padding="same",
            use_bias=False,
            name=f"conv_{number}",
        )(x)
        x = layers.BatchNormalization(momentum=0.9, name=f"conv_{number}_bn")(x)
        x = layers.ReLU(name=f"conv_{number}_relu")(x)
    return _classified(x, inputs, 7, layers, keras, dropout=0.3)


# Sentences of film reviews.


def _movie():
    def read(name):
        with open(SHARED / name, encoding="utf-8") as file:
            lines = [line.rstrip("\n").split("\t", 1) for line in file if "\t" in line]
        lines = [pair for pair in lines if pair[0].isdigit()]
        labels = np.array([int(label) for label, _ in lines], "int32")
        return [re.findall(r"[a-z']+", text.lower()) for _, text in lines], labels

    train, y = read("movie_snippets_train.tsv")
    test, y_test = read("movie_snippets_test.tsv")
    counts = collections.Counter(word for words in train for word in words)
    # 0 pads, 1 is every other word.
    index = {word: i for i, (word, _) in enumerate(counts.most_common(_WORDS - 2), 2)}

    def numbered(sentences):
        found = np.zeros((len(sentences), _LENGTH), "int32")
        for row, words in zip(found, sentences, strict=True):
            ids = [index.get(word, 1) for word in words[:_LENGTH]]
            row[: len(ids)] = ids
        return found

    return (numbered(train), y), (numbered(test), y_test)


def _text_cnn(layers, keras):
    inputs = keras.Input((_LENGTH,), dtype="int32", name="words")
    x = layers.Embedding(_WORDS, 32, name="embedding")(inputs)
    x = layers.Dropout(0.5, name="embedding_dropout")(x)
    x = layers.Reshape((_LENGTH, 1, 32), name="rows")(x)
    x = layers.Conv2D(64, (3, 1), padding="same", activation="relu", name="conv")(x)
    return _classified(x, inputs, 2, layers, keras, dropout=0.5)


def _classified(x, inputs, classes, layers, keras, dropout=None):
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    if dropout:
        x = layers.Dropout(dropout, name="dropout")(x)
    x = layers.Dense(classes, activation="softmax", name="classifier")(x)
    return keras.Model(inputs, x)


TASKS = {
    "cifar": Task(
        "ResNet-8 on CIFAR-10: 10,000 training and 2,000 test images (JPEG pixels)",
        _cifar,
        _resnet8,
        _shifted_and_flipped,
        float_epochs=40,
        rate=2e-3,
        epochs=24,
    ),
    "digits": Task(
        "DS-CNN on spoken digits: 1,800 clips of 4 speakers, tested on 1,000 of 2 "
        "others",
        _digits,
        _ds_cnn,
        _other_voice,
        float_epochs=30,
        rate=3e-3,
        epochs=48,
    ),
    "imu": Task(
        "1-D CNN on motion sensor windows: 3,675 of 8 people, tested on 1,002 of 2 "
        "others",
        _imu,
        _cnn_1d,
        None,
        float_epochs=20,
        rate=2e-3,
        epochs=36,
    ),
    "movie": Task(
        "embedding and CNN on film review sentences: 80 % training, 20 % test",
        _movie,
        _text_cnn,
        None,
        float_epochs=6,
        rate=1e-3,
        epochs=18,
    ),
}
