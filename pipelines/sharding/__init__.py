"""The job of `cc shard`."""
