"""The state of a cluster on a small card: HTML in a notebook, text in a terminal."""

from __future__ import annotations

import html
from collections import Counter
from dataclasses import dataclass
from typing import Any

from dask.utils import format_bytes
from distributed import Client, Scheduler

from hepdask.clusters import dashboard_link


@dataclass(frozen=True)
class Card:
    """What is shown.

    Attributes
    ----------
    title : str
        What the cluster is called.
    rows : dict of str
        What is known, by its name.
    link : str or None
        The dashboard.
    warning : str
        What the person should mend; may be empty.
    """

    title: str
    rows: dict[str, str]
    link: str | None = None
    warning: str = ""

    def text(self) -> str:
        """Write it for a terminal, one line."""
        shown = [f"{name}: {value}" for name, value in self.rows.items()]
        shown += [f"dashboard: {self.link}"] if self.link else []
        return f"{self.title}: " + "; ".join(shown) + (f"\nwarning: {self.warning}" if self.warning else "")

    def html(self) -> str:
        """Write it for a notebook, without styles or scripts of its own."""
        rows = [
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
            for name, value in self.rows.items()
        ]
        if self.link:
            link = html.escape(self.link, quote=True)
            rows.append(
                "<tr><th style='text-align:left'>dashboard</th><td style='text-align:left'>"
                f"<a href='{link}' target='_blank'>{link}</a></td></tr>"
            )
        warning = f"<p><b>warning:</b> {html.escape(self.warning)}</p>" if self.warning else ""
        return f"<div><b>{html.escape(self.title)}</b><table>{''.join(rows)}</table>{warning}</div>"

    def bundle(self) -> dict[str, str]:
        """Write it both ways, by MIME type."""
        return {"text/html": self.html(), "text/plain": self.text()}


def card_of(client: Client, title: str, warning: str = "") -> Card:
    """Look at a cluster now: its jobs where it has any, its workers, their memory, and what they do."""
    rows: dict[str, str] = {}
    keeper = getattr(client.cluster, "keeper", None)
    if keeper is not None:
        jobs = Counter(job.state.value for job in list(keeper.jobs.values()))
        rows["jobs"] = ", ".join(f"{count} {state}" for state, count in jobs.items()) or "none yet"
    sums: dict[str, Any] = client.run_on_scheduler(_sums)
    rows["workers"] = f"{sums['workers']} with {sums['threads']} threads"
    limit = f" of {format_bytes(sums['limit'])}" if sums["limit"] else ""
    rows["memory"] = f"{format_bytes(sums['memory'])}{limit}"
    rows["tasks"] = f"{sums['running']} running, {sums['waiting']} waiting"
    return Card(title, rows, dashboard_link(client), warning)


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
