"""One source for every hot loop: plain Python, which numba compiles where that pays.

A kernel is a function over integers and NumPy arrays. It runs as it is, or compiled without the
global lock; both give the same bytes, so small streams need no compiler. Two rules keep them the
same: what is read from an array passes through ``int`` before arithmetic, and no intermediate
leaves 64 signed bits. They allocate nothing, divide by nothing that can be 0, and check what
they index: no one else does. numba is imported on the first compiled call, never before.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any, TypeVar, cast

__all__ = ["compiled", "inlined", "is_compiled", "kernel", "pick", "plain"]

Kernel = TypeVar("Kernel", bound=Callable[..., Any])

WORTH = 200_000  # plain steps, about a microsecond each, from which loading compiled code pays

_sources: dict[str, FunctionType] = {}
_loaded: list[SimpleNamespace] = []
_inlined: set[str] = set()
_spent = [0]  # steps of plain work
_lock = threading.Lock()


def kernel(function: Kernel) -> Kernel:
    """Register ``function`` under its name, which no other kernel may have, and return it."""
    source = cast(FunctionType, function)
    if source.__name__ in _sources:
        raise ValueError(f"two kernels are called {source.__name__!r}. Rename one of them.")
    _sources[source.__name__] = source
    return function


def inlined(function: Kernel) -> Kernel:
    """Register a kernel that is compiled into each of its callers: the innermost ones."""
    _inlined.add(kernel(function).__name__)
    return function


def plain() -> SimpleNamespace:
    """Return the kernels as they are."""
    return SimpleNamespace(**_sources)


def is_compiled() -> bool:
    """Return whether this process has loaded compiled kernels."""
    return bool(_loaded)


def pick(steps: int) -> SimpleNamespace:
    """Return the kernels to use for ``steps`` of plain work, of about a microsecond each.

    Plain ones until all such work together has taken as long as loading compiled ones does.
    """
    _spent[0] += steps
    return compiled() if _loaded or _spent[0] >= WORTH else plain()


def compiled() -> SimpleNamespace:
    """Return the kernels compiled: from numba's cache on disk, or in some seconds, once."""
    with _lock:
        if not _loaded:
            _loaded.append(SimpleNamespace(**_compile()))
    return _loaded[0]


def _compile() -> dict[str, Any]:
    """Return a dispatcher for each kernel; numba compiles, or loads, each on its first call."""
    digest = _digest()
    found: dict[str, Any] = {}
    scopes = []
    for name, source in _sources.items():
        # A copy that calls compiled kernels. numba's cache knows a function by its name and file,
        # not by what it calls: the digest in the name makes it know the callees as well.
        scopes.append(dict(source.__globals__))
        copy = FunctionType(source.__code__, scopes[-1], name)
        copy.__qualname__ = f"{name}_{digest}"
        found[name] = _dispatcher(copy, name in _inlined)
    for scope in scopes:
        scope.update((name, found[name]) for name in found if name in scope)
    if not _is_cached(found, digest):
        logging.getLogger("fewbits").warning(
            "compiling the coder: some ten seconds, once on this machine"
        )
    return found


def _dispatcher(function: FunctionType, inline: bool) -> Any:
    """Return what compiles ``function`` when it is called."""
    from numba import njit  # noqa: PLC0415 - `import fewbits` must not wait for it

    # Kernels allocate nothing, so arrays need no counting of references: it halved the speed.
    # The option is not public; a numba without it compiles slower code. The cache needs a folder
    # that can be written, without which kernels are compiled for this process alone.
    attempts: list[dict[str, Any]] = [{"cache": True, "_nrt": False}, {"cache": True}, {}]
    for options in attempts:
        with suppress(RuntimeError, KeyError, TypeError, NameError):
            return njit(function, nogil=True, error_model="numpy", forceinline=inline, **options)
    raise RuntimeError(f"numba cannot compile {function.__name__}. Install another version of it.")


def _is_cached(dispatchers: dict[str, Any], digest: str) -> bool:
    folders = {dispatcher.stats.cache_path for dispatcher in dispatchers.values()}
    return any(any(Path(folder).glob(f"*{digest}*.nbi")) for folder in folders if folder)


def _digest() -> str:
    """Return what stands for the text of this package, constants included."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]
