"""Pure tensor kernels: tensors in, tensors out; they know nothing of networks."""

__all__: list[str] = []
