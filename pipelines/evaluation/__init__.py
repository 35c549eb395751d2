"""The job of cc eval: models and anyone's colourized photos, scored on the same photos."""
