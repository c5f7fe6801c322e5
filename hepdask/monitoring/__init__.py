"""What a person or Prometheus can see of a cluster and of what runs on it."""

from typing import TYPE_CHECKING

from hepdask._face import listing, modules_on_demand

__all__ = ["cluster_card", "dashboard_link", "dashboard_page", "history", "metrics", "performance_report"]

__dir__ = listing(__name__, __all__)
if not TYPE_CHECKING:
    __getattr__ = modules_on_demand(__name__, __all__)
