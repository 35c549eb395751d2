"""Pages for a browser: MLflow's of a study, photos before and after."""
