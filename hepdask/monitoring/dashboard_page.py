"""The page of hepdask in Dask's dashboard: what became of the events, who reads from where, how training goes."""

from __future__ import annotations

from typing import Any

from bokeh.document import Document
from bokeh.layouts import column, row
from bokeh.models import (
    BasicTicker,
    ColumnDataSource,
    FactorRange,
    HoverTool,
    LayoutDOM,
    NumeralTickFormatter,
    Range,
)
from bokeh.models.annotations import Title
from bokeh.models.widgets.markups import Div
from bokeh.palettes import Category10_10
from bokeh.plotting import figure
from distributed import Scheduler
from distributed.dashboard.components import DashboardComponent, add_periodic_callback
from distributed.dashboard.components.scheduler import BOKEH_THEME, env
from distributed.dashboard.core import BokehApplication
from distributed.dashboard.scheduler import template_variables
from tornado.ioloop import IOLoop

from hepdask.monitoring.history import BIN, Recent

PAGE = "hepdask"
_OUTCOMES = {"selected": "#2ca02c", "rejected": "#c7c7c7", "lost": "#d62728"}
_MOST_DATASETS = 20
_REFRESH = 1000  # ms
_SHORT = "0.[0]a"  # 12,000 as 12k


def add_page(scheduler: Scheduler, recent: Recent) -> None:
    """Serve the page beside those of Dask, and name it in their navigation.

    Parameters
    ----------
    scheduler : distributed.Scheduler
        One that has a dashboard.
    recent : Recent
        What is drawn, as it grows.
    """

    def page(_scheduler: Scheduler, extra: dict[str, Any], document: Document) -> None:
        shown = _Page(recent)
        shown.update()
        document.title = "Dask: hepdask"
        document.add_root(shown.root)
        document.template = env.get_template("simple.html")
        document.template_variables.update(extra)
        document.theme = BOKEH_THEME
        add_periodic_callback(document, shown, _REFRESH)

    pages = scheduler.http_application.applications
    dask = next((one for one in pages if f"{one.prefix}/status" in getattr(one, "app_paths", ())), None)
    if dask is None:  # /metrics and the like alone
        return
    variables = template_variables(scheduler)
    variables["pages"].append(PAGE)  # Dask's own pages share the list
    ours = BokehApplication({f"/{PAGE}": page}, scheduler, prefix=dask.prefix, template_variables=variables)
    scheduler.http_application.add_application(ours)
    ours.initialize(IOLoop.current())
    ours.start()


class _Page(DashboardComponent):
    """Sums in a line, and below it four figures."""

    def __init__(self, recent: Recent) -> None:
        self._recent = recent
        self._sums = Div(stylesheets=[":host { font-size: 15px; margin: 8px 12px; }"])
        self._events = ColumnDataSource({"dataset": [], **{outcome: [] for outcome in _OUTCOMES}})
        self._read = ColumnDataSource({"x": [], "y": [], "server": [], "colour": []})
        self._loss = ColumnDataSource({"x": [], "y": [], "curve": [], "colour": [], "dash": []})
        self._epochs = ColumnDataSource({"x": [], "y": [], "colour": []})
        self._rates = ColumnDataSource({"rank": [], "rate": []})
        self._figures = [self._draw_events(), self._draw_read(), self._draw_loss(), self._draw_rates()]
        grid = row(*self._figures, sizing_mode="stretch_width", stylesheets=[":host { flex-wrap: wrap; }"])
        self.root: LayoutDOM = column(self._sums, grid, sizing_mode="stretch_width")

    def _draw_events(self) -> figure:
        plot = _figure(y_range=FactorRange(), x_axis_label="events")
        bars = plot.hbar_stack(
            list(_OUTCOMES), y="dataset", height=0.7, source=self._events,
            color=list(_OUTCOMES.values()), line_color=None, legend_label=list(_OUTCOMES),
        )  # fmt: skip
        plot.add_tools(HoverTool(renderers=[*bars], tooltips="@dataset: @$name{0,0} $name"))
        plot.x_range.start = 0  # type: ignore[attr-defined]
        plot.xaxis.formatter = NumeralTickFormatter(format=_SHORT)
        return _with_legend_above(plot)

    def _draw_read(self) -> figure:
        plot = _figure(x_axis_type="datetime", x_axis_label="UTC", y_axis_label="MB/s")
        plot.multi_line("x", "y", line_color="colour", line_width=2, legend_field="server", source=self._read)
        plot.y_range.start = 0  # type: ignore[attr-defined]
        return _with_legend_above(plot)

    def _draw_loss(self) -> figure:
        plot = _figure(x_axis_label="epoch", y_axis_label="loss")
        plot.multi_line(
            "x",
            "y",
            line_color="colour",
            line_dash="dash",
            line_width=2,
            legend_field="curve",
            source=self._loss,
        )
        plot.scatter("x", "y", color="colour", size=5, source=self._epochs)
        plot.xaxis.ticker = BasicTicker(min_interval=1, num_minor_ticks=0)
        return _with_legend_above(plot)

    def _draw_rates(self) -> figure:
        plot = _figure(x_range=FactorRange(), x_axis_label="rank", y_axis_label="events/s")
        bars = plot.vbar(x="rank", top="rate", width=0.7, source=self._rates, color=Category10_10[0])
        plot.add_tools(HoverTool(renderers=[bars], tooltips="rank @rank: @rate{0,0} events/s"))
        plot.y_range.start = 0  # type: ignore[attr-defined]
        plot.yaxis.formatter = NumeralTickFormatter(format=_SHORT)
        return plot

    def update(self) -> None:  # type: ignore[override]  # what Dask's own do
        """Bring everything up to date; Bokeh sends what has changed."""
        events, read, loss, rates = self._figures
        self._update_events(events)
        self._update_read(read)
        self._update_loss(loss)
        self._update_rates(rates)

    def _update_events(self, plot: figure) -> None:
        found = self._recent.events
        sums = {outcome: sum(counts[outcome] for counts in found.values()) for outcome in _OUTCOMES}
        read = sums["selected"] + sums["rejected"]
        size = sum(self._recent.read.values())
        share = f" ({sums['selected'] / read:.1%})" if read else ""
        self._sums.text = (
            f"<b>{read:,}</b> events read, <b>{sums['selected']:,}</b> selected{share}, "
            f"<b>{sums['lost']:,}</b> lost; <b>{size / 1e6:,.1f} MB</b> read"
        )
        largest = sorted(found, key=lambda name: -sum(found[name].values()))[:_MOST_DATASETS]
        more = f" (the largest {_MOST_DATASETS} of {len(found)})" if len(found) > _MOST_DATASETS else ""
        _name(plot, f"Events by dataset{more}" if found else "Events by dataset: none read yet")
        _set_factors(plot.y_range, largest[::-1])
        self._events.data = {
            "dataset": largest,
            **{outcome: [found[name][outcome] for name in largest] for outcome in _OUTCOMES},
        }

    def _update_read(self, plot: figure) -> None:
        servers = sorted(self._recent.bins)
        curves = [self._recent.throughput(server) for server in servers]
        _name(
            plot,
            f"MB/s by server, averaged over {BIN:g} s" if servers else "MB/s by server: nothing read yet",
        )
        self._read.data = {
            "x": [[1000 * at for at, _ in curve] for curve in curves],
            "y": [[rate for _, rate in curve] for curve in curves],
            "server": servers,
            "colour": [Category10_10[place % 10] for place in range(len(servers))],
        }

    def _update_loss(self, plot: figure) -> None:
        curves = {key: sorted(losses.items()) for key, losses in self._recent.loss.items() if losses}
        models = list(dict.fromkeys(model for model, _ in curves))
        _name(plot, "Training loss by epoch" if curves else "Training loss: no epoch finished yet")
        colours = [Category10_10[models.index(model) % 10] for model, _ in curves]
        points = [
            (*point, colour)
            for colour, curve in zip(colours, curves.values(), strict=True)
            for point in curve
        ]
        self._epochs.data = {
            name: [point[i] for point in points] for i, name in enumerate(("x", "y", "colour"))
        }
        self._loss.data = {
            "x": [[epoch for epoch, _ in curve] for curve in curves.values()],
            "y": [[loss for _, loss in curve] for curve in curves.values()],
            "curve": [f"{model}, {sample}" for model, sample in curves],
            "colour": colours,
            "dash": ["solid" if sample == "fit" else "dashed" for _, sample in curves],
        }

    def _update_rates(self, plot: figure) -> None:
        model = next(reversed(self._recent.rates), None)
        rates = dict(sorted(self._recent.rates[model].items())) if model is not None else {}
        epoch = self._recent.epochs.get(model or "", 0)
        _name(
            plot,
            f"Events/s by rank: {model}, epoch {epoch}"
            if rates
            else "Events/s by rank: no epoch finished yet",
        )
        ranks = [str(rank) for rank in rates]
        _set_factors(plot.x_range, ranks)
        self._rates.data = {"rank": ranks, "rate": list(rates.values())}


def _figure(**options: Any) -> figure:
    """Make one that stands beside another where there is room for two, and below it on a phone."""
    return figure(
        height=320, min_width=330, sizing_mode="stretch_width", styles={"flex": "1 1 520px"},
        toolbar_location=None, tools="", **options,
    )  # fmt: skip


def _name(plot: figure, title: str) -> None:
    assert isinstance(plot.title, Title)
    plot.title.text = title


def _set_factors(axis: Range, names: list[str]) -> None:
    assert isinstance(axis, FactorRange)
    if axis.factors != names:
        axis.factors = names


def _with_legend_above(plot: figure) -> figure:
    legend = plot.legend[0]
    legend.location, legend.orientation, legend.ncols = "left", "horizontal", 4
    legend.border_line_color, legend.spacing = None, 12
    legend.padding = 0  # type: ignore[assignment]  # bokeh documents a number
    plot.add_layout(legend, "above")
    return plot
