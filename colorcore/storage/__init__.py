"""Files here and in object stores: written whole or not at all."""
