"""Makes the files beside it: what coffea's own `preprocess` writes of the sample files, saved as coffea saves it.

It needs dask-awkward, which needs an older Dask than hepdask has: run it with coffea[dask-awkward]==2026.9.0 in an
environment of its own, in a folder with the sample files of conftest.py, and copy what it makes.
"""

import gzip
import json

from coffea.dataset_tools import DataGroupSpec, preprocess

FILES = {name: {f"{name}.root": "Delphes"} for name in ("ttbar", "wjets", "qcd")}
FILES["qcd"]["missing.root"] = "Delphes"
FILESET = {name: {"files": files, "metadata": {"label": name}} for name, files in FILES.items()}


def record(name, fileset, **options):
    made = preprocess(fileset, step_size=25, skip_bad_files=True, scheduler="sync", **options)
    for kind, found in zip(("available", "all"), made, strict=True):
        plain = found.model_dump() if isinstance(found, DataGroupSpec) else found
        with gzip.open(f"{name}_{kind}.json.gz", "wt") as file:
            json.dump(plain, file, indent=2)


if __name__ == "__main__":
    record("legacy", FILESET, preprocess_legacy_root=True)
    record("legacy_form", FILESET, preprocess_legacy_root=True, save_form=True)
    record("dict", FILESET)
    record("spec", DataGroupSpec(FILESET))
