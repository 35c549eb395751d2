"""What a run logs, and how it reaches MLflow."""
