"""`tfc.pack` and `tfc.unpack`: the same file again, and clear errors."""

import hashlib
import io
import lzma
import struct
import tracemalloc
import zipfile

import h5py
import keras
import numpy as np
import pytest
from keras import layers
from networks import image_data

import tfcompress as tfc
from tfcompress.deploy import coded_tensors, container
from tfcompress.numerics import masks


def _model():
    """Pruned and clustered, of some thousand weights."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(32, 3, activation="relu")(inputs)
    x = layers.Conv2D(64, 3, activation="relu")(x)
    x = layers.Dense(32)(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, layers.Dense(3)(x))
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if hasattr(layer, "kernel"):
            kernel = rng.normal(0, 0.1, layer.kernel.shape).astype("float32")
            layer.kernel.assign(kernel * masks.magnitude_mask(kernel, 0.8))
    return tfc.cluster(model, 16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A clustered model as int8 and float32 `.tflite` and as `.keras`."""
    folder = tmp_path_factory.mktemp("pack")
    model = _model()
    x, _ = image_data(16)
    qat = tfc.quantize_aware(model, calibration_data=x)
    tfc.export_tflite(qat, folder / "int8.tflite", kind="int8")
    tfc.export_tflite(model, folder / "float.tflite")
    tfc.strip(model).save(folder / "plain.keras")
    model.save(folder / "clustered.keras")
    tfc.pack(folder / "int8.tflite", folder / "int8.tfcpack")
    return folder


@pytest.mark.parametrize(
    "name", ["int8.tflite", "float.tflite", "plain.keras", "clustered.keras"]
)
def test_the_same_bytes_come_back(folder, tmp_path, name):
    content = (folder / name).read_bytes()
    packed = tfc.pack(folder / name, tmp_path / "p")
    assert packed.bytes == (tmp_path / "p").stat().st_size
    assert packed.original_bytes == len(content)
    assert packed.kind in name and packed.kind in str(packed)
    out = tmp_path / name
    unpacked = tfc.unpack(tmp_path / "p", out)
    assert out.read_bytes() == content
    assert unpacked.bytes == len(content)
    digest = hashlib.sha256(content).hexdigest()
    assert unpacked.sha256 == packed.sha256 == digest
    # What has random latent weights does not get much smaller.
    if name != "clustered.keras":
        assert packed.bytes < packed.gzip_bytes
        assert packed.bytes < len(lzma.compress(content, preset=9))


def test_a_pruned_and_clustered_file_is_far_below_gzip(folder):
    packed = (folder / "int8.tfcpack").stat().st_size
    measured = tfc.measure(folder / "int8.tflite")
    assert packed < 0.8 * measured.gzip_bytes


def test_a_model_goes_in_stripped(tmp_path):
    model = _model()
    x, _ = image_data(8)
    assert tfc.pack(model, tmp_path / "p").kind == ".keras"
    tfc.unpack(tmp_path / "p", tmp_path / "m.keras")
    back = keras.models.load_model(tmp_path / "m.keras", safe_mode=True)
    # 1e-5: the same arithmetic, of which TensorFlow may fuse other parts.
    np.testing.assert_allclose(
        back.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-5
    )
    assert all(type(v).__module__.startswith("keras.") for v in back.layers)


def test_a_fitted_model_goes_in_without_its_optimizer_and_stays_fitted(tmp_path):
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(40)], name="inner")
    inner.compile("adam", "mse")
    inputs = keras.Input((6,))
    model = keras.Model(inputs, layers.Dense(4)(inner(inputs)))
    x, y = np.ones((8, 6), "float32"), np.ones((8, 4), "float32")

    def own_loss(true, predicted):
        return keras.ops.mean((true - predicted) ** 2)

    model.compile("adam", own_loss, metrics=["mae"])
    model.fit(x, y, verbose=0)
    packed = tfc.pack(model, tmp_path / "p")
    assert packed.original_bytes < 4 * 3 * model.count_params() + 20_000
    tfc.unpack(tmp_path / "p", tmp_path / "m.keras")
    with zipfile.ZipFile(tmp_path / "m.keras") as archive:
        config = archive.read("config.json").decode()
        weights = io.BytesIO(archive.read("model.weights.h5"))
    assert "own_loss" not in config and "Adam" not in config
    stored = []
    with h5py.File(weights) as file:
        file.visititems(
            lambda path, item: stored.append(item) if hasattr(item, "shape") else None
        )
        assert sum(item.size for item in stored) == model.count_params()
    back = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(
        back.predict(x, verbose=0), model.predict(x, verbose=0)
    )
    assert model.compiled and inner.compiled and model.optimizer.iterations == 1
    model.fit(x, y, verbose=0)
    assert model.optimizer.iterations == 2
    assert set(model.evaluate(x, y, verbose=0, return_dict=True)) == {"loss", "mae"}


def test_a_container_does_not_replace_or_pass_for_a_model(folder, tmp_path):
    content = (folder / "plain.keras").read_bytes()
    same, linked = tmp_path / "m.keras", tmp_path / "link"
    same.write_bytes(content)
    linked.hardlink_to(same)
    for path in (same, linked):
        with pytest.raises(ValueError, match="would replace the model in it"):
            tfc.pack(same, path)
    for name in ("other.keras", "other.tflite"):
        with pytest.raises(ValueError, match="must not end in .tflite or .keras"):
            tfc.pack(same, tmp_path / name)
    assert same.read_bytes() == content
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "m.keras"]


@pytest.mark.parametrize(
    ("gaps", "text"),
    [(1_000_000, "a file of 64 bytes comes from"), (65, "more gaps than values")],
)
def test_a_header_made_to_fill_the_memory(tmp_path, gaps, text):
    entry = coded_tensors._ENTRY.pack(0, 1, 64, 1, 0, gaps)
    parts = coded_tensors.Parts(b"", entry, bytes(3), b"\xff" * gaps, b"")
    hostile = tmp_path / "hostile"
    hostile.write_bytes(container.written(bytes(64), ".tflite", parts))
    assert hostile.stat().st_size < 10_000
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=text):
            tfc.unpack(hostile, tmp_path / "m.tflite")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000
    assert not (tmp_path / "m.tflite").exists()


def _weights_of_every_kind():
    rng = np.random.default_rng(0)
    for size in (64, 70, 20_000):
        for zeros in (0.0, 0.5, 0.95, 1.0):
            for dtype in ("int8", "float32"):
                values = rng.integers(-4, 5, (size // 2, 2)) * rng.choice((1, 9), 2)
                values[rng.random(values.shape) < zeros] = 0
                yield values.astype(dtype)
    # A codebook for each of many short rows is larger than the rows.
    yield np.repeat(rng.integers(-128, 128, (3_000, 1)), 2, 1).astype("int8")
    yield rng.integers(0, 2, (3_000, 1)).astype("int8")


def test_every_legitimate_container_is_within_the_limit():
    for array in _weights_of_every_kind():
        for axis in (None, 0, 1):
            content = array.tobytes()
            stored = [coded_tensors.StoredTensor(array, axis)]
            parts = coded_tensors.take_out(content, stored)
            assert sum(map(len, parts)) <= 2 * len(content)
            packed = container.written(content, ".tflite", parts)
            assert container.read(packed, "p", len(content))[0] == content


def test_damage_anywhere_is_found_and_an_old_file_stays(folder, tmp_path):
    packed = (folder / "int8.tfcpack").read_bytes()
    old, damaged = tmp_path / "old.tflite", tmp_path / "damaged"
    old.write_bytes(b"old")
    places = {*range(60), *range(60, len(packed), len(packed) // 60), len(packed) - 1}
    for place in places:
        changed = bytearray(packed)
        changed[place] ^= 0x41
        damaged.write_bytes(changed)
        with pytest.raises(ValueError, match="damaged|no file that|version|cut off"):
            tfc.unpack(damaged, old)
    for size in (0, 5, 8, 50, len(packed) // 2, len(packed) - 1):
        damaged.write_bytes(packed[:size])
        with pytest.raises(ValueError, match="cut off|no file that"):
            tfc.unpack(damaged, old)
    damaged.write_bytes(packed + b"x")
    with pytest.raises(ValueError, match="something behind it"):
        tfc.unpack(damaged, old)
    assert old.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["damaged", "old.tflite"]


def test_a_newer_version_and_a_size_beyond_the_limit(folder, tmp_path):
    packed = bytearray((folder / "int8.tfcpack").read_bytes())
    packed[8:10] = struct.pack("<H", 2)
    newer = tmp_path / "newer"
    newer.write_bytes(packed)
    with pytest.raises(ValueError, match="of version 2 .* reads version 1"):
        tfc.unpack(newer, tmp_path / "m.tflite")
    with pytest.raises(ValueError, match="Received: max_bytes=100"):
        tfc.unpack(folder / "int8.tfcpack", tmp_path / "m.tflite", max_bytes=100)


def test_what_cannot_be_packed_or_unpacked(folder, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"neither of them")
    (tmp_path / "bad.tflite").write_bytes(b"\0\0\0\0TFL3 and nothing")
    for model, error, text in (
        (tmp_path / "a.txt", ValueError, "neither a .tflite nor a .keras"),
        (tmp_path / "bad.tflite", ValueError, "Damaged TFLite model"),
        (tmp_path / "none.tflite", FileNotFoundError, "No such file"),
        (3, TypeError, "must be the path"),
    ):
        with pytest.raises(error, match=text):
            tfc.pack(model, tmp_path / "p")
    with pytest.raises(FileNotFoundError, match="No such packed file"):
        tfc.unpack(tmp_path / "none", tmp_path / "m.tflite")
    with pytest.raises(ValueError, match="holds a .tflite file"):
        tfc.unpack(folder / "int8.tfcpack", tmp_path / "m.keras")
    assert not (tmp_path / "p").exists()
