"""The driver of a study, its hooks into Ray Tune, and what it writes."""
