"""From a model to a file a device runs, and the checks of that file."""
