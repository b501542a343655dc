"""Running the compiler: what is accepted, what is said, and what stays untouched."""

import json
import os
import pathlib
import pickle
import shlex
import sys
import time

import numpy as np
import pytest
from fake_edgetpu_compiler import compiled_model

from tfcompress.deploy.edgetpu_compile import (
    EdgeTPUCompilerError,
    EdgeTPUCompilerNotFound,
    compile_edgetpu,
)
from tfcompress.deploy.edgetpu_options import total_limit
from tfcompress.deploy.tflite_file import read_tflite

HERE = pathlib.Path(__file__).parent
MODEL = HERE / "edgetpu_pairs" / "LibrEdgeTPU__dense_256.tflite"


@pytest.fixture
def model(tmp_path):
    """A model in a folder with a blank in its name."""
    path = tmp_path / "my models" / "dense.tflite"
    path.parent.mkdir()
    path.write_bytes(MODEL.read_bytes())
    return path


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Puts a fake `edgetpu_compiler` on PATH; call it to choose what that does."""
    program = tmp_path / "bin" / "edgetpu_compiler"
    program.parent.mkdir()
    script = HERE / "fake_edgetpu_compiler.py"
    command = shlex.join([sys.executable, str(script)])
    program.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.setenv("FAKE_EDGETPU_NOTES", str(tmp_path / "notes"))

    def choose(behaviour):
        monkeypatch.setenv("FAKE_EDGETPU", behaviour)
        return program

    return choose


def test_success_puts_model_and_log_beside_the_input(model, fake):
    fake("success")
    result = compile_edgetpu(model)
    output = model.with_name("dense_edgetpu.tflite")
    assert result.path == str(output)
    assert result.log_path == str(output.with_suffix(".log"))
    assert read_tflite(output).operations[0].operator == "edgetpu-custom-op"
    assert "FULLY_CONNECTED" in output.with_suffix(".log").read_text()
    assert result.compiler_version == "16.0.384591198"
    assert (result.mapped_count, result.cpu_count) == (3, 0)
    assert [row.count for row in result.statuses] == [2, 1]
    assert result.bytes == output.stat().st_size
    assert (result.on_chip_bytes, result.off_chip_bytes) == (66 * 1024, 0)
    assert result.warnings == ()
    assert sorted(path.name for path in model.parent.iterdir()) == [
        "dense.tflite",
        "dense_edgetpu.log",
        "dense_edgetpu.tflite",
    ]


def test_partial_mapping_warns(model, fake, tmp_path):
    fake("partial")
    result = compile_edgetpu(model, tmp_path / "new" / "folder")
    assert pathlib.Path(result.path).parent == tmp_path / "new" / "folder"
    assert (result.mapped_count, result.cpu_count) == (2, 1)
    on_cpu, streamed = result.warnings
    assert "1 of 3 operations run on the CPU" in on_cpu
    assert f"{round(1.5 * 1024**2)} bytes" in streamed


def test_settings_reach_the_compiler(model, fake, tmp_path):
    program = fake("success")
    compile_edgetpu(
        model,
        compiler=program,
        min_runtime_version=13,
        search_delegate=True,
        delegate_search_step=4,
        multiple_subgraphs=True,
        timeout_sec=20,
    )
    *settings, out_flag, folder, path = json.loads((tmp_path / "notes").read_text())
    assert settings == shlex.split(
        "-s -m 13 -d --delegate_search_step 4 -a --timeout_sec 20"
    )
    assert (out_flag, path) == ("-o", str(model))
    assert not pathlib.Path(folder).exists()


def test_older_compilers_get_no_timeout_by_default(model, fake, tmp_path):
    fake("success")
    compile_edgetpu(model)
    settings = json.loads((tmp_path / "notes").read_text())
    assert settings[:2] == ["-s", "-o"]


@pytest.mark.parametrize(
    "behaviour, message",
    [
        (
            "fails",
            "large activation tensors in model. Make the input or the largest layer",
        ),
        ("not_quantized", "Model not quantized. Export it with tfc.export_tflite"),
        (
            "unknown_version",
            "builtin opcode 'EXP' version '2'. The compiler knows only",
        ),
        ("dynamic", "graph that has dynamic-sized tensors. Give every keras.Input"),
        ("silent", "exit code 1 without a reason. See check_edgetpu"),
        ("crashes", "crashed (SIGSEGV)"),
        ("empty", "one output file expected, found []"),
        ("garbage", "no readable TFLite model (100 bytes)"),
        ("nothing_mapped", "nothing was mapped to the Edge TPU. Compiler: 2 QUANTIZE"),
        ("nothing_mapped", "Pass min_runtime_version=13 or higher"),
    ],
)
def test_failure_says_why_and_keeps_the_old_result(model, fake, behaviour, message):
    fake(behaviour)
    old = model.with_name("dense_edgetpu.tflite")
    old.write_bytes(b"old model")
    old.with_suffix(".log").write_text("old log")
    with pytest.raises(EdgeTPUCompilerError) as error:
        compile_edgetpu(model)
    text = str(error.value)
    assert text.startswith("edgetpu_compiler failed on 'dense.tflite': ")
    assert message in text
    assert "\n" not in text
    assert error.value.log.compiler_version == "16.0.384591198"
    assert "Edge TPU Compiler" in error.value.log.text
    assert old.read_bytes() == b"old model"
    assert old.with_suffix(".log").read_text() == "old log"
    assert len(list(model.parent.iterdir())) == 3  # No temporary folder is left.


def test_models_are_compiled_together(model, fake, tmp_path):
    fake("success")
    second = model.with_name("second.tflite")
    second.write_bytes(MODEL.read_bytes())
    results = compile_edgetpu([model, second])
    assert [pathlib.Path(r.path).name for r in results] == [
        "dense_edgetpu.tflite",
        "second_edgetpu.tflite",
    ]
    for result in results:
        assert (result.mapped_count, result.cpu_count) == (3, 0)
        assert [row.count for row in result.statuses] == [2, 1]
        assert pathlib.Path(result.log_path).exists()
    assert json.loads((tmp_path / "notes").read_text())[-2:] == [
        str(model),
        str(second),
    ]


def test_one_model_of_two_with_nothing_mapped_is_named_and_none_is_kept(model, fake):
    fake("second_unmapped")
    second = model.with_name("second.tflite")
    second.write_bytes(MODEL.read_bytes())
    with pytest.raises(EdgeTPUCompilerError) as error:
        compile_edgetpu([model, second])
    assert "nothing of 'second' was mapped" in str(error.value)
    assert "2 QUANTIZE: Operation is working on an unsupported" in str(error.value)
    assert "Mapped to Edge TPU" not in str(error.value)
    assert len(list(model.parent.iterdir())) == 2


def test_segments_come_in_order(model, fake, tmp_path):
    fake("success")
    first, second = compile_edgetpu(model, num_segments=2)
    assert pathlib.Path(first.path).name == "dense_segment_0_of_2_edgetpu.tflite"
    assert pathlib.Path(second.path).name == "dense_segment_1_of_2_edgetpu.tflite"
    assert (second.mapped_count, second.cpu_count) == (3, 0)
    assert second.on_chip_bytes == 66 * 1024
    assert len(list(model.parent.iterdir())) == 5  # Neither folder nor uncompiled ones.


def test_segment_that_fails_after_the_first_fails_all(model, fake):
    fake("second_fails")
    with pytest.raises(EdgeTPUCompilerError, match="Restored original execution plan"):
        compile_edgetpu(model, num_segments=2)
    assert len(list(model.parent.iterdir())) == 1


def test_search_finds_what_compiles(model, fake):
    fake("needs_search")
    with pytest.raises(EdgeTPUCompilerError, match="or pass search_delegate=True"):
        compile_edgetpu(model)
    result = compile_edgetpu(model, search_delegate=True)
    assert (result.mapped_count, result.cpu_count) == (2, 1)


def test_intermediate_tensors_are_checked_and_passed_on(model, fake, tmp_path):
    fake("needs_search")
    (_, dense, _) = read_tflite(MODEL).operations
    name = dense.outputs[0].name
    result = compile_edgetpu(model, intermediate_tensors=[name])
    assert (result.mapped_count, result.cpu_count) == (2, 1)
    arguments = json.loads((tmp_path / "notes").read_text())
    assert arguments[arguments.index("-i") + 1] == name
    for wrong, where in ((name + "x", "nearest"), ("%", "Some")):
        with pytest.raises(ValueError, match=f"no operation computes .* {where}") as e:
            compile_edgetpu(model, intermediate_tensors=wrong)
        assert name in str(e.value)


def test_timeout_is_that_of_each_try(model, fake):
    fake("slow_search")
    # Three tries of 0.6 s each.
    result = compile_edgetpu(model, search_delegate=True, timeout_sec=1)
    assert (result.mapped_count, result.cpu_count) == (2, 1)
    with pytest.raises(EdgeTPUCompilerError, match="did not finish in 1 seconds, all"):
        compile_edgetpu(model, search_delegate=True, total_timeout_sec=1)


def test_limit_of_all_tries():
    assert total_limit(180) == 185
    assert total_limit(20, num_segments=3) == 65
    assert total_limit(20, search_delegate=True) == 205
    assert total_limit(20, num_segments=3, search_delegate=True) == 605
    assert total_limit(20, 7, num_segments=3) == 7


@pytest.mark.parametrize("name", ["timeout_sec", "total_timeout_sec"])
@pytest.mark.parametrize("value", ["20", True, 0, -1, float("nan"), float("inf")])
def test_seconds_are_checked(model, fake, tmp_path, name, value):
    fake("success")
    error = TypeError if isinstance(value, (str, bool)) else ValueError
    with pytest.raises(error, match=f"`{name}` must be .*Received: {name}={value!r}"):
        compile_edgetpu(model, **{name: value})
    assert not (tmp_path / "notes").exists()


def test_no_number_of_seconds_is_an_error(model, fake):
    fake("success")
    with pytest.raises(TypeError, match="must be a number of seconds"):
        compile_edgetpu(model, timeout_sec=None)


def test_numbers_of_numpy_are_numbers(model, fake, tmp_path):
    fake("success")
    results = compile_edgetpu(
        model,
        num_segments=np.int64(2),
        min_runtime_version=np.int32(13),
        timeout_sec=np.float32(19.5),
    )
    assert len(results) == 2
    assert json.loads((tmp_path / "notes").read_text())[:7] == shlex.split(
        "-s -m 13 -n 2 --timeout_sec 20"
    )


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_segments": 1}, "`num_segments` must be a whole number, 2 or more"),
        ({"min_runtime_version": "13"}, "Received: min_runtime_version='13'"),
        ({"delegate_search_step": 2}, "Pass search_delegate=True too"),
        (
            {"search_delegate": True, "intermediate_tensors": "a"},
            "chooses the intermediate tensors by itself",
        ),
        ({"intermediate_tensors": []}, "`intermediate_tensors` is empty"),
        ({"compiler": "a", "container": "b"}, "not both"),
    ],
)
def test_options_out_of_place_are_errors(model, fake, tmp_path, options, message):
    fake("success")
    with pytest.raises(ValueError, match=message):
        compile_edgetpu(model, **options)
    assert not (tmp_path / "notes").exists()


def test_lists_of_models_are_checked(model, fake, tmp_path):
    fake("success")
    for other in (tmp_path / "dense.tflite", model.with_suffix(".lite")):
        other.write_bytes(MODEL.read_bytes())
        with pytest.raises(ValueError, match="Received more than once: dense"):
            compile_edgetpu([model, other])
    with pytest.raises(ValueError, match="is an empty list"):
        compile_edgetpu([])
    second = model.with_name("second.tflite")
    second.write_bytes(MODEL.read_bytes())
    with pytest.raises(ValueError, match="Compile them one by one"):
        compile_edgetpu([model, second], num_segments=2)


def test_paths_may_come_from_any_iterable(model, fake):
    fake("success")
    (result,) = compile_edgetpu(path for path in [model])
    assert result.path == str(model.with_name("dense_edgetpu.tflite"))
    for wrong in (3, None, [model, 3]):
        with pytest.raises(TypeError, match="must be the path of a .tflite file"):
            compile_edgetpu(wrong)


def test_result_that_would_overwrite_an_input_is_refused(model, fake, tmp_path):
    fake("success")
    second = model.with_name("dense_edgetpu.tflite")
    second.write_bytes(MODEL.read_bytes())
    link = tmp_path / "link"
    link.symlink_to(model.parent)
    for out_dir in (None, link):
        with pytest.raises(ValueError, match="take the place of an input") as error:
            compile_edgetpu([model, second], out_dir)
        assert "dense_edgetpu.tflite" in str(error.value)
    assert second.read_bytes() == MODEL.read_bytes()
    assert not (tmp_path / "notes").exists()
    compile_edgetpu([model, second], tmp_path / "out")
    assert second.read_bytes() == MODEL.read_bytes()


@pytest.mark.parametrize("suffix", [".tflite", ".log"])
def test_folder_in_the_place_of_a_result_is_refused(model, fake, tmp_path, suffix):
    fake("success")
    second = model.with_name("second.tflite")
    second.write_bytes(MODEL.read_bytes())
    old = model.with_name("dense_edgetpu.tflite")
    old.write_bytes(b"old model")
    second.with_name("second_edgetpu" + suffix).mkdir()
    with pytest.raises(IsADirectoryError, match=f"second_edgetpu{suffix}.*a folder"):
        compile_edgetpu([model, second])
    assert old.read_bytes() == b"old model"
    assert not (tmp_path / "notes").exists()
    with pytest.raises(NotADirectoryError, match="which is a file"):
        compile_edgetpu(model, old)


def test_result_that_cannot_be_moved_leaves_the_old_ones(model, fake, monkeypatch):
    fake("success")
    second = model.with_name("second.tflite")
    second.write_bytes(MODEL.read_bytes())
    old = model.with_name("dense_edgetpu.tflite")
    old.write_bytes(b"old model")
    replace = os.replace

    def refuse_second(source, target):
        if pathlib.Path(target).name == "second_edgetpu.log":
            raise PermissionError("not that one")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse_second)
    with pytest.raises(PermissionError, match="not that one"):
        compile_edgetpu([model, second])
    assert old.read_bytes() == b"old model"
    assert len(list(model.parent.iterdir())) == 3  # Two inputs and the old result.


def test_result_of_a_link_lies_beside_the_link(model, fake, tmp_path):
    fake("success")
    link = tmp_path / "named.tflite"
    link.symlink_to(model)
    result = compile_edgetpu(link)
    assert result.path == str(tmp_path / "named_edgetpu.tflite")
    assert len(list(model.parent.iterdir())) == 1


@pytest.fixture
def docker(tmp_path, monkeypatch):
    """A machine with docker, an image and no compiler; returns the calls of docker."""
    folder = tmp_path / "only"
    folder.mkdir()
    program = folder / "docker"
    command = shlex.join([sys.executable, str(HERE / "fake_docker.py")])
    program.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    program.chmod(0o755)
    notes = tmp_path / "docker"
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("FAKE_DOCKER_NOTES", str(notes))
    monkeypatch.setenv("FAKE_DOCKER_IMAGES", "edgetpu-compiler my/image:2")
    monkeypatch.setenv("FAKE_EDGETPU", "success")
    monkeypatch.setenv("FAKE_EDGETPU_NOTES", str(tmp_path / "notes"))
    return lambda: [json.loads(line) for line in notes.read_text().splitlines()]


@pytest.mark.parametrize("image", [None, "my/image:2"])
def test_container_compiles_where_there_is_no_compiler(model, docker, image):
    result = compile_edgetpu(model, container=image)
    assert result.container == (image or "edgetpu-compiler")
    assert (result.mapped_count, result.cpu_count) == (3, 0)
    assert result.path == str(model.with_name("dense_edgetpu.tflite"))
    assert len(list(model.parent.iterdir())) == 3
    run = docker()[-1]
    assert run[0] == "run" and "--rm" in run
    assert run[run.index("--network") + 1] == "none"
    assert run[run.index(result.container) + 1] == "edgetpu_compiler"


@pytest.mark.parametrize("name", ["a:b", 'a,b "c"=d'])
def test_folder_of_any_name_is_mounted(docker, tmp_path, name):
    model = tmp_path / name / "dense.tflite"
    model.parent.mkdir()
    model.write_bytes(MODEL.read_bytes())
    result = compile_edgetpu(model)
    assert result.path == str(model.with_name("dense_edgetpu.tflite"))


def test_user_is_named_where_there_are_user_numbers(model, docker, monkeypatch):
    compile_edgetpu(model)
    run = docker()[-1]
    assert run[run.index("--user") + 1] == f"{os.getuid()}:{os.getgid()}"
    monkeypatch.delattr(os, "getuid")  # As on Windows.
    compile_edgetpu(model)
    assert "--user" not in docker()[-1]


def test_compiler_on_this_machine_goes_before_a_container(model, docker, fake):
    fake("success")
    assert compile_edgetpu(model).container == ""


def test_failure_within_the_container_is_the_compilers(model, docker, monkeypatch):
    monkeypatch.setenv("FAKE_EDGETPU", "fails")
    with pytest.raises(EdgeTPUCompilerError, match="large activation tensors"):
        compile_edgetpu(model)


def test_image_without_the_compiler_is_an_error(model, docker, monkeypatch):
    monkeypatch.setenv("FAKE_EDGETPU", "no_compiler")
    with pytest.raises(EdgeTPUCompilerError, match="docker cannot run .* not found"):
        compile_edgetpu(model)


def test_container_that_hangs_is_killed(model, docker, monkeypatch, tmp_path):
    monkeypatch.setenv("FAKE_EDGETPU", "hangs")
    with pytest.raises(EdgeTPUCompilerError, match="did not finish in 2 seconds"):
        compile_edgetpu(model, total_timeout_sec=2)
    run, kill = docker()[-2:]
    assert kill == ["kill", run[run.index("--name") + 1]]
    assert not _runs(int((tmp_path / "docker.pid").read_text()))


@pytest.mark.parametrize(
    "images, image, message",
    [
        (
            "",
            None,
            "on PATH, and image 'edgetpu-compiler' cannot be run: .*No such image",
        ),
        (None, None, "on PATH, .* cannot be run: Cannot connect to the Docker daemon"),
        ("", "my/image:2", "No such image: my/image:2"),
        (None, "my/image:2", "Cannot connect to the Docker daemon"),
    ],
)
def test_without_image_the_error_says_how_to_build_one(
    model, docker, monkeypatch, images, image, message
):
    if images is None:
        monkeypatch.delenv("FAKE_DOCKER_IMAGES")
    else:
        monkeypatch.setenv("FAKE_DOCKER_IMAGES", images)
    with pytest.raises(EdgeTPUCompilerNotFound, match=message) as error:
        compile_edgetpu(model, container=image)
    assert "docker build -t edgetpu-compiler" in str(error.value)


def test_without_docker_a_container_is_an_error(model, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EdgeTPUCompilerNotFound, match="no docker on PATH"):
        compile_edgetpu(model, container="my/image:2")


def test_nothing_mapped_quotes_the_check(fake, tmp_path):
    fake("nothing_mapped")
    path = tmp_path / "float.tflite"
    path.write_bytes(compiled_model(on_cpu=1, mapped=False, dtype="FLOAT32"))
    with pytest.raises(EdgeTPUCompilerError) as error:
        compile_edgetpu(path)
    assert "Operation 0 RELU: nothing in the file is quantized" in str(error.value)
    assert 'tfc.export_tflite(model, path, kind="int8")' in str(error.value)


def test_hanging_compiler_is_killed_with_its_children(model, fake, tmp_path):
    fake("hangs")
    old = model.with_name("dense_edgetpu.tflite")
    old.write_bytes(b"old model")
    start = time.monotonic()
    with pytest.raises(EdgeTPUCompilerError, match="did not finish in 1 seconds"):
        compile_edgetpu(model, total_timeout_sec=1)
    assert time.monotonic() - start < 10
    assert old.read_bytes() == b"old model"
    assert not _runs(int((tmp_path / "notes").read_text()))


def _runs(process_id):
    stat = pathlib.Path(f"/proc/{process_id}/stat")
    for _ in range(50):
        try:
            state = stat.read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return False
        if state == "Z":  # Dead, and nobody has asked for its exit code.
            return False
        time.sleep(0.1)
    return True


def test_no_compiler_says_where_to_get_one(model, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EdgeTPUCompilerNotFound) as error:
        compile_edgetpu(model)
    for part in ("on PATH", "x86-64 Linux", "Debian", "Colab", "Docker", "compiler="):
        assert part in str(error.value)
    assert isinstance(error.value, FileNotFoundError)
    with pytest.raises(EdgeTPUCompilerNotFound, match="at '/absent/compiler'"):
        compile_edgetpu(model, compiler="/absent/compiler")


def test_program_of_another_system_is_an_error(model, tmp_path):
    program = tmp_path / "edgetpu_compiler"
    program.write_bytes(b"\x7fELF" + b"\0" * 60)
    program.chmod(0o755)
    with pytest.raises(EdgeTPUCompilerError, match="does not start"):
        compile_edgetpu(model, compiler=program)


def test_input_is_checked_before_the_compiler_runs(fake, tmp_path):
    fake("success")
    with pytest.raises(FileNotFoundError, match="No such .tflite file"):
        compile_edgetpu(tmp_path / "absent.tflite")
    compiled = tmp_path / "model_edgetpu.tflite"
    compiled.write_bytes(compiled_model())
    with pytest.raises(ValueError, match="compiled for the Edge TPU already"):
        compile_edgetpu(compiled)
    with pytest.raises(ValueError, match="Received: timeout_sec=0"):
        compile_edgetpu(MODEL, timeout_sec=0)
    assert not (tmp_path / "notes").exists()


def test_error_survives_pickling(model, fake):
    fake("fails")
    with pytest.raises(EdgeTPUCompilerError) as error:
        compile_edgetpu(model)
    copy = pickle.loads(pickle.dumps(error.value))
    assert str(copy) == str(error.value)
    assert copy.log == error.value.log
