"""How much a file may unpack to: what a few bytes can ask for has a bound that its length gives."""

from __future__ import annotations

import zipfile
from pathlib import Path

from ...errors import SourceError

__all__ = ["allowed_bytes", "check_archive", "check_zip"]

_FREE = 64 << 20
_RATIO = 64  # pictures and labels compress to a half or a tenth


def allowed_bytes(length: int) -> int:
    """Return how many bytes a file of ``length`` bytes may unpack to: 64 MiB + 64 times that."""
    return _FREE + _RATIO * length


def check_archive(archive: zipfile.ZipFile, path: Path) -> None:
    """Refuse an archive that says it unpacks to more than its length allows.

    Raises:
        SourceError: names the file and both numbers.
    """
    length = path.stat().st_size
    for entry in archive.infolist():
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise SourceError(
                f"{path}: {entry.filename!r} is packed in another way than deflate, and what that "
                "takes to unpack is not bounded. Save it without compression."
            )
    total = sum(entry.file_size for entry in archive.infolist())
    if total > allowed_bytes(length):
        raise SourceError(
            f"{path}: {length:,} bytes that unpack to {total:,}; at most {allowed_bytes(length):,} "
            "are read. Save it without compression."
        )


def check_zip(path: Path) -> None:
    """Check all checksums of a zip of torch.save; other files are left to their own reader.

    PyTorch reads such files without looking at the checksums.

    Raises:
        SourceError: damaged, or not as torch.save writes.
    """
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            check_archive(archive, path)
            bad = archive.testzip()
    except SourceError:
        raise
    except Exception as error:  # a damaged directory makes zipfile stumble anywhere
        raise SourceError(f"{path}: is damaged: {error}. Get it again.") from error
    if bad is not None:
        raise SourceError(
            f"{path}: is damaged: the checksum of {bad!r} is wrong. Get it again. (Or it was saved "
            "with torch.serialization.set_crc32_options(False): save it without that.)"
        )
