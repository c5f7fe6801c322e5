"""The page of hepdask in Dask's dashboard, seen in a browser while events are prepared and a network is trained."""

import json

import matplotlib.image
import numpy as np
import pytest
from distributed import Client, LocalCluster
from helpers.browser import chromium

import hepdask
from hepdask.monitoring import dashboard_link, metrics
from hepdask.monitoring.history import BIN, Recent

MODELS = "[...Bokeh.documents[0]._all_models.values()]"
SOURCES = f"{MODELS}.filter(m => m.type == 'ColumnDataSource')"
GREEN = (0x2C, 0xA0, 0x2C)


@pytest.fixture
def page():
    with chromium() as browser:
        browser.size(1300, 800)
        yield browser


def titles(browser):
    return browser.evaluate(f"{MODELS}.filter(m => m.type == 'Title').map(m => m.text)")


def source(browser, column):
    """Give the data of the figure that has a column of this name."""
    return json.loads(browser.evaluate(f"JSON.stringify({SOURCES}.find(m => m.data.{column}).data)"))


def test_page_shows_what_prepare_and_train_do(horovod, page, make_config, tmp_path):
    config = make_config(
        models={"hlf": {"epochs": 2, "batch_size": 16}}, training={"models": ["hlf"], "ranks": 2}
    )
    with hepdask.session({"kind": "local", "workers": 2, "dashboard_port": 0}) as here:
        link = dashboard_link.page_link(here.client)
        assert f"href='{link}'" in here._repr_html_()
        page.open(here.client.dashboard_link)
        page.wait("document.querySelector('a[href=\"hepdask\"]') !== null")
        page.evaluate("document.querySelector('a[href=\"hepdask\"]').click()")
        page.wait(f"location.href == {link!r} && {MODELS}.some(m => m.type == 'Title' && m.text)")
        assert "Events by dataset: none read yet" in titles(page)

        prepared = here.prepare(config)
        page.wait(f"{MODELS}.some(m => m.text == 'Events by dataset')")
        page.wait(f"{SOURCES}.find(m => m.data.server)?.data.y[0]?.length > 0", 4 * BIN)
        rows = {row["dataset"]: row for row in prepared.store.manifest["selection"]}
        shown = source(page, "selected")
        assert sorted(shown["dataset"]) == sorted(rows)
        for place, name in enumerate(shown["dataset"]):
            read, selected = rows[name]["events_read"], rows[name]["events_selected"]
            assert shown["selected"][place] == selected
            assert shown["rejected"][place] == read - selected
        assert shown["lost"] == [0] * len(rows)
        assert source(page, "server")["server"] == ["disk"]
        assert max(source(page, "server")["y"][0]) > 0

        (trained,) = here.train(config)
        page.wait(f"{MODELS}.some(m => m.text == 'Events/s by rank: hlf, epoch 2')")
        page.wait(f"{SOURCES}.find(m => m.data.rank).data.rank.length == 2")
        history = trained.record.history
        loss = source(page, "curve")
        assert loss["curve"] == ["hlf, fit", "hlf, validation"]
        assert loss["x"] == [[1, 2], [1, 2]]
        assert loss["y"] == [[row[key] for row in history] for key in ("loss", "val_loss")]
        assert source(page, "rank")["rank"] == ["0", "1"]
        assert min(source(page, "rank")["rate"]) > 0

        page.screenshot(tmp_path / "page.png")
        seen = (matplotlib.image.imread(tmp_path / "page.png")[..., :3] * 255).round()
        assert np.all(seen == GREEN, axis=-1).sum() > 1000, "the bars of selected events are drawn"


def test_what_the_page_remembers_has_an_end():
    recent = Recent()
    recent.take([("hepdask_read_bytes", 1e6, {"server": "disk"})])
    ((start, _),) = recent.bins["disk"]
    assert recent.throughput("disk", start + 3.5 * BIN) == [
        (start + BIN / 2, 1 / BIN), (start + 1.5 * BIN, 0), (start + 2.5 * BIN, 0)
    ]  # fmt: skip
    assert len(recent.throughput("disk", start + 1e6)) == 720, "a server that is silent since long"
    recent.bins["disk"].extend((start + BIN * place, 1.0) for place in range(1, 5000))
    assert len(recent.bins["disk"]) == 720

    def epoch(number, loss):
        labels = {"model": "hlf", "sample": "fit"}
        recent.take(
            [("hepdask_training_epoch", number, {"model": "hlf"}), ("hepdask_training_loss", loss, labels)]
        )

    for number in (1, 2, 3):
        epoch(number, 1 / number)
    recent.take([("hepdask_training_events_per_second", 5.0, {"model": "hlf", "rank": "7"})])
    recent.take([("hepdask_training_epoch", 0, {"model": "hlf"})])
    assert recent.rates == {}, "the ranks of a training that is over"
    epoch(2, 0.7)
    assert recent.loss["hlf", "fit"] == {1: 1.0, 2: 0.7}, "what is trained again is drawn again"


def test_where_there_is_no_dashboard_figures_are_added_up_all_the_same():
    with (
        LocalCluster(
            n_workers=0,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            scheduler_kwargs={"dashboard": False},
        ) as cluster,
        Client(cluster) as client,
    ):
        metrics.serve(client)
        metrics.tell(client, [("hepdask_events", 2, {"dataset": "a", "outcome": "lost"})])
        assert len(client.get_events("hepdask")) == 1
