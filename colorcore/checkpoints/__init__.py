"""What a training leaves on disk, and weights that other programs made."""
