"""Any file's bytes become an sRGB array or a reason for refusal; writing pictures."""
