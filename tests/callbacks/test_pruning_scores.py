"""Scores of `tfc.Pruning` that read more than the weights, against other ways."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from callbacks.test_pruning import fit, prune_all
from keras import layers
from networks import Subclassed, compiled, conv_net, image_data, zeros

import tfcompress as tfc
from tfcompress.callbacks.input_norms import InputNorms
from tfcompress.loss_gradients import LossGradients


def _small_net():
    """Smooth, and small enough for its Hessian."""
    inputs = keras.Input((4,))
    x = layers.Dense(6, activation="tanh", name="hidden")(inputs)
    model = keras.Model(inputs, layers.Dense(3, activation="softmax", name="out")(x))
    return compiled(model, optimizer=keras.optimizers.SGD(0.0))


def _small_data(examples=40):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(examples, 4)).astype("float32")
    return x, rng.integers(0, 3, examples)


def _kernels(model):
    return list(tfc.graph.kernels(model).values())


def _by_hand(model, x, y):
    """Gradient, and Hessian times gradient, of all kernels from the full Hessian."""
    variables = [v.value for v in _kernels(model)]
    with tf.GradientTape() as outer:
        with tf.GradientTape() as inner:
            found = model(x, training=True)
            loss = tf.reduce_mean(
                keras.losses.sparse_categorical_crossentropy(y, found)
            )
        gradients = inner.gradient(loss, variables)
        flat = tf.concat([tf.reshape(g, [-1]) for g in gradients], 0)
    rows = outer.jacobian(flat, variables)
    hessian = tf.concat([tf.reshape(r, [flat.shape[0], -1]) for r in rows], 1).numpy()
    return flat.numpy(), hessian @ flat.numpy()


def test_hessian_products_are_those_of_the_full_hessian():
    model, (x, y) = _small_net(), _small_data()
    flat, product = _by_hand(model, x, y)
    # Batches of 32 and 8: means over batches, not over examples, unless of one size.
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(20)
    found = LossGradients(model, data).hessian_products(_kernels(model))
    found = np.concatenate([f.ravel() for f in found]) * np.linalg.norm(flat)
    # 1e-5: float32 sums in another order.
    np.testing.assert_allclose(found, product, atol=1e-5 * np.abs(product).max() + 1e-7)


def _flat(model):
    return np.concatenate([v.numpy().ravel() for v in _kernels(model)])


@pytest.mark.parametrize("score", ["snip", "grasp"])
def test_scores_at_initialization_prune_all_before_the_first_step(score):
    model, (x, y) = _small_net(), _small_data()
    weights = _flat(model)
    gradient, product = _by_hand(model, x, y)
    expected = weights * product if score == "grasp" else np.abs(weights * gradient)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(20)
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            seen.append(_flat(self.model) != 0)

    pruning = prune_all(0.5, score=score, scope="global", data=data)
    model.fit(x, y, epochs=2, batch_size=20, verbose=0, callbacks=[pruning, Watch()])
    kept = seen[0]
    assert np.count_nonzero(kept) == kept.size // 2
    assert expected[kept].min() >= expected[~kept].max()
    assert all(np.array_equal(mask, kept) for mask in seen)


# Keras warns of the shuffling that a data set does by itself, and of its end.
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_one_shot_needs_no_length_of_the_run():
    x, y = image_data()
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(32).filter(lambda *_: True)
    model = compiled(conv_net())
    data_of_score = x[:64], y[:64]
    pruning = tfc.Pruning(0.5, scope="layer", score="snip", data=data_of_score)
    model.fit(data, epochs=1, verbose=0, callbacks=[pruning])
    assert zeros(model)[2] == 0.5


@pytest.mark.slow
def test_movement_with_sgd_is_the_sum_of_weight_times_gradient():
    model, (x, y) = _small_net(), _small_data()
    model.compile(keras.optimizers.SGD(0.5), "sparse_categorical_crossentropy")
    expected, steps = np.zeros(_flat(model).size), 4
    other = keras.models.clone_model(model)
    other.set_weights(model.get_weights())
    other.compile(keras.optimizers.SGD(0.5), "sparse_categorical_crossentropy")
    for _ in range(steps):
        before = _flat(other)
        gradient, _ = _by_hand(other, x, y)
        expected -= 0.5 * before * gradient
        other.train_on_batch(x, y)
    pruning = prune_all(
        schedule=tfc.schedules.Constant(0.5, begin=steps),
        score="movement",
        scope="global",
    )
    model.fit(x, y, batch_size=len(x), epochs=steps, verbose=0, callbacks=[pruning])
    kept = _flat(model) != 0
    assert np.count_nonzero(kept) == kept.size // 2
    # 1e-6: float32 sums in another order.
    assert expected[kept].min() >= expected[~kept].max() - 1e-6
    # It is not what magnitude would have kept.
    size = np.abs(_flat(other))
    assert size[kept].min() < size[~kept].max()


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [{}, {"jit_compile": True}, {"steps_per_execution": 3}, {"run_eagerly": True}],
    ids=str,
)
def test_movement_trains_however_a_step_runs(settings):
    model = compiled(conv_net(), **settings)
    history = fit(model, tfc.Pruning(0.7, score="movement"), epochs=10).history
    assert history["sparsity"][-1] == pytest.approx(0.7, abs=0.001)
    assert history["accuracy"][-1] > 0.8


@pytest.mark.slow
def test_movement_of_a_run_that_is_resumed_begins_anew_and_drops_nothing_blindly():
    model = compiled(conv_net())
    fit(model, tfc.Pruning(0.5, scope="layer", score="movement"), epochs=8)
    before = model.get_layer("hidden").kernel.numpy() == 0
    pruning = tfc.Pruning(0.8, scope="layer", score="movement")
    fit(model, pruning, epochs=8, initial_epoch=2)
    after = model.get_layer("hidden").kernel.numpy() == 0
    assert after[before].all()
    assert np.count_nonzero(after) == round(0.8 * after.size)


@pytest.mark.parametrize(
    "settings",
    [{"schedule": tfc.schedules.Constant(0.5)}, {"regrow": "random"}],
    ids=["at the start", "regrow"],
)
def test_movement_before_there_was_any(settings):
    with pytest.raises(ValueError, match="knows nothing before the first step"):
        tfc.Pruning(score="movement", **settings)


# Norms of inputs.


def _norms(layer, x):
    inputs = keras.Input(x.shape[1:])
    model = keras.Model(inputs, layer(inputs))
    (found,) = InputNorms(model, x).of({"k": layer.kernel})
    return np.broadcast_to(found, layer.kernel.shape)


@pytest.mark.parametrize(
    "layer, shape, weight_axis",
    [
        (layers.Dense(3), (5, 4), 0),
        (layers.Conv1D(3, 2), (6, 4), 1),
        (layers.Conv2D(3, 2), (6, 6, 4), 2),
        (layers.Conv3D(3, 2), (4, 4, 4, 4), 3),
        (layers.DepthwiseConv1D(2), (6, 4), 1),
        (layers.DepthwiseConv2D(2), (6, 6, 4), 2),
        (layers.Conv2DTranspose(3, 2), (6, 6, 4), 3),
        (layers.EinsumDense("abc,cd->abd", (5, 3)), (5, 4), 0),
        (layers.EinsumDense("...c,dc->...d", (3,)), (5, 4), 1),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_norms_are_those_of_the_features(layer, shape, weight_axis):
    x = np.random.default_rng(0).normal(size=(50, *shape)).astype("float32")
    expected = np.linalg.norm(x.reshape(-1, shape[-1]), axis=0)
    found = np.moveaxis(_norms(layer, x), weight_axis, -1)
    assert found.shape[-1] == 4
    # 1e-5: float32 sums in another order.
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), rtol=1e-5)


def test_norms_of_a_kernel_with_two_input_axes():
    layer = layers.EinsumDense("abc,bcd->ad", 3)
    x = np.random.default_rng(0).normal(size=(50, 2, 4)).astype("float32")
    found = _norms(layer, x)
    expected = np.sqrt((x**2).sum(axis=0))[..., None]
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), rtol=1e-5)


def test_a_group_of_filters_has_norms_of_its_own_channels():
    layer = layers.Conv2D(6, 1, groups=2)
    x = np.random.default_rng(0).normal(size=(50, 3, 3, 4)).astype("float32")
    norms = np.linalg.norm(x.reshape(-1, 4), axis=0)
    found = _norms(layer, x)[0, 0]
    np.testing.assert_allclose(found[:, :3], norms[:2, None].repeat(3, 1), rtol=1e-5)
    np.testing.assert_allclose(found[:, 3:], norms[2:, None].repeat(3, 1), rtol=1e-5)


@pytest.mark.parametrize("form", ["functional", "subclassed"])
def test_wanda_keeps_the_largest_products(form):
    x, y = image_data()
    model = conv_net() if form == "functional" else Subclassed()
    model(x[:1])
    compiled(model, optimizer=keras.optimizers.SGD(0.0))
    conv = model.get_layer("conv").kernel if form == "functional" else model.conv.kernel
    before = conv.numpy()
    x = x * np.array([1.0, 5.0, 0.2], "float32")
    norms = np.linalg.norm(x.reshape(-1, 3), axis=0)
    schedule = tfc.schedules.Constant(0.5)
    pruning = prune_all(schedule=schedule, score="wanda", data=x)
    model.fit(x, y, verbose=0, callbacks=[pruning])
    score = np.abs(before) * norms[:, None]
    kept = conv.numpy() != 0
    assert np.count_nonzero(kept) == kept.size / 2
    assert score[kept].min() >= score[~kept].max() * (1 - 1e-5)
    layers_now = [model.get_layer("conv")] if form == "functional" else [model.conv]
    assert all("call" not in vars(layer) for layer in layers_now)


def test_wanda_names_kernels_whose_inputs_it_cannot_see():
    inputs = keras.Input((5, 8))
    model = keras.Model(inputs, layers.Dense(2)(layers.LSTM(8, name="memory")(inputs)))
    model.compile("sgd", "mse")
    x = np.ones((8, 5, 8), "float32")
    pruning = tfc.Pruning(0.5, score="wanda", data=x)
    with pytest.raises(ValueError, match="cannot see.*memory.*exclude"):
        model.fit(x, np.ones((8, 2)), epochs=2, verbose=0, callbacks=[pruning])
    pruning = prune_all(0.5, score="wanda", data=x, exclude="memory")
    model.fit(x, np.ones((8, 2)), epochs=2, verbose=0, callbacks=[pruning])
    assert np.mean(model.layers[-1].kernel.numpy() == 0) == 0.5


@pytest.mark.parametrize("score", ["snip", "grasp", "wanda"])
def test_data_that_are_missing(score):
    model = compiled(conv_net())
    with pytest.raises(ValueError, match=f"score='{score}'.*Pass `data`"):
        fit(model, tfc.Pruning(0.5, score=score))
    assert all(v.constraint is None for v in model.trainable_variables)
