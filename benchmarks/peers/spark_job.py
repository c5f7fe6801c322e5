"""The features as a Spark job on one core, in two forms; started by `peers.spark`, by Spark's Python.

Spark cannot read ROOT from Python, so the job reads Parquet made beforehand from the same events,
with one array column a branch. That favours Spark, and so does what happens to the features: both
forms end in a DataFrame of arrays that is computed in full and thrown away, not padded, not written.

- `python`: rows become Python objects, a per-event function with numpy runs over them in an RDD's
  flatMap, and its lists become rows again (the published form).
- `sql`: higher-order functions of Spark SQL over arrays of structs; no Python touches the data.

Requests come as JSON lines on standard input, ``{"form": ..., "path": ..., "out": ...}``; each is
answered by a line on standard output that starts with `REPLY`. With `out` the features are kept in
that npz file instead of thrown away.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
from pyspark.sql import Column, DataFrame, Row, SparkSession
from pyspark.sql import functions as F  # noqa: N812  # as Spark's own documents call it

REPLY = "#reply "
CONE = 0.3
OWN_TRACK = 1e-4
KINDS = ("isChHad", "isNeuHad", "isGamma", "isEle", "isMu")
SCHEMA = "high_level array<double>, particles array<array<double>>"


def main() -> None:
    """Answer requests until standard input ends."""
    spark = (
        SparkSession.builder.master("local[1]")
        .appName("features")
        .config("spark.driver.memory", "3g")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.sql.shuffle.partitions", "1")
        # or a filtered array used inside a lambda is put there as an expression, and computed for each element
        .config(
            "spark.sql.optimizer.excludedRules",
            "org.apache.spark.sql.catalyst.optimizer.CollapseProject,"
            "org.apache.spark.sql.catalyst.optimizer.PushDownPredicates,"
            "org.apache.spark.sql.catalyst.optimizer.PushPredicateThroughNonJoin",
        )
        .getOrCreate()
    )
    spark.sparkContext.setLogLevel("ERROR")
    spark.sparkContext.addPyFile(str(Path(__file__).with_name("naive.py")))
    java = spark.sparkContext._jvm.System.getProperty("java.version")
    _reply({"spark": spark.version, "java": java, "python": sys.version.split()[0], "numpy": np.__version__})
    for line in sys.stdin:
        request = json.loads(line)
        forms = {"python": python_form, "sql": sql_form}
        features = forms[request["form"]](spark, request["path"])
        if request.get("out"):
            _keep(features, request["out"])
        else:
            features.write.format("noop").mode("overwrite").save()
        _reply({})
    spark.stop()


def python_form(spark: SparkSession, path: str) -> DataFrame:
    """Run the per-event function over the rows."""
    rows = spark.read.parquet(path).rdd.flatMap(_features_of_row)
    return spark.createDataFrame(rows, SCHEMA, verifySchema=False)


def sql_form(spark: SparkSession, path: str) -> DataFrame:
    """Compute everything in Spark SQL."""
    events = spark.read.parquet(path).select(
        _above("EFlowTrack", "PT", 0.5, ("Charge", "X", "Y", "Z")).alias("tracks"),
        _above("EFlowPhoton", "ET", 1.0).alias("photons"),
        _above("EFlowNeutralHadron", "ET", 1.0).alias("neutrals"),
        _above("Electron", "PT", 23.0, ("Charge",), flavour=1.0).alias("electrons"),
        _above("MuonTight", "PT", 23.0, ("Charge",), flavour=0.0).alias("muons"),
        F.arrays_zip("Jet_PT", "Jet_Eta", "Jet_BTag").alias("jets"),
        F.col("MissingET_MET")[0].cast("double").alias("met"),
        F.col("MissingET_Phi")[0].cast("double").alias("met_phi"),
    )
    leptons = F.transform(
        F.concat("electrons", "muons"),
        lambda lepton, i: F.struct(
            lepton.pt.alias("pt"), (-i).alias("place"), lepton.eta.alias("eta"), lepton.phi.alias("phi"),
            lepton.Charge.alias("Charge"), lepton.flavour.alias("electron"),
            _cone_sum(F.col("tracks"), lepton, lambda track: _distance2(track, lepton) > OWN_TRACK**2).alias("charged"),
            _cone_sum(F.col("photons"), lepton).alias("photon"),
            _cone_sum(F.col("neutrals"), lepton).alias("neutral"),
        ),
    )  # fmt: skip
    events = events.withColumn("leptons", leptons)
    passing = F.filter("leptons", lambda lepton: lepton.charged + lepton.photon + lepton.neutral < 0.45)
    events = events.withColumn("lepton", F.array_max(passing)).where(F.col("lepton").isNotNull())
    own = F.filter("tracks", lambda track: _distance2(track, F.col("lepton")) > OWN_TRACK**2)
    events = events.withColumns(
        {"kept_tracks": own, "kept_photons": F.col("photons"), "kept_neutrals": F.col("neutrals")}
    )
    events = events.withColumns(
        {
            f"kept_{name}": _hardest(F.col(f"kept_{name}"), cap)
            for name, cap in (("tracks", 450), ("photons", 150), ("neutrals", 200))
        }
    )
    parts = [_particles(name, rank) for rank, name in enumerate(("neutrals", "photons", "tracks"))]
    events = events.withColumn("sequence", F.sort_array(F.concat(*reversed(parts)), asc=False))
    lepton = F.col("lepton")
    zero = F.lit(0.0)
    last = _row(
        lepton, (zero, zero, zero), (lepton.charged, lepton.photon, lepton.neutral),
        (zero, zero, zero, lepton.electron, 1.0 - lepton.electron), lepton.Charge,
    )  # fmt: skip
    sequence = F.concat(F.transform("sequence", lambda particle: particle.row), F.array(last))
    return events.select(_high_level().alias("high_level"), sequence.alias("particles"))


def _features_of_row(row: Row) -> Iterator[tuple[list[float], list[list[float]]]]:
    from naive import event_features  # addPyFile has put it there

    found = event_features(row.asDict())
    if found is not None:
        yield [float(value) for value in found[0]], found[1].tolist()


def _above(
    collection: str, momentum: str, threshold: float, more: tuple[str, ...] = (), **constants: float
) -> Column:
    """Take the objects above threshold as an array of structs: pt, place (falling), eta, phi and more."""
    zipped = F.arrays_zip(*(f"{collection}_{field}" for field in (momentum, "Eta", "Phi", *more)))

    def record(thing: Column, i: Column) -> Column:
        def field(name: str) -> Column:
            return thing[f"{collection}_{name}"].cast("double")

        return F.struct(
            field(momentum).alias("pt"), (-i).alias("place"), field("Eta").alias("eta"), field("Phi").alias("phi"),
            *(field(name).alias(name) for name in more),
            *(F.lit(value).alias(name) for name, value in constants.items()),
        )  # fmt: skip

    return F.transform(F.filter(zipped, lambda thing: thing[f"{collection}_{momentum}"] > threshold), record)


def _distance2(one: Column, other: Column) -> Column:
    deta = one.eta - other.eta
    dphi = F.abs(one.phi - other.phi)
    dphi = F.least(dphi, 2 * math.pi - dphi)
    return deta * deta + dphi * dphi


def _cone_sum(kind: Column, thing: Column, also: Any = None) -> Column:
    """Sum the pT of candidates around a thing, over its pT; the cheapest test that rejects most comes first."""

    def inside(candidate: Column) -> Column:
        near = F.abs(candidate.eta - thing.eta) < CONE
        near = near & (_distance2(candidate, thing) < CONE**2)
        return near & also(candidate) if also else near

    return F.aggregate(F.filter(kind, inside), F.lit(0.0), lambda total, near: total + near.pt) / thing.pt


def _hardest(things: Column, cap: int) -> Column:
    """Keep the things of highest pT; of equal ones the first stored."""
    return F.when(F.size(things) <= cap, things).otherwise(F.slice(F.sort_array(things, asc=False), 1, cap))


def _particles(name: str, rank: int) -> Column:
    """Make sortable structs: distance from the lepton, then the order of the list, and the 19 features."""
    zero = F.lit(0.0)
    track = name == "tracks"
    kind = {"tracks": "isChHad", "photons": "isGamma", "neutrals": "isNeuHad"}[name]

    def particle(thing: Column) -> Column:
        isolation = [
            _cone_sum(
                F.col(other), thing, (lambda near: near.place != thing.place) if other == name else None
            )
            for other in ("tracks", "photons", "neutrals")
        ]
        vertex = (thing.X, thing.Y, thing.Z) if track else (zero, zero, zero)
        flags = [F.lit(float(kind == flag)) for flag in KINDS]
        return F.struct(
            _distance2(thing, F.col("lepton")).alias("distance"), F.lit(rank).alias("rank"),
            thing.place.alias("place"),
            _row(thing, vertex, isolation, flags, thing.Charge if track else zero).alias("row"),
        )  # fmt: skip

    return F.transform(f"kept_{name}", particle)


def _row(thing: Column, vertex: Any, isolation: Any, flags: Any, charge: Column) -> Column:
    return F.array(
        thing.pt * F.cosh(thing.eta), thing.pt * F.cos(thing.phi), thing.pt * F.sin(thing.phi),
        thing.pt * F.sinh(thing.eta), thing.pt, thing.eta, thing.phi, *vertex, *isolation, *flags, charge,
    )  # fmt: skip


def _high_level() -> Column:
    jets = F.filter("jets", lambda jet: (jet.Jet_PT > 30) & (F.abs(jet.Jet_Eta) < 2.6))
    ht = F.aggregate(jets, F.lit(0.0), lambda total, jet: total + jet.Jet_PT)
    b_tagged = F.size(F.filter(jets, lambda jet: jet.Jet_BTag > 0))
    lepton, met, met_phi = F.col("lepton"), F.col("met"), F.col("met_phi")
    mt = F.sqrt(F.greatest(F.lit(0.0), 2 * met * lepton.pt * (1 - F.cos(lepton.phi - met_phi))))
    values = (
        ht, met, met_phi, mt, F.size(jets), b_tagged, lepton.pt, lepton.eta, lepton.phi,
        lepton.charged, lepton.photon, lepton.neutral, lepton.Charge, lepton.electron,
    )  # fmt: skip
    return F.array(*(value.cast("double") for value in values))


def _keep(features: DataFrame, out: str) -> None:
    rows = features.collect()
    particles: list[Any] = reduce(lambda all_, row: all_ + row.particles, rows, [])
    np.savez(
        out,
        high_level=np.array([row.high_level for row in rows]).reshape(-1, 14),
        particles=np.array(particles).reshape(-1, 19),
    )


def _reply(answer: dict[str, str]) -> None:
    print(REPLY + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
