"""The recipes as TOML files, their schema, the schedule, and advice that names their keys."""
