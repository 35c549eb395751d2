"""The search: a space of recipes, an objective, and the study that tries one against the other."""
