"""The Kotlin class that runs a `.tflite` file on Android, with its arithmetic.

Example:
    ```python
    text = kotlin_class("com.example", "DigitsModel", "digits.tflite", interface, 10)
    ```
"""

import importlib.resources
import itertools
import json
import re
import string
from dataclasses import dataclass

import numpy as np

# Type in the file -> what Kotlin calls its array, and the methods of LiteRT's
# `TensorBuffer` that write and read it. It has none for UINT8 and INT16.
_KOTLIN = {
    "FLOAT32": ("FloatArray", "writeFloat", "readFloat"),
    "INT8": ("ByteArray", "writeInt8", "readInt8"),
    "INT32": ("IntArray", "writeInt", "readInt"),
    "INT64": ("LongArray", "writeLong", "readLong"),
}
TYPES = tuple(_KOTLIN)
# That Kotlin takes as no name anywhere.
KEYWORDS = frozenset(
    "as break class continue do else false for fun if in interface is null object "
    "package return super this throw true try typealias typeof val var when "
    "while".split()
)
# What the class itself calls so where a parameter would hide it.
_TAKEN = frozenset(
    "inputs outputs model labels assets k it scores predict classify largest pixels "
    "normalize quantize dequantize checkSize listOf".split()
)
# Types that the class uses: one of the same name would hide them.
CLASSES = frozenset(
    "Accelerator Any Array AssetManager Bitmap Boolean Byte ByteArray Category "
    "Closeable Companion CompiledModel Double Float FloatArray Int IntArray List Long "
    "LongArray Math String Unit".split()
)


class _Template(string.Template):
    """Kotlin has a use of its own for the dollar."""

    delimiter = "#"


@dataclass(frozen=True)
class Port:
    """An input or output of the file.

    Attributes:
        name: Its name in the signature.
        identifier: Its name in Kotlin, of `identifiers`.
        dtype: Type as TFLite spells it, one of `TYPES`.
        shape: Shape with a batch of 1.
        scale: Step of an INT8 tensor; 0.0 if it is not quantized.
        zero_point: Integer that stands for zero.
        mean: Float32 array, subtracted per channel; `None` for no normalization.
        std: Float32 array, divided by; `None` for no normalization.
    """

    name: str
    identifier: str
    dtype: str
    shape: tuple
    scale: float = 0.0
    zero_point: int = 0
    mean: np.ndarray | None = None
    std: np.ndarray | None = None

    @property
    def size(self):
        """Number of values of one example."""
        return int(np.prod(self.shape))

    @property
    def real(self):
        """Whether its values are real numbers, quantized or not."""
        return self.dtype == "FLOAT32" or self.scale != 0


@dataclass(frozen=True)
class Interface:
    """The signature of a file: its key, and inputs and outputs in the model's order."""

    signature: str
    inputs: tuple
    outputs: tuple


def identifiers(names):
    """Names as Kotlin takes them, in camel case, each different.

    Args:
        names: Names in the signature, any text.

    Returns:
        List of as many identifiers. Those that would be equal get numbers.
    """
    found = []
    for name in names:
        words = [w for w in re.split(r"[^A-Za-z0-9]+", name) if w] or ["value"]
        plain = words[0][0].lower() + words[0][1:]
        plain += "".join(w[0].upper() + w[1:] for w in words[1:])
        if plain[0].isdigit():
            plain = f"values{plain}"
        elif plain in KEYWORDS | _TAKEN:
            plain = f"{plain}Values"
        numbered = (f"{plain}{number}" for number in itertools.count(2))
        choices = itertools.chain([plain], numbered)
        found.append(next(choice for choice in choices if choice not in found))
    return found


def kotlin_class(package, class_name, asset, interface, labels_asset=None):
    """Source of the class.

    Args:
        package: Kotlin package.
        class_name: Name of the class.
        asset: Name of the `.tflite` file among the assets.
        interface: `Interface` of the file.
        labels_asset: Name of the file with a label a line; `None` for no labels.

    Returns:
        Text of the file.
    """
    resource = importlib.resources.files("tfcompress") / "data" / "android_model.kt"
    image = _image(interface)
    imports = [
        *(["android.graphics.Bitmap"] if image else []),
        "com.google.ai.edge.litert.Accelerator",
        "com.google.ai.edge.litert.CompiledModel",
    ]
    text = _Template(resource.read_text(encoding="utf-8")).substitute(
        package=package,
        class_name=class_name,
        asset=asset,
        imports="\n".join(f"import {name}" for name in imports),
        inputs_doc="\n".join(_document("Input", p) for p in interface.inputs),
        outputs_doc="\n".join(_document("Output", p) for p in interface.outputs),
        parameters=_parameters(interface),
        writes="\n".join(_write(p) for p in interface.inputs),
        reads=",\n".join(_read(p) for p in interface.outputs),
        signature=_text(interface.signature),
        input_names=", ".join(_text(p.name) for p in interface.inputs),
        output_names=", ".join(_text(p.name) for p in interface.outputs),
        constants="\n".join(filter(None, map(_constants, interface.inputs))),
        labels_member=_labels(labels_asset),
        classify=_classify(interface) if labels_asset else "",
        bitmap=_bitmap(image) if image else "",
    )
    return re.sub(r"\n{3,}", "\n\n", text)


def _parameters(interface):
    return ", ".join(f"{p.identifier}: {_array(p)}" for p in interface.inputs)


def _array(port):
    return "FloatArray" if port.real else _KOTLIN[port.dtype][0]


def _document(kind, port):
    shape = " x ".join(map(str, port.shape[1:])) or "1"
    stored = f", {port.dtype.lower()} in the file" if port.dtype != "FLOAT32" else ""
    return f" * {kind} `{port.identifier}`: {_array(port)} of {shape}{stored}."


def _write(port):
    value = port.identifier
    if port.mean is not None:
        constant = _constant(port)
        value = f"normalize({value}, {constant}_MEAN, {constant}_STD)"
    if port.scale:
        value = f"quantize({value}, {_float(port.scale)}, {port.zero_point})"
    method = _KOTLIN[port.dtype][1]
    name = port.identifier
    return (
        f'        checkSize("{name}", {name}.size, {port.size})\n'
        f"        inputs.getValue({_text(port.name)}).{method}({value})"
    )


def _read(port):
    value = f"outputs.getValue({_text(port.name)}).{_KOTLIN[port.dtype][2]}()"
    if port.scale:
        value = f"dequantize({value}, {_float(port.scale)}, {port.zero_point})"
    elif port.dtype != "FLOAT32":
        value = f"{value}.map {{ it.toFloat() }}.toFloatArray()"
    return f"            {value}"


def _constant(port):
    return re.sub(r"([A-Z])", r"_\1", port.identifier).upper()


def _constants(port):
    if port.mean is None:
        return ""
    return "\n".join(
        f"        private val {_constant(port)}_{name} = floatArrayOf("
        f"{', '.join(map(_float, values))})"
        for name, values in (("MEAN", port.mean), ("STD", port.std))
    )


def _text(value):
    """A literal that Kotlin reads as the same text."""
    # JSON's escapes are Kotlin's, but for the form feed and the dollar.
    parts = (json.dumps(part)[1:-1] for part in value.split("\f"))
    return '"' + "\\u000c".join(parts).replace("$", "\\$") + '"'


def _float(value):
    """A literal that Kotlin reads as the same 32 bits."""
    return np.format_float_scientific(np.float32(value), trim="0") + "f"


def _labels(asset):
    if asset is None:
        return ""
    return f"""
    /** The classes, in the order of the output. */
    val labels: List<String> =
        assets.open("{asset}").bufferedReader().use {{ it.readLines() }}
"""


def _classify(interface):
    names = ", ".join(p.identifier for p in interface.inputs)
    return f"""
    /** A class with its score. */
    data class Category(val index: Int, val label: String, val score: Float)

    /** The `k` classes with the highest scores, the highest first. */
    fun classify({_parameters(interface)}, k: Int = 3): List<Category> {{
        val scores = predict({names})[0]
        return largest(scores, k).map {{ Category(it, labels[it], scores[it]) }}
    }}
"""


def _image(interface):
    """The only input, if it can be the pixels of a colour image."""
    first = interface.inputs[0]
    colours = len(first.shape) == 4 and first.shape[-1] == 3 and first.real
    return first if len(interface.inputs) == 1 and colours else None


def _bitmap(port):
    _, height, width, _ = port.shape
    return f"""
    /** Red, green and blue from 0 to 255 of a picture, scaled to the model's size. */
    fun pixels(bitmap: Bitmap): FloatArray {{
        val scaled = Bitmap.createScaledBitmap(bitmap, {width}, {height}, true)
        val colours = IntArray({width * height})
        scaled.getPixels(colours, 0, {width}, 0, 0, {width}, {height})
        return FloatArray({port.size}) {{
            ((colours[it / 3] shr (16 - 8 * (it % 3))) and 0xff).toFloat()
        }}
    }}
"""
