"""Parts of several models: layers, attention, and the encoders."""
