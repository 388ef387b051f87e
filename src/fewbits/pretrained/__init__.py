"""Folders as Hugging Face libraries know them: configuration, coded weights, model card, upload.

Knows nothing of torch, and needs no package of Hugging Face except to upload.
"""

from .folder import CONFIG, WEIGHTS, CodedFolder, files_of, quantization_settings, write_folder
from .upload import hub_client, upload

__all__ = [
    "CONFIG",
    "WEIGHTS",
    "CodedFolder",
    "files_of",
    "hub_client",
    "quantization_settings",
    "upload",
    "write_folder",
]
