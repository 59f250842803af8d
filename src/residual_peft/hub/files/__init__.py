"""Files: read with every field checked, and written whole or not at all."""

from ..aside import sweep
from ..places import PathLike, disk_fault, disk_faults
from .looking import (
    file_size,
    inside,
    is_file,
    is_folder,
    name_of,
    near_miss,
    path_of,
    quoted,
    read_bytes,
)
from .parsing import parse_json, read_json, read_object
from .records import Count, Within, plain_of, read_record, record_of
from .tensors import TensorFacts, read_header, read_tensors, tensor_of, write_tensors
from .writing import atomic_directory, atomic_file, whole_directory, write_json

__all__ = [
    "Count",
    "PathLike",
    "TensorFacts",
    "Within",
    "atomic_directory",
    "atomic_file",
    "disk_fault",
    "disk_faults",
    "file_size",
    "inside",
    "is_file",
    "is_folder",
    "name_of",
    "near_miss",
    "parse_json",
    "path_of",
    "plain_of",
    "quoted",
    "read_bytes",
    "read_header",
    "read_json",
    "read_object",
    "read_record",
    "read_tensors",
    "record_of",
    "sweep",
    "tensor_of",
    "whole_directory",
    "write_json",
    "write_tensors",
]
