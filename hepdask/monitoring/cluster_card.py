"""The state of a cluster on a small card: HTML in a notebook, text in a terminal."""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from typing import Any

from dask.utils import format_bytes
from distributed import Client, Scheduler

from hepdask.monitoring.dashboard_link import dashboard_link, page_link


@dataclass(frozen=True)
class Card:
    """What is shown.

    Attributes
    ----------
    title : str
        What the cluster is called.
    rows : dict of str
        What is known, by its name.
    links : dict of str
        Where more is seen, by its name.
    warning : str
        What the user should fix; may be empty.
    """

    title: str
    rows: dict[str, str]
    links: dict[str, str] = field(default_factory=dict)
    warning: str = ""

    def text(self) -> str:
        """Write it for a terminal, one line."""
        shown = [f"{name}: {value}" for name, value in self.rows.items()]
        shown += [f"{name}: {link}" for name, link in self.links.items()]
        return f"{self.title}: " + "; ".join(shown) + (f"\nwarning: {self.warning}" if self.warning else "")

    def html(self) -> str:
        """Write it for a notebook, without styles or scripts of its own."""
        rows = {name: html.escape(value) for name, value in self.rows.items()}
        for name, link in self.links.items():
            address = html.escape(link, quote=True)
            rows[name] = f"<a href='{address}' target='_blank'>{address}</a>"
        left = "style='text-align:left'"
        table = "".join(
            f"<tr><th {left}>{html.escape(name)}</th><td {left}>{value}</td></tr>"
            for name, value in rows.items()
        )
        warning = f"<p><b>warning:</b> {html.escape(self.warning)}</p>" if self.warning else ""
        return f"<div><b>{html.escape(self.title)}</b><table>{table}</table>{warning}</div>"

    def bundle(self) -> dict[str, str]:
        """Write it both ways, by MIME type."""
        return {"text/html": self.html(), "text/plain": self.text()}


def card_of(client: Client, title: str, warning: str = "", waiting: str = "") -> Card:
    """Look at a cluster now: its jobs where it has any, its workers, their memory, and what they do.

    Parameters
    ----------
    client : distributed.Client
        The cluster.
    title : str
        What it is called.
    warning : str
        What the user should fix.
    waiting : str
        What is said in place of the workers while the first of them is waited for.
    """
    rows: dict[str, str] = {}
    monitor = getattr(client.cluster, "job_monitor", None)
    if monitor is not None:
        rows["jobs"] = monitor.summary() or "none seen by the batch system yet"
    sums: dict[str, Any] = client.run_on_scheduler(_sums)
    rows["workers"] = waiting or f"{sums['workers']} with {sums['threads']} threads"
    limit = f" of {format_bytes(sums['limit'])}" if sums["limit"] else ""
    rows["memory"] = f"{format_bytes(sums['memory'])}{limit}"
    rows["tasks"] = f"{sums['running']} running, {sums['waiting']} waiting"
    links = {"dashboard": dashboard_link(client), "events, MB/s, losses": page_link(client)}
    return Card(title, rows, {name: link for name, link in links.items() if link}, warning)


def _sums(dask_scheduler: Scheduler) -> dict[str, int]:
    """Add up what the workers tell, where they tell it: a thousand of them are a long message."""
    workers = dask_scheduler.workers.values()
    running = sum(len(worker.processing) for worker in workers)
    return {
        "workers": len(workers),
        "threads": sum(worker.nthreads for worker in workers),
        "memory": sum(worker.metrics.get("memory", 0) for worker in workers),
        "limit": sum(worker.memory_limit for worker in workers),
        "running": running,
        "waiting": len(dask_scheduler.queued) + len(dask_scheduler.unrunnable),
    }
