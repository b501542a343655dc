"""What every technique keeps, however it is run."""

import keras
import numpy as np
import pytest
from contracts.techniques import TECHNIQUES, WAYS_TO_RUN
from networks import compiled, conv_net, image_data

import tfcompress as tfc


@pytest.mark.parametrize("way", WAYS_TO_RUN)
@pytest.mark.parametrize("technique", TECHNIQUES)
def test_it_trains_and_strips_to_a_plain_model_that_is_as_good(technique, way):
    x, y = image_data()
    wrap, callbacks = TECHNIQUES[technique]
    settings = dict(WAYS_TO_RUN[way])
    optimizer = settings.pop("optimizer", lambda: None)()
    model = compiled(wrap(conv_net()), optimizer=optimizer, **settings)
    history = model.fit(
        x, y, batch_size=32, epochs=8, verbose=0, callbacks=callbacks()
    ).history
    assert np.isfinite(history["loss"]).all()
    plain = tfc.strip(model)
    assert all(type(layer).__module__.startswith("keras.") for layer in plain.layers)
    accuracy = np.mean(plain.predict(x, verbose=0).argmax(1) == y)
    assert accuracy > 0.8
    if callbacks():
        assert history["sparsity"][-1] == pytest.approx(0.6, abs=0.01)


@pytest.mark.parametrize("technique", TECHNIQUES)
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


@pytest.mark.parametrize("technique", TECHNIQUES)
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
    if callbacks():
        assert resumed.history["sparsity"][-1] == pytest.approx(0.6, abs=0.01)
