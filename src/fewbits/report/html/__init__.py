"""Reports as one HTML file that needs no network: charts as inline SVG, tables, plain text."""
