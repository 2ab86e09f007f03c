"""A user's own Python function on every training sample: `--transform module:function`.

The function gets an `Example` after its image was decoded and before its caption is tokenised, and changes it
or returns another:

    # my_transforms.py, in the folder that the command is started from
    def grey(example):
        if example.random.random() < 0.1:
            example.image[:] = example.image.mean(axis=2, keepdims=True)
        example.caption = f"{example.columns['licence']}: {example.caption}"

    python -m pipeline.stream --data shards/train --transform my_transforms:grey

It runs on several threads at once, so it must not change anything that they share. Whatever is random in it
comes from `example.random`: then a sample looks the same on any number of processes and after any resume.
"""

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from shards import DataError, UsageError


@dataclass
class Example:
    """One training sample, as a transform gets it."""

    key: str
    image: np.ndarray  # uint8 [S, S, 3], RGB
    caption: str
    columns: dict[str, Any]  # the sample's `.json`; empty where it has none
    random: np.random.Generator  # seeded from (seed, epoch, sample)


class UserTransform:
    """A function of a user's, with its checks; `name` is how it was asked for."""

    def __init__(self, function: Callable[[Example], Example | None], name: str) -> None:
        self._function, self.name = function, name

    def __call__(self, example: Example) -> Example:
        """The example as the function leaves it; DataError where it fails or leaves something else."""
        shape = example.image.shape
        try:
            changed = self._function(example)
        except Exception as error:
            raise DataError(f"--transform {self.name} failed: {_describe(error)}") from error
        changed = example if changed is None else changed
        if not isinstance(changed, Example):
            raise DataError(
                f"--transform {self.name} returned {type(changed).__name__}: "
                "it must return the example or nothing"
            )
        image = changed.image
        if not isinstance(image, np.ndarray) or image.shape != shape or image.dtype != np.uint8:
            found = (
                f"{image.dtype} {list(image.shape)}"
                if isinstance(image, np.ndarray)
                else type(image).__name__
            )
            raise DataError(
                f"--transform {self.name} left {found} as the image: it must be a numpy array, "
                f"uint8 {list(shape)}"
            )
        if not isinstance(changed.caption, str):
            raise DataError(
                f"--transform {self.name} left {type(changed.caption).__name__} as the caption: "
                "it must be str"
            )
        return changed


def load_transform(name: str) -> UserTransform:
    """The transform that `module:function` names, looked for from the working folder on; UsageError where
    there is none.
    """
    module_name, colon, function_name = name.partition(":")
    if not (module_name and colon and function_name):
        raise UsageError(f"--transform {name}: write it as module:function, such as my_transforms:grey")
    with _working_folder_on_path():
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
                raise UsageError(
                    f"--transform {name}: there is no module {error.name}; start from the folder that has "
                    f"{error.name.replace('.', '/')}.py, or put its folder on PYTHONPATH"
                ) from None
            raise UsageError(f"--transform {name}: importing it failed: {_describe(error)}") from error
        except Exception as error:
            raise UsageError(f"--transform {name}: importing it failed: {_describe(error)}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        there = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UsageError(
            f"--transform {name}: {module_name} has no function {function_name}; "
            f"it has {', '.join(there) or 'none'}"
        )
    return UserTransform(function, name)


@contextmanager
def _working_folder_on_path() -> Iterator[None]:
    folder = os.getcwd()
    if folder in sys.path or "" in sys.path:
        yield
        return
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _describe(error: Exception) -> str:
    """The exception in one line, with the user's line of code that it comes from."""
    words = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, SyntaxError):  # its own words name the line
        return words
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename != __file__ and "importlib" not in frame.filename
    ]
    own = [frame for frame in frames if "site-packages" not in frame.filename] or frames
    return f"{words} ({own[-1].filename}, line {own[-1].lineno})" if own else words
