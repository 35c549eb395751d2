"""The jobs: where Ray, MLflow and file systems enter. Each job is one function to call."""
