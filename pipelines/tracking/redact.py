"""What is shown or stored of texts that may carry a credential: everything but that.

Parameters, tags, logs and spools pass through here. Nothing of the environment is ever logged, so
what is left are URIs: ``user:password@`` before a host, and values in a query that a key names as
a secret (``?token=…``, and the signatures of presigned addresses).
"""

from __future__ import annotations

import re

_USER = re.compile(r"(?<=://)[^/\s]*@|(?<=://)[^/\s:]*:(?!\d+/)[^\s@]*@(?=[^\s@]*$)")
_QUERY = re.compile(
    r"([?&;][^=&;\s#]*(?:key|secret|token|passw|pwd|credential|sig|auth)[^=&;\s#]*=)[^&;\s#'\"]+",
    re.IGNORECASE,
)


def without_secrets(text: str) -> str:
    """The text without user and password in its URIs, and with ``***`` for secrets in queries."""
    return _QUERY.sub(r"\1***", _USER.sub("", text))
