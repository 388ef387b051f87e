"""``python -m fewbits.cli``."""

from . import main

main()
