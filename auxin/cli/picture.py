"""Where a command puts a picture and the file of its numbers."""

from __future__ import annotations

from pathlib import Path

from auxin.errors import ConfigError
from auxin.training import RunFolder


def picture_path(given: str | None, default: Path, companion: str) -> Path:
    """Return where a picture goes, and beside it a file of its numbers.

    Args:
        given: What the user said, or None.
        default: Where it goes otherwise.
        companion: Suffix of the file beside it, such as ``.json``.

    Returns:
        The path; its folder exists, and what the two files replace is an earlier picture with its numbers.

    Raises:
        ConfigError: If the suffix is not one of a picture, there is no such folder, or another file is in the way.
    """
    path = default if given is None else Path(given)
    if path.suffix not in {".png", ".svg", ".pdf"}:
        raise ConfigError(f"--out {path} is not a picture: give a name that ends in .png, .svg or .pdf.")
    if not path.parent.is_dir():
        raise ConfigError(f"--out {path} lies in a folder that does not exist: make {path.parent} first.")
    numbers = path.with_suffix(companion)
    # An earlier call left both files, or none.
    if path.exists() != numbers.exists() or numbers in RunFolder(path.parent).records:
        raise ConfigError(f"--out {path} would replace {numbers if numbers.exists() else path}: give another name.")
    return path
