"""Channels that shrink while a model trains, and go at the end."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from networks import conv_net, image_data

import tfcompress as tfc


def _dense(units=4, optimizer=None):
    """Two layers of known weights, which do not train at a rate of zero."""
    inputs = keras.Input((3,))
    x = layers.Dense(units, use_bias=False, name="first")(inputs)
    model = keras.Model(inputs, layers.Dense(2, use_bias=False, name="last")(x))
    model.compile(optimizer or keras.optimizers.SGD(0.0), "mse")
    return model


def _data(count=32):
    rng = np.random.default_rng(0)
    return rng.normal(size=(count, 3)), rng.normal(size=(count, 2))


def _fit(model, callback, epochs=2, **settings):
    return model.fit(
        *_data(),
        batch_size=4,
        epochs=epochs,
        callbacks=[callback],
        verbose=0,
        **settings,
    )


@pytest.mark.parametrize("budget", [None, {"macs": 0.5}])
def test_what_is_cut_computes_what_was_trained(budget):
    keras.utils.set_random_seed(0)
    model = conv_net()
    model.compile("adam", "sparse_categorical_crossentropy")
    x, y = image_data(64)
    amount = None if budget else 0.5
    pruning = tfc.ChannelPruning(amount, budget=budget)
    model.fit(x, y, epochs=3, callbacks=[pruning], verbose=0)
    small = pruning.cut()
    before, after = tfc.measure(model), tfc.measure(small)
    assert after.macs <= 0.5 * before.macs or budget is None
    assert after.parameters < 0.6 * before.parameters
    # Sums over fewer terms, in another order: float rounding.
    np.testing.assert_allclose(small(x), model(x), atol=1e-5)


def test_the_least_channels_reach_zero_in_equal_steps():
    model = _dense()
    kernel = model.get_layer("first").kernel
    kernel.assign(np.array([[3.0, 1.0, 4.0, 2.0]] * 3))
    seen = []
    watch = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(kernel.numpy()[0])
    )
    pruning = tfc.ChannelPruning(0.5, begin=2, end=6)
    model.fit(*_data(), batch_size=4, callbacks=[watch, pruning], verbose=0)
    scale = [1, 1, 0.75, 0.5, 0.25, 0, 0, 0]
    for step, weights in enumerate(seen):
        np.testing.assert_allclose(
            weights, [3, scale[step], 4, 2 * scale[step]], rtol=1e-5
        )
    assert pruning.cut().get_layer("first").units == 2


def test_several_steps_in_one_call_shrink_as_far():
    model = _dense()
    model.compile(keras.optimizers.SGD(0.0), "mse", steps_per_execution=4)
    before = model.get_layer("first").kernel.numpy()
    pruning = tfc.ChannelPruning(0.5, end=16)
    _fit(model, pruning, epochs=1)
    after = model.get_layer("first").kernel.numpy()
    share = np.unique(np.round(after / before, 4))
    np.testing.assert_allclose(share, [0.5, 1.0], rtol=1e-3)
    with pytest.raises(RuntimeError, match="step 16"):
        pruning.cut()


def test_group_lasso_takes_a_share_of_the_mean_norm():
    model = _dense()
    kernel = model.get_layer("first").kernel
    kernel.assign(np.diag([3.0, 1.0, 2.0]) @ np.eye(3, 4))
    pruning = tfc.ChannelPruning(0.25, begin=7, end=8, sparsity_penalty=0.1)
    norms = np.array([3.0, 1.0, 2.0, 0.0])
    for _ in range(7):
        norms = np.maximum(norms - 0.1 * norms.mean(), 0)
    seen = []
    watch = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(kernel.numpy())
    )
    model.fit(*_data(), batch_size=4, callbacks=[watch, pruning], verbose=0)
    np.testing.assert_allclose(np.linalg.norm(seen[6], axis=0), norms, rtol=1e-5)
    # The last layer's outputs stay, so nothing is taken from them.
    assert model.get_layer("last").kernel.constraint is None


def test_a_custom_train_step_is_followed():
    class Custom(keras.Model):
        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x, y, self(x, training=True))
            gradients = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply(gradients, self.trainable_variables)
            return {"loss": loss}

    inputs = keras.Input((3,))
    outputs = layers.Dense(2)(layers.Dense(4, name="first")(inputs))
    model = Custom(inputs, outputs)
    model.compile("adam", "mse")
    pruning = tfc.ChannelPruning(0.5)
    _fit(model, pruning)
    small, (x, _) = pruning.cut(), _data()
    assert small.get_layer("first").units == 2
    np.testing.assert_allclose(small(x), model(x), atol=1e-6)


def test_an_interrupted_fit_shrinks_no_further():
    model = _dense()
    kernel = model.get_layer("first").kernel

    class Interrupt(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 2:
                raise KeyboardInterrupt

    pruning = tfc.ChannelPruning(0.5, end=8, sparsity_penalty=0.0)
    with pytest.raises(KeyboardInterrupt):
        model.fit(*_data(), batch_size=4, callbacks=[pruning, Interrupt()], verbose=0)
    before = kernel.numpy()
    model.fit(*_data(), batch_size=4, epochs=2, verbose=0)
    after = kernel.numpy()
    # At most the step that was under way when the interrupt came.
    assert np.all(np.abs(after) >= 0.7 * np.abs(before))


def test_frozen_layers_keep_their_channels_and_so_the_cut_is_exact():
    inputs = keras.Input((3,))
    x = layers.Dense(6, activation="sigmoid", name="free")(inputs)
    x = layers.Dense(6, activation="sigmoid", name="frozen", trainable=False)(x)
    x = layers.Dense(6, activation="sigmoid", name="second")(x)
    model = keras.Model(inputs, layers.Dense(2)(x))
    model.compile("adam", "mse")
    pruning = tfc.ChannelPruning(0.5)
    _fit(model, pruning)
    small = pruning.cut()
    assert small.get_layer("frozen").units == 6 and small.get_layer("free").units == 6
    assert small.get_layer("second").units == 3
    x = _data()[0]
    np.testing.assert_allclose(small(x), model(x), atol=1e-6)


def test_what_products_sum_over_stays_and_so_the_cut_is_exact():
    inputs = keras.Input((5, 3))
    q = layers.Dense(6, activation="sigmoid", name="q")(inputs)
    k = layers.Dense(6, activation="sigmoid", name="k")(inputs)
    x = keras.ops.einsum("btc,bsc->bts", q, k)
    x = layers.Dense(4, activation="sigmoid", name="hidden")(x)
    model = keras.Model(inputs, layers.Dense(2)(x))
    model.compile("adam", "mse")
    pruning = tfc.ChannelPruning(0.5)
    x = np.random.default_rng(0).normal(size=(16, 5, 3)).astype("float32")
    model.fit(x, np.ones((16, 5, 2)), epochs=4, callbacks=[pruning], verbose=0)
    small = pruning.cut()
    assert small.get_layer("q").units == 6 and small.get_layer("hidden").units == 2
    np.testing.assert_allclose(small(x), model(x), atol=1e-6)


def test_weights_that_were_brought_back_are_not_cut():
    model = _dense()
    before = model.get_weights()
    pruning = tfc.ChannelPruning(0.5)
    _fit(model, pruning)
    model.set_weights(before)
    with pytest.raises(RuntimeError, match="changed the weights after"):
        pruning.cut()


def test_data_of_unknown_length_are_refused_before_anything_is_touched():
    model = _dense()
    data = tf.data.Dataset.from_generator(
        lambda: iter([(np.ones((4, 3)), np.ones((4, 2)))] * 3),
        output_signature=(tf.TensorSpec((4, 3)), tf.TensorSpec((4, 2))),
    )
    with pytest.raises(ValueError, match="of unknown length"):
        model.fit(data, callbacks=[tfc.ChannelPruning(0.5)], verbose=0, shuffle=False)
    assert all(v.constraint is None for v in model.trainable_variables)


def test_user_constraints_work_and_are_back_afterwards():
    inputs = keras.Input((3,))
    limit = keras.constraints.MaxNorm(0.1)
    x = layers.Dense(4, kernel_constraint=limit, name="first")(inputs)
    model = keras.Model(inputs, layers.Dense(2)(x))
    model.compile("sgd", "mse")
    _fit(model, tfc.ChannelPruning(0.5))
    kernel = model.get_layer("first").kernel
    assert kernel.constraint is limit
    assert np.linalg.norm(kernel.numpy(), axis=0).max() < 0.1001


def test_a_student_is_pruned_while_it_is_taught():
    teacher, student = conv_net(), conv_net()
    pupil = tfc.distill(student, teacher)
    pupil.compile("adam", "sparse_categorical_crossentropy")
    pruning = tfc.ChannelPruning(0.5)
    pupil.fit(*image_data(32), epochs=2, callbacks=[pruning], verbose=0)
    small = pruning.cut()
    assert small.count_params() < 0.6 * student.count_params()


def test_the_optimizer_goes_on():
    model = _dense(optimizer=keras.optimizers.Adam(0.01))
    pruning = tfc.ChannelPruning(0.5)
    _fit(model, pruning)
    small = pruning.cut(keep_optimizer=True)
    assert int(small.optimizer.iterations) == 16
    small.fit(*_data(), verbose=0)


def test_the_config_makes_the_same_callback():
    pruning = tfc.ChannelPruning(
        0.5,
        begin=3,
        end=9,
        sparsity_penalty=0.01,
        round_to=2,
        score="l1",
        exclude="last",
        rules=[tfc.Rule("first", amount=0.25)],
    )
    again = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(pruning)
    )
    assert again.get_config() == pruning.get_config()
    model = _dense()
    model.fit(*_data(), batch_size=4, epochs=2, callbacks=[again], verbose=0)
    assert again.cut().get_layer("first").units == 4  # 25 % of two pairs is none.


@pytest.mark.parametrize(
    "settings, message",
    [
        ({}, "either `amount`"),
        ({"amount": 1.0}, r"in \[0, 1\)"),
        ({"budget": {"latency": 0.5}}, "`budget` must be a dict"),
        ({"amount": 0.5, "begin": 5, "end": 5}, "`end` must be above `begin`"),
        ({"amount": 0.5, "sparsity_penalty": 1.0}, "`sparsity_penalty`"),
        ({"amount": 0.5, "scope": "erk"}, "`scope`"),
        ({"amount": 0.5, "round_to": 0}, "`round_to`"),
    ],
)
def test_bad_input_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        tfc.ChannelPruning(**settings)


def test_a_nested_model_says_what_to_do():
    inner = keras.Sequential([keras.Input((3,)), layers.Dense(4)])
    inputs = keras.Input((3,))
    model = keras.Model(inputs, layers.Dense(2)(inner(inputs)))
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="Make it flat first.*exclude='.\\*'"):
        _fit(model, tfc.ChannelPruning(0.5))
    flat = tfc.fold(model, exclude=".*")
    flat.compile("sgd", "mse")
    pruning = tfc.ChannelPruning(0.5)
    _fit(flat, pruning)
    assert pruning.cut().count_params() == 3 * 2 + 2 + 2 * 2 + 2


def test_pruning_in_the_same_fit_is_refused():
    model = _dense()
    with pytest.raises(ValueError, match="fit` of its own"):
        model.fit(
            *_data(),
            callbacks=[tfc.ChannelPruning(0.5), tfc.Pruning(0.5, include="")],
            verbose=0,
        )


def test_cut_before_a_fit_is_refused():
    with pytest.raises(RuntimeError, match="has not been in a `fit`"):
        tfc.ChannelPruning(0.5).cut()
