"""Real servers as processes on loopback, for tests; each ends with the process that began it."""
