"""The wrapper around any layer, against the layer by itself."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfcompress.graph import built_copy, kernels
from tfcompress.layers import (
    FakeQuantizeWeight,
    KeepZeros,
    LearnedStep,
    Transform,
    TransformWeights,
    find_weight,
)

_L2 = keras.regularizers.L2(0.1)

# Layer, shape of its input, the weight that is transformed.
CASES = {
    "Dense": (lambda: layers.Dense(3, activation="tanh"), (4,), "kernel"),
    "Conv2D": (lambda: layers.Conv2D(3, 2), (4, 4, 2), "kernel"),
    "DepthwiseConv2D": (lambda: layers.DepthwiseConv2D(2), (4, 4, 2), "kernel"),
    "SeparableConv2D": (
        lambda: layers.SeparableConv2D(3, 2),
        (4, 4, 2),
        "pointwise_kernel",
    ),
    "EinsumDense": (
        lambda: layers.EinsumDense("abc,cd->abd", (4, 3), bias_axes="d"),
        (4, 2),
        "kernel",
    ),
    "LSTM": (lambda: layers.LSTM(3), (4, 2), "kernel"),
    "LSTM, recurrent": (lambda: layers.LSTM(3), (4, 2), "recurrent_kernel"),
    "BatchNormalization": (lambda: layers.BatchNormalization(), (4,), "gamma"),
    "PReLU": (lambda: layers.PReLU("ones"), (4,), "alpha"),
    "regularized": (
        lambda: layers.Dense(
            3,
            kernel_regularizer=_L2,
            bias_regularizer=_L2,
            activity_regularizer=_L2,
        ),
        (4,),
        "kernel",
    ),
}


def _layer(name):
    make, shape, weight = CASES[name]
    layer = make()
    layer.build((None, *shape))
    rng = np.random.default_rng(0)
    for variable in layer.weights:
        if keras.backend.is_float_dtype(variable.dtype):
            variable.assign(rng.uniform(0.2, 1.0, variable.shape))
    return layer, shape, weight


@keras.saving.register_keras_serializable(package="tests")
class TimesBias(Transform):
    """The weight times the mean of the layer's bias."""

    def __init__(self, bias="bias"):
        self.bias = bias

    @property
    def reads(self):
        return (self.bias,)

    def __call__(self, weight, state):
        return weight * tf.reduce_mean(state[self.bias])


def _attention():
    layer = layers.MultiHeadAttention(2, 3, name="attention")
    layer.build((None, 4, 3), (None, 4, 3))
    return layer


def _in_model(layer, shape):
    inputs = keras.Input(shape, name="x")
    y = layers.Flatten(name="flat")(layer(inputs))
    return keras.Model(inputs, layers.Dense(1, kernel_initializer="ones")(y))


def _data(shape, count=16, seed=1):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, *shape)).astype("float32"), np.ones((count, 1))


def _fit(model, shape):
    model.compile(keras.optimizers.Adam(0.01), "mse", run_eagerly=True)
    return _continue(model, shape)


def _continue(model, shape):
    x, y = _data(shape)
    history = model.fit(x, y, batch_size=8, epochs=1, shuffle=False, verbose=0)
    return history.history["loss"]


def _floats(model):
    found = [w for w in model.weights if keras.backend.is_float_dtype(w.dtype)]
    return [w.numpy() for w in found]


@keras.saving.register_keras_serializable(package="tests")
class Doubled(Transform):
    """Twice the weight."""

    def __call__(self, weight, state):
        return 2 * weight


_MODES = {
    "eager": {"run_eagerly": True},
    "graph": {"jit_compile": False},
    "xla": {"jit_compile": True},
}


@pytest.mark.parametrize(
    "name, mode",
    [(name, "eager") for name in CASES]
    + [("LSTM", "graph"), ("BatchNormalization", "graph")]
    + [("BatchNormalization", "xla"), ("regularized", "xla")],
)
def test_with_an_empty_list_the_layer_trains_as_if_it_were_alone(name, mode):
    layer, shape, weight = _layer(name)
    plain = _in_model(layer, shape)
    wrapped = _in_model(TransformWeights(built_copy(layer), {weight: []}), shape)
    # Side by side in one model, which compiles once: neither sees the other, for Adam
    # treats each weight by itself.
    inputs = keras.Input(shape)
    twins = keras.Model(inputs, [plain(inputs), wrapped(inputs)])
    twins.compile(keras.optimizers.Adam(0.01), ["mse", "mse"], **_MODES[mode])
    x, y = _data(shape)
    before = _floats(plain)
    twins.fit(x, [y, y], batch_size=8, epochs=2, shuffle=False, verbose=0)
    assert all(np.any(a != b) for a, b in zip(before, _floats(plain), strict=True))
    # 1e-4: XLA may add the same float32 numbers in another order, and Adam divides by
    # their size; the others agree to the last bit.
    rtol = 1e-4 if mode == "xla" else 0
    for a, b in zip(_floats(plain), _floats(wrapped), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol)


@pytest.mark.parametrize("name", CASES)
def test_the_layer_computes_with_the_effective_weight(name):
    layer, shape, weight = _layer(name)
    doubled = built_copy(layer)
    for variable in doubled.weights:
        if variable.name == weight:
            variable.assign(2 * variable.numpy())
    wrapper = TransformWeights(layer, {weight: [Doubled()]})
    x, _ = _data(shape)
    # 1e-6: one multiplication by a power of two more, exact in float32.
    np.testing.assert_allclose(wrapper(x), doubled(x), rtol=1e-6)


@pytest.mark.parametrize(
    "name",
    [
        "DepthwiseConv2D",
        "EinsumDense",
        "LSTM, recurrent",
        "BatchNormalization",
        "regularized",
    ],
)
def test_saved_loaded_and_continued_it_is_as_if_never_saved(name, tmp_path):
    layer, shape, weight = _layer(name)
    model = _in_model(
        TransformWeights(layer, {weight: [KeepZeros(), FakeQuantizeWeight(4, (-1,))]}),
        shape,
    )
    _fit(model, shape)
    model.save(tmp_path / "m.keras")
    back = keras.models.load_model(tmp_path / "m.keras", safe_mode=True)
    x, _ = _data(shape)
    # 1e-6 and 1e-5: the same operations, from files of exact numbers; matrix products
    # may be split otherwise.
    np.testing.assert_allclose(back(x), model(x), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(
        _continue(back, shape), _continue(model, shape), rtol=1e-5
    )


def test_tokens_are_looked_up_in_the_effective_embeddings(tmp_path):
    layer = layers.Embedding(5, 3)
    layer.build((None, 2))
    wrapper = TransformWeights(layer, {"embeddings": [Doubled()]})
    inputs = keras.Input((2,), dtype="int32")
    model = keras.Model(inputs, wrapper(inputs))
    tokens = np.array([[0, 4], [2, 2]])
    np.testing.assert_array_equal(model(tokens), 2 * layer.embeddings.numpy()[tokens])
    model.save(tmp_path / "m.keras")
    back = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(back(tokens), model(tokens))


def test_transforms_are_applied_from_left_to_right():
    class Shifted(Transform):
        def __call__(self, weight, state):
            return weight + 1

    layer = layers.Dense(1, use_bias=False, kernel_initializer="ones")
    layer.build((None, 1))
    found = [
        TransformWeights(layer, {"kernel": chain}).effective_weights()["kernel"].item()
        for chain in ([Doubled(), Shifted()], [Shifted(), Doubled()])
    ]
    assert found == [3.0, 4.0]


def test_several_weights_can_be_transformed():
    layer, shape, _ = _layer("LSTM")
    wrapper = TransformWeights(
        layer, {"kernel": [Doubled()], "recurrent_kernel": [FakeQuantizeWeight(3)]}
    )
    effective = wrapper.effective_weights()
    assert set(effective) == {"kernel", "recurrent_kernel"}
    np.testing.assert_array_equal(effective["kernel"], 2 * layer.cell.kernel.numpy())
    assert len(np.unique(effective["recurrent_kernel"][:, 0])) <= 7


def test_gradient_reaches_the_latent_weight():
    layer, shape, _ = _layer("Dense")
    wrapper = TransformWeights(layer, {"kernel": [FakeQuantizeWeight(4)]})
    x, _ = _data(shape)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(wrapper(x) ** 2)
    gradient = tape.gradient(loss, layer.kernel.value)
    assert np.all(gradient.numpy() != 0)


def test_weights_are_not_changed_by_the_forward_pass():
    layer, shape, _ = _layer("Dense")
    before = layer.kernel.numpy()
    wrapper = TransformWeights(layer, {"kernel": [FakeQuantizeWeight(2)]})
    wrapper(_data(shape)[0], training=True)
    np.testing.assert_array_equal(layer.kernel.numpy(), before)


def test_batch_statistics_still_update():
    layer, shape, weight = _layer("BatchNormalization")
    plain = built_copy(layer)
    start = layer.moving_mean.numpy()
    wrapper = TransformWeights(layer, {weight: [Doubled()]})
    x = _data(shape)[0] + 5
    for _ in range(3):
        wrapper(x, training=True)
        plain(x, training=True)
    # They start below 1 and are drawn to about 5.
    assert np.all(np.abs(plain.moving_mean.numpy() - start) > 0.05)
    np.testing.assert_array_equal(layer.moving_mean, plain.moving_mean)
    np.testing.assert_array_equal(layer.moving_variance, plain.moving_variance)
    wrapper(x, training=False)
    np.testing.assert_array_equal(layer.moving_mean, plain.moving_mean)


def test_random_seeds_still_advance():
    cell = layers.LSTM(3, dropout=0.5)
    cell.build((None, 4, 2))
    wrapper = TransformWeights(cell, {"kernel": []})
    x = np.ones((2, 4, 2), "float32")
    first, second = (wrapper(x, training=True).numpy() for _ in range(2))
    assert np.any(first != second)


def test_every_regularizer_counts_once_and_sees_the_latent_weight():
    layer, shape, _ = _layer("regularized")
    wrapper = TransformWeights(layer, {"kernel": [Doubled()]})
    model = keras.Sequential([keras.Input(shape), wrapper])
    x, _ = _data(shape)
    y = model(x).numpy()
    kernel, bias = layer.kernel.numpy(), layer.bias.numpy()
    # Newer versions of Keras divide activity losses by the batch size.
    activity = keras.layers.ActivityRegularization(l2=0.1)
    activity(y)
    expected = [0.1 * np.sum(kernel**2), 0.1 * np.sum(bias**2), *activity.losses]
    expected = [float(value) for value in expected]
    found = sorted(float(loss) for loss in model.losses)
    # 1e-5: float32 sums.
    np.testing.assert_allclose(found, sorted(expected), rtol=1e-5)
    # A second call replaces the losses of the first.
    model(x)
    assert len(model.losses) == 3


def test_losses_added_by_a_layer_in_its_call_count_once():
    class Penalty(layers.Dense):
        def call(self, x, training=None):
            self.add_loss(keras.ops.mean(x) + 0.25)
            return super().call(x)

    layer = Penalty(2)
    layer.build((None, 3))
    model = keras.Sequential(
        [keras.Input((3,)), TransformWeights(layer, {"kernel": []})]
    )
    model.compile("sgd", "mse")
    x = np.zeros((4, 3), "float32")
    assert model.evaluate(x, np.zeros((4, 2)), verbose=0) == 0.25


def test_the_trainable_flag_works_through_the_wrapper():
    layer, _, _ = _layer("Dense")
    wrapper = TransformWeights(layer, {"kernel": [KeepZeros()]})
    assert len(wrapper.trainable_variables) == 2
    wrapper.trainable = False
    assert not wrapper.trainable_variables


def test_state_is_not_trained_and_is_restored(tmp_path):
    layer, shape, _ = _layer("Dense")
    kernel = layer.kernel.numpy()
    kernel[::2] = 0
    layer.kernel.assign(kernel)
    model = _in_model(TransformWeights(layer, {"kernel": [KeepZeros()]}), shape)
    # The latent zeros move, and no longer tell where the mask was.
    layer.kernel.assign(kernel + 1)
    model.save(tmp_path / "m.keras")
    back = keras.models.load_model(tmp_path / "m.keras")
    wrapper = next(x for x in back.layers if isinstance(x, TransformWeights))
    assert np.all(wrapper.layer.kernel.numpy() != 0)
    assert np.all(wrapper.effective_weights()["kernel"][::2] == 0)
    assert np.all(wrapper.effective_weights()["kernel"][1::2] != 0)
    assert "mask" not in " ".join(v.name for v in wrapper.trainable_variables)


def test_the_wrapper_has_the_name_and_output_shape_of_the_layer():
    layer, shape, _ = _layer("Conv2D")
    wrapper = TransformWeights(layer, {"kernel": []})
    assert wrapper.name == layer.name
    assert wrapper.compute_output_shape((None, *shape)) == (None, 3, 3, 3)
    assert wrapper(keras.Input(shape)).shape == (None, 3, 3, 3)


def test_a_stateless_call_computes_with_the_weights_it_is_given():
    layer, shape, _ = _layer("Dense")
    model = keras.Sequential(
        [keras.Input(shape), TransformWeights(layer, {"kernel": [Doubled()]})]
    )
    x, _ = _data(shape)
    given = [np.full(v.shape, 0.5, "float32") for v in model.trainable_variables]
    y, _ = model.stateless_call(given, [], x)
    expected = np.tanh(x @ np.full((4, 3), 1.0) + 0.5)
    # 1e-5: float32 tanh.
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


def test_an_unbuilt_layer_is_refused():
    with pytest.raises(ValueError, match="is not built"):
        TransformWeights(layers.Dense(2, name="d"), {"kernel": []})


def test_a_weight_that_is_not_there_is_refused_with_those_that_are():
    layer, _, _ = _layer("Dense")
    with pytest.raises(ValueError, match="named 'kernal'") as caught:
        TransformWeights(layer, {"kernal": [KeepZeros()]})
    assert "['bias', 'kernel']" in str(caught.value)


def test_a_name_that_several_weights_have_is_refused():
    layer = layers.MultiHeadAttention(2, 3)
    layer.build((None, 4, 3), (None, 4, 3))
    with pytest.raises(ValueError, match="must have one weight named 'kernel'"):
        TransformWeights(layer, {"kernel": [FakeQuantizeWeight()]})


def test_a_wrong_name_is_refused_even_with_an_empty_list():
    layer, _, _ = _layer("Dense")
    with pytest.raises(ValueError, match="named 'kernal'"):
        TransformWeights(layer, {"kernal": []})


def test_the_end_of_the_path_tells_weights_of_one_name_apart(tmp_path):
    layer = _attention()
    doubled = built_copy(layer)
    for name in ("query/kernel", "attention_output/kernel"):
        variable = find_weight(doubled, name)
        variable.assign(2 * variable.numpy())
    chains = {"query/kernel": [Doubled()], "attention_output/kernel": [Doubled()]}
    wrapper = TransformWeights(layer, chains)
    x = _data((4, 3))[0]
    np.testing.assert_array_equal(wrapper(x, x), doubled(x, x))
    effective = wrapper.effective_weights()
    assert list(effective) == list(chains)
    for name, found in effective.items():
        np.testing.assert_array_equal(found, find_weight(doubled, name))
    inputs = keras.Input((4, 3))
    model = keras.Model(inputs, wrapper(inputs, inputs))
    model.save(tmp_path / "m.keras")
    back = keras.models.load_model(tmp_path / "m.keras", safe_mode=True)
    np.testing.assert_array_equal(back(x), model(x))


def test_state_of_weights_named_by_path_is_kept_apart(tmp_path):
    names = ["query/kernel", "key/kernel"]
    chains = {name: [LearnedStep(4, (1, 2))] for name in names}
    wrapper = TransformWeights(_attention(), chains)
    inputs = keras.Input((4, 3))
    model = keras.Model(inputs, wrapper(inputs, inputs))
    wrapper.states["key/kernel"][0]["bits"].assign(0)
    model.save(tmp_path / "m.keras")
    back = keras.models.load_model(tmp_path / "m.keras", safe_mode=True)
    found = next(x for x in back.layers if isinstance(x, TransformWeights))
    for name in names:
        np.testing.assert_array_equal(
            found.effective_weights()[name], wrapper.effective_weights()[name]
        )
    latent = find_weight(found.layer, "key/kernel")
    np.testing.assert_array_equal(found.effective_weights()["key/kernel"], latent)


def test_a_path_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="named 'ery/kernel'"):
        TransformWeights(_attention(), {"ery/kernel": []})


def test_an_ambiguous_name_is_refused_with_the_paths():
    with pytest.raises(ValueError, match="'attention/query/kernel'"):
        TransformWeights(_attention(), {"kernel": []})


def test_a_transform_reads_the_current_value_of_another_weight(tmp_path):
    layer, shape, _ = _layer("Dense")
    layer.bias.assign([1.0, 2.0, 3.0])
    wrapper = TransformWeights(layer, {"kernel": [Doubled(), TimesBias()]})
    effective = wrapper.effective_weights()["kernel"]
    np.testing.assert_array_equal(effective, 4 * layer.kernel.numpy())
    model = _in_model(wrapper, shape)
    before = model(_data(shape)[0]).numpy()
    layer.bias.assign([0.0, 0.0, 0.0])
    assert not np.any(wrapper.effective_weights()["kernel"])
    assert np.any(model(_data(shape)[0]).numpy() != before)
    _fit(model, shape)
    model.save(tmp_path / "m.keras")
    back = keras.models.load_model(tmp_path / "m.keras", safe_mode=True)
    x, _ = _data(shape)
    np.testing.assert_array_equal(back(x), model(x))


def test_a_stateless_call_reads_the_weights_it_is_given():
    layer, shape, _ = _layer("Dense")
    model = keras.Sequential(
        [keras.Input(shape), TransformWeights(layer, {"kernel": [TimesBias()]})]
    )
    x, _ = _data(shape)
    given = [np.full(v.shape, 0.5, "float32") for v in model.trainable_variables]
    y, _ = model.stateless_call(given, [], x)
    expected = np.tanh(x @ np.full((4, 3), 0.25) + 0.5)
    # 1e-5: float32 tanh.
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


def test_a_weight_to_read_that_is_not_there_is_refused():
    layer, _, _ = _layer("Dense")
    with pytest.raises(ValueError, match="must have one weight named 'moving_mean'"):
        TransformWeights(layer, {"kernel": [TimesBias("moving_mean")]})
    with pytest.raises(ValueError, match="must have one weight named 'bias'"):
        TransformWeights(_attention(), {"query/kernel": [TimesBias()]})
    TransformWeights(_attention(), {"query/kernel": [TimesBias("query/bias")]})


@pytest.mark.parametrize("mode", _MODES)
def test_a_change_of_bits_takes_effect_in_a_compiled_model(mode):
    layer, shape, _ = _layer("Dense")
    wrapper = TransformWeights(layer, {"kernel": [FakeQuantizeWeight()]})
    model = keras.Sequential([keras.Input(shape), wrapper])
    model.compile("sgd", "mse", **_MODES[mode])
    x = _data(shape)[0]
    kernel, bias = layer.kernel.numpy(), layer.bias.numpy()
    bits = wrapper.states["kernel"][0]["bits"]
    for given in (8, 3, 0):
        bits.assign(given)
        effective = wrapper.effective_weights()["kernel"]
        # 1e-5: float32 tanh, compiled or not.
        np.testing.assert_allclose(
            model.predict(x, verbose=0), np.tanh(x @ effective + bias), atol=1e-5
        )
        off = np.abs(effective - kernel).max()
        step = kernel.max() / (2 ** (given - 1) - 1) if given else 0
        assert off <= 0.51 * step and (off > 0.2 * step or not given)


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16"])
def test_trainable_state_is_trained_and_restored(dtype, tmp_path):
    layer, shape, _ = _layer("Dense")
    layer = built_copy(layer, dtype=dtype)
    wrapper = TransformWeights(layer, {"kernel": [LearnedStep(4)]}, dtype=dtype)
    model = _in_model(wrapper, shape)
    step = wrapper.states["kernel"][0]["step"]
    start = step.numpy()
    assert step.dtype == "float32"
    assert any(v is step for v in model.trainable_variables)
    assert not any("bits" in v.name for v in model.trainable_variables)
    _fit(model, shape)
    assert np.all(step.numpy() != start)
    model.save(tmp_path / "m.keras")
    back = keras.models.load_model(tmp_path / "m.keras", safe_mode=True)
    found = next(x for x in back.layers if isinstance(x, TransformWeights))
    np.testing.assert_array_equal(found.states["kernel"][0]["step"], step)
    np.testing.assert_allclose(
        _continue(back, shape), _continue(model, shape), rtol=1e-5
    )
    wrapper.trainable = False
    assert not wrapper.trainable_variables


def test_state_stays_float32_in_mixed_precision():
    found = {}

    class Spy(Transform):
        def initial_state(self, weight):
            return {"step": np.array(1.0, "float32")}

        def __call__(self, weight, state):
            found.update(weight=weight.dtype, step=state["step"].dtype)
            return weight

    layer, shape, _ = _layer("Dense")
    layer = built_copy(layer, dtype="mixed_float16")
    wrapper = TransformWeights(layer, {"kernel": [Spy()]}, dtype="mixed_float16")
    wrapper(_data(shape)[0])
    assert found == {"weight": "float16", "step": "float32"}


def test_a_learned_step_is_no_kernel_to_prune():
    layer, shape, _ = _layer("DepthwiseConv2D")
    for axes in ((2, 3), (-1,), ()):
        wrapper = TransformWeights(layer, {"kernel": [LearnedStep(4, axes)]})
        model = keras.Sequential([keras.Input(shape), wrapper])
        assert [v.name for v in kernels(model).values()] == ["kernel"]


def test_a_copy_of_the_wrapper_has_its_state():
    layer, _, _ = _layer("Dense")
    wrapper = TransformWeights(layer, {"kernel": [LearnedStep()]})
    state = wrapper.states["kernel"][0]
    state["bits"].assign(3)
    state["step"].assign([0.1, 0.2, 0.3])
    np.testing.assert_array_equal(
        built_copy(wrapper).effective_weights()["kernel"],
        wrapper.effective_weights()["kernel"],
    )


def test_it_casts_as_its_layer_does_whatever_the_global_policy_is():
    layer = layers.Dense(3)
    layer.build((None, 4))
    layer.kernel.assign(layer.kernel * 1e6)
    keras.config.set_dtype_policy("mixed_float16")
    try:
        wrapped = TransformWeights(layer, {"kernel": []})
    finally:
        keras.config.set_dtype_policy("float32")
    x = np.ones((2, 4), "float32")
    np.testing.assert_array_equal(wrapped(x), layer(x))
