"""What jobs on a finished model share, and cc inspect."""
