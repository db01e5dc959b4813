"""How data are opened and told apart: compressed files, tables, records by their ids, and no more than is wanted."""

import gzip
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

import errata
from errata import data
from errata.data import records as files
from errata.data import tables
from errata.data.formats import best_fit
from errata.errors import BadInput

Json = dict[str, Any]


def fact(number: int) -> Json:
    prompt = f"Where was Ann {number} born?"
    return {
        "prompt": prompt,
        "subject": f"Ann {number}",
        "target_new": "Oslo",
        "target_true": "Rome",
        "id": f"a{number}",
    }


FACTS = [fact(number) for number in range(300)]
IDS = [record["id"] for record in FACTS]


def lines(records: list[Json]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def ids(path: Path, **options: Any) -> list[str]:
    return [case.id for case in errata.cases(path, **options)]


# What can be opened ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [lines(FACTS), json.dumps(FACTS).encode(), json.dumps(FACTS, indent=1).encode()],
    ids=["lines", "list", "list over lines"],
)
def test_compressed_files_are_read_as_they_are(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "facts.json.gz"
    path.write_bytes(gzip.compress(content))
    assert ids(path) == IDS
    assert ids(path, limit=3) == IDS[:3]


def test_a_compressed_file_that_is_cut_off_says_behind_which_record(tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl.gz"
    whole = gzip.compress(lines(FACTS))
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match=r"facts.jsonl.gz, behind line \d+: the compressed data are cut off or damaged"):
        data.read(path)
    path.write_bytes(whole[:3])
    with pytest.raises(BadInput, match=r"facts.jsonl.gz, behind its beginning"):
        data.read(path)
    path.write_bytes(whole[:-8] + b"\0" * 8)
    with pytest.raises(BadInput, match="cut off or damaged"):
        data.read(path)


@pytest.mark.parametrize("indent", [None, 1])
def test_records_by_their_ids(tmp_path: Path, indent: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "facts.json"
    path.write_text(json.dumps({f"nr {n}": record for n, record in enumerate(FACTS)}, indent=indent))
    assert ids(path) == ids(path, format="edits") == IDS
    bad = {"good": fact(901), "bad": FACTS[1] | {"subject": 7}} | {f"nr {n}": record for n, record in enumerate(FACTS)}
    path.write_text(json.dumps(bad, indent=indent))
    ((position, _),) = data.read(path).skipped
    assert position.endswith(", 'bad'")
    # too long for a record: its values are read one by one
    monkeypatch.setattr(files.read_records, "__defaults__", (2_000,))
    monkeypatch.setattr(files, "CHUNK", 300)
    loaded = data.read(path)
    assert [case.id for case in loaded.cases][1:] == IDS
    assert loaded.skipped[0][0].startswith("record 'bad' (line ")
    path.write_text(json.dumps(bad, indent=indent)[:-500])
    with pytest.raises(BadInput, match=r"facts.json, record 'nr \d+' .line \d+.: not JSON"):
        data.read(path)


def test_a_record_of_objects_is_no_collection(tmp_path: Path) -> None:
    question = {"subject": "Ann", "src": "Who is Ann?", "rephrase": "Ann?", "alt": "a cook", "answers": ["a singer"]}
    path = tmp_path / "one.json"
    path.write_text(json.dumps({"en": question, "de": question | {"src": "Wer ist Ann?"}}))
    assert data.read(path).format == "mzsre"  # each of its parts alone would be of zsRE
    path.write_text(json.dumps({"1": question, "2": question | {"src": "Ann is who?"}}))
    assert (data.read(path).format, len(data.read(path).cases)) == ("zsre", 2)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".csv.gz"])
def test_tables_of_text(tmp_path: Path, suffix: str) -> None:
    sign = "\t" if "tsv" in suffix else ","
    rows = ["prompt,subject,target_new,target_true,id".replace(",", sign)]
    rows += [f'"Where was\n""Ann {n}"" born?"{sign}Ann {n}{sign}Oslo{sign}{sign}a{n}' for n in range(20)]
    content = ("\ufeff" + "\r\n".join(rows)).encode()
    path = tmp_path / f"facts{suffix}"
    path.write_bytes(gzip.compress(content) if "gz" in suffix else content)
    loaded = data.read(path)
    assert [case.id for case in loaded.cases] == IDS[:20] and loaded.format == "edits"
    edit = loaded.cases[1].edits[0]
    assert (edit.prompt, edit.target_true) == ('Where was\n"Ann 1" born?', None)  # an empty cell is none


@pytest.mark.parametrize(("name", "sign"), [("facts.csv", ";"), ("facts.tsv", ","), ("facts.csv.gz", "\t")])
def test_other_signs_between_cells_are_named(tmp_path: Path, name: str, sign: str) -> None:
    path = tmp_path / name
    content = sign.join(["prompt", "subject", "target_new"]).encode() + b"\nAnn is;Ann;old\n"
    path.write_bytes(gzip.compress(content) if "gz" in name else content)
    with pytest.raises(BadInput, match=re.escape(f"its cells are divided by {sign!r}")):
        data.read(path)


def test_a_row_with_too_many_cells_is_named(tmp_path: Path) -> None:
    rows = ["prompt,subject,target_new", "Ann is,Ann,old", "Ann, is,Ann,old"]
    path = tmp_path / "facts.csv"
    path.write_text("\n".join(rows + ["Bob is,Bob,old"] * 20))
    assert data.read(path).skipped == [("row 2 (line 3)", "4 cells where the first line names 3; quote the cells")]
    path.write_bytes(b"prompt,subject,target_new\nAnn is,Ann,\xe9\n")
    with pytest.raises(BadInput, match=r"facts.csv, line 2: not UTF-8 text"):
        data.read(path)
    path.write_text('prompt,subject,target_new\nAnn is,Ann,"' + "x" * 200_000)
    with pytest.raises(BadInput, match=r"facts.csv, line 2: field larger than field limit"):
        data.read(path)


def test_parquet_is_read_a_few_rows_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "facts.parquet"
    rows = [*FACTS[:200], FACTS[200] | {"target_true": None}, *FACTS[201:]]
    parquet.write_table(arrow.Table.from_pylist(rows), path, row_group_size=50)
    assert ids(path) == IDS and data.read(path).cases[200].edits[0].target_true is None
    seen: list[Any] = []
    monkeypatch.setattr(tables, "ROWS", 10)
    monkeypatch.setattr(tables, "without_none", lambda row: seen.append(row) or row)
    assert ids(path, limit=5) == IDS[:5] and len(seen) == 5
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BadInput, match=r"facts.parquet, behind row 0: not a whole parquet file"):
        data.read(path)


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "facts.parquet"
    path.write_bytes(b"PAR1 and more")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(
        BadInput, match=r"facts.parquet is a parquet file, which needs pyarrow: pip install 'errata\[hub"
    ):
        data.read(path)


def test_a_folder_of_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    train, test = datasets.Dataset.from_list(FACTS[:4]), datasets.Dataset.from_list(FACTS[4:6])
    train.save_to_disk(str(tmp_path / "one"))
    assert ids(tmp_path / "one") == IDS[:4]
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(str(tmp_path / "two"))
    assert ids(tmp_path / "two", split="test") == IDS[4:6]
    with pytest.raises(BadInput, match="has the splits train, test; choose one with split=NAME"):
        data.read(tmp_path / "two")
    with pytest.raises(BadInput, match="no split 'dev'; it has train, test"):
        data.read(tmp_path / "two", split="dev")
    (tmp_path / "one" / "data-00000-of-00001.arrow").unlink()
    with pytest.raises(BadInput, match=r"one cannot be read by datasets .*; write it anew"):
        data.read(tmp_path / "one")
    with pytest.raises(BadInput, match="is a folder, and none that save_to_disk of datasets wrote"):
        data.read(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(BadInput, match=r"pip install 'errata\[hub\]'"):
        data.read(tmp_path / "two")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"BZh91AY", "compressed; unpack it first .bunzip2"),
        (b"PK\x03\x04", "an archive; unpack it first .unzip"),
        (b"ARROW1\0\0", "an Arrow file; give the folder"),
    ],
)
def test_what_cannot_be_opened_says_what_it_is(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "facts.json"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=message):
        data.read(path)
    path.write_bytes(gzip.compress(content))
    with pytest.raises(BadInput, match=message):
        data.read(path)


# No more than is wanted --------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["", "["])
def test_no_more_is_read_than_is_wanted(tmp_path: Path, start: str) -> None:
    path = tmp_path / "facts.json"
    sign = "," if start else ""
    path.write_text(start + "\n".join(json.dumps(record) + sign for record in FACTS[:5]) + "\n{broken" * 30)
    assert ids(path, limit=5) == IDS[:5]
    with pytest.raises(BadInput, match="not JSON"):
        ids(path, limit=6)


def test_a_limit_takes_the_first_of_what_is_read_without_one(tmp_path: Path) -> None:
    records: list[Any] = [*FACTS[:20], fact(3) | {"target_new": "Lima"}, fact(900) | {"subject": 7}, *FACTS[20:]]
    path = tmp_path / "facts.jsonl"
    path.write_bytes(lines(records))
    whole = data.read(path)
    for limit in (1, 20, 21, 25):
        loaded = data.read(path, limit=limit)
        assert loaded.cases == whole.cases[:limit]
    assert (len(loaded.skipped), len(loaded.excluded)) == (1, 1)
    everything = [case.id for case in whole.cases]
    assert ids(path, seed=3, limit=9) == ids(path, seed=3)[:9] != everything[:9]  # a draw is from all of them
    with pytest.raises(BadInput, match=r"400 cases were asked for; .* holds 300 .2 of its records are not used"):
        ids(path, limit=400)
    with pytest.raises(BadInput, match="give a limit of 1 at least"):
        ids(path, limit=0)


def test_a_broken_beginning_is_judged_by_more_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_bytes(lines([fact(900) | {"subject": 7}, *FACTS]))
    assert ids(path, limit=2) == IDS[:2]
    with pytest.raises(BadInput, match="1 of 301 records cannot be used, none may be"):
        ids(path, limit=2, strict=True)


# Which format it is ------------------------------------------------------------------------------


def test_the_format_that_leaves_fewest_keys_unread_is_taken() -> None:
    peak_like = {
        "requested_rewrite": {"prompt": "{} is", "subject": "Ann", "target_new": {"str": "old"}},
        "neighborhood_prompts": [],
        "generation_prompts": [],
    }
    assert best_fit(peak_like)[0] == "counterfact"
    assert best_fit(FACTS[0])[0] == "edits"
    assert best_fit(FACTS[0] | {"locality": {}})[0] == "knowedit"
    assert best_fit({"question": "Who?", "answer": "Ann"}) is None


@pytest.mark.parametrize(
    ("record", "hint"),
    [
        ({"question": "Who?", "answer": "Ann"}, "nearest is unke, which needs para_question too"),
        ({"promt": "Ann is", "subject": "Ann", "target_new": "old"}, "nearest is edits, which needs prompt too"),
        (FACTS[0] | {"colour": "red"}, "nearest is edits, which has no colour"),
        ({"src": "?", "rephrase": "?", "alt": "x"}, "nearest is zsre, which needs answers too"),
    ],
)
def test_what_no_format_fits_is_told_the_nearest(tmp_path: Path, record: Json, hint: str) -> None:
    path = tmp_path / "odd.jsonl"
    path.write_bytes(lines([record]))
    with pytest.raises(BadInput, match=f"no format is known by the keys .*; {hint}; known: "):
        data.read(path)


def test_data_is_there_without_an_import_of_its_own() -> None:
    assert errata.data.read is data.read and "data" in dir(errata)
