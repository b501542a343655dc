"""Starts `edgetpu_compiler`, here or in a container, and ends it in time.

Example:
    ```python
    compiler = find_compiler()
    done, log = compiler.run(["-s"], ["model.tflite"], folder, timeout_sec=180)
    ```
"""

import csv
import io
import os
import pathlib
import shutil
import subprocess
import uuid

from tfcompress.deploy.edgetpu_log import parse_compiler_output
from tfcompress.deploy.programs import run_program

COMPILER = "edgetpu_compiler"
IMAGE = "edgetpu-compiler"
_DOCKER_SECONDS = 30

# What `docker run` itself returns when it could not start the program.
_DOCKER_CODES = (125, 126, 127)
_BUILD = (
    f"An image has it after `docker build -t {IMAGE} -` of a Dockerfile that installs "
    "Google Coral's Debian package edgetpu-compiler (README, Edge TPU)."
)


class EdgeTPUCompilerNotFound(FileNotFoundError):
    """There is no `edgetpu_compiler` here."""


class EdgeTPUCompilerError(RuntimeError):
    """The compiler failed, or mapped nothing.

    Attributes:
        log: The `CompilerLog` of its output; `log.text` is the output itself.
    """

    def __init__(self, message, log=None):
        super().__init__(message)
        self.log = log


def find_compiler(compiler=None, container=None):
    """The compiler to use.

    Args:
        compiler: Path or name of the program; by default `edgetpu_compiler` on PATH.
        container: Name of a docker image that has it. With neither, the image
            `edgetpu-compiler` is taken where there is no program but that image.

    Returns:
        A `LocalCompiler` or a `ContainerCompiler`.

    Raises:
        ValueError: If both are given.
        EdgeTPUCompilerNotFound: If there is none; says where to get one.
    """
    if compiler is not None and container is not None:
        raise ValueError(
            "Pass `compiler` or `container`, not both. Received: "
            f"compiler={os.fspath(compiler)!r}, container={container!r}"
        )
    if container is not None:
        docker, why = _docker_with(container)
        if why:
            raise EdgeTPUCompilerNotFound(
                f"Cannot run {COMPILER} in image {container!r}: {why}. {_BUILD}"
            )
        return ContainerCompiler(docker, container)
    found = shutil.which(os.fspath(compiler or COMPILER))
    if found is not None:
        return LocalCompiler(os.path.abspath(found))
    if compiler is not None:
        where = f"at {os.fspath(compiler)!r}"
    else:
        docker, why = _docker_with(IMAGE)
        if not why:
            return ContainerCompiler(docker, IMAGE)
        where = f"on PATH, and image {IMAGE!r} cannot be run: {why}"
    raise EdgeTPUCompilerNotFound(
        f"No executable {COMPILER} {where}. It is a proprietary program for "
        "x86-64 Linux only, from Google Coral's Debian repository (package "
        "edgetpu-compiler); on other systems it runs in Colab or in an x86-64 "
        f"Docker container. Put it on PATH or pass compiler= or container=. {_BUILD}"
    )


def _docker_with(image):
    """Path of docker, and why it cannot run the image; empty if it can."""
    docker = shutil.which("docker")
    if docker is None:
        return None, "there is no docker on PATH"
    try:
        asked = subprocess.run(
            [docker, "image", "inspect", image],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_DOCKER_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as err:
        return docker, f"docker does not answer ({type(err).__name__})"
    if asked.returncode:
        lines = asked.stderr.strip().splitlines() or ["docker knows no such image"]
        return docker, lines[-1].rstrip(".")
    return docker, ""


class LocalCompiler:
    """The program on this machine.

    Attributes:
        program: Its absolute path.
        image: Empty: no container.
    """

    image = ""

    def __init__(self, program):
        self.program = program

    def run(self, options, models, folder, timeout_sec):
        """Compiles, with the results in `folder`.

        Args:
            options: List of the compiler's options.
            models: Paths of the models.
            folder: `pathlib.Path` of an empty folder.
            timeout_sec: Seconds after which everything is killed.

        Returns:
            How it ended, a `Finished`, and the output as a `CompilerLog`.

        Raises:
            EdgeTPUCompilerError: If the program does not start.
        """
        command = [self.program, *options, "-o", str(folder), *map(str, models)]
        return _run(command, folder, timeout_sec)


class ContainerCompiler:
    """The program in a docker image, without network and as the user who asked.

    Attributes:
        docker: Path of docker.
        image: Name of the image.
    """

    def __init__(self, docker, image):
        self.docker = docker
        self.image = image

    def run(self, options, models, folder, timeout_sec):
        """As `LocalCompiler.run`."""
        name = f"tfcompress-{uuid.uuid4().hex[:12]}"
        inside = []
        (folder / "models").mkdir()
        for model in models:
            shutil.copy(model, folder / "models")
            inside.append(f"/work/models/{pathlib.Path(model).name}")
        command = [
            *(self.docker, "run", "--rm", "--init", "--name", name),
            *("--network", "none", "--platform", "linux/amd64", "--pull", "never"),
            *_as_this_user(),
            *("--mount", _mount(folder.resolve(), "/work"), "--workdir", "/work"),
            *(self.image, COMPILER, *options, "-o", "/work", *inside),
        ]
        try:
            done, log = _run(command, folder, timeout_sec)
        except BaseException:
            self._kill(name)
            raise
        if done.code is None:
            self._kill(name)
        if done.code in _DOCKER_CODES:
            lines = log.text.strip().splitlines() or ["it says nothing"]
            raise EdgeTPUCompilerError(
                f"docker cannot run {COMPILER} in image {self.image!r}: {lines[-1]}",
                log,
            )
        return done, log

    def _kill(self, name):
        """Ends the container, which outlives the client that started it."""
        try:
            subprocess.run(
                [self.docker, "kill", name],
                capture_output=True,
                timeout=_DOCKER_SECONDS,
            )
        except subprocess.TimeoutExpired:
            pass  # The daemon hangs; the error of the compilation says more.


def _as_this_user():
    """Options by which the results belong to whoever asked for them."""
    if not hasattr(os, "getuid"):
        return ()  # Windows has no user numbers; docker gives files to its user.
    return "--user", f"{os.getuid()}:{os.getgid()}"


def _mount(folder, inside):
    """The value of `--mount`; `--volume` cannot name a folder with a colon.

    Docker reads it as a line of comma-separated values.
    """
    fields = ("type=bind", f"source={folder}", f"target={inside}")
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(fields)
    return line.getvalue()


def _run(command, folder, timeout_sec):
    try:
        done = run_program(command, folder, timeout_sec)
    except OSError as err:
        raise EdgeTPUCompilerError(
            f"{command[0]!r} does not start ({err.strerror}): {COMPILER} is an "
            "x86-64 Linux program. Use Colab or an x86-64 Docker container.",
            parse_compiler_output(""),
        ) from err
    return done, parse_compiler_output(done.output)
