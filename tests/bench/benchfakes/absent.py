"""Cannot run here, and says so."""

from edgetl.backends import Availability


def probe():
    return Availability(usable=False, reason="there is no such chip.", fix="Buy one.")
