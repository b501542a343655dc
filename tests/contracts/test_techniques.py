"""What every technique keeps, however it is run."""

import json
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from contracts.techniques import (
    FEW_TAKE,
    TECHNIQUES,
    WAYS_TO_RUN,
    check_callbacks,
    is_quick,
)
from networks import compiled, conv_net, image_data

import tfcompress as tfc


def _row(technique, test, *values):
    marks = () if is_quick(technique, test) else (pytest.mark.slow,)
    return pytest.param(
        technique, *values, marks=marks, id="-".join([technique, *values])
    )


def _rows(test):
    return [_row(technique, test) for technique in FEW_TAKE[test]]


@pytest.fixture
def policy():
    """Sets the dtype policy of new layers, for the time of the test."""
    before = keras.config.dtype_policy()
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy(before)


@pytest.mark.parametrize(
    "technique, way",
    [
        _row(technique, way, way)
        for way in WAYS_TO_RUN
        for technique in FEW_TAKE.get(way, TECHNIQUES)
    ],
)
def test_it_trains_and_strips_to_a_plain_model_that_is_as_good(
    technique, way, policy, tmp_path
):
    x, y = image_data()
    wrap, callbacks = TECHNIQUES[technique]
    settings = dict(WAYS_TO_RUN[way])
    optimizer = settings.pop("optimizer", lambda: None)()
    mixed = settings.pop("policy", None)
    if mixed is not None:
        policy(mixed)
    model = compiled(wrap(conv_net()), optimizer=optimizer, **settings)
    callbacks = callbacks()
    history = model.fit(
        x, y, batch_size=32, epochs=8, verbose=0, callbacks=callbacks
    ).history
    assert np.isfinite(history["loss"]).all()
    check_callbacks(callbacks, history)
    plain = tfc.strip(model)
    assert all(type(layer).__module__.startswith("keras.") for layer in plain.layers)
    assert np.mean(plain.predict(x, verbose=0).argmax(1) == y) > 0.8
    if mixed is not None:
        policy("float32")
        _assert_saves_and_exports(model, tmp_path)


def _assert_saves_and_exports(model, folder):
    """A model of half precision, in a program that knows nothing of it."""
    x, y = image_data()
    path = folder / "model.keras"
    model.save(path)
    # Keras saves no policy of the model, which decides whether it scales the loss: the
    # state of the optimizer loads under the old policy only.
    loaded = keras.models.load_model(path, compile=False, safe_mode=True)
    # Half precision has 8 to 11 bits, and TensorFlow fuses what is compiled to train
    # and what is not in different ways: three steps of a probability of 8 bits.
    np.testing.assert_allclose(
        loaded.predict(x, verbose=0), model.predict(x, verbose=0), atol=3 / 256 + 1e-6
    )
    path = folder / "model.tflite"
    if tfc.passes.export_graph.is_quantization_aware(loaded):
        result = tfc.export_tflite(loaded, path, kind="int8")
    else:
        result = tfc.export_tflite(loaded, path, kind="int8", calibration_data=x[:32])
    assert result.fully_integer
    assert tfc.measure(path, data=(x, y)).accuracy > 0.8


@pytest.mark.parametrize("technique", _rows("saved"))
def test_a_saved_model_loads_predicts_the_same_and_continues_the_same(
    technique, tmp_path
):
    x, y = image_data(96)
    wrap, callbacks = TECHNIQUES[technique]
    model = compiled(wrap(conv_net()))
    model.fit(x, y, batch_size=32, epochs=2, verbose=0, callbacks=callbacks())
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_array_equal(
        loaded.predict(x, verbose=0), model.predict(x, verbose=0)
    )
    # The optimizer's state came along: the same batches give the same weights.
    for either in (model, loaded):
        either.fit(x, y, batch_size=32, verbose=0, shuffle=False)
    for old, new in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_allclose(
            np.asarray(old.numpy(), "float32"),
            np.asarray(new.numpy(), "float32"),
            atol=1e-6,
            err_msg=old.path,
        )


@pytest.mark.parametrize("technique", _rows("killed"))
def test_a_killed_run_resumes(technique, tmp_path):
    x, y = image_data(96)
    wrap, callbacks = TECHNIQUES[technique]

    class Kill(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    def fit(*extra):
        keras.utils.set_random_seed(0)
        model = compiled(wrap(conv_net()))
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        history = model.fit(
            x,
            y,
            batch_size=32,
            epochs=4,
            verbose=0,
            callbacks=[backup, *callbacks(), *extra],
        )
        return history

    with pytest.raises(KeyboardInterrupt):
        fit(Kill())
    resumed = fit()
    assert resumed.epoch == [2, 3]
    check_callbacks(callbacks(), resumed.history)


_ON_TWO_DEVICES = {
    quick: [t for t in FEW_TAKE["two devices"] if is_quick(t, "two devices") == quick]
    for quick in (True, False)
}


@pytest.mark.parametrize(
    "techniques",
    [
        pytest.param(_ON_TWO_DEVICES[True], id="quick"),
        pytest.param(_ON_TWO_DEVICES[False], marks=pytest.mark.slow, id="rest"),
    ],
)
def test_it_trains_on_two_devices(techniques, tmp_path):
    # Devices are set up before TensorFlow starts, so in a process of its own.
    script = pathlib.Path(__file__).with_name("two_devices.py")
    found = subprocess.run(
        [sys.executable, str(script), str(tmp_path), *techniques],
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    results = json.loads(found.stdout.splitlines()[-1])
    assert list(results) == techniques
    for name, result in results.items():
        assert result["same_weights"], name
        # Devices have batch statistics of their own, as in Keras; one's are kept.
        assert result["difference"] < 0.2, name
        assert result["fully_integer"], name
        assert result["accuracy"] > 0.8 and result["file_accuracy"] > 0.8, name
