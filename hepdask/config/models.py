"""The section `models`: what each model is made of, and how it is optimised."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from hepdask.config.base import Count, Fraction, Positive, Section, Share

#: What `train` knows by name: the keys of `Models`.
ModelName = Literal["hlf", "sequence", "inclusive", "xgboost", "forest"]


OptimizerName = Literal["adam", "sgd", "rmsprop"]


class Optimised(Section):
    """What all networks have: how they are optimised."""

    #: Files of which a trained one is made.
    files: ClassVar[tuple[str, ...]] = ("model.keras",)

    epochs: Count = Field(6, description="largest number of passes over the training split")
    batch_size: Count = Field(128, description="events per step, over all ranks")
    optimizer: OptimizerName = Field("adam", description="`adam`, `sgd` or `rmsprop`, as in Keras")
    momentum: Fraction = Field(0.9, description="momentum of `sgd`; the other optimizers ignore it")
    learning_rate: Positive = Field(5e-4, description="learning rate of the optimizer")
    learning_rate_drops: dict[Count, Positive] = Field(
        default_factory=dict,
        description="{epoch: factor}: factor on the learning rate from this epoch on (the first is 1)",
    )

    def rate(self, epoch: int) -> float:
        """Give the learning rate of an epoch, counted from 1."""
        passed = [at for at in self.learning_rate_drops if at <= epoch]
        return self.learning_rate * (self.learning_rate_drops[max(passed)] if passed else 1.0)


class HLF(Optimised):
    """Dense network on the high-level features (the paper's `HLF` classifier)."""

    epochs: Count = Field(30, description="largest number of passes over the training split")
    learning_rate: Positive = Field(1e-3, description="learning rate of the optimizer")
    features: tuple[str, ...] | None = Field(None, description="high-level features to use; default: all")
    hidden: tuple[Count, ...] = Field((50, 20, 10), min_length=1, description="units of the hidden layers")
    activation: Literal["relu", "tanh", "elu"] = Field("relu", description="activation of the hidden layers")
    dropout: Fraction = Field(0.0, description="dropout after each hidden layer")


class Sequence(Optimised):
    """Recurrent network on the particles alone (the paper's `Particle-sequence` classifier)."""

    particle_features: tuple[str, ...] | None = Field(
        None, description="particle features to use; default: all"
    )
    cell: Literal["gru", "lstm", "transformer"] = Field(
        "gru", description="layer that reads the particles: `gru`, `lstm` or `transformer`"
    )
    units: Count = Field(50, description="width of the vector that summarises an event's particles")
    dropout: Fraction = Field(0.2, description="dropout before the dense layers")


class Inclusive(Sequence):
    """Recurrent network on the particles, joined by the high-level features (`Inclusive` classifier)."""

    features: tuple[str, ...] | None = Field(None, description="high-level features to use; default: all")
    dense: Count = Field(25, description="units of the dense layer that combines both inputs")


class XGBoost(Section):
    """Gradient-boosted trees on the high-level features."""

    files: ClassVar[tuple[str, ...]] = ("model.ubj",)

    features: tuple[str, ...] | None = Field(None, description="high-level features to use; default: all")
    rounds: Count = Field(500, description="largest number of rounds; each adds one tree per class")
    early_stopping: Count | None = Field(
        20, description="rounds without a better val_loss after which boosting stops; the best round is kept"
    )
    max_depth: Count = Field(6, description="largest depth of a tree")
    learning_rate: Positive = Field(0.1, description="factor applied to the contribution of each tree")
    min_child_weight: float = Field(1.0, ge=0, description="smallest sum of second derivatives in a leaf")
    subsample: Share = Field(1.0, description="fraction of the events each tree is grown on")
    feature_share: Share = Field(1.0, description="fraction of the features each tree may use")
    l2: float = Field(1.0, ge=0, description="penalty on the squared leaf values")
    max_bin: Annotated[int, Field(ge=2, lt=2**16)] = Field(
        256, description="bins per feature; trees split at bin edges"
    )
    device: Literal["cpu", "cuda"] = Field("cpu", description="`cpu`, or `cuda` on workers with a GPU")


class Forest(Section):
    """Random forest on the high-level features."""

    files: ClassVar[tuple[str, ...]] = ("model.npz", "model.ubj")

    features: tuple[str, ...] | None = Field(None, description="high-level features to use; default: all")
    library: Literal["sklearn", "xgboost"] = Field(
        "sklearn", description="`sklearn`: on one worker; `xgboost`: its random-forest mode, over all workers"
    )
    device: Literal["cpu", "cuda"] = Field(
        "cpu", description="`cpu`, or `cuda` on workers with a GPU, where cuML replaces `sklearn`"
    )
    trees: Count = Field(200, description="number of trees (with `xgboost`: per class)")
    max_depth: Count = Field(12, description="largest depth of a tree")
    min_leaf: Count = Field(
        5, description="fewest events in a leaf (with `xgboost`: smallest sum of second derivatives)"
    )
    feature_share: Share | None = Field(
        None,
        description="fraction of the features a split may choose from; default: the square root of their number",
    )


class Models(Section):
    """Architecture and optimisation of each model."""

    hlf: HLF = Field(default_factory=HLF, description="dense network on high-level features")
    sequence: Sequence = Field(default_factory=Sequence, description="recurrent network on particles")
    inclusive: Inclusive = Field(
        default_factory=Inclusive, description="recurrent network on particles and high-level features"
    )
    xgboost: XGBoost = Field(default_factory=XGBoost, description="boosted trees on high-level features")
    forest: Forest = Field(default_factory=Forest, description="random forest on high-level features")
