"""rANS: static tables, chosen by classes of rows and columns; fast."""
