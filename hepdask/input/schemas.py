"""Events in Delphes' layout as coffea's NanoEvents, from whatever program wrote them."""

from __future__ import annotations

from typing import Any

from coffea.nanoevents import transforms
from coffea.nanoevents.schemas import DelphesSchema as _DelphesSchema


class DelphesSchema(_DelphesSchema):
    """coffea's schema of the same name, which takes flat files too.

    Delphes writes a collection as one branch with its fields below it, and coffea relies on that. uproot, and with
    it `hepdask simulate`, writes each field as a branch of its own, ``Jet.PT`` beside ``Jet_size``. Both are read;
    a mass or an η of the missing momentum that a flat file does not have is 0.

    Parameters
    ----------
    base_form : dict
        What `coffea.nanoevents.NanoEventsFactory` found in the file.

    Examples
    --------
    >>> from coffea.nanoevents import NanoEventsFactory
    >>> events = NanoEventsFactory.from_root({"ttbar.root": "Delphes"}, schemaclass=DelphesSchema).events()
    """

    def __init__(self, base_form: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        branches = dict(zip(base_form["fields"], base_form["contents"], strict=True))
        flat = {name.partition(".")[0] for name in branches if "." in name and "/" not in name}
        named = {}
        for name, form in branches.items():
            collection = name.partition(".")[0]
            named[f"{collection}/{name}" if collection in flat and "." in name else name] = form
        for collection in flat:
            counts = branches[f"{collection}_size"]
            counts["parameters"]["__doc__"] = collection
            offsets = transforms.counts2offsets_form(counts)
            for field in ("Mass", "Eta"):
                key = f"{collection}/{collection}.{field}"
                named.setdefault(key, transforms.full_like_from_offsets_form(offsets, 0.0))
        fields = {"fields": list(named), "contents": list(named.values())}
        super().__init__({**base_form, **fields}, *args, **kwargs)
