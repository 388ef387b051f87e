"""``python -m fewbits.cli``."""

from .app import app

app(prog_name="fewbits")
