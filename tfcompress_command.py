"""Starts the `tfcompress` command without TensorFlow's start-up messages.

They come from native code while TensorFlow is imported, which importing anything of the
`tfcompress` package does; so this module stands beside it.
"""

import contextlib
import os
import sys
import tempfile


def main():
    """Imports the package quietly and runs the command."""
    with _silence():
        import tensorflow as tf

        from tfcompress import cli

        tf.config.list_logical_devices()  # The first look for a GPU has its say too.
    cli.main()


@contextlib.contextmanager
def _silence():
    """Sends the error stream elsewhere; shows it after all if the body raises."""
    with tempfile.TemporaryFile() as caught:
        sys.stderr.flush()
        kept = os.dup(2)
        os.dup2(caught.fileno(), 2)
        try:
            yield
        except BaseException:
            caught.seek(0)
            os.write(kept, caught.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
