"""Read any file's bytes as an sRGB array, or give the reason for refusal; write pictures."""
