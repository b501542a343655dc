"""Metadata in a `.tflite` file, as Android's tools read them: labels, normalization.

They are a flatbuffer of their own in a buffer of the model, named `TFLITE_METADATA`,
and files, such as the labels, that stand behind the model as an uncompressed zip
archive. Runtimes pass over both.

Example:
    ```python
    metadata = tfc.Metadata(
        name="Digits",
        inputs=[tfc.TensorMetadata(color_space="rgb", mean=127.5, std=127.5)],
        outputs=[tfc.TensorMetadata(labels=["zero", "one", "two"])],
    )
    tfc.export_tflite(model, "digits.tflite", metadata=metadata)
    tfc.read_metadata("digits.tflite").outputs[0].labels
    ```
"""

import dataclasses
import io
import math
import os
import pathlib
import zipfile
from dataclasses import dataclass, field

import numpy as np

from tfcompress.deploy import metadata_table
from tfcompress.deploy.files import check_writable, written_atomically
from tfcompress.deploy.signatures import signature_names
from tfcompress.deploy.tflite_file import parsed, read_tflite, schema, serialized

_BUFFER = "TFLITE_METADATA"
_COLOR_SPACES = (None, "rgb", "grayscale")

# What files behind a model may take: an archive of a few bytes can claim any size.
_MOST_BYTES = 256 * 2**20


@dataclass(frozen=True)
class TensorMetadata:
    """What an input or output means.

    Attributes:
        name: Its name; `""` takes that of the signature.
        description: What it is, for people.
        mean: Numbers that the device subtracts from raw values, one or one a channel.
        std: Numbers that it divides by then: the model sees `(raw - mean) / std`.
        minimum: Least raw values, one or one a channel.
        maximum: Largest ones.
        color_space: `"rgb"` or `"grayscale"` of an image; `None` of anything else.
        labels: Names of the classes, one for each place of the last axis, each a line.
    """

    name: str = ""
    description: str = ""
    mean: tuple = ()
    std: tuple = ()
    minimum: tuple = ()
    maximum: tuple = ()
    color_space: str | None = None
    labels: tuple = ()

    def __post_init__(self):
        for name in ("mean", "std", "minimum", "maximum"):
            object.__setattr__(self, name, _numbers(name, getattr(self, name)))
        if isinstance(self.labels, str):
            raise TypeError(f"`labels` must be a list. Received: {self.labels!r}")
        object.__setattr__(self, "labels", tuple(self.labels))
        _check_tensor(self)


@dataclass(frozen=True)
class Metadata:
    """What a `.tflite` file says of itself; printed, it is a list.

    Attributes:
        name: Name of the model.
        description: What it does.
        version: Version of the model.
        author: Who made it.
        license: Its licence.
        inputs: One `TensorMetadata` for each input in order; empty for nothing known.
        outputs: The same for the outputs.
        files: Dict from name to bytes of further files to carry along.
    """

    name: str = ""
    description: str = ""
    version: str = ""
    author: str = ""
    license: str = ""
    inputs: tuple = ()
    outputs: tuple = ()
    files: dict = field(default_factory=dict)

    def __post_init__(self):
        for name in ("inputs", "outputs"):
            tensors = tuple(getattr(self, name))
            object.__setattr__(self, name, tensors)
            if not all(isinstance(t, TensorMetadata) for t in tensors):
                raise TypeError(
                    f"`{name}` must be a list of tfc.TensorMetadata. Received: "
                    f"{tensors!r}"
                )
        for name, content in self.files.items():
            if not isinstance(content, bytes) or not name or "/" in name:
                raise ValueError(
                    "`files` must be a dict from plain names to bytes. Received: "
                    f"{name!r} of type {type(content).__name__}"
                )

    def __str__(self):
        lines = [f"{self.name or 'a model'} {self.version}".rstrip()]
        for name in ("description", "author", "license"):
            if getattr(self, name):
                lines.append(f"  {name}: {getattr(self, name)}")
        for kind in ("inputs", "outputs"):
            for tensor in getattr(self, kind):
                lines.append(f"  {kind[:-1]} {_about(tensor)}")
        lines += [f"  file {name}: {len(c):,} bytes" for name, c in self.files.items()]
        return "\n".join(lines)


def _numbers(name, values):
    try:
        values = (values,) if isinstance(values, (int, float)) else values
        values = tuple(float(v) for v in values)
    except TypeError as err:
        raise TypeError(f"`{name}` must be numbers. Received: {values!r}") from err
    if not all(map(math.isfinite, values)):
        raise ValueError(f"`{name}` must be finite. Received: {values}")
    return values


def _check_tensor(tensor):
    if len(tensor.mean) != len(tensor.std) or 0.0 in tensor.std:
        raise ValueError(
            "`mean` and `std` must be equally many, and `std` not zero. Received: "
            f"mean={tensor.mean}, std={tensor.std}"
        )
    if tensor.color_space not in _COLOR_SPACES:
        raise ValueError(
            f"`color_space` must be one of {_COLOR_SPACES}. Received: "
            f"{tensor.color_space!r}"
        )
    # Empty ones are refused on writing only: files of other tools have them.
    wrong = [x for x in tensor.labels if not isinstance(x, str) or not _in_one_line(x)]
    if wrong:
        raise ValueError(
            f"`labels` must be strings of one line. Received: {wrong[0]!r}"
        )


def _in_one_line(text):
    return text.splitlines() in ([], [text])


def _about(tensor):
    parts = [tensor.name or "?", tensor.description, tensor.color_space or ""]
    for name in ("mean", "std"):
        if getattr(tensor, name):
            parts.append(f"{name} {', '.join(f'{v:g}' for v in getattr(tensor, name))}")
    if tensor.labels:
        shown = ", ".join(tensor.labels[:5]) + (", ..." if tensor.labels[5:] else "")
        parts.append(f"{len(tensor.labels)} labels: {shown}")
    return "; ".join(part for part in parts if part)


def write_metadata(path, metadata):
    """Puts metadata into a `.tflite` file, in place of any it has.

    Args:
        path: Path of the file. It is replaced only once the new one is good.
        metadata: A `Metadata`.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If `metadata` is none.
        ValueError: If the file is damaged, or has not as many inputs, outputs, channels
            or classes as `metadata`; or a label is empty, or two lists of labels would
            have the same file name.
        OSError: If the file cannot be written.

    Reference:
        tensorflow.org/lite/models/convert/metadata and `metadata_schema.fbs` of
        TensorFlow Lite Support.
    """
    check_writable(path)
    read_tflite(path)
    content = with_metadata(pathlib.Path(path).read_bytes(), metadata)
    with written_atomically(path) as temporary:
        temporary.write_bytes(content)
        read_metadata(temporary)


def with_metadata(content, metadata):
    """Bytes of a file with metadata, from bytes of one that was verified."""
    if not isinstance(metadata, Metadata):
        raise TypeError(
            f"`metadata` must be a tfc.Metadata. Received: {type(metadata).__name__}"
        )
    model = parsed(content)
    graph = model.subgraphs[0]
    inputs, outputs = signature_names(model)
    tensors = [
        _completed(what, graph, indices, names, given)
        for what, indices, names, given in (
            ("inputs", graph.inputs, inputs, metadata.inputs),
            ("outputs", graph.outputs, outputs, metadata.outputs),
        )
    ]
    files = _label_files(*tensors, metadata.files)
    _store(model, metadata_table.encoded(metadata, *tensors))
    content = serialized(model, len(content))
    return content + _archive(content, files) if files else content


def _completed(what, graph, indices, names, given):
    """Pairs of `TensorMetadata` with a name, and shape; checked against the tensors."""
    shapes = [tuple(map(int, _shape(graph.tensors[i]))) for i in indices]
    if given and len(given) != len(shapes):
        raise ValueError(
            f"`metadata` must describe the file's {len(shapes)} {what} {names}, or "
            f"none. Received: {len(given)}"
        )
    given = given or [TensorMetadata()] * len(shapes)
    pairs = []
    for tensor, shape, name in zip(given, shapes, names, strict=True):
        tensor = dataclasses.replace(tensor, name=tensor.name or name)
        last = shape[-1] if shape else 1
        for field_name in ("mean", "minimum", "maximum"):
            count = len(getattr(tensor, field_name))
            if count not in (0, 1, last):
                raise ValueError(
                    f"`{field_name}` of {tensor.name!r} must be one number, or one for "
                    f"each of its {last} channels. Received: {count}"
                )
        if tensor.labels and len(tensor.labels) != last:
            raise ValueError(
                f"`labels` of {tensor.name!r} must be one for each of its {last} "
                f"classes (shape {shape}). Received: {len(tensor.labels)}"
            )
        if "" in tensor.labels:
            raise ValueError(
                f"A label of {tensor.name!r} is empty; Android's tools would pass over "
                f"its line. Received: {list(tensor.labels)!r}"
            )
        if tensor.color_space and len(shape) != 4:
            raise ValueError(
                f"`color_space` is for images of shape (batch, height, width, "
                f"channels); {tensor.name!r} has shape {shape}. Leave it out."
            )
        pairs.append((tensor, shape))
    return pairs


def _shape(tensor):
    return () if tensor.shape is None else tensor.shape


def _label_files(inputs, outputs, files):
    """Dict from name to bytes of all that goes into the archive."""
    made = {}
    for place, labels in metadata_table.label_names(inputs, outputs):
        content = "\n".join(labels).encode()
        if made.setdefault(place, content) != content:
            raise ValueError(
                f"Two tensors with different labels would both have the file {place!r}."
                " Pass each a tfc.TensorMetadata with a `name` of its own."
            )
    twice = set(made) & set(files)
    if twice:
        raise ValueError(f"`files` may not have the name of labels: {sorted(twice)}")
    return {**made, **files}


def _store(model, data):
    """Makes `data` the one metadata buffer of the model."""
    entries = list(model.metadata or ())
    entry = next((e for e in entries if e.name == _BUFFER.encode()), None)
    if entry is None:
        entry = schema().MetadataT()
        entry.name, entry.buffer = _BUFFER, len(model.buffers)
        model.buffers.append(schema().BufferT())
        model.metadata = [*entries, entry]
    model.buffers[entry.buffer].data = np.frombuffer(data, np.uint8)


def _archive(content, files):
    """A zip archive that is right where it stands behind `content`."""
    target = io.BytesIO(content)
    with zipfile.ZipFile(target, "a", zipfile.ZIP_STORED) as archive:
        for name, data in files.items():
            # Of no date, so that equal models are equal files.
            archive.writestr(zipfile.ZipInfo(name), data)
    return target.getvalue()[len(content) :]


def read_metadata(path):
    """Reads the metadata of a `.tflite` file.

    Args:
        path: Path of the file, written by this library or another.

    Returns:
        A `Metadata`. `None` if the file has none.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file or its metadata are damaged, or labels are missing.
    """
    read_tflite(path)
    content = pathlib.Path(path).read_bytes()
    model = parsed(content)
    data = [
        model.buffers[entry.buffer].data
        for entry in model.metadata or ()
        if entry.name == _BUFFER.encode() and entry.buffer < len(model.buffers)
    ]
    if not data or data[-1] is None:
        return None
    try:
        files = _files(content)
        fields, *tensors, others = metadata_table.decoded(bytes(data[-1]))
        inputs, outputs = (
            tuple(_with_labels(tensor, files) for tensor in found) for found in tensors
        )
    except _DAMAGE as err:
        raise ValueError(
            f"Damaged metadata in {os.fspath(path)!r}: {type(err).__name__}: {err}. "
            "Write them again: tfc.write_metadata(path, tfc.Metadata(...))."
        ) from err
    return Metadata(
        **fields,
        inputs=inputs,
        outputs=outputs,
        files={name: data for name, data in files.items() if name not in others},
    )


_DAMAGE = (
    metadata_table.DamagedTable,
    zipfile.BadZipFile,
    ValueError,
    TypeError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    OSError,
    EOFError,
)


def _files(content):
    """Dict from name to bytes of the files behind a model."""
    source = io.BytesIO(content)
    if not zipfile.is_zipfile(source):
        return {}
    with zipfile.ZipFile(source) as archive:
        found, total = {}, 0
        for info in archive.infolist():
            with archive.open(info) as file:
                found[info.filename] = file.read(_MOST_BYTES - total + 1)
            total += len(found[info.filename])
            if total > _MOST_BYTES:
                raise ValueError(f"its files have more than {_MOST_BYTES:,} bytes")
        return found


def _with_labels(fields, files):
    """A `TensorMetadata` of what a table says, with labels from their file."""
    name = fields.pop("labels_file")
    if name is None:
        return TensorMetadata(**fields)
    if name not in files:
        raise KeyError(f"the labels {name!r} are not in the file")
    lines = [line.removesuffix("\r") for line in files[name].decode().split("\n")]
    labels = lines if lines[-1] else lines[:-1]
    return TensorMetadata(**fields, labels=labels)
