"""How evenly a set covers its labels or relations: distinct ones, entropy, effective number."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from obverse.engine.errors import InputError

__all__ = ["label_coverage", "label_metrics", "relations"]


def label_coverage(labels: pa.Array | pa.ChunkedArray, *, known: Collection[str] | None = None) -> dict[str, float]:
    """Coverage of ``labels`` (strings or anything Arrow counts; nulls are left out).

    ``count``: different labels. ``entropy``: of their shares, in nats. ``normalised_entropy``: over its greatest value,
    the logarithm of how many labels there are (Pielou's evenness; left out for a single one). ``effective``:
    exp(entropy), Hill's number of order 1 (Hill, Ecology 1973). ``coverage``: share of the ``known`` labels that occur,
    where these are given; then the normalised entropy is over the known labels too, those that don't occur included.
    Empty without labels.

    Raises `InputError` for a label that isn't among the known ones, and for no known labels.
    """
    counted = pc.value_counts(labels.drop_null())
    counts = counted.field("counts").to_numpy().astype(np.float64)
    if not len(counts):
        return {}
    # Sorted, so that the sum doesn't depend on the order of the rows.
    shares = np.sort(counts / counts.sum())
    entropy = max(float(-(shares * np.log(shares)).sum()), 0.0)
    result = {"count": float(len(counts)), "entropy": entropy, "effective": float(np.exp(entropy))}
    kinds = len(counts)
    if known is not None:
        names = set(known)
        kinds = len(names)
        strange = [name for name in counted.field("values").to_pylist() if name not in names]
        if strange:
            raise InputError("one of the known labels", field="label", seen=strange[0])
        result["coverage"] = len(counts) / kinds
    if kinds > 1:
        result["normalised_entropy"] = entropy / float(np.log(kinds))
    return result


def relations(triplets: pa.Array | pa.ChunkedArray) -> pa.Array:
    """The surface form of the predicate of every triplet of a column ``triplets``, rows one after another."""
    chunks = triplets.chunks if isinstance(triplets, pa.ChunkedArray) else [triplets]
    names = [pc.struct_field(pc.list_flatten(chunk), ["predicate", "surfaceform"]) for chunk in chunks]
    return pa.concat_arrays([name.cast(pa.string()) for name in names]) if names else pa.array([], pa.string())


def label_metrics(table: pa.Table, *, known: Collection[str] | None = None) -> dict[str, float]:
    """`label_coverage` of the columns ``label`` and ``triplets`` (its relations) of ``table``, where it has them.

    Names are ``label_count``, ``label_entropy``, ..., ``relation_count``, ... ``known`` is of the labels, or, in a
    table without labels, of the relations.
    """
    result: dict[str, float] = {}
    for kind, column in (("label", "label"), ("relation", "triplets")):
        if column not in table.column_names:
            continue
        values = table[column] if kind == "label" else relations(table[column])
        found = label_coverage(values, known=known if not result else None)
        result |= {f"{kind}_{name}": value for name, value in found.items()}
    return result
