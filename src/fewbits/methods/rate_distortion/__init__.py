"""Methods that trade bits for distortion at one slope: RDOQ and transform quantization."""
