"""Compressed tensors: what methods return, the container stores and the report counts."""

from .activation_sites import ActivationSite, site_name
from .coverage import Coverage
from .described import DescribedTensors, TensorFacts, facts_of
from .display import escaped, html_table, printable, shortened
from .energy import PICOJOULES, Energy, LayerEnergy, Use, energy_of
from .reasons import Cause, Reason
from .recognise import recognised
from .size import SizeReport, SizeRow
from .tensors import (
    FLOAT_DTYPES,
    RAW_DTYPES,
    WEIGHT_DTYPES,
    ActivationGrid,
    AffineTensor,
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
from .values import (
    NetworkValues,
    count_codes,
    entropy_of,
    index_of,
    network_values,
    terms_of,
    value_counts,
)

__all__ = [
    "FLOAT_DTYPES",
    "PICOJOULES",
    "RAW_DTYPES",
    "WEIGHT_DTYPES",
    "ActivationGrid",
    "ActivationSite",
    "AffineTensor",
    "Cause",
    "Codebook",
    "CodebookTensor",
    "CodedTensor",
    "Contents",
    "Coverage",
    "DescribedTensors",
    "Energy",
    "GridTensor",
    "JSONValue",
    "LayerEnergy",
    "Layout",
    "NetworkValues",
    "RawTensor",
    "Reason",
    "SizeReport",
    "SizeRow",
    "TensorFacts",
    "TransformTensor",
    "Use",
    "count_codes",
    "energy_of",
    "entropy_of",
    "escaped",
    "facts_of",
    "html_table",
    "index_of",
    "network_values",
    "printable",
    "recognised",
    "shortened",
    "site_name",
    "terms_of",
    "value_counts",
]
