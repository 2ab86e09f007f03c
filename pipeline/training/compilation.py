"""torch.compile for training: checked ahead, with one graph for captions of any length."""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from pmc_clip.accumulation import Part
from shards import DataError, UsageError


def check_compiler() -> None:
    """Raise UsageError where there is no C++ compiler, which torch.compile needs on every device."""
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        raise UsageError(
            f"--compile needs a C++ compiler, and there is no {compiler}: install it, name another in the "
            "environment variable CXX, or train without --compile"
        )


def compile_model(model: nn.Module) -> None:
    """Have the model's forward pass compiled when it is first called; parameters keep their names."""
    model.compile()


def mark_changing_sizes(part: Part) -> None:
    """Tell the compiler which sizes change from batch to batch, so that it does not compile for each."""
    from torch._dynamo import maybe_mark_dynamic

    maybe_mark_dynamic(part.tokens, 1)
    for places in part.layout:
        if places is not None:
            maybe_mark_dynamic(places, 0)


@contextmanager
def named_compiler_failures() -> Iterator[None]:
    """Turn what the compiler cannot do into DataError with its reason."""
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except TorchDynamoException as error:
        said = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = " ".join(said[:2]) or type(error).__name__  # the first says where, the second what
        raise DataError(
            f"--compile: torch could not compile the model on this machine ({reason}): train without "
            "--compile"
        ) from error
