"""MLflow: where runs and models are, and what they are called."""
