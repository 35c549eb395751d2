"""A trial of Ray Tune, and the processes of its ranks."""
