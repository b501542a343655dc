"""Runs Keras code with some variables replaced by tensors."""

import contextlib

import keras
from keras.src.backend.common.stateless_scope import get_stateless_scope


@contextlib.contextmanager
def substituted(pairs):
    """Within the body, Keras reads the given tensors in place of variables.

    Scopes nest: what an outer one replaces (`model.stateless_call`) stays replaced.

    Args:
        pairs: List of `(variable, tensor)`.

    Yields:
        The `keras.StatelessScope`, which collects what the body adds to losses and
        assigns to variables: nothing is assigned for real.
    """
    outer = get_stateless_scope()
    scope = keras.StatelessScope(state_mapping=pairs, collect_losses=True)
    if outer is not None:
        scope.state_mapping = {**outer.state_mapping, **scope.state_mapping}
    with scope:
        yield scope
