"""Bias scales with fewer bits: smaller, and exactly the same arithmetic."""

import numpy as np
import pytest
from networks import conv_net, image_data

import tfcompress as tfc
from tfcompress.deploy import tflite
from tfcompress.deploy.files import gzip_bytes
from tfcompress.deploy.runtime import TFLiteRunner
from tfcompress.deploy.scales import round_bias_scales
from tfcompress.deploy.tflite_file import read_tflite


@pytest.fixture(scope="module")
def contents():
    """The bytes as converted, and with rounded scales."""
    kept = {}

    def keep(content):
        kept["before"], kept["after"] = content, round_bias_scales(content)
        return kept["after"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tflite, "round_bias_scales", keep)
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            qat = tfc.quantize_aware(conv_net(), calibration_data=image_data(32)[0])
            tfc.export_tflite(qat, f"{folder}/m.tflite", kind="int8")
    return kept["before"], kept["after"]


def test_every_output_is_the_same(contents, tmp_path):
    x, _ = image_data(256, seed=3)
    found = []
    for name, content in zip(("before", "after"), contents, strict=True):
        (tmp_path / name).write_bytes(content)
        found.append(TFLiteRunner(tmp_path / name).integers([x])[0])
    np.testing.assert_array_equal(*found)


def test_only_bias_scales_differ_and_by_little(contents, tmp_path):
    files = []
    for name, content in zip(("before", "after"), contents, strict=True):
        (tmp_path / name).write_bytes(content)
        files.append(read_tflite(tmp_path / name))
    changed = 0
    for old, new in zip(files[0].tensors, files[1].tensors, strict=True):
        assert (old.name, old.shape, old.buffer) == (new.name, new.shape, new.buffer)
        if old.scale is None:
            continue
        if old.dtype == "INT32":
            np.testing.assert_allclose(new.scale, old.scale, rtol=1 / 4096)
            changed += np.any(new.scale != old.scale)
        else:
            np.testing.assert_array_equal(new.scale, old.scale)
    assert changed


def test_it_is_smaller_after_gzip(contents):
    before, after = map(gzip_bytes, contents)
    assert after < before


def test_biases_of_64_bits_are_rounded_too(tmp_path):
    x = image_data(32)[0]
    qat = tfc.quantize_aware(conv_net(), "int16x8", calibration_data=x)
    result = tfc.export_tflite(qat, tmp_path / "m.tflite", kind="int16x8")
    biases = [t for t in read_tflite(result.path).tensors if t.dtype == "INT64"]
    # Those of the dense layers are zeros, which the converter leaves out.
    assert len(biases) == 2
    for bias in biases:
        fraction = np.frexp(bias.scale)[0] * 2**12
        np.testing.assert_array_equal(fraction, np.round(fraction))
