"""C arrays: compiled as C and C++, with the same bytes and the operators registered."""

import pathlib
import shutil
import subprocess

import pytest
from small_files import copy_of, small_files

import tfcompress as tfc
from tfcompress.deploy import micro
from tfcompress.deploy.programs import installed

needs_gcc = pytest.mark.skipif(
    not (shutil.which("gcc") and shutil.which("g++")), reason="needs gcc and g++"
)

# Writes the array to its output; 2 if it is not aligned.
MAIN = """
#include <stdint.h>
#include <stdio.h>
#include "{header}"
int main(void) {{
  if ((uintptr_t){name} % {alignment}) return 2;
  return fwrite({name}, 1, {name}_len, stdout) == {name}_len ? 0 : 3;
}}
"""

# The part of TFLite Micro's header that the generated one uses.
RESOLVER = """
#pragma once
#include <stdio.h>
enum TfLiteStatus { kTfLiteOk = 0, kTfLiteError = 1 };
#define TF_LITE_ENSURE_STATUS(a) \\
  do { if ((a) != kTfLiteOk) return kTfLiteError; } while (0)
namespace tflite {
template <unsigned int tOpCount>
struct MicroMutableOpResolver {
  unsigned int used = 0;
  TfLiteStatus Count(const char* name) {
    puts(name);
    return ++used <= tOpCount ? kTfLiteOk : kTfLiteError;
  }
  METHODS
};
}
"""


def built(compiler, sources, folder, *flags):
    """Compiles and runs a program; returns what it wrote."""
    program = folder / "program"
    warnings = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    files = [str(source) for source in sources]
    subprocess.run(
        [*compiler, *warnings, *flags, "-I", str(folder), *files, "-o", str(program)],
        check=True,
    )
    return subprocess.run([str(program)], check=True, capture_output=True).stdout


COMPILERS = {
    "C11": ["gcc", "-std=c11", "-x", "c"],
    "C++17": ["g++", "-std=c++17", "-x", "c++"],
}


@needs_gcc
@pytest.mark.parametrize("language", COMPILERS)
def test_the_array_holds_the_file_aligned(language, tmp_path):
    path = copy_of("int8.tflite", tmp_path / "in")
    result = tfc.export_c_array(path, tmp_path, alignment=64)
    assert result.name == "int8" and result.bytes == path.stat().st_size
    main = tmp_path / "main.c"
    main.write_text(MAIN.format(header="int8.h", name="int8", alignment=64))
    out = built(COMPILERS[language], [main, result.source_path], tmp_path)
    assert out == path.read_bytes()


@needs_gcc
def test_a_c_array_links_with_a_cpp_program(tmp_path):
    result = tfc.export_c_array(
        small_files() / "int8.tflite", tmp_path / "weights.c", name="g_model"
    )
    assert result.header_path == str(tmp_path / "weights.h")
    main = tmp_path / "main.cc"
    main.write_text(MAIN.format(header="weights.h", name="g_model", alignment=16))
    compiled = tmp_path / "weights.o"
    subprocess.run(
        ["gcc", "-std=c11", "-c", result.source_path, "-o", str(compiled)], check=True
    )
    out = built(["g++", "-std=c++17"], [main, compiled], tmp_path)
    assert out == (small_files() / "int8.tflite").read_bytes()


@needs_gcc
def test_the_resolver_registers_just_the_operators(tmp_path):
    result = tfc.export_c_array(small_files() / "int8.tflite", tmp_path, name="net")
    expected = ("AddConv2D", "AddFullyConnected", "AddMean", "AddSoftmax")
    assert result.operators == expected
    assert result.resolver_path == str(tmp_path / "int8_resolver.h")
    header = tmp_path / "tensorflow/lite/micro/micro_mutable_op_resolver.h"
    header.parent.mkdir(parents=True)
    methods = "\n".join(
        f'  TfLiteStatus Add{m}() {{ return Count("Add{m}"); }}' for m in micro._METHODS
    )
    header.write_text(RESOLVER.replace("METHODS", methods))
    main = tmp_path / "main.cc"
    main.write_text(
        '#include "int8_resolver.h"\n#include "int8_resolver.h"\n'
        "static tflite::MicroMutableOpResolver<net_operator_count> resolver;\n"
        "int main() { return net_add_operators(resolver) == kTfLiteOk ? 0 : 1; }\n"
    )
    out = built(["g++", "-std=c++17"], [main], tmp_path)
    assert tuple(out.decode().split()) == expected


@pytest.mark.skipif(not installed("tflite_micro"), reason="needs the extra micro")
def test_the_arena_is_the_interpreters(tmp_path):
    path = small_files() / "int8.tflite"
    result = tfc.export_c_array(path, tmp_path)
    assert result.arena_bytes == micro.run_micro(path).arena_bytes
    assert result.arena_reason == ""
    text = (tmp_path / "int8_resolver.h").read_text()
    assert f"constexpr int int8_arena_bytes = {result.arena_bytes};" in text
    assert f"{result.arena_bytes:,} bytes" in str(result)


def test_without_the_interpreter_the_arena_is_said_to_be_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(micro, "installed", lambda module: False)
    result = tfc.export_c_array(small_files() / "int8.tflite", tmp_path)
    assert result.arena_bytes is None
    assert "tfcompress[micro]" in result.arena_reason
    text = (tmp_path / "int8_resolver.h").read_text()
    assert "// The size of the tensor arena was not measured" in text
    assert "arena_bytes" not in text


def test_an_operator_that_micro_lacks_needs_resolver_false(tmp_path, monkeypatch):
    path = small_files() / "int8.tflite"
    calls = {k: v for k, v in micro._BY_OPERATOR.items() if k != "softmax"}
    monkeypatch.setattr(micro, "_BY_OPERATOR", calls)
    with pytest.raises(ValueError, match="no kernel for SOFTMAX"):
        tfc.export_c_array(path, tmp_path)
    assert not list(tmp_path.iterdir())
    result = tfc.export_c_array(path, tmp_path, resolver=False)
    assert result.resolver_path is None and result.operators == ()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["int8.c", "int8.h"]


def test_names_come_from_the_file(tmp_path):
    path = tmp_path / "2 my-model.v3.tflite"
    path.write_bytes((small_files() / "int8.tflite").read_bytes())
    result = tfc.export_c_array(path, tmp_path, resolver=False)
    assert result.name == "model_2_my_model_v3"
    assert pathlib.Path(result.source_path).name == "model_2_my_model_v3.c"


@needs_gcc
@pytest.mark.parametrize("language", COMPILERS)
def test_odd_names_compile(language, tmp_path):
    path = copy_of("int8.tflite", tmp_path).rename(tmp_path / "a\nint b ü.tflite")
    result = tfc.export_c_array(path, tmp_path / "2net.c", name="net", resolver=False)
    main = tmp_path / "main.c"
    main.write_text(MAIN.format(header="2net.h", name="net", alignment=16))
    sources = [main, result.source_path]
    assert built(COMPILERS[language], sources, tmp_path) == path.read_bytes()


def test_a_name_that_only_cpp_refuses_is_changed(tmp_path):
    path = copy_of("int8.tflite", tmp_path).rename(tmp_path / "xor.tflite")
    assert tfc.export_c_array(path, tmp_path, resolver=False).name == "model_xor"


@pytest.mark.parametrize("name", ["int8.c", "int8.h", "int8_resolver.h"])
def test_a_file_of_somebody_else_stays(name, tmp_path):
    path = small_files() / "int8.tflite"
    (tmp_path / name).write_text("int user;")
    with pytest.raises(FileExistsError, match=f"{name}' was not written by .*_data.c"):
        tfc.export_c_array(path, tmp_path)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["int user;"]
    (tmp_path / name).unlink()
    tfc.export_c_array(path, tmp_path, resolver=False)
    tfc.export_c_array(path, tmp_path, resolver=False)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"name": "my-model"}, "Received: name='my-model'"),
        ({"name": "int"}, "Received: name='int'"),
        ({"name": "typename"}, "Received: name='typename'"),
        ({"alignment": 12}, "Received: alignment=12"),
        ({"alignment": 2}, "Received: alignment=2"),
        ({"alignment": 16.0}, "Received: alignment=16.0"),
    ],
    ids=str,
)
def test_wrong_choices(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        tfc.export_c_array(small_files() / "int8.tflite", tmp_path, **settings)
    assert not list(tmp_path.iterdir())


def test_wrong_places(tmp_path):
    path = small_files() / "int8.tflite"
    with pytest.raises(ValueError, match="an existing folder, or a file that ends in"):
        tfc.export_c_array(path, tmp_path / "absent")
    with pytest.raises(ValueError, match="a name that `#include` takes"):
        tfc.export_c_array(path, tmp_path / 'a"b.c')
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        tfc.export_c_array(path, tmp_path / "absent" / "m.c")
    with pytest.raises(FileNotFoundError, match="No such .tflite file"):
        tfc.export_c_array(tmp_path / "absent.tflite", tmp_path)
