"""The input of training: photos and masks from where they are stored to batches on devices."""

from .device import to_device
from .examples import DamagedRecordError, Example, ExampleConfig, make_example, read_annotations
from .loader import Reading, batches, one_pass
from .sources import Record, Source, open_source

__all__ = [
    "DamagedRecordError",
    "Example",
    "ExampleConfig",
    "Reading",
    "Record",
    "Source",
    "batches",
    "make_example",
    "one_pass",
    "open_source",
    "read_annotations",
    "to_device",
]
