"""How commands say which arguments they take."""


def arg(*flags, **settings):
    """One argument, as `add_argument` of `argparse` takes it."""
    return flags, settings
