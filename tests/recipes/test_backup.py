"""What a run is killed in the middle of costs an epoch, never the run."""

import keras
import numpy as np
import pytest
from networks import compiled, conv_net, image_data

from tfcompress.recipes.backup import EpochBackup


def fit(folder, epochs=4, **settings):
    keras.utils.set_random_seed(0)
    model = compiled(conv_net())
    backup = EpochBackup(folder, **settings)
    x, y = image_data(32)
    history = model.fit(
        x,
        y,
        epochs=epochs,
        initial_epoch=backup.epoch,
        shuffle=False,
        verbose=0,
        callbacks=[backup],
    )
    return model, history.epoch


def test_it_goes_on_with_weights_and_optimizer_as_they_were(tmp_path):
    straight, _ = fit(tmp_path / "straight")
    _, first = fit(tmp_path / "backup", epochs=2)
    model, second = fit(tmp_path / "backup")
    assert (first, second) == ([0, 1], [2, 3])
    assert [p.name for p in (tmp_path / "backup").iterdir()] == [
        "epoch_00004.weights.h5"
    ]
    for a, b in zip(straight.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_kill_while_it_writes_leaves_the_epoch_before(tmp_path, monkeypatch):
    fit(tmp_path, epochs=1)

    def killed(model, path, **_):
        path.write_bytes(b"half a file")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(keras.Model, "save_weights", killed)
        with pytest.raises(KeyboardInterrupt):
            fit(tmp_path)
    assert EpochBackup(tmp_path).epoch == 1
    assert fit(tmp_path, epochs=2)[1] == [1]


def test_a_kill_before_the_old_file_goes_is_no_harm(tmp_path):
    fit(tmp_path, epochs=1)
    old = (tmp_path / "epoch_00001.weights.h5").read_bytes()
    fit(tmp_path, epochs=2)
    (tmp_path / "epoch_00001.weights.h5").write_bytes(old)
    assert EpochBackup(tmp_path).epoch == 2
    fit(tmp_path, epochs=3)
    assert [p.name for p in tmp_path.iterdir()] == ["epoch_00003.weights.h5"]


def test_it_is_removed_at_the_end_if_that_is_wanted(tmp_path):
    fit(tmp_path / "backup", delete=True)
    assert not (tmp_path / "backup").exists()
