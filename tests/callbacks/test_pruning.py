"""`tfc.Pruning` inside `model.fit`."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from networks import Subclassed, compiled, conv_net, image_data, zeros

import tfcompress as tfc


def asked(model, sparsity):
    """What rounding to whole weights makes of the asked sparsity, kernel by kernel."""
    sizes = [np.prod(v.shape) for v in model.trainable_variables if len(v.shape) > 1]
    return [round(sparsity * size) / size for size in sizes]


def prune_all(*args, **settings):
    """A `Pruning` of small kernels and the last layer as well, each alike."""
    settings = {"scope": "layer", "skip_small_and_last": False} | settings
    return tfc.Pruning(*args, **settings)


def fit(model, *callbacks, epochs=4, **settings):
    x, y = image_data()
    settings = {"batch_size": 32, "epochs": epochs, "verbose": 0} | settings
    return model.fit(x, y, callbacks=list(callbacks), **settings)


OPTIMIZERS = {
    "adam": lambda: keras.optimizers.Adam(0.01),
    "momentum": lambda: keras.optimizers.SGD(0.05, momentum=0.9),
    "moving average": lambda: keras.optimizers.Adam(0.01, use_ema=True),
    "moving average, often": lambda: keras.optimizers.Adam(
        0.01, use_ema=True, ema_overwrite_frequency=5
    ),
    "accumulation": lambda: keras.optimizers.Adam(0.01, gradient_accumulation_steps=4),
    "loss scale": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()),
    "weight decay": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_ends_with_the_asked_sparsity(name):
    model = compiled(conv_net(), optimizer=OPTIMIZERS[name]())
    fit(model, prune_all(0.8))
    assert zeros(model) == asked(model, 0.8)


@pytest.mark.parametrize(
    "settings",
    [
        {"jit_compile": True},
        {"steps_per_execution": 4},
        {"jit_compile": True, "steps_per_execution": 4},
        {"run_eagerly": True},
    ],
    ids=str,
)
def test_every_way_to_run_a_step_ends_with_the_asked_sparsity(settings):
    model = compiled(conv_net(), **settings)
    fit(model, prune_all(0.8))
    assert zeros(model) == asked(model, 0.8)


def test_no_step_after_the_rise_revives_a_weight():
    model = compiled(conv_net())

    class Watch(keras.callbacks.Callback):
        lowest = 1.0

        def on_train_batch_end(self, batch, logs=None):
            if logs["sparsity"] > 0.79:
                self.lowest = min(self.lowest, *zeros(self.model))

    watch = Watch()
    fit(model, prune_all(0.8), watch)
    assert watch.lowest >= min(asked(model, 0.8))


def test_sparsity_follows_the_schedule_in_the_history():
    model = compiled(conv_net())
    schedule = tfc.schedules.Polynomial(0.2, 0.6, begin=0, end=12)
    history = fit(model, prune_all(schedule=schedule, frequency=1)).history
    # 6 batches an epoch; rounding to whole weights moves it by less than 0.01.
    expected = [schedule(step) for step in (6, 12, 18, 24)]
    np.testing.assert_allclose(history["sparsity"], expected, atol=0.01)


def test_the_progress_bar_shows_the_sparsity(capsys):
    fit(compiled(conv_net()), prune_all(0.5), epochs=1, verbose=1)
    assert "sparsity" in capsys.readouterr().out


def test_the_largest_weights_are_kept():
    model = compiled(conv_net(), optimizer=keras.optimizers.SGD(0.0))
    before = model.get_layer("hidden").kernel.numpy()
    fit(model, prune_all(schedule=tfc.schedules.Constant(0.5)), epochs=1)
    after = model.get_layer("hidden").kernel.numpy()
    kept = after != 0
    assert np.abs(before[kept]).min() >= np.abs(before[~kept]).max()
    np.testing.assert_array_equal(after[kept], before[kept])


def test_the_model_trains_while_it_is_pruned():
    x, y = image_data()
    model = compiled(conv_net())
    fit(model, prune_all(0.8), epochs=10)
    assert model.evaluate(x, y, verbose=0)[1] > 0.9


def test_biases_and_normalization_are_left_alone():
    model = compiled(conv_net())
    fit(model, prune_all(0.8))
    for variable in model.trainable_variables:
        if len(variable.shape) == 1 and "beta" not in variable.path:
            assert np.count_nonzero(variable.numpy()) > 0.5 * np.prod(variable.shape)


def test_a_users_constraint_applies_during_and_is_back_after():
    class Limit(keras.constraints.Constraint):
        def __call__(self, w):
            return keras.ops.clip(w, -0.05, 0.05)

    limit = Limit()
    inputs = keras.Input((8, 8, 3))
    x = layers.Flatten()(inputs)
    outputs = layers.Dense(3, activation="softmax", kernel_constraint=limit)(x)
    model = compiled(keras.Model(inputs, outputs))
    fit(model, prune_all(0.8))
    kernel = model.layers[-1].kernel
    assert kernel.constraint is limit
    assert np.abs(kernel.numpy()).max() <= 0.05 + 1e-7
    assert zeros(model) == asked(model, 0.8)


def test_biases_of_attention_and_recurrent_layers_are_left_alone():
    inputs = keras.Input((5, 8))
    x = layers.MultiHeadAttention(2, 4)(inputs, inputs)
    model = keras.Model(inputs, layers.GRU(4)(x))
    assert not [path for path in tfc.graph.kernels(model) if "bias" in path]
    assert len(tfc.graph.kernels(model)) == 6


def _four_weights(pruning):
    """Fits a kernel of four weights."""
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(1, name="tiny")(inputs))
    model.compile("sgd", "mse")
    x = np.ones((8, 4), "float32")
    model.fit(x, x[:, :1], epochs=4, verbose=0, callbacks=[pruning])
    return np.count_nonzero(model.layers[-1].kernel.numpy())


def test_one_weight_is_the_least_that_a_kernel_keeps():
    # 3.4 zeros are rounded to 3.
    assert _four_weights(prune_all(0.85)) == 1
    # 3.6 would be all four.
    with pytest.raises(ValueError, match=r"nothing of 'tiny/kernel'.*\(4, 1\).*Rule"):
        _four_weights(prune_all(0.9))
    with pytest.raises(ValueError, match="nothing of 'tiny/kernel'"):
        _four_weights(tfc.Pruning(0.5, rules=[tfc.Rule("tiny", sparsity=0.9)]))


def test_small_kernels_and_the_last_layer_are_left_alone_with_a_line(caplog):
    model = compiled(conv_net())
    history = fit(model, tfc.Pruning(0.8, scope="layer")).history
    found = dict(zip(tfc.graph.kernels(model), zeros(model), strict=True))
    assert found == {
        "conv/kernel": round(0.8 * 216) / 216,
        "depthwise/kernel": 0,
        "hidden/kernel": round(0.8 * 1024) / 1024,
        "classifier/kernel": 0,
    }
    assert "leaves alone kernels" in caplog.text
    assert "['depthwise/kernel', 'classifier/kernel']" in caplog.text
    # The logs are of what is pruned.
    pruned = (round(0.8 * 216) + round(0.8 * 1024)) / (216 + 1024)
    assert history["sparsity"][-1] == pytest.approx(pruned)


@pytest.mark.parametrize(
    "settings",
    [
        {"include": ["hidden", "depthwise", "classifier"]},
        {"rules": [tfc.Rule("depthwise|classifier", sparsity=0.75)]},
        {"skip_small_and_last": False},
    ],
    ids=["include", "rules", "all"],
)
def test_what_is_named_is_pruned_however_small(settings):
    model = compiled(conv_net())
    fit(model, tfc.Pruning(0.75, scope="layer", **settings))
    found = dict(zip(tfc.graph.kernels(model), zeros(model), strict=True))
    for path in ("hidden/kernel", "depthwise/kernel", "classifier/kernel"):
        assert found[path] == 0.75, path


def test_every_head_and_a_nested_one_is_a_last_layer():
    inputs = keras.Input((20,))
    x = layers.Dense(20, name="body")(inputs)
    tail = keras.Sequential(
        [keras.Input((20,)), layers.Dense(20, name="a"), layers.Dense(20, name="b")],
        name="tail",
    )
    heads = [layers.ReLU()(layers.Dense(20, name="head")(x)), tail(x)]
    model = keras.Model(inputs, heads)
    model.compile("sgd", "mse")
    x = np.ones((8, 20), "float32")
    model.fit(x, [x, x], epochs=4, verbose=0, callbacks=[tfc.Pruning(0.5)])
    found = dict(zip(tfc.graph.kernels(model), zeros(model), strict=True))
    assert found == {
        "body/kernel": 0.5,
        "head/kernel": 0,
        "tail/a/kernel": 0.5,
        "tail/b/kernel": 0,
    }


def test_a_model_of_nothing_but_a_last_layer_says_what_to_do():
    with pytest.raises(ValueError, match="Nothing is left.*tiny/kernel.*include.*skip"):
        _four_weights(tfc.Pruning(0.5))


def test_none_keeps_even_a_few_zeros():
    model = compiled(conv_net())
    kernel = model.get_layer("hidden").kernel
    values = kernel.numpy()
    values[:5, 0] = 0
    kernel.assign(values)
    fit(model, prune_all(None))
    assert (kernel.numpy()[:5, 0] == 0).all()


def test_nothing_is_pruned_before_the_schedule_begins():
    model = compiled(conv_net())
    history = fit(model, prune_all(schedule=tfc.schedules.Constant(0.5, begin=12)))
    sparsity = history.history["sparsity"]
    assert sparsity[0] == 0 and sparsity[-1] == pytest.approx(0.5, abs=0.01)


def test_restored_weights_are_masked_again_if_pruning_comes_last():
    model = compiled(conv_net())
    restore = keras.callbacks.EarlyStopping(
        monitor="accuracy", mode="min", patience=9, restore_best_weights=True
    )
    fit(model, restore, prune_all(0.8))
    assert min(zeros(model)) >= min(asked(model, 0.8))


@pytest.mark.slow
def test_a_failed_fit_leaves_no_nested_constraints():
    model = compiled(conv_net())

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            fit(model, prune_all(0.5), Stop())
    fit(model, prune_all(0.8, exclude="conv/"))
    assert model.get_layer("conv").kernel.constraint is None
    fit(model, prune_all(0.8))
    assert zeros(model) == asked(model, 0.8)


@pytest.mark.slow
def test_a_fit_after_pruning_is_free_again():
    model = compiled(conv_net())
    fit(model, prune_all(0.8))
    fit(model)
    assert max(zeros(model)) < 0.3


@pytest.mark.slow
def test_none_keeps_the_zeros_there_are():
    model = compiled(conv_net())
    fit(model, prune_all(0.8))
    before = [v.numpy() for v in model.trainable_variables]
    fit(model, prune_all(None))
    for variable, old in zip(model.trainable_variables, before, strict=True):
        if old.ndim > 1:
            np.testing.assert_array_equal(variable.numpy() == 0, old == 0)
            assert not np.array_equal(variable.numpy(), old)


@pytest.mark.slow
def test_a_second_pruning_continues_from_the_first():
    model = compiled(conv_net())
    fit(model, prune_all(0.5))
    before = model.get_layer("hidden").kernel.numpy() == 0
    fit(model, prune_all(0.9))
    after = model.get_layer("hidden").kernel.numpy() == 0
    assert after[before].all()
    assert zeros(model) == asked(model, 0.9)


@pytest.mark.slow
@pytest.mark.parametrize("position", ["before", "after"])
def test_a_killed_run_resumes_with_every_zero(tmp_path, position):
    """BackupAndRestore may stand before or after Pruning in the list."""

    def callbacks():
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        pruning = prune_all(0.8)
        return [pruning, backup] if position == "before" else [backup, pruning]

    class Kill(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 3:
                raise KeyboardInterrupt

    first = compiled(conv_net())
    with pytest.raises(KeyboardInterrupt):
        fit(first, *callbacks(), Kill(), epochs=10)
    # Ending in the middle of the rise: epoch 3 of a rise over 5.
    reached = first.get_layer("hidden").kernel.numpy() == 0
    assert 0.5 < reached.mean() < 0.8

    second = compiled(conv_net())
    history = fit(second, *callbacks(), epochs=10)
    assert history.epoch[0] == 3
    assert history.history["sparsity"][0] > reached.mean() - 0.01
    assert (second.get_layer("hidden").kernel.numpy() == 0)[reached].all()
    assert zeros(second) == asked(second, 0.8)


# Keras warns of the shuffling that a data set does by itself, and of its end.
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_data_set_of_unknown_length_works():
    x, y = image_data()
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(32).filter(lambda *_: True)
    model = compiled(conv_net())
    model.fit(data, epochs=4, verbose=0, callbacks=[prune_all(0.8)])
    assert zeros(model) == asked(model, 0.8)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_one_epoch_of_unknown_length_says_what_to_do():
    x, y = image_data()
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(32).filter(lambda *_: True)
    model = compiled(conv_net())
    with pytest.raises(ValueError, match="steps_per_epoch"):
        model.fit(data, epochs=1, verbose=0, callbacks=[prune_all(0.8)])
    assert model.get_layer("conv").kernel.constraint is None


def test_a_subclassed_model_is_pruned():
    x, _ = image_data()
    model = Subclassed()
    model(x[:1])
    fit(compiled(model), prune_all(0.7))
    assert zeros(model) == asked(model, 0.7)


@pytest.mark.slow
def test_a_custom_train_step_is_pruned():
    class Custom(keras.Model):
        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = self.compute_loss(y=y, y_pred=self(x, training=True))
            gradients = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply(gradients, self.trainable_variables)
            return {"loss": loss}

    plain = conv_net()
    model = Custom(plain.input, plain.output)
    model.compile("adam", "sparse_categorical_crossentropy")
    fit(model, prune_all(0.7))
    assert zeros(model) == asked(model, 0.7)


@pytest.mark.slow
def test_include_exclude_and_rules_choose_the_kernels():
    model = compiled(conv_net())
    rules = [tfc.Rule("hidden", sparsity=0.9)]
    fit(model, prune_all(0.5, exclude="depthwise", rules=rules))
    found = dict(zip(tfc.graph.kernels(model), zeros(model), strict=True))
    assert found["depthwise/kernel"] == 0
    assert found["hidden/kernel"] == round(0.9 * 1024) / 1024
    assert found["conv/kernel"] == 0.5


def test_the_config_comes_back():
    schedule = tfc.schedules.Cosine(0, 0.7, begin=2, end=9)
    pruning = prune_all(
        schedule=schedule, exclude=["a"], rules=[tfc.Rule("b", sparsity=0.1)]
    )
    serialized = keras.saving.serialize_keras_object(pruning)
    back = keras.saving.deserialize_keras_object(serialized)
    assert back.get_config() == pruning.get_config()
    assert back.schedule == schedule


@pytest.mark.slow
def test_training_that_ends_before_the_schedule_warns(caplog):
    model = compiled(conv_net())
    schedule = tfc.schedules.Polynomial(0, 0.8, end=1000)
    fit(model, prune_all(schedule=schedule), epochs=1)
    assert "before the pruning schedule did" in caplog.text


# Bad input.


@pytest.mark.parametrize("sparsity", [1.0, -0.1, 80, float("nan")])
def test_sparsity_out_of_range(sparsity):
    with pytest.raises(ValueError, match=r"must be in \[0, 1\).*Received: sparsity="):
        prune_all(sparsity)


def test_percent_instead_of_a_fraction_gets_the_fraction_named():
    with pytest.raises(ValueError, match="pass sparsity=0.8"):
        prune_all(80)


def test_sparsity_that_is_no_number():
    with pytest.raises(TypeError, match="must be a number"):
        prune_all("high")


def test_a_model_without_kernels():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.BatchNormalization()(inputs))
    model.compile("sgd", "mse")
    x = np.zeros((8, 4), "float32")
    with pytest.raises(ValueError, match="no prunable weight"):
        model.fit(x, x, verbose=0, callbacks=[prune_all()])


def test_a_pattern_that_matches_nothing_lists_the_paths():
    with pytest.raises(ValueError, match="(?s)matches nothing.*hidden/kernel"):
        fit(compiled(conv_net()), prune_all(0.5, include="hiden/kernel"))


def test_nan_weights_are_refused():
    model = compiled(conv_net())
    kernel = model.get_layer("hidden").kernel
    kernel.assign(kernel * np.nan)
    with pytest.raises(ValueError, match="NaN or infinite weights: hidden/kernel"):
        fit(model, prune_all())


@pytest.mark.parametrize(
    ("schedule", "text"),
    [
        (tfc.schedules.Polynomial(0.9, 0.5, end=4), "cannot fall"),
        (tfc.schedules.Polynomial(-1.0, 0.5, end=4), "must be in"),
        (tfc.schedules.Polynomial(0.0, 1.5, end=4), "must be in"),
    ],
)
def test_a_schedule_that_is_no_sparsity(schedule, text):
    with pytest.raises(ValueError, match=text):
        prune_all(schedule=schedule)


def test_rules_go_with_a_schedule_alone():
    prune_all(
        None,
        schedule=tfc.schedules.Constant(0.5),
        rules=[tfc.Rule("conv", sparsity=0.1)],
    )


def test_a_rule_that_matches_nothing_lists_the_paths():
    with pytest.raises(ValueError, match="(?s)`rules`.*matches nothing.*hidden/kernel"):
        fit(compiled(conv_net()), prune_all(rules=[tfc.Rule("xy", sparsity=0.1)]))


def test_a_rule_that_sets_something_else():
    with pytest.raises(ValueError, match="sets `sparsity`"):
        prune_all(rules=[tfc.Rule("conv", bits=4)])
