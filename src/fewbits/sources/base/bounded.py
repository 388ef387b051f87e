"""Limits on decompression: a file's length bounds the memory that it may unpack to."""

from __future__ import annotations

import zipfile
from pathlib import Path

from ...errors import SourceError

__all__ = ["allowed_bytes", "check_archive", "check_zip"]

_FREE = 64 << 20
_RATIO = 64  # images and labels rarely compress to less than a tenth


def allowed_bytes(length: int) -> int:
    """Return how many bytes a file of ``length`` bytes may unpack to: 64 MiB + 64 * ``length``."""
    return _FREE + _RATIO * length


def check_archive(archive: zipfile.ZipFile, path: Path) -> None:
    """Check that an archive does not unpack to more than its length allows.

    Raises:
        SourceError: it does, or uses another compression than deflate.
    """
    length = path.stat().st_size
    for entry in archive.infolist():
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise SourceError(
                f"{path}: {entry.filename!r} is not compressed with deflate, so the memory needed "
                "to unpack it is unbounded. Save the file without compression."
            )
    total = sum(entry.file_size for entry in archive.infolist())
    if total > allowed_bytes(length):
        raise SourceError(
            f"{path}: {length:,} bytes would unpack to {total:,}; the limit for this length is "
            f"{allowed_bytes(length):,}. Save the file without compression."
        )


def check_zip(path: Path) -> None:
    """Verify all checksums of a zip written by torch.save; ignore other files.

    PyTorch itself does not verify them.

    Raises:
        SourceError: the archive is damaged, or not as torch.save writes it.
    """
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            check_archive(archive, path)
            bad = archive.testzip()
    except SourceError:
        raise
    except Exception as error:  # zipfile raises anything on a damaged directory
        raise SourceError(f"{path}: is damaged: {error}. Download or copy it again.") from error
    if bad is not None:
        raise SourceError(
            f"{path}: is damaged: the checksum of {bad!r} is wrong. Download or copy it again. (If "
            "it was saved with torch.serialization.set_crc32_options(False), save it without.)"
        )
