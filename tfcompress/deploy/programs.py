"""Runs other people's compilers and interpreters: timed, in a process apart.

Native tools can hang, crash or leave children behind; none of that may reach the user's
process.

Example:
    ```python
    done = run_program(["vela", "model.tflite"], folder, timeout_sec=180)
    done.code, done.output
    ```
"""

import importlib.util
import math
import numbers
import os
import signal
import subprocess
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Finished:
    """How a program ended.

    Attributes:
        code: Exit code, negative for a signal; `None` if it was killed for its time.
        output: What it wrote to its output and error streams.
    """

    code: int | None
    output: str

    @property
    def crash(self):
        """Name of the signal that ended it, `"SIGSEGV"`; `None` if it was none."""
        if not self.code:
            return None
        # A shell reports a signal as 128 + its number.
        number = -self.code if self.code < 0 else self.code - 128
        return signal.Signals(number).name if number in signal.valid_signals() else None

    def trouble(self, timeout_sec):
        """Why it did not end well, in a few words; `None` if it did.

        Args:
            timeout_sec: Seconds that it had.
        """
        if self.code is None:
            return f"it did not finish in {timeout_sec} seconds"
        if self.crash:
            return f"it ended its process ({self.crash})"
        if self.code:
            lines = [line.strip() for line in self.output.splitlines() if line.strip()]
            return lines[-1] if lines else f"exit code {self.code}"
        return None


def run_program(command, folder, timeout_sec, *, environment=None):
    """Runs a program to its end, or kills it and its children after a while.

    Args:
        command: List of strings, the program first.
        folder: `pathlib.Path` of an existing folder of ours: the program's working
            folder, which receives `output.txt` as well.
        timeout_sec: Seconds after which it is killed.
        environment: Dict of its environment; that of this process if `None`.

    Returns:
        A `Finished`.

    Raises:
        OSError: If the program does not start.
    """
    captured = folder / "output.txt"
    # A file, not a pipe: a pipe stays open as long as any descendant holds it.
    with open(captured, "wb") as stream:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout_sec)
        except BaseException as err:
            # The program's own children would go on without it.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if not isinstance(err, subprocess.TimeoutExpired):
                raise
            code = None
    return Finished(code, captured.read_text(errors="replace"))


def run_python(arguments, folder, timeout_sec):
    """As `run_program`, with this Python and what it can import.

    Args:
        arguments: List of strings behind the interpreter's name.
        folder: The working folder.
        timeout_sec: Seconds after which it is killed.

    Returns:
        A `Finished`.
    """
    search = os.pathsep.join(filter(None, sys.path))
    return run_program(
        [sys.executable, *arguments],
        folder,
        timeout_sec,
        environment=os.environ | {"PYTHONPATH": search},
    )


def run_script(script, arguments, folder, timeout_sec):
    """As `run_python`, of a script that lies beside our modules.

    Started by its path it would put their folder in front of the search path, and our
    `onnx.py` in front of the package.

    Args:
        script: `pathlib.Path` of the script.
        arguments: List of strings.
        folder: The working folder.
        timeout_sec: Seconds after which it is killed.

    Returns:
        A `Finished`.
    """
    start = "import runpy, sys; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    return run_python(["-c", start, os.fspath(script), *arguments], folder, timeout_sec)


def check_timeout(timeout_sec, name="timeout_sec"):
    """Raises unless the number of seconds is positive.

    Args:
        timeout_sec: Number of seconds.
        name: Name of the argument, for messages.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is not positive, or infinite.
    """
    received = f"Received: {name}={timeout_sec!r}"
    if isinstance(timeout_sec, bool) or not isinstance(timeout_sec, numbers.Real):
        raise TypeError(f"`{name}` must be a number of seconds. {received}")
    if not 0 < timeout_sec < math.inf:
        raise ValueError(f"`{name}` must be positive and finite. {received}")


def installed(module):
    """Whether a module can be imported, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
