"""Runs of recipes: what they leave, and how they go on after a kill."""

import json
import pathlib
import re
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from networks import compiled, conv_net, image_data
from recipes.kept import check_kept

import tfcompress as tfc
from tfcompress.deploy.tflite_file import read_tflite
from tfcompress.recipes.data import RunData
from tfcompress.recipes.training import objective_of

STAGES = [
    {"prune_channels": {"amount": 0.25}},
    {"Pruning": {"sparsity": 0.5}},
    "distill",
    {"fit": {"epochs": 3, "learning_rate": 0.01}},
    "quantize_aware",
    {"fit": {"epochs": 1, "learning_rate": 0.001}},
    {"export_tflite": {"kind": "int8"}},
    "check_edgetpu",
]


class Kill(keras.callbacks.Callback):
    """Ends the process' work at an epoch, as a signal would."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch
        self.begun = []

    def on_epoch_begin(self, epoch, logs=None):
        self.begun.append(epoch)
        if epoch == self.epoch:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def model():
    """A model that has learned a little."""
    keras.utils.set_random_seed(0)
    model = compiled(conv_net())
    x, y = image_data(96)
    model.fit(x, y, epochs=1, verbose=0)
    return model


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
    """A run that was killed in its first `fit`, between stages, and went on."""
    folder = tmp_path_factory.mktemp("run") / "out"
    recipe = tfc.Recipe(STAGES, name="<try>")
    before = [w.copy() for w in model.get_weights()]
    x, y = image_data(96)
    lines, kill = [], Kill(2)

    def run(say=lines.append, callbacks=()):
        return recipe.run(
            model, (x, y), folder, test_data=(x, y), say=say, callbacks=callbacks
        )

    with pytest.raises(KeyboardInterrupt):
        run(callbacks=[kill])

    def stop(line):
        lines.append(line)
        if line.startswith("[7/8]"):
            raise KeyboardInterrupt

    again = Kill(99)
    with pytest.raises(KeyboardInterrupt):
        run(stop, [again])
    first = lines[:]
    lines.clear()
    result = run()
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    return folder, result, lines, first, (kill.begun, again.begun)


def _report(folder, stage):
    return json.loads((folder / stage / "report.json").read_text())


def test_a_killed_run_goes_on_at_the_last_whole_epoch_and_stage(finished):
    folder, _, lines, first, (killed, resumed) = finished
    assert killed == [0, 1, 2]
    # The first fit went on at its third epoch; the second fit has one.
    assert resumed == [2, 0]
    assert sum("Rehearsed" in line for line in first + lines) == 1
    done = [line for line in lines if line.endswith("done before")]
    assert len(done) == 6 and done[-1].startswith("[6/8] fit")
    assert not (folder / "04_fit" / "backup").exists()


def test_each_stage_leaves_its_model_and_report(finished):
    folder, result, *_ = finished
    cut = _report(folder, "01_prune_channels")
    assert cut["settings"] == {"amount": 0.25} and "conv" in cut["changes"]
    fit = _report(folder, "04_fit")
    assert fit["history"]["sparsity"][-1] == pytest.approx(0.5, abs=0.01)
    assert "distillation_loss" in fit["history"]
    assert fit["accuracy"] > 0.5 and fit["parameters"] == cut["parameters"]
    for stage in ("01_prune_channels", "04_fit", "05_quantize_aware", "06_fit"):
        loaded = keras.models.load_model(folder / stage / "model.keras", compile=False)
        assert loaded.count_params() > 0
    assert not (folder / "02_Pruning" / "model.keras").exists()
    assert [s["name"] for s in result.stages] == [
        s if isinstance(s, str) else next(iter(s)) for s in STAGES
    ]


def test_what_earlier_stages_made_is_kept(finished, model):
    folder, *_ = finished
    last = check_kept(tfc.Recipe(STAGES), model, folder)
    assert tfc.measure(last).sparsity > 0.3


@pytest.mark.slow
def test_files_of_several_kinds_have_names_of_their_own(model, tmp_path):
    recipe = tfc.Recipe(
        [
            {"export_tflite": {"kind": "int8"}},
            "export_tflite",
            {"prune_channels": {"amount": 0.5}},
            {"export_tflite": {"kind": "int8", "io": "float32"}},
            "export_onnx",
        ]
    )
    result = recipe.run(model, image_data(32), tmp_path / "out")
    names = [pathlib.Path(path).name for path in result.files]
    assert names == ["int8_01.tflite", "float32.tflite", "int8_04.tflite", "model.onnx"]
    assert all(pathlib.Path(path).exists() for path in result.files)
    assert len(result.measurements) == 4


def test_files_are_checked_and_compared_with_the_original(finished):
    folder, result, *_ = finished
    names = [pathlib.Path(path).name for path in result.files]
    assert names == ["int8.tflite"]
    assert [m.name for m in result.measurements] == ["original", "int8"]
    original, int8 = result.measurements
    assert int8.gzip_bytes < original.gzip_bytes and int8.macs < original.macs
    assert int8.accuracy is not None and int8.sparsity > 0.3
    check = _report(folder, "08_check_edgetpu")
    assert check["mapped"] == check["operations"] == 8
    text = (folder / "report.html").read_text()
    assert "&lt;try&gt;" in text and "<h2>Stages</h2>" in text and "4 fit" in text
    assert "int8" in str(result) and "8 check_edgetpu" in str(result)


@pytest.mark.slow
@pytest.mark.parametrize("name", tfc.Recipe.presets())
def test_a_preset_runs_to_an_integer_file(name, tmp_path):
    text = re.sub(r"epochs: \d+", "epochs: 1", tfc.Recipe.preset_text(name))
    inputs = x = keras.Input((8, 8, 3))
    for _ in range(2):
        x = layers.Conv2D(32, 3, use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
    outputs = layers.Dense(3, "softmax")(layers.Flatten()(x))
    recipe = tfc.Recipe.from_yaml(text)
    result = recipe.run(
        compiled(keras.Model(inputs, outputs)), image_data(64), tmp_path / "out"
    )
    (file,) = (read_tflite(path) for path in result.files)
    assert not file.float_operations() or name == "edge-int8"
    before, after = result.measurements
    assert after.gzip_bytes < before.gzip_bytes / 4 and after.macs < 0.8 * before.macs
    if name == "edgetpu":
        check = _report(tmp_path / "out", f"{len(recipe.stages):02}_check_edgetpu")
        assert check["mapped"] == check["operations"]


def test_a_run_that_is_over_is_only_reported_again(finished, model):
    folder, result, *_ = finished
    x, y = image_data(96)
    times = {p: p.stat().st_mtime_ns for p in folder.rglob("*.keras")}
    again = tfc.Recipe(STAGES, name="<try>").run(
        model, (x, y), folder, test_data=(x, y)
    )
    assert again.stages == result.stages
    assert times == {p: p.stat().st_mtime_ns for p in folder.rglob("*.keras")}
    np.testing.assert_array_equal(
        again.model.predict(x, verbose=0), result.model.predict(x, verbose=0)
    )


def test_another_recipe_model_or_data_is_refused(finished, model):
    folder, *_ = finished
    x, y = image_data(96)
    recipe = tfc.Recipe(STAGES)
    other = [*STAGES[:3], {"fit": {"epochs": 4}}, *STAGES[4:]]
    with pytest.raises(ValueError, match="another recipe: its stage 4 is.*'epochs': 4"):
        tfc.Recipe(other).run(model, (x, y), folder, test_data=(x, y))
    with pytest.raises(ValueError, match="another recipe: it has 8.*here there are 7"):
        tfc.Recipe(STAGES[:7]).run(model, (x, y), folder, test_data=(x, y))
    with pytest.raises(ValueError, match="with another model"):
        recipe.run(compiled(conv_net()), (x, y), folder, test_data=(x, y))
    with pytest.raises(ValueError, match="with another data"):
        recipe.run(model, (x + 1e-6, y), folder, test_data=(x, y))
    with pytest.raises(ValueError, match="with another test data"):
        recipe.run(model, (x, y), folder)
    with pytest.raises(ValueError, match="with another seed"):
        recipe.run(model, (x, y), folder, test_data=(x, y), seed=1)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    with pytest.raises(ValueError, match="with another loss"):
        recipe.run(model, (x, y), folder, test_data=(x, y), loss=loss)


def test_folders_of_other_things_are_left_alone(model, tmp_path):
    data = image_data(32)
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(ValueError, match="holds files, and no run"):
        tfc.Recipe(["fold"]).run(model, data, tmp_path)
    with pytest.raises(ValueError, match="is a file"):
        tfc.Recipe(["fold"]).run(model, data, tmp_path / "mine.txt")


class _Trained(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        raise AssertionError("trained before the error")


@pytest.mark.parametrize(
    "stages, message",
    [
        (["Pruning"], "Stage 1, `Pruning`.*no `fit` follows"),
        (["check_edgetpu"], "Stage 1, `check_edgetpu`.*no file"),
        (
            [{"fit": {"epochs": 1}}, {"Pruning": {"include": "nope"}}, "fit2"],
            "Stage 3.*'fit'",
        ),
        (
            [
                {"fit": {"epochs": 1}},
                {"Pruning": {"include": "nope"}},
                {"fit": {"epochs": 1}},
            ],
            "Stage 3, `fit`: `include`: 'nope' matches nothing",
        ),
        (
            [{"fit": {"epochs": 1}}, {"prune_channels": {"amount": 2}}],
            "Stage 2, `prune_channels`.*amount=2",
        ),
        (
            [{"distill": {"teacher": "none.keras"}}, {"fit": {"epochs": 1}}],
            "Stage 2, `fit`: `teacher` 'none.keras'",
        ),
        (
            [
                {"fit": {"epochs": 1}},
                {"quantize_aware": {"config": "int16x8"}},
                {"export_tflite": {"kind": "int8"}},
            ],
            "Stage 3, `export_tflite`",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_any_training(
    stages, message, model, tmp_path
):
    with pytest.raises(ValueError, match=message):
        tfc.Recipe(stages).run(
            model, image_data(32), tmp_path / "out", callbacks=[_Trained()]
        )
    # So that the mended recipe can have the folder.
    assert not (tmp_path / "out").exists()


def test_a_loss_is_needed_and_may_come_from_three_places(model, tmp_path):
    data, plain = image_data(32), conv_net()
    with pytest.raises(ValueError, match="Stage 1, `fit`.*not compiled.*loss"):
        tfc.Recipe([{"fit": {"epochs": 1}}]).run(plain, data, tmp_path / "a")
    assert objective_of(plain)("mse") == {"loss": "mse"}
    assert objective_of(plain, "mae")(None) == {"loss": "mae"}
    assert objective_of(model, "mae")("mse") == {"loss": "mse"}
    own = objective_of(model)(None)
    assert isinstance(own["loss"], keras.losses.SparseCategoricalCrossentropy)
    assert own["metrics"] == ["accuracy"] and set(own) == {"loss", "metrics"}


@pytest.mark.slow
def test_data_sets_train_too_and_wrong_data_are_refused(model, tmp_path):
    x, y = image_data(64)
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
    recipe = tfc.Recipe(
        [
            {"prune_channels": {"amount": 0.5, "score": "taylor", "data": 24}},
            {"fit": {"epochs": 1, "decay": "none", "optimizer": "sgd"}},
            {"export_tflite": {"kind": "int8", "calibration_data": 20}},
        ]
    )
    result = recipe.run(model, batches, tmp_path / "a", test_data=batches)
    assert result.measurements[1].accuracy is not None
    sized = tfc.Recipe([{"fit": {"epochs": 1, "batch_size": 8}}])
    with pytest.raises(ValueError, match="Stage 1, `fit`: `batch_size` is for arrays"):
        sized.run(model, batches, tmp_path / "b")
    unknown = batches.filter(lambda *_: True)
    with pytest.raises(ValueError, match="`decay: cosine` must know"):
        tfc.Recipe([{"fit": {"epochs": 1}}]).run(model, unknown, tmp_path / "b")
    with pytest.raises(TypeError, match="`data` must be a tuple"):
        recipe.run(model, x, tmp_path / "b")
    with pytest.raises(ValueError, match="equally many rows"):
        recipe.run(model, (x, y[:5]), tmp_path / "b")
    with pytest.raises(ValueError, match=r"`data` must be \(x, y\)"):
        recipe.run(model, (x,), tmp_path / "b")


def test_sample_weights_reach_fit():
    x, y = image_data(8)
    first, settings = RunData((x, y, np.ones(8)), "data").for_fit(None)
    np.testing.assert_array_equal(first, x)
    np.testing.assert_array_equal(settings["y"], y)
    np.testing.assert_array_equal(settings["sample_weight"], np.ones(8))
    assert settings["batch_size"] == 32
    assert RunData((x, y), "data").steps(3) == 3


@pytest.mark.slow
def test_a_process_that_is_killed_goes_on(tmp_path, model):
    model.save(tmp_path / "m.keras")
    x, y = image_data(96)
    np.savez(tmp_path / "d.npz", x=x, y=y)
    stages = [{"fit": {"epochs": 1}}, "distill", {"fit": {"epochs": 60}}]
    tfc.Recipe(stages).save(tmp_path / "r.yaml")
    command = [sys.executable, "-c", _COMMAND, "--model=m.keras", "--recipe=r.yaml"]
    command += ["--data=d.npz", "--out=out"]
    backup = tmp_path / "out" / "03_fit" / "backup"
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE) as process:
        while process.poll() is None and not any(backup.glob("epoch_*")):
            pass
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "[1/4] fit: done before" in done.stdout
    history = _report(tmp_path / "out", "03_fit")["history"]["loss"]
    assert 0 < len(history) < 60


_COMMAND = (
    "import sys; from tfcompress import cli; "
    "sys.exit(cli.run(['tfcompress', 'compress', *sys.argv[1:]]))"
)
