"""Files that say whatever a test wants, with every checksum and length of the frame right."""

import json
import zlib

from fewbits.container.frame import DICTIONARY, FIELDS, FOOTER, PREFIX, pack_index

__all__ = ["forge", "framed", "header_of", "index_of", "sealed"]


def sealed(body):
    """Return a body with its checksum."""
    return body + zlib.crc32(body).to_bytes(4, "little")


def framed(text, payload=b"", minor=0):
    """Return a file with this text for a header, and these bytes for bodies."""
    return PREFIX + payload + pack_index(text, len(payload), minor)


def forge(header, bodies=(), minor=0):
    """Return a file of a header and bodies; None is a chunk in the body before it.

    The header need not have "l": it has the lengths of the bodies. Without "c", all are raw.
    """
    known = {"c": [1] * len(bodies), "l": [len(body or b"") for body in bodies], **header}
    payload = b"".join(sealed(body) for body in bodies if body is not None)
    return framed(json.dumps(known).encode(), payload, minor)


def index_of(data):
    """Return where the index of a file begins, and where it ends."""
    stored = FIELDS.unpack_from(data, len(data) - FOOTER)[1]
    return len(data) - FOOTER - stored, len(data) - FOOTER


def header_of(data):
    """Return the header of a file as its JSON has it."""
    start, end = index_of(data)
    return json.loads(zlib.decompressobj(-15, DICTIONARY).decompress(data[start:end]))
