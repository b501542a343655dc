"""The demo, run short: every file it promises is there and says the truth."""

import keras
import numpy as np
import pytest

import tfcompress as tfc
from tfcompress import datasets, demo


@pytest.mark.slow
def test_the_demo_writes_checked_files_and_a_report(tmp_path):
    lines = []
    settings = demo.Settings(
        float_epochs=2,
        channel_epochs=1,
        pruning_epochs=2,
        quantization_epochs=1,
        examples=600,
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
    assert base.gzip_bytes / ours.gzip_bytes > 7.5
    assert ours.macs <= settings.macs * base.macs
    assert ours.sparsity > 0.6
    for name in ("float32", "int8_calibrated", "ours"):
        assert (tmp_path / f"{name}.tflite").exists()
    assert (tmp_path / "ours.onnx").exists()
    assert "Spoken digits" in (tmp_path / "report.html").read_text()
    loaded = keras.models.load_model(tmp_path / "ours.keras")
    # Small kernels and the last one have no zeros.
    kernels = tfc.measure(loaded).kernels
    pruned = [(size, share) for _, size, share in kernels if share > 0]
    total = sum(size for size, _ in pruned)
    zeros = sum(size * share for size, share in pruned) / total
    assert zeros == pytest.approx(settings.sparsity, abs=1e-3)


def test_a_seed_says_what_is_done_to_the_clips():
    train = datasets.Examples(np.ones((70, 20, 10, 1), "float32"), np.arange(70))

    def epochs(seed):
        data = demo.augmented(train, seed=seed)
        return [[x.numpy() for x, _ in data] for _ in range(2)]

    first, second = epochs(3)
    for batch, again in zip(first + second, sum(epochs(3), []), strict=True):
        np.testing.assert_array_equal(batch, again)
    assert np.abs(first[0] - second[0]).max() > 0.1
    assert np.abs(first[0] - epochs(4)[0][0]).max() > 0.1
