"""The jobs, one function per command; Ray, MLflow and file systems enter here."""
