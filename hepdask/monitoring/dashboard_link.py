"""Where the dashboard of a cluster is found, from where the person sits."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

import dask
from distributed import Client
from distributed.deploy.cluster import Cluster

_DIRECT = "{scheme}://{host}:{port}/status"

#: What a scheduler answers to browsers, which are asked no password: figures that can be read. Dask's proxy, which
#: connects to any address in the scheduler's name, is left out.
READ_ONLY = {
    "distributed.scheduler.http.routes": [
        *(f"distributed.http.scheduler.{name}" for name in ("prometheus", "info", "json")),
        *(f"distributed.http.{name}" for name in ("health", "statics")),
    ]
}
_HERE = ("127.0.0.1", "localhost", "::1")


def dashboard_link(owner: Client | Cluster) -> str | None:
    """Give the address of the dashboard; None where the scheduler has none.

    Dask's ``distributed.dashboard.link`` decides where it is set. Where it is not, and this is a notebook server of a
    JupyterHub, the link goes through its proxy (jupyter-server-proxy), since a browser cannot reach the port itself.
    """
    try:
        link = owner.dashboard_link
    except KeyError:  # what Dask raises where the scheduler started without
        return None
    prefix = os.environ.get("JUPYTERHUB_SERVICE_PREFIX")
    if not link or not prefix or dask.config.get("distributed.dashboard.link") != _DIRECT:
        return link or None
    parts = urlsplit(link)
    place = parts.port if parts.hostname in _HERE else f"{parts.hostname}:{parts.port}"
    return f"{prefix.rstrip('/')}/proxy/{place}{parts.path}"


def page_link(owner: Client | Cluster) -> str | None:
    """Give the address of hepdask's page in it; None where there is none, or its link does not end in /status."""
    link = dashboard_link(owner)
    return f"{link.removesuffix('status')}hepdask" if link and link.endswith("/status") else None
