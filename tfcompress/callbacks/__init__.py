"""Keras callbacks, one a file."""

from tfcompress.callbacks.pruning import Pruning as Pruning
