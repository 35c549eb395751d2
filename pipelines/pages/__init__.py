"""MLflow's pages: serve them, lay out a study."""
