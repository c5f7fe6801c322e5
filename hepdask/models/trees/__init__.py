"""Trees on the high-level features: boosted ones and random forests, trained without ranks.

`rows` takes events from the store, `boosted` hands them to XGBoost over Dask, `forest` to scikit-learn; `fitted` is
what both leave behind. None of them knows what the features mean.
"""

from hepdask._face import listing
from hepdask.models.trees.fitted import Fitted, load_trees
from hepdask.models.trees.rows import Rows, load_rows

__all__ = ["Fitted", "Rows", "load_rows", "load_trees"]

__dir__ = listing(__name__, __all__)
