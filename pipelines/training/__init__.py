"""The job of `cc train`: driver, workers, and how they meet."""
