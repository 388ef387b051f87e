"""Text and bytes on disk: atomic writes, bounded JSON and YAML."""
