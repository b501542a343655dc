"""The demo, run short: every file it promises is there and says the truth."""

import keras
import pytest

import tfcompress as tfc
from tfcompress import demo


@pytest.mark.slow
def test_the_demo_writes_checked_files_and_a_report(tmp_path):
    lines = []
    settings = demo.Settings(
        float_epochs=2, pruning_epochs=2, quantization_epochs=1, examples=600
    )
    found = demo.run(tmp_path, settings, say=lines.append)
    said = "\n".join(lines)
    assert [m.name for m in found] == list(demo.NAMES)
    assert "integers only: yes" in said
    # ds_cnn has 12 operations; a reason follows wherever one is not certain to map.
    assert "Edge TPU: 12 of 12 operations map." in said
    assert "Edge TPU compiler: not installed" in said or "mapped." in said
    ours, base = found[3], found[1]
    # Sizes hardly depend on how long it trained.
    assert base.gzip_bytes / ours.gzip_bytes > 6
    assert ours.sparsity > 0.78
    for name in ("float32", "int8_calibrated", "ours"):
        assert (tmp_path / f"{name}.tflite").exists()
    assert (tmp_path / "ours.onnx").exists()
    assert "Spoken digits" in (tmp_path / "report.html").read_text()
    loaded = keras.models.load_model(tmp_path / "ours.keras")
    for path, _, sparsity in tfc.measure(loaded).kernels:
        wanted = 0.5 if "depthwise" in path else settings.sparsity
        assert sparsity >= wanted - 0.01, path
