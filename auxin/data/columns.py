"""Which column holds the images, which the labels, which splits to use, and what the labels are called."""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets

from auxin.errors import DataError

IMAGE_NAMES = ("image", "img", "images", "pixel_values", "picture", "photo")
LABEL_NAMES = ("label", "fine_label", "labels", "class", "target", "category", "classes", "digit", "character", "y")
TRAIN_NAMES = ("train", "training")
VALIDATION_NAMES = ("validation", "valid", "val", "dev")
TEST_NAMES = ("test", "testing")


def image_column(features: Mapping[str, Any], wanted: str | None = None) -> str:
    """Return the name of the image column.

    The column of image type; without one, a column of encoded images under a well-known name.

    Args:
        features: Column name → feature, as ``datasets`` gives them.
        wanted: The user's choice.

    Returns:
        The column's name.

    Raises:
        DataError: If the user's choice does not exist, or no column or several could be meant.
    """
    if wanted is not None:
        return _existing(features, wanted, "image_column")
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    encoded = [name for name in IMAGE_NAMES if name in features and _is_encoded(features[name])]
    candidates = images or encoded
    if not candidates:
        raise DataError(
            f"No column holds images (the columns are {_listed(features)}): give an image set, or name the column with "
            "image_column."
        )
    return _one(candidates, IMAGE_NAMES, "image_column")


def label_column(features: Mapping[str, Any], wanted: str | None = None) -> str:
    """Return the name of the label column.

    A column of class-label type, by well-known name if there are several (``fine_label`` before ``coarse_label``);
    without one, a column of integers or strings under a well-known name.

    Args:
        features: Column name → feature, as ``datasets`` gives them.
        wanted: The user's choice.

    Returns:
        The column's name.

    Raises:
        DataError: If the user's choice does not exist or holds no labels, or no column or several could be meant.
    """
    if wanted is not None:
        column = _existing(features, wanted, "label_column")
        if not isinstance(features[column], (datasets.ClassLabel, datasets.Value)):
            raise DataError(f"Column {column!r} holds no class labels: name another with label_column.")
        return column
    typed = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    plain = [name for name in LABEL_NAMES if name in features and isinstance(features[name], datasets.Value)]
    candidates = typed or plain
    if not candidates:
        raise DataError(
            f"No column holds labels (the columns are {_listed(features)}): put each class into a folder of its own, "
            "two classes at least, or name the column with label_column."
        )
    return _one(candidates, LABEL_NAMES, "label_column")


def choose_splits(available: Sequence[str]) -> dict[str, str]:
    """Decide which of a source's splits serve as ``train``, ``val`` and ``test``.

    A validation split serves as ``test`` where there is no test split. A split that stands alone is ``train``.

    Args:
        available: Names of the splits that have labels.

    Returns:
        Our name → the source's name; ``val`` and ``test`` may be absent.

    Raises:
        DataError: If there is no split to train on.
    """

    def first(names: Sequence[str]) -> str | None:
        return next((name for name in available if name.lower() in names), None)

    train, validation, test = first(TRAIN_NAMES), first(VALIDATION_NAMES), first(TEST_NAMES)
    if train is None and len(available) == 1:
        return {"train": available[0]}
    if train is None:
        raise DataError(f"None of the splits with labels ({_listed(available)}) is named train: rename one of them.")
    chosen = {"train": train}
    if test is not None:
        chosen |= {"val": validation} if validation is not None else {}
        chosen["test"] = test
    elif validation is not None:
        chosen["test"] = validation
    return chosen


def class_names(feature: Any, values: Sequence[Any], column: str) -> tuple[tuple[str, ...], dict[Any, int]]:
    """Return the class names, and the label 0 to K - 1 of each raw value.

    Args:
        feature: The label column's feature.
        values: The distinct raw values of all splits, without missing ones.
        column: The label column's name.

    Returns:
        Names in the order of their labels, and raw value → label.

    Raises:
        DataError: If the values are no labels (lists, or numbers with fractions).
    """
    if isinstance(feature, datasets.ClassLabel) and feature.names:
        return tuple(feature.names), {index: index for index in range(len(feature.names))}
    if not all(isinstance(value, int | str) or (isinstance(value, float) and value.is_integer()) for value in values):
        raise DataError(
            f"Column {column!r} holds no class labels but values such as {values[0]!r}: name another column."
        )
    ordered = sorted(values, key=_label_order)
    names = tuple(str(int(value)) if isinstance(value, float) else str(value) for value in ordered)
    return names, {value: index for index, value in enumerate(ordered)}


def _label_order(value: Any) -> tuple[int, float, str]:
    # Numbers in their own order, also when written as text ("2" before "10"), then everything else by name.
    try:
        return 0, float(value), ""
    except ValueError:
        return 1, 0.0, value


def _is_encoded(feature: Any) -> bool:
    if isinstance(feature, Mapping):
        return "bytes" in feature
    return isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")


def _existing(features: Mapping[str, Any], wanted: str, option: str) -> str:
    if wanted not in features:
        raise DataError(f"{option} {wanted!r} does not exist: choose one of {_listed(features)}.")
    return wanted


def _one(candidates: Sequence[str], preferred: Sequence[str], option: str) -> str:
    if len(candidates) == 1:
        return candidates[0]
    for name in preferred:
        if name in candidates:
            return name
    raise DataError(f"{option} is not clear: choose one of {_listed(candidates)}.")


def _listed(names: Any) -> str:
    return ", ".join(names)
