"""What an opened ROOT file holds: its trees, and the branches of a tree by the names of collections and fields."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

#: Collections and their fields.
Fields = Mapping[str, tuple[str, ...]]

#: ROOT's classes of what is read.
TREE = re.compile(r"TTree|TNtupleD?|ROOT::(Experimental::)?RNTuple")


def trees(opened: Any) -> list[str]:
    """Name the trees and RNTuples of an opened file, those in folders too."""
    return [name for name, kind in opened.classnames(cycle=False).items() if TREE.fullmatch(kind)]


def is_rntuple(tree: Any) -> bool:
    """Say whether an opened tree is an RNTuple."""
    return "RNTuple" in tree.classname


def branch_names(tree: Any) -> set[str]:
    """Name the branches of a TTree, or the fields of an RNTuple, at every level."""
    return (
        set(tree.keys()) if is_rntuple(tree) else {branch.name for branch in tree.itervalues(recursive=True)}
    )


def branch_of(renamed: Mapping[str, str], collection: str, field: str) -> str:
    """Name the branch that holds a field: ``Collection.Field``, unless `renamed` says otherwise."""
    return renamed.get(f"{collection}.{field}", f"{collection}.{field}")


def branch_keys(wanted: Fields, renamed: Mapping[str, str]) -> set[str]:
    """Name the branches of all wanted fields."""
    return {
        branch_of(renamed, collection, field) for collection, fields in wanted.items() for field in fields
    }


def missing_branches(tree: Any, wanted: Fields, renamed: Mapping[str, str]) -> list[str]:
    """Name the branches of wanted fields that an opened tree does not have, in alphabetical order."""
    return sorted(branch_keys(wanted, renamed) - branch_names(tree))
