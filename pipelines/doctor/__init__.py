"""The checks and proofs of `cc doctor`."""
