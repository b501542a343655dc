"""Exports what an Android app needs: the model, its labels, and Kotlin that runs it.

Example:
    ```python
    result = tfc.export_android(
        qat, "app", package="com.example.digits", kind="int8", labels="0123456789"
    )
    result.class_name, result.gradle
    ```
"""

import dataclasses
import os
import pathlib
import re
import tempfile
from dataclasses import dataclass

import keras
import numpy as np

from tfcompress.deploy.android_kotlin import (
    CLASSES,
    KEYWORDS,
    TYPES,
    Interface,
    Port,
    identifiers,
    kotlin_class,
)
from tfcompress.deploy.files import write_together
from tfcompress.deploy.metadata import (
    Metadata,
    TensorMetadata,
    read_metadata,
    with_metadata,
)
from tfcompress.deploy.quiet import quiet
from tfcompress.deploy.runtime import TFLiteRunner
from tfcompress.deploy.tflite import export_tflite
from tfcompress.deploy.tflite_file import read_tflite

_LITERT_VERSION = "2.3.0"

_README = """\
# {class_name}

Written by tfcompress. Copy `src` into the module of your app, and add to its
`build.gradle.kts`:

```kotlin
{gradle}
```

| file | what |
|---|---|
{files}

```kotlin
{class_name}(context.assets).use {{ model ->
{usage}
}}
```

{notes}
"""


@dataclass(frozen=True)
class AndroidExport:
    """What `export_android` wrote.

    Attributes:
        directory: Folder that holds all of it.
        asset_path: Path of the `.tflite` file.
        labels_path: Path of the labels, one a line; `None` if there are none.
        kotlin_path: Path of the class.
        readme_path: Path of `README_NAME.md`, which says how the app takes the rest.
        package: Kotlin package of the class.
        class_name: Its name.
        gradle: Lines for `build.gradle.kts`.
    """

    directory: str
    asset_path: str
    labels_path: str | None
    kotlin_path: str
    readme_path: str
    package: str
    class_name: str
    gradle: str


def export_android(
    model,
    directory,
    *,
    package,
    name=None,
    labels=None,
    normalization=None,
    kind="float32",
    calibration_data=None,
):
    """Writes an Android asset and a Kotlin class that runs it with LiteRT.

    The class takes values as they were before the model's own preprocessing: it
    normalizes, quantizes, runs the file, dequantizes, and names the best classes.
    Integer inputs and outputs cost the app nothing to think about.

    Args:
        model: Keras model, exported as `export_tflite` does; or the path of a
            `.tflite` file with a signature, batch 1 and inputs and outputs of float32,
            int8, int32 or int64.
        directory: Folder for the result, created if absent. Files of the same names
            are replaced.
        package: Kotlin package of your app, `"com.example.digits"`.
        name: Name of the asset, and in camel case of the class: `"digit_net"` gives
            `digit_net.tflite` and `DigitNet`; by default the name of the file or model.
        labels: Names of the classes, in the order of the output; `None` for a model
            that does not classify. They and `normalization` become the metadata of the
            asset too (see `Metadata`), unless the file has some.
        normalization: `(mean, std)`, numbers or one for each channel, by which
            training computed `(x - mean) / std` outside the model; a dict from
            the name of an input to such pairs where there are several inputs.
        kind: Kind of file that a Keras model is exported to. An `"int16x8"` one has
            float inputs and outputs: LiteRT's Kotlin has no buffers of 16 bits.
        calibration_data: Examples for it, where the kind needs them.

    Returns:
        An `AndroidExport`.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If `model` is neither a Keras model nor a path.
        ValueError: If the file cannot be run so, or an argument does not fit.
        OSError: If a file cannot be written.
    """
    name = _asset_name(model, name)
    class_name = _class_name(name)
    _check_package(package)
    directory = pathlib.Path(directory)
    with tempfile.TemporaryDirectory() as folder:
        path = _tflite(model, pathlib.Path(folder), kind, calibration_data)
        interface = _normalized(_interface(path), normalization)
        labels = None if labels is None else _checked_labels(labels, interface)
        content = _described(path, name, interface, labels)
    assets = directory / "src/main/assets"
    labels_path = None if labels is None else assets / f"{name}_labels.txt"
    kotlin_path = directory.joinpath(
        "src/main/java", *package.split("."), f"{class_name}.kt"
    )
    source = kotlin_class(
        package,
        class_name,
        f"{name}.tflite",
        interface,
        None if labels is None else labels_path.name,
    )
    contents = {assets / f"{name}.tflite": content, kotlin_path: source.encode()}
    if labels is not None:
        contents[labels_path] = "".join(f"{label}\n" for label in labels).encode()
    readme = _readme(class_name, interface, labels, contents, directory)
    # Not README.md, which is the app's own.
    readme_path = directory / f"README_{name}.md"
    contents[readme_path] = readme.encode()
    # A class with the scales of another file would read wrong numbers.
    write_together(contents)
    return AndroidExport(
        directory=os.fspath(directory),
        asset_path=os.fspath(assets / f"{name}.tflite"),
        labels_path=None if labels is None else os.fspath(labels_path),
        kotlin_path=os.fspath(kotlin_path),
        readme_path=os.fspath(readme_path),
        package=package,
        class_name=class_name,
        gradle=_gradle(),
    )


def _asset_name(model, name):
    if name is None:
        if not isinstance(model, (keras.Model, str, os.PathLike)):
            raise TypeError(
                "`model` must be a Keras model or the path of a .tflite file. "
                f"Received: {model!r}"
            )
        name = (
            model.name if isinstance(model, keras.Model) else pathlib.Path(model).stem
        )
        name = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
        name = name if name and not name[0].isdigit() else f"model_{name}".rstrip("_")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(
            "`name` must be lower-case letters, digits and underscores, a letter "
            f"first. Received: name={name!r}"
        )
    return name


def _class_name(name):
    class_name = "".join(w[0].upper() + w[1:] for w in name.split("_") if w)
    if class_name in CLASSES:
        raise ValueError(
            f"`name` would make the class {class_name}, which hides a type that it "
            f"uses. Received: name={name!r}. Pass name='{name}_model'."
        )
    return class_name


def _check_package(package):
    if not re.fullmatch(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+", package):
        raise ValueError(
            "`package` must be a Kotlin package of two parts or more, such as "
            f"'com.example.digits'. Received: package={package!r}"
        )
    keywords = KEYWORDS.intersection(package.split("."))
    if keywords:
        raise ValueError(
            f"`package` may not have Kotlin's keywords {sorted(keywords)} as parts. "
            f"Received: package={package!r}"
        )


def _tflite(model, folder, kind, calibration_data):
    if isinstance(model, (str, os.PathLike)):
        if calibration_data is not None or kind != "float32":
            raise ValueError(
                "`kind` and `calibration_data` are for a Keras model; a .tflite file "
                "stays as it is."
            )
        return pathlib.Path(read_tflite(model).path)
    path = folder / "model.tflite"
    io = "float32" if kind == "int16x8" else None
    export_tflite(model, path, kind=kind, io=io, calibration_data=calibration_data)
    return path


def _interface(path):
    """The first signature of a file, checked."""
    from ai_edge_litert.interpreter import Interpreter

    runner = TFLiteRunner(path)
    with quiet():
        interpreter = Interpreter(model_path=os.fspath(path))
    signatures = interpreter.get_signature_list()
    if not signatures:
        raise ValueError(
            f"{os.fspath(path)!r} has no signature, by which LiteRT names inputs and "
            "outputs. Write the file with tfc.export_tflite(model, path)."
        )
    key = next(iter(signatures))
    signature = interpreter.get_signature_runner(key)
    return Interface(
        key,
        tuple(_ports(runner.inputs, signature.get_input_details(), "input")),
        tuple(_ports(runner.outputs, signature.get_output_details(), "output")),
    )


def _described(path, name, interface, labels):
    """The file's bytes, with what is known as its metadata where it has none."""
    content = path.read_bytes()
    normalized = any(port.mean is not None for port in interface.inputs)
    if (labels is None and not normalized) or read_metadata(path) is not None:
        return content
    inputs = [
        TensorMetadata()
        if port.mean is None
        else TensorMetadata(mean=tuple(port.mean), std=tuple(port.std))
        for port in interface.inputs
    ]
    outputs = [] if labels is None else [TensorMetadata(labels=labels)]
    return with_metadata(content, Metadata(name=name, inputs=inputs, outputs=outputs))


def _ports(ordered, named, kind):
    names = {details["index"]: name for name, details in named.items()}
    names = [names[details["index"]] for details in ordered]
    for details, name, identifier in zip(
        ordered, names, identifiers(names), strict=True
    ):
        dtype = np.dtype(details["dtype"]).name.upper()
        shape = tuple(int(d) for d in details["shape"])
        signature = [int(d) for d in details.get("shape_signature", shape)]
        if dtype not in TYPES:
            raise ValueError(
                f"The {kind} {name!r} is {dtype.lower()}, which LiteRT's Kotlin "
                f"buffers do not hold (only {', '.join(TYPES).lower()}). Write the "
                'file with tfc.export_tflite(..., io="int8") or io="float32".'
            )
        if shape[:1] != (1,) or -1 in signature[1:]:
            raise ValueError(
                f"The {kind} {name!r} must have a batch of 1 and a fixed shape. "
                f"Received: shape {tuple(signature)}. Export with batch_size=1."
            )
        scale, zero_point = details["quantization"] if dtype == "INT8" else (0.0, 0)
        yield Port(name, identifier, dtype, shape, float(scale), int(zero_point))


def _normalized(interface, normalization):
    """The interface with the user's normalization at its inputs."""
    if normalization is None:
        return interface
    if not isinstance(normalization, dict):
        if len(interface.inputs) != 1:
            raise ValueError(
                "`normalization` must be a dict from the name of an input to (mean, "
                f"std). The inputs: {[p.name for p in interface.inputs]}"
            )
        normalization = {interface.inputs[0].name: normalization}
    known = {port.name for port in interface.inputs}
    if set(normalization) - known:
        raise ValueError(
            f"`normalization` names {sorted(set(normalization) - known)}; the inputs "
            f"are {sorted(known)}."
        )
    ports = [
        _with_normalization(port, normalization[port.name])
        if port.name in normalization
        else port
        for port in interface.inputs
    ]
    return Interface(interface.signature, tuple(ports), interface.outputs)


def _with_normalization(port, pair):
    try:
        mean, std = (np.atleast_1d(np.asarray(value, np.float32)) for value in pair)
    except (TypeError, ValueError) as err:
        raise ValueError(
            f"`normalization` must be (mean, std). Received: {pair!r}"
        ) from err
    sizes = {1, port.shape[-1]}
    fits = {mean.size, std.size} <= sizes and mean.ndim == std.ndim == 1
    finite = np.isfinite(mean).all() and np.isfinite(std).all()
    if not port.real or not fits or not finite or not (std > 0).all():
        raise ValueError(
            "`normalization` must be finite numbers, std above zero, one or "
            f"one for each of the {port.shape[-1]} channels of the real input "
            f"{port.name!r}. Received: {pair!r}"
        )
    return dataclasses.replace(port, mean=mean, std=std)


def _checked_labels(labels, interface):
    labels = [str(label) for label in labels]
    shapes = [port.shape for port in interface.outputs]
    if len(shapes) != 1 or shapes[0] != (1, len(labels)):
        raise ValueError(
            f"`labels` must be one for each value of the only output. Received: "
            f"{len(labels)} labels for outputs of shapes {shapes}"
        )
    bad = [label for label in labels if not label or label.splitlines() != [label]]
    if bad:
        raise ValueError(f"A label must be one line of text. Received: {bad[0]!r}")
    return labels


def _gradle():
    return f"""\
android {{
    androidResources {{ noCompress += "tflite" }}
}}

dependencies {{
    implementation("com.google.ai.edge.litert:litert:{_LITERT_VERSION}")
}}"""


def _readme(class_name, interface, labels, contents, directory):
    what = {".tflite": "the model", ".kt": "the class", ".txt": "the labels"}
    files = "\n".join(
        f"| `{path.relative_to(directory).as_posix()}` | {what[path.suffix]}, "
        f"{len(data):,} bytes |"
        for path, data in contents.items()
    )
    names = ", ".join(port.identifier for port in interface.inputs)
    call = "classify" if labels else "predict"
    notes = [f"- {_describe(port)}" for port in interface.inputs]
    return _README.format(
        class_name=class_name,
        gradle=_gradle(),
        files=files,
        usage=f"    val result = model.{call}({names})",
        notes="\n".join(notes),
    )


def _describe(port):
    shape = " x ".join(map(str, port.shape[1:])) or "1"
    text = f"`{port.identifier}`: {port.size} values, {shape}, the last axis fastest"
    if port.mean is not None:
        mean, std = (", ".join(f"{v:g}" for v in a) for a in (port.mean, port.std))
        text += f"; the class computes (x - [{mean}]) / [{std}]"
    if port.scale:
        text += f" and rounds to int8 in steps of {port.scale:.4g}"
    return text + "."
