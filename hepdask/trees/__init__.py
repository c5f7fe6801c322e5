"""Trees on the high-level features: boosted ones and random forests, trained without ranks.

`rows` takes events from the store, `boosted` hands them to XGBoost over Dask, `forest` to scikit-learn; `fitted` is
what both leave behind, `saved` scores events with it. None of them knows what the features mean.
"""

from hepdask.trees.fitted import Fitted, load_trees
from hepdask.trees.rows import Rows, load_rows
from hepdask.trees.saved import SavedTrees

__all__ = ["Fitted", "Rows", "SavedTrees", "load_rows", "load_trees"]
