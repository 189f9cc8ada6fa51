"""Growth methods: where to grow and with which weights. Adding one is a file here and a line in the table."""

from auxin.errors import ConfigError
from auxin.methods.firefly import Firefly
from auxin.methods.gradmax import GradMax
from auxin.methods.net2net import Net2Net
from auxin.methods.orthogonal import Orthogonal
from auxin.methods.random import Random
from auxin.methods.splitting import Splitting
from auxin.types import Method

METHODS: dict[str, Method] = {
    method.name: method for method in (Random(), Orthogonal(), Net2Net(), GradMax(), Splitting(), Firefly())
}
"""Every method by name; the tests, the command line and the docs read this table."""


def find_method(method: str | Method) -> Method:
    """Return a method by name, or as it is.

    Args:
        method: A method or its name in ``METHODS``.

    Returns:
        The method.

    Raises:
        ConfigError: If there is none of this name.
    """
    if not isinstance(method, str):
        return method
    if method not in METHODS:
        raise ConfigError(f"There is no growth method {method!r}; choose one of {', '.join(sorted(METHODS))}.")
    return METHODS[method]


__all__ = ["METHODS", "Firefly", "GradMax", "Net2Net", "Orthogonal", "Random", "Splitting", "find_method"]
