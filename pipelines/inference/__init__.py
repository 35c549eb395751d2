"""The jobs on a finished model: evaluate, colourize, inspect."""
