"""Colorization as a library: colour maths, photos, samples, palette, models, losses, training.

Nothing in this package knows of Ray, MLflow or the command line; it runs by itself wherever
torch and numpy do. See ARCHITECTURE.md for the map.
"""

__version__ = "0.1.0"
