"""rANS: static tables selected by classes of rows and columns; fast."""
