"""What is searched and for what: space, objective, Optuna's algorithms, the journal."""
