"""Hot loops as plain Python functions, compiled by numba where that pays off.

A kernel is a function over integers and NumPy arrays. It runs as plain Python, or compiled without
the GIL; both give the same bytes, so short streams need no compiler. Two rules keep them equal:
values read from an array pass through ``int`` before arithmetic, and intermediates fit 64 signed
bits. Kernels allocate nothing, never divide by zero, and check their own indices, since compiled
code does not. numba is imported on the first compiled call, never earlier.
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

COMPILE_AFTER = (
    200_000  # plain steps (about a microsecond each) after which loading compiled code pays off
)

_sources: dict[str, FunctionType] = {}
_loaded: list[SimpleNamespace] = []
_inlined: set[str] = set()
_plain_steps = [0]  # steps of plain work so far
_lock = threading.Lock()


def kernel(function: Kernel) -> Kernel:
    """Register ``function`` under its name, which must be unique, and return it."""
    source = cast(FunctionType, function)
    if source.__name__ in _sources:
        raise ValueError(f"two kernels are named {source.__name__!r}. Rename one of them.")
    _sources[source.__name__] = source
    return function


def inlined(function: Kernel) -> Kernel:
    """Register a kernel that is inlined into each of its callers, for the innermost functions."""
    _inlined.add(kernel(function).__name__)
    return function


def plain() -> SimpleNamespace:
    """Return the kernels as plain Python functions."""
    return SimpleNamespace(**_sources)


def is_compiled() -> bool:
    """Return whether this process has loaded compiled kernels."""
    return bool(_loaded)


def pick(steps: int) -> SimpleNamespace:
    """Return the kernels to use for ``steps`` steps of plain work (about a microsecond each).

    These are plain until all such work has taken as long as loading compiled kernels would.
    """
    _plain_steps[0] += steps
    return compiled() if _loaded or _plain_steps[0] >= COMPILE_AFTER else plain()


def compiled() -> SimpleNamespace:
    """Return compiled kernels: from numba's cache on disk, or after some seconds of compiling."""
    with _lock:
        if not _loaded:
            _loaded.append(SimpleNamespace(**_compile()))
    return _loaded[0]


def _compile() -> dict[str, Any]:
    """Return a dispatcher per kernel; numba compiles or loads each on its first call."""
    digest = _digest()
    dispatchers: dict[str, Any] = {}
    scopes = []
    for name, source in _sources.items():
        # Copies call compiled kernels. numba's cache identifies a function by name and file, not by
        # its callees, so the name contains a digest of the whole package.
        scopes.append(dict(source.__globals__))
        copy = FunctionType(source.__code__, scopes[-1], name)
        copy.__qualname__ = f"{name}_{digest}"
        dispatchers[name] = _dispatcher(copy, name in _inlined)
    for scope in scopes:
        scope.update((name, dispatchers[name]) for name in dispatchers if name in scope)
    if not _is_cached(dispatchers, digest):
        logging.getLogger("fewbits").warning(
            "compiling the coder: about ten seconds, once on this machine"
        )
    return dispatchers


def _dispatcher(function: FunctionType, inline: bool) -> Any:
    """Return a numba dispatcher, which compiles ``function`` on its first call."""
    from numba import njit  # noqa: PLC0415 - `import fewbits` must not wait for it

    # Kernels allocate nothing, so arrays need no reference counting, which halved the speed. The
    # option is not public; numba versions without it compile slower code. Without a writable cache
    # folder, kernels are compiled for this process only.
    attempts: list[dict[str, Any]] = [{"cache": True, "_nrt": False}, {"cache": True}, {}]
    for options in attempts:
        with suppress(RuntimeError, KeyError, TypeError, NameError):
            return njit(function, nogil=True, error_model="numpy", forceinline=inline, **options)
    raise RuntimeError(f"numba cannot compile {function.__name__}. Install another numba version.")


def _is_cached(dispatchers: dict[str, Any], digest: str) -> bool:
    folders = {dispatcher.stats.cache_path for dispatcher in dispatchers.values()}
    return any(any(Path(folder).glob(f"*{digest}*.nbi")) for folder in folders if folder)


def _digest() -> str:
    """Return a hash of the source text of this package, constants included."""
    files = sorted(Path(__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]
