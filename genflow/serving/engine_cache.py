"""An LRU cache of engines: loaded on first use, the least recently used is evicted at the size limit."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

from genflow.errors import DataError, GenflowError, UsageError
from genflow.sampling.engine import Engine
from genflow.serving.model_list import ServedModel
from genflow.serving.models import Model
from genflow.serving.responses import RequestError
from genflow.storage.store import Artifact
from genflow.system import devices


def _load_engine(run: Artifact) -> Engine:
    return Engine.load(run, device=devices.choose())


class EngineCache:
    """The engines in memory.

    Args:
        max_bytes: limit on their total size; one engine alone may exceed it.
        load: loads the engine of a run.
    """

    def __init__(self, max_bytes: int, load: Callable[[Artifact], Engine] = _load_engine) -> None:
        self.max_bytes, self._load = max_bytes, load
        self._engines: OrderedDict[str, tuple[Engine, int]] = OrderedDict()

    def engine(self, entry: ServedModel) -> Engine:
        """Return the engine of a model, and load it if it is not in memory."""
        if entry.path not in self._engines:
            model = Model(entry)
            while self._engines and self.used_bytes() + model.bytes > self.max_bytes:
                self._engines.popitem(last=False)
            engine = self._load(model.run)
            for other, _ in self._engines.values():
                if engine.prompts and other.prompts:
                    engine.prompts.borrow(other.prompts)
            self._engines[entry.path] = engine, model.bytes
        self._engines.move_to_end(entry.path)
        return self._engines[entry.path][0]

    def used_bytes(self) -> int:
        """Bytes of the engines in memory, estimated from their files."""
        return sum(size for _, size in self._engines.values())

    def loaded(self) -> list[str]:
        """Return the folders of the loaded runs, the most recently used last."""
        return list(self._engines)


def check_models(models: Sequence[ServedModel]) -> None:
    """Load every model and draw one sample from it, before they replace others.

    Raises:
        DataError: a model cannot be loaded or cannot draw.
        UsageError: a model produces NaN or infinite samples.
    """
    import numpy as np

    for entry in models:
        try:
            model = Model(entry)
            drawn = EngineCache(0).engine(entry).draw([0], **model.options({"steps": 1} if model.has_steps else {}))
        except RequestError as error:
            raise DataError(f"model {entry.name} cannot draw a sample: {error.message}") from error
        except (GenflowError, OSError, ValueError, RuntimeError, KeyError) as error:
            hint = error.hint if isinstance(error, GenflowError) else f"for details: genflow sample {entry.run}"
            raise DataError(f"model {entry.name} does not work: {str(error).splitlines()[0]}", hint) from error
        if not np.isfinite(drawn.images).all():
            raise UsageError(f"model {entry.name} produced NaN or infinite samples", "retrain it")
