"""Parts of a training step that know nothing of the training: random numbers, average, compiler."""
