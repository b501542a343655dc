"""The `tfcompress` command: its figures, its help, and one line for bad input."""

import inspect
import os
import pathlib
import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
from networks import compiled, conv_net, image_data

import tfcompress as tfc
from tfcompress import cli
from tfcompress.deploy.edgetpu_compile import EdgeTPUCompilation
from tfcompress.deploy.programs import installed

COMMANDS = (
    "demo",
    "compress",
    "recipe",
    "inspect",
    "export",
    "from-tfmot",
    "prune-channels",
    "cluster",
    "quantize",
    "sensitivity",
    "debug-quantization",
    "verify",
    "benchmark",
    "measure",
    "check-edgetpu",
    "check-opencv",
    "compile-edgetpu",
    "pack",
    "unpack",
    "compile-ethosu",
    "export-c-array",
    "export-android",
    "report",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A plain and a quantization-aware model, their data and an int8 file."""
    keras.utils.set_random_seed(0)
    folder = tmp_path_factory.mktemp("cli")
    x, y = image_data(32)
    np.savez(folder / "data.npz", x=x, y=y)
    model = conv_net()
    model.save(folder / "plain.keras")
    trainable = compiled(conv_net())
    trainable.optimizer.build(trainable.trainable_variables)
    trainable.save(folder / "compiled.keras")
    tfc.Recipe([{"fit": {"epochs": 1}}]).save(folder / "r.yaml")
    qat = tfc.quantize_aware(model, calibration_data=x)
    qat.save(folder / "qat.keras")
    tfc.export_tflite(qat, folder / "int8.tflite", kind="int8")
    return folder


@pytest.fixture
def run(folder, monkeypatch, capsys):
    """Runs a command line in the folder; returns exit code, output and errors."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*args):
        code = cli.run(["tfcompress", *args])
        return code, *capsys.readouterr()

    return run


def test_inspect_shows_the_operations_of_a_file(run):
    code, out, _ = run("inspect", "int8.tflite")
    assert code == 0
    assert "DEPTHWISE_CONV_2D" in out and "int8[1, 8, 8, 3]" in out
    assert "integers only" in out


def test_inspect_shows_the_kernels_of_a_model(run):
    code, out, _ = run("inspect", "plain.keras")
    assert code == 0
    assert "hidden/kernel" in out and "(128, 8)" in out


@pytest.mark.parametrize(
    "args",
    [
        ("plain.keras", "a.tflite"),
        ("plain.keras", "b.tflite", "--kind=int8", "--data=data.npz"),
        ("qat.keras", "c.tflite", "--kind=int8", "--io=uint8"),
        ("qat.keras", "d.onnx"),
        ("plain.keras", "e.tflite", "--kind=float16", "--batch_size=0"),
    ],
)
def test_export_writes_the_file(run, args):
    code, out, _ = run("export", *args)
    assert code == 0
    assert pathlib.Path(args[1]).exists() and args[1] in out


def test_export_fixes_the_batch_of_an_onnx_file(run):
    from tfcompress.deploy.onnx_runtime import ONNXRunner

    code, _, _ = run("export", "plain.keras", "b.onnx", "--batch_size=2")
    assert code == 0
    x = np.zeros((2, *keras.models.load_model("plain.keras").inputs[0].shape[1:]))
    assert ONNXRunner("b.onnx").predict([x.astype("float32")])[0].shape[0] == 2
    with pytest.raises(ValueError, match="Got: 1 Expected: 2"):
        ONNXRunner("b.onnx").predict([x[:1].astype("float32")])


@pytest.mark.slow
def test_export_puts_labels_into_the_file(run):
    pathlib.Path("labels.txt").write_text("red\ngreen\nblue\n")
    code, _, _ = run("export", "plain.keras", "l.tflite", "--labels=labels.txt")
    assert code == 0
    assert tfc.read_metadata("l.tflite").outputs[0].labels == ("red", "green", "blue")


def test_verify_says_whether_the_file_agrees(run):
    args = "--data=data.npz", "--examples=4"
    code, out, _ = run("verify", "qat.keras", "int8.tflite", *args)
    assert code == 0
    assert "int8.tflite agrees with conv_net (4 examples" in out and "CONV_2D" in out
    other = keras.models.load_model("plain.keras")
    other.get_layer("hidden").kernel.assign(-other.get_layer("hidden").kernel)
    other.save("other.keras")
    args = *args, "--no_operations"
    code, out, _ = run("verify", "other.keras", "int8.tflite", *args)
    assert code == 1
    assert "DISAGREES" in out


def test_benchmark_shows_time_memory_and_energy(run):
    code, out, _ = run("benchmark", "int8.tflite", "--threads=1", "--seconds=0")
    assert code == 0
    assert "xnnpack" in out and "peak memory" in out and "energy:" in out


def test_prune_channels_writes_a_smaller_model_and_says_what_went(run):
    code, out, _ = run(
        "prune-channels", "plain.keras", "small.keras", "--budget", "macs=0.5"
    )
    assert code == 0
    assert "output of the model" in out and "small.keras: written" in out
    small = tfc.measure(keras.models.load_model("small.keras"))
    plain = tfc.measure(keras.models.load_model("plain.keras"))
    assert small.macs <= plain.macs / 2


@pytest.mark.slow
def test_compress_runs_a_recipe_and_says_what_it_does(run):
    args = "--recipe=r.yaml", "--data=data.npz", "--test_data=data.npz", "--out=out"
    code, out, err = run("compress", "--model=compiled.keras", *args)
    assert code == 0, err
    for text in ("[1/2] fit", "[2/2] export_tflite", "original", "Report: out"):
        assert text in out
    assert pathlib.Path("out/report.html").exists()
    code, out, _ = run("compress", "--model=compiled.keras", *args)
    assert code == 0 and "[1/2] fit: done before" in out


def test_recipe_shows_presets_to_copy(run):
    code, out, _ = run("recipe")
    assert code == 0 and all(name in out for name in tfc.Recipe.presets())
    code, out, _ = run("recipe", "tiny-mcu")
    assert code == 0 and out == tfc.Recipe.preset_text("tiny-mcu")


def test_quantize_writes_a_model_that_exports(run):
    args = "--model=plain.keras", "--data=data.npz", "--config=int8_per_tensor"
    code, out, _ = run("quantize", *args, "--output=made.keras")
    assert code == 0
    assert "made.keras: int8_per_tensor, 4 layers" in out
    code, out, _ = run("export", "made.keras", "made.tflite", "--kind=int8")
    assert code == 0 and "integers only: yes" in out


def test_cluster_writes_a_model_of_few_values(run):
    code, out, _ = run("cluster", "plain.keras", "shared.keras", "--clusters=7")
    assert code == 0 and "shared.keras: 4 layers with 7 values" in out
    args = "--start=linear", "--per_channel", "--plain"
    assert run("cluster", "plain.keras", "few.keras", *args)[0] == 0
    shared, few = (
        tfc.measure(keras.models.load_model(name)).layers
        for name in ("shared.keras", "few.keras")
    )
    assert all(layer.distinct_values <= 7 for layer in shared)
    assert all(layer.channel_values <= 16 for layer in few)


def test_pack_and_unpack_give_the_file_back(run):
    code, out, _ = run("pack", "int8.tflite", "int8.tfcpack")
    assert code == 0 and "int8.tfcpack: " in out and "gzip" in out
    code, out, _ = run("unpack", "int8.tfcpack", "again.tflite")
    assert code == 0 and "SHA-256" in out
    again, original = (pathlib.Path(n) for n in ("again.tflite", "int8.tflite"))
    assert again.read_bytes() == original.read_bytes()


@pytest.mark.slow
def test_quantize_improves_what_is_not_trained(run):
    args = "--model=plain.keras", "--data=data.npz", "--config=int4_weights"
    more = "--equalize", "--rounding=adaround", "--steps=5", "--correct_bias"
    code, out, _ = run("quantize", *args, "--output=better.keras", *more)
    assert code == 0
    assert "better.keras: int4_weights, 4 layers" in out
    # Equalizing folded the batch normalization.
    better = keras.models.load_model("better.keras")
    assert not any("bn" in layer.name for layer in better.layers)


def test_quantize_leaves_float_what_costs_too_much(run):
    args = "--model=plain.keras", "--data=data.npz", "--output=within.keras"
    more = "--allowed_drop=0.5", "--test_data=data.npz"
    code, out, _ = run("quantize", *args, *more)
    assert code == 0
    assert "allowed drop 0.5" in out and "within.keras: int8, 4 layers" in out
    code, _, err = run("quantize", *args, more[0])
    assert code == 2 and "go together" in err


@pytest.mark.skipif(not installed("cv2"), reason="needs the extra opencv")
def test_check_opencv_names_the_engine(run):
    assert run("export", "plain.keras", "cv.onnx")[0] == 0
    code, out, _ = run("check-opencv", "cv.onnx", "--data=data.npz", "--repeats=2")
    assert code == 0
    assert "cv.onnx runs in OpenCV's ENGINE_" in out and " ms" in out


def test_check_opencv_says_how_to_install_it(run, monkeypatch):
    monkeypatch.setattr("tfcompress.deploy.opencv.installed", lambda name: False)
    assert run("export", "plain.keras", "cv.onnx")[0] == 0
    code, _, err = run("check-opencv", "cv.onnx")
    assert code == 2 and "pip install 'tfcompress[opencv]'" in err


def test_sensitivity_says_how_far_each_kernel_goes(run):
    args = "plain.keras", "--data=data.npz", "--total=0.6", "--plot=s.png"
    code, out, _ = run("sensitivity", *args)
    assert code == 0
    assert "one kernel pruned" in out and "For 60% zeros:\n  Rule('^conv/" in out
    assert pathlib.Path("s.png").read_bytes().startswith(b"\x89PNG")


def test_debug_quantization_ranks_layers_and_draws_them(run):
    args = "--model=qat.keras", "--data=data.npz", "--file=int8.tflite"
    code, out, _ = run("debug-quantization", *args, "--plot=e.png", "--examples=8")
    assert code == 0
    assert "worst first (8 examples)" in out and "file dB" in out
    assert pathlib.Path("e.png").read_bytes().startswith(b"\x89PNG")


def test_measure_compares_side_by_side(run):
    code, out, _ = run("measure", "plain.keras", "int8.tflite", "--data", "data.npz")
    assert code == 0
    assert "plain.keras" in out and "int8.tflite" in out and "1.00x" in out


def test_report_names_the_files_it_wrote(run):
    code, out, _ = run("report", "plain.keras", "int8.tflite", "--out=r.html")
    assert code == 0
    for line in out.split():
        assert pathlib.Path(line).exists()


def test_check_edgetpu_prints_the_table(run):
    code, out, _ = run("check-edgetpu", "int8.tflite")
    assert code == 0
    assert "Edge TPU" in out and "CONV_2D" in out


def test_export_for_the_edge_tpu(run):
    code, out, _ = run(
        "export", "qat.keras", "tpu.tflite", "--kind=int8", "--target=edgetpu"
    )
    assert code == 0 and "integers only: yes" in out
    code, out, _ = run("check-edgetpu", "tpu.tflite")
    assert "CPU" not in out


_COMPILE_OPTIONS = {
    "several": (
        ["int8.tflite", "b.tflite", "--intermediate_tensors=a,b", "--container=image"],
        {
            "paths": ["int8.tflite", "b.tflite"],
            "intermediate_tensors": ["a", "b"],
            "container": "image",
        },
    ),
    "segments": (
        ["int8.tflite", "--num_segments=2", "--min_runtime_version=13"]
        + ["--multiple_subgraphs", "--compiler=there"],
        {
            "paths": ["int8.tflite"],
            "num_segments": 2,
            "min_runtime_version": 13,
            "multiple_subgraphs": True,
            "compiler": "there",
        },
    ),
    "search": (
        ["int8.tflite", "--out_dir=out", "--search_delegate"]
        + ["--delegate_search_step=4", "--timeout=20", "--total_timeout=300"],
        {
            "paths": ["int8.tflite"],
            "out_dir": "out",
            "search_delegate": True,
            "delegate_search_step": 4,
            "timeout_sec": 20,
            "total_timeout_sec": 300,
        },
    ),
}


@pytest.mark.parametrize("case", _COMPILE_OPTIONS)
def test_options_of_the_compiler_are_passed_on(case, run, monkeypatch):
    seen = {}

    def compile_edgetpu(paths, out_dir, **options):
        seen.update(options, paths=paths, out_dir=out_dir)
        return [EdgeTPUCompilation("a", "l", "16", 3, 1, (), 9, 0, 0, ("one on CPU",))]

    monkeypatch.setattr(cli.files, "compile_edgetpu", compile_edgetpu)
    arguments, given = _COMPILE_OPTIONS[case]
    code, out, _ = run("compile-edgetpu", *arguments)
    assert code == 0
    # All that was not asked for is as the function has it.
    rest = {
        name: parameter.default
        for name, parameter in inspect.signature(tfc.compile_edgetpu).parameters.items()
        if name != "path"
    }
    assert seen == rest | given
    assert out == "a: 3 mapped, 1 on the CPU\none on CPU\n"


def test_old_file_becomes_a_keras_3_one(run):
    tf_keras = pytest.importorskip("tf_keras")
    old = tf_keras.Sequential([tf_keras.layers.Dense(2, input_shape=(3,))])
    x = np.ones((4, 3), "float32")
    expected = old.predict(x, verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tf_keras warns of its own format.
        old.save("old.h5", include_optimizer=False)
    code, out, _ = run("from-tfmot", "old.h5", "new.keras")
    assert (code, out) == (0, "new.keras: written\n")
    new = keras.models.load_model("new.keras")
    np.testing.assert_allclose(new.predict(x, verbose=0), expected, rtol=1e-6)
    assert run("inspect", "old.h5")[0] == 0


@pytest.mark.skipif(not installed("ethosu.vela"), reason="needs the extra ethosu")
def test_compile_ethosu_prints_the_share_and_the_estimate(run):
    code, out, _ = run(
        *("compile-ethosu", "int8.tflite", "--accelerator=ethos-u55-64"),
        "--memory_mode=Sram_Only",
    )
    assert code == 0 and "int8_vela.tflite" in out
    assert "(100%)" in out and "ms" in out and "encoded" in out


def test_export_c_array_prints_the_operators(run):
    pathlib.Path("src").mkdir()
    code, out, _ = run("export-c-array", "int8.tflite", "src", "--name=net")
    assert code == 0 and "AddConv2D" in out and "net[" in out
    assert "net_len" in pathlib.Path("src", "int8.h").read_text()


def test_export_android_names_the_files_it_wrote(run):
    pathlib.Path("labels.txt").write_text("red\ngreen\nblue\n")
    code, out, _ = run(
        *("export-android", "int8.tflite", "app", "--package=com.example.colours"),
        *("--labels=labels.txt", "--mean=0.5", "--std=0.25"),
    )
    assert code == 0 and all(pathlib.Path(line).is_file() for line in out.split())
    text = next(pathlib.Path("app").rglob("*.kt")).read_text()
    assert "_STD = floatArrayOf(2.5e-01f)" in text


_COMPRESS = ("--model=plain.keras", "--out=bad")
BAD = {
    "no such model": (("measure", "none.tflite"), "No such .tflite file"),
    "no such keras file": (("inspect", "none.keras"), "No such model file"),
    "damaged": (("inspect", "bad.tflite"), "Not a TFLite model"),
    "not keras": (("inspect", "bad.keras"), "Cannot load 'bad.keras'"),
    "no data": (("measure", "int8.tflite", "--data=none.npz"), "No such data file"),
    "bad data": (("measure", "int8.tflite", "--data=bad.tflite"), "as .npz"),
    "data without x": (("measure", "int8.tflite", "--data=z.npz"), "array `x`"),
    "no labels": (("measure", "int8.tflite", "--data=x.npz"), "must hold labels"),
    "output type": (("export", "plain.keras", "m.pb"), ".tflite or .onnx"),
    "calibration": (
        ("export", "plain.keras", "m.tflite", "--kind=int8"),
        "calibration",
    ),
    "folder": (("export", "plain.keras", "no/m.tflite"), "no folder"),
    "quantized output": (
        ("quantize", "--model=plain.keras", "--data=data.npz", "--output=a.h5"),
        "must be a .keras file",
    ),
    "budget": (
        ("prune-channels", "plain.keras", "a.keras", "--budget=macs"),
        "--budget takes NAME=LIMIT",
    ),
    "neither amount nor budget": (
        ("prune-channels", "plain.keras", "a.keras"),
        "either `amount`",
    ),
    "quantized already": (
        ("quantize", "--model=qat.keras", "--data=data.npz", "--output=a.keras"),
        "quantization-aware already",
    ),
    "clustered output": (
        ("cluster", "plain.keras", "a.h5"),
        "must be a .keras file",
    ),
    "too few clusters": (
        ("cluster", "plain.keras", "a.keras", "--clusters=1"),
        "`clusters` must be",
    ),
    "not to be packed": (
        ("pack", "data.npz", "a.tfcpack"),
        "neither a .tflite nor a .keras",
    ),
    "not packed": (("unpack", "bad.tflite", "a.tflite"), "no file that `tfc.pack`"),
    "no classes": (("sensitivity", "plain.keras", "--data=x.npz"), "array `y` too"),
    "plain model": (
        ("debug-quantization", "--model=plain.keras", "--data=data.npz"),
        "not quantization-aware",
    ),
    "not of Keras 2": (("from-tfmot", "plain.keras", "a.keras"), "tfc.load_model"),
    "damaged h5": (("inspect", "bad.h5"), "damaged"),
    "no such preset": (("recipe", "edge-int4"), "Did you mean 'edge-int8'?"),
    "no such recipe": (
        ("compress", *_COMPRESS, "--recipe=edge", "--data=data.npz"),
        "no preset 'edge'",
    ),
    "bad recipe": (
        ("compress", *_COMPRESS, "--recipe=bad.yaml", "--data=data.npz"),
        "bad.yaml': Stage 1: there is no stage 'foldd'",
    ),
    "no labels to train": (
        ("compress", *_COMPRESS, "--recipe=r.yaml", "--data=x.npz"),
        "needs an array `y` too",
    ),
    "not compiled": (
        ("compress", *_COMPRESS, "--recipe=r.yaml", "--data=data.npz"),
        "pass loss=",
    ),
    "memory mode": (
        (
            "compile-ethosu",
            "int8.tflite",
            "--accelerator=ethos-u55-128",
            "--memory_mode=SRAM",
        ),
        "Received: memory_mode='SRAM'",
    ),
    "array name": (
        ("export-c-array", "int8.tflite", ".", "--name=a-b"),
        "Received: name='a-b'",
    ),
    "half a normalization": (
        ("export-android", "int8.tflite", "a", "--package=a.b", "--mean=1"),
        "--mean and --std go together",
    ),
    "target of an onnx file": (
        ("export", "plain.keras", "a.onnx", "--target=edgetpu"),
        "--io, --data, --target",
    ),
    "io of an onnx file": (
        ("export", "plain.keras", "a.onnx", "--io=int8"),
        "takes none of --kind, --io",
    ),
    "opset": (("export", "plain.keras", "a.onnx", "--opset=9"), "Received: opset=9"),
    "compiler": (("compile-edgetpu", "int8.tflite"), "edgetpu"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(run, case, monkeypatch):
    args, text = BAD[case]
    monkeypatch.setenv("PATH", "/nonexistent")
    pathlib.Path("bad.tflite").write_bytes(b"nonsense")
    pathlib.Path("bad.keras").write_bytes(b"nonsense")
    pathlib.Path("bad.h5").write_bytes(b"\x89HDF\r\n\x1a\nnonsense")
    pathlib.Path("bad.yaml").write_text("stages: [foldd]")
    np.savez("z.npz", z=np.zeros(3))
    np.savez("x.npz", x=image_data(4)[0])
    code, out, err = run(*args)
    assert code == 2 and not out
    assert err.startswith("tfcompress: ") and err.count("\n") == 1
    assert text in err


@pytest.mark.parametrize("args", [(), ("squash",), ("export", "a"), ("measure", "--x")])
def test_wrong_usage_exits_with_2(args, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.run(["tfcompress", *args])
    assert stop.value.code == 2
    assert "usage: tfcompress" in capsys.readouterr().err


def test_help_names_every_command_with_examples(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.run(["tfcompress", "--help"])
    out = capsys.readouterr().out
    assert stop.value.code == 0
    assert all(command in out for command in COMMANDS)
    assert "tfcompress export model.keras model.tflite --kind=int8" in out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit):
        cli.run(["tfcompress", command, "--help"])
    assert len(capsys.readouterr().out.splitlines()) > 6


def test_the_console_script_is_quiet_and_returns_2(folder):
    start = "import sys, tfcompress_command; sys.exit(tfcompress_command.main())"

    def shell(*args):
        return subprocess.run(
            [sys.executable, "-c", start, *args],
            cwd=folder,
            capture_output=True,
            text=True,
            env=os.environ,
        )

    good = shell("check-edgetpu", "int8.tflite")
    assert good.returncode == 0 and good.stderr == ""
    bad = shell("measure", "none.tflite")
    assert bad.returncode == 2
    assert bad.stderr == "tfcompress: No such .tflite file: 'none.tflite'\n"
