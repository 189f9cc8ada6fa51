"""Growth methods: where to grow and with which weights. Adding one is a file here and a line in the table."""

from auxin.methods.net2net import Net2Net
from auxin.methods.random import Random
from auxin.types import Method

METHODS: dict[str, Method] = {method.name: method for method in (Random(), Net2Net())}
"""Every method by name; the tests, the command line and the docs read this table."""

__all__ = ["METHODS", "Net2Net", "Random"]
