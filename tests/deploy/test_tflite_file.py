"""Reading `.tflite` files, damaged ones included."""

import os

import numpy as np
import pytest
from networks import conv_net, image_data

import tfcompress as tfc
from tfcompress.deploy.tflite_file import Tensor, pack_int4, read_tflite


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / "model.tflite"
    qat = tfc.quantize_aware(conv_net(), calibration_data=image_data(16)[0])
    tfc.export_tflite(qat, path, kind="int8")
    return path


@pytest.mark.slow
def test_it_sees_what_the_interpreter_sees(path):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path))
    details = {d["index"]: d for d in interpreter.get_tensor_details()}
    for tensor in read_tflite(path).used_tensors():
        expected = details[tensor.index]
        assert tensor.name == expected["name"]
        assert tensor.shape == tuple(expected["shape"])
        assert tensor.dtype.lower() == np.dtype(expected["dtype"]).name
        if tensor.scale is not None:
            parameters = expected["quantization_parameters"]
            np.testing.assert_array_equal(tensor.scale, parameters["scales"])
            np.testing.assert_array_equal(tensor.zero_point, parameters["zero_points"])


def test_operations_come_in_order_of_execution(path):
    known = {t.index for t in read_tflite(path).inputs}
    for operation in read_tflite(path).operations:
        assert all(t.constant or t.index in known for t in operation.inputs if t)
        known |= {t.index for t in operation.outputs}


@pytest.mark.parametrize("size", [6, 7])
def test_four_bit_constants_come_one_a_number(size):
    integers = np.random.default_rng(0).integers(-8, 8, (size, 3)).astype(np.int8)
    packed = bytes(pack_int4(integers))
    tensor = Tensor(0, "w", (size, 3), "INT4", buffer=packed)
    assert tensor.value().dtype == np.int8
    np.testing.assert_array_equal(tensor.value(), integers)
    tensor = Tensor(0, "w", (size, 3), "INT4", buffer=packed[:-1])
    with pytest.raises(ValueError, match="Cannot read the constant 'w'"):
        tensor.value()


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="No such .tflite file"):
        read_tflite(tmp_path / "none.tflite")


@pytest.mark.parametrize("share", [0.02, 0.5, 0.999])
def test_a_truncated_file(path, tmp_path, share):
    content = path.read_bytes()
    cut = tmp_path / "cut.tflite"
    cut.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match="truncated or was altered|Not a TFLite model"):
        read_tflite(cut)


@pytest.mark.parametrize("prefix", [b"", b"\x1c\x00\x00\x00TFL3"])
def test_random_bytes(tmp_path, prefix):
    rng = np.random.default_rng(0)
    for number in range(20):
        file = tmp_path / f"{number}.tflite"
        file.write_bytes(prefix + rng.bytes(2000))
        with pytest.raises(ValueError, match="TFLite model"):
            read_tflite(file)


def test_an_empty_file(tmp_path):
    file = tmp_path / "empty.tflite"
    file.touch()
    with pytest.raises(ValueError, match="lacks the identifier"):
        read_tflite(file)


def test_altered_bytes_are_an_error_or_another_model_but_no_crash(path, tmp_path):
    content = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    file = tmp_path / "altered.tflite"
    for _ in range(100):
        altered = bytearray(content)
        for position in rng.integers(8, len(content), 8):
            altered[position] = rng.integers(256)
        file.write_bytes(altered)
        try:
            read_tflite(file)
        except ValueError as error:
            assert os.fspath(file) in str(error)
