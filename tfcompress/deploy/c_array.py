"""Writes a `.tflite` file as C source, for microcontrollers that have no file system.

Example:
    ```python
    result = tfc.export_c_array("model.tflite", "firmware/src")
    result.source_path, result.operators, result.arena_bytes
    ```
"""

import os
import pathlib
import re
from dataclasses import dataclass

from tfcompress.deploy.files import check_writable, write_together
from tfcompress.deploy.micro import resolver_calls, run_micro
from tfcompress.deploy.tflite_file import read_tflite

_SUFFIXES = (".c", ".cc", ".cpp")
_ALIGNMENTS = [1 << bits for bits in range(2, 13)]
_BYTES_A_LINE = 12
_MARK = "Written by tfcompress"
# Of C23 and C++20, and `main`: the array shall compile as either.
_KEYWORDS = set(
    "alignas alignof and and_eq asm auto bitand bitor bool break case catch char "
    "char16_t char32_t char8_t class co_await co_return co_yield compl concept const "
    "const_cast consteval constexpr constinit continue decltype default delete do "
    "double dynamic_cast else enum explicit export extern false float for friend goto "
    "if inline int long main mutable namespace new noexcept not not_eq nullptr "
    "operator or or_eq private protected public register reinterpret_cast requires "
    "restrict return short signed sizeof static static_assert static_cast struct "
    "switch template this thread_local throw true try typedef typeid typename typeof "
    "typeof_unqual union unsigned using virtual void volatile wchar_t while xor "
    "xor_eq".split()
)

_HEADER = """\
// {about}
#ifndef {guard}
#define {guard}

#ifdef __cplusplus
extern "C" {{
#endif

// A TFLite model, aligned to {alignment} bytes as its interpreter asks.
extern const unsigned char {name}[];
extern const unsigned int {name}_len;

#ifdef __cplusplus
}}
#endif

#endif  // {guard}
"""

_SOURCE = """\
// {about}
#include "{header}"

#if defined(__cplusplus)
#define {macro} alignas({alignment})
#elif defined(__STDC_VERSION__) && __STDC_VERSION__ >= 201112L
#define {macro} _Alignas({alignment})
#else
#define {macro} __attribute__((aligned({alignment})))
#endif

{macro} const unsigned char {name}[] = {{
{rows}
}};
const unsigned int {name}_len = {count};
"""

_RESOLVER = """\
// {about}
#ifndef {guard}
#define {guard}

#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"

constexpr int {name}_operator_count = {count};
{arena}

// Registers the kernels that the model needs, and no others.
inline TfLiteStatus {name}_add_operators(
    tflite::MicroMutableOpResolver<{name}_operator_count>& resolver) {{
{calls}
  return kTfLiteOk;
}}

#endif  // {guard}
"""


@dataclass(frozen=True)
class CArrayExport:
    """What `export_c_array` wrote.

    Attributes:
        source_path: Path of the source, which compiles as C and as C++.
        header_path: Path of its header.
        resolver_path: Path of the C++ header that registers the operators; `None` if it
            was not asked for.
        name: Name of the array; its length is `NAME_len`.
        bytes: Length of the array.
        operators: Tuple of the methods of `MicroMutableOpResolver` that the model
            needs, `"AddConv2D"`; empty if not asked for.
        arena_bytes: Tensor arena that TFLite Micro's interpreter used on this machine;
            `None` if that could not be measured.
        arena_reason: Why not; empty if it was.
    """

    source_path: str
    header_path: str
    resolver_path: str | None
    name: str
    bytes: int
    operators: tuple
    arena_bytes: int | None
    arena_reason: str

    def __str__(self):
        arena = self.arena_reason
        if self.arena_bytes is not None:
            arena = f"{self.arena_bytes:,} bytes"
        return (
            f"{self.source_path}: {self.name}[{self.bytes:,}]\n"
            f"  operators: {', '.join(self.operators) or 'not asked for'}\n"
            f"  arena:     {arena}"
        )


def export_c_array(path, destination, *, name=None, alignment=16, resolver=True):
    """Writes a `.tflite` file as an aligned C array, with what TFLite Micro needs.

    Args:
        path: Path of a `.tflite` file.
        destination: An existing folder, which gets `FILE.c`, `FILE.h` and
            `FILE_resolver.h`; or the path of the source, ending in `.c`, `.cc` or
            `.cpp`, with the headers beside it. Files that an earlier call wrote
            there are replaced.
        name: Name of the array, a C identifier; by default the name of the source,
            which in a folder is made of that of `path`.
        alignment: Bytes that the array is aligned to, a power of two; TFLite Micro
            asks for 16.
        resolver: Whether to write the header that registers the operators and holds
            the size of the tensor arena.

    Returns:
        A `CArrayExport`. The arena is measured with TFLite Micro's own interpreter
        where the extra `micro` is installed.

    Raises:
        FileExistsError: If a file of such a name is there that this function did not
            write.
        FileNotFoundError: If there is no such file or folder.
        ValueError: If the file is damaged, TFLite Micro lacks one of its operators (and
            `resolver` is true), or an argument does not fit.
        OSError: If a file cannot be written.
    """
    file = read_tflite(path)
    source = _source_path(path, destination)
    name = source.stem if name is None else name
    _check_name(name)
    _check_alignment(alignment)
    header = source.with_suffix(".h")
    registers = source.with_name(f"{source.stem}_resolver.h") if resolver else None
    check_writable(source)
    for target in filter(None, (source, header, registers)):
        _check_ours(target)
    calls = resolver_calls(file) if resolver else ()
    arena, reason = _arena(path) if resolver else (None, "not asked for")
    content = pathlib.Path(path).read_bytes()
    common = {
        "about": f"{_MARK} from {_one_line(pathlib.Path(path).name)}; do not edit.",
        "name": name,
        "alignment": alignment,
    }
    texts = {
        header: _HEADER.format(**common, guard=_guard(header)),
        source: _SOURCE.format(
            **common,
            header=header.name,
            macro=f"{name.upper()}_ALIGN",
            rows=_rows(content),
            count=len(content),
        ),
    }
    if registers is not None:
        texts[registers] = _resolver_text(common, registers, calls, arena, reason)
    write_together({target: text.encode() for target, text in texts.items()})
    return CArrayExport(
        source_path=os.fspath(source),
        header_path=os.fspath(header),
        resolver_path=None if registers is None else os.fspath(registers),
        name=name,
        bytes=len(content),
        operators=calls,
        arena_bytes=arena,
        arena_reason=reason,
    )


def _source_path(path, destination):
    destination = pathlib.Path(destination)
    if destination.is_dir():
        return destination / f"{_identifier(pathlib.Path(path).stem)}.c"
    if destination.suffix not in _SUFFIXES:
        raise ValueError(
            "`destination` must be an existing folder, or a file that ends in "
            f"{', '.join(_SUFFIXES)}. Received: {os.fspath(destination)!r}"
        )
    if re.search(r'["\\]', destination.name) or len(destination.name.splitlines()) > 1:
        raise ValueError(
            "`destination` must have a name that `#include` takes: no quotes, "
            f"backslashes or line breaks. Received: {os.fspath(destination)!r}"
        )
    return destination


def _check_ours(path):
    """Raises if a file is there that somebody else wrote."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        ours = file.readline().startswith(f"// {_MARK}".encode())
    if not ours:
        raise FileExistsError(
            f"{os.fspath(path)!r} was not written by tfcompress and would be lost. "
            "Pass another `destination`, such as "
            f"{os.fspath(path.with_name(f'{path.stem}_data.c'))!r}."
        )


def _one_line(name):
    """A name that stays within a comment and can be encoded."""
    return " ".join(name.splitlines()).encode(errors="replace").decode()


def _identifier(stem):
    """A C identifier made of the name of a file."""
    name = re.sub(r"\W", "_", stem, flags=re.ASCII)
    return f"model_{name}" if name[0].isdigit() or name in _KEYWORDS else name


def _check_name(name):
    if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) or name in _KEYWORDS:
        raise ValueError(
            "`name` must be a C identifier: letters, digits and underscores, no digit "
            f"first, no keyword. Received: name={name!r}"
        )


def _check_alignment(alignment):
    if not isinstance(alignment, int) or alignment not in _ALIGNMENTS:
        raise ValueError(
            "`alignment` must be a power of two from 4 to 4096. Received: "
            f"alignment={alignment!r}"
        )


def _arena(path):
    """Bytes of the arena, or `None` and why."""
    try:
        return run_micro(path).arena_bytes, ""
    except (ImportError, ValueError) as err:
        return None, f"not measured: {err}"


def _guard(path):
    guard = re.sub(r"\W", "_", path.name, flags=re.ASCII).upper() + "_"
    return f"TFC_{guard}" if guard[0].isdigit() else guard


def _rows(content):
    texts = [f"0x{byte:02x}" for byte in range(256)]
    return "\n".join(
        "    "
        + ", ".join(texts[byte] for byte in content[start : start + _BYTES_A_LINE])
        + ","
        for start in range(0, len(content), _BYTES_A_LINE)
    )


def _resolver_text(common, path, calls, arena, reason):
    name = common["name"]
    if arena is None:
        text = f"// The size of the tensor arena was {reason}"
    else:
        text = (
            "// Measured with TFLite Micro's interpreter and portable kernels on a "
            "64-bit machine.\n"
            f"constexpr int {name}_arena_bytes = {arena};"
        )
    return _RESOLVER.format(
        about=common["about"],
        guard=_guard(path),
        name=name,
        count=len(calls),
        arena=" ".join(text.split()) if arena is None else text,
        calls="\n".join(f"  TF_LITE_ENSURE_STATUS(resolver.{c}());" for c in calls),
    )
