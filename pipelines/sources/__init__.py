"""Where photos come from: list them, read them."""
