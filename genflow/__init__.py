"""genflow: train, compare, sample and serve families of image generators on your own images.

In Python, `genflow.load("latest").sample(16)` draws samples; docs/python.md has all functions. They are those of
`genflow.api`, which is imported on first use, so that `import genflow` costs nothing.

`genflow/` is the library, `jobs/` are the programs that Ray runs, and `pipelines/` are recipes. Only one function of
`genflow.launch.ray_jobs` imports Ray; see docs/architecture.md.
"""

import importlib
import os
import sys
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

# A thread that has done its share of a loop spins before it sleeps. GNU's OpenMP reads the limit when torch is
# imported. By default a thread spins for milliseconds, and another one that still works may need its core.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
# NumPy's threads spin as well, and without a limit. Its matrices are small here; large ones are multiplied by torch.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

_FUNCTIONS = ("compare", "data", "datasets", "evaluate", "load", "prepare", "runs", "train", "tune")  # of genflow.api
_MODULES = ("data", "errors", "runs")  # imported on first use; the first and the last can also be called
__all__ = sorted({*_FUNCTIONS, *_MODULES})


class _Callable(ModuleType):
    """`genflow.data` and `genflow.runs` are modules of the library, and functions of `genflow.api`."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self._function(*args, **options)

    @property
    def _function(self) -> Any:
        return getattr(importlib.import_module("genflow.api"), self.__name__.removeprefix("genflow."))

    @property
    def __signature__(self) -> Any:  # what a notebook shows for `genflow.data?`
        import inspect

        return inspect.signature(self._function)

    def __reduce__(self) -> Any:  # pickle knows modules by their exact type
        return importlib.import_module, (self.__name__,)


class _Package(ModuleType):
    """Makes `data` and `runs` callable when the import system sets them as attributes of this package."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("data", "runs") and type(value) is ModuleType:
            value.__class__ = _Callable
        super().__setattr__(name, value)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"genflow.{name}")
    if name in _FUNCTIONS:
        return getattr(importlib.import_module("genflow.api"), name)
    raise AttributeError(f"module 'genflow' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


sys.modules[__name__].__class__ = _Package
