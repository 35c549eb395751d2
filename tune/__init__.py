"""Hyperparameter search: the space, the objective, and the study that runs trials on Ray."""
