"""Surgery: the only code that changes a model or an optimizer, as a transaction."""

from auxin.surgery.apply import apply
from auxin.surgery.blocks import Blend, IdentityBlock
from auxin.surgery.history import History
from auxin.surgery.unnest import unnest
from auxin.surgery.widen import check_widen

__all__ = ["Blend", "History", "IdentityBlock", "apply", "check_widen", "unnest"]
