"""Removes credentials from text before it is shown or stored.

Parameters, tags, logs and spools pass through here. The environment is never logged, which leaves
URIs: ``user:password@`` before a host, and query values whose key looks like a secret
(``?token=…``, and the signatures of presigned URLs).
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
