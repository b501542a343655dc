"""The `tfcompress` command: what the library does, from a shell."""

from tfcompress.cli.program import main as main
from tfcompress.cli.program import parse as parse
from tfcompress.cli.program import run as run
