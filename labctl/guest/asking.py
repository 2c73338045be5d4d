"""One try whether something answers on a TCP port or at a URL.

Standard library only, any Python from 3.9 on: the same questions are asked inside virtual machines.
"""

from __future__ import annotations

import socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def port(address: str, number: int, seconds: float) -> str:
    """Whether a TCP port accepts a connection within `seconds`: "" or the reason why not."""
    try:
        socket.create_connection((address, number), seconds).close()
    except OSError as error:
        return f"port {number} of {address}: {error.strerror or error}"
    return ""


def http(url: str, place: tuple[bool, str, int, str], seconds: float) -> str:
    """Whether a URL, asked for at (https or not, host, port, path), has an answer with a status below 400: ""
    or the reason why not.  Redirects are not followed, no certificate is checked: a lab signs its own."""
    import http.client
    import ssl

    secure, host, number, path = place
    link: http.client.HTTPConnection
    if secure:
        # Not for secrets: only whether something answers.
        context = ssl._create_unverified_context()
        link = http.client.HTTPSConnection(host, number, timeout=seconds, context=context)
    else:
        link = http.client.HTTPConnection(host, number, timeout=seconds)
    try:
        link.request("GET", path, headers={"User-Agent": "labctl", "Connection": "close"})
        status = link.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return f"{url} on {host}:{number}: {error or type(error).__name__}"
    finally:
        link.close()
    return "" if status < 400 else f"{url} on {host}:{number}: status {status}"


def asked(question: dict[str, Any]) -> str:
    """The answer to a question as it travels into a machine: see `labctl.guest.ready`."""
    if question["url"]:
        secure, host, number, path = question["place"]
        return http(question["url"], (secure, host, number, path), question["seconds"])
    return port(question["address"], question["port"], question["seconds"])
