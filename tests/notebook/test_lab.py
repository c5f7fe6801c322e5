"""The live card as a person sees it: in JupyterLab in a browser, below cells that are run by a click."""

import re
import urllib.parse

from helpers.browser import chromium
from helpers.lab import card, lab, open_notebook, run_next_cell, write_notebook

CARD = "[...document.querySelectorAll('.jp-OutputArea-output table td')]"
RUNNING = f"{CARD}.some(one => one.innerText == '1 running, 0 waiting')"
CLOSED = f"{CARD}.some(one => one.innerText == 'closed')"


def test_card_in_jupyterlab_changes_with_the_cluster_and_leads_to_the_page_through_the_proxy(tmp_path):
    write_notebook(
        tmp_path / "card.ipynb",
        [
            "import time, hepdask\n"
            "here = hepdask.session({'kind': 'local', 'workers': 1, 'threads': 2, 'dashboard_port': 0})\n"
            "here",
            "future = here.client.submit(time.sleep, 600, pure=False)",
            "future.cancel()\nhere.close()",
        ],
    )
    with (
        lab(tmp_path, "/user/anna/", JUPYTERHUB_SERVICE_PREFIX="/user/anna/") as address,
        chromium() as browser,
    ):
        browser.size(1200, 800)
        open_notebook(browser, address, "card.ipynb")
        run_next_cell(browser)
        browser.wait("document.querySelector('.jp-OutputArea-output table') !== null", 120)
        shown = card(browser)
        assert shown["workers"] == "1 with 2 threads"
        assert shown["tasks"] == "0 running, 0 waiting"
        assert re.search(r" of .*iB$", shown["memory"])
        assert re.fullmatch(r"/user/anna/proxy/\d+/status", shown["dashboard"])

        run_next_cell(browser)
        browser.wait(RUNNING)
        browser.screenshot(tmp_path / "card.png")
        assert (
            len(browser.evaluate("[...document.querySelectorAll('.jp-OutputArea-output table')].map(String)"))
            == 1
        )

        page = browser.evaluate("document.querySelector('.jp-OutputArea-output a[href$=hepdask]').href")
        with browser.other_tab() as tab:
            tab.open(page)
            tab.wait("Bokeh.documents[0]._all_models.size > 0")
            tab.wait("document.title == 'Dask: hepdask'")
            assert urllib.parse.urlsplit(tab.evaluate("location.href")).path.startswith("/user/anna/proxy/")

        run_next_cell(browser)
        browser.wait(CLOSED)
        assert card(browser) == {"session": "closed"}
