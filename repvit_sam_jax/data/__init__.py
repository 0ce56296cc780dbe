"""Photos with masks: the input of training, from where it is stored to batches on devices, and data sets that measure.

Names are imported when they are asked for, since batches need the extra `train`, and the data sets do not.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .device import to_device
    from .examples import Example, ExampleConfig, make_example, read_annotations
    from .loader import Reading, batches, one_pass
    from .records import DamagedRecordError, Record, Source, Subset
    from .sources import open_source

__all__ = [
    "DamagedRecordError",
    "Example",
    "ExampleConfig",
    "Reading",
    "Record",
    "Source",
    "Subset",
    "batches",
    "make_example",
    "one_pass",
    "open_source",
    "read_annotations",
    "to_device",
]

_MODULES = {"to_device": "device"} | dict.fromkeys(("Reading", "batches", "one_pass"), "loader")
_MODULES |= dict.fromkeys(("DamagedRecordError", "Record", "Source", "Subset"), "records")
_MODULES["open_source"] = "sources"


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES.get(name, 'examples')}", __name__), name)
