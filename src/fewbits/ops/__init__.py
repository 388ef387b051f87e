"""Pure tensor kernels: tensors in, tensors out. They know nothing of networks."""

__all__: list[str] = []
