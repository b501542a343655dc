"""Keeps the chatter of native converters off the user's terminal."""

import contextlib
import logging
import os
import sys
import tempfile
import threading
import warnings

# The error stream and the warnings filters are the process's: of two threads that
# change them at once, the later would restore what the earlier had put there.
_LOCK = threading.RLock()


@contextlib.contextmanager
def quiet():
    """Catches what native code writes to the error stream, Python warnings, TF's infos.

    One thread at a time: others wait.

    Yields:
        A function that returns the text caught so far, for error messages.
    """
    with _LOCK, tempfile.TemporaryFile() as caught, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger = logging.getLogger("tensorflow")
        level = logger.level
        logger.setLevel(max(level, logging.WARNING))
        sys.stderr.flush()
        kept = os.dup(2)
        os.dup2(caught.fileno(), 2)

        def text():
            sys.stderr.flush()
            caught.seek(0)
            return caught.read().decode(errors="replace")

        try:
            yield text
        finally:
            logger.setLevel(level)
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
