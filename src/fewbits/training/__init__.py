"""Training that ends in a small file: the loop, and what it is made of."""
