"""Colorization as a library: colour maths, photos, samples, palette, models, losses, training.

Nothing in this package imports Ray, MLflow or the command line, so it runs wherever torch and numpy
do. See ARCHITECTURE.md for the map.
"""

__version__ = "0.1.0"
