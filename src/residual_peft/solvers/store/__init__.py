"""Coordinates on disk: one pass over the images, in shards that a killed run goes on from.

A store is a directory:

    manifest.json              what it belongs to: model, adapter, processor, images, sizes
    shard-00000.safetensors    coordinates (n, K), readout (n, d), labels (n,) or (n, C), ids (n,)
    basis/                     where the pass fitted the adapter's bases, too

Each shard holds the same images whoever writes it and appears whole or not at all. So a run goes on
at the first one that is missing, and any number of processes share the work, with one result.
Until the bases of such a pass are known, `raw-*.safetensors` hold what the units wrote, instead.
"""

from .layout import adapter_digest, coordinate_bytes, data_digest, processor_digest
from .reading import CoordinateStore, Stores
from .writing import write_coordinates

__all__ = [
    "CoordinateStore",
    "Stores",
    "adapter_digest",
    "coordinate_bytes",
    "data_digest",
    "processor_digest",
    "write_coordinates",
]
