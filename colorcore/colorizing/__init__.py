"""A model as a colorizer: photos in, photos in colour out, at their own resolution."""
