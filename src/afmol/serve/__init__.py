"""The page: a stack in the browser, the molecule over it, and the simulation beside the measurement (`afmol serve`).

server.py: loopback, token, limits -> worker.py: one process -> jobs.py: functions of the package
page/: what the browser shows
"""

from .server import serve

__all__ = ["serve"]
