#!/usr/bin/env python3
"""Behaves like docker with the images that `FAKE_DOCKER_IMAGES` names.

`run` executes the fake compiler with the volume's paths, `kill` ends what runs. Each
call appends its arguments to the file `FAKE_DOCKER_NOTES`.
"""

import csv
import json
import os
import pathlib
import signal
import subprocess
import sys

_COMPILER = pathlib.Path(__file__).with_name("fake_edgetpu_compiler.py")


def main(arguments):
    notes = pathlib.Path(os.environ["FAKE_DOCKER_NOTES"])
    with notes.open("a") as file:
        file.write(json.dumps(arguments) + "\n")
    verb = arguments[0]
    if verb == "image":
        return _inspect(arguments[-1])
    if verb == "kill":
        pid = int(notes.with_suffix(".pid").read_text())
        os.killpg(pid, signal.SIGKILL)
        return 0
    assert verb == "run", arguments
    return _run(arguments[1:], notes)


def _inspect(image):
    images = os.environ.get("FAKE_DOCKER_IMAGES")
    if images is None:
        print("Cannot connect to the Docker daemon. Is it running?", file=sys.stderr)
        return 1
    if image not in images.split():
        print(f"Error response from daemon: No such image: {image}", file=sys.stderr)
        return 1
    print("[{}]")
    return 0


def _mounted(arguments):
    """The folder outside and inside, as docker reads them."""
    if "--volume" in arguments:
        parts = arguments[arguments.index("--volume") + 1].split(":")
        if len(parts) != 2:
            sys.exit(f"invalid volume specification: {parts}")
        return parts
    (fields,) = csv.reader([arguments[arguments.index("--mount") + 1]])
    options = dict(field.split("=", 1) for field in fields)
    assert options.pop("type") == "bind", fields
    return options["source"], options["target"]


def _run(arguments, notes):
    host, inside = _mounted(arguments)
    assert arguments[arguments.index("--pull") + 1] == "never", arguments
    start = arguments.index("edgetpu_compiler")
    if os.environ["FAKE_EDGETPU"] == "no_compiler":
        print('exec: "edgetpu_compiler": executable file not found in $PATH: unknown.')
        return 127
    command = [a.replace(inside, host, 1) for a in arguments[start + 1 :]]
    # A session of its own: the daemon's processes are no children of the client.
    process = subprocess.Popen(
        [sys.executable, str(_COMPILER), *command], start_new_session=True
    )
    notes.with_suffix(".pid").write_text(str(process.pid))
    code = process.wait()
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
