"""The currency: what a method returns, the container stores, and the report counts."""

from .size import SizeReport, SizeRow
from .tensors import (
    FLOAT_DTYPES,
    RAW_DTYPES,
    ActivationGrid,
    Codebook,
    CodebookTensor,
    CodedTensor,
    Contents,
    GridTensor,
    JSONValue,
    Layout,
    RawTensor,
    TransformTensor,
)
from .values import NetworkValues, network_values, terms_of, value_counts

__all__ = [
    "FLOAT_DTYPES",
    "RAW_DTYPES",
    "ActivationGrid",
    "Codebook",
    "CodebookTensor",
    "CodedTensor",
    "Contents",
    "GridTensor",
    "JSONValue",
    "Layout",
    "NetworkValues",
    "RawTensor",
    "SizeReport",
    "SizeRow",
    "TransformTensor",
    "network_values",
    "terms_of",
    "value_counts",
]
