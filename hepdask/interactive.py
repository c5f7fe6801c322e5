"""A cluster for a notebook: client, coffea, the steps and a live card, until it is closed."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from functools import partial
from types import TracebackType
from typing import Any

from coffea.processor import DaskExecutor, Runner
from distributed import Client

from hepdask import clusters
from hepdask.card import Card, card_of
from hepdask.progress import say
from hepdask.schema import DelphesSchema
from hepdask.steps.evaluate import evaluate
from hepdask.steps.predict import predict
from hepdask.steps.prepare import prepare
from hepdask.steps.run import run
from hepdask.steps.train import train
from hepdask.steps.tune import tune

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
        self.warning = self._compared()
        self._closed = threading.Event()
        self._shown: list[Any] = []
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
        if not self._closed.is_set():
            self._closed.set()
            if self._refresher is not None:
                self._refresher.join(_REFRESH)
            for shown in self._shown:
                shown.update(Card(self._title, {"session": "closed"}).bundle(), raw=True)
        self._opened.__exit__(kind, error, traceback)

    def __repr__(self) -> str:
        return self._card().text()

    def _repr_html_(self) -> str:
        return self._card().html()

    def _ipython_display_(self) -> None:
        """Show the card; in a notebook, keep it up to date."""
        from IPython import get_ipython
        from IPython.display import display

        handle = display(self._card().bundle(), raw=True, display_id=True)
        if self._closed.is_set() or not hasattr(get_ipython(), "kernel"):
            return  # a terminal would print it again and again
        self._shown.append(handle)
        if self._refresher is None:
            self._refresher = threading.Thread(target=self._refresh, name="hepdask-card", daemon=True)
            self._refresher.start()

    def _refresh(self) -> None:
        last = None
        while not self._closed.wait(_REFRESH):
            try:
                card = self._card()
            except (
                Exception
            ) as error:  # a card that stops is better than a thread that complains into other cells
                card = Card(self._title, {"session": f"the scheduler does not answer ({error})"})
            if card != last:
                for shown in self._shown:
                    shown.update(card.bundle(), raw=True)
            last = card

    def _card(self) -> Card:
        if self._closed.is_set():
            return Card(self._title, {"session": "closed"})
        return card_of(self.client, self._title, self.warning)

    def _compared(self) -> str:
        found = clusters.differences(self.client)
        if not found:
            return ""
        return (
            f"the workers do not run what this session runs: {'; '.join(found)}. Let `python` of the cluster's "
            "settings be this environment, or start the scheduler from it"
        )


def session(cluster: str | Mapping[str, Any] = "local", client: Client | None = None) -> Session:
    """Open a session on a cluster: a new one, or one that runs already.

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
        It cannot be started, or does not answer.

    Examples
    --------
    >>> with hepdask.session("local") as here:
    ...     histograms = here.runner(chunksize=20_000)(fileset, Selection())
    """
    opened = contextlib.ExitStack()
    with contextlib.ExitStack() as failed:
        failed.push(opened)
        connected = opened.enter_context(clusters.connect(cluster, client))
        title = "hepdask" if client is not None or not isinstance(cluster, str) else f"hepdask on {cluster}"
        made = Session(title, connected, opened)
        failed.pop_all()
    if made.warning:
        say(f"warning: {made.warning}")
    return made
