"""`tfc.benchmark`: what is measured, not how much (no test asserts a time)."""

import sys

import keras
import numpy as np
import pytest
from keras import layers
from networks import conv_net, image_data

import tfcompress as tfc
from tfcompress.deploy.one_operation import alone, computed_inputs
from tfcompress.deploy.tflite_file import parsed, read_tflite

# The package has the function by that name.
benchmarking = sys.modules["tfcompress.benchmark"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    keras.utils.set_random_seed(0)
    qat = tfc.quantize_aware(conv_net(), calibration_data=image_data(16)[0])
    path = tmp_path_factory.mktemp("benchmark") / "m.tflite"
    tfc.export_tflite(qat, path, kind="int8", io="float32")
    return path


def test_every_setting_is_measured_and_every_operation(path):
    result = tfc.benchmark(path, threads=(1, 2), repeats=20, seconds=0)
    found = [(x.kernels, x.threads, x.runs) for x in result.latencies]
    assert found == [
        (kernels, threads, 20)
        for kernels in ("xnnpack", "builtin")
        for threads in (1, 2)
    ]
    assert all(0 < x.median_ms <= x.p95_ms for x in result.latencies)
    names = [op.operator for op in read_tflite(path).operations]
    assert [x.operator for x in result.operations] == names
    assert sum(x.share for x in result.operations) == pytest.approx(1)
    # The tensors and the runtime, not the interpreter of Python.
    assert 2**14 < result.peak_memory_bytes < 2**27
    text = str(result)
    assert "builtin" in text and "p95, ms" in text and "each run alone" in text


@pytest.mark.slow
def test_memory_grows_with_the_model(tmp_path):
    peaks = []
    for units in (8, 4096):
        inputs = keras.Input((1024,))
        model = keras.Model(inputs, layers.Dense(units)(inputs))
        path = tfc.export_tflite(model, tmp_path / "m").path
        peaks.append(
            tfc.benchmark(
                path, threads=1, seconds=0, operations=False
            ).peak_memory_bytes
        )
    # 16 MiB of weights, which XNNPACK packs once more.
    assert peaks[1] - peaks[0] > 16 * 2**20


def test_an_operation_alone_computes_what_it_does_in_the_file(path):
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    x, _ = image_data(1, seed=3)
    plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    whole = Interpreter(
        model_path=str(path),
        experimental_op_resolver_type=plain,
        experimental_preserve_all_tensors=True,
    )
    whole.allocate_tensors()
    whole.set_tensor(whole.get_input_details()[0]["index"], x)
    whole.invoke()
    model = parsed(path.read_bytes())
    for index, operation in enumerate(read_tflite(path).operations):
        part = Interpreter(
            model_content=alone(model, index), experimental_op_resolver_type=plain
        )
        part.allocate_tensors()
        numbers = computed_inputs(model, index)
        for details, number in zip(part.get_input_details(), numbers, strict=True):
            part.set_tensor(details["index"], whole.get_tensor(number))
        part.invoke()
        np.testing.assert_array_equal(
            part.get_tensor(part.get_output_details()[0]["index"]),
            whole.get_tensor(operation.outputs[0].index),
        )


@pytest.mark.slow
def test_an_operation_that_runs_others_has_no_time_of_its_own(tmp_path):
    inputs = keras.Input((3, 4))
    model = keras.Model(inputs, layers.LSTM(5)(inputs))
    path = tfc.export_tflite(model, tmp_path / "m").path
    result = tfc.benchmark(path, threads=1, repeats=5, seconds=0)
    by_name = {x.operator: x.median_ms for x in result.operations}
    assert by_name.pop("WHILE") is None
    assert any(by_name.values())


# Energy: counters of a machine that has them, by hand.


def package(folder, name, energy, wrap=1000):
    (folder / name).mkdir(exist_ok=True)
    (folder / name / "energy_uj").write_text(f"{energy}\n")
    (folder / name / "max_energy_range_uj").write_text(f"{wrap}\n")


def test_counters_of_packages_are_added_and_may_start_anew(tmp_path):
    package(tmp_path, "intel-rapl:0", 900)
    package(tmp_path, "intel-rapl:1", 10)
    package(tmp_path, "intel-rapl:0:0", 5)
    before = benchmarking._counters(tmp_path)
    package(tmp_path, "intel-rapl:0", 100)
    package(tmp_path, "intel-rapl:1", 60)
    package(tmp_path, "intel-rapl:0:0", 500)
    after = benchmarking._counters(tmp_path)
    grown = benchmarking._growth(before, after)
    assert grown == {"intel-rapl:0": 200, "intel-rapl:1": 50}


def test_energy_is_of_one_inference(path, tmp_path, monkeypatch):
    readings = iter(
        [{"intel-rapl:0": (0, 10**9)}, {"intel-rapl:0": (5 * 10**6, 10**9)}]
    )
    monkeypatch.setattr(benchmarking, "_counters", lambda: next(readings))

    class Ten:
        def ask(self, *args, **kwargs):
            return [[0.1] * 10]

    # Five joules in ten inferences.
    assert benchmarking._energy_mj(Ten(), path, ("xnnpack", 1), 1.0) == 500


def test_energy_is_not_known_where_counters_go_away(path, monkeypatch):
    readings = iter([{"intel-rapl:0": (0, 10**9)}, {}])
    monkeypatch.setattr(benchmarking, "_counters", lambda: next(readings))

    class One:
        def ask(self, *args, **kwargs):
            return [[0.1]]

    assert benchmarking._energy_mj(One(), path, ("xnnpack", 1), 1.0) is None


def test_counters_that_are_not_there_or_not_ours(path, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmarking, "_POWERCAP", str(tmp_path))
    assert benchmarking._counters() == {}
    package(tmp_path, "intel-rapl:0", "denied")
    assert benchmarking._counters() == {}
    result = tfc.benchmark(path, threads=1, repeats=2, seconds=0, operations=False)
    assert result.energy_mj is None and "energy: not available" in str(result)


# Bad input.


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"threads": 0}, "`threads` must be whole numbers from 1. Received: .0."),
        ({"threads": []}, "`threads` must be"),
        ({"kernels": "gpu"}, "`kernels` must be of"),
        ({"repeats": 0}, "`repeats` must be 1 or more"),
        ({"seconds": -1}, "seconds=-1"),
    ],
)
def test_arguments_out_of_place(path, settings, error):
    with pytest.raises(ValueError, match=error):
        tfc.benchmark(path, **settings)


def test_files_that_cannot_be_run(path, tmp_path):
    with pytest.raises(FileNotFoundError, match="No such .tflite file"):
        tfc.benchmark(tmp_path / "none.tflite")
    cut = tmp_path / "cut.tflite"
    cut.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ValueError, match="cut.tflite"):
        tfc.benchmark(cut)
