"""Reads a token set (its folder is the argument) with other people's libraries
and nothing of this project's. For each, a line of JSON for readers_test.go:
rows and tokens of each split, the sum of the tokens, the last sequence_id and
the first sequence."""

import json, sys

folder = sys.argv[1]
files = {split: f"{folder}/{split}-*.parquet" for split in ("train", "validation")}


def say(reader, version, split, ids, rows):
    print(json.dumps({"reader": reader, "version": version, "split": split, "rows": len(rows), "tokens": sum(map(len, rows)), "sum": sum(map(sum, rows)),
                      "last": int(ids[-1]), "first": [int(t) for t in rows[0]]}))


def with_pyarrow(split):
    import glob, pyarrow, pyarrow.parquet as pq
    table = pyarrow.concat_tables(pq.read_table(f, page_checksum_verification=True) for f in sorted(glob.glob(files[split])))
    assert table.schema.field("tokens").type.value_type == pyarrow.int32() and table.schema.field("sequence_id").type == pyarrow.int64(), table.schema
    say("pyarrow", pyarrow.__version__, split, table["sequence_id"].to_pylist(), table["tokens"].to_pylist())


def with_pandas(split):
    import glob, pandas
    frame = pandas.concat(pandas.read_parquet(f) for f in sorted(glob.glob(files[split])))
    say("pandas", pandas.__version__, split, frame["sequence_id"].tolist(), [t.tolist() for t in frame["tokens"]])


def with_duckdb(split):
    import duckdb
    rows = duckdb.sql(f"select sequence_id, tokens from '{files[split]}' order by sequence_id").fetchall()
    say("duckdb", duckdb.__version__, split, [r[0] for r in rows], [r[1] for r in rows])


def with_datasets(split):
    import datasets
    datasets.disable_progress_bars()
    d = datasets.load_dataset("parquet", data_files=files, split=split, cache_dir=sys.argv[2])
    say("datasets", datasets.__version__, split, d["sequence_id"], d["tokens"])


def with_dataset_card(split):  # the folder as it is, by its README.md
    import datasets
    d = datasets.load_dataset(folder, split=split, cache_dir=sys.argv[2])
    say("datasets, by the card", datasets.__version__, split, d["sequence_id"], d["tokens"])


for way in (with_pyarrow, with_pandas, with_duckdb, with_datasets, with_dataset_card):
    for split in files:
        way(split)
