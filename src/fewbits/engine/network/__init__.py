"""The network as a whole: calls, copies, names, shared memory, loading, process groups."""
