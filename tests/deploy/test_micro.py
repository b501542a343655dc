"""TFLite Micro: operators by name, memory, and the same integers as LiteRT."""

import pathlib
import re

import keras
import numpy as np
import pytest
from small_files import copy_of, examples, small_files

import tfcompress as tfc
from tfcompress.deploy import micro
from tfcompress.deploy.programs import installed
from tfcompress.deploy.runtime import TFLiteRunner, quantize
from tfcompress.deploy.tflite_file import Operation, TFLiteFile, read_tflite, schema

needs_micro = pytest.mark.skipif(
    not installed("tflite_micro"), reason="needs the extra micro (tflite-micro)"
)


def file_of(*operators, custom=False):
    operations = tuple(
        Operation(i, name, 1, (), (), {}, custom) for i, name in enumerate(operators)
    )
    return TFLiteFile("m.tflite", 0, operations, (), (), ())


def test_the_calls_are_named_as_in_the_resolver():
    file = file_of(
        "CONV_2D",
        "DEPTHWISE_CONV_2D",
        "CONV_2D",
        "CUMSUM",
        "PADV2",
        "RELU6",
        "UNIDIRECTIONAL_SEQUENCE_LSTM",
        "L2_POOL_2D",
        "BATCH_MATMUL",
        "SPACE_TO_BATCH_ND",
    )
    # As they are spelled in micro_mutable_op_resolver.h.
    assert micro.resolver_calls(file) == (
        "AddBatchMatMul",
        "AddConv2D",
        "AddCumSum",
        "AddDepthwiseConv2D",
        "AddL2Pool2D",
        "AddPadV2",
        "AddRelu6",
        "AddSpaceToBatchNd",
        "AddUnidirectionalSequenceLSTM",
    )
    assert micro.resolver_calls(file_of("ethos-u", custom=True)) == ("AddEthosU",)


@needs_micro
def test_each_name_is_an_operator_with_a_kernel_in_the_real_library():
    import tflite_micro

    library = next(pathlib.Path(tflite_micro.__path__[0]).rglob("_runtime*.so"))
    kernels = set(re.findall(rb"Register_([A-Z0-9_]+?)Ev", library.read_bytes()))
    builtin = {
        name.replace("_", "").lower(): name
        for name, value in vars(schema().BuiltinOperator).items()
        if isinstance(value, int)
    }
    missing = [n for n in micro._BY_OPERATOR if builtin[n].encode() not in kernels]
    assert not missing
    # And no kernel for an operator of TFLite is forgotten.
    names = {k.decode() for k in kernels} & set(builtin.values())
    assert names == {builtin[n] for n in micro._BY_OPERATOR}


def test_an_operator_without_a_kernel_is_named():
    with pytest.raises(ValueError, match="no kernel for GELU, TOPK_V2"):
        micro.resolver_calls(file_of("CONV_2D", "TOPK_V2", "GELU"))
    with pytest.raises(ValueError, match="no kernel for MyOp"):
        micro.resolver_calls(file_of("MyOp", custom=True))


@needs_micro
@pytest.mark.parametrize("name", ["int8", "uint8", "float"])
def test_it_computes_what_litert_does(name):
    path = small_files() / f"{name}.tflite"
    runner = TFLiteRunner(path)
    x = examples(8, seed=1)
    run = micro.run_micro(path, [quantize(x, runner.inputs[0])], repeats=3)
    expected = runner.integers([x])[0]
    assert run.outputs[0].dtype == expected.dtype
    assert run.outputs[0].shape == expected.shape == (8, 3)
    # The portable kernels round as LiteRT's builtin ones, those of XNNPACK may be off
    # by one step of 1/256.
    limit = 1e-5 if name == "float" else 1
    assert np.abs(run.outputs[0].astype(float) - expected).max() <= limit
    assert len(np.unique(run.outputs[0][:, 0])) > 1 and run.milliseconds > 0


@needs_micro
def test_the_arena_holds_the_two_largest_neighbours():
    run = micro.run_micro(small_files() / "int8.tflite")
    # The input and the output of the convolution live together; all else is smaller.
    assert run.arena_bytes >= 8 * 8 * 3 + 6 * 6 * 8
    assert run.arena_bytes < 8000
    assert np.isnan(run.milliseconds)


@needs_micro
def test_the_arena_is_the_least_that_the_interpreter_takes():
    from tflite_micro import runtime

    path = str(small_files() / "int8.tflite")
    arena = micro.run_micro(path).arena_bytes
    assert arena % 16 == 0
    assert runtime.Interpreter.from_file(path, arena_size=arena)
    with pytest.raises(RuntimeError):
        runtime.Interpreter.from_file(path, arena_size=arena - 16)


@needs_micro
@pytest.mark.slow
def test_arenas_that_end_the_interpreters_process_are_too_small(tmp_path):
    # Of this network it crashes with some that it should refuse.
    x = np.random.default_rng(0).normal(size=(32, 49, 10, 1)).astype("float32")
    qat = tfc.quantize_aware(tfc.zoo.ds_cnn(), calibration_data=x)
    path = tfc.export_tflite(qat, tmp_path / "m.tflite", kind="int8").path
    # Two layers of 25 x 5 x 64 and what each operation is told.
    assert 2 * 25 * 5 * 64 < micro.run_micro(path).arena_bytes < 40_000


@needs_micro
def test_a_file_that_it_cannot_run_is_an_error_and_no_crash(tmp_path, monkeypatch):
    path = copy_of("int8.tflite", tmp_path)
    monkeypatch.setattr(micro, "_LARGEST_ARENA", 64)
    with pytest.raises(ValueError, match=r"cannot run '.*int8.tflite': .*alloc"):
        micro.run_micro(path)
    crash = tmp_path / "child.py"
    crash.write_text("import os; os.abort()")
    monkeypatch.setattr(micro, "_CHILD", crash)
    with pytest.raises(ValueError, match=r"it ended its process \(SIGABRT\)"):
        micro.run_micro(path)
    crash.write_text("import time; time.sleep(60)")
    with pytest.raises(ValueError, match="did not finish in 1 seconds"):
        micro.run_micro(path, timeout_sec=1)


def test_without_the_package_the_error_names_the_extra(monkeypatch):
    monkeypatch.setattr(micro, "installed", lambda module: False)
    with pytest.raises(ImportError, match=r"tfcompress\[micro\]"):
        micro.run_micro(small_files() / "int8.tflite")


@needs_micro
def test_inputs_that_do_not_fit():
    with pytest.raises(ValueError, match=r"must be 1 array\(s\). Received: 2"):
        micro.run_micro(small_files() / "int8.tflite", [np.zeros(3), np.zeros(3)])


def test_the_child_does_not_import_this_package():
    assert "import tfcompress" not in micro._CHILD.read_text()
    assert "from tfcompress" not in micro._CHILD.read_text()
    assert len(read_tflite(small_files() / "int8.tflite").operations) == 4


def test_operators_of_loops_are_registered_too(tmp_path):
    layers = keras.layers
    model = keras.Sequential([keras.Input((5, 3)), layers.LSTM(4), layers.Dense(2)])
    path = tfc.export_tflite(model, tmp_path / "m.tflite").path
    calls = micro.resolver_calls(read_tflite(path))
    assert {"AddWhile", "AddLogistic", "AddTanh", "AddLess"} <= set(calls)
