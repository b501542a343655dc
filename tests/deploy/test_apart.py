"""Files that harm their runtime harm no other process."""

import os
import signal

import keras
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.deploy import apart
from tfcompress.deploy.apart import FileCrashError, FileRunError, Process
from tfcompress.deploy.tflite_file import parsed, read_tflite, serialized


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    inputs = keras.Input((6,))
    model = keras.Model(inputs, layers.Dense(4)(inputs))
    path = tmp_path_factory.mktemp("apart") / "m.tflite"
    tfc.export_tflite(model, path)
    return path


def test_a_process_that_dies_is_an_error_and_the_next_request_works(path):
    with Process() as process:
        process.ask("load", path)
        os.kill(process._popen.pid, signal.SIGKILL)
        with pytest.raises(FileCrashError, match=r"m.tflite.*\(SIGKILL\)"):
            process.ask("load", path)
        process.ask("load", path)


def test_paths_are_of_the_folder_of_now(path, tmp_path, monkeypatch):
    read_tflite(path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.tflite").write_bytes(path.read_bytes() + b"\0")
    assert tfc.measure("here.tflite").latency_ms > 0


def test_a_request_that_does_not_end_is_ended(path):
    with Process() as process:
        with pytest.raises(FileCrashError, match="did not end within 0.5 s"):
            settings = {"rounds": 1, "repeats": 1, "seconds": 60, "warmup": 0}
            process.ask(
                "turns", path, timeout_sec=0.5, settings=[("builtin", 1)], **settings
            )


def test_an_error_there_is_an_error_here_and_the_process_lives_on(path, tmp_path):
    bad = tmp_path / "bad.tflite"
    bad.write_bytes(b"nothing")
    with Process() as process:
        process.ask("load", path)
        number = process._popen.pid
        with pytest.raises(FileRunError, match="bad.tflite"):
            process.ask("load", bad)
        process.ask("load", path)
        assert process._popen.pid == number


def test_a_tensor_larger_than_all_memory_is_refused(path, tmp_path):
    model = parsed(path.read_bytes())
    for tensor in model.subgraphs[0].tensors:
        if model.buffers[tensor.buffer].data is None:
            tensor.shape = [2**15, 2**14, 6]
            tensor.shapeSignature = None
    large = tmp_path / "large.tflite"
    large.write_bytes(serialized(model))
    with pytest.raises(ValueError, match="large.tflite"):
        tfc.measure(large)
    with pytest.raises(ValueError, match="large.tflite"):
        tfc.benchmark(large, threads=1, seconds=0)


def test_a_file_that_crashes_is_damaged(path, monkeypatch):
    def crash(*args, **kwargs):
        raise FileCrashError("it is gone")

    monkeypatch.setattr(apart, "_KNOWN", {})
    monkeypatch.setattr(apart._PROCESS, "ask", crash)
    with pytest.raises(ValueError, match="Damaged TFLite model: .*m.tflite"):
        read_tflite(path)


def test_equal_contents_are_asked_about_once(path, monkeypatch):
    read_tflite(path)
    monkeypatch.setattr(apart._PROCESS, "ask", None)
    read_tflite(path)
