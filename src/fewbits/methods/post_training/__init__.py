"""Methods that round a trained network: nearest, GPFQ, GPTQ and Qronos."""
