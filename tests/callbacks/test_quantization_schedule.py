"""`tfc.QuantizationSchedule` inside `model.fit`."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from networks import compiled, conv_net

import tfcompress as tfc
from tfcompress.graph import find_layers
from tfcompress.layers import FakeQuant, FusedBatchNormalization, TransformWeights
from tfcompress.numerics.learned_step import initial_step

# 4 batches of 16 an epoch.
X = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
Y = X[:, :3].argmax(1)


def dense_net(normalization=True):
    inputs = keras.Input((6,), name="features")
    x = layers.Dense(8, name="hidden")(inputs)
    if normalization:
        x = layers.BatchNormalization(momentum=0.9, name="norm")(x)
    x = layers.ReLU(name="relu")(x)
    outputs = layers.Dense(3, activation="softmax", name="classifier")(x)
    return keras.Model(inputs, outputs)


def quantized(config="int8", *, calibrated=True, **settings):
    data = X if calibrated else None
    return tfc.quantize_aware(dense_net(), config, calibration_data=data, **settings)


def config(**settings):
    return tfc.QuantizationConfig(**settings)


def fit(model, *callbacks, epochs=3, **settings):
    if not model.compiled:
        # So few steps take less time than a graph; some tests compile by themselves.
        compiled(model, run_eagerly=True)
    settings = {"batch_size": 16, "epochs": epochs, "verbose": 0} | settings
    return model.fit(X, Y, callbacks=list(callbacks), **settings)


def in_force(model):
    """What the variables of a model say: rounding, observing, frozen, bits."""
    return (
        {float(q.rounding.numpy()) for q in find_layers(model, FakeQuant)},
        {float(q.observing.numpy()) for q in find_layers(model, FakeQuant)},
        {float(n.frozen.numpy()) for n in find_layers(model, FusedBatchNormalization)},
        [
            int(state["bits"].numpy())
            for wrapper in find_layers(model, TransformWeights)
            for state in wrapper.states["kernel"]
            if "bits" in state
        ],
    )


class Watch(keras.callbacks.Callback):
    """Keeps what is in force after each step; it stands behind the schedule."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(in_force(self.model))


ON, OFF = {1.0}, {0.0}


@pytest.mark.parametrize(
    "settings", [{}, {"jit_compile": True}, {"run_eagerly": True}], ids=str
)
def test_each_part_switches_at_its_step(settings):
    model = compiled(quantized(), **settings)
    schedule = tfc.QuantizationSchedule(
        start_step=3, freeze_ranges_step=6, freeze_batch_norm_step=9
    )
    watch = Watch()
    fit(model, schedule, watch)
    assert len(watch.seen) == 12
    for step, (rounding, observing, frozen, bits) in enumerate(watch.seen, start=1):
        assert rounding == (ON if step >= 3 else OFF)
        assert observing == (ON if step < 6 else OFF)
        assert frozen == (ON if step >= 9 else OFF)
        assert bits == ([8, 8] if step >= 3 else [0, 0])


def test_before_the_start_the_model_is_the_float_one_and_ranges_are_learned():
    model = quantized(calibrated=False)
    fit(model, tfc.QuantizationSchedule(start_step=100), epochs=1)
    assert all(q.range() is not None for q in find_layers(model, FakeQuant))
    inner = {w.name: w.layer for w in find_layers(model, TransformWeights)}
    x = X @ inner["hidden"].kernel.numpy() + inner["hidden"].bias.numpy()
    norm = find_layers(model, FusedBatchNormalization)[0]
    scale = norm.gamma.numpy() / np.sqrt(norm.moving_variance.numpy() + norm.epsilon)
    x = (x - norm.moving_mean.numpy()) * scale + norm.beta.numpy()
    x = np.maximum(x, 0) @ inner["classifier"].kernel.numpy()
    expected = tf.nn.softmax(x + inner["classifier"].bias.numpy()).numpy()
    # 1e-5: float32 arithmetic in another order; int8 rounding would be off by 1e-3.
    np.testing.assert_allclose(model.predict(X, verbose=0), expected, atol=1e-5)


def test_without_arguments_training_is_as_without_the_callback():
    weights = []
    for callbacks in ([], [tfc.QuantizationSchedule()]):
        keras.utils.set_random_seed(0)
        model = quantized()
        fit(model, *callbacks, shuffle=False)
        weights.append(model.get_weights())
    for one, other in zip(*weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_frozen_ranges_and_statistics_do_not_move():
    model = quantized()
    schedule = tfc.QuantizationSchedule(0, 4, 4)

    class Compare(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            norm = find_layers(self.model, FusedBatchNormalization)[0]
            found = [q.range() for q in find_layers(self.model, FakeQuant)]
            found.append(norm.moving_mean.numpy().tolist())
            found.append(norm.moving_variance.numpy().tolist())
            if epoch:
                assert found == self.before
            self.before = found

    fit(model, schedule, Compare())


@pytest.mark.parametrize(
    "bits",
    [
        {4: 8, 6: 6, 8: 4},
        [(8, 4), (4, 8), (6, 6)],
        tfc.schedules.Polynomial(8, 4, begin=4, end=8, power=1),
    ],
    ids=["dict", "pairs", "schedule"],
)
def test_bits_follow_their_schedule_down_to_the_width_of_the_model(bits):
    model = quantized("int4_weights")
    watch = Watch()
    history = fit(model, tfc.QuantizationSchedule(2, bits=bits), watch).history
    widths = [bits[0] for *_, bits in watch.seen]
    if isinstance(bits, tfc.schedules.Schedule):
        assert widths == [0, 8, 8, 8, 7, 6, 5, 4, 4, 4, 4, 4]
    else:
        assert widths == [0, 8, 8, 8, 8, 6, 6, 4, 4, 4, 4, 4]
    assert history["weight_bits"] == [8, 4, 4]
    wrapper = find_layers(model, TransformWeights)[0]
    for channel in wrapper.effective_weights()["kernel"].T:
        assert len(np.unique(channel)) <= 15


def test_before_its_first_step_a_width_is_8():
    model = quantized("int4_weights")
    watch = Watch()
    fit(model, tfc.QuantizationSchedule(bits={2: 4}), watch, epochs=1)
    assert [bits[0] for *_, bits in watch.seen] == [8, 4, 4, 4]


def test_layers_with_more_bits_keep_theirs_and_ternary_ones_are_on_or_off():
    rules = [tfc.Rule("hidden", weight_bits=6)]
    model = quantized("int4_weights", rules=rules)
    watch = Watch()
    fit(model, tfc.QuantizationSchedule(1, bits={0: 7, 3: 4}), watch, epochs=1)
    assert [bits for *_, bits in watch.seen] == [[7, 7], [7, 7], [6, 4], [6, 4]]
    rules = [tfc.Rule("hidden", weights="ternary")]
    model = quantized("int4_weights", rules=rules)
    fit(
        model,
        tfc.QuantizationSchedule(2, bits={0: 7, 3: 4}),
        watch := Watch(),
        epochs=1,
    )
    assert [bits for *_, bits in watch.seen] == [[0, 0], [2, 7], [2, 4], [2, 4]]


def test_logs_have_the_bits_only_if_they_are_scheduled():
    history = fit(quantized(), tfc.QuantizationSchedule(2), epochs=1).history
    assert set(history) == {"loss", "accuracy"}


@pytest.mark.slow
def test_a_learned_step_starts_from_the_weights_that_the_warm_up_left():
    model = quantized(config(weights="learned_step", weight_bits=4))

    class Disturb(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 2:
                for wrapper in find_layers(self.model, TransformWeights):
                    wrapper.layer.kernel.assign(10 * wrapper.layer.kernel.numpy())
            if batch == 3:
                self.steps = [
                    (w.states["kernel"][0]["step"].numpy(), w.layer.kernel.numpy())
                    for w in find_layers(self.model, TransformWeights)
                ]

    disturb = Disturb()
    fit(model, tfc.QuantizationSchedule(4), disturb, epochs=1)
    for step, kernel in disturb.steps:
        np.testing.assert_array_equal(step, initial_step(kernel, bits=4))
    # It is left alone if it was on already.
    before = disturb.steps[0][0]
    fit(model, tfc.QuantizationSchedule(), epochs=1)
    after = find_layers(model, TransformWeights)[0].states["kernel"][0]["step"].numpy()
    assert np.all(after != before)
    # 0.2: a few steps of the optimizer, of 0.01 each.
    np.testing.assert_allclose(after, before, atol=0.2)


@pytest.mark.slow
def test_several_steps_a_call_switch_at_the_end_of_the_call():
    model = compiled(quantized(), steps_per_execution=2)
    watch = Watch()
    fit(model, tfc.QuantizationSchedule(3), watch, epochs=1)
    assert [rounding for rounding, *_ in watch.seen] == [OFF, ON]


@pytest.mark.slow
def test_gradient_accumulation_counts_batches():
    optimizer = keras.optimizers.Adam(0.01, gradient_accumulation_steps=2)
    model = compiled(quantized(), optimizer=optimizer)
    watch = Watch()
    fit(model, tfc.QuantizationSchedule(3), watch, epochs=1)
    assert [rounding for rounding, *_ in watch.seen] == [OFF, OFF, ON, ON]


@pytest.mark.slow
def test_a_moving_average_of_weights_ends_rounded():
    optimizer = keras.optimizers.Adam(0.01, use_ema=True, ema_overwrite_frequency=3)
    model = compiled(
        quantized(config(weights="learned_step", weight_bits=4)), optimizer=optimizer
    )
    fit(model, tfc.QuantizationSchedule(3))
    for wrapper in find_layers(model, TransformWeights):
        for channel in wrapper.effective_weights()["kernel"].T:
            assert len(np.unique(channel)) <= 15


@pytest.mark.slow
@pytest.mark.parametrize("position", ["before", "after"])
def test_a_killed_run_resumes_where_it_was(tmp_path, position):
    class Kill(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    def callbacks():
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        schedule = tfc.QuantizationSchedule(6, 10, 10, bits={6: 8, 10: 4})
        both = [schedule, backup]
        return both if position == "before" else both[::-1]

    learned = config(weights="learned_step", weight_bits=4)
    with pytest.raises(KeyboardInterrupt):
        fit(killed := quantized(learned), *callbacks(), Kill(), epochs=4)
    model, watch = quantized(learned), Watch()
    steps = []

    class Start(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            steps.append(
                find_layers(self.model, TransformWeights)[0]
                .states["kernel"][0]["step"]
                .numpy()
            )

    history = fit(model, *callbacks(), watch, Start(), epochs=4)
    assert history.epoch == [2, 3]
    rounded, frozen = (ON, ON, OFF, [8, 8]), (ON, OFF, ON, [4, 4])
    assert watch.seen == [rounded] + [frozen] * 7
    # Learned steps went on from where they were and did not start again.
    wrapper = find_layers(killed, TransformWeights)[0]
    np.testing.assert_array_equal(steps[0], wrapper.states["kernel"][0]["step"])


def test_an_initial_epoch_is_where_it_says():
    model, watch = quantized(), Watch()
    fit(model, tfc.QuantizationSchedule(5), watch, initial_epoch=1, epochs=2)
    assert [rounding for rounding, *_ in watch.seen] == [ON] * 4
    model, watch = quantized(), Watch()
    fit(model, tfc.QuantizationSchedule(7), watch, initial_epoch=1, epochs=2)
    assert [rounding for rounding, *_ in watch.seen] == [OFF, OFF, ON, ON]


def test_a_model_saved_in_its_warm_up_loads_and_goes_on(tmp_path):
    model = quantized()
    fit(model, tfc.QuantizationSchedule(5), epochs=1)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras", safe_mode=True)
    assert in_force(loaded) == (OFF, ON, OFF, [0, 0])
    np.testing.assert_array_equal(
        loaded.predict(X, verbose=0), model.predict(X, verbose=0)
    )
    fit(loaded, tfc.QuantizationSchedule(5), initial_epoch=1, epochs=2)
    assert in_force(loaded) == (ON, ON, OFF, [8, 8])


def test_no_epoch_changes_nothing():
    model = quantized()
    fit(model, tfc.QuantizationSchedule(5), initial_epoch=2, epochs=2)
    assert in_force(model) == (ON, ON, OFF, [8, 8])


def test_restored_weights_of_the_warm_up_are_rounded():
    model = quantized()
    restore = keras.callbacks.EarlyStopping(
        monitor="accuracy", mode="min", patience=9, restore_best_weights=True
    )
    fit(model, restore, tfc.QuantizationSchedule(6))
    assert in_force(model) == (ON, ON, OFF, [8, 8])


def test_a_distillers_student_is_scheduled_and_its_teacher_is_not():
    teacher = quantized()
    model = tfc.distill(quantized(), teacher)
    fit(model, tfc.QuantizationSchedule(100), epochs=1)
    assert in_force(model.student) == (OFF, ON, OFF, [0, 0])
    assert in_force(teacher) == (ON, ON, OFF, [8, 8])
    fit(model, tfc.QuantizationSchedule(2, 2, 2), epochs=1)
    assert in_force(model.student) == (ON, OFF, ON, [8, 8])


# Keras warns of the end of a data set, and of the shuffling that it does by itself.
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_data_set_of_unknown_length_works_from_its_start():
    def data():
        found = tf.data.Dataset.from_tensor_slices((X, Y)).batch(16)
        return found.filter(lambda *_: True)

    model, watch = compiled(quantized()), Watch()
    schedule = tfc.QuantizationSchedule(6)
    model.fit(data(), epochs=2, verbose=0, callbacks=[schedule, watch])
    assert [r for r, *_ in watch.seen] == [OFF] * 5 + [ON] * 3
    with pytest.raises(ValueError, match="unknown length. Pass `steps_per_epoch`"):
        model.fit(data(), epochs=2, initial_epoch=1, verbose=0, callbacks=[schedule])


@pytest.mark.slow
def test_the_file_computes_as_the_model_that_was_scheduled(tmp_path):
    model = quantized("int4_weights", calibrated=False)
    schedule = tfc.QuantizationSchedule(4, 16, 16, bits={4: 8, 8: 6, 12: 4})
    fit(model, schedule, epochs=10)
    path = tmp_path / "model.tflite"
    assert tfc.export_tflite(model, path, kind="int8").fully_integer
    expected = model.evaluate(X, Y, verbose=0)[1]
    assert expected > 0.8
    # One example of 64: the file may round a tie of probabilities the other way.
    assert tfc.measure(path, data=(X, Y)).accuracy == pytest.approx(expected, abs=0.02)


def test_the_config_comes_back():
    for bits in (None, {0: 8, 9: 4}, tfc.schedules.Cosine(8, 3, begin=2, end=9)):
        schedule = tfc.QuantizationSchedule(2, None, 7, bits)
        serialized = keras.saving.serialize_keras_object(schedule)
        back = keras.saving.deserialize_keras_object(serialized)
        assert back.get_config() == schedule.get_config()
        assert back.bits == schedule.bits


@pytest.mark.parametrize("start", [4, 1000])
def test_training_that_ends_before_the_start_warns(caplog, start):
    fit(quantized(), tfc.QuantizationSchedule(start), epochs=1)
    assert f"before rounding began (start_step={start})" in caplog.text


def test_training_that_ends_before_the_bits_do_warns(caplog):
    model = quantized("int4_weights")
    fit(model, tfc.QuantizationSchedule(bits={0: 8, 1000: 4}), epochs=1)
    assert "with weights of 8 bits, before the schedule of bits did (4)" in caplog.text


def test_a_complete_schedule_does_not_warn(caplog):
    model = quantized("int4_weights")
    fit(model, tfc.QuantizationSchedule(2, bits={0: 8, 3: 4}), epochs=1)
    assert not caplog.text


# Bad input.


@pytest.mark.parametrize(
    "name", ["start_step", "freeze_ranges_step", "freeze_batch_norm_step"]
)
def test_a_step_that_is_none(name):
    with pytest.raises(ValueError, match=f"`{name}` must be 0 or more.*{name}=-1"):
        tfc.QuantizationSchedule(**{name: -1})
    for wrong in (2.5, "10", True):
        with pytest.raises(TypeError, match=f"`{name}` must be a whole number"):
            tfc.QuantizationSchedule(**{name: wrong})


@pytest.mark.parametrize(
    "bits",
    [
        {0: 9, 5: 4},
        {0: 8, 5: 1},
        {0: 7.5},
        {},
        [(0, "8")],
        tfc.schedules.Polynomial(16, 4, end=9),
        tfc.schedules.Cosine(8, 0, end=9),
        tfc.schedules.Constant(1),
    ],
    ids=str,
)
def test_bits_out_of_range(bits):
    with pytest.raises(ValueError, match="from 2 to 8. Received: bits="):
        tfc.QuantizationSchedule(bits=bits)


@pytest.mark.parametrize("bits", [{0: 4, 5: 8}, tfc.schedules.Cosine(4, 8, end=9)])
def test_bits_that_rise(bits):
    with pytest.raises(ValueError, match="cannot rise"):
        tfc.QuantizationSchedule(bits=bits)


@pytest.mark.parametrize("bits", [4, "8", [8, 4], lambda step: 4])
def test_bits_that_are_no_schedule(bits):
    with pytest.raises(TypeError, match="a dict {step: bits} or pairs"):
        tfc.QuantizationSchedule(bits=bits)


def test_negative_steps_of_bits():
    with pytest.raises(ValueError, match="`bits` must be 0 or more"):
        tfc.QuantizationSchedule(bits={-1: 8})


def test_a_model_without_quantizers():
    with pytest.raises(ValueError, match=r"no quantizers.*tfc.quantize_aware\(model\)"):
        fit(conv_net(), tfc.QuantizationSchedule())


def test_bits_that_end_elsewhere_than_the_model():
    with pytest.raises(ValueError, match="(?s)was made for, 8.*ends at 4 bits"):
        fit(quantized(), tfc.QuantizationSchedule(bits={0: 8, 5: 4}))


def test_bits_of_a_ternary_model():
    with pytest.raises(ValueError, match="no weights whose bits could change"):
        schedule = tfc.QuantizationSchedule(bits={0: 8, 5: 2})
        fit(quantized(config(weights="ternary")), schedule)


def test_no_batch_normalization_to_freeze():
    model = tfc.quantize_aware(dense_net(normalization=False), calibration_data=X)
    with pytest.raises(ValueError, match="no batch normalization to freeze"):
        fit(model, tfc.QuantizationSchedule(freeze_batch_norm_step=5))


def test_ranges_that_were_never_seen_cannot_freeze():
    schedule = tfc.QuantizationSchedule(8, freeze_ranges_step=0)
    with pytest.raises(ValueError, match="(?s)none yet.*Pass `calibration_data`"):
        fit(quantized(calibrated=False), schedule)
    # Before the start they may, with ranges.
    fit(quantized(), schedule)
    fit(quantized(calibrated=False), tfc.QuantizationSchedule(8, 1))
