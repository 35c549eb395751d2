"""A model behind a web page and an HTTP API: the job of `cc serve`."""
