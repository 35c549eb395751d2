"""Photos at full quality: every page, bit and tag of a file, and how they are written back."""
