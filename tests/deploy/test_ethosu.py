"""Compiling for Arm Ethos-U with the real Vela, and with one that misbehaves."""

import pathlib
import shlex
import sys

import numpy as np
import pytest
from keras import Input, Model, layers, ops
from small_files import copy_of, small_files

import tfcompress as tfc
from tfcompress.deploy import ethosu
from tfcompress.deploy.ethosu import EthosUCompilerError, EthosUCompilerNotFound
from tfcompress.deploy.programs import installed
from tfcompress.deploy.tflite_file import read_tflite

U55 = {"accelerator": "ethos-u55-128", "memory_mode": "Shared_Sram"}
needs_vela = pytest.mark.skipif(
    not installed("ethosu.vela"), reason="needs the extra ethosu (ethos-u-vela)"
)


@needs_vela
def test_an_integer_file_is_wholly_on_the_npu(tmp_path):
    path = copy_of("int8.tflite", tmp_path / "my models")
    result = tfc.compile_ethosu(path, **U55)
    output = path.with_name("int8_vela.tflite")
    assert result.path == str(output) and result.bytes == output.stat().st_size
    assert [op.operator for op in read_tflite(output).operations] == ["ethos-u"]
    assert (result.npu_count, result.cpu_count) == (4, 0)
    assert result.npu_share == 1 and result.cpu_operations == ()
    assert "Network summary" in pathlib.Path(result.log_path).read_text()
    assert result.compiler_version and "4 of 4 operations" in str(result)
    # 36 positions of the 3x3x3x8 convolution, and the 8x3 classifier; Vela adds the
    # pooling, which it computes as a convolution over 36 positions of 8 channels.
    convolutions = 36 * 27 * 8 + 24
    assert convolutions <= result.figures.macs <= convolutions + 2 * 36 * 8
    assert result.figures.weight_bytes >= 27 * 8 + 24
    assert 0 < result.figures.encoded_weight_bytes < 4000
    assert result.figures.npu_cycles <= result.figures.total_cycles
    expected = 1000 * result.figures.total_cycles / result.figures.clock_hz
    assert result.figures.inference_ms == pytest.approx(expected)
    assert result.figures.sram_bytes >= 8 * 8 * 3
    assert sorted(p.name for p in path.parent.iterdir()) == [
        "int8.tflite",
        "int8_vela.log",
        "int8_vela.tflite",
    ]


@needs_vela
def test_the_result_of_a_link_is_beside_it(tmp_path):
    link = tmp_path / "link.tflite"
    link.symlink_to(copy_of("int8.tflite", tmp_path / "store"))
    result = tfc.compile_ethosu(link, **U55)
    assert result.path == str(tmp_path / "link_vela.tflite")
    assert len(list((tmp_path / "store").iterdir())) == 1


@needs_vela
def test_another_accelerator_and_board(tmp_path):
    path = copy_of("int8.tflite", tmp_path)
    config = tmp_path / "board.ini"
    text = _arm_config().read_text()
    config.write_text(text.replace("Ethos_U85_SYS_DRAM_Low", "My_Board"))
    result = tfc.compile_ethosu(
        path,
        tmp_path / "new" / "folder",
        accelerator="ethos-u85-256",
        memory_mode="Dedicated_Sram_384KB",
        system_config="My_Board",
        optimise="Size",
        config=config,
    )
    assert pathlib.Path(result.path).parent == tmp_path / "new" / "folder"
    assert result.figures.system_config == "My_Board"
    assert result.figures.memory_mode == "Dedicated_Sram_384KB"
    assert result.npu_share == 1


def _arm_config():
    import ethosu as package

    return pathlib.Path(next(iter(package.__path__))) / "config_files/Arm/vela.ini"


@needs_vela
def test_what_stays_on_the_cpu_is_named_with_the_reason(tmp_path):
    inputs = Input((8, 8, 3))
    x = ops.cumsum(layers.Conv2D(8, 3)(inputs), axis=1)
    model = Model(inputs, layers.Conv2D(3, 3)(x))
    path = tmp_path / "m.tflite"
    data = np.random.default_rng(0).normal(size=(16, 8, 8, 3))
    tfc.export_tflite(
        model, path, kind="int8", calibration_data=data, allow_float=["CUMSUM"]
    )
    result = tfc.compile_ethosu(path, **U55)
    assert (result.npu_count, result.cpu_count) == (2, 3)
    reasons = {op.operator: op.reason for op in result.cpu_operations}
    assert sorted(reasons) == ["CUMSUM", "DEQUANTIZE", "QUANTIZE"]
    assert reasons["CUMSUM"] == "Unsupported opType"
    assert "unsupported DataType Float32" in reasons["QUANTIZE"]
    assert "on the CPU: CUMSUM" in str(result)


@needs_vela
def test_a_float_file_is_refused_with_velas_reason(tmp_path):
    path = copy_of("float.tflite", tmp_path)
    old = tmp_path / "float_vela.tflite"
    old.write_bytes(b"old")
    with pytest.raises(EthosUCompilerError, match="nothing is on the NPU") as error:
        tfc.compile_ethosu(path, **U55)
    assert "unsupported DataType Float32" in str(error.value)
    assert 'kind="int8"' in str(error.value)
    assert "CPU operators = 4" in error.value.log
    assert old.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2


@needs_vela
def test_velas_own_error_is_passed_on_in_one_line(tmp_path):
    path = copy_of("int8.tflite", tmp_path)
    with pytest.raises(EthosUCompilerError) as error:
        tfc.compile_ethosu(path, **U55, system_config="Nonsense")
    assert "--system-config=Nonsense" in str(error.value)
    assert "Traceback" in error.value.log and "\n" not in str(error.value)


@needs_vela
def test_a_compiled_file_is_not_compiled_again(tmp_path):
    result = tfc.compile_ethosu(copy_of("int8.tflite", tmp_path), **U55)
    with pytest.raises(ValueError, match="compiled for the Ethos-U already"):
        tfc.compile_ethosu(result.path, **U55)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"accelerator": "ethos-u55-512"}, "Received: accelerator='ethos-u55-512'"),
        ({"memory_mode": "SRAM"}, "Received: memory_mode='SRAM'"),
        ({"memory_mode": "Dedicated_Sram"}, "An Ethos-U55 has no DRAM"),
        ({"optimise": "speed"}, "Received: 'speed'"),
        ({"timeout_sec": 0}, "must be positive"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_wrong_choices(settings, message, tmp_path):
    path = copy_of("int8.tflite", tmp_path)
    with pytest.raises(ValueError, match=message):
        tfc.compile_ethosu(path, **(U55 | settings))


def test_the_accelerator_must_be_said():
    with pytest.raises(TypeError, match="accelerator"):
        tfc.compile_ethosu("model.tflite")


def test_a_damaged_file_never_reaches_the_compiler(tmp_path):
    # Vela 5.2 ends with a segmentation fault on this one.
    path = copy_of("int8.tflite", tmp_path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="int8.tflite"):
        tfc.compile_ethosu(path, **U55)
    with pytest.raises(FileNotFoundError, match="No such Vela configuration"):
        tfc.compile_ethosu(path, **U55, config=tmp_path / "absent.ini")


def test_without_vela_the_error_names_the_extra(tmp_path, monkeypatch):
    path = copy_of("int8.tflite", tmp_path)
    monkeypatch.setattr(ethosu, "installed", lambda module: False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EthosUCompilerNotFound, match=r"tfcompress\[ethosu\]"):
        tfc.compile_ethosu(path, **U55)
    with pytest.raises(EthosUCompilerNotFound, match="at '/absent/vela'"):
        tfc.compile_ethosu(path, **U55, compiler="/absent/vela")


SUMMARY = "system_config,memory_mode,core_clock\nA,B,fast\n"
COPY = "shutil.copy(model, out + '/int8_vela.tflite')"
BEHAVIOURS = {
    "hangs": ("time.sleep(60)", "did not finish in 1 seconds"),
    "crashes": ("os.kill(os.getpid(), 11)", r"it crashed \(SIGSEGV\)"),
    "says nothing": ("sys.exit(3)", "exit code 3 without a reason"),
    "raises": ("raise ValueError('no luck')", "ValueError: no luck"),
    "writes nothing": ("", "one model and one summary expected, found"),
    "writes garbage": (
        "open(out + '/int8_vela.tflite', 'w').write('x' * 99);"
        f"open(out + '/a_summary_b.csv', 'w').write({SUMMARY!r})",
        "its output is not readable: Not a TFLite model",
    ),
    "reports garbage": (
        f"{COPY}; open(out + '/a_summary_b.csv', 'w').write({SUMMARY!r})",
        "its output is not readable: Vela's summary is not",
    ),
}


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_a_failure_says_why_and_keeps_the_old_result(behaviour, tmp_path):
    code, message = BEHAVIOURS[behaviour]
    script = tmp_path / "script.py"
    script.write_text(
        "import os, shutil, sys, time\n"
        "out, model = sys.argv[sys.argv.index('--output-dir') + 1], sys.argv[-1]\n"
        f"{code}\n"
    )
    program = tmp_path / "vela"
    program.write_text(
        f'#!/bin/sh\nexec {shlex.join([sys.executable, str(script)])} "$@"\n'
    )
    program.chmod(0o755)
    path = copy_of("int8.tflite", tmp_path / "models")
    old = path.with_name("int8_vela.tflite")
    old.write_bytes(b"old")
    with pytest.raises(EthosUCompilerError, match=message) as error:
        tfc.compile_ethosu(
            path, **U55, compiler=program, timeout_sec=1 if code[:4] == "time" else 60
        )
    assert str(error.value).startswith("Vela failed on 'int8.tflite': ")
    assert old.read_bytes() == b"old"
    assert sorted(p.name for p in path.parent.iterdir()) == [
        "int8.tflite",
        "int8_vela.tflite",
    ]


def test_a_result_that_cannot_be_replaced_costs_nothing(tmp_path):
    path = copy_of("int8.tflite", tmp_path)
    (tmp_path / "int8_vela.log").write_text("old")
    (tmp_path / "int8_vela.tflite").mkdir()
    with pytest.raises(IsADirectoryError):
        tfc.compile_ethosu(path, **U55)
    assert (tmp_path / "int8_vela.log").read_text() == "old"


def test_a_folder_that_is_a_file(tmp_path):
    path = copy_of("int8.tflite", tmp_path)
    with pytest.raises(NotADirectoryError, match="`out_dir` must be a folder"):
        tfc.compile_ethosu(path, path, **U55)


def test_a_folder_that_cannot_be_made():
    with pytest.raises(OSError):
        tfc.compile_ethosu(small_files() / "int8.tflite", "/proc/none", **U55)
