"""Growth methods: where to grow and with which weights. Adding one is a file here and a line in the table."""

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

__all__ = ["METHODS", "Firefly", "GradMax", "Net2Net", "Orthogonal", "Random", "Splitting"]
