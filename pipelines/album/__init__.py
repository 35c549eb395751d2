"""The job of cc colorize: photos in, coloured pictures out, here or on a Ray cluster."""
