"""The photos that are scored, each with other tools' outputs of it."""
