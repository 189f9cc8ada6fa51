"""Models by name: ours from a table, a user's own as ``package.module:factory``."""

import importlib
import inspect
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from auxin.errors import ConfigError
from auxin.models.mobilenet import mobilenet_v1
from auxin.models.resnet import resnet20
from auxin.models.secnn import secnn
from auxin.models.small_cnn import small_cnn
from auxin.models.vgg import vgg16
from auxin.models.vit import vit

Factory = Callable[..., nn.Module]

MODELS: dict[str, Factory] = {
    "mobilenet_v1": mobilenet_v1,
    "resnet20": resnet20,
    "secnn": secnn,
    "small_cnn": small_cnn,
    "vgg16": vgg16,
    "vit": vit,
}
"""Every model of auxin, name → factory."""


def build(name: str, **kwargs: Any) -> nn.Module:
    """Build a model from its name in ``MODELS``, or from a user's ``package.module:factory``.

    A factory is any callable that returns an ``nn.Module``, a class included. Its module is looked for in the current
    working directory first, then where Python finds every other module.

    Args:
        name: For example ``vgg16``, or ``my_models.small:make``.
        **kwargs: Passed to the factory.

    Returns:
        The fresh model.

    Raises:
        ConfigError: If there is no such model, its module cannot be imported, or the factory rejects the arguments.

    Example:
        >>> build("vgg16", width=8).classifier
        Linear(in_features=8, out_features=10, bias=True)
    """
    with _working_directory_importable():
        factory = _find(name)
        _check_arguments(name, factory, kwargs)
        try:
            model = factory(**kwargs)
        except ConfigError:
            raise
        except (Exception, SystemExit) as error:
            raise ConfigError(f"Building model {name!r} failed with {_told(error)}; correct the factory.") from error
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"Model factory {name!r} returned a {type(model).__name__}; it must return a torch.nn.Module."
        )
    return model


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed Python, NumPy and torch for what is built inside, such as a model, and put their states back afterwards.

    Args:
        seed: Any whole number.

    Yields:
        None, with the seeds set.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


@contextmanager
def _working_directory_importable() -> Iterator[None]:
    # An installed command, unlike `python -m`, does not put the user's folder on the path.
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with suppress(ValueError):  # the user's module may have removed it
            sys.path.remove(folder)


def _find(name: str) -> Factory:
    if name in MODELS:
        return MODELS[name]
    module_name, colon, attribute = name.partition(":")
    if not colon:
        raise ConfigError(
            f"There is no model {name!r}: choose one of {', '.join(sorted(MODELS))}, "
            "or name a factory of your own as package.module:factory."
        )
    if not all(part.isidentifier() for part in [*module_name.split("."), *attribute.split(".")]):
        raise ConfigError(f"Model {name!r} is not of the form package.module:factory, for example my_models:make.")
    found: Any = _import(module_name)
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ConfigError(f"Module {module_name!r} has no {attribute!r}: correct the name after the colon.")
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError(f"{name!r} is a {type(found).__name__}: name a function or class that builds the model.")
    factory: Factory = found
    return factory


def _import(name: str) -> ModuleType:
    importlib.invalidate_caches()  # the user may have written the file while this process was running
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            message = f"There is no module {name!r} in {Path.cwd()} nor among the installed packages."
        else:
            message = f"Module {name!r} imports {error.name!r}, which is not installed."
        raise ConfigError(message) from error
    except (Exception, SystemExit) as error:
        raise ConfigError(f"Importing module {name!r} failed with {_told(error)}; correct the module.") from error


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).rstrip('.')}"


def _check_arguments(name: str, factory: Factory, kwargs: dict[str, Any]) -> None:
    try:
        signature = inspect.signature(factory)
    except ValueError:  # some callables written in C have none; the call itself will tell
        return
    try:
        signature.bind(**kwargs)
    except TypeError as error:
        raise ConfigError(f"Model {name!r} takes {signature}: {error}.") from error
