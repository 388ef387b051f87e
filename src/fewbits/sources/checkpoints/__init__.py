"""State dicts of other tools, read without running any code they contain."""
