"""Methods that weigh bits against distortion at one slope: RDOQ, transform quantization."""
