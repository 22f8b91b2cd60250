"""What every test runs under: shapes and types checked, no display, two threads, reproducible hypothesis."""

import functools
import inspect
import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")

import hypothesis
import numba
import numba.extending
import pytest
import torch
from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

SHARED = Path(__file__).parents[1].parent / "shared"


def unwrapping(jit: Callable) -> Callable:
    """numba's decorator, given the plain kernel instead of the checking wrapper that the hook puts around it."""

    @functools.wraps(jit)
    def decorator(*args, **kwargs):
        if args and inspect.isfunction(args[0]):
            return jit(inspect.unwrap(args[0]), *args[1:], **kwargs)
        decorate = jit(*args, **kwargs)
        return lambda function: decorate(inspect.unwrap(function))

    return decorator


def overloading(overload: Callable) -> Callable:
    """numba's decorator of what is chosen by type, given the plain functions too."""

    @functools.wraps(overload)
    def decorator(*args, **kwargs):
        def decorate(function):
            plain = inspect.unwrap(function)

            @functools.wraps(plain)
            def chosen(*types):
                return inspect.unwrap(plain(*types))

            return overload(*args, **kwargs)(chosen)

        return decorate

    return decorator


CHECKED: dict[tuple[str, str, str], Callable] = {}


def checked(function: Callable) -> Callable:
    """beartype; of a function within another once, which the hook would have it read at each call, for 2 ms."""
    check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # int is a float
    if "<locals>" not in function.__qualname__:
        return check(function)
    key = (function.__module__, function.__qualname__, repr(function.__annotations__))  # equal, though made anew
    if key not in CHECKED:
        CHECKED[key] = check(function)
    return CHECKED[key]


# All before anything imports afmol: annotations are read, and kernels compiled, when its modules are imported.
numba.jit, numba.njit = unwrapping(numba.jit), unwrapping(numba.njit)
numba.extending.overload = overloading(numba.extending.overload)
install_import_hook("afmol", "conftest.checked")

torch.set_num_threads(1)  # tiny networks: a second thread only waits for the first

hypothesis.settings.register_profile("local", deadline=None, max_examples=40)
hypothesis.settings.register_profile("ci", hypothesis.settings.get_profile("local"), derandomize=True, database=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The developers' data folder beside the repository; a test that needs it is skipped where there is none."""
    if not SHARED.is_dir():
        pytest.skip("needs the developers' data folder ../shared, which is not here")
    return SHARED


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weight file of a tiny model that has learned nothing and finds nothing."""
    from afmol.checkpoint import save_model
    from afmol.model import OnePass, OnePassConfig

    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    torch.manual_seed(0)
    save_model(OnePass(OnePassConfig(channels=(16, 24, 32), blocks=1, width=16, rounds=1)), path, "tiny")
    return path
