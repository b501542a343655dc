"""Metadata: what Android's tools would read, and a file that still runs."""

import zipfile

import keras
import numpy as np
import pytest
from keras import layers
from networks import conv_net, image_data

import tfcompress as tfc
from tfcompress.deploy import metadata_table
from tfcompress.deploy.runtime import TFLiteRunner
from tfcompress.deploy.tflite_file import parsed, read_tflite

LABELS = ("red", "green", "blau ü")


def full(**changes):
    """Every field, with values that float32 holds exactly."""
    settings = {
        "name": "Colours",
        "description": "Which colour is brightest",
        "version": "1.2",
        "author": "us",
        "license": "Apache-2.0",
        "inputs": [
            tfc.TensorMetadata(
                "picture", "A picture", (127.5,) * 3, (0.25, 2.0, 64.0), 0, 255, "rgb"
            )
        ],
        "outputs": [tfc.TensorMetadata(description="Scores", labels=LABELS)],
        "files": {"notes.md": b"# Notes"},
    }
    return tfc.Metadata(**{**settings, **changes})


@pytest.fixture(scope="module")
def qat():
    return tfc.quantize_aware(conv_net(), calibration_data=image_data(16)[0])


@pytest.fixture(scope="module")
def path(qat, tmp_path_factory):
    path = tmp_path_factory.mktemp("metadata") / "model.tflite"
    tfc.export_tflite(qat, path, kind="int8", metadata=full())
    return path


def test_what_is_written_is_read(path):
    found = tfc.read_metadata(path)
    outputs = [
        tfc.TensorMetadata("classifier", description="Scores", labels=LABELS),
    ]
    assert found == full(outputs=outputs)
    text = str(found)
    assert "Colours 1.2" in text and "3 labels: red, green" in text
    assert "picture; A picture; rgb; mean 127.5" in text and "notes.md: 7" in text


def test_the_file_runs_as_without_and_is_still_checked(qat, path, tmp_path):
    x, _ = image_data(32)
    bare = tfc.export_tflite(qat, tmp_path / "bare", kind="int8")
    result = tfc.export_tflite(qat, tmp_path / "m", kind="int8", metadata=full())
    assert result.fully_integer and result.operators == bare.operators
    assert 0 < result.bytes - bare.bytes < 2000
    np.testing.assert_array_equal(
        TFLiteRunner(result.path).integers([x]), TFLiteRunner(bare.path).integers([x])
    )
    assert tfc.read_metadata(bare.path) is None
    # Of no date: the same again is the same file.
    before = (tmp_path / "m").read_bytes()
    tfc.write_metadata(tmp_path / "m", full())
    assert (tmp_path / "m").read_bytes() == before


def test_associated_files_are_a_zip_that_is_not_compressed(path):
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["labels.txt", "notes.md"]
        assert archive.read("labels.txt").decode() == "\n".join(LABELS)
        assert all(i.compress_type == zipfile.ZIP_STORED for i in archive.infolist())


def test_metadata_are_replaced_and_the_rest_of_the_file_stays(path, tmp_path):
    copy = tmp_path / "copy.tflite"
    copy.write_bytes(path.read_bytes())
    tfc.write_metadata(copy, tfc.Metadata(name="Second"))
    found = tfc.read_metadata(copy)
    assert found == tfc.Metadata(
        name="Second",
        inputs=[tfc.TensorMetadata("image")],
        outputs=[tfc.TensorMetadata("classifier")],
    )
    assert not zipfile.is_zipfile(copy) and copy.stat().st_size < path.stat().st_size
    names = [entry.name.decode() for entry in parsed(copy.read_bytes()).metadata]
    assert names.count("TFLITE_METADATA") == 1 and "min_runtime_version" in names
    before, after = read_tflite(path), read_tflite(copy)
    assert before.operator_counts() == after.operator_counts()


def test_several_labelled_outputs_have_a_file_each(tmp_path):
    inputs = keras.Input((4,), name="x")
    outputs = [
        layers.Dense(2, name="kind")(inputs),
        layers.Dense(3, name="size")(inputs),
    ]
    metadata = tfc.Metadata(
        inputs=[tfc.TensorMetadata()],
        outputs=[
            tfc.TensorMetadata(labels=["a", "b"]),
            tfc.TensorMetadata(labels=["s", "m", "l"]),
        ],
    )
    path = tmp_path / "m.tflite"
    tfc.export_tflite(keras.Model(inputs, outputs), path, metadata=metadata)
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["labels_kind.txt", "labels_size.txt"]
    found = tfc.read_metadata(path)
    assert [t.labels for t in found.outputs] == [("a", "b"), ("s", "m", "l")]
    assert not found.files


def test_different_labels_do_not_share_a_file(tmp_path):
    inputs = keras.Input((4,), name="x")
    model = keras.Model(inputs, [layers.Dense(2)(inputs), layers.Dense(2)(inputs)])
    path = tmp_path / "m.tflite"

    def metadata(first, second):
        names = {"a/b": first, "a_b": second}
        return tfc.Metadata(
            outputs=[tfc.TensorMetadata(n, labels=x) for n, x in names.items()]
        )

    with pytest.raises(ValueError, match="both have the file 'labels_a_b.txt'"):
        tfc.export_tflite(model, path, metadata=metadata(["a", "b"], ["c", "d"]))
    assert not path.exists()
    tfc.export_tflite(model, path, metadata=metadata(["a", "b"], ["a", "b"]))
    found = tfc.read_metadata(path)
    assert [t.labels for t in found.outputs] == [("a", "b")] * 2


@pytest.mark.parametrize("lines", [b"a\r\nb\r\nc\r\n", b"a\nb\nc", b"a\nb\nc\n"])
def test_labels_of_other_tools_are_read_line_by_line(lines, path, tmp_path):
    copy = tmp_path / "m.tflite"
    copy.write_bytes(path.read_bytes()[: path.read_bytes().index(b"PK\x03\x04")])
    with zipfile.ZipFile(copy, "a") as archive:
        archive.writestr("labels.txt", lines)
    assert tfc.read_metadata(copy).outputs[0].labels == ("a", "b", "c")


# Bytes by hand: what the reader of another language finds where the schema puts it.


def test_the_bytes_are_where_the_schema_puts_them(path):
    import flatbuffers

    model = parsed(path.read_bytes())
    (entry,) = [m for m in model.metadata if m.name == b"TFLITE_METADATA"]
    data = bytes(model.buffers[entry.buffer].data)
    assert data[4:8] == b"M001"
    root = flatbuffers.table.Table(
        bytearray(data), flatbuffers.encode.Get(flatbuffers.packer.uoffset, data, 0)
    )

    def indirect(table, field, number=None):
        place = table.Offset(4 + 2 * field)
        assert place, field
        if number is None:
            return flatbuffers.table.Table(
                table.Bytes, table.Indirect(place + table.Pos)
            )
        return flatbuffers.table.Table(
            table.Bytes, table.Indirect(table.Vector(place) + 4 * number)
        )

    def text(table, field):
        return table.String(table.Offset(4 + 2 * field) + table.Pos).decode()

    assert (text(root, 0), text(root, 7)) == ("Colours", "1.0.0")
    graph = indirect(root, 3, 0)
    picture = indirect(graph, 2, 0)
    content = indirect(picture, 3)
    flags = flatbuffers.number_types
    assert content.Get(flags.Uint8Flags, content.Offset(4) + content.Pos) == 2
    image = indirect(content, 1)
    assert image.Get(flags.Int8Flags, image.Offset(4) + image.Pos) == 1
    size = indirect(image, 1)
    assert size.Get(flags.Uint32Flags, size.Offset(4) + size.Pos) == 8
    unit = indirect(picture, 4, 0)
    assert unit.Get(flags.Uint8Flags, unit.Offset(4) + unit.Pos) == 1
    std = indirect(unit, 1)
    values = std.GetVectorAsNumpy(flags.Float32Flags, std.Offset(6))
    np.testing.assert_array_equal(values, [0.25, 2.0, 64.0])
    labels = indirect(indirect(graph, 3, 0), 6, 0)
    assert text(labels, 0) == "labels.txt"
    assert labels.Get(flags.Int8Flags, labels.Offset(8) + labels.Pos) == 2


# Bad input.


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"outputs": [tfc.TensorMetadata(labels=["a"])]}, "each of its 3 classes"),
        ({"inputs": [tfc.TensorMetadata()] * 2}, "the file's 1 inputs .'image'."),
        ({"inputs": [tfc.TensorMetadata(mean=[1, 2], std=[1, 2])]}, "its 3 channels"),
        ({"outputs": [tfc.TensorMetadata(color_space="rgb")]}, "has shape .1, 3."),
        ({"outputs": [tfc.TensorMetadata(labels=["a", "b", ""])]}, "is empty"),
        ({"files": {"labels.txt": b""}}, "may not have the name of labels"),
    ],
)
def test_metadata_that_do_not_fit_the_file(path, changes, error):
    before = path.read_bytes()
    with pytest.raises(ValueError, match=error):
        tfc.write_metadata(path, full(**changes))
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"mean": 1.0}, "equally many"),
        ({"mean": 1.0, "std": 0.0}, "not zero"),
        ({"mean": np.nan, "std": 1.0}, "must be finite"),
        ({"color_space": "bgr"}, "Received: 'bgr'"),
        ({"labels": ["a\nb"]}, "one line"),
        ({"labels": ["a\rb"]}, "one line"),
        ({"labels": ["a\u2028"]}, "one line"),
    ],
)
def test_tensors_out_of_place(settings, error):
    with pytest.raises(ValueError, match=error):
        tfc.TensorMetadata(**settings)


def test_other_types_out_of_place(path, tmp_path):
    with pytest.raises(TypeError, match="must be a tfc.Metadata. Received: str"):
        tfc.write_metadata(path, "a name")
    with pytest.raises(TypeError, match="list of tfc.TensorMetadata"):
        tfc.Metadata(inputs=["x"])
    with pytest.raises(TypeError, match="`labels` must be a list"):
        tfc.TensorMetadata(labels="abc")
    with pytest.raises(ValueError, match="plain names to bytes"):
        tfc.Metadata(files={"../x": b""})
    with pytest.raises(FileNotFoundError, match="No such .tflite file"):
        tfc.write_metadata(tmp_path / "none.tflite", full())


def test_damaged_metadata_are_an_error_that_names_the_file(path, tmp_path):
    content = bytearray(path.read_bytes())
    place = content.index(b"M001")
    rng = np.random.default_rng(0)
    file, errors = tmp_path / "damaged.tflite", 0
    for _ in range(100):
        damaged = content.copy()
        for position in rng.integers(place - 4, place + 500, 4):
            damaged[position] = rng.integers(256)
        file.write_bytes(damaged)
        try:
            tfc.read_metadata(file)
        except ValueError as err:
            assert str(file) in str(err)
            errors += 1
    assert errors > 20


def test_every_cut_of_the_table_is_damage():
    data = metadata_table.encoded(full(), [(full().inputs[0], (1, 8, 8, 3))], [])
    for length in range(len(data)):
        try:
            metadata_table.decoded(data[:length])
        except metadata_table.DamagedTable:
            continue


def test_missing_labels_are_named(path, tmp_path):
    cut = tmp_path / "cut.tflite"
    content = path.read_bytes()
    cut.write_bytes(content[: content.index(b"PK\x03\x04")])
    with pytest.raises(ValueError, match="labels 'labels.txt' are not in the file"):
        tfc.read_metadata(cut)
