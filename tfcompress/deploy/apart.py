"""Asks a process of its own to run a file, so that no file can harm this one.

LiteRT's native code trusts what it reads: a damaged file can end the process, take all
memory or run for ever. So a file is tried there before it runs here.

Example:
    ```python
    check_loads("model.tflite")                    # the bytes are a model
    check_runs("model.tflite", kernels="xnnpack")  # and running it ends well
    ```
"""

import atexit
import hashlib
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import threading

_PROGRAM = pathlib.Path(__file__).with_name("litert_process.py")
_START = (
    "import runpy, sys; sys.path[:] = sys.argv[2:]; "
    "runpy.run_path(sys.argv[1], run_name='__main__')"
)

# Time for one request: far more than a model of a phone takes for one inference.
_TIMEOUT_SEC = 60

# Memory beside the file itself, and how often the file may be in memory.
_MEMORY_BYTES, _COPIES = 3 * 2**30, 8


class FileCrashError(ValueError):
    """Running a file ended, stopped or starved the process that ran it."""


class FileRunError(ValueError):
    """The runtime refused a file, or an operation failed."""


class Process:
    """A process that answers requests of `litert_process`, started when first needed.

    After anything but an answer it is ended, and the next request starts another.
    """

    def __init__(self):
        self._popen = None
        self._lock = threading.RLock()

    def ask(self, what, path, *, timeout_sec=_TIMEOUT_SEC, **arguments):
        """Sends a request and waits for its answer.

        Args:
            what: Name of the request.
            path: Path of the file it is about.
            timeout_sec: Seconds after which the process is ended.
            **arguments: Arguments of the request.

        Returns:
            The answer.

        Raises:
            FileCrashError: If the process died, or took too long.
            FileRunError: If the request raised an error.
        """
        request = {
            "what": what,
            # The process may have been started in another folder.
            "path": os.path.abspath(path),
            "memory_bytes": _MEMORY_BYTES + _COPIES * os.path.getsize(path),
            **arguments,
        }
        with self._lock:
            self._start()
            kind, answer = self._exchange(request, os.fspath(path), timeout_sec)
        if kind == "failed":
            raise FileRunError(f"{os.fspath(path)!r}: {answer}")
        return answer

    def close(self):
        """Ends the process."""
        with self._lock:
            popen, self._popen = self._popen, None
            if popen is None or self._owner != os.getpid():
                return
            popen.kill()
            for stream in (popen.stdin, popen.stdout):
                # What is left in a pipe to a dead process cannot be written.
                try:
                    stream.close()
                except OSError:
                    pass
            popen.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _start(self):
        if self._popen is not None and self._owner == os.getpid():
            return
        self._owner = os.getpid()
        self._popen = subprocess.Popen(
            [sys.executable, "-c", _START, os.fspath(_PROGRAM), *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Native code's own talk; the answer says what went wrong.
            stderr=subprocess.DEVNULL,
        )

    def _exchange(self, request, path, timeout_sec):
        popen, expired = self._popen, threading.Event()

        def expire():
            expired.set()
            popen.kill()

        timer = threading.Timer(timeout_sec, expire)
        timer.start()
        try:
            pickle.dump(request, popen.stdin)
            popen.stdin.flush()
            answer = pickle.load(popen.stdout)
        except (OSError, EOFError, pickle.UnpicklingError) as err:
            code = popen.wait()
            self.close()
            raise FileCrashError(
                _death(path, code, timeout_sec if expired.is_set() else None)
            ) from err
        except BaseException:
            # An answer that nobody reads would be taken for the next one.
            self.close()
            raise
        finally:
            timer.cancel()
            timer.join()
        return answer


def _death(path, code, timeout_sec):
    if timeout_sec is not None:
        how = f"did not end within {timeout_sec} s"
    else:
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        how = f"ended the process ({name})"
    why = "is damaged or does what this runtime cannot; export or copy it again"
    if timeout_sec is not None:
        why = "is too large to run so often, or damaged: ask for fewer runs first"
    return f"{path!r} cannot be run: the runtime {how}. The file {why}."


# For short requests; what is measured has a process of its own.
_PROCESS = Process()
atexit.register(_PROCESS.close)

ask = _PROCESS.ask

# Answers about contents that were asked before: `(request, ..., digest) -> error`.
_KNOWN = {}


def check_loads(path):
    """Raises unless LiteRT can read the bytes of a file.

    Raises:
        FileCrashError: If reading them crashed.
        FileRunError: If they are refused; an operator that this runtime lacks counts.
    """
    _check("load", path)


def check_prepares(path):
    """Raises unless LiteRT can set up a file to be run.

    Raises:
        FileCrashError: If setting it up crashed.
        FileRunError: If an operation refuses what it is given.
    """
    _check("prepare", path)


def check_runs(path, *, kernels="xnnpack"):
    """Raises unless a file runs once, on zeros or on ones.

    Raises:
        FileCrashError: If the process died, or took too long.
        FileRunError: If the runtime refused.
    """
    _check("attempt", path, kernels=kernels)


def _check(what, path, **arguments):
    digest = hashlib.sha256(pathlib.Path(path).read_bytes()).digest()
    key = what, *arguments.values(), digest
    if key not in _KNOWN:
        try:
            _PROCESS.ask(what, path, **arguments)
            _KNOWN[key] = None
        except FileRunError as err:
            _KNOWN[key] = str(err)
    if _KNOWN[key] is not None:
        raise FileRunError(_KNOWN[key])
