"""Keeps the chatter of native converters off the user's terminal."""

import contextlib
import logging
import os
import sys
import tempfile
import warnings


@contextlib.contextmanager
def quiet():
    """Catches what native code writes to the error stream, Python warnings, TF's infos.

    Yields:
        A function that returns the text caught so far, for error messages.
    """
    with tempfile.TemporaryFile() as caught, warnings.catch_warnings():
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
