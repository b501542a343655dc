"""A container in which compressed models travel: lossless, checked, small.

Weights of few values go in as indices and codebooks (`coded_tensors`), and all of it
through LZMA, the entropy coder of the standard library. What comes out again is the
same file, byte by byte.

Example:
    ```python
    print(tfc.pack("int8.tflite", "int8.tfcpack"))   # bytes, gzip beside it
    tfc.unpack("int8.tfcpack", "int8.tflite")
    ```
"""

import contextlib
import hashlib
import io
import os
import pathlib
import tempfile
import zipfile
from dataclasses import dataclass

import keras
import numpy as np

from tfcompress.checks import check_model
from tfcompress.deploy import container
from tfcompress.deploy.coded_tensors import StoredTensor, take_out
from tfcompress.deploy.files import check_writable, gzip_bytes, written_atomically
from tfcompress.deploy.tflite_file import read_tflite
from tfcompress.passes.strip import strip


@dataclass(frozen=True)
class Packed:
    """What `pack` wrote.

    Attributes:
        path: Path of the container.
        bytes: Its size.
        original_bytes: Size of the file in it.
        gzip_bytes: Size of that file after gzip -9, for comparison.
        sha256: Hash of that file, hexadecimal.
        kind: `".tflite"` or `".keras"`.
    """

    path: str
    bytes: int
    original_bytes: int
    gzip_bytes: int
    sha256: str
    kind: str

    def __str__(self):
        return (
            f"{self.path}: {self.bytes:,} bytes of a {self.kind} file of "
            f"{self.original_bytes:,} ({self.gzip_bytes:,} gzip)"
        )


@dataclass(frozen=True)
class Unpacked:
    """What `unpack` wrote.

    Attributes:
        path: Path of the file.
        bytes: Its size.
        sha256: Its hash, hexadecimal, which was checked.
        kind: `".tflite"` or `".keras"`.
    """

    path: str
    bytes: int
    sha256: str
    kind: str


def pack(model, path):
    """Writes a file, or a model, into a container for delivery.

    Args:
        model: Path of a `.tflite` or `.keras` file, which `unpack` restores byte by
            byte; or a built `keras.Model`, which is stripped of what passes put on it
            and goes in as a `.keras` file without its optimizer.
        path: Path of the container. An old file is replaced once the new one is good.

    Returns:
        A `Packed`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is neither a `.tflite` nor a `.keras` file, or damaged; if
            `path` is that file, or ends like one.
        OSError: If the container cannot be written.
    """
    _check_container_path(model, path)
    content, kind = _content(model)
    tensors = _keras_tensors if kind == ".keras" else _tflite_tensors
    packed = container.written(content, kind, take_out(content, tensors(content)))
    if container.read(packed, path, len(content))[0] != content:
        raise RuntimeError(
            "The container does not give the file back, so it was not written. This is "
            "a mistake of tfcompress: please report it with the file."
        )
    with written_atomically(path) as temporary:
        temporary.write_bytes(packed)
    return Packed(
        path=os.fspath(path),
        bytes=len(packed),
        original_bytes=len(content),
        gzip_bytes=gzip_bytes(content),
        sha256=hashlib.sha256(content).hexdigest(),
        kind=kind,
    )


def unpack(path, output, *, max_bytes=2**31):
    """Restores the file that `pack` put into a container.

    Args:
        path: Path of the container.
        output: Path of the file, with the suffix that it had. An old file is replaced
            once the new one is whole and its hash is right.
        max_bytes: Size from which on the file is refused, so that a container from
            anywhere cannot fill the memory.

    Returns:
        An `Unpacked`.

    Raises:
        FileNotFoundError: If there is no such container.
        ValueError: If it is none, is damaged or cut off, is of another version, or
            holds another kind of file or a larger one.
        OSError: If the file cannot be written.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"No such packed file: {os.fspath(path)!r}")
    check_writable(output)
    packed = pathlib.Path(path).read_bytes()
    content, kind, digest = container.read(packed, path, max_bytes)
    if pathlib.Path(output).suffix != kind:
        raise ValueError(
            f"{os.fspath(path)!r} holds a {kind} file. Give the output that suffix. "
            f"Received: {os.fspath(output)!r}"
        )
    with written_atomically(output) as temporary:
        temporary.write_bytes(content)
    return Unpacked(os.fspath(output), len(content), digest.hex(), kind)


def _check_container_path(model, path):
    """Raises if a container at `path` would replace, or pass for, a model."""
    check_writable(path)
    name = os.fspath(path)
    is_path = isinstance(model, (str, os.PathLike))
    if is_path and os.path.exists(name) and os.path.exists(model):
        if os.path.samefile(model, name):
            raise ValueError(
                f"The container would replace the model in it. Give it a name of its "
                f"own, such as 'model.tfcpack'. Received: path={name!r}"
            )
    if pathlib.Path(name).suffix in container.KINDS:
        raise ValueError(
            "A container is no model file, so its name must not end in "
            f"{' or '.join(container.KINDS)}; '.tfcpack' is usual. Received: "
            f"path={name!r}"
        )


@contextlib.contextmanager
def _not_compiled(model):
    """Hides optimizer, loss and metrics while a model is saved.

    Keras saves those of a compiled model whatever `include_optimizer` says, and a loss
    of one's own would keep the file from being loaded.
    """
    models = [m for m in model._flatten_layers() if isinstance(m, keras.Model)]
    hidden = ("optimizer", "_compile_metrics", "_compile_loss", "_loss_tracker")
    kept = [{k: v for k, v in vars(m).items() if k in hidden} for m in models]
    compiled = [m.compiled for m in models]
    try:
        for one, attributes in zip(models, kept, strict=True):
            one.compiled = False
            for name in attributes:
                # Not by `setattr`, which tracks what a model is given.
                vars(one)[name] = None
        yield model
    finally:
        for one, attributes, was in zip(models, kept, compiled, strict=True):
            vars(one).update(attributes)
            one.compiled = was


def _content(model):
    """Bytes of a file or model, and their kind."""
    if isinstance(model, keras.Model):
        check_model(model)
        with tempfile.TemporaryDirectory() as folder:
            saved = pathlib.Path(folder, "model.keras")
            with _not_compiled(strip(model)) as plain:
                plain.save(saved)
            return saved.read_bytes(), ".keras"
    if not isinstance(model, (str, os.PathLike)):
        raise TypeError(
            "`model` must be the path of a .tflite or .keras file, or a Keras 3 model. "
            f"Received: {model!r} (of type {type(model).__name__})"
        )
    if not os.path.isfile(model):
        raise FileNotFoundError(f"No such file: {os.fspath(model)!r}")
    content = pathlib.Path(model).read_bytes()
    if content[4:8] == b"TFL3":
        read_tflite(model)  # A damaged one is not worth delivering.
        return content, ".tflite"
    if _is_keras(content):
        return content, ".keras"
    raise ValueError(
        f"{os.fspath(model)!r} is neither a .tflite nor a .keras file; these are what "
        "can be packed."
    )


def _is_keras(content):
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return "config.json" in archive.namelist()
    except zipfile.BadZipFile:
        return False


def _tflite_tensors(content):
    with tempfile.TemporaryDirectory() as folder:
        saved = pathlib.Path(folder, "model.tflite")
        saved.write_bytes(content)
        file = read_tflite(saved)
    for tensor in file.used_tensors():
        if not tensor.constant:
            continue
        try:
            values = tensor.value()
        except ValueError:
            values = None
        raw = np.frombuffer(tensor.buffer, np.uint8)
        if values is None or values.nbytes != raw.size:
            yield StoredTensor(raw)  # Packed or sparse: bytes like any.
            continue
        channels = tensor.scale is not None and tensor.scale.size > 1
        yield StoredTensor(values, tensor.quantized_axis if channels else None)


def _keras_tensors(content):
    import h5py

    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = [n for n in archive.namelist() if n.endswith(".h5")]
        files = [archive.read(name) for name in names]
    for file in files:
        found = []
        with h5py.File(io.BytesIO(file)) as weights:
            weights.visititems(
                lambda _, item, found=found: (
                    found.append(item[()]) if isinstance(item, h5py.Dataset) else None
                )
            )
        for values in found:
            if isinstance(values, np.ndarray) and values.dtype.kind in "fiu":
                axis = values.ndim - 1 if values.ndim > 1 else None
                yield StoredTensor(values, axis)
