"""ROOT files: which there are, where they are read from, and what could not be read."""
