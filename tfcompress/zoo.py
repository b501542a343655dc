"""Reference networks of the MLPerf Tiny benchmark, written with plain Keras layers.

They are what the demo, the tests and the benchmarks compress; nothing in them is
special to this library.

Example:
    ```python
    model = tfc.zoo.ds_cnn(input_shape=(49, 10, 1), classes=10)
    ```

Reference:
    Banbury et al., "MLPerf Tiny Benchmark", 2021. arXiv:2106.07597
"""

import keras
from keras import layers


def ds_cnn(input_shape=(49, 10, 1), classes=12, *, width=64, blocks=4, dropout=0.2):
    """Depthwise-separable CNN for keyword spotting, about 24 k parameters.

    Args:
        input_shape: `(frames, coefficients, 1)`.
        classes: Number of words; the network ends in their softmax.
        width: Channels of every block.
        blocks: Depthwise + pointwise blocks behind the first convolution.
        dropout: Dropout rate behind the first convolution and before the classifier
            (twice that rate).

    Returns:
        An uncompiled functional `keras.Model`.

    Reference:
        Zhang et al., "Hello Edge: Keyword Spotting on Microcontrollers", 2017,
        DS-CNN-S. arXiv:1711.07128
    """
    inputs = keras.Input(input_shape, name="mfcc")
    x = layers.Conv2D(
        width, (10, 4), strides=2, padding="same", use_bias=False, name="stem"
    )(inputs)
    x = _norm_relu(x, "stem")
    x = layers.Dropout(dropout, name="stem_dropout")(x)
    for block in range(1, blocks + 1):
        x = layers.DepthwiseConv2D(
            3, padding="same", use_bias=False, name=f"depthwise_{block}"
        )(x)
        x = _norm_relu(x, f"depthwise_{block}")
        x = layers.Conv2D(width, 1, use_bias=False, name=f"pointwise_{block}")(x)
        x = _norm_relu(x, f"pointwise_{block}")
    x = layers.Dropout(2 * dropout, name="dropout")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    outputs = layers.Dense(classes, activation="softmax", name="classifier")(x)
    return keras.Model(inputs, outputs, name="ds_cnn")


def resnet8(input_shape=(32, 32, 3), classes=10, *, width=16):
    """ResNet with three residual stacks for tiny images, about 78 k parameters.

    Args:
        input_shape: `(height, width, channels)`.
        classes: Number of classes; the network ends in their softmax.
        width: Channels of the first stack; the others have 2 and 4 times as many.

    Returns:
        An uncompiled functional `keras.Model`.

    Reference:
        He et al., "Deep Residual Learning for Image Recognition", 2015.
        arXiv:1512.03385; the 8-layer form is MLPerf Tiny's.
    """
    inputs = keras.Input(input_shape, name="image")
    x = _norm_relu(_conv(inputs, width, 3, 1, "stem"), "stem")
    for stack, channels in enumerate((width, 2 * width, 4 * width), start=1):
        stride = 1 if stack == 1 else 2
        y = _conv(x, channels, 3, stride, f"stack{stack}_conv1")
        y = _norm_relu(y, f"stack{stack}_conv1")
        y = _conv(y, channels, 3, 1, f"stack{stack}_conv2")
        y = layers.BatchNormalization(momentum=0.9, name=f"stack{stack}_conv2_bn")(y)
        if stride > 1:
            x = _conv(x, channels, 1, stride, f"stack{stack}_shortcut")
        x = layers.Add(name=f"stack{stack}_add")([x, y])
        x = layers.ReLU(name=f"stack{stack}_relu")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    outputs = layers.Dense(classes, activation="softmax", name="classifier")(x)
    return keras.Model(inputs, outputs, name="resnet8")


def _conv(x, channels, kernel, stride, name):
    return layers.Conv2D(
        channels,
        kernel,
        strides=stride,
        padding="same",
        kernel_initializer="he_normal",
        kernel_regularizer=keras.regularizers.L2(1e-4),
        name=name,
    )(x)


def _norm_relu(x, name):
    # Keras' default of 0.99 lags behind on data sets of a few dozen batches an epoch.
    x = layers.BatchNormalization(momentum=0.9, name=f"{name}_bn")(x)
    return layers.ReLU(name=f"{name}_relu")(x)
