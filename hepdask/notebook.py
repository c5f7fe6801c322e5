"""A cluster for a notebook: client, coffea, the steps and a live card, until it is closed."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from collections.abc import Mapping
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from coffea.processor import DaskExecutor, Runner
from distributed import Client

from hepdask import clusters, logs
from hepdask.errors import ClusterError
from hepdask.input.schemas import DelphesSchema
from hepdask.monitoring import metrics
from hepdask.monitoring.cluster_card import Card, card_of
from hepdask.pipeline.evaluate import evaluate
from hepdask.pipeline.predict import predict
from hepdask.pipeline.prepare import prepare
from hepdask.pipeline.run import run
from hepdask.pipeline.train import train
from hepdask.pipeline.tune import tune

if TYPE_CHECKING:
    from hepdask.clusters.batch_cluster import BatchCluster

logger = logging.getLogger(__name__)

_REFRESH = 2.0


class Session:
    """A client with what a person does on it; made by `session`.

    As the last line of a cell it shows a card that stays up to date: jobs, workers, memory, tasks, dashboard.

    Attributes
    ----------
    client : distributed.Client
        The cluster.
    prepare, train, tune, evaluate, predict, run : callable
        The functions of `hepdask`, which run on this cluster whatever the configuration says.
    warning : str
        What is different on the workers, which may make tasks fail or results differ; empty where nothing is.
    """

    def __init__(self, title: str, client: Client, opened: contextlib.ExitStack) -> None:
        self._title, self.client, self._opened = title, client, opened
        self.prepare = partial(prepare, client=client)
        self.train = partial(train, client=client)
        self.tune = partial(tune, client=client)
        self.evaluate = partial(evaluate, client=client)
        self.predict = partial(predict, client=client)
        self.run = partial(run, client=client)
        self.warning = ""
        self._waiting = ""
        self._closed = threading.Event()
        self._end = "closed"
        self._shown: dict[str, Any] = {}  # by the run of a cell that they stand under
        self._refresher: threading.Thread | None = None

    def runner(self, **options: Any) -> Runner:
        """Make a coffea `Runner` whose tasks run on this cluster.

        Parameters
        ----------
        **options
            Arguments of `coffea.processor.Runner`; `schema` is `hepdask.DelphesSchema` where it is not said.

        Returns
        -------
        coffea.processor.Runner
            Call it with a fileset in coffea's format and a processor.
        """
        return Runner(DaskExecutor(client=self.client), **{"schema": DelphesSchema, **options})

    def close(self) -> None:
        """Show the card a last time, and end the cluster if this session started it; a second time does nothing."""
        self.__exit__(None, None, None)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        was_open = not self._closed.is_set()
        self._closed.set()
        if self._refresher is not None:
            self._refresher.join(_REFRESH)
        try:
            self._opened.__exit__(kind, error, traceback)
        except ClusterError as given_up:
            error = given_up
            raise
        finally:
            if was_open:
                self._end += f": {str(error).splitlines()[0]}" if isinstance(error, ClusterError) else ""
                for shown in self._shown.values():
                    shown.update(self._card().bundle(), raw=True)

    def __repr__(self) -> str:
        return self._card().text()

    def _repr_html_(self) -> str:
        return self._card().html()

    def _ipython_display_(self) -> None:
        """Show the card; in a notebook, keep it up to date, and have one under a cell."""
        from IPython.display import display

        cell = _cell()
        if cell in self._shown and not self._closed.is_set():
            return
        handle = display(self._card().bundle(), raw=True, display_id=True)
        if self._closed.is_set() or cell is None:
            return  # a terminal would print it again and again
        self._shown[cell] = handle
        if self._refresher is None:
            self._refresher = threading.Thread(target=self._refresh, name="hepdask-card", daemon=True)
            self._refresher.start()

    def _refresh(self) -> None:
        last = None
        while not self._closed.wait(_REFRESH):
            try:
                card = self._card()
            except Exception as error:  # better than a thread that complains into other cells
                card = Card(self._title, {"session": f"the scheduler does not answer ({error})"})
            if card != last:
                for shown in list(self._shown.values()):
                    shown.update(card.bundle(), raw=True)
            last = card

    def _card(self) -> Card:
        if self._closed.is_set():
            return Card(self._title, {"session": self._end})
        return card_of(self.client, self._title, self.warning, self._waiting)

    def _begin(self, farm: BatchCluster | None) -> None:
        """Wait for the first worker of a farm, with the card under the cell; then compare the packages."""
        if farm is not None:
            self._waiting = f"none yet; waiting for at most {farm.settings.start_timeout:g} s (start_timeout)"
            if _cell() is not None:
                self._ipython_display_()
            clusters.wait_for_workers(farm, 1)
            self._waiting = ""
        if found := clusters.differences(self.client):
            self.warning = (
                f"the workers' software differs from this session's: {'; '.join(found)}. Set `python` in the cluster's "
                "settings to this environment, or start the scheduler from it"
            )
            logger.warning(f"{self.warning}")


def _cell() -> str | None:
    """Name the run of the cell that is under way; None where this is no notebook."""
    shell: Any = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return str(shell.get_parent()["header"]["msg_id"]) if hasattr(shell, "kernel") else None


def session(cluster: str | Mapping[str, Any] = "local", client: Client | None = None) -> Session:
    """Open a session on a cluster: a new one, or one that runs already.

    On a batch farm this returns when the first worker is there. While its jobs wait, a notebook has the card under
    the cell already: where they are, and why.

    Parameters
    ----------
    cluster : str or mapping
        What `cluster:` of a configuration takes: a name under ``configs/clusters/``, a file, the connection file of
        ``hepdask cluster start``, the address of a running scheduler, or the settings.
    client : distributed.Client, optional
        A client of your own, which stays open.

    Returns
    -------
    Session
        A context manager; in a notebook, where a block cannot span cells, call its `close`.

    Raises
    ------
    ConfigError
        There is no such cluster.
    ClusterError
        It cannot be started, or does not answer; or no worker came within `start_timeout`.

    Examples
    --------
    >>> with hepdask.session("local") as here:
    ...     histograms = here.runner(chunksize=20_000)(fileset, Selection())
    """
    logs.show()
    opened = contextlib.ExitStack()
    with contextlib.ExitStack() as failed:
        failed.push(opened)
        connected = opened.enter_context(clusters.connect(cluster, client, wait=False))
        metrics.serve(connected)
        own = connected.cluster if client is None else None
        if own is not None:
            opened.enter_context(clusters.announced(own))
        title = "hepdask" if client is not None or not isinstance(cluster, str) else f"hepdask on {cluster}"
        made = Session(title, connected, opened)
        failed.pop_all()
        failed.push(made)
        made._begin(own if hasattr(own, "job_monitor") else None)
        failed.pop_all()
    return made
