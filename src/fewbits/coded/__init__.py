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
    "RawTensor",
    "SizeReport",
    "SizeRow",
    "TransformTensor",
]
