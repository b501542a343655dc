"""`tfc.fold`: fewer layers, the same outputs at inference."""

import keras
import numpy as np
import pytest
from architectures import ARCHITECTURES, examples
from graph.models import ALL
from keras import layers
from networks import compiled, conv_net, image_data

import tfcompress as tfc


def _randomized(model, seed=0):
    """Weights and batch statistics as those of a trained network might be."""
    rng = np.random.default_rng(seed)
    for layer in model._flatten_layers():
        if isinstance(layer, layers.BatchNormalization):
            for variable in layer.weights:
                around = 0.0 if variable.name in ("beta", "moving_mean") else 1.0
                variable.assign(around + rng.uniform(-0.3, 0.3, variable.shape))
        elif hasattr(layer, "bias") and layer.bias is not None:
            layer.bias.assign(rng.normal(0, 0.3, layer.bias.shape))
    return model


def _assert_same(folded, model, x):
    """Within float32 rounding of sums over at most a few thousand products."""
    found, expected = (m(x, training=False) for m in (folded, model))
    keras.tree.assert_same_structure(found, expected)
    for a, b in zip(
        keras.tree.flatten(found), keras.tree.flatten(expected), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def _count(model, kind=layers.BatchNormalization):
    return sum(isinstance(layer, kind) for layer in model.layers)


def _stack(shape, *stack):
    inputs = x = keras.Input(shape)
    for layer in stack:
        x = layer(x)
    return _randomized(keras.Model(inputs, x))


# name -> shape of the input, kernel layer, axis that is normalized.
KERNELS = {
    "conv1d": ((8, 4), lambda: layers.Conv1D(5, 3, padding="causal"), -1),
    "conv2d": ((6, 6, 4), lambda: layers.Conv2D(5, 3, padding="same"), -1),
    "conv2d, no bias": ((6, 6, 4), lambda: layers.Conv2D(5, 3, use_bias=False), 3),
    "grouped": ((6, 6, 4), lambda: layers.Conv2D(6, 3, groups=2), -1),
    "conv3d": ((4, 4, 4, 2), lambda: layers.Conv3D(3, 2), -1),
    "depthwise": ((6, 6, 4), lambda: layers.DepthwiseConv2D(3, depth_multiplier=2), -1),
    "depthwise 1d": ((6, 4), lambda: layers.DepthwiseConv1D(3, padding="same"), -1),
    "separable": ((6, 6, 4), lambda: layers.SeparableConv2D(5, 3), -1),
    "separable 1d": ((6, 4), lambda: layers.SeparableConv1D(5, 3), -1),
    "transposed": (
        (4, 4, 3),
        lambda: layers.Conv2DTranspose(5, 3, strides=2, padding="same"),
        -1,
    ),
    "transposed 1d": ((4, 3), lambda: layers.Conv1DTranspose(5, 3, strides=2), -1),
    "transposed 3d": ((3, 3, 3, 2), lambda: layers.Conv3DTranspose(4, 2), -1),
    "dense": ((7,), lambda: layers.Dense(5), -1),
    "dense over time": ((3, 7), lambda: layers.Dense(5), 2),
    "einsum": ((3, 7), lambda: layers.EinsumDense("abc,cd->abd", (None, 5)), -1),
    "einsum, heads": (
        (3, 7),
        lambda: layers.EinsumDense("abc,cde->abde", (None, 2, 5), bias_axes="de"),
        2,
    ),
    "einsum, another bias": (
        (3, 7),
        lambda: layers.EinsumDense("abc,cde->abde", (None, 2, 5), bias_axes="e"),
        2,
    ),
    "einsum, ellipsis": (
        (3, 7),
        lambda: layers.EinsumDense("...c,cd->...d", 5, bias_axes="d"),
        -1,
    ),
}


@pytest.mark.parametrize("name", KERNELS)
def test_batch_norm_goes_into_the_kernel_before_it(name):
    shape, kernel, axis = KERNELS[name]
    model = _stack(shape, kernel(), layers.BatchNormalization(axis=axis), layers.ReLU())
    folded = tfc.fold(model)
    assert _count(folded) == 0 and _count(model) == 1
    _assert_same(folded, model, examples(model))


BEFORE = ["conv2d, no bias", "grouped", "conv3d", "depthwise", "separable", "dense"]
BEFORE += ["separable 1d", "einsum", "einsum, heads", "einsum, ellipsis"]


@pytest.mark.parametrize("name", BEFORE)
def test_batch_norm_goes_into_an_unpadded_kernel_behind_it(name):
    shape, kernel, _ = KERNELS[name]
    model = _stack(shape, layers.BatchNormalization(), kernel(), layers.ReLU())
    folded = tfc.fold(model)
    assert _count(folded) == 0
    _assert_same(folded, model, examples(model))


@pytest.mark.parametrize("name", ["conv2d", "conv1d", "depthwise 1d", "transposed"])
def test_batch_norm_before_zero_padding_stays(name):
    shape, kernel, _ = KERNELS[name]
    model = _stack(shape, layers.BatchNormalization(), kernel())
    folded = tfc.fold(model)
    assert _count(folded) == 1
    _assert_same(folded, model, examples(model))


def test_a_1x1_convolution_with_same_padding_pads_nothing():
    conv = layers.Conv2D(3, 1, strides=2, padding="same", activation="relu")
    model = _stack((5, 5, 4), layers.BatchNormalization(), conv)
    folded = tfc.fold(model)
    assert _count(folded) == 0
    _assert_same(folded, model, examples(model))


@pytest.mark.parametrize("axis, folds", [(1, True), (3, False)])
def test_channels_first_is_the_axis_of_the_convolution(axis, folds):
    conv = layers.Conv2D(5, 3, data_format="channels_first")
    inputs = keras.Input((4, 6, 6))
    model = keras.Model(inputs, layers.BatchNormalization(axis=axis)(conv(inputs)))
    # TensorFlow cannot run it on a CPU: the weights tell.
    folded = tfc.fold(_randomized(model))
    assert _count(folded) == (not folds)
    if folds:
        normalization = model.layers[-1]
        factor = normalization.gamma / np.sqrt(
            normalization.moving_variance + normalization.epsilon
        )
        np.testing.assert_allclose(
            folded.layers[-1].kernel, conv.kernel * factor, rtol=1e-6
        )


# name -> shape of the input, layers, how many kernels are left.
CHAINS = {
    "dense": ((9,), [lambda: layers.Dense(7), lambda: layers.Dense(3, "tanh")], 1),
    "three dense": (
        (9,),
        [lambda: layers.Dense(8), lambda: layers.Dense(7), lambda: layers.Dense(2)],
        1,
    ),
    "dense that would grow": (
        (9,),
        [lambda: layers.Dense(2), lambda: layers.Dense(9)],
        2,
    ),
    "dense with activation": (
        (9,),
        [lambda: layers.Dense(7, "relu"), lambda: layers.Dense(3)],
        2,
    ),
    "1x1, valid 3x3": (
        (7, 7, 4),
        [lambda: layers.Conv2D(4, 1), lambda: layers.Conv2D(4, 3, strides=2)],
        1,
    ),
    "1x1 with bias, padded 3x3": (
        (7, 7, 4),
        [lambda: layers.Conv2D(4, 1), lambda: layers.Conv2D(4, 3, padding="same")],
        2,
    ),
    "1x1 without bias, padded 3x3": (
        (7, 7, 4),
        [
            lambda: layers.Conv2D(4, 1, use_bias=False),
            lambda: layers.Conv2D(4, 3, padding="same", strides=2),
        ],
        1,
    ),
    "strided 1x1, 3x3": (
        (9, 9, 4),
        [lambda: layers.Conv2D(4, 1, strides=2), lambda: layers.Conv2D(4, 3)],
        2,
    ),
    "padded 3x3, 1x1": (
        (7, 7, 4),
        [
            lambda: layers.Conv2D(5, 3, padding="same", strides=2),
            lambda: layers.Conv2D(4, 1),
        ],
        1,
    ),
    "padded 3x3, strided 1x1": (
        (7, 7, 4),
        [
            lambda: layers.Conv2D(5, 3, padding="same"),
            lambda: layers.Conv2D(4, 1, strides=2),
        ],
        2,
    ),
    "valid 3x3, strided 1x1": (
        (8, 8, 4),
        [lambda: layers.Conv2D(5, 3), lambda: layers.Conv2D(4, 1, strides=2)],
        1,
    ),
    "dilated 3x3, 1x1": (
        (8, 8, 4),
        [lambda: layers.Conv2D(5, 3, dilation_rate=2), lambda: layers.Conv2D(4, 1)],
        1,
    ),
    "dilated 3x3, strided 1x1": (
        (8, 8, 4),
        [
            lambda: layers.Conv2D(5, 3, dilation_rate=2),
            lambda: layers.Conv2D(4, 1, strides=2),
        ],
        2,
    ),
    "1x1, 1x1 of both strides": (
        (9, 9, 4),
        [lambda: layers.Conv2D(4, 1, strides=2), lambda: layers.Conv2D(3, 1, 2)],
        1,
    ),
    "grouped 1x1, 1x1": (
        (5, 5, 4),
        [lambda: layers.Conv2D(4, 1, groups=2), lambda: layers.Conv2D(3, 1)],
        2,
    ),
    "conv1d": (
        (8, 4),
        [lambda: layers.Conv1D(4, 1), lambda: layers.Conv1D(4, 3)],
        1,
    ),
    "dropout and batch norm between": (
        (9,),
        [
            lambda: layers.Dense(7),
            lambda: layers.Dropout(0.5),
            lambda: layers.BatchNormalization(),
            lambda: layers.Activation("linear"),
            lambda: layers.Dense(3),
        ],
        1,
    ),
}


@pytest.mark.parametrize("name", CHAINS)
def test_kernels_merge_where_that_is_exact_and_smaller(name):
    shape, stack, left = CHAINS[name]
    model = _stack(shape, *[make() for make in stack])
    folded = tfc.fold(model)
    assert len(folded.layers) - 1 == left
    assert folded.count_params() <= model.count_params()
    _assert_same(folded, model, examples(model))


def _shared_conv(x):
    conv = layers.Conv2D(4, 3, padding="same")
    one = layers.BatchNormalization()(conv(x))
    return layers.BatchNormalization()(conv(one))


def _two_readers(x):
    y = layers.Conv2D(4, 3, padding="same")(x)
    return layers.Add()([layers.BatchNormalization()(y), y])


def _kernel_is_an_output(x):
    y = layers.Conv2D(4, 3)(x)
    return [y, layers.BatchNormalization()(y)]


def _activation_between(x):
    return layers.BatchNormalization()(layers.Conv2D(4, 3, activation="relu")(x))


def _batch_statistics(x):
    return layers.BatchNormalization()(layers.Conv2D(4, 3)(x), training=True)


GUARDED = {
    "a shared kernel": (_shared_conv, 2),
    "a second reader": (_two_readers, 1),
    "an output": (_kernel_is_an_output, 1),
    "an activation": (_activation_between, 1),
    "batch statistics at inference": (_batch_statistics, 1),
}


@pytest.mark.parametrize("name", GUARDED)
def test_batch_norm_stays_behind(name):
    build, left = GUARDED[name]
    inputs = keras.Input((6, 6, 4))
    model = _randomized(keras.Model(inputs, build(inputs)))
    folded = tfc.fold(model)
    assert _count(folded) == left
    _assert_same(folded, model, examples(model))


def test_dropout_that_was_asked_to_run_and_casts_stay():
    inputs = keras.Input((4,))
    x = layers.Dense(3, dtype="mixed_float16", name="half")(inputs)
    x = layers.Dropout(0.5, dtype="mixed_float16", name="bayesian")(x, training=True)
    outputs = layers.Activation("linear", dtype="float32", name="cast")(x)
    folded = tfc.fold(keras.Model(inputs, outputs))
    assert [layer.name for layer in folded.layers[1:]] == ["half", "bayesian", "cast"]
    assert folded.outputs[0].dtype == "float32"


def test_names_of_outputs_stay_so_that_losses_by_name_do():
    inputs = keras.Input((4,))
    x = layers.Dense(3)(inputs)
    one = layers.Activation("linear", name="one")(x)
    two = layers.BatchNormalization(name="two")(layers.Dense(2)(x))
    model = keras.Model(inputs, [one, two])
    folded = tfc.fold(model)
    assert folded.output_names == model.output_names == ["one", "two"]
    _assert_same(folded, model, examples(model))


@pytest.mark.parametrize("name", [n for n in ALL if n != "recurrent"])
def test_models_of_every_structure_keep_their_outputs(name):
    model = ALL[name]()
    x = keras.tree.map_structure(
        lambda t: np.random.default_rng(0).normal(size=(4, *t.shape[1:])),
        model._inputs_struct if hasattr(model, "_inputs_struct") else model.inputs[0],
    )
    _assert_same(tfc.fold(model), model, x)


_QUICK = ("pre-activation", "transposed", "einsum dense", "squeeze and excite")
_QUICK += ("nested and shared", "transformer", "depth multiplier", "subclassed")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in _QUICK else (pytest.mark.slow,))
        for name in ARCHITECTURES
    ],
)
def test_every_architecture_keeps_its_outputs(name):
    model = _randomized(ARCHITECTURES[name]())
    _assert_same(tfc.fold(model), model, examples(model))


@pytest.mark.parametrize(
    "name, size, left",
    [
        ("MobileNetV2", 32, 0),
        pytest.param("ResNet50", 32, 0, marks=pytest.mark.slow),
        # Normalization before an activation, or read twice, has no kernel to go to.
        pytest.param("ResNet50V2", 32, 17, marks=pytest.mark.slow),
        pytest.param("Xception", 71, 0, marks=pytest.mark.slow),
    ],
)
def test_networks_that_people_use_lose_their_batch_norm(name, size, left):
    model = getattr(keras.applications, name)(
        weights=None, input_shape=(size, size, 3), classes=5, classifier_activation=None
    )
    folded = tfc.fold(_randomized(model))
    assert _count(folded) == left
    _assert_same(folded, model, examples(model, 2))


@pytest.mark.slow
def test_the_result_saves_loads_and_trains_and_the_original_is_as_it_was(tmp_path):
    x, y = image_data()
    model = _randomized(conv_net())
    before = [w.copy() for w in model.get_weights()]
    folded, report = tfc.fold(model, return_report=True)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    folded.save(tmp_path / "folded.keras")
    loaded = keras.models.load_model(tmp_path / "folded.keras", safe_mode=True)
    np.testing.assert_array_equal(loaded(x), folded(x))
    history = compiled(loaded).fit(x, y, epochs=4, verbose=0).history["loss"]
    assert history[-1] < history[0]
    assert report.parameters_before == model.count_params()
    assert report.parameters_after == folded.count_params()
    assert [c.layer for c in report.changes] == ["conv", "depthwise"]
    assert "took in conv_bn" in str(report)
    assert report.changes[0].parameters_before == 8 * 27 + 4 * 8
    assert report.changes[0].parameters_after == 8 * 27 + 8


def test_layers_are_chosen_by_name():
    model = _randomized(conv_net())
    assert _count(tfc.fold(model, exclude="^depthwise")) == 1
    assert _count(tfc.fold(model, include="^conv")) == 1
    with pytest.raises(ValueError, match="'nothing' matches nothing"):
        tfc.fold(model, include="nothing")


def test_nothing_to_fold_gives_a_copy():
    model = _stack((4,), layers.Dense(3, activation="relu"))
    folded, report = tfc.fold(model, return_report=True)
    assert folded is not model and report.changes == ()
    folded.layers[-1].kernel.assign(np.zeros((4, 3)))
    assert np.any(model.layers[-1].kernel)


@keras.saving.register_keras_serializable(package="tests")
class _Loops(keras.Model):
    """A call that looks at values, which no recording can."""

    def build(self, shape):
        self.built = True

    def call(self, x):
        return x if float(keras.ops.sum(x)) > 0 else -x


def test_models_that_cannot_be_recorded_or_are_wrapped_are_refused_with_a_remedy():
    model = _Loops()
    model(np.zeros((2, 3), "float32"))
    with pytest.raises(ValueError, match="cannot be recorded"):
        tfc.fold(model)
    with pytest.raises(ValueError, match=r"on `tfc.strip\(model\)`"):
        tfc.fold(tfc.quantize_aware(conv_net()))
    with pytest.raises(TypeError, match="must be a Keras 3 model"):
        tfc.fold("model.keras")
