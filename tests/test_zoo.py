"""The reference networks against MLPerf Tiny's published topology."""

from collections import Counter

import keras
import numpy as np
import pytest

from tfcompress import zoo


def _kinds(model):
    return Counter(type(layer).__name__ for layer in model.layers)


def test_ds_cnn_has_the_layers_of_mlperf_tiny():
    # github.com/mlcommons/tiny, benchmark/training/keyword_spotting/keras_model.py:
    # a convolution (10, 4) with stride 2, four depthwise + pointwise blocks, all with
    # batch normalization and ReLU, average pooling, one Dense.
    model = zoo.ds_cnn()
    kinds = _kinds(model)
    assert (kinds["Conv2D"], kinds["DepthwiseConv2D"], kinds["Dense"]) == (5, 4, 1)
    assert (kinds["BatchNormalization"], kinds["ReLU"]) == (9, 9)
    stem = model.get_layer("stem")
    assert (stem.kernel_size, stem.strides, stem.filters) == ((10, 4), (2, 2), 64)
    assert model.get_layer("pool").input.shape == (None, 25, 5, 64)
    assert model.output_shape == (None, 12)


def test_ds_cnn_has_about_24_thousand_parameters():
    # By hand: stem 10*4*64, blocks 4 * (9*64 + 64*64), batch normalization 9 * 4 * 64,
    # classifier 64*12 + 12.
    expected = 2560 + 4 * (576 + 4096) + 9 * 256 + 780
    assert zoo.ds_cnn().count_params() == expected == 24_332


def test_resnet8_has_the_layers_of_mlperf_tiny():
    # github.com/mlcommons/tiny, benchmark/training/image_classification/keras_model.py:
    # three stacks of two 3x3 convolutions with 16, 32 and 64 channels; 1x1 shortcuts
    # where the size changes.
    model = zoo.resnet8()
    kinds = _kinds(model)
    assert (kinds["Conv2D"], kinds["Dense"], kinds["Add"]) == (9, 1, 3)
    assert (kinds["BatchNormalization"], kinds["ReLU"]) == (7, 7)
    convolutions = [x for x in model.layers if isinstance(x, keras.layers.Conv2D)]
    sizes = Counter((c.filters, c.kernel_size[0], c.strides[0]) for c in convolutions)
    assert sizes == {
        (16, 3, 1): 3,
        (32, 3, 2): 1,
        (32, 3, 1): 1,
        (32, 1, 2): 1,
        (64, 3, 2): 1,
        (64, 3, 1): 1,
        (64, 1, 2): 1,
    }
    assert model.get_layer("pool").input.shape == (None, 8, 8, 64)
    assert all(c.use_bias for c in convolutions)


def test_resnet8_has_about_78_thousand_parameters():
    # By hand: weights and bias of each output channel, times the channels.
    convolutions = (
        (27 + 1) * 16
        + 2 * (144 + 1) * 16
        + (144 + 1) * 32
        + (288 + 1) * 32
        + (16 + 1) * 32
        + (288 + 1) * 64
        + (576 + 1) * 64
        + (32 + 1) * 64
    )
    norms = 4 * (3 * 16 + 2 * 32 + 2 * 64)
    expected = convolutions + norms + 64 * 10 + 10
    assert zoo.resnet8().count_params() == expected == 78_666


@pytest.mark.parametrize(
    "build, shape", [(zoo.ds_cnn, (49, 10, 1)), (zoo.resnet8, (32, 32, 3))]
)
def test_outputs_are_probabilities(build, shape):
    model = build(classes=7)
    y = model.predict(np.random.default_rng(0).normal(size=(2, *shape)), verbose=0)
    assert y.shape == (2, 7)
    # 1e-5: a float32 softmax.
    np.testing.assert_allclose(y.sum(axis=1), 1, atol=1e-5)


def test_width_blocks_and_input_shape_are_settings():
    small = zoo.ds_cnn((20, 8, 1), classes=3, width=8, blocks=1)
    assert _kinds(small)["DepthwiseConv2D"] == 1
    assert small.get_layer("stem").filters == 8
    narrow = zoo.resnet8((16, 16, 1), classes=2, width=4)
    assert narrow.get_layer("stack3_conv2").filters == 16


@pytest.mark.parametrize("build", [zoo.ds_cnn, zoo.resnet8])
def test_models_are_plain_keras_and_survive_their_config(build):
    model = build()
    modules = {type(layer).__module__.split(".")[0] for layer in model.layers}
    assert modules == {"keras"}
    assert not model.compiled
    assert keras.Model.from_config(model.get_config()).count_params() == (
        model.count_params()
    )
