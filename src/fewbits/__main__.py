"""``python -m fewbits``."""

from .cli import main

main()
