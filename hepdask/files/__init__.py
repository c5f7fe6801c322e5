"""Files and folders: written whole, locked, and what the operating system refuses, in words."""
