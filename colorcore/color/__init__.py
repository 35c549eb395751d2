"""CIELAB, colourfulness, the palette: maths on arrays."""
