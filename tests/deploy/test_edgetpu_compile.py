"""Running the compiler: what is accepted, what is said, and what stays untouched."""

import json
import pathlib
import pickle
import shlex
import sys
import time

import pytest
from fake_edgetpu_compiler import compiled_model

from tfcompress.deploy.edgetpu_compile import (
    EdgeTPUCompilerError,
    EdgeTPUCompilerNotFound,
    compile_edgetpu,
)
from tfcompress.deploy.tflite_file import read_tflite

HERE = pathlib.Path(__file__).parent
MODEL = HERE / "edgetpu_pairs" / "LibrEdgeTPU__dense_256.tflite"


@pytest.fixture
def model(tmp_path):
    """A model in a folder with a blank in its name."""
    path = tmp_path / "my models" / "dense.tflite"
    path.parent.mkdir()
    path.write_bytes(MODEL.read_bytes())
    return path


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Puts a fake `edgetpu_compiler` on PATH; call it to choose what that does."""
    program = tmp_path / "bin" / "edgetpu_compiler"
    program.parent.mkdir()
    script = HERE / "fake_edgetpu_compiler.py"
    command = shlex.join([sys.executable, str(script)])
    program.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.setenv("FAKE_EDGETPU_NOTES", str(tmp_path / "notes"))

    def choose(behaviour):
        monkeypatch.setenv("FAKE_EDGETPU", behaviour)
        return program

    return choose


def test_success_puts_model_and_log_beside_the_input(model, fake):
    fake("success")
    result = compile_edgetpu(model)
    output = model.with_name("dense_edgetpu.tflite")
    assert result.path == str(output)
    assert result.log_path == str(output.with_suffix(".log"))
    assert read_tflite(output).operations[0].operator == "edgetpu-custom-op"
    assert "FULLY_CONNECTED" in output.with_suffix(".log").read_text()
    assert result.compiler_version == "16.0.384591198"
    assert (result.mapped_count, result.cpu_count) == (3, 0)
    assert [row.count for row in result.statuses] == [2, 1]
    assert result.bytes == output.stat().st_size
    assert (result.on_chip_bytes, result.off_chip_bytes) == (68.5 * 1024, 0)
    assert result.warnings == ()
    assert sorted(path.name for path in model.parent.iterdir()) == [
        "dense.tflite",
        "dense_edgetpu.log",
        "dense_edgetpu.tflite",
    ]


def test_partial_mapping_warns(model, fake, tmp_path):
    fake("partial")
    result = compile_edgetpu(model, tmp_path / "new" / "folder")
    assert pathlib.Path(result.path).parent == tmp_path / "new" / "folder"
    assert (result.mapped_count, result.cpu_count) == (2, 1)
    on_cpu, streamed = result.warnings
    assert "1 of 3 operations run on the CPU" in on_cpu
    assert f"{round(1.5 * 1024**2)} bytes" in streamed


def test_settings_reach_the_compiler(model, fake, tmp_path):
    program = fake("success")
    compile_edgetpu(
        model,
        compiler=program,
        min_runtime_version=13,
        search_delegate=True,
        timeout_sec=20,
    )
    *settings, out_flag, folder, path = json.loads((tmp_path / "notes").read_text())
    assert settings == ["-s", "-m", "13", "-d", "--timeout_sec", "20"]
    assert (out_flag, path) == ("-o", str(model))
    assert not pathlib.Path(folder).exists()


def test_older_compilers_get_no_timeout_by_default(model, fake, tmp_path):
    fake("success")
    compile_edgetpu(model)
    settings = json.loads((tmp_path / "notes").read_text())
    assert settings[:2] == ["-s", "-o"]


@pytest.mark.parametrize(
    "behaviour, message",
    [
        (
            "fails",
            "large activation tensors in model. Make the input or the largest layer",
        ),
        ("silent", "exit code 1 without a reason. See check_edgetpu"),
        ("crashes", "crashed (SIGSEGV)"),
        ("empty", "one output file expected, found []"),
        ("garbage", "no readable TFLite model (100 bytes)"),
        ("nothing_mapped", "nothing was mapped to the Edge TPU. Compiler: 2 QUANTIZE"),
        ("nothing_mapped", "Pass min_runtime_version=13 or higher"),
    ],
)
def test_failure_says_why_and_keeps_the_old_result(model, fake, behaviour, message):
    fake(behaviour)
    old = model.with_name("dense_edgetpu.tflite")
    old.write_bytes(b"old model")
    old.with_suffix(".log").write_text("old log")
    with pytest.raises(EdgeTPUCompilerError) as error:
        compile_edgetpu(model)
    text = str(error.value)
    assert text.startswith("edgetpu_compiler failed on 'dense.tflite': ")
    assert message in text
    assert "\n" not in text
    assert error.value.log.compiler_version == "16.0.384591198"
    assert "Edge TPU Compiler" in error.value.log.text
    assert old.read_bytes() == b"old model"
    assert old.with_suffix(".log").read_text() == "old log"
    assert len(list(model.parent.iterdir())) == 3  # No temporary folder is left.


def test_nothing_mapped_quotes_the_check(fake, tmp_path):
    fake("nothing_mapped")
    path = tmp_path / "float.tflite"
    path.write_bytes(compiled_model(on_cpu=1, mapped=False, dtype="FLOAT32"))
    with pytest.raises(EdgeTPUCompilerError) as error:
        compile_edgetpu(path)
    assert "Operation 0 RELU: nothing in the file is quantized" in str(error.value)
    assert 'tfc.export_tflite(model, path, kind="int8")' in str(error.value)


def test_hanging_compiler_is_killed_with_its_children(model, fake, tmp_path):
    fake("hangs")
    old = model.with_name("dense_edgetpu.tflite")
    old.write_bytes(b"old model")
    start = time.monotonic()
    with pytest.raises(EdgeTPUCompilerError, match="did not finish in 1 seconds"):
        compile_edgetpu(model, timeout_sec=1)
    assert time.monotonic() - start < 10
    assert old.read_bytes() == b"old model"
    assert not _runs(int((tmp_path / "notes").read_text()))


def _runs(process_id):
    stat = pathlib.Path(f"/proc/{process_id}/stat")
    for _ in range(50):
        try:
            state = stat.read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return False
        if state == "Z":  # Dead, and nobody has asked for its exit code.
            return False
        time.sleep(0.1)
    return True


def test_no_compiler_says_where_to_get_one(model, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EdgeTPUCompilerNotFound) as error:
        compile_edgetpu(model)
    for part in ("on PATH", "x86-64 Linux", "Debian", "Colab", "Docker", "compiler="):
        assert part in str(error.value)
    assert isinstance(error.value, FileNotFoundError)
    with pytest.raises(EdgeTPUCompilerNotFound, match="at '/absent/compiler'"):
        compile_edgetpu(model, compiler="/absent/compiler")


def test_program_of_another_system_is_an_error(model, tmp_path):
    program = tmp_path / "edgetpu_compiler"
    program.write_bytes(b"\x7fELF" + b"\0" * 60)
    program.chmod(0o755)
    with pytest.raises(EdgeTPUCompilerError, match="does not start"):
        compile_edgetpu(model, compiler=program)


def test_input_is_checked_before_the_compiler_runs(fake, tmp_path):
    fake("success")
    with pytest.raises(FileNotFoundError, match="No such .tflite file"):
        compile_edgetpu(tmp_path / "absent.tflite")
    compiled = tmp_path / "model_edgetpu.tflite"
    compiled.write_bytes(compiled_model())
    with pytest.raises(ValueError, match="compiled for the Edge TPU already"):
        compile_edgetpu(compiled)
    with pytest.raises(ValueError, match="Received: timeout_sec=0"):
        compile_edgetpu(MODEL, timeout_sec=0)
    assert not (tmp_path / "notes").exists()


def test_error_survives_pickling(model, fake):
    fake("fails")
    with pytest.raises(EdgeTPUCompilerError) as error:
        compile_edgetpu(model)
    copy = pickle.loads(pickle.dumps(error.value))
    assert str(copy) == str(error.value)
    assert copy.log == error.value.log
