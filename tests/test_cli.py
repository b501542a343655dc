"""The `tfcompress` command: its figures, its help, and one line for bad input."""

import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from networks import conv_net, image_data

import tfcompress as tfc
from tfcompress import cli

COMMANDS = (
    "demo",
    "inspect",
    "export",
    "prune-channels",
    "quantize",
    "debug-quantization",
    "verify",
    "benchmark",
    "measure",
    "check-edgetpu",
    "compile-edgetpu",
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


def test_quantize_writes_a_model_that_exports(run):
    args = "--model=plain.keras", "--data=data.npz", "--config=int8_per_tensor"
    code, out, _ = run("quantize", *args, "--output=made.keras")
    assert code == 0
    assert "made.keras: int8_per_tensor, 4 layers" in out
    code, out, _ = run("export", "made.keras", "made.tflite", "--kind=int8")
    assert code == 0 and "integers only: yes" in out


def test_quantize_improves_what_is_not_trained(run):
    args = "--model=plain.keras", "--data=data.npz", "--config=int4_weights"
    more = "--equalize", "--rounding=adaround", "--steps=5", "--correct_bias"
    code, out, _ = run("quantize", *args, "--output=better.keras", *more)
    assert code == 0
    assert "better.keras: int4_weights, 4 layers" in out
    # Equalizing folded the batch normalization.
    better = keras.models.load_model("better.keras")
    assert not any("bn" in layer.name for layer in better.layers)


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
    "plain model": (
        ("debug-quantization", "--model=plain.keras", "--data=data.npz"),
        "not quantization-aware",
    ),
    "compiler": (("compile-edgetpu", "int8.tflite"), "edgetpu"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(run, case, monkeypatch):
    args, text = BAD[case]
    monkeypatch.setenv("PATH", "/nonexistent")
    pathlib.Path("bad.tflite").write_bytes(b"nonsense")
    pathlib.Path("bad.keras").write_bytes(b"nonsense")
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
