"""What tells two colorizers of the same photos apart, and whether chance could."""
