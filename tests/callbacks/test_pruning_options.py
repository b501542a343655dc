"""Scopes, scores and patterns of `tfc.Pruning` inside `model.fit`."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from callbacks.test_pruning import fit, prune_all
from keras import layers
from networks import compiled, conv_net, image_data, zeros

import tfcompress as tfc
from tfcompress.loss_gradients import LossGradients
from tfcompress.numerics.layer_sparsity import erdos_renyi_kernel


def _kernels(model):
    return {path: v.numpy() for path, v in tfc.graph.kernels(model).items()}


def _still(**settings):
    """Fits with a step of zero, all at once; returns kernels before and after."""
    model = compiled(conv_net(), optimizer=keras.optimizers.SGD(0.0))
    before = _kernels(model)
    schedule = tfc.schedules.Constant(settings.pop("sparsity", 0.8))
    fit(model, prune_all(schedule=schedule, **settings), epochs=1)
    return before, _kernels(model)


def _all(found):
    return np.concatenate([kernel.ravel() for kernel in found.values()])


def test_one_threshold_for_all_kernels():
    before, after = _still(scope="global")
    kept = _all(after) != 0
    assert np.count_nonzero(~kept) == round(0.8 * kept.size)
    sizes = np.abs(_all(before))
    assert sizes[kept].min() >= sizes[~kept].max()
    assert len({np.mean(kernel == 0) for kernel in after.values()}) > 1


@pytest.mark.slow
def test_globally_every_kernel_keeps_a_weight():
    model = compiled(conv_net(), optimizer=keras.optimizers.SGD(0.0))
    conv = model.get_layer("conv").kernel
    conv.assign(conv * 1e-6)
    fit(model, prune_all(0.9, scope="global"))
    assert np.count_nonzero(conv.numpy()) == 1
    found = _all(_kernels(model))
    assert np.count_nonzero(found == 0) == round(0.9 * found.size)


@pytest.mark.slow
def test_rules_hold_whatever_the_scope():
    model = compiled(conv_net())
    rules = [tfc.Rule("hidden", sparsity=0.25)]
    fit(model, prune_all(0.7, scope="global", rules=rules))
    found = _kernels(model)
    assert np.mean(found.pop("hidden/kernel") == 0) == 0.25
    others = _all(found)
    assert np.count_nonzero(others == 0) == round(0.7 * others.size)


def test_erk_follows_the_shapes():
    model = compiled(conv_net())
    fit(model, prune_all(0.7, scope="erk"))
    found = _kernels(model)
    expected = erdos_renyi_kernel([k.shape for k in found.values()], 0.7)
    for kernel, sparsity in zip(found.values(), expected, strict=True):
        assert np.count_nonzero(kernel == 0) == round(sparsity * kernel.size)
    assert np.mean(_all(found) == 0) == pytest.approx(0.7, abs=0.01)


def test_by_default_a_kernel_loses_by_its_shape_and_all_together_the_fraction():
    model = compiled(conv_net())
    pruning = prune_all(0.7, scope=None)
    fit(model, pruning)
    kernels = [w.numpy() for w in model.weights if len(w.shape) > 1]
    wanted = erdos_renyi_kernel([k.shape for k in kernels], 0.7)
    for kernel, sparsity in zip(kernels, wanted, strict=True):
        assert np.count_nonzero(kernel == 0) == round(sparsity * kernel.size)
    # Not in each the same.
    assert max(wanted) - min(wanted) > 0.3
    assert tfc.Pruning(0.5, pattern="2:4").scope == "layer"


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["layer", "global", "erk"])
def test_rules_may_say_it_all(scope):
    model = compiled(conv_net())
    fit(model, prune_all(0.7, scope=scope, rules=[tfc.Rule("", sparsity=0.5)]))
    assert zeros(model) == [
        round(k.size / 2) / k.size for k in _kernels(model).values()
    ]


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_two_of_four_are_left_and_the_model_trains(scope):
    model = compiled(conv_net())
    history = fit(model, prune_all(0.5, pattern="2:4", scope=scope), epochs=10)
    hidden = model.get_layer("hidden").kernel.numpy()
    alive = (hidden != 0).reshape(-1, 4, hidden.shape[-1]).sum(axis=1)
    assert (alive == 2).all()
    assert history.history["accuracy"][-1] > 0.8


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["layer", "global", "erk"])
def test_blocks_go_as_wholes(scope, caplog):
    model = compiled(conv_net())
    fit(model, prune_all(0.6, pattern=(4, 2), scope=scope))
    hidden = model.get_layer("hidden").kernel.numpy() != 0
    for row in range(0, hidden.shape[0], 4):
        for column in range(0, hidden.shape[1], 2):
            block = hidden[row : row + 4, column : column + 2]
            assert block.all() or not block.any()
    found = _kernels(model)
    # Its axes are not inputs and outputs.
    assert np.count_nonzero(found.pop("depthwise/kernel") == 0) == 0
    assert "left alone: ['depthwise/kernel']" in caplog.text
    # Blocks at the edges of small kernels are of other sizes.
    assert np.mean(_all(found) == 0) == pytest.approx(0.6, abs=0.03)


@pytest.mark.slow
def test_random_zeros_are_the_same_in_every_run_and_grow():
    runs = [_still(score="random", sparsity=s)[1] for s in (0.5, 0.5, 0.8)]
    for first, again, sparser in zip(*(run.values() for run in runs), strict=True):
        np.testing.assert_array_equal(first == 0, again == 0)
        assert not np.any((first == 0) & (sparser != 0))


@keras.saving.register_keras_serializable(package="tests")
def smallest_first(weight, path):
    return -np.abs(weight)


def test_a_score_of_ones_own():
    before, after = _still(score=smallest_first, sparsity=0.5)
    for old, new in zip(before.values(), after.values(), strict=True):
        assert np.abs(old[new != 0]).max() <= np.abs(old[new == 0]).min()


@pytest.mark.parametrize(
    "settings",
    [
        {"scope": "global", "pattern": (4, 1)},
        {"scope": "erk", "score": "random"},
        {"sparsity": 0.5, "pattern": "2:4", "score": smallest_first},
    ],
    ids=["global blocks", "erk", "own score"],
)
def test_the_config_comes_back(settings):
    pruning = prune_all(**settings)
    serialized = keras.saving.serialize_keras_object(pruning)
    back = keras.saving.deserialize_keras_object(serialized)
    assert back.get_config() == pruning.get_config()


@pytest.mark.slow
def test_a_second_pruning_goes_on_with_another_pattern():
    model = compiled(conv_net())
    fit(model, prune_all(0.3))
    before = _kernels(model)
    fit(model, prune_all(0.5, pattern="2:4"))
    after = _kernels(model)
    for path in ("conv/kernel", "hidden/kernel"):
        assert not np.any((before[path] == 0) & (after[path] != 0))
    hidden = after["hidden/kernel"]
    assert ((hidden != 0).reshape(-1, 4, hidden.shape[-1]).sum(axis=1) <= 2).all()


def test_a_pattern_needs_a_kernel_that_it_is_for():
    with pytest.raises(ValueError, match="Dense.*none is chosen.*depthwise"):
        fit(compiled(conv_net()), prune_all(0.5, pattern="2:4", include="depthwise"))


def test_taylor_takes_several_inputs_in_a_list():
    inputs = [keras.Input((3,)), keras.Input((4,))]
    model = keras.Model(inputs, layers.Dense(1)(layers.Concatenate()(inputs)))
    model.compile("sgd", "mse")
    x = [np.ones((8, n), "float32") for n in (3, 4)]
    pruning = prune_all(0.5, score="taylor", data=(x, np.ones((8, 1), "float32")))
    model.fit(x, np.ones((8, 1)), epochs=4, verbose=0, callbacks=[pruning])
    assert np.count_nonzero(model.layers[-1].kernel.numpy() == 0) == 4


def _by_hand(model, x, y):
    """Gradients of the loss with the batch's statistics, by another way."""
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    loss = keras.losses.SparseCategoricalCrossentropy()
    with tf.GradientTape() as tape:
        value = loss(y, clone(x, training=True))
    kernels = list(tfc.graph.kernels(clone).values())
    return [g.numpy() for g in tape.gradient(value, [v.value for v in kernels])]


@pytest.mark.slow
def test_taylor_keeps_what_the_loss_would_miss_most():
    model = compiled(conv_net(), optimizer=keras.optimizers.SGD(0.0))
    x, y = (array[:32] for array in image_data())
    before = _kernels(model)
    slopes = _by_hand(model, x, y)
    schedule = tfc.schedules.Constant(0.5)
    pruning = prune_all(schedule=schedule, score="taylor", data=(x, y))
    fit(model, pruning, epochs=1)
    for old, slope, new in zip(
        before.values(), slopes, _kernels(model).values(), strict=True
    ):
        score, kept = np.abs(old * slope), new != 0
        assert np.count_nonzero(~kept) == round(0.5 * kept.size)
        # 1e-4 of the largest: float32 sums in another order.
        assert score[kept].min() >= score[~kept].max() - 1e-4 * score.max()


@pytest.mark.slow
@pytest.mark.parametrize("form", ["arrays", "dataset", "weighted"])
def test_taylor_trains_with_data_of_any_form(form):
    x, y = image_data()
    data = {
        "arrays": (x[:64], y[:64]),
        "dataset": tf.data.Dataset.from_tensor_slices((x[:64], y[:64])).batch(16),
        "weighted": (x[:64], y[:64], np.ones(64, "float32")),
    }[form]
    model = compiled(conv_net())
    history = fit(model, prune_all(0.7, score="taylor", data=data), epochs=10)
    assert history.history["accuracy"][-1] > 0.8
    assert zeros(model) == [
        round(0.7 * k.size) / k.size for k in _kernels(model).values()
    ]


def test_gradients_leave_the_model_as_it_was():
    model = compiled(conv_net())
    fit(model, epochs=1)
    before = model.get_weights(), [v.numpy() for v in model.metrics_variables]
    x, y = image_data()
    variables = list(tfc.graph.kernels(model).values())
    gradients = LossGradients(model, (x, y))
    first, again = gradients.of(variables), gradients.of(variables)
    after = model.get_weights(), [v.numpy() for v in model.metrics_variables]
    for old, new in zip(sum(before, []), sum(after, []), strict=True):
        np.testing.assert_array_equal(old, new)
    for one, other in zip(first, again, strict=True):
        assert np.abs(one).max() > 0
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        (None, ValueError, "Pass `data`"),
        (np.ones((4, 8, 8, 3)), TypeError, "must be `.x, y.`"),
        ((np.ones((4, 8, 8, 3)),), ValueError, "must have labels"),
        (
            tf.data.Dataset.from_tensors((1, 2)).repeat(),
            ValueError,
            "repeats without end",
        ),
    ],
)
def test_taylor_without_data_that_it_can_use(data, error, text):
    model = compiled(conv_net())
    with pytest.raises(error, match=text):
        fit(model, prune_all(0.5, score="taylor", data=data))
    assert all(v.constraint is None for v in model.trainable_variables)


def test_more_zeros_than_a_pattern_allows():
    with pytest.raises(ValueError, match=r"'2:4' has 0.5 zeros at most.*0.8"):
        prune_all(0.8, pattern="2:4")
    with pytest.raises(ValueError, match="0.75 zeros at most"):
        prune_all(0.5, pattern="1:4", rules=[tfc.Rule("x", sparsity=0.8)])
    with pytest.raises(ValueError, match="0.5 zeros at most"):
        fit(compiled(conv_net()), prune_all(0.5, pattern="2:4", scope="erk"))


@pytest.mark.parametrize(
    "settings", [{"scope": "all"}, {"score": "best"}, {"pattern": "half"}], ids=str
)
def test_names_that_are_none(settings):
    with pytest.raises(ValueError, match=f"`{next(iter(settings))}` must be"):
        prune_all(**settings)


@pytest.mark.parametrize(
    "score",
    [lambda w, path: w.sum(), lambda w, path: w * np.nan],
    ids=["shape", "not finite"],
)
def test_scores_that_are_none_name_the_weight(score):
    model = compiled(
        keras.Sequential(
            [
                keras.Input((8, 8, 3)),
                layers.Flatten(),
                layers.Dense(3, activation="softmax"),
            ]
        )
    )
    with pytest.raises(ValueError, match="scores of weight 'dense.*finite numbers"):
        fit(model, prune_all(0.5, score=score))
    assert zeros(model) == [0]


@keras.saving.register_keras_serializable(package="tests")
class Bilinear(layers.Layer):
    """A layer with a weight of its own, a bias and a scale."""

    def build(self, shape):
        self.form = self.add_weight(shape=(shape[-1], shape[-1]), name="form")
        self.bias = self.add_weight(shape=(1, shape[-1]), name="bias")
        self.scale = self.add_weight(shape=(shape[-1],), name="scale")

    def call(self, x):
        return (x @ self.form + self.bias) * self.scale


@pytest.mark.parametrize(
    "layer, shape, kernels",
    [
        (layers.Dense(16), (12,), 1),
        (layers.Conv1D(8, 3), (12, 6), 1),
        (layers.Conv2D(8, 3, groups=2), (6, 6, 6), 1),
        (layers.Conv3D(8, 2), (4, 4, 4, 3), 1),
        (layers.Conv2DTranspose(8, 3), (4, 4, 3), 1),
        (layers.DepthwiseConv2D(3, depth_multiplier=2), (6, 6, 8), 1),
        (layers.SeparableConv2D(8, 3), (6, 6, 8), 2),
        (layers.EinsumDense("abc,cd->abd", (5, 8), bias_axes="bd"), (5, 8), 1),
        (layers.Bidirectional(layers.GRU(6)), (5, 8), 4),
        (layers.LSTM(6), (5, 8), 2),
        (layers.Embedding(20, 8), (5,), 1),
        (Bilinear(), (12,), 1),
        (layers.TimeDistributed(layers.Dense(6)), (5, 8), 1),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_every_kind_of_layer_is_pruned_and_biases_are_not(layer, shape, kernels):
    inputs = keras.Input(shape)
    model = keras.Model(inputs, layers.Flatten()(layer(inputs)))
    model.compile("sgd", "mse")
    for variable in model.trainable_variables:
        variable.assign(variable + 1e-3)  # Biases start at zero.
    x = np.random.default_rng(0).integers(0, 20, (8, *shape)).astype("float32")
    pruning = prune_all(schedule=tfc.schedules.Constant(0.75))
    model.fit(x / 20, model.predict(x / 20, verbose=0), verbose=0, callbacks=[pruning])
    found = {id(v): v.numpy() for v in tfc.graph.kernels(model).values()}
    assert len(found) == kernels
    for variable in model.trainable_variables:
        value = variable.numpy()
        wanted = round(0.75 * value.size) if id(variable) in found else 0
        assert np.count_nonzero(value == 0) == wanted, variable.path


@pytest.mark.slow
@pytest.mark.parametrize("score", ["taylor", "grasp"])
def test_gradients_go_through_loops_and_attention(score):
    inputs = keras.Input((5, 8))
    x = layers.MultiHeadAttention(2, 4)(inputs, inputs)
    model = keras.Model(inputs, layers.Dense(2)(layers.LSTM(6)(x)))
    model.compile("adam", "mse")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(16, 5, 8)), rng.normal(size=(16, 2))
    data = x.astype("float32"), y
    pruning = tfc.Pruning(0.5, scope="layer", score=score, data=data)
    model.fit(x, y, epochs=2, verbose=0, callbacks=[pruning])
    assert zeros(model)[-1] == 0
    assert {z for z in zeros(model)[:-1] if z} == {0.5}
